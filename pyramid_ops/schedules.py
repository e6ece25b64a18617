"""How many image tokens each layer of a language model reads, by method: host arithmetic, before anything runs.

Layers are counted from 0; ``tokens[k]`` is what layer k reads. `scored` are the layers before which tokens are scored
and the query rows that score there: "last", "text" or "all".
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Optional

from . import _checks as check
from .methods import retained
from .ops.budgets import allocate_budgets

__all__ = [
    "METHODS",
    "Schedule",
    "aim",
    "at_budget",
    "before",
    "falling",
    "fastv",
    "fitprune_fit",
    "joint",
    "most_tokens",
    "prunevid",
    "pyramiddrop",
    "sparsevlm",
    "vscan",
]

Rows = Literal["last", "text", "all"]


class Schedule(NamedTuple):
    """Image tokens that each layer reads, and (layer, rows that score) before each drop."""

    tokens: list[int]
    scored: list[tuple[int, Rows]]


def _stages(tokens: int, layers: int, drops: Sequence[tuple[int, int]], rows: Rows) -> Schedule:
    """(layer, image tokens from it on), ascending; a drop that leaves all is none."""
    counts, scored = [], []
    left = tokens
    at = dict(drops)
    for layer in range(layers):
        count = min(at.get(layer, left), left)
        if count < left:
            scored.append((layer, rows))
        left = count
        counts.append(left)
    return Schedule(counts, scored)


def before(tokens: int, layers: int, *, keep: int) -> Schedule:
    """What is chosen or merged before the language model: every layer reads `keep`.

    >>> from pyramid_ops import schedules
    >>> schedules.before(576, 4, keep=64).tokens
    [64, 64, 64, 64]
    """
    return Schedule([min(check.integer("before", "keep", keep, 0), tokens)] * layers, [])


def fastv(tokens: int, layers: int, *, layer: int = 2, ratio: float = 0.5) -> Schedule:
    """FastV (arXiv 2403.06764): from a layer on without the share `ratio`.

    >>> from pyramid_ops import schedules
    >>> schedules.fastv(576, 4)
    Schedule(tokens=[576, 576, 288, 288], scored=[(2, 'last')])
    """
    return _stages(tokens, layers, [(layer, retained.fastv(tokens, ratio))], "last")


def pyramiddrop(tokens: int, layers: int, *, ratio: float = 0.5, stages: int = 3) -> Schedule:
    """PyramidDrop (arXiv 2410.17247): λ = `ratio` of what there was after each of equally long stages.

    >>> from pyramid_ops import schedules
    >>> schedules.pyramiddrop(576, 32).tokens[::8]
    [576, 288, 144, 72]
    """
    counts = retained.pyramiddrop(tokens, [ratio**stage for stage in range(1, stages + 1)])
    drops = [(layers * stage // (stages + 1), count) for stage, count in enumerate(counts, 1)]
    return _stages(tokens, layers, drops, "last")


def sparsevlm(tokens: int, layers: int, *, budget: int = 192, recycle: bool = True) -> Schedule:
    """SparseVLM (arXiv 2410.04417): the authors' tables after layers 2, 6 and 15, with what is recycled.

    As in their code these layers still read all, score, and leave fewer to layers 3, 7 and 16; they name the tables as
    if those three read the fewer. Of n deleted tokens m = int(0.3 · n) + 1 become int(m / 10) + 1 more.

    >>> from pyramid_ops import schedules
    >>> schedules.sparsevlm(576, 32, recycle=False).tokens[2:17:2]
    [576, 300, 300, 200, 200, 200, 200, 110]
    """
    drops, left = [], tokens
    for layer, kept in zip((3, 7, 16), retained.sparsevlm(budget), strict=True):
        kept = min(kept, max(left - 1, 0))
        more = retained.sparsevlm_recycle(left - kept) if recycle and left > kept else 0
        left = min(kept + more, left)
        drops.append((layer, left))
    return _stages(tokens, layers, drops, "text")


def aim(tokens: int, layers: int, *, first: int = 14, over: int = 8) -> Schedule:
    """AIM (arXiv 2412.03248): from layer `first` on fewer in each, none after `over` of them.

    >>> from pyramid_ops import schedules
    >>> schedules.aim(144, 24).tokens[12:]
    [144, 144, 126, 108, 90, 72, 54, 36, 18, 0, 0, 0]
    """
    drops = [(layer, retained.aim_prune(tokens, layer, first, over)) for layer in range(layers)]
    return _stages(tokens, layers, drops, "all")


def prunevid(tokens: int, layers: int, *, layer: int = 10, ratio: float = 0.4) -> Schedule:
    """PruneVid inside the language model (arXiv 2412.16117): the share `ratio` stays from a layer on.

    >>> from pyramid_ops import schedules
    >>> schedules.prunevid(720, 28).tokens[9:11]
    [720, 288]
    """
    return _stages(tokens, layers, [(layer, retained.prunevid_llm(tokens, ratio))], "text")


def vscan(tokens: int, layers: int, *, keep: int, layer: int = 16, ratio: float = 0.5) -> Schedule:
    """VScan (arXiv 2505.22654): `keep` after the encoder, of which the share `ratio` goes at a layer.

    >>> from pyramid_ops import schedules
    >>> schedules.vscan(576, 32, keep=128).tokens[15:17]
    [128, 64]
    """
    return fastv(min(check.integer("vscan", "keep", keep, 0), tokens), layers, layer=layer, ratio=ratio)


def joint(
    tokens: int,
    text: int,
    budget: int,
    *,
    weights: Optional[tuple[float, float]] = None,
    minimum: tuple[int, int] = (0, 0),
) -> tuple[int, int]:
    """How image and text share one budget: (image tokens, text tokens).

    Parameters
    ----------
    tokens, text : int
        How many there are of each.
    budget : int
        How many of both a layer may read.
    weights : (float, float), optional
        What each shall have of it, such as attention received in sum. Default: the text stays, and the image gets what
        is left, as in methods that prune images only.
    minimum : (int, int)
        How many of each stay at least.

    Returns
    -------
    (int, int)
        The budget in sum, or all where there are fewer: shares by the largest remainder, what one kind cannot take goes
        to the other.

    Raises
    ------
    TypeError, ValueError
        As :func:`pyramid_ops.allocate_budgets`; without weights for a budget below the text.

    Notes
    -----
    Without shares, the best of both kinds by one score are a plan for the whole prompt, on the device:
    ``plans.keep(scores, budget, candidates=there)``; with shares, text and image are a plan each,
    :func:`pyramid_ops.plans.concat` puts one behind the other, and ``forced`` keeps what has to stay.

    Examples
    --------
    >>> from pyramid_ops import schedules
    >>> schedules.joint(576, 64, 192), schedules.joint(576, 64, 192, weights=(0.8, 0.2))
    ((128, 64), (154, 38))
    """
    op = "joint"
    sizes = [check.integer(op, "tokens", tokens, 0), check.integer(op, "text", text, 0)]
    budget = min(check.integer(op, "budget", budget, 0), sum(sizes))
    least = [check.integer(op, f"minimum[{k}]", one, 0) for k, one in enumerate(check.sequence(op, "minimum", minimum))]
    if len(least) != 2 or any(one > size for one, size in zip(least, sizes, strict=False)):
        raise ValueError(f"{op}: minimum: expected two numbers of at most {sizes}, got {least}")
    if weights is None:
        if budget < text + least[0]:
            expected = f"the {text} tokens of text" + f" and {least[0]} of the image" * (least[0] > 0)
            raise ValueError(f"{op}: budget: expected at least {expected}, got {budget}")
        return budget - text, text
    pair = [
        check.number(op, f"weights[{k}]", weight) for k, weight in enumerate(check.sequence(op, "weights", weights))
    ]
    if len(pair) != 2 or min(pair) < 0 or not sum(pair):
        raise ValueError(f"{op}: weights: expected two numbers from 0 that are not both 0, got {pair}")
    shares = [weight / sum(pair) for weight in pair]
    image, words = allocate_budgets(budget, shares, sizes, minimum=least, rule="largest_remainder")
    return image, words


def falling(tokens: int, layers: int, *, shares: Sequence[float] = (1.0, 0.8, 0.6, 0.4)) -> Schedule:
    """The schedule described for AIM: 100, 80, 60 and 40 % in equally long stages.

    >>> from pyramid_ops import schedules
    >>> schedules.falling(576, 32).tokens[::8]
    [576, 460, 345, 230]
    """
    drops = [(layers * stage // len(shares), int(tokens * share)) for stage, share in enumerate(shares)]
    return _stages(tokens, layers, drops, "text")


def fitprune_fit(
    scores: Sequence[Sequence[float]], cost: Callable[[list[int]], float], limit: float
) -> tuple[list[int], float]:
    """FitPrune's fit (arXiv 2409.10197): one threshold for all layers, the least that meets a limit of cost.

    Parameters
    ----------
    scores : sequence of sequences of float
        For each layer the scores of its image tokens on calibration data, such as the mean of ``own * cross`` over
        samples, sorted or not.
    cost : callable
        Image tokens by layer to FLOPs, or anything else that grows with them.
    limit : float
        The most it may be.

    Returns
    -------
    (list of int, float)
        Image tokens of each layer, never more than of the one before, and the threshold: tokens above it stay.

    Raises
    ------
    ValueError
        Where no tokens at all cost more than the limit.

    Examples
    --------
    >>> from pyramid_ops import schedules
    >>> schedules.fitprune_fit([[9.0, 8.0, 7.0, 1.0], [9.0, 3.0, 2.0, 1.0]], sum, 5)
    ([3, 2], 2.0)
    """
    candidates = sorted({float("-inf"), *(float(score) for layer in scores for score in layer)})

    def above(threshold: float) -> list[int]:
        counts: list[int] = []
        for layer in scores:
            count = sum(score > threshold for score in layer)
            counts.append(min(count, counts[-1]) if counts else count)
        return counts

    low, high = 0, len(candidates) - 1
    if cost(above(candidates[high])) > limit:
        raise ValueError(f"fitprune_fit: limit: expected at least {cost(above(candidates[high]))}, got {limit}")
    while low < high:
        middle = (low + high) // 2
        if cost(above(candidates[middle])) > limit:
            low = middle + 1
        else:
            high = middle
    return above(candidates[high]), candidates[high]


def most_tokens(cost: Callable[[int], float], limit: float, tokens: int) -> int:
    """The most image tokens, up to `tokens`, whose cost is within a limit of latency or memory; −1 where none is.

    Parameters
    ----------
    cost : callable
        Image tokens to seconds, FLOPs or bytes; must not fall with more of them. Measured or modelled.
    limit : float
        The most it may be.
    tokens : int
        The most there are.

    Returns
    -------
    int
        Found by bisection: some log₂ of `tokens` calls.

    Examples
    --------
    >>> from pyramid_ops import schedules
    >>> schedules.most_tokens(lambda n: 0.02 + 1e-4 * n, limit=0.05, tokens=576)
    300
    """
    low, high = -1, tokens
    while low < high:
        middle = (low + high + 1) // 2
        if cost(middle) <= limit:
            low = middle
        else:
            high = middle - 1
    return low


#: By name, what takes (tokens, layers) and, where it asks for it, `keep`.
METHODS: dict[str, Callable[..., Schedule]] = {
    "none": lambda tokens, layers, keep=None: before(tokens, layers, keep=tokens),
    "fastv": fastv,
    "pyramiddrop": pyramiddrop,
    "sparsevlm": sparsevlm,
    "aim": aim,
    "prunevid": prunevid,
    "falling": falling,
    "vscan": vscan,
    "before": before,
}

# Schedules that read the more the greater k is, in place of the numbers that the authors chose.
_GROWING: dict[str, Callable[[int, int, int], Schedule]] = {
    "before": lambda n, layers, k: before(n, layers, keep=k),
    "fastv": lambda n, layers, k: fastv(n, layers, ratio=1 - k / max(n, 1)),
    "pyramiddrop": lambda n, layers, k: pyramiddrop(n, layers, ratio=k / max(n, 1)),
    "sparsevlm": lambda n, layers, k: sparsevlm(n, layers, budget=(64, 128, 192)[k]),
    "aim": lambda n, layers, k: aim(n, layers, first=k),
    "prunevid": lambda n, layers, k: prunevid(n, layers, ratio=k / max(n, 1)),
    "vscan": lambda n, layers, k: vscan(n, layers, keep=k),
}


def at_budget(method: str, tokens: int, layers: int, budget: int) -> Optional[Schedule]:
    """A method's schedule that reads the most image tokens, at most `budget` a layer on average; None if it has none.

    The average is rounded down.
    What is chosen is the share that FastV and PruneVid keep, PyramidDrop's λ, SparseVLM's table, AIM's first layer, and
    how many tokens are left before the language model. "none" and "falling" have nothing to choose.

    >>> from pyramid_ops import schedules
    >>> schedules.at_budget("pyramiddrop", 576, 32, 192).tokens[::8]
    [576, 148, 38, 9]
    >>> schedules.at_budget("fastv", 576, 32, 32) is None
    True
    """
    most = {"sparsevlm": 2, "aim": layers}.get(method, tokens if method in _GROWING else 0)

    def chosen(k: int) -> Schedule:
        return _GROWING[method](tokens, layers, k) if method in _GROWING else METHODS[method](tokens, layers)

    k = most_tokens(lambda k: sum(chosen(k).tokens) // max(layers, 1), budget, most)
    return None if k < 0 else chosen(k)
