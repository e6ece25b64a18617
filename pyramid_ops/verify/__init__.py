"""Whether this machine computes the bits that every other computes: digests of all ops on inputs that never change.

`golden.json` holds the SHA-256 digests of the inputs and of what the reference made of them.
"""

from .digests import GOLDEN, Result, digest, digests_of, run
from .page import main

__all__ = ["GOLDEN", "Result", "digest", "digests_of", "main", "run"]
