"""Photos that a user names."""

import os
import stat
import warnings
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
    cropped: str  # from what, if it is

    @property
    def size(self) -> str:
        return f"{self.pixels.shape[2]}×{self.pixels.shape[3]}"

    @property
    def title(self) -> str:
        """The name, or as much of its end as stands above a picture."""
        return self.name if len(self.name) <= 36 else f"…{self.name[-35:]}"


def load(path: str | None, patch: int, levels: int, most: int | None = None) -> Photo:
    """The photo, cropped so that the coarsest level is whole patches; made smaller to at most so many a side."""
    array, name = (data.astronaut(), "astronaut (scikit-image)") if path is None else (read(path), printable(path))
    if most is not None and max(array.shape[:2]) > most * patch:
        scale = most * patch / max(array.shape[:2])
        size = [max(1, round(side * scale)) for side in array.shape[1::-1]]
        array = np.asarray(Image.fromarray(array).resize((size[0], size[1]), Image.Resampling.LANCZOS))
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
    return Photo(torch.from_numpy(array.copy()).permute(2, 0, 1)[None].float() / 255, name, cropped)


def read(path: str) -> np.ndarray:
    """uint8 `[H, W, 3]`, upright."""
    try:
        if stat.S_IFMT(os.stat(path).st_mode) not in (stat.S_IFREG, stat.S_IFDIR):
            raise OSError("not a regular file")  # opening a pipe would wait for its writer
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PIL's, of a large picture or damaged metadata
            with Image.open(path) as file:
                if file.mode in ("I", "F") or file.mode.startswith("I;"):
                    raise UsageError(f"IMAGE: expected 8 bits a channel, got mode {file.mode} in {printable(path)}")
                return np.asarray(ImageOps.exif_transpose(file).convert("RGB"))
    except UsageError:
        raise
    except Exception as error:  # of a damaged file PIL raises whatever its decoder stumbles over
        why = "not an image" if isinstance(error, UnidentifiedImageError) else reason(error)
        raise UsageError(f"IMAGE: cannot read {printable(path)}: {why}") from error
