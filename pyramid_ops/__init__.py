"""Fused kernels that reduce visual tokens, with the same bits on every device.

Every op works on CPU and CUDA tensors, needs no gradient, never synchronises with the host, and returns the same bits
as its specification in :mod:`pyramid_ops.reference`.
"""

from ._op import use_backend
from .ops.adaptive import *
from .ops.attention import *
from .ops.budgets import *
from .ops.channels import *
from .ops.clustering import *
from .ops.entropy import *
from .ops.gathering import *
from .ops.greedy import *
from .ops.hashing import *
from .ops.matching import *
from .ops.merging import *
from .ops.nearest import *
from .ops.pairs import *
from .ops.pooling import *
from .ops.progressive import *
from .ops.pyramid import *
from .ops.ragged import *
from .ops.regions import *
from .ops.relevance import *
from .ops.rounds import *
from .ops.scoring import *
from .ops.selection import *
from .ops.suppression import *
from .ops.thresholds import *
from .ops.units import *
from .ops.walk import *
from .plans.halves import *
from .plans.merged import *
from .results import *

__version__ = "0.2.0"

# Each file's `__all__` says what of it is public.
__all__ = sorted(name for name, value in globals().items() if getattr(value, "__module__", "").startswith(__name__))
