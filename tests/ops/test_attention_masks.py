"""Attention importance of padded batches: masks and ranges against each sample alone and plain attention."""

import pytest
import torch

from pyramid_ops import attention_importance


def probabilities(q, k, key_mask=None, causal=False):
    """Probabilities `[B, H, Nq, Nk]` in float64; rows without a key are 0."""
    group, d = q.shape[1] // k.shape[1], q.shape[3]
    logits = q.double() @ k.double().repeat_interleave(group, 1).mT / d**0.5
    seen = torch.ones(logits.shape[-2:], dtype=torch.bool)
    if causal:
        seen = seen.tril(k.shape[2] - q.shape[2])
    seen = seen if key_mask is None else seen & key_mask[:, None, None]
    return logits.masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num(0)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("heads", ["mean", "max"])
def test_left_padded_samples_are_as_alone(causal, heads):
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(3, h, 30, 16, generator=generator) for h in (4, 2))
    lengths = (30, 17, 4)
    there = torch.arange(30) >= 30 - torch.tensor(lengths)[:, None]
    options = {"causal": causal, "head_reduction": heads}
    for chosen in ({"query_mask": there}, {"query_indices": [-1]}, {"query_mask": there & (torch.arange(30) % 3 == 2)}):
        together = attention_importance(q, k, key_mask=there, **chosen, **options)
        for b, n in enumerate(lengths):
            part = {name: x[b : b + 1, -n:] if name == "query_mask" else x for name, x in chosen.items()}
            alone = attention_importance(q[b : b + 1, :, -n:], k[b : b + 1, :, -n:], **part, **options)
            assert torch.equal(together[b, -n:], alone[0])
            assert not together[b, : 30 - n].any()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_masks_and_ranges_are_those_of_plain_attention(causal, packed):
    generator = torch.Generator().manual_seed(1)
    q, k = torch.randn(2, 4, 12, 16, generator=generator), torch.randn(2, 2, 20, 16, generator=generator)
    key_mask = torch.rand(2, 20, generator=generator) > 0.4
    query_mask = torch.rand(2, 12, generator=generator) > 0.5
    ranges = torch.tensor([[3, 18], [0, 7]])
    a = probabilities(q, k, key_mask, causal).mean(1) * query_mask[:, :, None]
    inside = (torch.arange(20) >= ranges[:, :1]) & (torch.arange(20) < ranges[:, 1:])
    expected = (a.sum(1) * inside).float()
    options = {"causal": causal, "query_reduction": "sum", "key_range": ranges}
    if packed:
        rows = [x.transpose(1, 2).flatten(0, 1) for x in (q, k)]
        bounds = {"cu_seqlens_q": torch.tensor([0, 12, 24]), "cu_seqlens_k": torch.tensor([0, 20, 40])}
        scores = attention_importance(
            *rows, key_mask=key_mask.flatten(), query_weights=query_mask.flatten().float(), **bounds, **options
        ).view(2, 20)
    else:
        scores = attention_importance(q, k, key_mask=key_mask, query_mask=query_mask, **options)
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-6)
    assert not scores[~(key_mask & inside)].any()


def test_all_masked():
    q = torch.randn(2, 2, 5, 8)
    none = torch.zeros(2, 5, dtype=torch.bool)
    assert not attention_importance(q, q, key_mask=none).any()
    assert not attention_importance(q, q, query_mask=none).any()
    assert not attention_importance(q, q, key_range=torch.zeros(2, 2, dtype=torch.int32)).any()


def test_center_keys_leaves_masked_keys_out():
    q, k = torch.randn(1, 2, 6, 8), torch.randn(1, 2, 9, 8)
    mask = torch.arange(9)[None] < 6
    k[:, :, 6:] = 1e30
    masked = attention_importance(q, k, key_mask=mask, center_keys=True)
    alone = attention_importance(q, k[:, :, :6], center_keys=True)
    assert torch.equal(masked[:, :6], alone)


def test_bad_masks():
    q = torch.randn(2, 2, 5, 8)
    mask, rows = torch.ones(2, 5, dtype=torch.bool), q.transpose(1, 2).flatten(0, 1)
    bounds = {"cu_seqlens_q": torch.tensor([0, 10]), "cu_seqlens_k": torch.tensor([0, 10])}
    for message, call in (
        (r"key_mask: expected \[2, 5\] on cpu", lambda: attention_importance(q, q, key_mask=mask[:, :4])),
        ("key_mask: expected dtype bool", lambda: attention_importance(q, q, key_mask=mask.float())),
        (r"query_mask: expected \[2, 5\] on cpu", lambda: attention_importance(q, q, query_mask=mask[:1])),
        ("query_mask: expected dense", lambda: attention_importance(rows, rows, query_mask=mask.flatten(), **bounds)),
        ("at most one", lambda: attention_importance(q, q, query_mask=mask, query_indices=[0])),
        (r"key_range: expected \[2, 2\]", lambda: attention_importance(q, q, key_range=torch.zeros(1, 2).int())),
        ("key_range: expected dtype", lambda: attention_importance(q, q, key_range=torch.zeros(2, 2))),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            call()
