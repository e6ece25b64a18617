"""The description of every op, a file a family."""

from ..describe import Description
from . import (
    adaptive,
    attention,
    bipartite,
    budgets,
    centering,
    clustering,
    entropy,
    gathering,
    greedy,
    grouping,
    keeping,
    matching,
    merging,
    nearest,
    pooling,
    pyramid,
    ragged,
    regions,
    relevance,
    scoring,
    selection,
    suppression,
    thresholds,
    units,
    walk,
)

_FAMILIES = (
    units,
    pyramid,
    scoring,
    pooling,
    regions,
    entropy,
    thresholds,
    selection,
    gathering,
    ragged,
    matching,
    nearest,
    merging,
    greedy,
    bipartite,
    keeping,
    grouping,
    clustering,
    suppression,
    centering,
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
