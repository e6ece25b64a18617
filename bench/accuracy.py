"""`python -m bench.accuracy [merging|attention|nearest]`: what float64 finds, and how much of it each precision finds.

Writes results/merging.md, attention.md and nearest.md.
"""

import functools
import pathlib
import sys

import torch
import torch.nn.functional as F
from torch import Tensor

import pyramid_ops

TOKENS = 2048
EAGER = (torch.float32, torch.float16, torch.bfloat16)


def data(kind: str, features: int) -> Tensor:
    """`[N, D]` float16: what a vision encoder's tokens can look like."""
    generator = torch.Generator().manual_seed(features)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    if kind == "near-duplicate frames":
        frame = randn(TOKENS // 4, features)
        x = torch.cat([frame + 0.02 * randn(TOKENS // 4, features) for _ in range(4)])
        return x[torch.randperm(TOKENS, generator=generator)].half()
    x = randn(TOKENS // 16, features)[torch.randint(0, TOKENS // 16, (TOKENS,), generator=generator)]
    x = x + 0.7 * randn(TOKENS, features)
    if kind.startswith("common mean"):
        x = x + int(kind.split("×")[1]) * randn(features)
    if kind.startswith("two massive"):
        x[:, :2] *= 300
    return x.half()


KINDS = ("clustered", "common mean ×3", "common mean ×10", "two massive dimensions ×300", "near-duplicate frames")


def eager(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    x = x.to(dtype)
    x = x / x.norm(dim=-1, keepdim=True)
    best, partner = (x[::2] @ x[1::2].mT).max(-1)
    return partner, best


def agreement(x: Tensor) -> list[str]:
    """Share of equal partners / overlap of the most similar quarter, for each way of matching."""
    units = F.normalize(x.double(), dim=-1)
    similarity, partner = (units[::2] @ units[1::2].mT).max(-1)
    r = len(partner) // 2
    top = set(similarity.topk(r).indices.tolist())
    ways = []
    for precision in ("grid", "high"):
        match = pyramid_ops.best_match(x[::2], x[1::2], precision=precision)
        ways.append((match.indices, match.similarity))
    ways += [eager(x, dtype) for dtype in EAGER]
    result = []
    for found, score in ways:
        order = score.double().argsort(dim=-1, descending=True, stable=True)[:r].tolist()
        result.append(f"{(found == partner).double().mean():.3f} / {len(top & set(order)) / r:.3f}")
    return result


def merging() -> list[str]:
    lines = [
        "# Partners that float64 finds",
        "",
        f"{TOKENS} tokens given in float16, even tokens matched with odd ones. Share of tokens with the partner that a",
        "float64 similarity gives / overlap of the most similar half of the even tokens with float64's. *eager* is",
        f"`x / x.norm()`, `@`, `max` in that dtype, on the CPU, torch {torch.__version__}.",
        "",
        "| data | D | grid | high | eager float32 | eager float16 | eager bfloat16 |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind in KINDS:
        for features in (64, 128, 1024, 4096):
            lines.append(f"| {kind} | {features} | " + " | ".join(agreement(data(kind, features))) + " |")
            print(lines[-1], flush=True)
    return lines


HEADS = 4
ATTENTION_TOKENS = 1024


def heads(kind: str, features: int) -> tuple[Tensor, Tensor]:
    """q and k `[1, H, N, D]` bfloat16: ordinary, peaked, with an attention sink, of large norms."""
    generator = torch.Generator().manual_seed(features)

    def randn(*shape: int) -> Tensor:
        return torch.randn(1, HEADS, *shape, generator=generator)

    q, k = randn(ATTENTION_TOKENS, features), randn(ATTENTION_TOKENS, features)
    if kind == "peaked, logits to ±34":
        q = q * 6.5
    if kind.startswith("attention sink"):
        direction = randn(1, features)
        q, k[:, :, 0] = q + direction, int(kind.split()[-1]) * features**-0.5 * direction[:, :, 0]
    if kind == "biased keys, logits to ±260":
        k = 2 * k + 30 * randn(1, features)
    return q.bfloat16(), k.bfloat16()


ATTENTION_KINDS = (
    "Gaussian",
    "peaked, logits to ±34",
    "attention sink, logit 10",
    "attention sink, logit 22",
    "biased keys, logits to ±260",
)


def column_means(q: Tensor, k: Tensor) -> Tensor:
    return torch.softmax(q @ k.mT * q.shape[3] ** -0.5, -1).mean((1, 2))[0]


def errors(q: Tensor, k: Tensor) -> list[str]:
    """Largest relative error of a column mean / overlap of the top quarter, for each way."""
    exact = column_means(q.double(), k.double())
    top = set(exact.topk(len(exact) // 4).indices.tolist())
    ways = [
        pyramid_ops.attention_importance(q, k, precision=precision, center_keys=centred)[0]
        for precision in ("grid", "high")
        for centred in (False, True)
    ]
    ways += [column_means(q.to(dtype), k.to(dtype)) for dtype in EAGER]
    result = []
    for scores in ways:
        order = scores.double().argsort(descending=True, stable=True)[: len(top)].tolist()
        error = float(((scores.double() - exact).abs() / exact).max())
        result.append(f"{error:.1e} / {len(top & set(order)) / len(top):.3f}")
    return result


def attention() -> list[str]:
    lines = [
        "# Column means of attention against a float64 softmax",
        "",
        f"{HEADS} heads, {ATTENTION_TOKENS} tokens given in bfloat16. Largest relative error of the mean attention",
        "that a token receives / overlap of the top quarter with float64's. *eager* is softmax and mean in",
        f"that dtype, on the CPU, torch {torch.__version__}. *centred*: `center_keys=True`. Probabilities are kept to",
        "2⁻³⁰ each: where a sink takes nearly everything, the others' means have few digits left.",
        "",
        "| data | D | grid | grid, centred | high | high, centred | eager float32 | eager float16 | eager bfloat16 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for kind in ATTENTION_KINDS:
        for features in (64, 128):
            lines.append(f"| {kind} | {features} | " + " | ".join(errors(*heads(kind, features))) + " |")
            print(lines[-1], flush=True)
    return lines


NEAREST_TOKENS, NEAREST_FEATURES, CLUSTERS, NEIGHBOURS, SEEDS = 576, 1024, 40, 7, 3
NEAREST_KINDS = ("random", "clustered", "common mean", "low rank", "video frames")


def tokens(kind: str, seed: int) -> Tensor:
    """`[N, D]` float32; video: 16 frames with 1 % noise, of which a tenth of the patches moves."""
    generator = torch.Generator().manual_seed(seed)
    count, features = NEAREST_TOKENS, NEAREST_FEATURES

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    if kind == "random":
        return randn(count, features)
    if kind == "common mean":
        return randn(count, features) + 2 * randn(1, features)
    if kind == "low rank":
        return randn(count, 64) @ randn(64, features) + 0.02 * randn(count, features)
    if kind == "clustered":
        centers = randn(count // 12, features)
        chosen = torch.randint(len(centers), (count,), generator=generator)
        return centers[chosen] + 0.5 * randn(count, features)
    frame, frames = randn(count // 16, features) + randn(1, features), []
    for _ in range(16):
        moved = torch.rand(len(frame), generator=generator) < 0.1
        frame = torch.where(moved[:, None], randn(*frame.shape) + frame.mean(0), frame)
        frames.append(frame + 0.01 * randn(*frame.shape))
    return torch.cat(frames)


def clusters(squares: Tensor) -> tuple[set, Tensor]:
    """DPC-KNN from squared distances: (centers, the center of each token)."""
    squares, index = squares.double(), torch.arange(len(squares))
    mean = squares.sort(1).values[:, :NEIGHBOURS].mean(1) / NEAREST_FEATURES
    denser = (mean[None] < mean[:, None]) | ((mean[None] == mean[:, None]) & (index[None] < index[:, None]))
    distance = torch.where(denser, squares.sqrt(), torch.inf).amin(1)
    distance[distance.isinf()] = squares.max().sqrt()
    centers = (distance * (-mean).exp()).sort(descending=True, stable=True).indices[:CLUSTERS]
    return set(centers.tolist()), centers[squares[:, centers].argmin(1)]


def eager_squares(x: Tensor, dtype: torch.dtype) -> Tensor:
    """a² + b² − 2 a b, as `cdist` by a matrix product."""
    x = x.to(dtype)
    norms = x.square().sum(1)
    return (norms[:, None] + norms - 2 * (x @ x.mT)).float().clamp(min=0)


def found_nearest(kind: str) -> list[str]:
    """Largest relative error of the 64 least distances / nearest tokens, centers and tokens with their center found."""
    errors, counts = [0.0] * 4, torch.zeros(4, 3, dtype=torch.int64)
    others = ~torch.eye(NEAREST_TOKENS, dtype=torch.bool)
    for seed in range(SEEDS):
        x = tokens(kind, seed)
        exact = torch.stack([(x.double() - row).square().sum(1) for row in x.double()])
        centers, own = clusters(exact)
        near = pyramid_ops.nearest(x, x, 64, metric="euclidean", exclude_self=True)
        found = pyramid_ops.dpc_knn(x[None], CLUSTERS, NEIGHBOURS)
        ours = set(found.centers[0].tolist()), found.centers[0][found.assignment[0]]
        ways = [(near.values, near.indices, ours)]
        for dtype in EAGER:
            squares = eager_squares(x, dtype)
            least = torch.where(others, squares, torch.inf).topk(64, largest=False)
            ways.append((least.values, least.indices, clusters(squares)))
        nearest = torch.where(others, exact, torch.inf).argmin(1)
        for way, (values, indices, (chosen, assigned)) in enumerate(ways):
            true = exact.gather(1, indices)
            errors[way] = max(errors[way], float(((values.double() - true) / true).abs().max()))
            counts[way] += torch.tensor(
                [(indices[:, 0] == nearest).sum(), len(centers & chosen), (assigned == own).sum()]
            )
    return [f"{error:.1e} / " + " / ".join(map(str, row)) for error, row in zip(errors, counts.tolist(), strict=True)]


def nearest() -> list[str]:
    lines = [
        "# Euclidean neighbours and DPC-KNN against float64",
        "",
        f"{SEEDS} times {NEAREST_TOKENS} × {NEAREST_FEATURES} tokens in float32, {CLUSTERS} clusters of {NEIGHBOURS}",
        "neighbours. Largest relative error of the squared distances to the 64 nearest / nearest tokens (of",
        f"{SEEDS * NEAREST_TOKENS}), centers (of {SEEDS * CLUSTERS}) and tokens with their center (of",
        f"{SEEDS * NEAREST_TOKENS}) as in float64. *eager* is a² + b² − 2ab in that dtype, then the rule in float64,",
        f"on the CPU, torch {torch.__version__}.",
        "",
        "| data | nearest, dpc_knn | eager float32 | eager float16 | eager bfloat16 |",
        "|---|---|---|---|---|",
    ]
    for kind in NEAREST_KINDS:
        lines.append(f"| {kind} | " + " | ".join(found_nearest(kind)) + " |")
        print(lines[-1], flush=True)
    return lines


PICKS = 192


def maxmin_picks(similarity: Tensor) -> set:
    """The most spread token, then always the one farthest from those picked, once each."""
    apart = 1 - similarity
    least = apart.clone().fill_diagonal_(torch.inf).amin(1)
    picks: list[int] = []
    while len(picks) < PICKS:
        picks.append(int(least.argmax()))
        least = apart[picks[-1]].clone() if len(picks) == 1 else torch.minimum(least, apart[picks[-1]])
        least[picks] = -torch.inf
    return set(picks)


def dpp_picks(similarity: Tensor, relevance: Tensor | None) -> set:
    """Greedy MAP inference of a determinantal point process by a Cholesky factor, in the dtype of the similarities."""
    if relevance is not None:
        relevance = relevance.to(similarity.dtype)
        similarity = relevance[:, None] * similarity * relevance
    left, picks = similarity.diagonal().clone(), []
    factor = torch.zeros(PICKS, len(similarity), dtype=similarity.dtype)
    for t in range(PICKS):
        picks.append(int(left.argmax()))
        j = picks[-1]
        factor[t] = (similarity[j] - factor[:t, j] @ factor[:t]) / left[j].sqrt()
        left = left - factor[t].square()
        left[picks] = -torch.inf
    return set(picks)


def coverage_picks(similarity: Tensor) -> set:
    covered, picks = torch.zeros(len(similarity), dtype=similarity.dtype), []
    for _ in range(PICKS):
        gain = (similarity - covered).clamp(min=0).sum(1)
        gain[picks] = -torch.inf
        picks.append(int(gain.argmax()))
        covered = torch.maximum(covered, similarity[picks[-1]])
    return set(picks)


def round_picks(similarity: Tensor) -> set:
    """What rounds of bipartite matching leave, in each of which the 8 most similar tokens go."""
    left = torch.arange(len(similarity))
    while len(left) > PICKS:
        even, odd = left[::2], left[1::2]
        most = similarity[even][:, odd].amax(1)
        order = most.argsort(descending=True, stable=True)[min(8, len(left) - PICKS) :]
        left = torch.cat([even[order], odd])
    return set(left.tolist())


def eager_similarity(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Cosines by a product in that dtype, then float32, as in the authors' code."""
    units = torch.nn.functional.normalize(x.to(dtype), dim=-1)
    similarity = units @ units.mT
    return similarity if dtype == torch.float64 else similarity.float()


def missed_picks(kind: str, rule: str) -> list[str]:
    """Picks that float64 makes and another way does not: ours in both precisions, then eager code in each dtype."""
    missed = [0] * (2 + len(EAGER))
    for seed in range(SEEDS):
        x = tokens(kind, seed)
        relevance = torch.rand(len(x), generator=torch.Generator().manual_seed(99 + seed)) + 1e-6
        weighted = relevance if rule.endswith("relevance") else None
        name = rule.split(",")[0]

        def plainly(similarity: Tensor, name: str = name, weighted: Tensor | None = weighted) -> set:
            if name == "dpp":
                return dpp_picks(similarity, weighted)
            return {"maxmin": maxmin_picks, "coverage": coverage_picks, "rounds": round_picks}[name](similarity)

        exact = plainly(eager_similarity(x, torch.float64).fill_diagonal_(1.0))
        given = None if weighted is None else weighted[None]
        pick = functools.partial(pyramid_ops.greedy_select, rule=name, relevance=given)
        if name == "rounds":
            pick = pyramid_ops.bipartite_prune
        ways = [set(pick(x[None], PICKS, precision=limbs).indices[0].tolist()) for limbs in ("high", "grid")]
        ways += [plainly(eager_similarity(x, dtype)) for dtype in EAGER]
        missed = [before + len(exact - way) for before, way in zip(missed, ways, strict=True)]
    return list(map(str, missed))


def greedy() -> list[str]:
    lines = [
        "# Greedy picks against float64",
        "",
        f"Of {SEEDS} times {PICKS} picks from {NEAREST_TOKENS} × {NEAREST_FEATURES} tokens in float32, how many that",
        "float64 makes are missing; *rounds*: of the tokens that `bipartite_prune` leaves. *eager*: cosines by a",
        "product in that dtype, the loop in float32, no token twice,",
        f"on the CPU, torch {torch.__version__}.",
        "",
        '| data | rule | `"high"` | `"grid"` | eager float32 | eager float16 | eager bfloat16 |',
        "|---|---|---|---|---|---|---|",
    ]
    for kind in NEAREST_KINDS:
        for rule in ("maxmin", "dpp", "dpp, relevance", "coverage", "rounds"):
            lines.append(f"| {kind} | {rule} | " + " | ".join(missed_picks(kind, rule)) + " |")
            print(lines[-1], flush=True)
    return lines


def main(*names: str) -> None:
    tables = {"merging": merging, "attention": attention, "nearest": nearest, "greedy": greedy}
    for name in names or tables:
        lines = tables[name]()
        (pathlib.Path(__file__).parent / "results" / f"{name}.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
