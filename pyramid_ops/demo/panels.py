"""What each method keeps of one photo: a function for each, of stand-ins for what a model would give."""

from collections.abc import Callable
from typing import NamedTuple, Optional, Union

import torch
from torch import Tensor

from .. import combine_scores, methods
from ..plans import Keep, mask
from .merge import merge_to
from .standins import StandIns, from_tiles, to_tiles


class Kept(NamedTuple):
    """Patches that stay, of N."""

    mask: Tensor  # bool [N]
    others: Optional[Tensor] = None  # bool [N]: those that stay for another reason
    note: str = ""

    @property
    def tokens(self) -> int:
        return int(self.mask.sum()) + (0 if self.others is None else int(self.others.sum()))


class Grouped(NamedTuple):
    """Patches that become one."""

    group: Tensor  # int64 [N], from 0 on
    note: str = ""

    @property
    def tokens(self) -> int:
        return int(self.group.max()) + 1


Rule = Callable[[StandIns, int], Union[Kept, Grouped]]


def image_tokens(s: StandIns, plan: Keep) -> Kept:
    """Those of a plan for patches and words."""
    return Kept(mask(plan)[0, : s.x.shape[1]])


def patches(plan: Keep) -> Kept:
    return Kept(mask(plan)[0])


def fastv(s: StandIns, keep: int) -> Kept:
    return image_tokens(s, methods.fastv(s.heads, s.heads, s.image, keep=keep))


def sparsevlm(s: StandIns, keep: int) -> Kept:
    raters = methods.sparsevlm_raters(s.hidden, s.image, s.text)
    return image_tokens(s, methods.sparsevlm(s.heads, s.heads, s.image, raters, keep=keep))


def fitprune(s: StandIns, keep: int) -> Kept:
    return image_tokens(s, methods.fitprune(s.heads, s.heads, s.image, s.text, keep=keep))


def aim_prune(s: StandIns, keep: int) -> Kept:
    return image_tokens(s, methods.aim_prune(s.heads, s.heads, s.image, keep=keep))


def dart(s: StandIns, keep: int) -> Kept:
    plan = methods.dart(s.hidden, s.heads, s.image, s.text, each=max(keep - 4, 0) // 8)
    return image_tokens(s, plan)


def fastervlm(s: StandIns, keep: int) -> Kept:
    return patches(methods.fastervlm(s.deep, keep=keep))


def hired(s: StandIns, keep: int) -> Kept:
    rows, columns = s.grid
    deep = torch.cat([s.whole[:, None], to_tiles(s.deep, s.grid)], 1)
    plan = methods.hired(s.whole, deep, keep=keep, grid=(rows // 2, columns // 2), tiles=(2, 2))
    whole, *tiles = mask(plan)
    return Kept(from_tiles(torch.stack(tiles), s.grid), note=f"and {int(whole.sum())} of the whole at half its size")


def hiprune(s: StandIns, keep: int) -> Kept:
    return patches(methods.hiprune(s.shallow, s.deep, keep=keep, grid=s.grid))


def visionzip(s: StandIns, keep: int) -> Kept:
    contextual = max(1, keep // 6)
    dominant, merged = methods.visionzip(s.deep, s.x, dominant=keep - contextual, contextual=contextual)
    return Kept(mask(dominant)[0], others=mask(merged)[0], note="blue: targets of the others")


def vispruner(s: StandIns, keep: int) -> Kept:
    return patches(methods.vispruner(s.x, s.deep, keep=keep, important=keep // 2))


def prumerge_plus_select(s: StandIns, keep: int) -> Kept:
    return patches(methods.prumerge_plus_select(s.deep, keep=max(1, keep // 4)))


def divprune(s: StandIns, keep: int) -> Kept:
    return patches(methods.divprune(s.x, keep=keep))


def cdpruner(s: StandIns, keep: int) -> Kept:
    return patches(methods.cdpruner(s.x, s.relevance, keep=keep))


def scope(s: StandIns, keep: int) -> Kept:
    return patches(methods.scope(s.x, s.deep, keep=keep))


def greedyprune(s: StandIns, keep: int) -> Kept:
    return patches(methods.greedyprune(s.x, s.deep, keep=keep))


def vscan(s: StandIns, keep: int) -> Kept:
    rows, columns = s.grid
    plan = methods.vscan(s.x, s.shallow, s.deep, keep=keep, grid=s.grid, window=(rows // 4, columns // 4))
    return Kept(mask(plan)[0], note="the others join them")


def ptp(s: StandIns, keep: int) -> Kept:
    plan = methods.ptp(to_tiles(s.deep, s.grid), to_tiles(s.relevance, s.grid), keep=keep)
    return Kept(from_tiles(mask(plan), s.grid))


def tome(s: StandIns, keep: int) -> Grouped:
    return Grouped(merge_to(s.x, keep)[0])


def dtoma_merge(s: StandIns, keep: int) -> Grouped:
    depth = max(d for d in range(4) if not any(side % 2**d for side in s.grid))
    return Grouped(methods.dtoma_merge(s.x, s.grid, threshold=0.7, depth=depth).rows[0], "of alike cells")


def lod_select(s: StandIns, keep: int) -> Grouped:
    """Four levels of detail, of about as many tokens each, by detail and relevance to the words."""
    rows, columns = s.grid
    relevance = combine_scores([s.deep, s.relevance], [0.6, 0.4], normalize="minmax")
    limits: list[float] = []
    for patches in (keep // 4, 5 * keep // 4, 21 * keep // 4):
        limit = torch.quantile(relevance, max(0.0, 1 - patches / (rows * columns))).item()
        limits.append(min(limit, limits[-1] - 1e-6) if limits else limit)
    level = sum((relevance[0] <= limit).long() for limit in limits)
    place = torch.arange(rows * columns)
    y, x = place // columns >> level, place % columns >> level
    group = torch.unique((level * rows + y) * columns + x, return_inverse=True)[1]
    counts = [int(plan.counts) for plan in methods.lod_select(relevance, s.grid, thresholds=limits)]
    return Grouped(group, f"of levels 0 to 3: {', '.join(map(str, counts))}")


#: In the order of the figure: inside the language model, by the encoder's attention, by features, merged.
PANELS: dict[str, Rule] = {
    "FastV, PyramidDrop": fastv,
    "SparseVLM": sparsevlm,
    "FitPrune": fitprune,
    "AIM": aim_prune,
    "DART": dart,
    "FasterVLM": fastervlm,
    "HiRED": hired,
    "HiPrune": hiprune,
    "PruMerge+": prumerge_plus_select,
    "VisionZip": visionzip,
    "VScan": vscan,
    "VisPruner": vispruner,
    "DivPrune": divprune,
    "CDPruner": cdpruner,
    "SCOPE": scope,
    "GreedyPrune": greedyprune,
    "PTP": ptp,
    "ToMe": tome,
    "DToMA": dtoma_merge,
    "levels of detail": lod_select,
}
