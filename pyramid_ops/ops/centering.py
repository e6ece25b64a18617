"""Keys less the mean of their segment, and log-sum-exps of logits less those of the mean."""

from typing import Optional

import torch
from torch import Tensor

from .._op import Op
from ..reference import centering as reference


def _center_keys_fake(
    key: Tensor, mask: Optional[Tensor], cu_seqlens: Optional[Tensor], max_seqlen: int
) -> tuple[Tensor, Tensor]:
    segments = 1 if cu_seqlens is None else cu_seqlens.shape[0] - 1
    means = key.new_empty(*key.shape[:2], segments, key.shape[3], dtype=torch.float32)
    return key.new_empty(key.shape, dtype=torch.float32), means


center_keys_op = Op(reference.center_keys, _center_keys_fake)
center_logits_op = Op(
    reference.center_logits, lambda log_sum_exp, *_: log_sum_exp.new_empty(log_sum_exp.shape, dtype=torch.float32)
)
