"""How many tokens a method leaves, on the host, before anything runs: what engines reserve placeholders for."""

from collections.abc import Sequence

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
    both = pivots + text_pivots
    return pivots + int(tokens * (1 - ratio)) // both * both


def dycoke(tokens_per_frame: int, frames: int, keep: int) -> int:
    """Tokens that DyCoke leaves of a video: every fourth frame whole, `keep` of each other.

    >>> from pyramid_ops.methods import retained
    >>> retained.dycoke(196, 16, keep=58)
    1480
    """
    whole = (frames + 3) // 4
    return whole * tokens_per_frame + (frames - whole) * keep


def evs(tokens_per_frame: int, frames: int, rate: float) -> int:
    """Tokens that EVS leaves where it drops the share `rate`, at least the first frame: as vLLM counts them.

    >>> from pyramid_ops.methods import retained
    >>> retained.evs(256, 16, 0.75), retained.evs(256, 2, 0.75)
    (1024, 256)
    """
    return max(tokens_per_frame, int(tokens_per_frame * frames * (1 - rate)))


def fastvid(windows: Sequence[int], salient: int, context: int, step: int = 4) -> int:
    """Tokens that FastVID leaves of a video of segments of so many frames.

    Of A frames with anchors each has ⌊context · L / A⌋. Of int(P · ratio) tokens of a frame the authors take
    int(0.4 · those) as context.

    >>> from pyramid_ops.methods import retained
    >>> retained.fastvid([1, 4, 11], salient=12, context=7)
    302
    """
    anchors = [(length, -(-length // step)) for length in windows]
    return sum(length * salient + frames * (context * length // frames) for length, frames in anchors)


def fastv(tokens: int, ratio: float = 0.5) -> int:
    """Image tokens that FastV leaves where it drops the share `ratio` of them: int(n · (1 − ratio)).

    >>> from pyramid_ops.methods import retained
    >>> retained.fastv(576, 0.75)
    144
    """
    return int(tokens * (1 - ratio))


def pyramiddrop(tokens: int, ratios: Sequence[float] = (0.5, 0.25, 0.125)) -> list[int]:
    """Image tokens after each stage of PyramidDrop: int(n₀ · ratio) of the original number.

    >>> from pyramid_ops.methods import retained
    >>> retained.pyramiddrop(2880)
    [1440, 720, 360]
    """
    return [int(tokens * ratio) for ratio in ratios]


def aim_merge(tokens: int, rounds: int = 2) -> int:
    """Tokens of a frame after the rounds of AIM's merging: ⌈n / 2⌉ each.

    >>> from pyramid_ops.methods import retained
    >>> retained.aim_merge(169)
    43
    """
    for _ in range(rounds):
        tokens -= tokens // 2
    return tokens


def aim_prune(tokens: int, layer: int, first: int = 14, layers: int = 8) -> int:
    """Image tokens that AIM reads in a layer: n · max(0, 1 − (layer − first + 1) / layers) from the first on.

    >>> from pyramid_ops.methods import retained
    >>> [retained.aim_prune(144, layer) for layer in (13, 14, 17, 21)]
    [144, 126, 72, 0]
    """
    return tokens if layer < first else int(tokens * max(0.0, 1 - (layer - first + 1) / layers))


def hired_described(tokens: int, ratios: Sequence[float] = (0.7, 0.6)) -> list[int]:
    """Tokens after each stage that is described for HiRED: int(n · ratio) of what the one before has left.

    >>> from pyramid_ops.methods import retained
    >>> retained.hired_described(196, (0.7, 0.6, 0.6, 0.6))
    [137, 82, 49, 29]
    """
    counts: list[int] = []
    for ratio in ratios:
        counts.append(int((counts[-1] if counts else tokens) * ratio))
    return counts


def prunevid_llm(tokens: int, ratio: float = 0.4) -> int:
    """Tokens that PruneVid leaves of a static set or a frame: int(0.4 · n).

    >>> from pyramid_ops.methods import retained
    >>> retained.prunevid_llm(72)
    28
    """
    return int(tokens * ratio)


def sparsevlm(budget: int = 192) -> tuple[int, ...]:
    """Image tokens that layers 2, 6 and 15 leave in SparseVLM: the authors' tables for 576 tokens.

    Without those that :func:`sparsevlm_recycle` adds. The budget, 192, 128 or 64, is about their mean over layers, if
    these three count as reading what they leave.

    >>> from pyramid_ops.methods import retained
    >>> retained.sparsevlm(128)
    (303, 110, 36)
    """
    if budget not in _SPARSEVLM:
        raise ValueError(f"sparsevlm: budget: expected one of {', '.join(map(str, _SPARSEVLM))}, got {budget}")
    return _SPARSEVLM[budget]


def sparsevlm_recycle(deleted: int) -> int:
    """Tokens that SparseVLM makes of those that a stage deletes: int(m / 10) + 1 of the best m = int(0.3 · n) + 1.

    >>> from pyramid_ops.methods import retained
    >>> retained.sparsevlm_recycle(576 - 300)
    9
    """
    return (int(0.3 * deleted) + 1) // 10 + 1


def vscan_decode(tokens: int, generated: int, rate: float = 0.5) -> int:
    """Image tokens that the described prune of VScan leaves: int(n · (1 − min(rate · generated / 20, 0.9))).

    >>> from pyramid_ops.methods import retained
    >>> retained.vscan_decode(100, generated=10)
    75
    """
    return int(tokens * (1 - min(rate * generated / 20, 0.9)))


def vidcom2(tokens_per_frame: int, frames: int, ratio: float = 0.25) -> int:
    """Tokens that VidCom2 leaves of a video: the share `ratio`, at least one of each frame.

    >>> from pyramid_ops.methods import retained
    >>> retained.vidcom2(196, 32)
    1568
    """
    return max(frames, round(tokens_per_frame * frames * ratio))


def visionzip(dominant: int, contextual: int) -> int:
    """Tokens of VisionZip, without the class token.

    >>> from pyramid_ops.methods import retained
    >>> retained.visionzip(54, 10)
    64
    """
    return dominant + contextual
