"""The description of every op, a file a family."""

from ..describe import Description
from . import (
    adaptive,
    attention,
    bipartite,
    budgets,
    centering,
    entropy,
    gathering,
    grouping,
    keeping,
    matching,
    merging,
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
    scoring,
    pooling,
    regions,
    entropy,
    thresholds,
    selection,
    gathering,
    ragged,
    matching,
    merging,
    bipartite,
    keeping,
    grouping,
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
