"""Methods guided by the text against plain code for each sample."""

import pytest
import torch

from pyramid_ops import methods, plans
from tests.methods.layouts import (
    LAYOUTS,
    best,
    check,
    dpc_knn,
    kept,
    places,
    probabilities,
    samples,
    together,
    with_text,
)


def raters(x) -> torch.Tensor:
    """A mask of the text tokens whose mean attention of the image is above their mean."""
    visual, words = x["hidden"][x["image"]].double(), x["hidden"][x["text"]].double()
    mean = (visual @ words.mT).softmax(1).mean(0)
    found = torch.zeros_like(x["text"])
    found[torch.tensor(places(x["text"]))[mean > mean.mean()]] = True
    return found


def mean_that_sees(attention: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """`[N]`: the mean over heads and the rows that see a token."""
    sees = torch.ones(attention.shape[1:]).tril() * rows[:, None]
    return attention.mean(0).mul(sees).sum(0) / sees.sum(0).clamp(min=1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sparsevlm_raters(layout):
    given = samples(layout, seed=3)
    x, where = together(layout, given)
    where.pop("key_mask", None)
    found, start = methods.sparsevlm_raters(x["hidden"], x["image"], x["text"], **where), 0
    for k, sample in enumerate(given):
        size = sample["image"].shape[0]
        own = found[start : start + size] if layout == "packed" else found[k, -size:]
        assert torch.equal(own, raters(sample)), k
        assert layout == "packed" or not found[k, :-size].any()
        start += size


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sparsevlm(layout):
    def call(x, where):
        only = {name: value for name, value in where.items() if name != "key_mask"}
        rate = methods.sparsevlm_raters(x["hidden"], x["image"], x["text"], **only)
        return methods.sparsevlm(x["query"], x["key"], x["image"], rate, keep=6, **where)

    def plainly(x):
        scores = mean_that_sees(probabilities(x["query"], x["key"]), raters(x))
        return with_text(x["image"], best(scores, 6, places(x["image"])))

    check(layout, call, plainly, seed=4)


def recycled(hidden, scores, deleted, number):
    """Means of clusters of the best deleted tokens, and the tokens that are their centers."""
    best_deleted = sorted(best(scores, int(0.3 * number) + 1, deleted))
    count = int(len(best_deleted) / 10) + 1
    centers, joined = dpc_knn(hidden[best_deleted], count, count)
    members = [[i for i, c in zip(best_deleted, joined, strict=True) if c == row] for row in range(count)]
    return torch.stack([hidden[tokens].mean(0) for tokens in members]), [best_deleted[c] for c in centers]


@pytest.mark.parametrize("size", [70, 161])
def test_sparsevlm_recycle(size):
    """Text, an image in part deleted, and text: what is left, in the order of the authors."""
    generator = torch.Generator().manual_seed(size)
    hidden, scores = torch.randn(3, size, 24, generator=generator), torch.rand(3, size, generator=generator)
    scores = scores.mul(16).floor()
    place = torch.arange(size) - torch.tensor([[0], [5], [9]])  # padded on the left
    question = (torch.arange(size) >= size - 7).expand(3, -1)
    image = (place >= 4) & ~question
    kept = image.sum(1) - (size - 30)
    first = plans.keep(scores, kept, candidates=image, forced=(place >= 0) & (place < 4), capacity=40)
    deleted = image & ~plans.mask(first)
    assert deleted.sum(1).tolist() == [size - 30] * 3
    again = methods.sparsevlm_recycle(hidden, scores, deleted, number=size - 30)
    plan = plans.concat(plans.concat(first, again), plans.keep(scores, 7, candidates=question))
    tokens = plans.apply(plan, hidden)
    for b in range(3):
        stay = places(place[b].ge(0) & (place[b] < 4)) + best(scores[b], int(kept[b]), places(image[b]))
        means, centers = recycled(hidden[b], scores[b], places(deleted[b]), size - 30)
        assert len(centers) == methods.retained.sparsevlm_recycle(size - 30)
        want = torch.cat([hidden[b, sorted(stay)], means, hidden[b, -7:]])
        torch.testing.assert_close(tokens[b, : plan.counts[b]], want)
        assert plan.indices[b, : plan.counts[b]].tolist() == [*sorted(stay), *centers, *range(size - 7, size)]


def test_sparsevlm_recycle_takes_what_is_there():
    hidden, scores = torch.randn(2, 40, 8), torch.rand(2, 40)
    deleted = torch.arange(40) < torch.tensor([[3], [0]])
    plan = methods.sparsevlm_recycle(hidden, scores, deleted, number=39)
    assert plan.counts.tolist() == [2, 0]
    assert plan.sizes.sum(1).tolist() == [3.0, 0.0]
    with pytest.raises(ValueError, match="sparsevlm_recycle: number: expected at most the 40 tokens, got 41"):
        methods.sparsevlm_recycle(hidden, scores, deleted, number=41)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("percentile", [0.0, 0.25, 0.75, 1.0])
def test_sparsevlm_described(layout, percentile):
    def call(x, where):
        return methods.sparsevlm_described(x["scores"], x["image"], percentile=percentile, **where)

    def plainly(x):
        above = torch.quantile(x["scores"][x["image"]], percentile)
        return with_text(x["image"], places(x["image"] & (x["scores"] > above)))

    given = samples(layout)
    for sample in given:
        sample["scores"] = (sample["hidden"][:, 0] * 4).round()
    assert kept(call(*together(layout, given)), layout, given) == [plainly(sample) for sample in given]


def test_sparsevlm_cosine():
    generator = torch.Generator().manual_seed(5)
    visual, text = (torch.randn(2, n, 24, generator=generator) for n in (30, 3))
    saliency = torch.rand(2, 30, generator=generator)
    there = torch.arange(30) < torch.tensor([[30], [21]])
    plan = methods.sparsevlm_cosine(visual, text, saliency, keep=[9, 5], key_mask=there)
    cosine = torch.nn.functional.cosine_similarity(visual.double()[:, :, None], text.double()[:, None], dim=-1)
    scores = 0.7 * cosine.amax(2) + 0.3 * saliency.double()
    for b, k in enumerate((9, 5)):
        assert plan.indices[b, :k].tolist() == sorted(best(scores[b], k, places(there[b])))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_fitprune(layout):
    def plainly(x):
        attention = probabilities(x["query"], x["key"]).amax(0)
        scores = attention[x["image"]].mean(0) * attention[x["text"]].sum(0)
        return with_text(x["image"], best(scores, 6, places(x["image"])))

    check(layout, lambda x, w: methods.fitprune(x["query"], x["key"], x["image"], x["text"], keep=6, **w), plainly)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_fitprune_described(layout):
    def plainly(x):
        scores = mean_that_sees(probabilities(x["query"], x["key"]), x["text"])
        return with_text(x["image"], best(scores, 6, places(x["image"])))

    def call(x, where):
        return methods.fitprune_described(x["query"], x["key"], x["image"], x["text"], keep=6, **where)

    check(layout, call, plainly)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_prunevid_llm(layout):
    """Groups of five tokens of each sample, some of them text; the padding is of the first one."""
    sizes = [sample["image"].shape[0] for sample in samples(layout)]
    longest = None if layout == "packed" else max(sizes)
    bounds, end = [0], 0
    for size in sizes:
        bounds += [end + (longest or size) - size + start for start in range(5, size, 5)]
        end += longest or size
        bounds.append(end)

    def call(x, where):
        keep = methods.retained.prunevid_llm(5)
        heads = x["query"], x["key"], x["image"], x["text"]
        return methods.prunevid_llm(*heads, torch.tensor(bounds), keep=keep, **where)

    def plainly(x):
        scores, image = probabilities(x["query"], x["key"])[:, x["text"]].amax((0, 1)), places(x["image"])
        groups = [[i for i in image if start <= i < start + 5] for start in range(0, len(x["image"]), 5)]
        return with_text(x["image"], [i for group in groups for i in best(scores, 2, group)])

    check(layout, call, plainly)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_aim_described(layout):
    def call(x, where):
        return methods.aim_described(x["query"], x["key"], x["image"], x["text"], keep=6, alpha=0.25, **where)

    def plainly(x):
        cross = mean_that_sees(probabilities(x["query"], x["key"]), x["text"])
        image = places(x["image"])
        own = torch.zeros_like(cross)
        alone = probabilities(x["query"][:, image], x["key"][:, image])
        own[image] = mean_that_sees(alone, torch.ones(len(image)))
        return with_text(x["image"], best(0.25 * cross + 0.75 * own, 6, image))

    check(layout, call, plainly)


@pytest.mark.parametrize("name", ["fitprune", "fitprune_described", "aim_described"])
def test_bad_text_is_named(name):
    heads, image = torch.zeros(1, 2, 5, 8), torch.ones(1, 5, dtype=torch.bool)
    options = {"alpha": 0.5} if name == "aim_described" else {}
    with pytest.raises(TypeError, match=f"{name}: text: expected dtype bool"):
        getattr(methods, name)(heads, heads, image, torch.zeros(1, 5), keep=1, **options)
