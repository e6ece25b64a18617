"""Methods after the encoder against plain code for each sample."""

import pytest
import torch

import pyramid_ops
from pyramid_ops import methods, plans
from tests.methods.layouts import best, probabilities, unit


def test_class_attention():
    query, key = torch.randn(2, 4, 30, 16), torch.randn(2, 4, 30, 16)
    want = torch.stack([probabilities(q, k, causal=False)[:, 0].mean(0) for q, k in zip(query, key, strict=True)])
    torch.testing.assert_close(methods.class_attention(query, key).double(), want[:, 1:], rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(methods.class_attention(query, key, prefix=5).double(), want[:, 5:], rtol=1e-4, atol=0)
    both = [x.movedim(1, 2).flatten(0, 1) for x in (query, key)]
    packed = methods.class_attention(*both, cu_seqlens=torch.tensor([0, 30, 60]))
    assert torch.equal(packed.view(2, 30)[:, 1:], methods.class_attention(query, key))


def test_fastervlm():
    scores = torch.rand(3, 40, generator=torch.Generator().manual_seed(1)).mul(9).floor()
    plan = methods.fastervlm(scores, keep=[7, 0, 40])
    for b, k in enumerate((7, 0, 40)):
        assert plan.indices[b, :k].tolist() == sorted(best(scores[b], k, range(40)))
    packed = methods.fastervlm(scores.flatten(), keep=7, cu_seqlens=torch.tensor([0, 40, 80, 120]), max_seqlen=40)
    assert packed.indices.tolist() == [40 * b + i for b in range(3) for i in sorted(best(scores[b], 7, range(40)))]


@pytest.mark.parametrize(("size", "dominant", "contextual"), [(60, 13, 5), (42, 0, 7), (12, 6, 6), (9, 3, 4)])
def test_visionzip(size, dominant, contextual):
    generator = torch.Generator().manual_seed(2)
    attention = torch.rand(2, size, generator=generator).mul(20).floor()
    # A few different tokens only, so that similarities are equal.
    metric, x = (torch.randn(2, n, 16, generator=generator) for n in (size // 3, size))
    metric = metric.repeat(1, 3, 1)
    first, merged = methods.visionzip(attention, metric, dominant=dominant, contextual=contextual)
    dominating, merging = plans.apply(first, x), plans.apply(merged, x)
    joined = merged.rows.masked_fill(plans.mask(merged), -1)
    authors = plans.apply(merged, x, mode="owner") + pyramid_ops.assign_mean(x, joined, contextual).tokens
    for b in range(2):
        chosen = sorted(best(attention[b], dominant, range(size)))
        assert torch.equal(dominating[b], x[b, chosen])
        rest = [i for i in range(size) if i not in chosen]
        targets = rest[:: len(rest) // contextual][:contextual]
        members = {t: [] for t in targets}
        similarity = (unit(metric[b]) @ unit(metric[b]).mT * 1e9).round()
        for i in rest:
            if i not in targets:
                members[max(targets, key=lambda t: (similarity[i, t], -t))].append(i)
        for row, (target, others) in enumerate(members.items()):
            torch.testing.assert_close(merging[b, row], x[b, [target, *others]].mean(0))
            others = x[b, others].mean(0) if others else torch.zeros(16)
            torch.testing.assert_close(authors[b, row], x[b, target] + others)


def test_visionzip_refuses_more_tokens_than_there_are():
    with pytest.raises(ValueError, match="visionzip: contextual: expected at most 3, the other tokens"):
        methods.visionzip(torch.rand(1, 9), torch.rand(1, 9, 4), dominant=6, contextual=4)
