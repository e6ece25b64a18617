"""Methods inside the language model against plain code for each sample."""

import pytest
import torch

from pyramid_ops import methods
from tests.methods.layouts import LAYOUTS, best, check, kept, places, probabilities, samples, together, with_text

K = {"dense": [7, 4], "padded": [7, 4], "packed": [7, 4, 9]}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("method", [methods.fastv, methods.pyramiddrop])
@pytest.mark.parametrize("amount", ["one", "each", "device"])
def test_by_the_last_row(method, layout, amount):
    keep = {"one": 6, "each": K[layout], "device": torch.tensor(K[layout], dtype=torch.int32)}[amount]

    def call(x, where):
        return method(x["query"], x["key"], x["image"], keep=keep, **where)

    def plainly(x):
        k = 6 if amount == "one" else K[layout][given.pop(0)]
        scores = probabilities(x["query"], x["key"])[:, -1].mean(0)
        return with_text(x["image"], best(scores, k, places(x["image"])))

    given = list(range(len(K[layout])))
    check(layout, call, plainly)


@pytest.mark.parametrize("last", [-2, torch.tensor([24, 24])])
def test_another_row_scores(last):
    """The query before the last one, which sees one key less."""

    def plainly(x):
        scores = probabilities(x["query"], x["key"])[:, -2].mean(0)
        return with_text(x["image"], best(scores, 5, places(x["image"])))

    check("dense", lambda x, w: methods.fastv(x["query"], x["key"], x["image"], keep=5, last=last, **w), plainly)


def test_the_last_query_alone_will_do():
    def plainly(x):
        scores = probabilities(x["query"], x["key"])[:, -1].mean(0)
        return with_text(x["image"], best(scores, 5, places(x["image"])))

    check("dense", lambda x, w: methods.fastv(x["query"][:, :, -1:], x["key"], x["image"], keep=5), plainly)


@pytest.mark.parametrize("method", [methods.fastv, methods.pyramiddrop])
def test_bad_images_are_named(method):
    heads = torch.zeros(1, 2, 5, 8)
    with pytest.raises(TypeError, match=f"{method.__name__}: image: expected dtype bool"):
        method(heads, heads, torch.zeros(1, 5), keep=1)
    with pytest.raises(ValueError, match=rf"{method.__name__}: image: expected \[1, 5\] on cpu"):
        method(heads, heads, torch.zeros(1, 4, dtype=torch.bool), keep=1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_vscan_decode(layout):
    """The last three rows, as if they had been generated."""
    sizes = [sample["image"].shape[0] for sample in samples(layout)]

    def call(x, where):
        query = x["query"][..., -3:, :]
        if layout == "packed":
            ends = torch.tensor(sizes).cumsum(0)
            query = torch.cat([x["query"][end - 3 : end] for end in ends])
            where = where | {"cu_seqlens_q": torch.arange(len(sizes) + 1) * 3, "max_seqlen_q": 3}
        return methods.vscan_decode(query, x["key"], x["image"], keep=6, **where)

    def plainly(x):
        scores = probabilities(x["query"], x["key"])[:, -3:].mean(0).sum(0)
        return with_text(x["image"], best(scores, 6, places(x["image"])))

    check(layout, call, plainly)


def test_aim_prune():
    def plainly(x):
        attention = probabilities(x["query"], x["key"], causal=False, temperature=0.1)
        flow = torch.full((4, 1, 26), 1 / 26, dtype=torch.float64)
        for _ in range(5):
            flow = flow @ attention
        return with_text(x["image"], best(flow.square().mean(0).sqrt()[0], 6, places(x["image"])))

    check("dense", lambda x, w: methods.aim_prune(x["query"], x["key"], x["image"], keep=6), plainly, twins=False)


def test_counts_on_the_host():
    retained = methods.retained
    assert [retained.fastv(576, ratio) for ratio in (0.0, 0.5, 0.9, 1.0)] == [576, 288, 57, 0]
    assert retained.pyramiddrop(575) == [287, 143, 71]
    assert [retained.vscan_decode(576, n) for n in (0, 20, 1000)] == [576, 288, 57]
    assert [retained.sparsevlm(budget)[0] for budget in (192, 128, 64)] == [300, 303, 66]
    with pytest.raises(ValueError, match="sparsevlm: budget: expected one of 192, 128, 64, got 100"):
        retained.sparsevlm(100)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda count: count.pyramiddrop(-3), "pyramiddrop: tokens: expected at least 0, got -3"),
        (
            lambda count: count.pyramiddrop(9, [0.5, 2]),
            r"pyramiddrop: ratios\[1\]: expected a share from 0 to 1, got 2",
        ),
        (lambda count: count.fastv(9, -0.5), "fastv: ratio: expected a share from 0 to 1, got -0.5"),
        (lambda count: count.dart(9, 0.5, 0, 0), r"dart: pivots \+ text_pivots: expected at least 1, got 0"),
        (lambda count: count.dart(9, float("nan")), "dart: ratio: expected a finite number, got nan"),
        (lambda count: count.dycoke(9, 4, 10), "dycoke: keep: expected at most 9, those of a frame, got 10"),
        (lambda count: count.evs(64, 8, -1), "evs: rate: expected a share from 0 to 1, got -1"),
        (lambda count: count.evs(64, 0, 0.5), "evs: frames: expected at least 1, got 0"),
        (lambda count: count.fastvid([4, 0], 1, 1), r"fastvid: windows\[1\]: expected at least 1, got 0"),
        (lambda count: count.aim_merge(9, -1), "aim_merge: rounds: expected at least 0, got -1"),
        (lambda count: count.aim_prune(9, 2, layers=0), "aim_prune: layers: expected at least 1, got 0"),
        (lambda count: count.hired_described(9, [1.5]), r"hired_described: ratios\[0\]: expected a share from 0 to 1"),
        (lambda count: count.prunevid_llm(-1), "prunevid_llm: tokens: expected at least 0, got -1"),
        (lambda count: count.sparsevlm_recycle(-1), "sparsevlm_recycle: deleted: expected at least 0, got -1"),
        (lambda count: count.vscan_decode(9, 2, -1), "vscan_decode: rate: expected at least 0, got -1"),
        (lambda count: count.vidcom2(9, 2, 3), "vidcom2: ratio: expected a share from 0 to 1, got 3"),
        (lambda count: count.visionzip(-1, 2), "visionzip: dominant: expected at least 0, got -1"),
    ],
)
def test_counts_on_the_host_explain_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(methods.retained)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_dtoma_decode(layout):
    given = samples(layout, seed=9)
    generator = torch.Generator().manual_seed(10)
    for sample in given:
        size = sample["image"].shape[0]
        sample["unused"] = torch.randint(0, 4, (size,), generator=generator)
        sample["scores"] = torch.rand(size, generator=generator) * 0.3
        sample["referenced"] = torch.rand(size, generator=generator) < 0.3
    tensors, where = together(layout, given)
    names = ("scores", "image", "unused")
    plan, unused = methods.dtoma_decode(*(tensors[name] for name in names), referenced=tensors["referenced"], **where)
    found, start = kept(plan, layout, given), 0
    for k, sample in enumerate(given):
        size = sample["image"].shape[0]
        scores = torch.where(sample["referenced"], 2 * sample["scores"], sample["scores"])
        want = [0 if scores[i] >= 0.1 else int(sample["unused"][i]) + 1 for i in range(size)]
        own = unused[start : start + size] if layout == "packed" else unused[k, -size:]
        assert own.tolist() == want
        assert found[k] == [i for i in range(size) if not sample["image"][i] or want[i] < 3]
        start += size
    with pytest.raises(TypeError, match="dtoma_decode: unused: expected dtype int32, int64"):
        methods.dtoma_decode(tensors["scores"], tensors["image"], tensors["scores"])
