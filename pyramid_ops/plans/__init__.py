"""From scores to what the model reads: which tokens stay, which become one, and all that belongs to them moved."""

from ..results import Keep, Merge
from .applied import apply
from .halves import tome
from .joined import concat, join, then
from .kept import keep, mask

__all__ = ["Keep", "Merge", "apply", "concat", "join", "keep", "mask", "then", "tome"]
