"""Attention importance: against float64 softmax, against each method's own score, conventions, bad input."""

import itertools

import pytest
import torch

import pyramid_ops
from pyramid_ops import attention_importance
from tests.bits import assert_same_bits


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def attention(q, k, scale=None, causal=False, softcap=None, temperature=1.0):
    """(attention `[B, H, Nq, Nk]` in float64, which query sees which key)."""
    q, k = q.double(), k.double().repeat_interleave(q.shape[1] // k.shape[1], 1)
    logits = q @ k.mT * (q.shape[3] ** -0.5 if scale is None else scale)
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    queries, keys = logits.shape[2:]
    seen = torch.ones(queries, keys, dtype=torch.bool)
    if causal:
        seen = seen.tril(keys - queries)
    return torch.softmax((logits / temperature).masked_fill(~seen, -torch.inf), -1).nan_to_num(0.0), seen


def reduced(a, seen, heads="mean", queries="mean", first="heads", weights=None):
    weights = torch.ones(a.shape[0], a.shape[2]) if weights is None else weights
    weights = weights.double()

    def over_heads(x):
        return {"mean": x.mean(1), "sum": x.sum(1), "max": x.amax(1), "rms": x.square().mean(1).sqrt()}[heads]

    def over_queries(x):
        w = weights[:, None, :, None] if x.dim() == 4 else weights[..., None]
        count = (w * seen).sum(-2)
        if queries == "max":
            return (x * w).amax(-2)
        total = (x * w).sum(-2)
        return total if queries == "sum" else torch.where(count > 0, total / count, 0.0)

    return over_queries(over_heads(a)) if first == "heads" else over_heads(over_queries(a))


REDUCTIONS = list(itertools.product(("mean", "sum", "max", "rms"), ("mean", "sum", "max"), ("heads", "queries")))


def relative_bound(q, k, precision, scale=None, temperature=1.0, **_):
    """Five standard deviations of what rounding unit rows to the grid does to a logit, twice, and the polynomial."""
    largest = float(q.norm(dim=-1).max() * k.norm(dim=-1).max()) * (scale or q.shape[3] ** -0.5) / temperature
    deviation = (2 / 3) ** 0.5 * (2.0**-12 if precision == "grid" else 2.0**-22 + 2.0**-24)
    return 2 * 5 * deviation * largest + (3e-4 if precision == "grid" else 1e-6)


@pytest.mark.parametrize("precision", ["grid", "high"])
@pytest.mark.parametrize(
    "options", [{}, {"causal": True}, {"softcap": 2.0}, {"temperature": 0.3, "scale": 0.1}], ids=str
)
@pytest.mark.parametrize(("heads", "queries", "first"), REDUCTIONS)
def test_equals_float64_softmax(heads, queries, first, options, precision):
    for q, k in ((rand(2, 4, 37, 24), rand(2, 2, 53, 24, seed=1)), (rand(2, 3, 50, 8), rand(2, 1, 20, 8, seed=1))):
        weights = rand(2, q.shape[2], seed=2).abs()
        names = {"head_reduction": heads, "query_reduction": queries, "reduce_first": first, "precision": precision}
        a, seen = attention(q, k, **options)
        for given in (None, weights):
            expected = reduced(a, seen, heads, queries, first, given)
            actual = attention_importance(q, k, query_weights=given, **names, **options)
            bound = relative_bound(q, k, precision, **options) * expected + q.shape[2] * 2.0**-30
            assert ((actual - expected).abs() <= bound).all(), ((actual - expected).abs() / bound).max()


def test_orders_of_reduction_differ_where_they_should():
    q, k = 3 * rand(1, 4, 20, 16), 3 * rand(1, 4, 20, 16, seed=1)
    for heads, queries in itertools.product(("mean", "max", "rms"), ("mean", "max")):
        results = [
            attention_importance(q, k, head_reduction=heads, query_reduction=queries, reduce_first=first)
            for first in ("heads", "queries")
        ]
        same = heads != "rms" and (heads == "max") == (queries == "max")
        assert torch.equal(*results) == same, (heads, queries)


@pytest.mark.parametrize("causal", [False, True])
def test_chosen_queries_equal_attention_of_those_rows(causal):
    q, k = rand(2, 4, 30, 16), rand(2, 2, 41, 16, seed=1)
    a, seen = attention(q, k, causal=causal)
    for indices in ([-1], [3, 3, -2], range(5, 9), range(-4, 0)):
        rows = [i % 30 for i in indices]
        expected = reduced(a[:, :, rows], seen[rows])
        actual = attention_importance(q, k, causal=causal, query_indices=list(indices))
        torch.testing.assert_close(actual.double(), expected, rtol=2e-5, atol=1e-8)
        assert_same_bits(attention_importance(q, k, causal=causal, query_indices=torch.tensor(rows)), actual)
        unused = torch.tensor([rows + [-1, 30, 99, -(1 << 40)]] * 2)
        assert_same_bits(attention_importance(q, k, causal=causal, query_indices=unused), actual)


def test_key_range_keeps_the_softmax_over_all_keys():
    q, k = rand(2, 2, 9, 16), rand(2, 2, 40, 16, seed=1)
    full = attention_importance(q, k)
    assert_same_bits(attention_importance(q, k, key_range=(7, 31)), full[:, 7:31].contiguous())
    assert attention_importance(q, k, key_range=(5, 5)).shape == (2, 0)


def test_causal_mean_divides_by_the_queries_that_see_a_key():
    q, k = torch.zeros(1, 1, 4, 8), torch.zeros(1, 1, 6, 8)
    expected = [sum(1 / n for n in range(max(j, 3), 7)) / (7 - max(j, 3)) for j in range(1, 7)]
    actual = attention_importance(q, k, causal=True, precision="high")
    torch.testing.assert_close(actual[0].double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=0)
    # More queries than keys: the first two see none.
    actual = attention_importance(k, q, causal=True)
    torch.testing.assert_close(actual[0], torch.tensor([(1 + 1 / 2 + 1 / 3 + 1 / 4) / 4, 13 / 36, 7 / 24, 1 / 4]))


@pytest.mark.parametrize(
    "options",
    [{}, {"causal": True}, {"query_indices": [-1, 2]}, {"center_keys": True}, {"head_reduction": "rms"}],
    ids=str,
)
@pytest.mark.parametrize("weighted", [False, True])
def test_packed_segments_equal_segments_alone(options, weighted):
    lengths = [(5, 9), (0, 4), (7, 3), (30, 53), (3, 0)]
    queries = [rand(a, 4, 16, seed=s) for s, (a, _) in enumerate(lengths)]
    keys = [rand(b, 2, 16, seed=s + 9) for s, (_, b) in enumerate(lengths)]
    starts_q, starts_k = (torch.tensor([0, *n]).cumsum(0).int() for n in zip(*lengths, strict=True))
    weights = rand(int(starts_q[-1]), seed=3).abs()
    given = {"query_weights": weights} if weighted and "query_indices" not in options else {}
    actual = attention_importance(
        torch.cat(queries), torch.cat(keys), cu_seqlens_q=starts_q, cu_seqlens_k=starts_k, **given, **options
    )
    for s, (q, k) in enumerate(zip(queries, keys, strict=True)):
        here = actual[starts_k[s] : starts_k[s + 1]]
        if not len(q) or not len(k):
            assert (here == 0).all()
            continue
        alone = dict(options)
        if "query_indices" in options:
            alone["query_indices"] = torch.tensor([i % len(q) if i < len(q) else -1 for i in options["query_indices"]])
        if given:
            alone["query_weights"] = weights[None, starts_q[s] : starts_q[s + 1]]
        expected = attention_importance(q.transpose(0, 1)[None], k.transpose(0, 1)[None], **alone)
        assert_same_bits(here, expected[0])


def test_log_sum_exp_gives_the_same_scores():
    q, k = 2 * rand(2, 4, 30, 16), 2 * rand(2, 2, 41, 16, seed=1)
    logits = q.double() @ k.double().repeat_interleave(2, 1).mT / 4
    lse = logits.logsumexp(-1).float()
    expected = attention_importance(q, k)
    torch.testing.assert_close(attention_importance(q, k, log_sum_exp=lse), expected, rtol=1e-5, atol=1e-9)
    shifted = k + 7  # a common part of all keys
    lse = (q.double() @ shifted.double().repeat_interleave(2, 1).mT / 4).logsumexp(-1).float()
    actual = attention_importance(q, shifted, log_sum_exp=lse, center_keys=True)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-9)
    # A value too small cannot make a probability greater than 1.
    assert (attention_importance(q, k, log_sum_exp=torch.full((2, 4, 30), -100.0)) == 1).all()


@pytest.mark.parametrize("below", [-100.0, -1e20, -2e38])
def test_masked_keys_get_nothing_whatever_the_log_sum_exp(below):
    q, k, each = rand(5, 2, 4), rand(5, 2, 4, seed=1), torch.arange(6, dtype=torch.int32)
    lse = torch.full((2, 5), below)
    assert (attention_importance(q, k, cu_seqlens_q=each, cu_seqlens_k=each, log_sum_exp=lse) == 1).all()
    q, k = q.transpose(0, 1)[None], k.transpose(0, 1)[None]
    received = attention_importance(q, k, causal=True, query_reduction="sum", log_sum_exp=lse[None])
    assert received.tolist() == [[5, 4, 3, 2, 1]]


def test_centred_keys_keep_differences_under_a_common_part():
    q, k = rand(1, 2, 50, 64), rand(1, 2, 60, 64, seed=1)
    a, seen = attention(q, k)
    expected = reduced(a, seen)
    far = k + 300 * rand(64, seed=2)
    errors = [
        float(((attention_importance(q, far, center_keys=c, precision="grid") - expected) / expected).abs().max())
        for c in (False, True)
    ]
    assert errors[1] < 1e-2 < errors[0]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_rows_that_are_not_finite_take_no_part(value):
    q, k = rand(1, 2, 12, 8), rand(1, 2, 15, 8, seed=1)
    q[0, :, 3, 0] = value
    k[0, :, 5, 2] = value
    left_q, left_k = [i for i in range(12) if i != 3], [i for i in range(15) if i != 5]
    a, _ = attention(q[:, :, left_q], k[:, :, left_k])
    actual = attention_importance(q, k, query_reduction="sum")[0]
    assert actual[5] == 0
    torch.testing.assert_close(actual[left_k].double(), a.mean(1).sum(1)[0], rtol=2e-5, atol=1e-8)


@pytest.mark.parametrize("weight", [-1.0, torch.nan, torch.inf, 2.0**126])
def test_what_is_no_weight_makes_its_sample_nan(weight):
    q, k = rand(2, 2, 12, 8), rand(2, 2, 15, 8, seed=1)
    weights = rand(2, 12, seed=2).abs()
    for reduction in ("mean", "sum", "max"):
        good = attention_importance(q, k, query_weights=weights, query_reduction=reduction)
        bad = weights.clone()
        bad[1, 4] = weight
        actual = attention_importance(q, k, query_weights=bad, query_reduction=reduction)
        assert_same_bits(actual[0], good[0])
        assert actual[1].isnan().all()


def test_weights_of_any_magnitude():
    q, k = rand(1, 2, 12, 8), rand(1, 2, 15, 8, seed=1)
    weights = rand(1, 12, seed=2).abs()
    mean = attention_importance(q, k, query_weights=weights)
    total = attention_importance(q, k, query_weights=weights, query_reduction="sum")
    for exponent in (-100, -20, 20, 100):
        scaled = weights * 2.0**exponent
        assert_same_bits(attention_importance(q, k, query_weights=scaled), mean)
        many = attention_importance(q, k, query_weights=scaled, query_reduction="sum")
        assert_same_bits(many, total * 2.0**exponent)
    assert (attention_importance(q, k, query_weights=torch.zeros(1, 12)) == 0).all()


def test_equal_keys_get_equal_attention():
    q = rand(1, 2, 9, 8)
    k = rand(1, 2, 1, 8, seed=1).expand(1, 2, 7, 8)
    actual = attention_importance(q, k)
    assert (actual == actual[:, :1]).all()
    torch.testing.assert_close(actual, torch.full((1, 7), 1 / 7))
    assert attention_importance(q, k[:, :, :1]).item() == 1


def test_huge_norms_stay_finite():
    for scale in (1e18, 1e30, 1e38):
        q, k = (scale * rand(1, 1, 6, 8, seed=s).sign() for s in (0, 1))
        actual = attention_importance(q, k)
        assert actual.isfinite().all()
        torch.testing.assert_close(actual.sum(), torch.tensor(1.0))


# The published scores, each as its plain formula.

TEXT, IMAGE = range(30, 40), (5, 29)


@pytest.fixture
def layer():
    """q and k of a language model's layer: 40 tokens, image columns 5 … 28, text after them."""
    q, k = 2 * rand(2, 4, 40, 16), 2 * rand(2, 2, 40, 16, seed=1)
    return q, k, attention(q, k, causal=True)[0]


def check(actual, expected):
    torch.testing.assert_close(actual.double(), expected, rtol=3e-5, atol=1e-7)


def test_pyramid_drop(layer):
    """The last instruction token, mean over heads, image columns of a softmax over the full row."""
    q, k, a = layer
    actual = attention_importance(q, k, causal=True, query_indices=[-1], key_range=IMAGE)
    check(actual, a[:, :, -1].mean(1)[:, slice(*IMAGE)])


def test_fastv(layer):
    q, k, a = layer
    check(attention_importance(q[:, :, -1:], k, key_range=IMAGE), a[:, :, -1].mean(1)[:, slice(*IMAGE)])


def test_ptp(layer):
    """Greatest over text tokens of the mean over heads."""
    q, k, a = layer
    actual = attention_importance(
        q, k, causal=True, query_indices=list(TEXT), key_range=IMAGE, query_reduction="max", reduce_first="heads"
    )
    check(actual, a[:, :, list(TEXT)].mean(1).amax(1)[:, slice(*IMAGE)])


def test_sparsevlm(layer):
    """Mean over heads and raters; raters differ by sample."""
    q, k, a = layer
    raters = torch.tensor([[31, 35, 36, -1], [30, -1, -1, -1]])
    actual = attention_importance(q, k, causal=True, query_indices=raters, key_range=IMAGE)
    expected = torch.stack([a[b, :, raters[b][raters[b] >= 0]].mean((0, 1)) for b in range(2)])
    check(actual, expected[:, slice(*IMAGE)])


def test_fitprune(layer):
    """Greatest over heads; column mean visual → visual times column sum text → visual."""
    q, k, a = layer
    greatest = a.amax(1)[:, :, slice(*IMAGE)]
    options = {"causal": True, "head_reduction": "max", "reduce_first": "heads", "key_range": IMAGE}
    own = attention_importance(q, k, query_indices=list(range(*IMAGE)), query_reduction="sum", **options)
    cross = attention_importance(q, k, query_indices=list(TEXT), query_reduction="sum", **options)
    check(own, greatest[:, slice(*IMAGE)].sum(1))
    check(cross, greatest[:, list(TEXT)].sum(1))


@pytest.mark.parametrize("method", ["hired", "fastervlm", "vscan"])
def test_cls_row(method):
    """HiRED sums heads; FasterVLM and VScan take their mean."""
    q, k = rand(2, 4, 26, 16), rand(2, 4, 26, 16, seed=1)
    a, _ = attention(q, k)
    heads = "sum" if method == "hired" else "mean"
    actual = attention_importance(q, k, query_indices=[0], key_range=(1, 26), head_reduction=heads)
    check(actual, a[:, :, 0, 1:].sum(1) / (1 if method == "hired" else 4))


def test_prunevid(layer):
    """Greatest over heads and text rows."""
    q, k, a = layer
    actual = attention_importance(
        q, k, causal=True, query_indices=list(TEXT), key_range=IMAGE, head_reduction="max", query_reduction="max"
    )
    check(actual, a[:, :, list(TEXT)].amax((1, 2))[:, slice(*IMAGE)])


def test_attention_saliency_received():
    """Mean attention received, as the pyramid methods use it."""
    q = rand(2, 3, 50, 16)
    check(attention_importance(q, q), attention(q, q)[0].mean((1, 2)))


def test_selection_by_attention_received():
    levels = [rand(2, n, 16, seed=n) for n in (40, 12)]
    scores = [attention(x[:, None], x[:, None])[0].mean((1, 2)) for x in levels]
    expected = pyramid_ops.select_topk_levels(levels, budgets=[7, 3], saliency=[x.float() for x in scores])
    assert_same_bits(pyramid_ops.select_topk_levels(levels, budgets=[7, 3], saliency="attention"), expected)
    offsets = [torch.tensor([0, n, 2 * n], dtype=torch.int32) for n in (40, 12)]
    packed = pyramid_ops.select_topk_levels_packed(
        [x.flatten(0, 1) for x in levels], offsets, [7, 3], saliency="attention", max_seqlen=40
    )
    assert_same_bits(packed.tokens, expected.tokens.flatten(0, 1))
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    patches = [pyramid_ops.patchify(x, 4) for x in pyramid_ops.gaussian_pyramid(images, 2)]
    expected = pyramid_ops.select_topk_levels(patches, budgets=[9, 4], saliency="attention")
    encode = lambda x: pyramid_ops.patchify(x, 4)  # noqa: E731
    assert_same_bits(pyramid_ops.progressive_select(images, encode, (9, 4), saliency="attention"), expected)
    whole = (255 * images).byte()
    assert (
        pyramid_ops.select_topk_levels([pyramid_ops.patchify(whole, 4)], 9, None, saliency="attention").tokens.dtype
        == torch.uint8
    )


@pytest.mark.slow
def test_memory_does_not_grow_with_the_square():
    """16384 tokens, 16 heads, d = 64: a matrix of one head alone would be 1 GB."""
    from bench.conftest import _peak_bytes

    q, k = rand(1, 16, 16384, 64), rand(1, 16, 16384, 64, seed=1)
    peak = _peak_bytes(lambda: attention_importance(q, k, precision="grid", key_range=(0, 16384)))
    assert peak < 4 * (q.nbytes + k.nbytes)


BAD = {
    "unequal heads": (lambda q, k: attention_importance(q, k[:, :1].expand(2, 3, 9, 8)), "heads"),
    "no tensor": (lambda q, k: attention_importance(q, None), "key: expected a tensor"),
    "integers": (lambda q, k: attention_importance(q.int(), k), "query: expected dtype"),
    "layouts": (lambda q, k: attention_importance(q, k[0]), "key: expected the layout"),
    "features": (lambda q, k: attention_importance(q, k[..., :4]), "key: expected the layout, feature size"),
    "batches": (lambda q, k: attention_importance(q, k[:1]), "batch size 2"),
    "scale": (lambda q, k: attention_importance(q, k, scale=-1.0), "scale: expected a number above 0, got -1.0"),
    "scale type": (lambda q, k: attention_importance(q, k, scale="1"), "scale: expected a number"),
    "temperature": (lambda q, k: attention_importance(q, k, temperature=0), "temperature"),
    "softcap": (lambda q, k: attention_importance(q, k, softcap=float("nan")), "softcap"),
    "causal": (lambda q, k: attention_importance(q, k, causal=1), "causal: expected a bool"),
    "heads": (lambda q, k: attention_importance(q, k, head_reduction="min"), "head_reduction: expected one of"),
    "queries": (lambda q, k: attention_importance(q, k, query_reduction="rms"), "query_reduction"),
    "first": (lambda q, k: attention_importance(q, k, reduce_first="head"), "reduce_first"),
    "index": (
        lambda q, k: attention_importance(q, k, query_indices=[5]),
        r"query_indices\[0\]: expected less than 5, got 5",
    ),
    "negative index": (lambda q, k: attention_importance(q, k, query_indices=[-6]), "at least -5, got -6"),
    "no index": (lambda q, k: attention_importance(q, k, query_indices=[]), "at least one index"),
    "float index": (lambda q, k: attention_importance(q, k, query_indices=torch.zeros(1)), "query_indices: .* int"),
    "index batch": (lambda q, k: attention_importance(q, k, query_indices=torch.zeros(3, 1).long()), r"\[2, M\]"),
    "range": (lambda q, k: attention_importance(q, k, key_range=(0, 10)), "0 <= start <= stop <= 9"),
    "range order": (lambda q, k: attention_importance(q, k, key_range=(4, 3)), "key_range"),
    "range size": (lambda q, k: attention_importance(q, k, key_range=(4,)), "key_range"),
    "weights": (lambda q, k: attention_importance(q, k, query_weights=torch.ones(2, 4)), r"\[2, 5\]"),
    "both": (lambda q, k: attention_importance(q, k, query_weights=torch.ones(2, 5), query_indices=[0]), "at most one"),
    "lse": (lambda q, k: attention_importance(q, k, log_sum_exp=torch.ones(2, 5)), "log_sum_exp"),
    "lse size": (lambda q, k: attention_importance(q, k, log_sum_exp=torch.ones(2, 4, 4)), r"\[2, 4, 5\]"),
    "centred cap": (lambda q, k: attention_importance(q, k, softcap=1.0, center_keys=True), "without softcap"),
    "offsets": (lambda q, k: attention_importance(q, k, cu_seqlens_q=torch.tensor([0, 5])), "cu_seqlens"),
    "no offsets": (lambda q, k: attention_importance(q[:, :, 0], k[:, :, 0]), "offsets of both packed tensors"),
    "segments": (
        lambda q, k: attention_importance(
            q[:, :2, 0], k[:, :, 0], cu_seqlens_q=torch.tensor([0, 2]).int(), cu_seqlens_k=torch.tensor([0, 1, 2]).int()
        ),
        "cu_seqlens_k: expected shape",
    ),
    "max_seqlen": (lambda q, k: attention_importance(q, k, max_seqlen_q=4), "max_seqlen_q"),
    "precision": (lambda q, k: attention_importance(q, k, precision="low"), "precision"),
    "gradient": (lambda q, k: attention_importance(q.requires_grad_(), k), "no gradient"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    call, message = BAD[case]
    with pytest.raises((TypeError, ValueError), match=message) as error:
        call(rand(2, 4, 5, 8), rand(2, 2, 9, 8))
    assert str(error.value).startswith("attention_importance: ")


def test_nothing_to_attend_to():
    q = rand(2, 4, 5, 8)
    assert_same_bits(attention_importance(q[:, :, :0], q), torch.zeros(2, 5))
    assert attention_importance(q, q[:, :, :0]).shape == (2, 0)
    assert attention_importance(q[:0], q[:0]).shape == (0, 5)
    one = torch.zeros(1, dtype=torch.int32)
    assert_same_bits(attention_importance(q[0], q[0], cu_seqlens_q=one, cu_seqlens_k=one), torch.zeros(4))


def test_sums_in_parts_have_the_same_bits(monkeypatch):
    from pyramid_ops.reference import attention, logits

    q = torch.randn(1, 4, 50, 16, generator=torch.Generator().manual_seed(0))
    options = {"head_reduction": "rms", "query_reduction": "sum", "reduce_first": "heads"}
    calls = (
        lambda: attention_importance(q, q, precision="high"),
        lambda: attention_importance(q, q, **options),
        lambda: pyramid_ops.text_relevance(q[0], q[0], reduction="mean"),
    )
    expected = [call() for call in calls]
    monkeypatch.setattr(logits, "SUMMED", 7)
    monkeypatch.setattr(attention, "LOGITS", 100)
    for call, value in zip(calls, expected, strict=True):
        assert_same_bits(call(), value)
