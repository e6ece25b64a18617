"""Rows that merge, and ToMe's own rule in float64."""

import torch
import torch.nn.functional as F

NAN, INF = torch.nan, torch.inf


def rand(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def cosine(a, b):
    return F.normalize(a.double(), dim=-1) @ F.normalize(b.double(), dim=-1).mT


def clusters(batch, tokens, features, dtype, seed=0):
    centres = rand(batch, max(2, tokens // 12), features, seed=seed)
    chosen = torch.randint(0, centres.shape[1], (batch, tokens), generator=torch.Generator().manual_seed(seed))
    x = centres.gather(1, chosen[..., None].expand(-1, -1, features)) + 0.5 * rand(
        batch, tokens, features, seed=seed + 1
    )
    return x.to(dtype)


def tome(metric, r, class_token=False, distill_token=False):
    """(even tokens merged, the odd tokens they merge into, even tokens left, similarities), all original indices."""
    scores = cosine(metric[:, ::2], metric[:, 1::2])
    if class_token:
        scores[:, 0] = -INF
    if distill_token:
        scores[:, :, 0] = -INF
    best, partner = scores.max(-1)
    order = best.argsort(dim=-1, descending=True, stable=True)
    left = order[:, r:].sort(-1).values if class_token else order[:, r:]
    merged = order[:, :r]
    return 2 * merged, 2 * partner.gather(1, merged) + 1, 2 * left, best.gather(1, merged)


def tome_merge(x, plan, reduce, distill_token=False):
    merged, into, left, _ = plan
    width = x.shape[2]

    def rows(index):
        return x.gather(1, index[..., None].expand(-1, -1, width))

    target = x[:, 1::2].scatter_reduce(1, (into // 2)[..., None].expand(-1, -1, width), rows(merged), reduce)
    left = rows(left)
    if distill_token:
        return torch.cat((left[:, :1], target[:, :1], left[:, 1:], target[:, 1:]), 1)
    return torch.cat((left, target), 1)
