"""A random walk along attention."""

from typing import Optional

import torch
from torch import Tensor

from .arguments import Softmax
from .arithmetic import below_one
from .attention import Attention, accumulate, over_heads
from .blocks import KEPT, LOGITS, Work
from .logits import head_rows
from .segments import segments


def attention_walk(
    query: Tensor,
    key: Tensor,
    softmax: Softmax,
    steps: int,
    head_reduction: str,
    cu_seqlens: Optional[Tensor],
    max_seqlen: int,
) -> Tensor:
    """Where a random walk along attention is after so many steps, over heads: float32 `[B, N]`.

    From `query` `[B, H, N, D]` and `key` `[B, Hkv, N, D]`. A head's p is 1/N at first; each step adds up p · attention
    as integers in units of 2⁻³⁰ of a power of two above the largest p.

    With `cu_seqlens`, ascending, of each segment of `[1, H, T, D]`: 0 for tokens of none, or past `max_seqlen`.
    """
    batch, heads, count, _ = query.shape
    out = torch.zeros(batch, count, dtype=torch.float32, device=query.device)
    if cu_seqlens is not None:
        starts, lengths = segments(cu_seqlens, count, max_seqlen)
        for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
            rows = slice(start, start + length)
            walked = query[:, :, rows], key[:, :, rows], softmax, steps, head_reduction, None, length
            out[:, rows] = attention_walk(*walked)
        return out
    step = max(1, LOGITS // max(1, count))
    blocks = [slice(start, start + step) for start in range(0, count, step)]
    work = Work(min(step, count) * count, query.device)
    for b in range(batch if count else 0):
        p = torch.full((heads, count), 1 / count, dtype=torch.float32, device=query.device)
        attention = Attention(
            head_rows(query[b], softmax.scale, softmax.limbs) if steps else [],
            head_rows(key[b], 1.0, softmax.limbs) if steps else [],
            torch.zeros(count, dtype=torch.int64, device=query.device),
            None,
            None,
            p[0],
            None,
            slice(0, count),
            softmax,
        )
        for h in range(heads if steps else 0):
            kept = [attention.exponentials(h, part, work, keep=True) for part in blocks[:KEPT]]
            for _ in range(steps):
                down, up = below_one(p[h].amax())
                weight = p[h] * down
                total = torch.zeros(count, dtype=torch.int64, device=query.device)
                for k, part in enumerate(blocks):
                    e, share = kept[k] if k < len(kept) else attention.exponentials(h, part, work)
                    x = torch.mul(e, (share * weight[part])[:, None], out=work.take(*e.shape)[1])
                    x += 0.5
                    accumulate(total, x.floor_(), "sum", work)
                p[h] = total.to(torch.float32) * 2.0**-30 * up
        out[b] = over_heads(p, head_reduction)
    return out
