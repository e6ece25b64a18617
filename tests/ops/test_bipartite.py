"""Plans of ToMe against plain code for each sample, and against `tome_matching`."""

import pytest
import torch
import torch.nn.functional as F

import pyramid_ops
from pyramid_ops import plans
from tests.bits import assert_same_bits


def plainly(metric: torch.Tensor, r: int, class_token: bool) -> torch.Tensor:
    """The token that owns the row of each token, in float64."""
    unit = F.normalize(metric.double(), dim=1)
    similarity, partner = (unit[::2] @ unit[1::2].T).max(1)
    if class_token:
        similarity[0] = -torch.inf
    owner = torch.arange(len(metric))
    for even in similarity.topk(r).indices.tolist():
        owner[2 * even] = 2 * partner[even] + 1
    return owner


@pytest.mark.parametrize("class_token", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_original_order_is_plain_tome(class_token, packed):
    x, sizes = torch.randn(3, 41, 16), torch.rand(3, 41)
    options = {"class_token": class_token, "order": "original"}
    if packed:
        bounds = torch.tensor([0, 41, 82, 123])
        plan = plans.tome(x.flatten(0, 1), 12, cu_seqlens=bounds, max_seqlen=41, **options)
        merged, total = plans.apply(
            plan, [x.flatten(0, 1), sizes.flatten()], weights=sizes.flatten(), mode=["mean", "sum"]
        )
        assert plan.cu_seqlens.tolist() == [0, 29, 58, 87]
        assert not merged[87:].any()
        assert plan.indices[87:].tolist() == [-1] * 36
        rows = (plan.rows.view(3, 41) - 29 * torch.arange(3)[:, None], plan.indices[:87].view(3, 29))
        rows = (rows[0], rows[1] - 41 * torch.arange(3)[:, None])
        merged, total = merged[:87].view(3, 29, 16), total[:87].view(3, 29)
    else:
        plan = plans.tome(x, 12, **options)
        merged, total = plans.apply(plan, [x, sizes], weights=sizes, mode=["mean", "sum"])
        rows = plan.rows, plan.indices
    assert plan.counts.tolist() == [29] * 3
    for b in range(3):
        owner = plainly(x[b], 12, class_token)
        kept = owner.unique()
        assert torch.equal(rows[1][b], kept)
        assert torch.equal(kept[rows[0][b]], owner)
        weight = sizes[b].double()
        for m, token in enumerate(kept.tolist()):
            here = owner == token
            mean = (x[b][here].double() * weight[here, None]).sum(0) / weight[here].sum()
            torch.testing.assert_close(merged[b, m].double(), mean, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(total[b, m].double(), weight[here].sum(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("order", ["tome", "original"])
@pytest.mark.parametrize("flags", [{}, {"class_token": True}, {"class_token": True, "distill_token": True}])
@pytest.mark.parametrize("packed", [False, True])
def test_a_merge_is_the_plan_of_tome_matching(order, flags, packed):
    x = torch.randn(2, 31, 8)
    x[1, 5, 3] = torch.nan
    if packed:
        x, flags = x.flatten(0, 1), {**flags, "cu_seqlens": torch.tensor([0, 3, 4, 31, 60])}
    plan, merge = pyramid_ops.tome_matching(x, 9, **flags), plans.tome(x, 9, order=order, **flags)
    assert torch.equal(pyramid_ops.merge_indices(plan, order=order), merge.rows)
    merged = pyramid_ops.merge_tokens(x, plan, order=order)
    tokens, sizes = plans.apply(merge, [x, torch.ones(x.shape[:-1])], mode=["mean", "sum"])
    assert torch.equal(tokens.nan_to_num(7), merged.tokens.nan_to_num(7))
    assert torch.equal(sizes, merged.sizes)
    assert torch.equal(merge.sizes, merged.sizes)


def test_bad_input():
    with pytest.raises(ValueError, match=r"tome: order: expected one of 'tome', 'original', got 'value'"):
        plans.tome(torch.randn(1, 4, 2), 1, order="value")
    with pytest.raises(ValueError, match=r"tome: cu_seqlens: expected offsets for packed"):
        plans.tome(torch.randn(4, 2), 1)
    with pytest.raises(TypeError, match=r"tome: r: expected an integer, got 1.5"):
        plans.tome(torch.randn(1, 4, 2), 1.5)


class Merging(torch.nn.Module):
    def forward(self, metric, hidden):
        return plans.apply(plans.tome(metric, 16, class_token=True), hidden)


def test_tome_and_apply_export_with_any_number_of_tokens():
    dynamic = dict.fromkeys((0, 1), torch.export.Dim.DYNAMIC)
    given = torch.randn(2, 577, 8), torch.randn(2, 577, 4)
    exported = torch.export.export(Merging(), given, dynamic_shapes=(dynamic, dynamic)).module()
    for tokens in (100, 301, 730):
        x, hidden = torch.randn(3, tokens, 8), torch.randn(3, tokens, 4)
        assert_same_bits(exported(x, hidden), Merging()(x, hidden))
