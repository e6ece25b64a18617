"""The description of every op, a file a family."""

from ..describe import Description
from . import (
    adaptive,
    attention,
    bipartite,
    budgets,
    channels,
    entropy,
    gathering,
    grouping,
    hashing,
    keeping,
    matching,
    merging,
    pairs,
    pooling,
    pyramid,
    ragged,
    regions,
    relevance,
    scoring,
    selection,
    thresholds,
    units,
    walk,
)

_FAMILIES = (
    units,
    pyramid,
    hashing,
    scoring,
    pooling,
    regions,
    channels,
    entropy,
    thresholds,
    selection,
    gathering,
    ragged,
    matching,
    pairs,
    merging,
    bipartite,
    keeping,
    grouping,
    attention,
    relevance,
    walk,
    budgets,
    adaptive,
)

#: By name, in the order in which random compositions take their steps.
DESCRIPTIONS: dict[str, Description] = {
    description.op.name: description for family in _FAMILIES for description in family.DESCRIPTIONS
}
