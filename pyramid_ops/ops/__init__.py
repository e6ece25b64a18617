"""One file a family: what an op checks, documents and calls. A file says what of it is public."""

from . import (
    adaptive,
    attention,
    budgets,
    entropy,
    gathering,
    matching,
    merging,
    pooling,
    progressive,
    pyramid,
    ragged,
    regions,
    relevance,
    scoring,
    selection,
    units,
    walk,
)
from .adaptive import *
from .attention import *
from .budgets import *
from .entropy import *
from .gathering import *
from .matching import *
from .merging import *
from .pooling import *
from .progressive import *
from .pyramid import *
from .ragged import *
from .regions import *
from .relevance import *
from .scoring import *
from .selection import *
from .units import *
from .walk import *

__all__: list[str] = []
__all__ += adaptive.__all__
__all__ += attention.__all__
__all__ += budgets.__all__
__all__ += entropy.__all__
__all__ += gathering.__all__
__all__ += matching.__all__
__all__ += merging.__all__
__all__ += pooling.__all__
__all__ += progressive.__all__
__all__ += pyramid.__all__
__all__ += ragged.__all__
__all__ += regions.__all__
__all__ += relevance.__all__
__all__ += scoring.__all__
__all__ += selection.__all__
__all__ += units.__all__
__all__ += walk.__all__
