"""How many tokens a method leaves, on the host, before anything runs: what engines reserve placeholders for.

Products are float64 and rounded down as they are, as in the authors' Python: of 10 tokens FastV at 0.9 leaves none,
since 10 · (1 − 0.9) is a bit below 1 there. Numbers that cannot be raise a TypeError or ValueError.
"""

from collections.abc import Sequence
from typing import Any

from .. import _checks as check

__all__ = [
    "aim_merge",
    "aim_prune",
    "dart",
    "dycoke",
    "evs",
    "fastv",
    "fastvid",
    "hired_described",
    "prunevid_llm",
    "pyramiddrop",
    "sparsevlm",
    "sparsevlm_recycle",
    "vidcom2",
    "visionzip",
    "vscan_decode",
]

_SPARSEVLM = {192: (300, 200, 110), 128: (303, 110, 36), 64: (66, 30, 17)}


def dart(tokens: int, ratio: float = 0.778, pivots: int = 4, text_pivots: int = 4) -> int:
    """Image tokens that DART leaves where it drops about the share `ratio`: its pivots, and ``each`` for every pivot.

    ``each`` is int(n · (1 − ratio)) // 8 for eight pivots.

    >>> from pyramid_ops.methods import retained
    >>> retained.dart(576)
    124
    """
    pivots, text_pivots = _count("dart", "pivots", pivots), _count("dart", "text_pivots", text_pivots)
    both = check.integer("dart", "pivots + text_pivots", pivots + text_pivots, 1)
    tokens, ratio = _count("dart", "tokens", tokens), check.share("dart", "ratio", ratio)
    return pivots + int(tokens * (1 - ratio)) // both * both


def dycoke(tokens_per_frame: int, frames: int, keep: int) -> int:
    """Tokens that DyCoke leaves of a video: every fourth frame whole, `keep` of each other.

    >>> from pyramid_ops.methods import retained
    >>> retained.dycoke(196, 16, keep=58)
    1480
    """
    tokens_per_frame, frames = (
        _count("dycoke", "tokens_per_frame", tokens_per_frame),
        _count("dycoke", "frames", frames),
    )
    if _count("dycoke", "keep", keep) > tokens_per_frame:
        raise ValueError(f"dycoke: keep: expected at most {tokens_per_frame}, those of a frame, got {keep}")
    whole = (frames + 3) // 4
    return whole * tokens_per_frame + (frames - whole) * keep


def evs(tokens_per_frame: int, frames: int, rate: float) -> int:
    """Tokens that EVS leaves where it drops the share `rate`, at least the first frame: as vLLM counts them.

    >>> from pyramid_ops.methods import retained
    >>> retained.evs(256, 16, 0.75), retained.evs(256, 2, 0.75)
    (1024, 256)
    """
    tokens_per_frame = check.integer("evs", "tokens_per_frame", tokens_per_frame, 1)
    frames = check.integer("evs", "frames", frames, 1)
    return max(tokens_per_frame, int(tokens_per_frame * frames * (1 - check.share("evs", "rate", rate))))


def fastvid(windows: Sequence[int], salient: int, context: int, step: int = 4) -> int:
    """Tokens that FastVID leaves of a video of segments of so many frames.

    Of A frames with anchors each has ⌊context · L / A⌋. Of int(P · ratio) tokens of a frame the authors take
    int(0.4 · those) as context.

    >>> from pyramid_ops.methods import retained
    >>> retained.fastvid([1, 4, 11], salient=12, context=7)
    302
    """
    salient, context = _count("fastvid", "salient", salient), _count("fastvid", "context", context)
    step = check.integer("fastvid", "step", step, 1)
    lengths = check.sequence("fastvid", "windows", windows)
    lengths = [check.integer("fastvid", f"windows[{k}]", length, 1) for k, length in enumerate(lengths)]
    anchors = [(length, -(-length // step)) for length in lengths]
    return sum(length * salient + frames * (context * length // frames) for length, frames in anchors)


def fastv(tokens: int, ratio: float = 0.5) -> int:
    """Image tokens that FastV leaves where it drops the share `ratio` of them: int(n · (1 − ratio)).

    >>> from pyramid_ops.methods import retained
    >>> retained.fastv(576, 0.75)
    144
    """
    return int(_count("fastv", "tokens", tokens) * (1 - check.share("fastv", "ratio", ratio)))


def pyramiddrop(tokens: int, ratios: Sequence[float] = (0.5, 0.25, 0.125)) -> list[int]:
    """Image tokens after each stage of PyramidDrop: int(n₀ · ratio) of the original number.

    >>> from pyramid_ops.methods import retained
    >>> retained.pyramiddrop(2880)
    [1440, 720, 360]
    """
    tokens = _count("pyramiddrop", "tokens", tokens)
    return [int(tokens * ratio) for ratio in _shares("pyramiddrop", ratios)]


def aim_merge(tokens: int, rounds: int = 2) -> int:
    """Tokens of a frame after the rounds of AIM's merging: ⌈n / 2⌉ each.

    >>> from pyramid_ops.methods import retained
    >>> retained.aim_merge(169)
    43
    """
    tokens = _count("aim_merge", "tokens", tokens)
    for _ in range(_count("aim_merge", "rounds", rounds)):
        tokens -= tokens // 2
    return tokens


def aim_prune(tokens: int, layer: int, first: int = 14, layers: int = 8) -> int:
    """Image tokens that AIM reads in a layer: n · max(0, 1 − (layer − first + 1) / layers) from the first on.

    >>> from pyramid_ops.methods import retained
    >>> [retained.aim_prune(144, layer) for layer in (13, 14, 17, 21)]
    [144, 126, 72, 0]
    """
    tokens, layer = _count("aim_prune", "tokens", tokens), _count("aim_prune", "layer", layer)
    first, layers = _count("aim_prune", "first", first), check.integer("aim_prune", "layers", layers, 1)
    return tokens if layer < first else int(tokens * max(0.0, 1 - (layer - first + 1) / layers))


def hired_described(tokens: int, ratios: Sequence[float] = (0.7, 0.6)) -> list[int]:
    """Tokens after each stage that is described for HiRED: int(n · ratio) of what the one before has left.

    >>> from pyramid_ops.methods import retained
    >>> retained.hired_described(196, (0.7, 0.6, 0.6, 0.6))
    [137, 82, 49, 29]
    """
    tokens = _count("hired_described", "tokens", tokens)
    counts: list[int] = []
    for ratio in _shares("hired_described", ratios):
        counts.append(int((counts[-1] if counts else tokens) * ratio))
    return counts


def prunevid_llm(tokens: int, ratio: float = 0.4) -> int:
    """Tokens that PruneVid leaves of a static set or a frame: int(0.4 · n).

    >>> from pyramid_ops.methods import retained
    >>> retained.prunevid_llm(72)
    28
    """
    return int(_count("prunevid_llm", "tokens", tokens) * check.share("prunevid_llm", "ratio", ratio))


def sparsevlm(budget: int = 192) -> tuple[int, ...]:
    """Image tokens that layers 2, 6 and 15 leave in SparseVLM: the authors' tables for 576 tokens.

    Without those that :func:`sparsevlm_recycle` adds. The budget, 192, 128 or 64, is about their mean over layers, if
    these three count as reading what they leave.

    >>> from pyramid_ops.methods import retained
    >>> retained.sparsevlm(128)
    (303, 110, 36)
    """
    if check.integer("sparsevlm", "budget", budget) not in _SPARSEVLM:
        raise ValueError(f"sparsevlm: budget: expected one of {', '.join(map(str, _SPARSEVLM))}, got {budget}")
    return _SPARSEVLM[budget]


def sparsevlm_recycle(deleted: int) -> int:
    """Tokens that SparseVLM makes of those that a stage deletes: int(m / 10) + 1 of the best m = int(0.3 · n) + 1.

    >>> from pyramid_ops.methods import retained
    >>> retained.sparsevlm_recycle(576 - 300)
    9
    """
    return (int(0.3 * _count("sparsevlm_recycle", "deleted", deleted)) + 1) // 10 + 1


def vscan_decode(tokens: int, generated: int, rate: float = 0.5) -> int:
    """Image tokens that the described prune of VScan leaves: int(n · (1 − min(rate · generated / 20, 0.9))).

    >>> from pyramid_ops.methods import retained
    >>> retained.vscan_decode(100, generated=10)
    75
    """
    tokens, generated = _count("vscan_decode", "tokens", tokens), _count("vscan_decode", "generated", generated)
    if check.number("vscan_decode", "rate", rate) < 0:
        raise ValueError(f"vscan_decode: rate: expected at least 0, got {rate}")
    return int(tokens * (1 - min(rate * generated / 20, 0.9)))


def vidcom2(tokens_per_frame: int, frames: int, ratio: float = 0.25) -> int:
    """Tokens that VidCom2 leaves of a video: the share `ratio`, at least one of each frame.

    >>> from pyramid_ops.methods import retained
    >>> retained.vidcom2(196, 32)
    1568
    """
    tokens_per_frame = check.integer("vidcom2", "tokens_per_frame", tokens_per_frame, 1)
    frames = _count("vidcom2", "frames", frames)
    return max(frames, round(tokens_per_frame * frames * check.share("vidcom2", "ratio", ratio)))


def visionzip(dominant: int, contextual: int) -> int:
    """Tokens of VisionZip, without the class token.

    >>> from pyramid_ops.methods import retained
    >>> retained.visionzip(54, 10)
    64
    """
    return _count("visionzip", "dominant", dominant) + _count("visionzip", "contextual", contextual)


def _count(op: str, name: str, value: Any) -> int:
    return check.integer(op, name, value, 0)


def _shares(op: str, ratios: Any) -> list[float]:
    return [check.share(op, f"ratios[{k}]", ratio) for k, ratio in enumerate(check.sequence(op, "ratios", ratios))]
