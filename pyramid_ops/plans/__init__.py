"""From scores to what the model reads: which tokens stay, which merge into which."""

from . import merged, tome
from .merged import *
from .tome import *

__all__: list[str] = []
__all__ += merged.__all__
__all__ += tome.__all__
