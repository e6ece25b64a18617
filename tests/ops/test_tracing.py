"""Every public function under `torch.export` with dynamic sizes, with fake tensors and under the default compiler."""

import inspect
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils import _pytree as pytree

import pyramid_ops
from pyramid_ops import compat
from tests.bits import assert_same_bits
from tests.ops.traced_calls import CALLS, rand


class Module(torch.nn.Module):
    def __init__(self, function: Callable):
        super().__init__()
        self.function = function

    def forward(self, inputs: list[Tensor]):
        return self.function(*inputs)


def tensors(result: object) -> list[Tensor]:
    return [x for x in pytree.tree_leaves(result) if isinstance(x, Tensor)]


def test_no_public_function_is_missing():
    public = {name for name in pyramid_ops.__all__ if inspect.isfunction(getattr(pyramid_ops, name))}
    assert public | {*compat.__all__} <= CALLS.keys() | {"use_backend", "merge_wavg", "merge_source"}


@pytest.mark.parametrize("name", CALLS)
def test_exports_with_dynamic_sizes(name):
    function, inputs = CALLS[name]
    small, large = inputs(3, 10), inputs(5, 14)
    sizes = [
        {k: torch.export.Dim.DYNAMIC for k in range(x.dim()) if x.shape[k] != y.shape[k]}
        for x, y in zip(small, large, strict=True)
    ]
    program = torch.export.export(Module(function), (small,), dynamic_shapes=(sizes,)).module()
    for example in (small, large, inputs(2, 11)):
        assert_same_bits(tensors(program(example)), tensors(function(*example)))


@pytest.mark.parametrize("name", CALLS)
def test_fake_tensors_have_the_shapes_of_real_ones(name):
    function, inputs = CALLS[name]
    expected = tensors(function(*inputs(3, 10)))
    with FakeTensorMode() as mode:
        actual = tensors(function(*[mode.from_tensor(x) for x in inputs(3, 10)]))
    assert all(isinstance(x, torch._subclasses.FakeTensor) for x in actual)
    assert [(x.shape, x.dtype, x.device) for x in actual] == [(x.shape, x.dtype, x.device) for x in expected]


@pytest.mark.parametrize("name", CALLS)
def test_meta_tensors_and_default_devices_are_kept_out(name):
    function, inputs = CALLS[name]
    expected = tensors(function(*inputs(3, 10)))
    if name != "allocate_budgets":
        with pytest.raises(TypeError, match="expected a CPU or CUDA tensor, got .* on meta"):
            function(*[x.to("meta") for x in inputs(3, 10)])
    x = inputs(3, 10)
    torch.set_default_device("meta")
    try:
        actual = tensors(function(*x))
    finally:
        torch.set_default_device(None)
    assert_same_bits(actual, expected)


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in CALLS])
def test_the_default_compiler_gives_the_same_bits(name):
    function, inputs = CALLS[name]
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True)
    assert_same_bits(tensors(compiled(*inputs(3, 10))), tensors(function(*inputs(3, 10))))


def test_the_default_compiler_takes_random_destinations():
    def sources(x):
        return compat.bipartite_soft_matching_random2d(x, 4, 6, 2, 2, 9, seed=3)[0].plan.sources

    torch._dynamo.reset()
    assert_same_bits(torch.compile(sources, fullgraph=True)(rand(2, 24, 8)), sources(rand(2, 24, 8)))
