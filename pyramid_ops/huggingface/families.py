"""Which models are supported, and what is where in them."""

from typing import Any, NamedTuple

__all__ = ["FAMILIES", "Family", "family_of"]


class Family(NamedTuple):
    """`placeholders`: fields of the config with the ids of visual tokens; `inputs`: arguments that bring images;
    `selections`: methods before the language model."""

    placeholders: tuple[str, ...]
    inputs: tuple[str, ...]
    selections: tuple[str, ...] = ("cdpruner", "divprune")

    def tokens(self, model: Any) -> list[int]:
        return [getattr(model.config, name) for name in self.placeholders]


_IMAGES = Family(("image_token_id",), ("pixel_values",))
_VIDEOS = Family(
    ("image_token_id", "video_token_id"), ("pixel_values", "pixel_values_videos"), ("cdpruner", "divprune", "evs")
)
_CLASS = ("fastervlm", "prumerge_select")
#: What counts on all patches of an image: not where LLaVA-NeXT has cut padding off.
_WHOLE = ("prumerge", "visionzip", "vispruner", "vscan")
FAMILIES = {
    "internvl": _IMAGES._replace(selections=(*_IMAGES.selections, *_CLASS, *_WHOLE)),
    "llava": _IMAGES._replace(selections=(*_IMAGES.selections, *_CLASS, *_WHOLE, "pyramid", "tome")),
    "llava_next": _IMAGES._replace(selections=(*_IMAGES.selections, *_CLASS, "hired")),
    "qwen2_5_vl": _VIDEOS,
    "qwen3_vl": _VIDEOS,
}


def family_of(model: Any) -> Family:
    """Of a model whose language model can be pruned."""
    text = model.base_model.language_model
    windows = set(getattr(text.config, "layer_types", None) or ["full_attention"]) - {"full_attention"}
    if windows or getattr(text.config, "sliding_window", None) is not None:
        got = ", ".join(sorted(windows)) or f"a sliding window of {text.config.sliding_window}"
        raise ValueError(f"apply: model: expected full attention in every layer of the text model, got {got}")
    return FAMILIES[model.config.model_type]
