"""Counts by layer, and the cost model against what PyTorch counts on a model of the same shape."""

import pathlib
import re

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from pyramid_ops import __main__ as cli
from pyramid_ops import cost, plans, schedules

LAYERS = 32


@pytest.mark.parametrize("name", schedules.METHODS)
@pytest.mark.parametrize("tokens", [0, 1, 64, 576, 2880])
@pytest.mark.parametrize("layers", [0, 1, 28, 32])
def test_schedules_never_rise(name, tokens, layers):
    options = {"keep": 64} if name in ("before", "vscan") else {}
    found = schedules.METHODS[name](tokens, layers, **options)
    assert len(found.tokens) == layers
    assert all(0 <= after <= before for before, after in zip([tokens, *found.tokens], found.tokens, strict=False))
    drops = [k for k in range(1, layers) if found.tokens[k] < found.tokens[k - 1]]
    assert {layer for layer, _ in found.scored} >= set(drops)


def test_the_page_tells_what_the_command_prints(capsys):
    assert cli.main(["cost", "llava-1.5-7b", "--method", "pyramiddrop"]) == 0
    printed = capsys.readouterr().out
    root = pathlib.Path(__file__).parents[2]
    page = (root / "docs/methods.md").read_text()
    assert f"$ pyramid-ops cost llava-1.5-7b --method pyramiddrop\n{printed}```" in page
    shares = re.findall(r"(\d+ %) of", printed)
    assert "{} of the prompt's operations and {} of the cache".format(*shares) in (root / "README.md").read_text()


def test_published_counts():
    assert schedules.fastv(576, LAYERS, ratio=0.75).tokens == [576] * 2 + [144] * 30
    assert schedules.pyramiddrop(576, LAYERS).tokens == [576] * 8 + [288] * 8 + [144] * 8 + [72] * 8
    for budget in (192, 128, 64):
        found = schedules.sparsevlm(576, LAYERS, budget=budget).tokens
        # The authors name tables as if layers that score read what they leave.
        assert abs(sum([*found[1:], found[-1]]) / LAYERS - budget) < 8, budget
    assert schedules.sparsevlm(576, LAYERS).scored == [(3, "text"), (7, "text"), (16, "text")]
    assert schedules.prunevid(720, LAYERS).tokens == [720] * 10 + [288] * 22
    assert schedules.falling(100, 8).tokens == [100, 100, 80, 80, 60, 60, 40, 40]
    assert schedules.vscan(576, LAYERS, keep=128).tokens == [128] * 16 + [64] * 16
    assert schedules.aim(144, 28).tokens == [144] * 14 + [126, 108, 90, 72, 54, 36, 18] + [0] * 7


def test_fitprune_meets_its_limit_with_the_least_threshold():
    generator = torch.Generator().manual_seed(0)
    scores = [torch.rand(50, generator=generator).tolist() for _ in range(6)]
    every = sorted({-1.0, *(score for layer in scores for score in layer)})
    for limit in (0, 1, 17, 150, 299, 300):
        counts, threshold = schedules.fitprune_fit(scores, sum, limit)
        assert sum(counts) <= limit
        for other in every:
            left = []
            for layer in scores:
                left.append(min(sum(score > other for score in layer), *left[-1:], 50))
            assert other >= threshold or sum(left) > limit
            assert other != threshold or left == counts
    with pytest.raises(ValueError, match="fitprune_fit: limit: expected at least 5, got 3"):
        schedules.fitprune_fit(scores, lambda counts: 5 + sum(counts), 3)


@pytest.mark.parametrize("limit", [-1, 0, 49, 50, 51, 1000])
def test_most_tokens(limit):
    within = [n for n in range(101) if n // 2 * 2 <= limit]
    assert schedules.most_tokens(lambda n: n // 2 * 2, limit, 100) == max(within, default=-1)


def test_joint_budgets():
    assert schedules.joint(576, 64, 700) == (576, 64)
    assert schedules.joint(576, 64, 64) == (0, 64)
    assert schedules.joint(576, 64, 100, weights=(1, 1)) == (50, 50)
    assert schedules.joint(576, 64, 192, weights=(1, 2)) == (128, 64)  # 128 words are more than there are
    assert schedules.joint(576, 64, 100, weights=(9.5, 0.5), minimum=(0, 20)) == (80, 20)
    assert schedules.joint(20, 64, 84, weights=(1, 0.01)) == (20, 64)
    with pytest.raises(ValueError, match="joint: budget: expected at least the 64 tokens of text, got 63"):
        schedules.joint(576, 64, 63)
    with pytest.raises(ValueError, match="joint: weights: expected two numbers from 0 that are not both 0"):
        schedules.joint(576, 64, 100, weights=(0, 0))


def test_joint_selection():
    """The recipe of the docstring: the best of both kinds by one score."""
    scores = torch.rand(2, 30, generator=torch.Generator().manual_seed(0))
    there = torch.arange(30) >= torch.tensor([[0], [6]])
    plan = plans.keep(scores, 9, candidates=there)
    for b in range(2):
        among = there[b].nonzero()[:, 0].tolist()
        assert plan.indices[b].tolist() == sorted(sorted(among, key=lambda i: -scores[b, i])[:9])


@pytest.mark.parametrize("name", schedules.METHODS)
@pytest.mark.parametrize("budget", [0, 36, 100, 192, 400, 576])
def test_at_budget(name, budget):
    found = schedules.at_budget(name, 576, LAYERS, budget)
    if found is not None:
        assert sum(found.tokens) // LAYERS <= budget
    elif name in ("fastv", "pyramiddrop", "prunevid"):
        first = {"fastv": 2, "pyramiddrop": 8, "prunevid": 10}[name]
        assert first * 576 // LAYERS > budget
    else:
        assert name in ("none", "falling", "sparsevlm", "aim")
    if name == "before":
        assert found.tokens == [budget] * LAYERS
    if name == "sparsevlm" and budget in (192, 400):
        assert found == schedules.sparsevlm(576, LAYERS, budget=128 if budget == 192 else 192)
    if name == "fastv" and found and budget < 576:
        assert sum(found.tokens) / LAYERS > budget - 2


@pytest.mark.parametrize("name", schedules.METHODS)
def test_nothing_to_read_is_within_any_budget(name):
    assert schedules.at_budget(name, 0, LAYERS, 0).tokens == [0] * LAYERS


class Decoder(nn.Module):
    """A language model of a shape, without what costs no product."""

    def __init__(self, shape: cost.Language):
        super().__init__()
        d, kv = shape.width, shape.kv_heads * shape.head
        self.shape = shape
        self.q, self.o = nn.Linear(d, d), nn.Linear(d, d)
        self.k, self.v = nn.Linear(d, kv), nn.Linear(d, kv)
        self.gate, self.up, self.down = nn.Linear(d, shape.inner), nn.Linear(d, shape.inner), nn.Linear(shape.inner, d)
        self.logits = nn.Linear(d, shape.vocabulary)

    def heads(self, x):
        return x.unflatten(-1, (-1, self.shape.head)).movedim(-2, -3)

    def forward(self, counts):
        for n in counts:
            x = torch.empty(1, n, self.shape.width, device="meta")
            query, key, value = (self.heads(project(x)) for project in (self.q, self.k, self.v))
            repeat = query.shape[1] // key.shape[1]
            key, value = (y.repeat_interleave(repeat, 1) for y in (key, value))
            x = self.o(functional.scaled_dot_product_attention(query, key, value).movedim(-3, -2).flatten(-2))
            self.down(functional.silu(self.gate(x)) * self.up(x))
        self.logits(x[:, -1])


@pytest.mark.parametrize("name", cost.MODELS)
@pytest.mark.parametrize("method", ["none", "pyramiddrop"])
def test_prefill_is_what_pytorch_counts(name, method):
    language = cost.MODELS[name].language
    image = schedules.METHODS[method](576, language.layers).tokens
    with torch.device("meta"):
        decoder = Decoder(language)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        decoder([64 + count for count in image])
    assert counter.get_total_flops() == cost.prefill_flops(language, 64, image)


@pytest.mark.parametrize("name", ["llava-1.5-7b", "qwen2.5-vl-7b"])
def test_vision_tower_is_what_pytorch_counts(name):
    vision = cost.MODELS[name].vision
    d, n = vision.width, 64 + vision.extra
    with torch.device("meta"):
        square, up, down = nn.Linear(d, d), nn.Linear(d, vision.inner), nn.Linear(vision.inner, d)
        embed = nn.Conv2d(3, d, vision.patch, vision.patch)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        embed(torch.empty(1, 3, 8 * vision.patch, 8 * vision.patch, device="meta"))
        for _ in range(vision.layers):
            x = torch.empty(1, 1, n, d, device="meta")
            x = square(functional.scaled_dot_product_attention(square(x), square(x), square(x)))
            down(up(x) * up(x) if vision.gated else up(x))
    assert counter.get_total_flops() == cost.vision_flops(vision, 64)


def test_kv_bytes():
    language = cost.MODELS["qwen2.5-vl-7b"].language
    assert cost.kv_bytes(language, 10, [20] * 28) == 28 * 2 * 30 * 4 * 128 * 2


def test_the_command(capsys):
    assert cli.main(["cost", "llava-1.5-7b", "--method", "pyramiddrop", "--image", "336"]) == 0
    text = capsys.readouterr().out
    assert text == cost.report("llava-1.5-7b", methods=["pyramiddrop"]) + "\n"
    assert cli.main(["cost", "qwen2.5-vl-7b", "--all", "--image", "448", "--keep", "99"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n{name}\n" in text for name in schedules.METHODS)
    assert "256 image" in text
    assert cli.main(["cost", "llava-1.5-7b", "--all", "--budget", "100"]) == 0
    text = capsys.readouterr().out
    assert "fastv\n  image tokens by layer  0-1: 576, 2-31: 68\n" in text
    assert "pyramiddrop\n  none with at most 100 image tokens a layer\n" in text
    assert cli.main(["cost", "28,3584,28,4,18944,152064", "--tokens", "2880"]) == 0
    five = 5 * cost.vision_flops(cost.MODELS["llava-1.5-7b"].vision, 576) / 1e12
    assert f"2880 image and 64 text tokens, vision tower {five:.2f} TFLOP" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cost", "gpt"], "cost: model: expected one of llava-1.5-7b"),
        (["cost", "2,30,4,2,8,9"], "cost: model: expected heads that divide the width"),
        (["cost", "qwen2.5-vl-7b", "--image", "9"], "cost: image: expected at least 28 pixels, got 9"),
        (["cost", "llava-1.5-7b", "--text", "0"], "cost: text: expected at least 1, got 0"),
        (["cost", "llava-1.5-7b", "--keep", "64"], "cost: keep: expected only with one of the methods vscan, before"),
        (["cost", "llava-1.5-7b", "--method", "fastv", "--keep", "64"], "got 64 with fastv"),
        (["cost", "llava-1.5-7b", "--image", "672"], "cost: image: expected 336, what this encoder reads of any image"),
        (
            ["cost", "llava-1.5-7b", "--method", "before", "--keep", "10000"],
            "cost: keep: expected at most the 576 image tokens, got 10000",
        ),
        (["cost", "llava-1.5-7b", "--method", "before", "--keep", "-1"], "cost: keep: expected at least 0, got -1"),
        (["cost", "llava-1.5-7b", "--budget", "64"], "cost: budget: expected only with one of the methods fastv"),
        (["cost", "llava-1.5-7b", "--all", "--budget", "577"], "cost: budget: expected at most the 576 image tokens"),
        (
            ["cost", "llava-1.5-7b", "--method", "vscan", "--budget", "64", "--keep", "64"],
            "cost: keep: expected only without a budget",
        ),
    ],
)
def test_the_command_refuses(arguments, message, capsys):
    assert cli.main(arguments) == 2
    assert message in capsys.readouterr().err
