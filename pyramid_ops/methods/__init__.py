"""The published methods by name: tensors in, plans out, no model needed.

Learned parts, and rules that are a few lines of this library, are in ``examples/recipes.py``.
"""

from . import retained
from .decoder import *
from .diverse import *
from .encoder import *
from .frames import *
from .instruction import *
from .levels import *
from .merging import *
from .pyramid import *
from .raters import *
from .similar import *
from .video import *

__all__ = sorted(name for name, value in globals().items() if getattr(value, "__module__", "").startswith(__name__))
__all__ += ["retained"]
