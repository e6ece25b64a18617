"""Methods inside the language model against plain code for each sample."""

import pytest
import torch

from pyramid_ops import methods
from tests.methods.layouts import LAYOUTS, best, check, places, probabilities, with_text

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
