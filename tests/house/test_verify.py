"""Golden digests: the reference and the kernels match them, every op has some, and one changed bit is found."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from pyramid_ops import __main__ as cli
from pyramid_ops import _checks as check
from pyramid_ops import use_backend, verify
from pyramid_ops._op import OPS
from pyramid_ops.verify import digests, page
from pyramid_ops.verify.cases import DESCRIPTIONS
from pyramid_ops.verify.digests import tensors_in
from pyramid_ops.verify.inputs import FLOATS, FORMATS, from_bits

GOLDEN = json.loads(verify.GOLDEN.read_text())


def problems(*args, **options) -> list:
    results = list(verify.run(*args, **options))
    assert results
    return [result for result in results if result.problem]


@pytest.mark.parametrize("op", sorted(OPS))
def test_reference_has_the_golden_bits(op):
    assert problems([op]) == []


@pytest.mark.kernel
@pytest.mark.parametrize("op", sorted(OPS))
def test_kernels_have_the_golden_bits(op, device):
    with use_backend("kernel"):
        assert problems([op], device, stride=9) == []


@pytest.mark.kernel
@pytest.mark.slow
@pytest.mark.parametrize("op", sorted(OPS))
def test_kernels_have_all_golden_bits(op, device):
    with use_backend("kernel"):
        assert problems([op], device) == []


def test_every_op_has_cases_and_every_digest_a_case():
    assert set(OPS) == set(GOLDEN)
    for op, description in DESCRIPTIONS.items():
        names = [case.id for case in description.golden()]
        assert len(names) == len(set(names))
        assert set(names) == set(GOLDEN[op])
        dtypes = {x.dtype for case in description.golden() for x in tensors_in(case.args)}
        assert dtypes.issuperset(description.dtypes), op


def flipped(x: torch.Tensor) -> torch.Tensor:
    """`x` with the lowest bit of its last element changed, unless that is NaN."""
    x = x.clone()
    bits = x.view(check.bits(x.dtype)).reshape(-1)
    if x.dtype.is_floating_point and x.reshape(-1)[-1].isnan():
        bits[-1] = 0
    else:
        bits[-1] ^= 1
    return bits.view(x.dtype).reshape(x.shape)


@pytest.mark.parametrize("op", sorted(OPS))
def test_one_changed_bit_of_any_output_is_found(op, monkeypatch):
    reference = OPS[op].reference
    args = next(one.args for one in DESCRIPTIONS[op].golden() if all(x.numel() for x in outputs(op, one.args)))
    for k in range(len(outputs(op, args))):

        def changed(*args, k=k):
            result = list(tensors_in(reference(*args)))
            if k < len(result) and result[k].numel():
                result[k] = flipped(result[k])
            return tuple(result)

        with monkeypatch.context() as patch:
            patch.setattr(OPS[op], "reference", changed)
            with use_backend("reference"):
                assert {result.problem for result in problems([op])} == {f"output {k} differs"}


def outputs(op, args) -> list:
    return list(tensors_in(OPS[op].reference(*args)))


def test_an_op_that_raises_other_inputs_and_missing_digests_are_reported(monkeypatch, tmp_path):
    def broken(*args):
        raise RuntimeError("no such kernel\nand more")

    with monkeypatch.context() as patch:
        patch.setattr(OPS["token_norm"], "reference", broken)
        assert {result.problem for result in problems(["token_norm"])} == {"RuntimeError: no such kernel"}
    changed = json.loads(verify.GOLDEN.read_text())
    cases = changed["token_norm"]
    first, second, third = list(cases)[:3]
    del cases[first]
    cases[second]["inputs"] = "0" * 64
    cases[third]["outputs"] = []
    (tmp_path / "golden.json").write_text(json.dumps(changed))
    monkeypatch.setattr(digests, "GOLDEN", tmp_path / "golden.json")
    assert [result.case for result in problems(["token_norm"])] == [first, second, third]
    reported = [result.problem for result in problems(["token_norm"])]
    assert reported[0] == "no digest in golden.json"
    assert reported[1].startswith("the inputs differ")
    assert reported[2] == "1 outputs, expected 0"


@pytest.mark.parametrize("dtype", FLOATS)
def test_digests_see_all_but_the_payload_of_nan(dtype):
    one = torch.tensor([1.0, 2.0], dtype=dtype)
    others = [one.flip(0), one[:, None], one.double(), -one, one[:1], torch.tensor([1.0, torch.nan], dtype=dtype)]
    assert len({verify.digest(x) for x in [one, *others]}) == len(others) + 1
    assert verify.digest(torch.zeros(1, dtype=dtype)) != verify.digest(-torch.zeros(1, dtype=dtype))
    *_, mantissa, bias, nan = FORMATS[dtype]
    infinity = (2 * bias + 1) << mantissa
    sign = 1 << (8 * dtype.itemsize - 1)
    nans = from_bits(torch.tensor([nan, infinity + 1, nan | sign, infinity + 1 | sign]), dtype)
    assert nans.isnan().all()
    assert len({verify.digest(x) for x in nans}) == 1
    assert verify.digest(one[::2]) == verify.digest(one[:1])


def test_the_stream_is_philox_4x64_10():
    """The known answer that Random123 gives for a zero key, one step on, since NumPy counts first."""
    raw = np.random.Philox(key=0, counter=2**256 - 1).random_raw(4)
    assert [f"{word:016x}" for word in raw] == [
        "16554d9eca36314c", "db20fe9d672d0fdc", "d7e772cee186176b", "7e68b68aec7ba23b",
    ]  # fmt: skip


@pytest.fixture
def reference_only(monkeypatch):
    monkeypatch.setattr(page, "_backends", lambda: [("reference, CPU", "reference", "cpu")])


@pytest.mark.usefixtures("reference_only")
def test_command_prints_a_page_and_returns_0(capsys):
    assert cli.main(["verify"]) == 0
    page = capsys.readouterr().out
    for text in (
        "processor",
        "torch",
        "triton",
        "numpy",
        "reference, CPU",
        "digests equal",
        "yes: the same bits",
        *OPS,
    ):
        assert text in page
    assert page.count("\n") < 60


@pytest.mark.usefixtures("reference_only")
def test_command_names_what_differs_and_returns_1(capsys, monkeypatch):
    reference = OPS["token_norm"].reference
    monkeypatch.setattr(
        OPS["token_norm"], "reference", lambda x, p: flipped(reference(x, p)) if x.numel() else reference(x, p)
    )
    assert cli.main(["verify"]) == 1
    page = capsys.readouterr().out
    assert "DIFFERS: token_norm, case 1-float32: output 0 differs" in page
    assert "NO: not the same bits" in page
    assert "more" in page


def test_command_needs_neither_triton_nor_the_demo_extras():
    code = """
import sys
for module in ("triton", "matplotlib", "PIL", "rich", "skimage"):
    sys.modules[module] = None
from pyramid_ops.__main__ import main
sys.exit(main(["verify"]))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "triton not installed" in result.stdout
