"""Methods after the vision encoder: vectorised eager code as their authors write it, and ours."""

from collections.abc import Iterator

import torch
from torch import Tensor

from bench.methods.case import HEAD, WIDTH, Case, Inputs, best, flags, others, rows, unit
from bench.test_greedy import cdpruner, divprune
from bench.test_merging import eager as tome
from bench.test_rounds import eager as rounds
from pyramid_ops import methods, plans


def class_row(query: Tensor, key: Tensor) -> Tensor:
    return (query[:, :, :1] @ key.mT * query.shape[-1] ** -0.5).softmax(-1).mean(1)[:, 0, 1:]


def hired(shallow: Tensor, deep: Tensor, keep: int, grid: tuple[int, int]) -> Tensor:
    (height, width), size, whole = grid, shallow.shape[1], keep // 2
    marked = flags(shallow.topk(size // 2, -1).indices, size).view(2, height // 2, 2, width // 2)
    counts = marked.sum((1, 3)).flatten()
    budgets = (counts / counts.sum() * (keep - whole)).int().tolist()
    chosen = [best(deep[0, t], budget) + t * size for t, budget in enumerate([whole, *budgets])]
    return torch.cat(chosen)


def hiprune(middle: Tensor, deep: Tensor, keep: int, width: int) -> Tensor:
    size = middle.shape[1]
    anchors = middle.topk(round(keep * 0.1 / 5), -1).indices
    around = torch.cat([anchors + step for step in (0, -1, 1, -width, width)], 1).clamp(0, size - 1).unique()
    rest = deep.index_fill(1, around, -torch.inf).topk(keep - len(around), -1).indices
    return torch.cat([around, rest[0]]).sort().values


def holov(x: Tensor, attention: Tensor, keep: int, crops: int = 16) -> Tensor:
    parts, scores = x[0].chunk(crops), []
    attentions = attention[0].chunk(crops)
    for part, own in zip(parts, attentions, strict=True):
        similar = unit(part) @ unit(part).mT * (1 - torch.eye(len(part), device=x.device))
        mean = similar.sum(1) / (len(part) - 1)
        spread = (similar - mean[:, None]).square().sum(1) / (len(part) - 1)
        own = own * 1e3
        scores.append((own + 0.09 * spread * own.mean() / (spread.mean() + 1e-6)).mean())
    weights = torch.stack(scores) / torch.stack(scores).sum()
    budgets = (weights * keep).floor().long()
    budgets[weights.topk(keep - int(budgets.sum())).indices] += 1
    chosen, start = [], 0
    for own, budget in zip(attentions, budgets.tolist(), strict=True):
        chosen.append(start + own.topk(min(budget, len(own))).indices)
        start += len(own)
    return torch.cat(chosen)


def outliers(attention: Tensor) -> Tensor:
    low, high = attention.quantile(torch.tensor([0.25, 0.75], device=attention.device), -1)
    return attention.topk(int((attention > high + 1.5 * (high - low)).sum()), -1).indices


def prumerge(x: Tensor, key: Tensor, attention: Tensor, kept: Tensor) -> Tensor:
    similar = unit(rows(key, kept)) @ unit(key).mT
    similar.scatter_(2, kept[..., None], -torch.inf)
    near = similar.topk(32, -1).indices
    taken = x[0, near[0]] * attention[0, near[0]][..., None]
    gone = others(kept, x.shape[1])
    rest = (rows(x, gone) * attention.gather(1, gone)[..., None]).sum(1, keepdim=True)
    return torch.cat([rows(x, kept) + taken.sum(1)[None], rest], 1)


def prumerge_plus(attention: Tensor) -> Tensor:
    top, size = outliers(attention), attention.shape[1]
    stride = max(1, size // max(1, top.shape[1]) // 3)
    return torch.cat([top[0], torch.arange(0, size - 1, stride, device=top.device)]).unique()


def vispruner(x: Tensor, attention: Tensor, keep: int) -> Tensor:
    order = attention.argsort(-1, descending=True)
    important, rest = order[:, : keep // 2], order[:, keep // 2 :]
    return torch.cat([important, rest.gather(1, rounds(rows(x, rest), keep - keep // 2))], 1).sort(-1).values


def windows(scores: Tensor, grid: tuple[int, int], window: tuple[int, int], each: int) -> Tensor:
    (height, width), (tall, wide) = grid, window
    cells = scores.view(height // tall, tall, width // wide, wide).transpose(1, 2).reshape(-1, tall * wide)
    top = cells.topk(each, -1).indices
    cell = torch.arange(len(cells), device=scores.device)[:, None]
    row = cell // (width // wide) * tall + top // wide
    return (row * width + cell % (width // wide) * wide + top % wide).view(1, -1)


def vscan(x: Tensor, shallow: Tensor, deep: Tensor, keep: int, grid: tuple, window: tuple) -> tuple[Tensor, Tensor]:
    count = x.shape[1] // (window[0] * window[1])
    local = windows(shallow, grid, window, keep // 2 // count)
    rest = deep.scatter(1, local, -torch.inf).topk(keep - local.shape[1], -1).indices
    kept = torch.cat([local, rest], 1).sort(-1).values
    gone = others(kept, x.shape[1])
    into = (unit(rows(x, gone)) @ unit(rows(x, kept)).mT).argmax(-1)
    tokens = rows(x, kept)
    tokens = tokens.scatter_add(1, into[..., None].expand(-1, -1, x.shape[2]), rows(x, gone))
    sizes = torch.ones_like(tokens[..., :1]).scatter_add(
        1, into[..., None], torch.ones_like(gone[..., None], dtype=x.dtype)
    )
    return kept, tokens / sizes


def visionzip(x: Tensor, metric: Tensor, attention: Tensor, dominant: int, contextual: int) -> tuple[Tensor, Tensor]:
    first = best(attention, dominant)
    gone = others(first, x.shape[1])
    step = gone.shape[1] // contextual
    targets = torch.arange(0, gone.shape[1], step, device=x.device)[:contextual]
    merged = others(targets[None], gone.shape[1])[0]
    keys = unit(rows(metric, gone))
    assign = (keys[:, merged] @ keys[:, targets].mT).argmax(-1)
    one_hot = torch.nn.functional.one_hot(assign, len(targets)).to(x.dtype)
    rest = rows(x, gone)
    means = one_hot.mT @ rest[:, merged] / one_hot.sum(1).clamp(min=1)[..., None]
    return torch.cat([first, gone[:, targets]], 1), torch.cat([rows(x, first), rest[:, targets] + means], 1)


def aim(x: Tensor) -> Tensor:
    for _ in range(2):
        x, _ = tome(x, x, x.shape[1] // 2)
    return x


def scope(x: Tensor, attention: Tensor, keep: int) -> Tensor:
    similar = (unit(x) @ unit(x).mT)[0]
    covered, free, picks = torch.zeros_like(similar[0]), torch.ones_like(similar[0], dtype=torch.bool), []
    for _ in range(keep):
        gain = (similar - covered).clamp(min=0).sum(1) * attention[0]
        picks.append(gain.masked_fill(~free, -torch.inf).argmax())
        free[picks[-1]] = False
        covered = torch.maximum(covered, similar[picks[-1]])
    return torch.stack(picks)


def conditional(x: Tensor, text: Tensor, keep: int) -> Tensor:
    """CDPruner with its relevance."""
    relevance = -(unit(x) @ unit(text).mT).mean(-1)
    relevance = (relevance - relevance.min() + 1e-6) / (relevance.max() - relevance.min())
    return cdpruner(x[0], keep, relevance[0])


def quadtree(x: Tensor, grid: tuple[int, int], depth: int = 2, threshold: float = 0.8) -> Tensor:
    """The leader of each patch."""
    (height, width), units, size = grid, unit(x).unflatten(1, grid), x.shape[1]
    leaders = torch.arange(size, device=x.device)
    place = leaders.view(grid)
    for level in range(depth, -1, -1):
        tall, wide = height >> level, width >> level
        means = units.unflatten(2, (-1, wide)).unflatten(1, (-1, tall)).mean((2, 4))
        many = tall * wide
        alike = (means.square().sum(-1) * many - 1) / (many - 1) > threshold
        alike = alike.repeat_interleave(tall, 1).repeat_interleave(wide, 2).flatten(1)
        corner = place[::tall, ::wide].repeat_interleave(tall, 0).repeat_interleave(wide, 1).flatten()
        leaders = torch.where(alike[0], corner, leaders)
    return leaders


def pair(x: Tensor) -> Tensor:
    similar = (unit(x) @ unit(x).mT)[0].fill_diagonal_(-torch.inf)
    place = int(similar.argmax())
    first, second = sorted(divmod(place, x.shape[1]))
    share = similar[first, second]
    merged = x.clone()
    merged[:, first] = share * x[:, first] + (1 - share) * x[:, second]
    return torch.cat([merged[:, :second], merged[:, second + 1 :]], 1)


def cases(given: Inputs) -> Iterator[Case]:
    size, keep, grid = given.tokens, given.keep, given.grid
    window = (8, 8) if size == 16384 else (6, 6)
    x, metric = given.randn(1, size, WIDTH), given.randn(1, size, HEAD, seed=1)
    attention, shallow = given.rand(1, size, seed=2) ** 8, given.rand(1, size, seed=3)
    query, key = given.randn(1, 16, size + 1, HEAD, seed=4), given.randn(1, 16, size + 1, HEAD, seed=5)
    tiles, text = given.rand(1, 5, size, seed=6), given.randn(1, 32, WIDTH, seed=7)

    def ours_fastervlm() -> object:
        return methods.fastervlm(methods.class_attention(query, key), keep=keep)

    yield Case("fastervlm", ours_fastervlm, lambda: best(class_row(query, key), keep))
    yield Case(
        "hired",
        lambda: methods.hired(shallow, tiles, keep=keep, grid=grid, tiles=(2, 2)),
        lambda: hired(shallow, tiles, keep, grid),
    )
    yield Case(
        "hiprune",
        lambda: methods.hiprune(shallow, attention, keep=keep, grid=grid),
        lambda: hiprune(shallow, attention, keep, grid[1]),
    )
    yield Case("holov", lambda: methods.holov(attention, keep=keep), lambda: holov(x, attention, keep), 2)
    yield Case("prumerge_select", lambda: methods.prumerge_select(attention), lambda: outliers(attention))
    top = plans.keep(attention, keep)
    yield Case(
        "prumerge",
        lambda: methods.prumerge(x, metric, attention, top),
        lambda: prumerge(x, metric, attention, top.indices),
        2,
    )
    yield Case(
        "prumerge_plus_select", lambda: methods.prumerge_plus_select(attention), lambda: prumerge_plus(attention)
    )
    yield Case(
        "vispruner",
        lambda: methods.vispruner(x, attention, keep=keep, important=keep // 2),
        lambda: vispruner(x, attention, keep),
        3,
    )
    yield Case(
        "vscan",
        lambda: _merged(methods.vscan(x, shallow, attention, keep=keep, grid=grid, window=window), x),
        lambda: vscan(x, shallow, attention, keep, grid, window),
        2,
    )
    yield Case(
        "visionzip",
        lambda: _merged(plans.concat(*methods.visionzip(attention, metric, dominant=keep - 10, contextual=10)), x),
        lambda: visionzip(x, metric, attention, keep - 10, 10),
    )

    def ours_aim() -> object:
        merged = x
        for plan in methods.aim_merge(x):
            merged = plans.apply(plan, merged)
        return merged

    yield Case("aim_merge", ours_aim, lambda: aim(x), 2)
    yield Case("aim_pair", lambda: methods.aim_pair(x), lambda: pair(x), 2)
    yield Case("dtoma_merge", lambda: methods.dtoma_merge(x, grid, depth=2), lambda: quadtree(x, grid))
    yield Case("divprune", lambda: methods.divprune(x, keep=keep), lambda: divprune(x[0], keep), 3)

    def ours_cdpruner() -> object:
        return methods.cdpruner(x, methods.cdpruner_relevance(x, text), keep=keep)

    yield Case("cdpruner", ours_cdpruner, lambda: conditional(x, text, keep), 3)
    yield Case("scope", lambda: methods.scope(x, attention, keep=keep), lambda: scope(x, attention, keep), 3)


def _merged(plan: plans.Merge, x: Tensor) -> tuple[object, Tensor]:
    return plan, plans.apply(plan, x)
