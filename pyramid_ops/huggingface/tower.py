"""ToMe in vision towers: tokens merge between attention and MLP, and count by their sizes in later attention."""

import contextvars
import functools
from collections.abc import Sequence
from typing import Any, Optional, Union

import torch
from torch import Tensor

from .. import _checks as check
from .. import plans
from .hooks import Hooks

__all__ = ["TOWERS", "Merging", "TowerHandle", "last_merging"]

#: Tokens before the patches, by ``config.model_type``.
TOWERS = {"clip_vision_model": 1, "siglip_vision_model": 0, "vit": 1}


class Merging:
    """One forward of a tower: `sizes` and `place` ``[B, M]`` of its rows, and the row of each token, ``[B, N]``."""

    def __init__(self) -> None:
        self.key: Optional[Tensor] = None
        self.sizes: Optional[Tensor] = None
        self.place: Optional[Tensor] = None
        self.rows: Optional[Tensor] = None

    def merge(self, hidden: Tensor, heads: int, r: int, class_token: bool) -> Tensor:
        """The r tokens most like another by their keys, averaged over heads, become part of it."""
        if self.key is None:
            raise ValueError("tome: model: expected a key projection that runs before its block's MLP, got none")
        metric = self.key.unflatten(2, (heads, -1)).mean(2)
        most = (hidden.shape[1] - class_token) // 2
        plan = plans.tome(metric, min(r, most), class_token=class_token)
        if self.sizes is None or self.place is None or self.rows is None:
            self.sizes = torch.ones(hidden.shape[:2], device=hidden.device)
            self.rows = self.place = torch.arange(hidden.shape[1], device=hidden.device).expand(hidden.shape[:2])
        hidden, self.sizes, self.place = plans.apply(
            plan, [hidden, self.sizes, self.place], weights=self.sizes, mode=["mean", "sum", "owner"]
        )
        self.rows = plan.rows.gather(1, self.rows)
        return hidden


_RUNNING: contextvars.ContextVar[Optional[Merging]] = contextvars.ContextVar("pyramid_ops_merging", default=None)
_LAST: contextvars.ContextVar[Optional[Merging]] = contextvars.ContextVar("pyramid_ops_merged", default=None)


def last_merging() -> Merging:
    """Of the last forward of a tower in this context, which is then forgotten."""
    merging = _LAST.get()
    if merging is None:
        raise ValueError("tome: model: expected a forward of its tower in this context, got none")
    _LAST.set(None)
    return merging


class TowerHandle(Hooks):
    """A handle of ToMe in a tower alone.

    Attributes
    ----------
    stats : dict
        Of the last forward, empty where nothing was merged. Rows are in ToMe's order: `sizes`, float32 ``[B, M]``, how
        many tokens each stands for; `place`, int64 ``[B, M]``, the token that owns it; `rows`, int64 ``[B, N]``, the
        row of each token.
    """

    def __init__(self, model: Any, r: Union[int, Sequence[int]] = 8, layers: Optional[int] = None):
        super().__init__(model, "tome")
        base = model.base_model
        blocks = (base if hasattr(base, "layers") else base.encoder).layers
        count = len(blocks) if layers is None else layers
        if base.config._attn_implementation not in ("eager", "sdpa"):
            got = base.config._attn_implementation
            raise ValueError(f"tome: attn_implementation: expected 'eager' or 'sdpa', which take sizes, got {got!r}")
        each = check.sequence("tome", "r", r) if check.is_sequence(r) else [r] * count
        if len(each) != count:
            raise ValueError(f"tome: r: expected {count} of them, one for each layer, got {len(each)}")
        each = [check.integer("tome", f"r[{k}]", number, 0) for k, number in enumerate(each)]
        class_token = bool(TOWERS[base.config.model_type])
        self._undo += [
            base.register_forward_pre_hook(self._begin).remove,
            base.register_forward_hook(self._end, always_call=True).remove,
        ]
        for block, number in zip(blocks, each, strict=False):
            attention = block.self_attn if hasattr(block, "self_attn") else block.attention
            self._undo.append(attention.k_proj.register_forward_hook(self._key).remove)
            norms = [getattr(block, a, None) or getattr(block, b) for a, b in _NORMS]
            self.override(block, "forward", functools.partial(_block, block, attention, norms, number, class_token))

    def _begin(self, *_: Any) -> None:
        if torch.is_grad_enabled() and any(weight.requires_grad for weight in self.model.parameters()):
            raise ValueError("tome: model: expected a call under torch.no_grad() or torch.inference_mode()")
        _RUNNING.set(Merging())

    def _end(self, *_: Any) -> None:
        merging = _RUNNING.get()
        if merging is not None:
            found = {"sizes": merging.sizes, "place": merging.place, "rows": merging.rows}
            self.stats = {} if merging.sizes is None else found
            merging.key = None
        _LAST.set(merging)
        _RUNNING.set(None)

    def _key(self, module: Any, args: Any, output: Tensor) -> None:
        merging = _RUNNING.get()
        if merging is not None:
            merging.key = output


_NORMS = (("layer_norm1", "layernorm_before"), ("layer_norm2", "layernorm_after"))


def _block(
    block: Any,
    attention: Any,
    norms: list[Any],
    r: int,
    class_token: bool,
    original: Any,
    hidden: Tensor,
    attention_mask: Optional[Tensor] = None,
    **kwargs: Any,
) -> Tensor:
    merging = _RUNNING.get()
    if merging is None:
        return original(hidden, attention_mask, **kwargs)
    if attention_mask is not None:
        raise ValueError("tome: attention_mask: expected None, images without padding")
    if merging.sizes is not None:  # a row counts as often as it has tokens
        attention_mask = merging.sizes.log()[:, None, None].to(hidden.dtype)
    hidden = hidden + attention(norms[0](hidden), attention_mask=attention_mask, **kwargs)[0]
    if r:
        hidden = merging.merge(hidden, _heads(attention), r, class_token)
    return hidden + block.mlp(norms[1](hidden))


def _heads(attention: Any) -> int:
    return attention.k_proj.out_features // attention.head_dim
