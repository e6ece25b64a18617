"""Which transformers is needed."""

import importlib.metadata
import re

__all__ = ["OLDEST", "check_transformers"]

OLDEST = (5, 18)


def check_transformers() -> None:
    """Raise ImportError where transformers is missing or too old."""
    need = f"pyramid_ops.huggingface: transformers: expected at least {OLDEST[0]}.{OLDEST[1]}"
    install = 'pip install "pyramid_ops[huggingface]"'
    try:
        version = importlib.metadata.version("transformers")
    except importlib.metadata.PackageNotFoundError as error:
        raise ImportError(f"{need}, got none ({install})") from error
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is None or tuple(map(int, found.groups())) < OLDEST:
        raise ImportError(f"{need}, got {version} ({install})")
