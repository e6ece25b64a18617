"""Fused kernels that reduce visual tokens, with the same bits on every device.

Every op works on CPU and CUDA tensors, needs no gradient, never synchronises with the host, and returns the same bits
as its specification in :mod:`pyramid_ops.reference`.
"""

from . import ops, plans, results
from ._op import use_backend
from .ops import *
from .plans import *
from .results import *

__version__ = "0.1.0"

__all__ = ["use_backend"]
__all__ += ops.__all__
__all__ += plans.__all__
__all__ += results.__all__
