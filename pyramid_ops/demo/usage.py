"""What the commands refuse, and how they say so."""

import math
import os
import re

from .._checks import MAX_FEATURES

LARGEST_PATCH = math.isqrt(MAX_FEATURES // 3)  # of three channels


class UsageError(Exception):
    """What is wrong with the user's input, in one line."""


def check_at_least_one(option: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise UsageError(f"--{option}: expected at least 1, got {value}")


def check_patch_size(patch: int | None) -> None:
    if patch is None:
        return
    check_at_least_one("patch-size", patch)
    if patch > LARGEST_PATCH:
        raise UsageError(
            f"--patch-size: expected at most {LARGEST_PATCH} (of three channels, where a token has at most "
            f"{MAX_FEATURES} features), got {patch}"
        )


def check_out(out: str, image: str | None, usual: str) -> None:
    if os.path.splitext(out)[1] in ("", ".") or os.path.isdir(out):
        raise UsageError(f"--out: expected a file name such as {usual}, got '{printable(out)}'")
    if image is not None and os.path.exists(out) and os.path.exists(image) and os.path.samefile(out, image):
        raise UsageError(f"--out: expected another file than IMAGE, got '{printable(out)}'")


def printable(name: str) -> str:
    """A file name without what a terminal obeys or no font has (surrogates: bytes that are not UTF-8)."""
    return re.sub(r"[\0-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", name)


def reason(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error)
    if not text or isinstance(error, (AttributeError, LookupError, TypeError)):  # says little alone
        text = f"{type(error).__name__}: {text}"
    return printable(" ".join(text.split()))
