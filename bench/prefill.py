"""`python -m bench.prefill`: a prompt with an image through a language model, with and without each method.

Writes results/prefill.md. A LLaVA of random weights in float32; what the library's ops take of the time is beside it.
`--width 256 --rounds 1 --out /tmp/prefill.md` tries it.
"""

import argparse
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import torch
import transformers

import pyramid_ops.huggingface as hf
from bench.__main__ import commit, device_name
from pyramid_ops import cost
from pyramid_ops._op import Op

LAYERS, SIDE, PATCH, TEXT, IMAGE, VOCABULARY = 4, 336, 14, 64, 999, 1000
TOKENS = (SIDE // PATCH) ** 2


def norms(features: list[torch.Tensor]) -> list[torch.Tensor]:
    return [x.norm(dim=1) for x in features]


#: Shares and layers of the authors, layers scaled from 32 to 4 where they are deep.
METHODS: dict[str, dict[str, Any]] = {
    "fastv": {"layer": 2, "keep": 0.25},
    "pyramiddrop": {},
    "sparsevlm": {"layers": (1, 2, 3)},
    "fitprune": {"layers": (1, 2), "keep": (0.5, 0.25)},
    "prunevid_llm": {"layer": 1},
    "aim": {"first": 1, "layers": 3},
    "divprune": {},
    "cdpruner": {"relevance": norms},
    "fastervlm": {},
    "prumerge": {},
    "visionzip": {},
    "vispruner": {},
    "vscan": {"keep": 128, "shallow": 1, "layer": 2},
    "pyramid": {"keep": 144},
    "tome": {"r": 96},
}


class Run(NamedTuple):
    """Seconds of a prompt, and of the library's ops in it."""

    whole: float
    ops: float


class Times:
    """Seconds in ops while it is entered."""

    def __enter__(self) -> "Times":
        self.seconds, run = 0.0, Op._run

        def timed(op: Op, *args: Any) -> Any:
            start = time.perf_counter()
            try:
                return run(op, *args)
            finally:
                self.seconds += time.perf_counter() - start

        self._patch = mock.patch.object(Op, "_run", timed)
        self._patch.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._patch.stop()


def made(width: int) -> tuple[Any, dict[str, torch.Tensor]]:
    """A decoder and a tower of so many features, and a prompt."""
    torch.manual_seed(0)
    sizes = {"hidden_size": width, "num_hidden_layers": LAYERS, "num_attention_heads": width // 64}
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(
            **sizes, intermediate_size=4 * width, image_size=SIDE, patch_size=PATCH
        ),
        text_config=transformers.LlamaConfig(**sizes, intermediate_size=width * 11 // 4, vocab_size=VOCABULARY),
        image_token_id=IMAGE,
    )
    model = transformers.LlavaForConditionalGeneration(config).eval()
    ids = torch.tensor([[1, *range(3, 35), *[IMAGE] * TOKENS, *range(3, 34)]])
    return model, {"input_ids": ids, "pixel_values": torch.randn(1, 3, SIDE, SIDE), "attention_mask": ids.clamp(max=1)}


def timed(call: Callable[[], object]) -> Run:
    with Times() as ops:
        start = time.perf_counter()
        call()
        return Run(time.perf_counter() - start, ops.seconds)


def measure(width: int, rounds: int) -> tuple[dict[str, list[Run]], dict[str, dict[str, Any]]]:
    """Runs of each method in turn, round by round, and what their handles say."""
    model, inputs = made(width)
    runs: dict[str, list[Run]] = {name: [] for name in ("none", *METHODS)}
    stats: dict[str, dict[str, Any]] = {}
    with torch.inference_mode():
        for turn in range(rounds + 1):
            for name, all_runs in runs.items():
                if name == "none":
                    run = timed(lambda: model(**inputs, logits_to_keep=1))
                else:
                    with hf.apply(model, name, **METHODS[name]) as handle:
                        run = timed(lambda: model(**inputs, logits_to_keep=1))
                    stats[name] = handle.stats
                if turn:  # the first warms up
                    all_runs.append(run)
    return runs, stats


def row(name: str, runs: list[Run], base: float, stats: dict[str, Any], operations: int) -> str:
    whole = sorted(run.whole for run in runs)
    spread = f"{1000 * whole[len(whole) // 5]:.0f} to {1000 * whole[-1 - len(whole) // 5]:.0f}"
    middle, ops = statistics.median(whole), statistics.median(run.ops for run in runs)
    tokens = (
        ", ".join(str(counts[0] - TEXT) for counts in stats["tokens"]) if stats else ", ".join([str(TOKENS)] * LAYERS)
    )
    cells = [name, tokens, f"{1000 * middle:.0f}", spread, f"{middle / base:.2f}"]
    formula = (stats["prefill"] + stats["scoring"]) / operations if stats else 1.0
    cells += [f"{1000 * ops:.1f}", f"{100 * ops / middle:.1f} %"] if stats else ["", ""]
    cells.append(f"{formula:.2f}")
    return f"| {' | '.join(cells)} |"


def report(width: int, rounds: int) -> str:
    runs, stats = measure(width, rounds)
    base = statistics.median(run.whole for run in runs["none"])
    language = cost.Language(LAYERS, width, width // 64, width // 64, width * 11 // 4, VOCABULARY)
    operations = cost.prefill_flops(language, TEXT, [TOKENS] * LAYERS)
    lines = [
        f"# Prefill, {device_name()}",
        "",
        f"Commit {commit()}, torch {torch.__version__}, transformers {transformers.__version__}. A LLaVA of random",
        f"weights in float32: {LAYERS} layers of a decoder and {LAYERS} of a tower, {width} wide, {TOKENS} tokens of",
        f"one image and {TEXT} of text; the time is that of tower and decoder together. Methods in turn, medians of",
        f"{rounds} rounds, p20 to p80. *ops* is time in the library's own, which run as the reference on a CPU; the",
        "rest of what a method costs is one more projection to queries, keys and values for each layer that scores.",
        "*formula* is what the decoder's operations and those of scores are of its operations without any method.",
        "",
        "| method | image tokens by layer | ms | p20 to p80 | of none | ms in ops | share | formula |",
        "|---|---|---|---|---|---|---|---|",
        *(row(name, found, base, stats.get(name, {}), operations) for name, found in runs.items()),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent / "results" / "prefill.md")
    options = parser.parse_args()
    text = report(options.width, options.rounds)
    options.out.write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
