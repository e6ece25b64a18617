"""examples/recipes.py against plain code."""

import pathlib
import runpy
from types import SimpleNamespace

import pytest
import torch

import pyramid_ops
from pyramid_ops import cost, plans, schedules
from tests.methods.layouts import best, probabilities, unit

PATH = pathlib.Path(__file__).parents[2] / "examples" / "recipes.py"
recipes = SimpleNamespace(**runpy.run_path(str(PATH)))
SIDES = (8, 4, 2)


def levels(seed=0, width=16):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, side * side, width, generator=generator) for side in SIDES]


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def test_allocator_and_gates():
    torch.manual_seed(1)
    x, text = levels(), torch.randn(2, 5, 16)
    allocator, gates = recipes.Allocator(16, 3), torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
    other = recipes.Allocator(16, 3)
    other.load_state_dict(allocator.state_dict())
    selection = other(x, text, 20, gates)
    tokens, indices = selection.tokens.view(2, 20, 16), selection.indices.view(2, 20, 2)
    for b in range(2):
        shares = (allocator.head(text[b].mean(0)) * gates[b]).tolist()
        budgets = pyramid_ops.allocate_budgets(
            20, [share / sum(shares) for share in shares], [side * side for side in SIDES], rule="largest_remainder"
        )
        for level, budget in enumerate(budgets):
            of_level = indices[b][indices[b, :, 0] == level, 1].tolist()
            scores = allocator.scorer(x[level][b])[:, 0]
            assert sorted(of_level) == sorted(best(scores, budget, range(len(scores))))
        at = [x[level][b, i % x[level].shape[1]] for level, i in indices[b].tolist()]
        assert torch.equal(tokens[b], torch.stack(at))
    found = recipes.LevelGates(16, 3)(text.mean(1))
    assert {*found.flatten().tolist()} <= {0.0, 1.0}


def test_learned_pyramid_and_cross_level_attention():
    pictures = recipes.LearnedPyramid(3)(torch.rand(1, 3, 32, 32))
    assert [tuple(x.shape[2:]) for x in pictures] == [(32, 32), (16, 16), (8, 8)]
    attended = recipes.CrossLevelAttention(16, 2)(levels())
    assert [x.shape for x in attended] == [x.shape for x in levels()]
    assert pyramid_ops.select_topk_levels(attended, 9).tokens.shape == (2, 9, 16)


@pytest.mark.parametrize("kind", ["global", "local", "middle"])
def test_ranges(kind):
    x = [*levels(), *(part[:, :3] for part in levels(1)[:2])]
    tokens, indices = recipes.select_range(x, kind, 5)
    for b in range(2):
        assert {*indices[b, :, 0].tolist()} <= {*recipes.RANGES[kind]}
        assert torch.equal(tokens[b], torch.stack([x[level][b, i] for level, i in indices[b].tolist()]))


def test_budgets_by_kind_and_within_bounds():
    assert recipes.strategy_budgets("text", [4096, 1024, 256, 64, 16], 1000) == [470, 300, 150, 64, 16]
    budgets = recipes.bounded_budgets(torch.tensor([[0.9, 0.05, 0.05]]), [1000] * 3, 600)
    assert budgets.tolist() == [[400, 100, 100]]
    selection = pyramid_ops.select_topk_levels(levels(), 30)
    assert recipes.levels_kept(selection, 3).sum(1).tolist() == [30, 30]


@pytest.mark.parametrize("threshold", [0.2, 0.5, 2.0])
def test_merge_alike(threshold):
    x = torch.randn(2, 31, 6, generator=torch.Generator().manual_seed(2))
    plan = recipes.merge_alike(x, threshold)
    for b in range(2):
        similar = unit(x[b]) @ unit(x[b]).mT
        gone = [i for i in range(0, 31, 2) if similar[i, 1::2].max() > threshold]
        stays = [i for i in range(31) if i not in gone]
        assert plan.indices[b, : plan.counts[b]].tolist() == stays
        for i in gone:
            assert plan.rows[b, i] == similar[i, stays].argmax()


def test_merge_then_prune():
    generator = torch.Generator().manual_seed(3)
    x, scores = torch.randn(2, 30, 8, generator=generator), torch.rand(2, 30, generator=generator)
    plan = recipes.merge_then_prune(x, scores, 10, 6)
    merged = plans.tome(x, 10, order="original")
    for b in range(2):
        most = torch.tensor([scores[b, merged.rows[b] == row].max() for row in range(20)])
        rows = sorted(best(most, 6, range(20)))
        assert plan.indices[b].tolist() == merged.indices[b, rows].tolist()
        for place, row in enumerate(rows):
            assert torch.equal(plan.rows[b] == place, merged.rows[b] == row)


def test_rollout():
    generator = torch.Generator().manual_seed(4)
    queries, keys = torch.randn(2, 3, 2, 4, 20, 16, generator=generator)
    found = recipes.rollout(list(queries), list(keys))
    for b in range(2):
        product = torch.eye(20, dtype=torch.float64)
        for query, key in zip(queries[:, b], keys[:, b], strict=True):
            product = 0.5 * (probabilities(query, key, causal=False).mean(0) + torch.eye(20)) @ product
        torch.testing.assert_close(found[b].double(), product[0], rtol=1e-4, atol=1e-6)


def test_counts_and_methods_on_the_host():
    attention = torch.rand(5, 40) @ torch.eye(40)
    assert recipes.rank_adaptive(attention) == 5
    assert recipes.rank_adaptive(attention, 0.5) == 40 - 17
    name, schedule = recipes.choose_method("llava-1.5-7b", 576, 64, 200)
    assert sum(schedule.tokens) // 32 <= 200
    language = cost.MODELS["llava-1.5-7b"].language
    for other in schedules.METHODS:
        found = schedules.at_budget(other, 576, language.layers, 200)
        spent = cost.prefill_flops(language, 64, schedule.tokens)
        assert not found or cost.prefill_flops(language, 64, found.tokens) <= spent
    assert name in schedules.METHODS


def test_it_runs(capsys):
    recipes.main()
    assert "image tokens a layer" in capsys.readouterr().out
