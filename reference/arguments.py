"""Arguments that belong together, as both rooms take them. A custom op has one flat argument for each field."""

from collections.abc import Sequence
from typing import NamedTuple, Optional

from torch import Tensor


class Segments(NamedTuple):
    """Which rows of packed queries and keys belong together: int32 `[S + 1]`, None for dense ones.

    Of a longer segment the first `max_seqlen_q` queries and `max_seqlen_k` keys count.
    """

    cu_seqlens_q: Optional[Tensor]
    cu_seqlens_k: Optional[Tensor]
    max_seqlen_q: int
    max_seqlen_k: int


class Queries(NamedTuple):
    """Which queries count, and how much: all alike where nothing is given.

    Of each query: `positions` int32 `[B, Nq]`, the last key it sees where attention is causal, negative for one that is
    left out; `weights` `[B, Nq]` within [0, 1]; `log_sum_exp` `[B, H, Nq]` of its logits, to base e. Of each key:
    `counts` int64 `[B, Nk]`, how many queries see it, or the sum of their weights in units of 2⁻³⁰.
    """

    positions: Optional[Tensor] = None
    weights: Optional[Tensor] = None
    log_sum_exp: Optional[Tensor] = None
    counts: Optional[Tensor] = None


class Chosen(NamedTuple):
    """At most one of the ways in which callers say which queries count; `Queries` is what is made of it.

    `indices` `[S, M]` within each sample or segment, negative ones counted `from_end` or of unused slots, as are all
    others that are outside. `mask` bool `[B, Nq]` of dense queries. `weights` `[B, Nq]`: what each counts; negative
    ones, those from 2¹²⁶ on and NaN make the scores of their sample or segment NaN.
    """

    indices: Optional[Tensor] = None
    from_end: bool = False
    mask: Optional[Tensor] = None
    weights: Optional[Tensor] = None


ALL_QUERIES = Chosen()


class Keys(NamedTuple):
    """Which keys there are, and which of them are wanted.

    `mask` bool `[B, Nk]`: no query sees the others. `ranges` `[S, 2]`: the first and one past the last of each sample
    or segment whose scores are wanted.
    """

    mask: Optional[Tensor] = None
    ranges: Optional[Tensor] = None


ALL_KEYS = Keys()


class Similarity(NamedTuple):
    """What a token has of a text token: their cosine, times their norms if not `cosine`, times `scale`.

    More than `threshold` counts as one, for a count. Unit rows have so many `limbs`.
    """

    cosine: bool
    scale: float
    threshold: float
    limbs: int


class Alike(NamedTuple):
    """Tokens are alike from a cosine of `threshold` on, in units of 2⁻³⁰, or of one of `thresholds` `[S]`.

    Those are floats, for each sample or segment. Unit rows have so many `limbs`.
    """

    thresholds: Optional[Tensor]
    threshold: int
    limbs: int


class Masks(NamedTuple):
    """Which tokens and text tokens count, bool `[B, N]` and `[B, T]`: all where nothing is given."""

    tokens: Optional[Tensor] = None
    text: Optional[Tensor] = None


class Span(NamedTuple):
    """The columns that are wanted, [start, stop) of each segment."""

    start: int
    stop: int


class Softmax(NamedTuple):
    """Logits to base 2 are cosine · (norm · scale) · norm, with a `cap` other than 0 cap · (1 − 2 / (2^x + 1)).

    If `causal`, query i sees the keys j ≤ i + Nk − Nq. Unit rows have so many `limbs`.
    """

    causal: bool
    scale: float
    cap: float
    limbs: int


class Reduction(NamedTuple):
    """Of heads "mean", "sum", "max" or "rms", of queries all but the last, and which of the two comes first."""

    heads: str
    queries: str
    heads_first: bool

    @property
    def commutes(self) -> bool:
        """Both are sums, or both maxima: which comes first does not matter."""
        return self.heads != "rms" and (self.heads == "max") == (self.queries == "max")


class Amount(NamedTuple):
    """An integer for each sample, segment or level: `tensor` on the device, else `numbers`, or one for all."""

    tensor: Optional[Tensor]
    numbers: Sequence[int]


class Slots(NamedTuple):
    """Of a segment the first `max_seqlen` rows count, of what is chosen the first `capacity`."""

    max_seqlen: int
    capacity: int


class Bounds(NamedTuple):
    """Least and most of each level, or of all; what rounding leaves and what full levels cannot take goes by these.

    The `remainder` to the largest "fraction" or "weight", the `surplus` to the "finest" level with room or, in
    proportion to the "weight", to all that have room.
    """

    minimum: Sequence[int]
    maximum: Sequence[int]
    remainder: str = "fraction"
    surplus: str = "finest"


class Difficulty(NamedTuple):
    """length_scale · length + variance_scale · variance against `thresholds`, and a row of weights for each outcome."""

    length_scale: float
    variance_scale: float
    thresholds: Sequence[float]
    rows: Sequence[float]


class Filter(NamedTuple):
    """A one-dimensional filter, the place of its first tap beside the pixel, and what stands outside the image."""

    taps: Sequence[float]
    offset: int
    padding: str


class Grid(NamedTuple):
    """Tokens row by row, height · width, cut into rows · columns regions.

    Packed `tokens` have a height and width for each segment: `sides` int32 `[S, 2]`.
    """

    height: int
    width: int
    rows: int
    columns: int
    cu_seqlens: Optional[Tensor] = None
    sides: Optional[Tensor] = None
    tokens: int = 0


class Windows(NamedTuple):
    """Tokens row by row, height · width, in windows of down · across."""

    height: int
    width: int
    down: int
    across: int


class Groups(NamedTuple):
    """M groups: row `first[b, g]` (none where negative), then rows `members[b, offsets[b, g] : offsets[b, g + 1]]`."""

    first: Tensor
    members: Tensor
    offsets: Tensor


class Choice(NamedTuple):
    """Which tokens may be chosen, bool like the scores, and which are in any case.

    A threshold is a number for each segment, else one for all: only what lies above it may be chosen, or, where the
    `largest` are not wanted, below it.
    """

    candidates: Optional[Tensor]
    forced: Optional[Tensor]
    thresholds: Optional[Tensor]
    threshold: Optional[float]
    largest: bool


class Placed(NamedTuple):
    """Into so many slots of a sample, the last of them (`right`) or the first; rows alone, or `columns` with them."""

    slots: int
    right: bool
    columns: bool


class Halves(NamedTuple):
    """Even tokens merge into odd ones, at most r of a segment, of which the first `max_seqlen` tokens count.

    Token 0 is kept (`class_token`), token 1 takes no others (`distill_token`). Rows are those of ToMe, or `in_order`.
    """

    r: int
    max_seqlen: int
    class_token: bool
    distill_token: bool
    in_order: bool


class Rule(NamedTuple):
    """A threshold: "mean", "quantile" at numerator / denominator, or "iqr" with Q3 + factor · (Q3 − Q1)."""

    name: str
    numerator: int
    denominator: int
    factor: float


class Nearest(NamedTuple):
    """The `k` nearest keys, or, unless `largest`, the farthest: by cosine or `euclidean` distance.

    With `exclude_self` all but the key in the query's own place.
    """

    k: int
    euclidean: bool
    largest: bool
    exclude_self: bool

    @property
    def inverted(self) -> bool:
        """The least numbers come first."""
        return self.euclidean == self.largest


class Allowed(NamedTuple):
    """Keys that queries may have: bool `[B, Nk]`, and a number of each row `[B, N]`, of which keys have a higher one.

    Or the same one and a lower place.
    """

    key_mask: Optional[Tensor]
    rank: Optional[Tensor]
