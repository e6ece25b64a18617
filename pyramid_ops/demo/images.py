"""Photos that a user names, and figures that are written."""

import pathlib

import numpy as np
import torch
from torch import Tensor


class UsageError(Exception):
    """What is wrong with the user's input, in one line."""


def check_out(arguments) -> None:
    out = pathlib.Path(arguments.out)
    if not out.suffix or out.is_dir():
        usual = {"select": "selection.png", "merge": "merging.png"}[arguments.command]
        raise UsageError(f"--out: expected a file name such as {usual}, got {arguments.out!r}")
    if arguments.image is not None and out.resolve() == pathlib.Path(arguments.image).resolve():
        raise UsageError(f"--out: expected another file than IMAGE, got {arguments.out!r}")


def load(path: str | None, patch: int, levels: int) -> tuple[Tensor, str, str]:
    """The photo as float32 `[1, 3, H, W]` in [0, 1], cropped so that the coarsest level is whole patches."""
    if path is None:
        from skimage import data

        array, source = data.astronaut(), "astronaut (scikit-image)"
    else:
        from PIL import Image, ImageOps, UnidentifiedImageError

        try:
            with Image.open(path) as file:
                if file.mode in ("I", "F") or file.mode.startswith("I;"):
                    raise UsageError(f"IMAGE: expected 8 bits a channel, got mode {file.mode} in {path}")
                array, source = np.asarray(ImageOps.exif_transpose(file).convert("RGB")), path
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            reason = "not an image" if isinstance(error, UnidentifiedImageError) else reason_of(error)
            raise UsageError(f"IMAGE: cannot read {path}: {reason}") from error
    height, width = array.shape[:2]
    if min(height, width) < patch:
        raise UsageError(f"IMAGE: expected at least one patch of {patch}×{patch} pixels, got {height}×{width}")
    unit = patch << min(levels - 1, 64)
    if min(height, width) < unit:
        most = (min(height, width) // patch).bit_length()
        raise UsageError(f"--levels: expected at most {most} for {height}×{width} pixels, got {levels}")
    rows, columns = height // unit * unit, width // unit * unit
    top, left = (height - rows) // 2, (width - columns) // 2
    array = array[top : top + rows, left : left + columns]
    cropped = "" if (rows, columns) == (height, width) else f", cropped from {height}×{width}"
    return torch.from_numpy(array.copy()).permute(2, 0, 1)[None].float() / 255, source, cropped


def reason_of(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error)
