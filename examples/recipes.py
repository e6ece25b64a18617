"""Rules that are a few lines of this library and of PyTorch: learned parts with weights of their own, and compositions.

    python examples/recipes.py

Learned parts are modules of PyTorch, whose weights come from ``load_state_dict``; what they give goes into the library
as scores, weights or gates, and nothing waits for the device unless a line says so.
"""

from collections.abc import Sequence
from typing import Optional

import torch
from torch import Tensor, nn

import pyramid_ops
from pyramid_ops import cost, plans, schedules
from pyramid_ops.results import Keep, LevelSelection, Merge, PackedLevelSelection


class Allocator(nn.Module):
    """A learned score for each token, and a learned share of the tokens for each level."""

    def __init__(self, width: int, levels: int, hidden: int = 64):
        super().__init__()
        self.scorer = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, 1))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, levels), nn.Softmax(-1))

    def forward(
        self, levels: Sequence[Tensor], text: Tensor, keep: int, gates: Optional[Tensor] = None
    ) -> PackedLevelSelection:
        """Of each sample `keep` tokens, packed; of levels whose gate is closed none."""
        (batch, _, _), sizes = levels[0].shape, [x.shape[1] for x in levels]
        shares = self.head(text.mean(1)).float()
        budgets = pyramid_ops.allocate_budgets_batch(keep, shares if gates is None else shares * gates, sizes)
        bounds = [torch.arange(0, batch * size + 1, size, dtype=torch.int32, device=text.device) for size in sizes]
        return pyramid_ops.select_topk_levels_packed(
            [x.flatten(0, 1) for x in levels],
            bounds,
            budgets,
            max_seqlen=max(sizes),
            capacity=keep,
            saliency=[self.scorer(x).flatten().float() for x in levels],
        )


class LevelGates(nn.Module):
    """Which levels a query needs: a predictor, or a Gumbel gate, which at inference is open above one half."""

    def __init__(self, width: int, levels: int, hidden: int = 64):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, levels), nn.Sigmoid())

    def forward(self, query: Tensor) -> Tensor:
        """float32 `[B, L]` of 0 and 1: weights of budgets that switch levels off."""
        return (self.mlp(query) > 0.5).float()


class LearnedPyramid(nn.Module):
    """Levels by a convolution of stride 2 each."""

    def __init__(self, levels: int, channels: int = 3):
        super().__init__()
        self.steps = nn.ModuleList(nn.Conv2d(channels, channels, 5, 2, 2) for _ in range(levels - 1))

    def forward(self, images: Tensor) -> list[Tensor]:
        levels = [images]
        for step in self.steps:
            levels.append(step(levels[-1]))
        return levels


class CrossLevelAttention(nn.Module):
    """All levels look at each other before tokens are chosen."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        x = torch.cat(list(levels), 1)
        return [part.contiguous() for part in (x + self.attention(x, x, x)[0]).split([y.shape[1] for y in levels], 1)]


#: Which levels a kind of query reads, and what share of the tokens each level of five gets for it.
RANGES = {"global": (2, 3, 4), "local": (0, 1, 2), "middle": (1, 2, 3)}
STRATEGIES = {"text": (400, 300, 150, 100, 50), "scene": (100, 150, 250, 300, 200), "count": (350, 300, 200, 100, 50)}


def select_range(levels: Sequence[Tensor], kind: str, keep: int) -> LevelSelection:
    """The most salient tokens of the levels that a kind of query reads; indices name levels of the pyramid."""
    read = RANGES[kind]
    tokens, indices = pyramid_ops.select_topk_levels([levels[k] for k in read], keep, None)
    indices[..., 0] += read[0]
    return LevelSelection(tokens, indices)


def strategy_budgets(kind: str, sizes: Sequence[int], total: int) -> list[int]:
    """How many tokens each level keeps for a kind of query."""
    weights = [share / sum(STRATEGIES[kind]) for share in STRATEGIES[kind]]
    return pyramid_ops.allocate_budgets(total, weights, sizes, rule="largest_remainder")


def bounded_budgets(relevance: Tensor, sizes: Sequence[int], total: int) -> Tensor:
    """Budgets in proportion to the relevance of levels or patches, each at least 64 and at most 400."""
    return pyramid_ops.allocate_budgets_batch(total, relevance, sizes, minimum=64, maximum=400, surplus="weight")


def merge_alike(x: Tensor, threshold: float) -> Merge:
    """ToMe by a threshold: even tokens that are more alike to an odd one join the most similar token that stays."""
    stays = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    stays[:, ::2] = pyramid_ops.best_match(x[:, ::2], x[:, 1::2]).similarity <= threshold
    return plans.join(x, plans.keep(torch.zeros_like(stays, dtype=torch.float32), candidates=stays))


def merge_then_prune(metric: Tensor, scores: Tensor, r: int, keep: int) -> Keep | Merge:
    """r tokens merged away, then the best rows of what is left: one plan."""
    merged = plans.tome(metric, r, order="original")
    return plans.then(merged, plans.keep(plans.apply(merged, scores[..., None], mode="amax")[..., 0], keep))


def rollout(queries: Sequence[Tensor], keys: Sequence[Tensor]) -> Tensor:
    """Attention rollout of the class token, from `[B, H, N, D]` of each layer: a row of the product of all (A + I) / 2.

    From the last layer to the first, so that it stays one row.
    """
    row = torch.zeros(queries[0].shape[0], queries[0].shape[2], device=queries[0].device)
    row[:, 0] = 1
    for query, key in zip(reversed(queries), reversed(keys), strict=True):
        passed = pyramid_ops.attention_importance(query, key, query_weights=row, query_reduction="sum")
        row = 0.5 * row + 0.5 * passed
    return row


def rank_adaptive(attention: Tensor, scale: float = 1.0) -> int:
    """How many tokens a layer keeps by SparseVLM's paper: n − scale · (n − rank) of text-to-image attention `[T, n]`.

    The authors' code has fixed numbers. Waits for the device.
    """
    size = attention.shape[-1]
    return size - int(scale * (size - int(torch.linalg.matrix_rank(attention.float()))))


def choose_method(model: str, tokens: int, text: int, budget: int) -> tuple[str, schedules.Schedule]:
    """Of the methods that read at most so many image tokens a layer the one whose prefill takes most of a model.

    All cost the same or less: what is spent is what is kept.
    """
    language = cost.MODELS[model].language
    found = {name: schedules.at_budget(name, tokens, language.layers, budget) for name in schedules.METHODS}
    fitting = {name: schedule for name, schedule in found.items() if schedule}
    best = max(fitting, key=lambda name: cost.prefill_flops(language, text, fitting[name].tokens))
    return best, fitting[best]


def levels_kept(selection: LevelSelection, levels: int) -> Tensor:
    """How many tokens of each level a selection keeps, `[B, L]`."""
    return torch.stack([(selection.indices[..., 0] == level).sum(1) for level in range(levels)], 1)


def main() -> None:
    torch.manual_seed(0)
    levels = [torch.randn(2, side * side, 32) for side in (16, 8, 4, 2)]
    text = torch.randn(2, 9, 32)
    with torch.inference_mode():
        gates = LevelGates(32, 4)(text.mean(1))
        allocator = Allocator(32, 4)
        allocator.load_state_dict(Allocator(32, 4).state_dict())
        selection = allocator(levels, text, 40, gates)
        print(f"gates {gates.tolist()}, tokens {tuple(selection.tokens.shape)}")
        print(
            f"levels of a top-k over all: {levels_kept(pyramid_ops.select_topk_levels(levels, 40, None), 4).tolist()}"
        )
        name, schedule = choose_method("llava-1.5-7b", 576, 64, 192)
        print(f"{name}: {sum(schedule.tokens) // len(schedule.tokens)} image tokens a layer")


if __name__ == "__main__":
    main()
