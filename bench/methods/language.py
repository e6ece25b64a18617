"""Methods inside the language model, image tokens before 64 of text: eager code with the attention matrix, and ours."""

from collections.abc import Iterator

import torch
from torch import Tensor

from bench.methods.case import GROUPS, HEAD, HEADS, TEXT, WIDTH, Case, Inputs, best, flags, others, rows, unit
from pyramid_ops import methods, plans


def probabilities(query: Tensor, key: Tensor, causal: bool = True, temperature: float = 1.0) -> Tensor:
    """`[H, Nq, N]`, the queries being the last."""
    logits = query[0] @ key[0].repeat_interleave(HEADS // GROUPS, 0).mT * (HEAD**-0.5 / temperature)
    if causal:
        count, size = logits.shape[1:]
        past = torch.ones(count, size, dtype=torch.bool, device=logits.device).tril(size - count)
        logits = logits.masked_fill(~past, -torch.inf)
    return logits.softmax(-1, dtype=torch.float32)


def with_text(scores: Tensor, keep: int, size: int) -> Tensor:
    """The best image tokens, and all text."""
    text = torch.arange(size, size + TEXT, device=scores.device)
    return torch.cat([best(scores[:size], keep), text])


def fastv(query: Tensor, key: Tensor, keep: int) -> Tensor:
    scores = probabilities(query[:, :, -1:], key).mean(0)[0]
    return with_text(scores, keep, len(scores) - TEXT)


def raters(hidden: Tensor) -> Tensor:
    image, text = hidden[:, :-TEXT], hidden[:, -TEXT:]
    weights = (image @ text.mT).softmax(2).mean(1)
    return (weights > weights.mean()).nonzero()[:, 1]


def sparsevlm(query: Tensor, key: Tensor, rating: Tensor, keep: int) -> Tensor:
    scores = probabilities(query[:, :, -TEXT:], key).mean(0)[rating].mean(0)
    return with_text(scores, keep, len(scores) - TEXT)


def density_peaks(x: Tensor, clusters: int, k: int) -> tuple[Tensor, Tensor]:
    """(centers, the place among them of each token's) of `[B, N, D]`, as SparseVLM and PruneVid have them."""
    distance = torch.cdist(x, x) / x.shape[2] ** 0.5
    density = (-distance.topk(k, -1, largest=False).values.square().mean(-1)).exp()
    density = density + torch.rand_like(density) * 1e-6
    denser = density[:, None] > density[:, :, None]
    most = distance.flatten(1).amax(1)[:, None, None]
    score = torch.where(denser, distance, most).amin(-1) * density
    centers = score.topk(clusters, -1).indices
    place = distance.gather(2, centers[:, None].expand(-1, x.shape[1], -1)).argmin(-1)
    return centers, place.scatter(1, centers, torch.arange(clusters, device=x.device).expand(len(x), -1))


def means(x: Tensor, place: Tensor, clusters: int) -> Tensor:
    one_hot = torch.nn.functional.one_hot(place, clusters).to(x.dtype)
    return one_hot.mT @ x / one_hot.sum(1).clamp(min=1)[..., None]


def recycle(hidden: Tensor, scores: Tensor, kept: Tensor) -> Tensor:
    gone = others(kept, hidden.shape[1] - TEXT)
    most = int(0.3 * gone.shape[1]) + 1
    x = rows(hidden, gone.gather(1, scores.gather(1, gone).topk(most, -1).indices))
    clusters = most // 10 + 1
    _, place = density_peaks(x, clusters, clusters)
    return means(x, place, clusters)


def fitprune(query: Tensor, key: Tensor, keep: int) -> Tensor:
    attention = probabilities(query, key).amax(0)
    size = len(attention) - TEXT
    return with_text(attention[:size].sum(0) * attention[size:].sum(0), keep, size)


def prunevid(query: Tensor, key: Tensor, keep: int) -> Tensor:
    scores = probabilities(query[:, :, -TEXT:], key).amax((0, 1))
    return with_text(scores, keep, len(scores) - TEXT)


def aim(query: Tensor, key: Tensor, keep: int) -> Tensor:
    attention = probabilities(query, key, causal=False, temperature=0.1)
    flow = torch.full_like(attention[:, :1], 1 / attention.shape[1])
    for _ in range(5):
        flow = flow @ attention
    scores = flow[:, 0].square().mean(0).sqrt()
    return with_text(scores, keep, len(scores) - TEXT)


def dart(hidden: Tensor, key: Tensor, keep: int) -> Tensor:
    norms, size = key[0].abs().sum((0, 2)), hidden.shape[1] - TEXT
    pivots = norms[:size].topk(4).indices
    text = size + norms[size:].topk(4).indices
    units, stay = unit(hidden[0]), set(pivots.tolist())
    for pivot in [*pivots.tolist(), *text.tolist()]:
        similar = units[:size] @ units[pivot]
        similar[list(stay)] = torch.inf
        stay |= {*similar.topk(keep // 8, largest=False).indices.tolist()}
    chosen = torch.tensor(sorted(stay), device=hidden.device)
    return torch.cat([chosen, torch.arange(size, size + TEXT, device=hidden.device)])


def cases(given: Inputs) -> Iterator[Case]:
    size, keep = given.tokens, given.keep
    length = size + TEXT
    query, key = given.randn(1, HEADS, length, HEAD), given.randn(1, GROUPS, length, HEAD, seed=1)
    hidden, scores = given.randn(1, length, WIDTH, seed=2), given.rand(1, length, seed=3)
    image = (torch.arange(length, device=given.device) < size)[None]
    last, rating = query[:, :, -1:].contiguous(), torch.arange(0, TEXT, 2, device=given.device)
    marks = flags(size + rating[None], length)
    options = {"keep": keep, "capacity": keep + TEXT}
    yield Case("fastv", lambda: methods.fastv(last, key, image, **options), lambda: fastv(query, key, keep))
    yield Case("sparsevlm_raters", lambda: methods.sparsevlm_raters(hidden, image, ~image), lambda: raters(hidden))
    yield Case(
        "sparsevlm",
        lambda: methods.sparsevlm(query, key, image, marks, **options),
        lambda: sparsevlm(query, key, rating, keep),
    )
    best_plan = plans.keep(scores, keep, candidates=image)
    deleted = image & ~plans.mask(best_plan)

    def ours_recycle() -> object:
        plan = methods.sparsevlm_recycle(hidden, scores, deleted, number=size - keep)
        return plans.apply(plan, hidden)

    yield Case("sparsevlm_recycle", ours_recycle, lambda: recycle(hidden, scores, best_plan.indices), 2)
    yield Case(
        "fitprune",
        lambda: methods.fitprune(query, key, image, ~image, **options),
        lambda: fitprune(query, key, keep),
        2,
    )
    groups = torch.tensor([0, size, length], device=given.device)
    yield Case(
        "prunevid_llm",
        lambda: methods.prunevid_llm(query, key, image, ~image, groups, longest=size, **options),
        lambda: prunevid(query, key, keep),
    )
    yield Case("aim_prune", lambda: methods.aim_prune(query, key, image, **options), lambda: aim(query, key, keep), 2)
    each = keep // 8
    yield Case(
        "dart",
        lambda: methods.dart(hidden, key, image, ~image, each=each, capacity=4 + 8 * each + TEXT),
        lambda: dart(hidden, key, keep),
    )
