"""Digests of what ops make of inputs that never change, and the comparison with `golden.json`."""

import hashlib
import json
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor

from .. import _checks as check
from .._op import OPS
from .cases import DESCRIPTIONS
from .inputs import FORMATS, name

GOLDEN = pathlib.Path(__file__).with_name("golden.json")


def tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from tensors_in(part)


def digest(*tensors: Tensor) -> str:
    """SHA-256 of dtypes, shapes and bits in row-major order, every NaN as one pattern."""
    sha = hashlib.sha256()
    for x in tensors:
        sha.update(f"{name(x.dtype)} {list(x.shape)} ".encode())
        x = x.detach().cpu().contiguous()
        bits = x.view(check.bits(x.dtype))
        if x.dtype in FORMATS:
            bits = torch.where(x.isnan(), FORMATS[x.dtype][3], bits).to(bits.dtype)
        sha.update(bits.numpy().astype(bits.numpy().dtype.newbyteorder("<"), copy=False).tobytes())
    return sha.hexdigest()


def digests_of(op: str, args: Sequence[Any], device: torch.device | str = "cpu") -> dict[str, Any]:
    """What `golden.json` holds for a case: one digest of all inputs, and one of each output."""
    inputs = digest(*tensors_in(args))
    result = OPS[op](*[_to(device, arg) for arg in args])
    return {"inputs": inputs, "outputs": [digest(x) for x in tensors_in(result)]}


def _to(device: torch.device | str, value: Any) -> Any:
    """On `device` with the same strides."""
    if isinstance(value, Tensor):
        if value.device == torch.device(device):
            return value
        storage = torch.empty(0, dtype=value.dtype).set_(value.untyped_storage()).to(device)
        return storage.as_strided(value.shape, value.stride(), value.storage_offset())
    if hasattr(value, "_fields"):
        return type(value)(*[_to(device, x) for x in value])
    return [_to(device, x) for x in value] if isinstance(value, (list, tuple)) else value


class Result(NamedTuple):
    op: str
    case: str
    problem: Optional[str]


def run(ops: Iterable[str], device: torch.device | str = "cpu", stride: int = 1) -> Iterator[Result]:
    """Compare every `stride`-th case of `ops`, run on `device` and the backend in use, with `golden.json`."""
    golden = json.loads(GOLDEN.read_text())
    for op in ops:
        for case, args, _ in list(DESCRIPTIONS[op].golden())[::stride]:
            expected = golden.get(op, {}).get(case)
            try:
                actual = digests_of(op, args, device)
            except Exception as error:  # a kernel that does not compile or launch is a verdict too
                yield Result(op, case, f"{type(error).__name__}: {error}".splitlines()[0])
                continue
            problem: Optional[str] = None
            if expected is None:
                problem = "no digest in golden.json"
            elif actual["inputs"] != expected["inputs"]:
                problem = "the inputs differ: NumPy's Philox or torch's integer arithmetic, not the op"
            elif len(actual["outputs"]) != len(expected["outputs"]):
                problem = f"{len(actual['outputs'])} outputs, expected {len(expected['outputs'])}"
            else:
                pairs = enumerate(zip(actual["outputs"], expected["outputs"], strict=True))
                differing = [str(k) for k, (a, e) in pairs if a != e]
                if differing:
                    problem = f"output {', '.join(differing)} differs"
            yield Result(op, case, problem)
