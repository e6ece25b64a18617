"""Plans: what stays in an LLM's layer and all that belongs to it moved, against the eager lines that users write."""

import functools

import pytest
import torch

from bench.conftest import DEVICE
from pyramid_ops import plans

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@DTYPES
@pytest.mark.parametrize(("batch", "tokens", "image", "kept"), [(1, 640, 576, 144), (4, 2944, 2880, 720)])
def test_keep(compare, batch, tokens, image, kept, dtype):
    """Hidden states, positions, keys and values of 576 or 2880 image tokens in a prompt."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    random = functools.partial(torch.randn, device=DEVICE, generator=generator)
    scores, hidden = random(batch, tokens), random(batch, tokens, 1024).to(dtype)
    key, value = (random(batch, 8, tokens, 64).to(dtype) for _ in range(2))
    positions = torch.arange(tokens, device=DEVICE).expand(batch, -1).contiguous()
    is_image = torch.zeros(batch, tokens, dtype=torch.bool, device=DEVICE)
    is_image[:, 32 : 32 + image] = True

    def ours(scores, hidden, key, value, positions, is_image):
        capacity = tokens - image + kept
        plan = plans.keep(scores, kept, candidates=is_image, forced=~is_image, capacity=capacity)
        return plans.apply(plan, [hidden, positions, key, value])

    def eager(scores, hidden, key, value, positions, is_image):
        best = scores.masked_fill(~is_image, -torch.inf).topk(kept).indices
        stays = (~is_image).scatter(1, best, True)
        index = stays.sort(dim=1, descending=True, stable=True).indices[:, : tokens - image + kept].sort(1).values
        rows = index[:, None, :, None].expand(-1, 8, -1, 64)
        hidden = hidden.gather(1, index[:, :, None].expand(-1, -1, 1024))
        return hidden, positions.gather(1, index), key.gather(2, rows), value.gather(2, rows)

    arguments = (scores, hidden, key, value, positions, is_image)
    written = sum(x.nbytes for x in arguments[1:5]) * (tokens - image + kept) // tokens
    compare({"pyramid_ops": ours, "eager": eager}, arguments, scores.nbytes + is_image.nbytes + 2 * written)
