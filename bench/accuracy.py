"""`python -m bench.accuracy`: how often matching finds the partners that float64 finds; writes results/merging.md."""

import pathlib

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


def main() -> None:
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
    (pathlib.Path(__file__).parent / "results" / "merging.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
