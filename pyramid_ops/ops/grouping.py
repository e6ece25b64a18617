"""Tokens by the row that they become part of."""

from typing import Optional

import torch
from torch import Tensor

from .._op import Op
from ..reference import grouping as reference


def _group_tokens_fake(rows: Tensor, owners: Optional[Tensor], groups: int) -> tuple[Tensor, Tensor]:
    return torch.empty_like(rows), rows.new_empty(rows.shape[0], groups + 1)


join_tokens_op = Op(
    reference.join_tokens,
    lambda tokens, partners, cu_seqlens, size: tokens.new_empty(tokens.shape[0], size),
)
cluster_rows_op = Op(reference.cluster_rows, lambda assignment, *_: torch.empty_like(assignment))
group_tokens_op = Op(reference.group_tokens, _group_tokens_fake)
