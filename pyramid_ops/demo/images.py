"""Photos that a user names."""

import os
import stat
import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from skimage import data
from torch import Tensor

from .usage import UsageError, printable, reason


class Photo(NamedTuple):
    pixels: Tensor  # float32 [1, 3, H, W] in [0, 1]
    name: str
    cropped: str  # and made smaller: from what, if it is

    @property
    def size(self) -> str:
        return f"{self.pixels.shape[2]}×{self.pixels.shape[3]}"

    @property
    def title(self) -> str:
        """The name, or as much of its end as stands above a picture."""
        return self.name if len(self.name) <= 36 else f"…{self.name[-35:]}"


def load(path: str | None, patch: int, levels: int, most: int | None = None) -> Photo:
    return fit(*opened(path), patch, levels, most)


def opened(path: str | None) -> tuple[np.ndarray, str]:
    """uint8 `[H, W, 3]` of a file or of the default photo, and its name."""
    return (data.astronaut(), "astronaut (scikit-image)") if path is None else (read(path), printable(path))


def usual_patch(array: np.ndarray, enough: Callable[[int, int], bool]) -> int:
    """16, or the first half, quarter, … of it of which there are enough down and across; else 1."""
    height, width = array.shape[:2]
    return next((patch for patch in (16, 8, 4, 2) if enough(height // patch, width // patch)), 1)


def at_most(array: np.ndarray, side: int) -> tuple[np.ndarray, str]:
    """The photo made smaller to at most so many pixels a side, and words for it."""
    height, width = array.shape[:2]
    if max(height, width) <= side:
        return array, ""
    size = [max(1, round(own * side / max(height, width))) for own in (width, height)]
    smaller = Image.fromarray(array).resize((size[0], size[1]), Image.Resampling.LANCZOS)
    return np.asarray(smaller), f", made smaller from {height}×{width}"


def fit(array: np.ndarray, name: str, patch: int, levels: int, most: int | None = None) -> Photo:
    """The photo, cropped so that the coarsest level is whole patches; made smaller to at most so many a side."""
    smaller = ""
    if most is not None:
        array, smaller = at_most(array, most * patch)
    height, width = array.shape[:2]
    if min(height, width) < patch:
        raise UsageError(f"IMAGE: expected at least one patch of {patch}×{patch} pixels, got {height}×{width}")
    unit = patch << min(levels - 1, 64)
    if min(height, width) < unit and most is not None:
        raise UsageError(f"IMAGE: expected at least {unit}×{unit} pixels, got {height}×{width}")
    if min(height, width) < unit:
        most = (min(height, width) // patch).bit_length()
        raise UsageError(f"--levels: expected at most {most} for {height}×{width} pixels, got {levels}")
    rows, columns = height // unit * unit, width // unit * unit
    top, left = (height - rows) // 2, (width - columns) // 2
    array = array[top : top + rows, left : left + columns]
    cropped = "" if (rows, columns) == (height, width) else f", cropped from {height}×{width}"
    return Photo(torch.from_numpy(array.copy()).permute(2, 0, 1)[None].float() / 255, name, smaller + cropped)


def read(path: str) -> np.ndarray:
    """uint8 `[H, W, 3]`, upright, on white where it is transparent."""
    try:
        if stat.S_IFMT(os.stat(path).st_mode) not in (stat.S_IFREG, stat.S_IFDIR):
            raise OSError("not a regular file")  # opening a pipe would wait for its writer
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PIL's, of a large picture or damaged metadata
            with Image.open(path) as file:
                if file.mode in ("I", "F") or file.mode.startswith("I;"):
                    raise UsageError(f"IMAGE: expected 8 bits a channel, got mode {file.mode} in {printable(path)}")
                upright = ImageOps.exif_transpose(file)
                if upright.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in upright.info:
                    upright = upright.convert("RGBA")
                    upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
                return np.asarray(upright.convert("RGB"))
    except UsageError:
        raise
    except Exception as error:  # of a damaged file PIL raises whatever its decoder stumbles over
        why = "not an image" if isinstance(error, UnidentifiedImageError) else reason(error)
        raise UsageError(f"IMAGE: cannot read {printable(path)}: {why}") from error
