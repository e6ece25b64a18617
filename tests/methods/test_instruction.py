"""Methods guided by the text against plain code for each sample."""

import pytest
import torch

from pyramid_ops import methods
from tests.methods.layouts import (
    LAYOUTS,
    best,
    check,
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
