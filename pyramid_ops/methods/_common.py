"""What methods share: which rows score, and which tokens may go."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Optional, Union

import torch
from torch import Tensor

from .. import _checks as check
from ..ops.attention import attention_importance
from ..plans.kept import keep as keep_tokens
from ..plans.kept import mask
from ..results import Keep

#: How many tokens stay: of each sample alike, one for each, or int32 or int64 ``[B]`` on the device.
Count = Union[int, Sequence[int], Tensor]


class Where(NamedTuple):
    """Which tokens there are: a mask of padding, or packed segments."""

    key_mask: Optional[Tensor]
    cu_seqlens: Optional[Tensor]
    max_seqlen: Optional[int]


def received(query: Tensor, key: Tensor, where: Where, **options: Any) -> Tensor:
    """What each token of a decoder's sequence receives, `[B, N]` or `[T]`."""
    packed: dict[str, Any] = {}
    if where.cu_seqlens is not None:
        packed = {f"cu_seqlens_{name}": where.cu_seqlens for name in "qk"}
        packed |= {f"max_seqlen_{name}": where.max_seqlen for name in "qk"}
    return attention_importance(query, key, causal=True, key_mask=where.key_mask, **packed | options)


def one_row(last: Union[int, Tensor]) -> dict[str, Any]:
    """The one query of each sample that scores."""
    return {"query_indices": last[:, None] if isinstance(last, Tensor) and last.dim() == 1 else [last]}


def some_rows(rows: Tensor) -> dict[str, Any]:
    """The queries of a mask `[B, N]`, or `[T]` of packed ones."""
    return {"query_mask": rows} if rows.dim() == 2 else {"query_weights": rows.to(torch.float32)}


def flags(op: str, name: str, x: Tensor, like: Optional[Tensor] = None) -> Tensor:
    """A mask of tokens, `[B, N]` or packed `[T]`, in the shape of another."""
    check.tensor(op, name, x, "B N", "T", dtypes=(torch.bool,))
    if like is not None:
        check.same_size(op, name, x, like.shape, like.device)
    return x


def keep_visual(
    op: str, scores: Tensor, image: Tensor, keep: Optional[Count], where: Where, capacity: Optional[int], **options: Any
) -> Keep:
    """The best image tokens and all text, without padding."""
    flags(op, "image", image, scores)
    text = ~image if where.key_mask is None else where.key_mask & ~image
    options = {"candidates": image, "forced": text, "capacity": capacity} | options
    return keep_tokens(scores, keep, cu_seqlens=where.cu_seqlens, max_seqlen=where.max_seqlen, **options)


def grouped(scores: Tensor, k: Count, groups: Tensor, longest: Optional[int] = None, **options: Any) -> Tensor:
    """Which tokens are the k best of their group, a mask; groups are segments of all scores `[B, N]` or `[T]`."""
    plan = keep_tokens(scores.reshape(-1), k, cu_seqlens=groups, max_seqlen=longest, **options)
    return mask(plan).view(scores.shape)
