"""Random compositions of ops: any shape, dtype, stride, bit pattern and tile. Each op's description gives a step."""

import torch

from pyramid_ops import use_backend
from pyramid_ops.verify.cases import DESCRIPTIONS
from pyramid_ops.verify.cases.pyramid import from_images
from pyramid_ops.verify.inputs import FEATURES, special_scores
from tests.bits import assert_same_bits, poisoned, to


class Composition:
    """Token levels, and what the steps so far made of them.

    All choices come from one drawn seed: hypothesis would vary separate draws too little, and they are small already.
    """

    def __init__(self, random, device):
        self.random, self.device = random, device
        self.levels: list[torch.Tensor] = []
        self.scores: list[torch.Tensor] = []
        self.indices: torch.Tensor | None = None

    def integer(self, low, high):
        return self.random.randint(low, high)

    def choice(self, *values):
        return self.random.choice(values)

    def same(self, op, *args, **options):
        """The result of `op`: the same bits from the kernels, which write all of it and nothing beside it."""
        with use_backend("reference"):
            expected = op(*args, **options)
        args = [to(self.device, arg) for arg in args]
        options = {key: to(self.device, value) for key, value in options.items()}
        with poisoned(), use_backend("kernel"):
            actual = op(*args, **options)
        assert_same_bits(actual, expected, getattr(op, "__name__", str(op)))
        return expected

    def tensor(self, *shape, dtype, kinds=("plain", "bits", "ties")):
        """Ordinary values, any bit pattern, or special values with many ties; any layout."""
        generator = torch.Generator().manual_seed(self.integer(0, 2**32 - 1))
        kind = self.choice(*kinds)
        if kind == "plain" and dtype != torch.uint8:
            x = (torch.randn(shape, generator=generator) * self.choice(1.0, 50.0, 1e-30, 1e30)).to(dtype)
        elif kind == "ties" and dtype != torch.uint8:
            x = special_scores(1, torch.Size(shape).numel(), dtype, 2 * generator.initial_seed()).view(shape)
        else:
            count = torch.Size(shape).numel() * dtype.itemsize
            x = torch.randint(0, 256, (count,), generator=generator, dtype=torch.uint8).view(dtype).view(shape)
        return self.strided(x)

    def strided(self, x):
        layout = self.choice(*["contiguous", "transposed", "gaps", "offset"] * 2, "expanded")
        axis = self.integer(0, x.dim() - 1)
        if layout == "transposed":
            return x.transpose(0, axis).contiguous().transpose(0, axis)
        if layout == "gaps":
            return x.repeat_interleave(2, axis)[(slice(None),) * axis + (slice(None, None, 2),)]
        if layout == "offset":
            return torch.cat((x.reshape(-1)[:1], x.reshape(-1)))[-x.numel() :].view(x.shape) if x.numel() else x
        if layout == "expanded" and x.shape[axis]:
            return x.narrow(axis, 0, 1).expand_as(x)
        return x


def from_tokens(made):
    features = made.choice(1, 2, 3, 5, 8, 16, 17, 31, 33, 64, 65, 130, 257, 300, 1537)
    batch = made.choice(*[1, 1, 2] * 4, 0)
    dtype = made.choice(*FEATURES)
    sizes = [made.integer(0, 30 if features < 100 else 1 + 300 // features) for _ in range(made.integer(1, 3))]
    made.levels = [made.tensor(batch, size, features, dtype=dtype) for size in sizes]


STARTS = (from_images, from_tokens)
# In this order, each with probability 1/3.
STEPS = [step for step in dict.fromkeys(one.compose for one in DESCRIPTIONS.values()) if step not in STARTS]


def tiles(made):
    """Drawn tiles in place of the shipped ones: no bit may depend on them, and few programs suffice."""
    from pyramid_ops.kernels.choosers import forcing

    warps, load = made.choice(4, 8, 32), made.choice(16, 8, 4, 2)
    dots = {"BLOCK_N": made.choice(16, 64), "BLOCK_K": made.choice(16, 64), "num_warps": 4, "num_stages": 1}
    some = {"BLOCK": made.choice(32, 128), "num_warps": 1}
    attention = {**dots, "BLOCK_M": made.choice(16, 64)}
    return forcing(
        row_tiles=lambda choose, rows, *_: choose(rows, warps, load),
        gather_tiles={"ROWS": made.choice(8, 16, 64), "BLOCK": made.choice(32, 128, 512)},
        select_tiles={"BLOCK": made.choice(64, 16), "num_warps": 4},
        match_tiles={**dots, "BLOCK_M": made.choice(16, 64)},
        similarity_tiles={**dots, "BLOCK_M": made.choice(16, 64)},
        nearest_rows=made.choice(7, 1 << 20),
        match_splits=made.choice(1, 2, 3),
        attention_tiles=attention,
        relevance_tiles=attention,
        kept_tiles=attention,
        logits_tiles={"TILES": made.choice(16, 64)},
        attention_splits=made.choice(1, 2, 3),
        threshold_tiles={**some, "CHUNKS": made.choice(1, 2), "num_warps": 4},
        combine_tiles={"ROWS": made.choice(1, 4), "COLUMNS": made.choice(32, 128), "num_warps": 1},
        pool_tiles={"BLOCK": made.choice(32, 256), "num_warps": 1},
        blur_tiles={"ROWS": made.choice(16, 5), "BLOCK": made.choice(16, 64, 128), "num_warps": 1},
        fold_tiles=some,
        entropy_tiles=some,
        budget_tiles={"SAMPLES": made.choice(1, 4)},
    )


def compose(random, device, starts=STARTS, steps=STEPS):
    made = Composition(random, device)
    with tiles(made):
        made.choice(*starts)(made)
        for step in steps:
            if made.choice(True, False, False):
                step(made)
