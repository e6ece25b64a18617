"""Ops on DTensors that are sharded by batch: two processes, which compare every op's bits with those of one."""

import os
import traceback

import pytest
import torch
import torch.distributed as dist
from torch._dynamo.backends.common import aot_autograd
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor, init_device_mesh
from torch.distributed.tensor.debug import CommDebugMode
from torch.utils._pytree import tree_map_only

import pyramid_ops
from pyramid_ops import distributed, methods, plans
from pyramid_ops._op import OPS
from pyramid_ops.verify.cases import DESCRIPTIONS
from tests.bits import assert_same_bits

#: Ops that have no batch.
PACKED = {"cluster_rows", "compact", "pool_scores_packed", "segmented_topk", "select_topk_levels_packed"}


def dense_cases(op):
    """Some calls with a batch that two processes can share, one of them with an odd number of samples if there is."""
    found = {}
    for case in DESCRIPTIONS[op.name].bits():
        call = distributed.Call(op, op.flat.flatten(case.args))
        packed = any("cu_seqlens" in name and arg is not None for name, arg in call.args.items())
        size = sum(x.numel() for _, x in call.tensors())
        if not packed and 1 < call.samples() and size < 30000 and not case.slow:
            given = tuple(name for name, _ in call.tensors())
            found.setdefault((call.samples() % 2, given), case)
    return list(found.values())[:6]


def sharded(op, args, mesh):
    """The arguments with all that has a batch sharded, and what serves all samples replicated."""
    call = distributed.Call(op, args)
    samples = call.samples()
    for name, arg in call.args.items():
        whole = name in distributed.SHARED.get(op.name, ())

        def shard(x, whole=whole):
            return distribute_tensor(x, mesh, [Replicate() if whole or x.shape[0] != samples else Shard(0)])

        call.args[name] = tree_map_only(torch.Tensor, shard, arg)
    return list(call.args.values())


def gathered(results):
    return tree_map_only(DTensor, lambda x: x.full_tensor(), results)


def batched(results, expected):
    """Without offsets, which are those of a device."""
    if isinstance(expected, torch.Tensor):
        return results, expected
    both = [
        (r, e)
        for r, e in zip(results, expected, strict=True)
        if not isinstance(r, torch.Tensor) or isinstance(r, DTensor)
    ]
    return [r for r, _ in both], [e for _, e in both]


def check_every_op(mesh):
    for name in sorted({*OPS} - PACKED):
        op = OPS[name]
        cases = dense_cases(op)
        assert cases, name
        for case in cases:
            flat = op.flat.flatten(case.args)
            given = sharded(op, flat, mesh)
            with CommDebugMode() as comm:
                got = op.custom(*given)
            assert comm.get_total_counts() == 0, (name, case.id)
            got, expected = batched(got, op.custom(*flat))
            parts = [x for x in torch.utils._pytree.tree_leaves(got) if isinstance(x, DTensor)]
            assert parts, (name, case.id)
            assert all(x.placements == (Shard(0),) for x in parts)
            assert_same_bits(gathered(got), expected, f"{name} {case.id}")


def noise(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def compose(x, scores, mask):
    plan = plans.keep(scores, [2, 1, 3], candidates=mask)
    kept = plans.apply(plan, [x, scores])
    merged = pyramid_ops.merge_tokens(x, pyramid_ops.tome_matching(x, 3))
    return [plan.indices, plan.counts, *kept, *merged, pyramid_ops.token_variance(x)]


def check_public_functions(mesh):
    x, scores, mask = noise(0, 3, 12, 8), noise(1, 3, 12), noise(2, 3, 12) > -1
    given = [distribute_tensor(t, mesh, [Shard(0)]) for t in (x, scores, mask)]
    expected = compose(x, scores, mask)
    with CommDebugMode() as comm:
        got = compose(*given)
    assert comm.get_total_counts() == 0
    assert_same_bits(gathered(got), expected)
    given[2] = distribute_tensor(mask, mesh, [Replicate()])  # cut where it is
    assert_same_bits(gathered(compose(*given)), expected)
    query, key, image = noise(3, 3, 4, 9, 8), noise(4, 3, 2, 9, 8), torch.arange(9).expand(3, -1) < 6
    given = [distribute_tensor(t, mesh, [Shard(0)]) for t in (query, key, image)]
    plan = methods.fastv(*given, keep=2, capacity=5)
    assert_same_bits(gathered(plan.indices), methods.fastv(query, key, image, keep=2, capacity=5).indices)
    # One sample: a process has none.
    one = distribute_tensor(x[:1], mesh, [Shard(0)])
    assert_same_bits(gathered(pyramid_ops.token_variance(one)), pyramid_ops.token_variance(x[:1]))


def check_methods(mesh):
    """Those that the module's docstring names, for an odd number of samples."""
    x, scores, other = noise(0, 3, 16, 8), noise(1, 3, 16).abs(), noise(2, 3, 16).abs()
    query, key, image = noise(3, 3, 4, 16, 8), noise(4, 3, 2, 16, 8), (torch.arange(16) < 12).expand(3, -1)
    text, some = ~image, {"keep": 4, "capacity": 8}
    calls = [(getattr(methods, name), (query, key, image), some) for name in ("fastv", "pyramiddrop", "vscan_decode")]
    calls += [(getattr(methods, name), (query, key, image, text), some) for name in ("fitprune", "sparsevlm")]
    calls += [(getattr(methods, name), (x, scores), {"keep": 4}) for name in ("cdpruner", "greedyprune", "scope")]
    calls += [
        (methods.aim_merge, (x,), {}),
        (methods.aim_prune, (query, key, image), some),
        (methods.dart, (x, key, image, text), {"each": 1, "pivots": 2, "text_pivots": 2}),
        (methods.divprune, (x,), {"keep": 4}),
        (methods.fastervlm, (scores,), {"keep": 4}),
        (methods.hiprune, (scores, other), {"keep": 4, "grid": (4, 4)}),
        (methods.prumerge_select, (scores,), {}),
        (methods.vispruner, (x, scores), {"keep": 6, "important": 3}),
    ]
    for function, tensors, options in calls:
        given = [distribute_tensor(t, mesh, [Shard(0)]) for t in tensors]
        with CommDebugMode() as comm:
            got = function(*given, **options)
        assert comm.get_total_counts() == 0, function.__name__
        got, expected = (torch.utils._pytree.tree_leaves(r) for r in (gathered(got), function(*tensors, **options)))
        assert_same_bits(
            [g for g in got if isinstance(g, torch.Tensor)], [e for e in expected if isinstance(e, torch.Tensor)]
        )


def compiled(function):
    """(what its graph calls, the function as one graph)."""
    called = []

    def compiler(graph, _):
        called.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    return called, torch.compile(function, fullgraph=True, backend=aot_autograd(fw_compiler=compiler))


def check_compiled(mesh):
    x, scores, mask = noise(0, 3, 12, 8), noise(1, 3, 12), noise(2, 3, 12) > -1
    given = [distribute_tensor(t, mesh, [Shard(0)]) for t in (x, scores, mask)]
    called, step = compiled(compose)
    assert_same_bits(gathered(step(*given)), compose(x, scores, mask))
    assert "pyramid_ops.keep_tokens.default" in called
    assert not [name for name in called if "c10d" in name]


def check_errors(mesh):
    x = noise(0, 4, 12, 8)
    with pytest.raises(ValueError, match=r"token_variance: features: expected Shard\(0\) or Replicate\(\), got S.*1"):
        pyramid_ops.token_variance(distribute_tensor(x, mesh, [Shard(1)]))
    packed, bounds = noise(1, 12), torch.tensor([0, 5, 12], dtype=torch.int32)
    with pytest.raises(
        ValueError, match="keep_tokens: cu_seqlens: expected None, dense tensors where they are sharded"
    ):
        plans.keep(distribute_tensor(packed, mesh, [Shard(0)]), 2, cu_seqlens=bounds)
    alike = [distribute_tensor(t, mesh, [Replicate()]) for t in (packed, bounds)]
    plan = plans.keep(alike[0], 2, cu_seqlens=alike[1])
    assert_same_bits(gathered(plan.indices), plans.keep(packed, 2, cu_seqlens=bounds).indices)
    with pytest.raises(ValueError, match="compact: tensors: expected replicated ones, got sharded ones, and offsets"):
        pyramid_ops.compact(
            [distribute_tensor(x, mesh, [Shard(0)])], distribute_tensor(torch.zeros(4, 2).long(), mesh, [Shard(0)])
        )
    wide, plan = (
        distribute_tensor(x[:1], mesh, [Shard(0)]),
        plans.keep(distribute_tensor(x[..., 0], mesh, [Shard(0)]), 2),
    )
    with pytest.raises(ValueError, match="move_tokens: tensors: expected what serves all samples replicated or Rep"):
        plans.apply(plan, wide)


def check_a_mesh_of_two_dimensions():
    """Batches over one of them, everything twice over the other."""
    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("data", "model"))
    x = noise(0, 5, 12, 8)
    got = pyramid_ops.token_variance(distribute_tensor(x, mesh, [Shard(0), Replicate()]))
    assert got.placements == (Shard(0), Replicate())
    assert_same_bits(got.full_tensor(), pyramid_ops.token_variance(x))


def check_every_op_compiled(mesh):
    """In one graph."""
    names = sorted({*OPS} - PACKED)
    flat = [OPS[name].flat.flatten(dense_cases(OPS[name])[0].args) for name in names]
    given = [sharded(OPS[name], args, mesh) for name, args in zip(names, flat, strict=True)]

    def calls(given):
        return [getattr(torch.ops.pyramid_ops, name)(*args) for name, args in zip(names, given, strict=True)]

    called, step = compiled(calls)
    for name, got, expected in zip(names, step(given), calls(flat), strict=True):
        got, expected = batched(got, expected)
        assert_same_bits(gathered(got), expected, name)
    assert [name for name in called if name.startswith("pyramid_ops")] == [
        f"pyramid_ops.{name}.default" for name in names
    ]
    assert not [name for name in called if "c10d" in name]


CHECKS = (check_every_op, check_every_op_compiled, check_public_functions, check_methods, check_compiled, check_errors)


def work(rank, store, failures):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    try:
        mesh = init_device_mesh("cpu", (2,))
        for check in CHECKS:
            check(mesh)
        check_a_mesh_of_two_dimensions()
    except BaseException:
        failures.put(traceback.format_exc()[-8000:])
        os._exit(1)  # the other process may wait for this one
    dist.destroy_process_group()


def test_on_two_processes(tmp_path):
    context = torch.multiprocessing.get_context("spawn")
    failures = context.SimpleQueue()
    both = [context.Process(target=work, args=(rank, tmp_path / "store", failures)) for rank in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
    said = [] if failures.empty() else [failures.get()]
    for process in both:
        process.kill()
    assert not said, said[0]
    assert [process.exitcode for process in both] == [0, 0]
