"""Visual token reduction in a model of transformers, in one line and undone in one.

The optional extra ``huggingface``; ``import pyramid_ops`` imports nothing of it.
"""

from .requirement import check_transformers

check_transformers()

from .apply import apply, supported  # noqa: E402
from .handle import Handle  # noqa: E402
from .pyramid import pyramid_tokens  # noqa: E402
from .rules import Scene  # noqa: E402
from .tower import TowerHandle  # noqa: E402

__all__ = ["Handle", "Scene", "TowerHandle", "apply", "pyramid_tokens", "supported"]
