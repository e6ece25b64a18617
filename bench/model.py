"""What compiled code could take at best, without a GPU: `python -m bench.model` writes `results/model.*`.

Predictions from counts of executed PTX (`bench.executed`) at benchmarks' sizes, and at those of real models. `python -m
bench.model TEXT …` renews the cases whose names have one of the texts.
"""

import functools
import json
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

import pyramid_ops
from bench.compile import RESULTS
from bench.executed import Counted, measure, picture, tokens
from pyramid_ops import plans
from pyramid_ops.verify.inputs import int32

TARGET = "sm_90"
# A large copy on an H200 takes 4.3 TB/s, read and written; an H100's memory has 3.35 / 4.8 of its bandwidth.
BANDWIDTH = {"H100": 3.0e12, "H200": 4.3e12}  # bytes a second
FLOPS = 790e12  # of large bfloat16 products
SMS, SCHEDULERS, CLOCK = 132, 4, 1.755e9
BF16 = torch.bfloat16


class Work(NamedTuple):
    """A call, the bytes that any implementation must read and write, and the operations of its products."""

    call: Callable[[], object]
    bytes: int
    flops: int = 0


Case = tuple[str, Callable[[], Work]]


def size(*tensors: Tensor) -> int:
    return sum(x.nbytes for x in tensors)


def cases() -> Iterator[Case]:
    """Names, and what makes the inputs: bfloat16, batch 1 where no other is given."""
    for batch, side in ((1, 336), (2, 1024)):
        yield f"gaussian_pyramid, {batch}×3×{side}×{side}, 4 levels", functools.partial(pyramid, batch, side)
    yield "patch_entropy, 3×1024×1024 uint8", entropy
    for model, count, features in (
        ("CLIP-L/336", 577, 1024),
        ("SigLIP-so400m", 729, 1152),
        ("Qwen2.5-VL", 16384, 1280),
        ("short rows", 5440, 64),
        ("odd", 4096, 1537),
    ):
        case = f"token_variance, {count} × {features} ({model})"
        yield case, functools.partial(rows, pyramid_ops.token_variance, count, features)
    yield "token_norm, 5440 × 1024", functools.partial(rows, pyramid_ops.token_norm, 5440, 1024)
    yield "region_variance, 64 × 64 × 1024", regions
    yield "paired_similarity, 64 frames of 144 × 1024", frames
    for batch, sizes, features in (
        (1, (1024, 256, 64, 16), 1024),
        (2, (4096, 1024, 256, 64), 1024),
        (1, (65536, 16384, 4096, 1024), 256),
    ):
        case = f"select_topk_levels, {sum(sizes) // 20} of {sum(sizes)} × {features}, batch {batch}"
        yield case, functools.partial(levels, batch, sizes, features)
    for batch, count, k in ((1, 576, 64), (8, 2880, 320), (1, 1 << 20, 4096)):
        yield f"segmented_topk, {k} of {batch} × {count}", functools.partial(topk, batch, count, k)
    for batch, count, features in ((1, 577, 64), (1, 729, 72), (2, 4096, 64), (2, 4096, 1024)):
        case = f"best_match, {batch} × {count - count // 2} × {count // 2}, D = {features}"
        yield case, functools.partial(match, batch, count, features)
    yield "tome and apply, 16 of 577 × 1024 (CLIP-L/336)", tome
    for rule, k in (("maxmin", 64), ("dpp", 64)):
        yield f"greedy_select, {rule}, {k} of 576 × 1024", functools.partial(greedy, rule, k)
    yield "nearest, 8 of 2880 × 64 (LLaVA-NeXT)", neighbours
    for model, heads, count, features in (("CLIP-L/336", 16, 577, 64), ("SigLIP-so400m", 16, 729, 72)):
        for precision in ("grid", "high"):
            case = f"attention_importance, {precision}, {heads} × {count} × {features} ({model})"
            yield case, functools.partial(columns, heads, count, features, precision)
    for model, heads, of, count in (("LLaVA-1.5, 640 tokens", 32, 32, 640), ("grouped, 16,384 tokens", 28, 4, 16384)):
        case = f"attention_importance, last query, {heads} of {of} × {count} × 128 ({model})"
        yield case, functools.partial(last_query, heads, of, count)
    yield "keep and apply, 144 of 640 × 4096 (LLaVA-1.5)", keep


def pyramid(batch: int, side: int) -> Work:
    x = picture("image", batch, 3, side, side, dtype=BF16)
    made = pyramid_ops.gaussian_pyramid(x, 4)
    return Work(functools.partial(pyramid_ops.gaussian_pyramid, x, 4), size(x, *made[1:]))


def entropy() -> Work:
    x = picture("image", 1, 3, 1024, 1024, dtype=torch.uint8)
    return Work(functools.partial(pyramid_ops.patch_entropy, x, 16), size(x) + 4 * 64 * 64)


def rows(op: Callable, count: int, features: int) -> Work:
    x = tokens("rows", 1, count, features)
    return Work(functools.partial(op, x), size(x) + 4 * count)


def regions() -> Work:
    x = tokens("rows", 1, 4096, 1024)
    return Work(functools.partial(pyramid_ops.region_variance, x, (64, 64)), size(x) + 4 * 16)


def frames() -> Work:
    x = tokens("video", 64, 144, 1024)
    return Work(functools.partial(pyramid_ops.paired_similarity, x[1:], x[:-1]), size(x) + 4 * 63 * 144)


def levels(batch: int, sizes: tuple[int, ...], features: int) -> Work:
    made, kept = [tokens(f"level-{count}", batch, count, features) for count in sizes], sum(sizes) // 20
    call = functools.partial(pyramid_ops.select_topk_levels, made, kept)
    return Work(call, size(*made) + batch * kept * (2 * 2 * features + 2 * 8))


def topk(batch: int, count: int, k: int) -> Work:
    scores = tokens("scores", batch * count, dtype=torch.float32)
    bounds = int32(*range(0, batch * count + 1, count))
    call = functools.partial(pyramid_ops.segmented_topk, scores, bounds, k, max_seqlen=count)
    return Work(call, size(scores) + 8 * batch * k)


def match(batch: int, count: int, features: int) -> Work:
    x, half = tokens("metric", batch, count, features), count // 2
    call = functools.partial(pyramid_ops.best_match, x[:, ::2], x[:, 1::2], precision="grid")
    return Work(call, size(x) + 12 * batch * (count - half), 2 * batch * half * (count - half) * features)


def tome() -> Work:
    metric, hidden = tokens("metric", 1, 577, 64), tokens("hidden", 1, 577, 1024)
    merge = functools.partial(plans.tome, metric, 16, class_token=True, precision="grid")
    return Work(lambda: plans.apply(merge(), hidden), size(metric) + 2 * size(hidden), 2 * 288**2 * 64)


def greedy(rule: str, k: int) -> Work:
    x = tokens("greedy", 1, 576, 1024)
    call = functools.partial(pyramid_ops.greedy_select, x, k, rule=rule)
    return Work(call, size(x) + 8 * k, 2 * 576 * 576 * 1024)


def neighbours() -> Work:
    x = tokens("nearest", 1, 2880, 64)
    call = functools.partial(pyramid_ops.nearest, x, x, 8, precision="grid", exclude_self=True)
    return Work(call, size(x) + 12 * 8 * 2880, 2 * 2880**2 * 64)


def columns(heads: int, count: int, features: int, precision: str) -> Work:
    q, k = (tokens(what, 1, heads, count, features) for what in "qk")
    call = functools.partial(pyramid_ops.attention_importance, q, k, precision=precision)
    return Work(call, size(q, k) + 4 * count, 2 * heads * count**2 * features)


def last_query(heads: int, of: int, count: int) -> Work:
    q, k = tokens("q", 1, heads, 1, 128), tokens("k", 1, of, count, 128)
    call = functools.partial(pyramid_ops.attention_importance, q, k, query_indices=[-1], causal=True)
    return Work(call, size(q, k) + 4 * count)


def keep() -> Work:
    scores, image = tokens("scores", 1, 640, dtype=torch.float32), torch.arange(640).view(1, 640) < 576
    hidden, positions = tokens("hidden", 1, 640, 4096), torch.arange(640)[None]
    kept = functools.partial(plans.keep, scores, 144, candidates=image, forced=~image, capacity=208)
    return Work(lambda: plans.apply(kept(), [hidden, positions]), size(scores) + 208 * 2 * (2 * 4096 + 8))


def instruction_time(found: dict[str, Any]) -> float:
    """Seconds in which the schedulers of the busiest SM issue its share of a kernel's instructions, one a clock."""
    programs = found["programs"] / found["launches"]
    of_one = found["warp instructions"] / found["programs"]
    on_busiest = -(-programs // SMS)
    schedulers = min(SCHEDULERS, on_busiest * max(1, found["threads"][-1] // 32))
    return found["launches"] * on_busiest * of_one / schedulers / CLOCK


def predicted(work: Work, counts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Bounds of a call, from the counts of its kernels."""
    times = {kernel: instruction_time(found) for kernel, found in counts.items()}
    slowest = max(times, key=lambda kernel: times[kernel])
    floors = {card: max(work.bytes / rate, work.flops / FLOPS) for card, rate in BANDWIDTH.items()}
    return {
        "launches": sum(found["launches"] for found in counts.values()),
        "bytes": work.bytes,
        "flops": work.flops,
        "bytes requested": 32 * sum(found[what][0] for found in counts.values() for what in ("loads", "stores")),
        "warp instructions": sum(found["warp instructions"] for found in counts.values()),
        "barriers": round(sum(found["launches"] * found["barriers"] for found in counts.values()), 1),
        "floor": {card: 1e6 * floor for card, floor in floors.items()},
        "issue": 1e6 * sum(times.values()),
        "most": [slowest, times[slowest] / sum(times.values())],
        "bound": {card: 1e6 * max(floor, sum(times.values())) for card, floor in floors.items()},
    }


HEAD = [
    "| case | launches | MB that must move | MB requested | 1000 warp instructions | barriers | floor, µs "
    "| issue, µs | bound / floor | most of the issue |",
    "|---|---|---|---|---|---|---|---|---|---|",
]


def row(case: str, found: dict[str, Any]) -> str:
    kernel, share = found["most"]
    floor = " / ".join(f"{found['floor'][card]:.3g}" for card in BANDWIDTH)
    ratio = " / ".join(f"{found['bound'][card] / found['floor'][card]:.2g}" for card in BANDWIDTH)
    cells = [
        case,
        f"{found['launches']}",
        f"{found['bytes'] / 1e6:.3g}",
        f"{found['bytes requested'] / 1e6:.3g}",
        f"{found['warp instructions'] / 1e3:,.0f}",
        f"{found['barriers']:g}",
        floor,
        f"{found['issue']:.3g}",
        ratio,
        f"`{kernel}` {100 * share:.0f} %",
    ]
    return f"| {' | '.join(cells)} |"


def draw(found: dict[str, dict[str, Any]], path: pathlib.Path) -> None:
    """Predicted bound over floor, against the bytes that must move."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8.5, 5.5), layout="constrained")
    families = dict.fromkeys(case.partition(",")[0] for case in found)
    for number, family in enumerate(families):
        points = [one for case, one in found.items() if case.partition(",")[0] == family]
        axes.scatter(
            [one["bytes"] / 1e6 for one in points],
            [one["bound"]["H200"] / one["floor"]["H200"] for one in points],
            color=f"C{number % 10}",
            marker="os^Dv"[number // 10 + number % 2],
            label=family,
        )
    axes.axhline(1, color="k", linestyle="--", linewidth=1)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="bytes that must move, MB",
        ylabel="predicted bound / floor, H200",
        title="Predictions from executed instructions (no GPU has run): 1 = at its floor of bytes or products",
    )
    axes.title.set_fontsize(10)
    axes.grid(alpha=0.3)
    figure.legend(fontsize=8, loc="outside right center")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def text() -> str:
    copies = " / ".join(f"{rate / 1e12:g}" for rate in BANDWIDTH.values())
    return f"""# Predictions for H100 and H200

Triton {triton.__version__}, compiled for {TARGET}. **Nothing here was measured on a GPU.** The PTX of each call was
executed on the CPU and counted, as in [`executed.md`](executed.md); bounds follow from the counts. Pairs of numbers are
for H100 / H200.

- *floor*: the bytes that any implementation must move, at {copies} TB/s, or the products it must form, at
  {FLOPS / 1e12:g} TFLOP/s, whichever takes longer. The copy rate of an H200 and the rate of products were measured by
  others; that of an H100 is in proportion to its memory.
- *issue*: all instructions of the busiest of {SMS} SMs, one a clock on each of {SCHEDULERS} schedulers at
  {CLOCK / 1e9:g} GHz, launch after launch. A launch of few programs leaves the other SMs idle, and that counts.
- *bound / floor*: the longer of the two over the floor, so that 1 is a call which only its bytes or products limit.
  What launches, latencies, barriers and misses of the L2 add is not in it: at batch 1 a launch costs as much as most
  of these numbers.
- *requested*: sectors that instructions ask for, of which the L2 serves what is read again.
"""


def committed() -> dict[str, Any]:
    """`results/model.json`: the Triton version, and counts and bounds of each case."""
    return json.loads((RESULTS / "model.json").read_text())


def main(texts: list[str]) -> None:
    torch.set_num_threads(1)
    found = {}
    old = committed()["cases"] if texts else {}
    for case, make in cases():
        if texts and not any(part in case for part in texts):
            found[case] = old[case]
            continue
        work = make()
        found[case] = predicted(work, measure(TARGET, Counted(case, 1, "call", work.call)))
        print(row(case, found[case]), flush=True)
    lines = [text(), *HEAD, *(row(case, one) for case, one in found.items())]
    (RESULTS / "model.md").write_text("\n".join(lines) + "\n")
    entries = ",\n".join(f"{json.dumps(case, ensure_ascii=False)}: {json.dumps(one)}" for case, one in found.items())
    (RESULTS / "model.json").write_text(f'{{"triton": "{triton.__version__}", "cases": {{\n{entries}\n}}}}\n')
    draw(found, RESULTS / "model.png")


if __name__ == "__main__":
    main(sys.argv[1:])
