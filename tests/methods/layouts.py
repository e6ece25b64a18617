"""Sequences of images and text, alone, padded on the left and packed; and plain code for one of them."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pyramid_ops.results import Keep, Merge

LAYOUTS = ("dense", "padded", "packed")
HEADS, GROUPS, WIDTH, FEATURES = 4, 2, 16, 24
#: Image tokens of each sample: one image or two, between text.
IMAGES = {
    "dense": (((3, 20),), ((2, 9), (11, 21))),
    "padded": (((3, 20),), ((2, 9), (11, 27))),
    "packed": (((3, 20),), ((2, 9), (11, 27)), ((1, 6),)),
}
TEXT = {"dense": 5, "padded": 6, "packed": 4}


def samples(layout: str, seed: int = 0, twins: bool = True) -> list[dict[str, Tensor]]:
    """Heads, hidden states and masks of each sample; with `twins` image tokens come in equal pairs, for ties."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for images in IMAGES[layout]:
        size = 26 if layout == "dense" else images[-1][1] + TEXT[layout]
        image = torch.zeros(size, dtype=torch.bool)
        for start, stop in images:
            image[start:stop] = True
        sample = {
            "query": torch.randn(HEADS, size, WIDTH, generator=generator),
            "key": torch.randn(GROUPS, size, WIDTH, generator=generator),
            "hidden": torch.randn(size, FEATURES, generator=generator),
            "image": image,
            "text": ~image & (torch.arange(size) >= images[-1][1]),
        }
        if twins:
            places = image.nonzero()[:, 0]
            sample["key"][:, places[1::2]] = sample["key"][:, places[: places.shape[0] // 2 * 2 : 2]]
        made.append(sample)
    return made


def together(layout: str, given: Sequence[dict[str, Tensor]]) -> tuple[dict[str, Tensor], dict]:
    """(tensors of all samples, what says where they are): of padding only noise."""
    sizes = [sample["image"].shape[0] for sample in given]
    if layout == "packed":
        tensors = {
            name: torch.cat([x[name].movedim(-2, 0) if x[name].dim() == 3 else x[name] for x in given])
            for name in given[0]
        }
        offsets = torch.tensor([0, *torch.tensor(sizes).cumsum(0).tolist()], dtype=torch.int32)
        return tensors, {"cu_seqlens": offsets, "max_seqlen": max(sizes)}
    longest, tensors = max(sizes), {}
    for name in given[0]:
        rows = []
        for sample, size in zip(given, sizes, strict=True):
            x = sample[name]
            shape = list(x.shape)
            shape[-2 if x.dim() > 1 else 0] = longest - size
            noise = torch.full(shape, 7, dtype=x.dtype) if x.dtype != torch.bool else torch.ones(shape, dtype=x.dtype)
            rows.append(torch.cat([noise, x], -2 if x.dim() > 1 else 0))
        tensors[name] = torch.stack(rows)
    if layout == "dense":
        return tensors, {}
    there = torch.stack([torch.arange(longest) >= longest - size for size in sizes])
    # Noise is no image and no text.
    tensors |= {name: tensors[name] & there for name in ("image", "text")}
    return tensors, {"key_mask": there}


def kept(plan: Keep | Merge, layout: str, given: Sequence[dict[str, Tensor]]) -> list[list[int]]:
    """The tokens of each sample that stay, counted from its start."""
    sizes, found, start = [sample["image"].shape[0] for sample in given], [], 0
    for k, size in enumerate(sizes):
        if plan.indices.dim() == 1:
            found.append((plan.indices[plan.cu_seqlens[k] : plan.cu_seqlens[k + 1]] - start).tolist())
            start += size
        else:
            found.append((plan.indices[k, : plan.counts[k]] - (max(sizes) - size)).tolist())
    return found


def probabilities(query: Tensor, key: Tensor, causal: bool = True, temperature: float = 1.0) -> Tensor:
    """`[H, Nq, N]` of one sample, in float64."""
    key = key.double().repeat_interleave(query.shape[0] // key.shape[0], 0)
    logits = query.double() @ key.mT / query.shape[-1] ** 0.5 / temperature
    if causal:
        past = torch.arange(key.shape[1]) <= torch.arange(query.shape[1])[:, None] + key.shape[1] - query.shape[1]
        logits = logits.masked_fill(~past, -torch.inf)
    return logits.softmax(-1)


def best(scores: Tensor, k: int, among: Sequence[int], largest: bool = True) -> list[int]:
    """The k best of some tokens, the lower index first among equals: up to what float64 rounds."""
    rounded = (scores.double() * 1e12).round()
    return sorted(among, key=lambda i: (-rounded[i] if largest else rounded[i], i))[:k]


def with_text(image: Tensor, chosen: Sequence[int]) -> list[int]:
    """Text and chosen image tokens, in order."""
    return sorted([*(~image).nonzero()[:, 0].tolist(), *chosen])


def places(mask: Tensor) -> list[int]:
    return mask.nonzero()[:, 0].tolist()


def unit(x: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x.double(), dim=-1)


def check(layout: str, method: Callable, plainly: Callable, seed: int = 0, twins: bool = True) -> None:
    """A method on all samples together stays with what plain code keeps of each alone."""
    given = samples(layout, seed, twins)
    tensors, where = together(layout, given)
    plan = method(tensors, where)
    assert kept(plan, layout, given) == [plainly(sample) for sample in given]


def dpc_knn(x: Tensor, count: int, k: int) -> tuple[list[int], list[int]]:
    """(centers, best first, the place among them of each token's) of `[N, D]`, as SparseVLM and PruneVid cluster.

    Where the authors add noise to densities, the lower index is denser.
    """
    x = x.double()
    distance = (x[:, None] - x[None]).norm(dim=-1) / x.shape[1] ** 0.5
    density = (-distance.sort(1).values[:, :k].square().mean(1)).exp()
    rank = [(-density[i].item(), i) for i in range(len(x))]
    delta = [
        min((distance[i, j].item() for j in range(len(x)) if rank[j] < rank[i]), default=torch.inf)
        for i in range(len(x))
    ]
    score = [d * -r if d < torch.inf else d for d, (r, _) in zip(delta, rank, strict=True)]
    centers = sorted(range(len(x)), key=lambda i: (-score[i], i))[:count]
    place = [min(centers, key=lambda c: (0 if c == i else 1, distance[i, c].item(), c)) for i in range(len(x))]
    return centers, [centers.index(i if i in centers else c) for i, c in enumerate(place)]
