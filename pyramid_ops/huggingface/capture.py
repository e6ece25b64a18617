"""Queries and keys of an attention module, as its own attention function would get them."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor
from transformers import AttentionInterface

from ..cost import score_flops

__all__ = ["Heads", "Rotary", "flops", "queries_and_keys"]

#: Cosines and sines of rotary embedding, ``[B or 1, N, D]``.
Rotary = tuple[Tensor, Tensor]

_NAME = "pyramid_ops_capture"


class Heads(NamedTuple):
    """After rotary embedding ``[B, H, N, D]`` and ``[B, Hkv, N, D]``, and what their dot products are scaled by."""

    query: Tensor
    key: Tensor
    scale: Optional[float]
    softcap: Optional[float]

    @property
    def options(self) -> dict[str, Any]:
        """As :func:`pyramid_ops.attention_importance` takes them."""
        return {"scale": self.scale} if self.softcap is None else {"scale": self.scale, "softcap": self.softcap}


def flops(heads: Heads, width: int, rows: Sequence[int]) -> int:
    """Operations of scores by so many rows of each sample, with the projection to queries, keys and values."""
    (_, query, tokens, size), key = heads.query.shape, heads.key.shape[1]
    return sum(score_flops(tokens, count, width, query * size, 2 * key * size) for count in rows)


class _Captured(Exception):
    pass


def _capture(module: Any, query: Tensor, key: Tensor, *_: Any, **options: Any) -> None:
    raise _Captured(query, key, options.get("scaling"), options.get("softcap"))


AttentionInterface.register(_NAME, _capture)


class _View:
    """An object with some attributes replaced, and itself left alone."""

    def __init__(self, seen: Any, **attributes: Any):
        self.__dict__.update(attributes, _seen=seen)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._seen, name)


def queries_and_keys(attention: torch.nn.Module, hidden: Tensor, rotary: Optional[Rotary]) -> Heads:
    """Runs the module's forward up to its attention function, whatever the implementation; no cache is touched."""
    view = _View(attention, config=_View(attention.config, _attn_implementation=_NAME))
    try:
        type(attention).forward(view, hidden_states=hidden, position_embeddings=rotary, attention_mask=None)
    except _Captured as captured:
        return Heads(*captured.args)
    raise ValueError(
        f"apply: model: expected attention that goes through the attention interface, got {type(attention).__name__}"
    )
