"""Which tiles each kernel gets: pure functions of shape, dtype and architecture.

A chooser gives what its kernel is launched with: constexpr arguments and the compiler's options. No bit of any result
depends on them.
"""

import math
import re
from collections.abc import Sequence
from typing import Optional

import triton
from torch import Tensor

from .arithmetic import cdiv, next_power_of_2
from .choosers import chooser, put
from .dots import Dots
from .launch import target_arch
from .rows import Row

# The ptxas of Tritons before 3.9, and of 3.9 for long rows, spills some words in place of taking more than 168
# registers, unless it is told.
_VERSION = tuple(int(part) for part in re.findall(r"\d+", triton.__version__)[:3])
_OLD = _VERSION < (3, 9)
# These Tritons let asynchronous products of sm_90 and later read what asynchronous copies wrote with no
# fence.proxy.async between, which nothing promises to work (triton#9610). Without stages there are no such copies.
_UNFENCED = _VERSION < (3, 7, 1)
SCHEDULERS = 4 * 132  # of an H100 or H200: so many warps issue at a time
# The most query rows of a key head whose logits are kept: a float each for every key, mostly fewer bytes than the key.
FEW = 16


@chooser
def row_tiles(rows: Sequence[Tensor], warps: int = 0, load_bytes: int = 16) -> dict:
    """For rows `[B, N, D]`: `load_bytes` to a thread where the strides allow, a tile row no wider than a warp."""
    features = rows[0].shape[-1]
    lanes = min(256, next_power_of_2(features))
    vector = min(max(1, load_bytes // rows[0].element_size()), lanes)
    for x in rows:
        vector = math.gcd(vector, *x.stride()[:-1], x.data_ptr() // x.element_size())
    width = min(lanes, 32 * vector)
    blocks = next_power_of_2(cdiv(features, 1536))
    warps = max(warps or (4 if features <= 1024 else 8), blocks)
    chunks = cdiv(features, blocks * lanes) * lanes // width
    row = Row(features, warps * 32 * vector // width, blocks, lanes // width, chunks, width, vector)
    return {"ROW": row, "num_warps": warps}


def warp_lanes() -> int:
    """Threads of a warp."""
    return 64 if isinstance(target_arch(), str) else 32


def stages(count: int) -> int:
    """Stages of a loop over products: 1 where the compiler would forget a fence between copies and products."""
    arch = target_arch()
    return 1 if _UNFENCED and isinstance(arch, int) and arch >= 90 else count


@chooser
def blur_tiles(planes: int, height: int, width: int, itemsize: int, taps: int) -> dict:
    """2 to 4 outputs to a thread (16-byte loads but for uint8), one for long filters, whose window would not fit.

    16 rows to a program, an eighth of them read twice, or fewer while all warps still run at once.
    """
    outputs = min(4, 8 // itemsize) if taps <= 8 else 1
    block = min(128 * outputs, max(warp_lanes() * outputs, next_power_of_2(width)))
    rows, warps = 16, block // (warp_lanes() * outputs)
    while rows > 2 and planes * cdiv(height, rows // 2) * cdiv(width, block) * warps <= SCHEDULERS:
        rows //= 2
    return {"ROWS": rows, "BLOCK": block, "num_warps": warps}


@chooser
def select_tiles(size: int) -> dict:
    """Keys to a tile: sizes at which the histogram's code spills under none of Triton 3.6.0, 3.7.1 and 3.9.0."""
    block = 256 if size <= 256 else 512 if size <= 512 else 2048
    return {"BLOCK": block, "num_warps": 8 if block == 256 else 16}


@chooser
def threshold_tiles(rule: str, size: int) -> dict:
    """A warp adds scores for the mean, 1024 at a time; quantiles are selected.

    The assembler stops at 40 registers there for sm_100, and spills, unless it is told otherwise.
    """
    row = {"CHUNKS": 4, "ROW": Row(256, 1, 1, 1, 1, 256, 8)}
    if rule == "mean":
        return {**row, "BLOCK": 256, "num_warps": 1}
    return {**row, **select_tiles(size), **_registers(128)}


@chooser
def gather_tiles(levels: Sequence[Tensor]) -> dict:
    """One row to a program, 16 bytes to a thread where the strides allow."""
    element = levels[0].element_size()
    vector = 16 // element
    for x in levels:
        vector = math.gcd(vector, *x.stride()[:2], x.data_ptr() // element)
    block = min(128 * vector, max(32 * vector, next_power_of_2(levels[0].shape[2])))
    return {"ROWS": 1, "BLOCK": block, "VECTOR": vector, "num_warps": max(1, block // (32 * vector))}


@chooser
def rank_tiles(count: int) -> dict:
    """Keys that candidates are compared with at a time, where at most so many have to be ranked."""
    return {"RANK_BLOCK": min(1024, max(32, next_power_of_2(count)))}


@chooser
def rank_all_tiles(size: int) -> dict:
    """Tokens to a program, each compared with so many others at a time."""
    return {"ROWS": 8, "RANK_BLOCK": min(128, max(32, next_power_of_2(size))), "num_warps": 4}


@chooser
def rank_work() -> int:
    """Up to so many comparisons of pairs, all tokens are ranked at once in place of a selection of the best."""
    return 1 << 24


@chooser
def chunk_tiles() -> dict:
    return {"CHUNK": 8192, **select_tiles(8192)}


@chooser
def one_program() -> int:
    """Segments beyond this many keys are selected by several programs, each with a chunk."""
    return 16384


@chooser
def many_segments() -> int:
    """With more segments than this, each has one program anyway: there is work for every processor."""
    return 1024


@chooser
def rank_limit() -> int:
    """Beyond this many, sorting beats ranking by counting, whose work is quadratic."""
    return 4096


@chooser
def order_tiles(capacity: int, by_index: bool) -> dict:
    if by_index:
        return {"ROWS": min(512, max(32, next_power_of_2(capacity))), "BLOCK": 1, "num_warps": 4}
    return {"ROWS": 16, "BLOCK": min(128, max(32, next_power_of_2(capacity))), "num_warps": 4}


@chooser
def locate_tiles(capacity: int) -> dict:
    return {"BLOCK": min(1024, max(32, next_power_of_2(capacity))), "num_warps": 4}


@chooser
def token_tiles(xs: Sequence[Tensor], width: int) -> dict:
    """Rows of tensors alike: 16 bytes to a thread where the strides allow, many rows to a program where they are short.

    Columns that move, too, lie apart.
    """
    element = xs[0].element_size()
    vector = 16 // element if width == xs[0].shape[-1] else 1
    for x in xs:
        vector = math.gcd(vector, *x.stride()[:-1], width, x.data_ptr() // element)
    block = min(128 * vector, next_power_of_2(width))
    return {"ROWS": max(1, 128 * vector // block), "BLOCK": block, "VECTOR": vector, "num_warps": 4}


@chooser
def keep_tiles(length: int) -> dict:
    """Tokens to a tile of the one program of a segment."""
    block = min(4096, max(128, next_power_of_2(length)))
    return {"BLOCK": block, "num_warps": max(4, block // 256), **_registers()}


@chooser
def scan_tiles() -> dict:
    """So many tokens are compared with so many others at a time."""
    return {"ROWS": 32, "BLOCK": 128, "num_warps": 4}


@chooser
def rounds_tiles() -> dict:
    """The same by one program for all rounds of a sample."""
    return {"ROWS": 32, "BLOCK": 128, "num_warps": 8}


@chooser
def pool_tiles(windows: int) -> dict:
    return {"BLOCK": min(256, max(32, next_power_of_2(windows))), "num_warps": 4}


@chooser
def combine_tiles(tokens: int) -> dict:
    """16 bytes to a thread, also of two-byte scores; as many rows as there are tokens for, up to 1024 scores."""
    return {"ROWS": min(8, next_power_of_2(cdiv(tokens, 128))), "COLUMNS": 128, "num_warps": 4}


@chooser
def region_tiles(arch: int | str) -> dict:
    """A region to a warp; for sm_100 no more than one to a program, since some version of Triton spills there."""
    warps = 1 if arch == 100 else 4
    return {"ROW": Row(256, warps, 1, 1, 1, 256, 8), "num_warps": warps}


@chooser
def channel_tiles(x: Tensor) -> tuple[dict, dict]:
    """A warp to a strip of channels: of features 16 bytes to a thread where the strides allow, of statistics one."""
    element = x.element_size()
    vector = math.gcd(min(16 // element, 8), x.stride(0), x.stride(1), x.data_ptr() // element, x.shape[2])
    return {"BLOCK": 32 * vector, "num_warps": 1}, {"BLOCK": 32, "num_warps": 1}


@chooser
def broadcast_tiles(tokens: int) -> dict:
    return {"BLOCK": min(1024, max(32, next_power_of_2(tokens))), "num_warps": 4}


@chooser
def entropy_tiles(values: int, bins: int) -> dict:
    """Values to a tile: sizes at which the histogram's code spills under none of Triton 3.6.0, 3.7.1 and 3.9.0."""
    block = min(1024, max(256, next_power_of_2(values)))
    words = max(32, next_power_of_2(bins))
    return {"ROW": Row(words, 1, 1, 1, 1, words, words // 32), "BLOCK": block, "num_warps": 4}


@chooser
def center_tiles(features: int) -> tuple[dict, dict]:
    """For a warp: chunks of keys, and their means; keys that a mean is subtracted from. Up to 256 features of each."""
    block = min(256, max(32, next_power_of_2(features)))
    few, many = ({"ROWS": size // block, "BLOCK": block, "num_warps": 1} for size in (256, 1024))
    return few, many


@chooser
def budget_tiles(levels: int) -> dict:
    width = next_power_of_2(levels)
    return {"SAMPLES": max(1, min(64, 1024 // (width * width))), "num_warps": 4}


@chooser
def match_tiles(features: int, limbs: int, arch: int | str) -> dict:
    """Tiles of the similarity: the largest whose accumulators stay in registers."""
    # Rows of few features leave the loop so short that wider tiles spill.
    m, n, k, warps, depth = 128 if features > 16 else 64, 128 if features % 16 == 0 else 64, 64, 8, 3
    # Four warps take a quarter to a third fewer instructions and leave an SM two programs, where they do not spill.
    if features % 16 == 0 and (arch in (80, 90, 100) if features <= 64 else arch == 90 and features % 64 == 0):
        warps = 4
    if limbs == 2:
        m, n, k, warps, depth = (128, 32, 64, 8, 2) if arch == 100 else (64, 32, 64, 4, 2)
        if arch == 90 and features % 16 == 0:
            m, n, k, warps, depth = 128, 64, 64 if features <= 64 else 32, 8, 2
    k = min(k, max(16, next_power_of_2(features)))
    # The assembler stops at 128 or 168 registers here, and spills, unless it is told otherwise.
    registers = {"maxnreg": 255} if limbs == 2 and arch == 100 and features > 64 else {}
    return {"DOT": Dots(features, limbs, m, n, k), "num_warps": warps, "num_stages": stages(depth), **registers}


@chooser
def similarity_tiles(features: int, limbs: int, arch: int | str) -> dict:
    """Tiles of similarities that are stored, of rows of any sample: the largest that no version of Triton spills."""
    m, n, k, warps, depth = 128, 128 if arch != 80 and features % 16 == 0 and features > 16 else 64, 64, 8, 3
    if limbs == 2:
        m, n, k, warps, depth = (64, 64, 32, 8, 2) if arch == 90 else (64, 32, 32, 4, 2)
    k = min(k, max(16, next_power_of_2(features)))
    # The assembler stops at 128 or 168 registers here, and spills, unless it is told otherwise.
    registers = {"maxnreg": 255} if arch == 100 else {}
    return {"DOT": Dots(features, limbs, m, n, k), "num_warps": warps, "num_stages": stages(depth), **registers}


@chooser
def spread_tiles(features: int, limbs: int, arch: int | str) -> dict:
    """The same where each gives two minima; the widest would spill."""
    tiles = similarity_tiles(features, limbs, arch)
    return put(tiles, {"BLOCK_N": 64}) if limbs == 1 and arch == 100 else tiles


@chooser
def square_tiles(features: int) -> dict:
    """16 bytes of a unit row to a thread."""
    block = min(256, max(8, next_power_of_2(features)))
    return {"ROWS": 1024 // block, "BLOCK": block, "num_warps": 4}


@chooser
def nearest_rows(stride: int) -> int:
    """Rows of so many int32 distances that are kept at a time: 256 MB."""
    return (1 << 26) // stride


@chooser
def nearest_tiles(keys: int) -> dict:
    """Keys whose best is kept, 16 bytes to a thread, or more of them where there would be more than 512 such groups."""
    size = max(128, next_power_of_2(cdiv(keys, 512)))
    return {"GROUPS": next_power_of_2(cdiv(keys, size)), "SIZE": size, "num_warps": 1}


@chooser
def apart_tiles(longest: int) -> dict:
    """Others of a token at a time."""
    block = min(1024, max(128, next_power_of_2(longest)))
    return {"BLOCK": block, "num_warps": block // 128}


@chooser
def gram_limit() -> int:
    """Similarities that exist at a time."""
    return 1 << 29


@chooser
def farthest_tiles(features: int, limbs: int) -> dict:
    """One row with so many others; the least rows that a product has."""
    k = min(64, max(16, next_power_of_2(features)))
    return {"DOT": Dots(features, limbs, 16, 64, k), "num_warps": 4, "num_stages": stages(3)}


@chooser
def greedy_tiles(longest: int) -> dict:
    """Tokens at a time of the one program of a sample: more would spill."""
    block = min(2048, max(128, next_power_of_2(longest)))
    return {"BLOCK": block, "num_warps": min(16, block // 128)}


@chooser
def factor_tiles(longest: int) -> dict:
    """The same, and columns of the factor that it reads at a time."""
    block = min(1024, max(128, next_power_of_2(longest)))
    return {"ROWS": 4, "BLOCK": block, "num_warps": block // 64}


@chooser
def alone_limit() -> int:
    """Beyond so many numbers of a factor, or pairs of a round, there is work for more than one processor."""
    return 1 << 18


@chooser
def step_tiles() -> dict:
    """Tokens of a program of one pick, and columns of the factor that it reads at a time."""
    return {"ROWS": 32, "BLOCK": 32, "num_warps": 4}


@chooser
def cover_tiles() -> dict:
    """Tokens of a program of one pick or round, and others at a time."""
    return {"ROWS": 8, "BLOCK": 128, "num_warps": 4}


@chooser
def flat_tiles() -> dict:
    """For a pass over single numbers."""
    return {"BLOCK": 1024}


@chooser
def finish_tiles(causal: bool) -> dict:
    """Columns whose scores are made of the integers of all heads, and queries that see some of them at a time."""
    return {"BLOCK": 256, "QUERIES": 16 if causal else 1024}


@chooser
def match_splits(programs: int, tiles: int) -> int:
    """Parts of the keys, for some 500 programs of at least four key tiles."""
    return max(1, min(cdiv(512, programs), tiles // 4))


@chooser
def alike_tiles(features: int, limbs: int, arch: int | str) -> dict:
    """Tiles of pairs of tokens, multiples of 32 either way: those of the similarity that do not spill."""
    m, n, k, warps, depth = 128 if features > 16 else 64, 128 if features % 16 == 0 else 64, 64, 8, 3
    if limbs == 2:
        m, n, k, warps, depth = (128, 32, 64, 8, 2) if arch == 100 else (64, 32, 64, 4, 2)
        if arch == 90 and features % 16 == 0:
            m, n, k, warps, depth = 128, 64, 64 if features <= 64 else 32, 8, 2
    k = min(k, max(16, next_power_of_2(features)))
    return {"DOT": Dots(features, limbs, m, n, k), "num_warps": warps, "num_stages": stages(depth)}


@chooser
def leader_tiles(words: int) -> dict:
    """Words of 32 rows that one program joins at a time, one to a thread."""
    block = min(128, max(32, next_power_of_2(words)))
    return {"BLOCK": block, "num_warps": block // 32}


@chooser
def join_tiles(words: int) -> dict:
    """Rows to a program, of each so many words at a time."""
    block = min(32, next_power_of_2(words))
    return {"ROWS": 128 // block, "BLOCK": block, "num_warps": 4}


@chooser
def fold_tiles(x: Tensor, chunks: bool) -> dict:
    """One group, or `chunks` of some, to a program, 16 bytes to a thread where the strides allow."""
    vector = math.gcd(16 // x.element_size(), x.stride(0), x.stride(1), x.data_ptr() // x.element_size(), x.shape[2])
    block = min(128 * vector, max(32 * vector, next_power_of_2(x.shape[2])))
    return {"BLOCK": block, "num_warps": max(1, block // (32 * vector)), **(_registers(64) if chunks else {})}


def _registers(most: int = 255) -> dict:  # where the assembler, untold, would stop at fewer and spill
    return {"maxnreg": most} if isinstance(target_arch(), int) else {}


@chooser
def attention_tiles(features: int, limbs: int, rows: int, by_tile: bool) -> tuple[dict, dict]:
    """Tiles of queries by keys for the rows, and of keys by queries for the columns, whose logits stay in registers."""
    few = rows <= FEW
    wide = 64 if limbs == 1 else 32
    block = min(max(16, next_power_of_2(features)), wide)
    # A sixth fewer instructions; elsewhere tiles of this width spill with some head dimension or option.
    many = 128 if limbs == 1 and target_arch() == 90 else wide
    row = (16, 2 * wide if limbs == 1 else wide) if few else (64, many)
    # Where heads are reduced first, a second tile of sums is alive.
    column = (64, 16 if few else wide // 2 if by_tile else many)
    options = {"num_warps": 4, "num_stages": stages(2), **(_registers() if _OLD or features > 128 else {})}
    dots = (Dots(features, limbs, *tile, block) for tile in (row, column))
    first, second = ({"DOT": dot, **options} for dot in dots)
    return first, second


@chooser
def relevance_tiles(features: int, limbs: int, rows: int, mean: bool) -> dict:
    """Those of columns; the mean holds wider numbers. Long rows need no more registers here."""
    _, tiles = attention_tiles(min(features, 128), limbs, rows, mean)
    return put(tiles, {"D": features})


@chooser
def kept_tiles(features: int, limbs: int, rows: int, joined: int) -> tuple[dict, dict]:
    """The same tiles where logits are read, of so many rows of a key head and of a column: 4 logits a thread."""
    row, column = (min(FEW, next_power_of_2(count)) for count in (rows, joined))
    options = {"num_warps": 4, "num_stages": stages(2)}
    return (
        {"DOT": Dots(features, limbs, row, 512 // row, 16), **options},
        {"DOT": Dots(features, limbs, 512 // column, column, 16), **options},
    )


@chooser
def logits_tiles(key: Tensor, limbs: int) -> Optional[dict]:
    """Arguments of `_logits_kernel` for keys `[B, H, N, D]`; None where rows are too short or too long for it."""
    features = key.shape[3]
    if not 8 < features <= 256 // limbs or features * key.element_size() > 512:
        return None
    # Products of two limbs are exact over 64 features at a time.
    load_bytes = 16 if limbs == 1 or features <= 64 else 2 * key.element_size()
    tiles = row_tiles([key], 4 if features <= 128 else 8, load_bytes)
    # Fewer than 32 keys would be repeated over the warps of a product.
    keys = max(32, 4096 // limbs // (tiles["ROW"].PARTS * tiles["ROW"].WIDTH))
    return {**put(tiles, {"TILES": keys}), **(_registers() if _OLD else {})}


@chooser
def attention_splits(programs: int, length: int, tile: int) -> int:
    """Parts of a loop over `length`, for some 500 programs of at least two tiles, or four where those are narrow."""
    return max(1, min(cdiv(512, max(1, programs)), length // max(2 * tile, min(4 * tile, 256))))
