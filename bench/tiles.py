"""Search over tiles: `python -m bench.tiles` writes `results/tiles.md`; on a GPU it measures times too.

Every candidate is compiled for sm_80, sm_90 and sm_100 and its machine code read, which needs no GPU. All of them give
the same bits (`tests/code/test_tiles.py`); what `kernels/` chooses is the first row of each case.
"""

import functools
import math
import pathlib
import statistics
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
import triton

import pyramid_ops
from bench import compile as aot
from bench.__main__ import commit, device_name
from bench.conftest import CUDA, _graphed, _milliseconds
from pyramid_ops.kernels.choosers import forcing, put
from pyramid_ops.kernels.tiles import row_tiles
from pyramid_ops.verify.inputs import name

# What an SM has: 32-bit registers, warps, programs, bytes of shared memory.
REGISTERS, WARPS, PROGRAMS = 1 << 16, 64, 32
SHARED = {"sm_80": 164 << 10, "sm_90": 228 << 10, "sm_100": 228 << 10}


class Case(NamedTuple):
    name: str
    kernels: tuple[str, ...]
    # A call on inputs that are made on a device.
    prepare: Callable[[str], Callable[[], object]]
    chooser: str
    candidates: list[dict]
    # Elements that a pass of all threads over the longest loop (or the whole code) computes.
    elements: Callable[[dict], int]


def _made(dtype: torch.dtype, device: str, *shape: int) -> torch.Tensor:
    x = torch.empty(shape, dtype=dtype, device=device)
    return x.normal_() if device == "cuda" else x


def _tokens(features: int, dtype: torch.dtype, device: str) -> Callable[[], object]:
    return functools.partial(pyramid_ops.token_variance, _made(dtype, device, 16, 5440, features))


def _blur(dtype: torch.dtype, device: str) -> Callable[[], object]:
    return functools.partial(pyramid_ops.blur_downsample, _made(dtype, device, 8, 3, 1024, 1024))


def _match(precision: str, device: str) -> Callable[[], object]:
    x = _made(torch.bfloat16, device, 16, 4096, 64)
    return functools.partial(pyramid_ops.best_match, x[:, ::2], x[:, 1::2], precision=precision)


def _attend(device: str) -> Callable[[], object]:
    x = _made(torch.bfloat16, device, 1, 16, 2048, 64)
    return functools.partial(pyramid_ops.attention_importance, x, x, precision="grid")


def _products(tiles: dict) -> int:
    return tiles["DOT"].BLOCK_M * tiles["DOT"].BLOCK_N


def _dot_tiles(stages: int, *sizes: tuple[int, int, int, int]) -> list[dict]:
    names = ("BLOCK_M", "BLOCK_N", "BLOCK_K", "num_warps")
    return [{**dict(zip(names, size, strict=True)), "num_stages": stages} for size in sizes]


def cases() -> Iterator[Case]:
    for dtype in (torch.float32, torch.bfloat16):
        for features in (1024, 4096):
            x = torch.empty(1, 8, features, dtype=dtype)
            tiles = [row_tiles([x], warps, width) for warps in (1, 2, 4, 8, 16) for width in (16, 8)]
            tiles = [choice for k, choice in enumerate(tiles) if choice not in tiles[:k]]
            yield Case(
                f"token_variance, D = {features}, {name(dtype)}", ("_score_kernel",),
                functools.partial(_tokens, features, dtype), "row_tiles", tiles,
                lambda tiles, features=features: tiles["ROW"].TILES // tiles["ROW"].BLOCKS * features,
            )  # fmt: skip
        tiles = [{"ROWS": 16, "BLOCK": 32 * w * count, "num_warps": w} for w in (1, 2, 4, 8) for count in (1, 2, 4)]
        yield Case(
            f"blur_downsample, 5 taps, {name(dtype)}", ("_blur_downsample_kernel",),
            functools.partial(_blur, dtype), "blur_tiles", tiles, lambda tiles: tiles["BLOCK"],
        )  # fmt: skip
    grid = _dot_tiles(3, (64, 64, 64, 4), (128, 64, 64, 4), (128, 128, 64, 4), (128, 128, 64, 8), (128, 256, 64, 8))
    high = _dot_tiles(2, (64, 32, 64, 4), (64, 64, 32, 4), (128, 32, 64, 8), (128, 64, 32, 8), (128, 64, 64, 8))
    for precision, tiles in (("grid", grid), ("high", high)):
        yield Case(
            f"best_match, {precision}, D = 64", ("_best_match_kernel",), functools.partial(_match, precision),
            "match_tiles", tiles, _products,
        )  # fmt: skip
    tiles = _dot_tiles(2, (64, 32, 64, 4), (64, 64, 64, 4), (64, 128, 64, 4), (128, 64, 64, 4), (128, 64, 64, 8))
    yield Case(
        "attention_importance, grid, D = 64", ("_row_kernel", "_column_kernel"), _attend,
        "attention_tiles", tiles, _products,
    )  # fmt: skip


def _choosing(case: Case, tiles: dict | None, chosen: list) -> AbstractContextManager:
    """Force the tiles of a case; `chosen` gets what each call of its chooser gave."""

    def choose(own: Callable, *args: object) -> object:
        choice = own(*args) if tiles is None else put(own(*args), tiles)
        chosen.append(choice)
        return choice

    return forcing(**{case.chooser: choose})


def resident_warps(target: str, code: dict, warps: int) -> int:
    """Warps that an SM holds at a time: registers go to a warp by 256, a program needs 1 KB more shared memory."""
    registers = -(-code["registers"] * 32 // 256) * 256
    programs = min(REGISTERS // registers // warps, WARPS // warps, PROGRAMS, SHARED[target] // (code["shared"] + 1024))
    return programs * warps


def read(case: Case, target: str, tiles: dict | None) -> list[dict]:
    """What the code of each kernel of a case says for one choice of tiles; None is the one that is shipped."""
    chosen: list = []
    with _choosing(case, tiles, chosen):
        compiled = aot.compiled(target, case.prepare("cpu"))
    found = []
    for number, kernel in enumerate(case.kernels):
        choice = chosen[0][number] if isinstance(chosen[0], tuple) else chosen[0]
        codes = [aot.report(code) for name, code in compiled if name == kernel]
        # Of two launches of a kernel the longer one.
        code = max(codes, key=lambda code: max(code["loops"], default=code["instructions"]))
        passed = max(code["loops"], default=code["instructions"])
        warps = resident_warps(target, code, choice["num_warps"])
        found.append(
            {
                "tiles": choice,
                "registers": code["registers"],
                "spills": code["spills"],
                "warps": warps,
                "flight": warps * 32 * sum(int(width) * count for width, count in code["loads"].items()) / 1024,
                "each": passed * 32 * choice["num_warps"] / case.elements(choice),
            }
        )
    return found


def measure(case: Case, choices: list) -> list[float]:
    """Median ms of a call on the GPU with each of the tiles, in turn, in CUDA graphs; NaN for tiles it cannot hold."""
    call = case.prepare("cuda")
    replays: list = []
    for tiles in choices:
        with _choosing(case, tiles, []):
            try:
                replays.append(_graphed(call))
            except triton.OutOfResources:
                replays.append(None)
    times: list[list[float]] = [[] for _ in choices]
    for _ in range(25):
        for replay, found in zip(replays, times, strict=True):
            found.append(math.nan if replay is None else _milliseconds(replay))
    return [statistics.median(found) for found in times]


def _describe(tiles: dict) -> str:
    flat: dict = {}
    for key, value in tiles.items():
        flat.update(value._asdict() if hasattr(value, "_asdict") else {key: value})
    return ", ".join(f"{key} {value}" for key, value in flat.items() if key not in ("D", "LIMBS"))


def main() -> None:
    own = "sm_{}{}".format(*torch.cuda.get_device_capability()) if CUDA else ""
    lines = [
        "# Tiles that could be chosen",
        "",
        f"Commit {commit()}, triton {triton.__version__}, compiled ahead of time"
        + (f"; times on {device_name()}." if own in SHARED else "; no time was measured."),
        "The first row of a case is what is shipped. *warps*: what an SM holds at a time, of 64. *in flight*: KB that",
        "these warps ask for with the load instructions of the code, each counted once. *each*: instructions of the",
        "longest loop, or of code without loops, for each feature, output or product.",
        "",
    ]
    for case in cases():
        choices: list = [None, *case.candidates]
        times = measure(case, choices) if own in SHARED else [math.nan] * len(choices)
        for number, kernel in enumerate(case.kernels):
            lines += [f"## {case.name}, `{kernel}`", ""]
            lines += ["| target | tiles | registers | spills | warps | in flight | each | ms |", "|---" * 8 + "|"]
            for target in SHARED:
                shipped = read(case, target, None)[number]
                for tiles, ms in zip(choices, times, strict=True):
                    if tiles == shipped["tiles"]:
                        continue
                    row = shipped if tiles is None else read(case, target, tiles)[number]
                    # Times are of the GPU at hand.
                    time = f"{ms:.3f}" if target == own else ""
                    lines.append(
                        f"| {target} | {_describe(row['tiles'])} | {row['registers']} | {row['spills']} | "
                        f"{row['warps']} | {row['flight']:.0f} | {row['each']:.1f} | {time} |"
                    )
            lines.append("")
    (pathlib.Path(__file__).parent / "results" / "tiles.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
