"""How many tokens a method leaves, on the host, before anything runs: what engines reserve placeholders for."""

from collections.abc import Sequence

__all__ = ["fastv", "pyramiddrop", "visionzip"]


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


def visionzip(dominant: int, contextual: int) -> int:
    """Tokens of VisionZip, without the class token.

    >>> from pyramid_ops.methods import retained
    >>> retained.visionzip(54, 10)
    64
    """
    return dominant + contextual
