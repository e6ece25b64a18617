"""`python -m bench.accuracy [merging|attention]`: what float64 finds, and how much of it each precision finds.

Writes results/merging.md and results/attention.md.
"""

import pathlib
import sys

import torch
import torch.nn.functional as F
from torch import Tensor

import pyramid_ops

TOKENS = 2048
EAGER = (torch.float32, torch.float16, torch.bfloat16)


def data(kind: str, features: int) -> Tensor:
    """`[N, D]` float16: what a vision encoder's tokens can look like."""
    generator = torch.Generator().manual_seed(features)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    if kind == "near-duplicate frames":
        frame = randn(TOKENS // 4, features)
        x = torch.cat([frame + 0.02 * randn(TOKENS // 4, features) for _ in range(4)])
        return x[torch.randperm(TOKENS, generator=generator)].half()
    x = randn(TOKENS // 16, features)[torch.randint(0, TOKENS // 16, (TOKENS,), generator=generator)]
    x = x + 0.7 * randn(TOKENS, features)
    if kind.startswith("common mean"):
        x = x + int(kind.split("×")[1]) * randn(features)
    if kind.startswith("two massive"):
        x[:, :2] *= 300
    return x.half()


KINDS = ("clustered", "common mean ×3", "common mean ×10", "two massive dimensions ×300", "near-duplicate frames")


def eager(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    x = x.to(dtype)
    x = x / x.norm(dim=-1, keepdim=True)
    best, partner = (x[::2] @ x[1::2].mT).max(-1)
    return partner, best


def agreement(x: Tensor) -> list[str]:
    """Share of equal partners / overlap of the most similar quarter, for each way of matching."""
    units = F.normalize(x.double(), dim=-1)
    similarity, partner = (units[::2] @ units[1::2].mT).max(-1)
    r = len(partner) // 2
    top = set(similarity.topk(r).indices.tolist())
    ways = []
    for precision in ("grid", "high"):
        match = pyramid_ops.best_match(x[::2], x[1::2], precision=precision)
        ways.append((match.indices, match.similarity))
    ways += [eager(x, dtype) for dtype in EAGER]
    result = []
    for found, score in ways:
        order = score.double().argsort(dim=-1, descending=True, stable=True)[:r].tolist()
        result.append(f"{(found == partner).double().mean():.3f} / {len(top & set(order)) / r:.3f}")
    return result


def merging() -> list[str]:
    lines = [
        "# Partners that float64 finds",
        "",
        f"{TOKENS} tokens given in float16, even tokens matched with odd ones. Share of tokens with the partner that a",
        "float64 similarity gives / overlap of the most similar half of the even tokens with float64's. *eager* is",
        f"`x / x.norm()`, `@`, `max` in that dtype, on the CPU, torch {torch.__version__}.",
        "",
        "| data | D | grid | high | eager float32 | eager float16 | eager bfloat16 |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind in KINDS:
        for features in (64, 128, 1024, 4096):
            lines.append(f"| {kind} | {features} | " + " | ".join(agreement(data(kind, features))) + " |")
            print(lines[-1], flush=True)
    return lines


HEADS = 4
ATTENTION_TOKENS = 1024


def heads(kind: str, features: int) -> tuple[Tensor, Tensor]:
    """q and k `[1, H, N, D]` bfloat16: ordinary, peaked, with an attention sink, of large norms."""
    generator = torch.Generator().manual_seed(features)

    def randn(*shape: int) -> Tensor:
        return torch.randn(1, HEADS, *shape, generator=generator)

    q, k = randn(ATTENTION_TOKENS, features), randn(ATTENTION_TOKENS, features)
    if kind == "peaked, logits to ±34":
        q = q * 6.5
    if kind.startswith("attention sink"):
        direction = randn(1, features)
        q, k[:, :, 0] = q + direction, int(kind.split()[-1]) * features**-0.5 * direction[:, :, 0]
    if kind == "biased keys, logits to ±260":
        k = 2 * k + 30 * randn(1, features)
    return q.bfloat16(), k.bfloat16()


ATTENTION_KINDS = (
    "Gaussian",
    "peaked, logits to ±34",
    "attention sink, logit 10",
    "attention sink, logit 22",
    "biased keys, logits to ±260",
)


def column_means(q: Tensor, k: Tensor) -> Tensor:
    return torch.softmax(q @ k.mT * q.shape[3] ** -0.5, -1).mean((1, 2))[0]


def errors(q: Tensor, k: Tensor) -> list[str]:
    """Largest relative error of a column mean / overlap of the top quarter, for each way."""
    exact = column_means(q.double(), k.double())
    top = set(exact.topk(len(exact) // 4).indices.tolist())
    ways = [
        pyramid_ops.attention_importance(q, k, precision=precision, center_keys=centred)[0]
        for precision in ("grid", "high")
        for centred in (False, True)
    ]
    ways += [column_means(q.to(dtype), k.to(dtype)) for dtype in EAGER]
    result = []
    for scores in ways:
        order = scores.double().argsort(descending=True, stable=True)[: len(top)].tolist()
        error = float(((scores.double() - exact).abs() / exact).max())
        result.append(f"{error:.1e} / {len(top & set(order)) / len(top):.3f}")
    return result


def attention() -> list[str]:
    lines = [
        "# Column means of attention against a float64 softmax",
        "",
        f"{HEADS} heads, {ATTENTION_TOKENS} tokens given in bfloat16. Largest relative error of the mean attention",
        "that a token receives / overlap of the top quarter with float64's. *eager* is softmax and mean in",
        f"that dtype, on the CPU, torch {torch.__version__}. *centred*: `center_keys=True`. Probabilities are kept to",
        "2⁻³⁰ each: where a sink takes nearly everything, the others' means have few digits left.",
        "",
        "| data | D | grid | grid, centred | high | high, centred | eager float32 | eager float16 | eager bfloat16 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for kind in ATTENTION_KINDS:
        for features in (64, 128):
            lines.append(f"| {kind} | {features} | " + " | ".join(errors(*heads(kind, features))) + " |")
            print(lines[-1], flush=True)
    return lines


def main(*names: str) -> None:
    for name in names or ("merging", "attention"):
        lines = {"merging": merging, "attention": attention}[name]()
        (pathlib.Path(__file__).parent / "results" / f"{name}.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
