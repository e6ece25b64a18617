"""Ops on DTensors that are sharded by batch: each device computes its own samples, and nobody talks.

``import pyramid_ops.distributed`` is all; ``import pyramid_ops`` imports nothing of :mod:`torch.distributed`. From then
on each op with a batch takes DTensors with any number of their mesh's dimensions ``Shard(0)``, the others
``Replicate()``, in eager mode and under ``torch.compile``, and returns DTensors that are sharded alike: the bits of one
device with all samples, shards of unequal size too. Replicated tensors beside them, such as those that serve all
samples, and plain tensors, which have to be the same everywhere, are cut locally.

Functions that are more than one op follow where PyTorch's own operators between them do, which takes DTensors alone:
:mod:`pyramid_ops.plans` but for ``concat``, ``apply`` of a sharded plan to sharded tensors; of
:mod:`pyramid_ops.methods` aim_merge, aim_prune, cdpruner, dart, divprune, fastervlm, fastv, fitprune, greedyprune,
hiprune, prumerge_select, pyramiddrop, scope, sparsevlm, vispruner and vscan_decode. Not dycoke, evs, hired, holov,
prumerge, prumerge_plus_select, visionzip and vscan, which put samples or plain tensors together: call those, and
``plans.concat``, with ``x.to_local()``.

What there is one rule for is what an op's signature says: without offsets of segments, all its tensors have the batch
first, and so have its results. Other placements, and packed tokens that are sharded, raise ValueError naming the op:
segments lie across shards. An op's offsets of dense samples, which public functions drop, are those of the device.

>>> import pyramid_ops.distributed
>>> from torch.distributed.tensor import Shard, distribute_tensor
>>> def shares(x, mesh):  # x [B, N, D], in a process of a group
...     return pyramid_ops.token_variance(distribute_tensor(x, mesh, [Shard(0)]))
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DeviceMesh, DTensor, Placement, Replicate, Shard
from torch.utils._pytree import tree_map_only

from ._op import OPS, Op

__all__: list[str] = []

#: Tensors that are the same for all samples.
SHARED = {"place_pairs": ("a", "b")}
#: Integers of each sample, which are on the host where there is no tensor of them.
AMOUNTS = ("clusters", "k")
#: Ops whose results for samples are not apart from each other.
TOGETHER = {"compact": "offsets that add up over all samples: plans.apply moves tokens without"}


class Call:
    """An op and its arguments, by name."""

    def __init__(self, op: Op, args: Sequence[Any]):
        self.op, self.args = op, dict(zip(op.flat.names, args, strict=True))

    def tensors(self) -> list[tuple[str, Tensor]]:
        """Those with a batch."""
        shared, found = SHARED.get(self.op.name, ()), []
        for name, arg in self.args.items():
            each = arg if isinstance(arg, (list, tuple)) else [arg]
            found += [(name, x) for x in each if isinstance(x, Tensor) and name not in shared]
        return found

    def error(self, what: str, expected: str, got: Any) -> ValueError:
        return ValueError(f"{self.op.name}: {what}: expected {expected}, got {got}")

    def placements(self, mesh: DeviceMesh) -> list[Placement]:
        """Of the results: the batch is sharded over each dimension of the mesh over which it is in any argument."""
        sharded = [False] * mesh.ndim
        for name, x in self.tensors():
            if not isinstance(x, DTensor):
                continue
            if x.device_mesh != mesh:
                raise self.error(name, f"a DTensor on {mesh}", x.device_mesh)
            for k, placement in enumerate(x.placements):
                if placement != Replicate() and (placement != Shard(0) or x.shape[0] != self.samples()):
                    expected = "Shard(0)" if x.shape[0] == self.samples() else "what serves all samples replicated"
                    raise self.error(name, f"{expected} or Replicate()", placement)
                sharded[k] |= placement == Shard(0)
        return [Shard(0) if along else Replicate() for along in sharded]

    def samples(self) -> int:
        return max(x.shape[0] for _, x in self.tensors())

    def check(self) -> None:
        """Whether samples can be apart."""
        packed = [name for name, arg in self.args.items() if "cu_seqlens" in name and arg is not None and arg != []]
        if packed:
            expected = "None, dense tensors where they are sharded by batch"
            raise self.error(packed[0], expected, "packed ones, whose segments lie across shards")
        if self.op.name in TOGETHER:
            raise self.error("tensors", "replicated ones", f"sharded ones, and {TOGETHER[self.op.name]}")

    def spread_numbers(self) -> None:
        """Integers of each sample become a tensor."""
        for name in AMOUNTS:
            numbers = self.args.get(f"{name}_numbers")
            if numbers is not None and len(numbers) > 1 and self.args[f"{name}_tensor"] is None:
                device = self.tensors()[0][1].device
                self.args[f"{name}_tensor"] = torch.tensor(list(numbers), dtype=torch.int64, device=device)

    def local(self, mesh: DeviceMesh, placements: Sequence[Placement]) -> list[Any]:
        """The arguments for the samples of this device."""
        samples, shared = self.samples(), SHARED.get(self.op.name, ())

        def cut(name: str, x: Tensor) -> Tensor:
            if not isinstance(x, DTensor):
                x = DTensor.from_local(x, mesh, [Replicate()] * mesh.ndim, run_check=False)
            whole = name in shared or x.shape[0] != samples
            return x.redistribute(mesh, [Replicate()] * mesh.ndim if whole else placements).to_local()

        return [tree_map_only(Tensor, functools.partial(cut, name), arg) for name, arg in self.args.items()]

    def wrapped(self, results: Any, mesh: DeviceMesh, placements: Sequence[Placement]) -> Any:
        """Results of this device as parts of all; what has no batch stays as it is."""
        samples = self.samples()
        meta = tree_map_only(Tensor, _described, tuple(self.args.values()))
        whole, made = self.op.fake(*self.op.flat.unflatten(meta)), []
        for part, described in zip(_flat(results), _flat(whole), strict=True):
            if described.dim() and described.shape[0] == samples:
                options: dict[str, Any] = {"shape": described.shape, "stride": described.stride()}
                part = DTensor.from_local(part, mesh, placements, run_check=False, **options)
            made.append(part)
        return made[0] if isinstance(results, Tensor) else _like(results, iter(made))


def _described(x: Tensor) -> Tensor:
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")


def _flat(results: Any) -> list[Tensor]:
    if isinstance(results, Tensor):
        return [results]
    return [y for x in results for y in (x if isinstance(x, (list, tuple)) else [x])]


def _like(results: Sequence[Any], made: Any) -> Any:
    each = [[next(made) for _ in x] if isinstance(x, (list, tuple)) else next(made) for x in results]
    return tuple(each) if isinstance(results, tuple) else each


def _rule(op: Op) -> Callable[..., Any]:
    def run(_: Any, function: Any, types: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        call = Call(op, args)
        given = [x for _, x in call.tensors() if isinstance(x, DTensor)]
        if any(placement != Replicate() for x in given for placement in x.placements):
            call.check()
            call.spread_numbers()
        mesh = given[0].device_mesh
        placements = call.placements(mesh)
        return call.wrapped(function(*call.local(mesh, placements)), mesh, placements)

    return run


for _op in OPS.values():
    torch.library.register_torch_dispatch(_op.custom, DTensor, _rule(_op))
