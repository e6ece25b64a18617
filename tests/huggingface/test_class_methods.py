"""Methods before the language model that ask a class token: of CLIP, its tiles in LLaVA-NeXT, InternVL's own tower."""

import pytest
import torch

import pyramid_ops.huggingface as hf
from pyramid_ops import allocate_budgets, methods, plans

from .models import (
    FAMILIES,
    IMAGE,
    alone,
    generate,
    internvl,
    llava,
    llava_inputs,
    llava_next,
    llava_siglip,
    masked_oracle,
    noise,
    padded,
    prompts,
)

#: family, method, options that keep all, options that do not.
CASES = [
    ("llava_next", "fastervlm", {"keep": 1.0}, {"keep": 0.3}),
    ("llava_next", "hired", {"keep": 1.0}, {"keep": 0.3}),
    ("llava_next", "prumerge_select", {"factor": -99.0}, {"factor": 0.5}),
    ("internvl", "fastervlm", {"keep": 1.0}, {"keep": 0.3}),
    ("internvl", "prumerge_select", {"factor": -99.0}, {"factor": 0.5}),
    ("internvl", "vispruner", {"keep": 16}, {"keep": 6}),
]
#: Those that merge, on LLaVA and InternVL.
VSCAN = {"window": (2, 2), "shallow": 0, "layer": None}
MERGING = {
    "visionzip": ({"dominant": 15, "contextual": 1}, {"dominant": 4, "contextual": 3}),
    "vscan": (VSCAN | {"keep": 1.0}, VSCAN | {"keep": 9}),
}
each_batch = pytest.mark.parametrize("samples", [1, 3])
each_tower = pytest.mark.parametrize("family", ["llava", "internvl"])


def close(got, expected, bound=1e-5):
    torch.testing.assert_close(got, expected, rtol=0, atol=bound)


def places_of(inputs, b=0):
    return (inputs["input_ids"][b] == IMAGE).nonzero().flatten()


@each_batch
@pytest.mark.parametrize(
    ("family", "method", "options"),
    [case[:3] for case in CASES] + [(f, m, both[0]) for f in ("llava", "internvl") for m, both in MERGING.items()],
)
def test_keeping_all_changes_no_bit(family, method, options, samples):
    make, inputs_of = FAMILIES[family]
    model, inputs = make(), inputs_of(samples)
    plain = generate(model, inputs)
    with hf.apply(model, method, **options):
        assert torch.equal(generate(model, inputs).logits, plain.logits)
    assert not {"get_image_features", "pack_image_features"} & {*model.base_model.__dict__}


@pytest.mark.parametrize(("attention", "samples"), [("sdpa", 1), ("eager", 3)])
@pytest.mark.parametrize(("family", "method", "options"), [(*case[:2], case[3]) for case in CASES])
def test_equals_the_model_with_dropped_columns_masked(family, method, options, attention, samples):
    make, inputs_of = FAMILIES[family]
    model, inputs = make(attention), inputs_of(samples)
    with hf.apply(model, method, **options) as handle:
        got = generate(model, inputs)
        (stage,) = handle.stats["stages"]
        for b in range(samples):
            one = generate(model, alone(inputs, b))
            close(one.logits, got.logits[b : b + 1])
            assert handle.stats["stages"][0]["tokens"] == stage["tokens"][b : b + 1]
    close(got.logits, masked_oracle(model, inputs, got.tokens, [stage]))
    assert all(
        0 < torch.isin(stage["index"][b], places_of(inputs, b)).sum() < len(places_of(inputs, b))
        for b in range(samples)
    )


def looked_at(model, pixels, layer):
    """By eager attention: class attention ``[B, n]`` and keys averaged over heads ``[B, n, d]``."""
    tower, keys = model.base_model.vision_tower, []
    layers = tower.encoder.layers if hasattr(tower.encoder, "layers") else tower.encoder.layer
    attention = getattr(layers[layer], "self_attn", None) or layers[layer].attention
    hook = attention.k_proj.register_forward_hook(lambda *x: keys.append(x[2]))
    out = tower(pixels, output_attentions=True)
    hook.remove()
    return out.attentions[layer][:, :, 0, 1:].mean(1), keys[0].unflatten(2, (4, 8)).mean(2)[:, 1:]


def blocks(x):
    """Patches ``[B, 64, d]`` of a grid of 8 × 8 as the four of each token: ``[B, 16, 4, d]``."""
    return x.view(len(x), 4, 2, 4, 2, -1).transpose(2, 3).flatten(3, 4).flatten(1, 2)


@each_batch
@each_tower
@pytest.mark.parametrize("method", MERGING)
def test_what_is_merged_before_the_projector(method, family, samples):
    """By hand: the plans of eager attention's own weights and keys, applied to the features that are projected."""
    make, inputs_of = FAMILIES[family]
    model, inputs = make("eager"), inputs_of(samples)
    base, options = model.base_model, MERGING[method][1]
    read = base.config.vision_feature_layer
    (attention, metric), (shallow, _) = (looked_at(model, inputs["pixel_values"], layer) for layer in (read, 0))
    if family == "internvl":
        attention, shallow = (blocks(x[..., None]).mean((2, 3)) for x in (attention, shallow))
        metric = blocks(metric).flatten(2)
    x = []
    hook = base.multi_modal_projector.register_forward_pre_hook(lambda _, args: x.append(args[0]))
    encoded = base.get_image_features(inputs["pixel_values"], return_dict=True)
    hook.remove()
    if method == "visionzip":
        both = methods.visionzip(attention, metric, **options)
        plan, kept = both[1], plans.concat(*both)
    else:
        plan = kept = methods.vscan(x[0], shallow, attention, keep=9, grid=(4, 4), window=(2, 2))
    features = []
    for b in range(samples):
        merged = x[0][b].clone()
        merged[plan.indices[b]] = plans.apply(plan, x[0])[b]
        features.append(base.multi_modal_projector(merged[None])[0])
    encoded.pooler_output = torch.stack(features) if family == "internvl" else features
    with hf.apply(model, method, **options) as handle:
        got = generate(model, inputs)
        (stage,) = handle.stats["stages"]
        for b in range(samples):
            close(generate(model, alone(inputs, b)).logits, got.logits[b : b + 1])
    for b in range(samples):
        chosen = torch.isin(places_of(inputs, b), stage["index"][b])
        assert torch.equal(chosen.nonzero().flatten(), kept.indices[b].sort().values)
    given = {name: x for name, x in inputs.items() if name != "pixel_values"}
    close(got.logits, masked_oracle(model, given | {"mm_encoder_outputs": {"image": encoded}}, got.tokens, [stage]))


def taken_in(x, key, attention, kept, neighbours):
    """The authors' loop, in float64: features ``[n, D]`` with those that stay, and what all others become."""
    x, unit = x.double(), torch.nn.functional.normalize(key.double(), dim=1)
    similarity, merged, a = unit @ unit.T, x.clone(), attention.double()
    similarity.fill_diagonal_(-2)
    for i in kept:
        near = similarity[i].topk(neighbours).indices
        merged[i] = x[i] + a[near] @ x[near]
    gone = [j for j in range(len(x)) if j not in kept]
    for first in gone[:1]:
        merged[first] = a[gone] @ x[gone]
    return merged.float(), sorted([*kept, *gone[:1]])


@each_batch
@each_tower
@pytest.mark.parametrize("options", [{"keep": 5}, {"factor": 0.5}, {"keep": 2, "plus": True}])
def test_prumerge_takes_in_what_is_alike(options, family, samples):
    make, inputs_of = FAMILIES[family]
    model, inputs = make("eager"), inputs_of(samples)
    base, keys = model.base_model, []
    tower = base.vision_tower.encoder
    layer = (tower.layers if family == "llava" else tower.layer)[base.config.vision_feature_layer]
    attention, _ = looked_at(model, inputs["pixel_values"], base.config.vision_feature_layer)
    hook = getattr(layer, "self_attn" if family == "llava" else "attention").k_proj.register_forward_hook(
        lambda *x: keys.append(x[2][:, 1:])
    )
    projected = base.multi_modal_projector.register_forward_pre_hook(lambda _, args: keys.append(args[0]))
    encoded = base.get_image_features(inputs["pixel_values"], return_dict=True)
    hook.remove()
    projected.remove()
    key, x = keys
    if family == "internvl":
        attention, key = blocks(attention[..., None]).mean((2, 3)), blocks(key).flatten(2)
    if options.get("plus"):
        plan = methods.prumerge_plus_select(attention, keep=2)
    else:
        plan = methods.prumerge_select(attention, factor=0.5) if "factor" in options else plans.keep(attention, 5)
    features, places = [], []
    for b in range(samples):
        kept = plan.indices[b, : plan.counts[b]].tolist()
        merged, left = taken_in(x[b], key[b], attention[b], kept, 4)
        features.append(base.multi_modal_projector(merged[None])[0])
        places.append(left)
    encoded.pooler_output = torch.stack(features) if family == "internvl" else features
    with hf.apply(model, "prumerge", neighbours=4, **options) as handle:
        got = generate(model, inputs)
        (stage,) = handle.stats["stages"]
        for b in range(samples):
            close(generate(model, alone(inputs, b)).logits, got.logits[b : b + 1])
    for b in range(samples):
        assert torch.isin(places_of(inputs, b), stage["index"][b]).nonzero().flatten().tolist() == places[b]
    given = {name: x for name, x in inputs.items() if name != "pixel_values"}
    close(got.logits, masked_oracle(model, given | {"mm_encoder_outputs": {"image": encoded}}, got.tokens, [stage]))


def test_prumerge_of_all_has_no_rest():
    with hf.apply(llava(), "prumerge", keep=99) as handle:
        generate(llava(), llava_inputs())
    assert handle.stats["stages"][0]["tokens"] == [28]


def test_vscan_goes_on_in_the_language_model():
    """Half of what is left, by the last token's attention in a layer."""
    model, inputs = llava("eager"), llava_inputs()
    with hf.apply(model, "vscan", **VSCAN | {"keep": 9}) as handle:
        attention = model(**inputs, output_attentions=True).attentions[2][0]
        (first,) = handle.stats["stages"]
    index = first["index"][0]
    visual = torch.isin(index, places_of(inputs)).nonzero().flatten()
    best = index[visual[attention[:, -1, visual].mean(0).topk(4).indices]]
    batch = llava_inputs(3)
    with hf.apply(model, "vscan", **VSCAN | {"keep": 9, "layer": 2}) as handle:
        model(**inputs)
        before, inside = handle.stats["stages"]
        got = generate(model, batch)
        stages = handle.stats["stages"]
        encoded = model.base_model.get_image_features(batch["pixel_values"], return_dict=True)
        for b in range(3):
            close(generate(model, alone(batch, b)).logits, got.logits[b : b + 1])
    assert torch.equal(before["index"], first["index"])
    assert inside["tokens"] == [12 + 4]
    kept = inside["index"][0]
    assert torch.equal(kept[torch.isin(kept, places_of(inputs))], best.sort().values)
    encoded.pooler_output = [x.nan_to_num(0.0) for x in encoded.pooler_output]
    given = {name: x for name, x in batch.items() if name != "pixel_values"}
    close(got.logits, masked_oracle(model, given | {"mm_encoder_outputs": {"image": encoded}}, got.tokens, stages))


def tall():
    """One image of 100 × 60 in 2 × 2 tiles: a grid of 8 × 8 patches, of which columns 2 to 5 are not padding."""
    pixels, sizes = noise(0, 1, 5, 3, 56, 56), torch.tensor([[100, 60]])
    order = [(0, patch) for patch in range(16)]
    for row in range(8):
        for column in range(2, 6):
            order.append((1 + row // 4 * 2 + column // 4, row % 4 * 4 + column % 4))
        order.append(None)  # a new line
    return prompts([len(order)]) | {"pixel_values": pixels, "image_sizes": sizes}, order


@pytest.mark.parametrize("method", ["fastervlm", "hired"])
def test_tiles_of_llava_next(method):
    model = llava_next("eager")
    inputs, order = tall()
    deep, shallow = (looked_at(model, inputs["pixel_values"][0], layer)[0] for layer in (-2, 0))
    there = {place for place in order if place is not None}
    counts = [4] * 5
    if method == "hired":  # 24 of 48, half of them of the whole image
        marked = [(k // 4 // 2, k % 4 // 2) for k in shallow[0].topk(8).indices.tolist()]
        marks = [marked.count((row, column)) for row in range(2) for column in range(2)]
        counts = [12, *allocate_budgets(12, [mark / 8 for mark in marks], [8] * 4, rule="largest_remainder")]
    kept = set()
    for tile, count in enumerate(counts):
        own = sorted((-deep[tile, patch].item(), patch) for patch in range(16) if (tile, patch) in there)
        kept |= {(tile, patch) for _, patch in own[:count]}
    with hf.apply(model, method, keep=0.3 if method == "fastervlm" else 24) as handle:
        got = generate(model, inputs)
        (stage,) = handle.stats["stages"]
    chosen = torch.isin(places_of(inputs), stage["index"][0]).tolist()
    assert chosen == [place is None or place in kept for place in order]
    close(got.logits, masked_oracle(model, inputs, got.tokens, [stage]))


@pytest.mark.parametrize("method", ["fastervlm", "prumerge", "vispruner", "pyramid"])
def test_a_share_of_each_image(method):
    model, tokens = llava(), []
    inputs = padded([[7, *[IMAGE] * 16, 8, *[IMAGE] * 16, 9]]) | {"pixel_values": noise(0, 2, 3, 56, 56)}
    for keep in (0.25, 4):
        with hf.apply(model, method, keep=keep) as handle:
            model(**inputs)
        tokens.append(handle.stats["stages"][0]["tokens"])
    assert tokens == [[3 + 2 * (5 if method == "prumerge" else 4)]] * 2


@pytest.mark.parametrize("method", ["fastervlm", "prumerge", "prumerge_select", "visionzip", "vispruner", "vscan"])
def test_a_tower_without_a_class_token_is_refused(method):
    with pytest.raises(
        ValueError, match=f"{method}: model: expected a tower with a class token, 'clip_vision_model' or 'internvl_vis"
    ):
        hf.apply(llava_siglip(), method, **({"layer": None} if method == "vscan" else {}))


@pytest.fixture
def config():
    config = llava().config
    yield config
    config.vision_feature_layer = -2


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("fastervlm", {}),
        ("visionzip", {"dominant": 4, "contextual": 2}),
        ("prumerge", {"keep": 4}),
        ("vispruner", {"keep": 6}),
    ],
)
def test_a_layer_that_counts_from_the_first_hidden_state(method, options, config):
    model, inputs, logits = llava(), llava_inputs(), []
    for config.vision_feature_layer in (-2, 1):
        with hf.apply(model, method, **options):
            logits.append(model(**inputs).logits)
    assert torch.equal(*logits)
    for config.vision_feature_layer in (0, 3, -3, [-2, -1]):
        with pytest.raises(ValueError, match=f"{method}: vision_feature_layer: expected one of the 2 layers"):
            hf.apply(model, method, **options)


def test_what_is_not_supported_is_said():
    assert {"visionzip", "vispruner", "vscan"} <= {*hf.supported()["internvl"]} - {*hf.supported()["llava_next"]}
    for make, method in ((llava_next, "visionzip"), (llava, "hired"), (internvl, "tome")):
        with pytest.raises(
            ValueError, match=f"apply: method: expected one of 'aim', .* or a callable .*, got {method!r}"
        ):
            hf.apply(make(), method)
    with pytest.raises(ValueError, match="hired: shallow: expected one of the 2 layers of the tower, got 2"):
        hf.apply(llava_next(), "hired", shallow=2)
    with pytest.raises(ValueError, match="vscan: layer: expected less than 5, the layers of the model, got 16"):
        hf.apply(llava(), "vscan", shallow=0)
    with hf.apply(llava(), "vscan", **VSCAN | {"window": (3, 3)}):
        with pytest.raises(ValueError, match="vscan: window: expected one that divides a grid of 16 patches, got 3×3"):
            generate(llava(), llava_inputs())
