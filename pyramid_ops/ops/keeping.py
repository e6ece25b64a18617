"""Which tokens stay, and what belongs to them moved."""

from collections.abc import Sequence
from typing import Optional

import torch
from torch import Tensor

from .._op import Op
from ..reference import keeping as reference
from ..reference.arguments import Amount, Choice, Placed, Slots


def _keep_tokens_fake(
    scores: Tensor, cu_seqlens: Optional[Tensor], choice: Choice, k: Amount, slots: Slots, by_index: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    segments = scores.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    shape = (segments, slots.capacity) if cu_seqlens is None else (1, segments * slots.capacity)
    counts, offsets = (scores.new_empty(n, dtype=torch.int32) for n in (segments, segments + 1))
    return scores.new_empty(shape, dtype=torch.int64), counts, offsets, torch.empty_like(offsets)


def _move_tokens_fake(
    tensors: Sequence[Tensor],
    tokens: Optional[Tensor],
    counts: Optional[Tensor],
    placed: Placed,
    fills: Sequence[float],
) -> list[Tensor]:
    samples = next(x.shape[0] for x in (counts, tokens) if x is not None)
    return [
        x.new_empty(samples, x.shape[1], placed.slots, placed.slots if placed.columns else x.shape[3]) for x in tensors
    ]


keep_tokens_op = Op(reference.keep_tokens, _keep_tokens_fake)
move_tokens_op = Op(reference.move_tokens, _move_tokens_fake)
mark_tokens_op = Op(
    reference.mark_tokens, lambda tokens, size: tokens.new_empty(tokens.shape[0], size, dtype=torch.bool)
)
