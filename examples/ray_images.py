"""A folder of pictures on any number of machines: the most salient patches of each one's pyramid, in Parquet.

    pip install "pyramid_ops[ray]"
    python examples/ray_images.py PICTURES OUT [--actors 4] [--keep 144]

Ray Data reads the folder block by block, a pool of actors selects, and what is kept is written as it comes, with
progress on the terminal. As it stands this runs on one machine; on a cluster, where RAY_ADDRESS says which and
pyramid_ops is installed on its nodes, paths are those of storage that all nodes see, such as ``s3://…``. Each GPU has
an actor if there are GPUs. A row of OUT is a patch: `path`, `level`, `row` and `column` in the grid of its level, and
`token`, its pixels. The bits are the same whichever machine a picture came to. A model's tower goes where patches are
made: in place of `patchify`, once an actor.
"""

import argparse
import time
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch

import pyramid_ops


class Selector:
    """An actor: pictures in, kept patches out."""

    def __init__(self, keep: int, levels: int, patch: int):
        self.keep, self.levels, self.patch = keep, levels, patch
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.set_num_threads(1)  # actors are the parallel part

    def __call__(self, batch: dict[str, Any]) -> pa.Table:
        pixels = torch.from_numpy(np.array(batch["image"])).to(self.device)
        tokens, positions = self.select(pixels.permute(0, 3, 1, 2).float() / 255)
        flat = pa.array(tokens.flatten().cpu().numpy())
        columns = {"path": pa.array(np.repeat(batch["path"], self.keep).tolist(), pa.string())}
        for k, name in enumerate(("level", "row", "column")):
            columns[name] = pa.array(positions[..., k].flatten().cpu().numpy().astype(np.int32))
        columns["token"] = pa.FixedSizeListArray.from_arrays(flat, tokens.shape[2])
        return pa.table(columns)

    def select(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images ``[B, 3, H, W]`` to tokens ``[B, keep, D]`` and where they are, ``[B, keep, 3]``."""
        levels = pyramid_ops.gaussian_pyramid(images, self.levels)
        patches = [pyramid_ops.patchify(level, self.patch) for level in levels]
        kept = pyramid_ops.select_topk_levels(patches, self.keep, None)
        positions = pyramid_ops.patch_positions(levels, self.patch)
        everywhere = [place.expand(len(images), -1, -1) for place in positions]
        return kept.tokens, pyramid_ops.gather_levels(everywhere, kept.indices)


def run(pictures: str, out: str, side: int, levels: int, patch: int, keep: int, actors: int, batch: int) -> int:
    """Patches written."""
    if side % (patch << (levels - 1)):
        raise SystemExit(f"--side: expected a multiple of {patch << (levels - 1)}, got {side}")
    ray.init(ignore_reinit_error=True, log_to_driver=False)
    cpus, gpus = (int(ray.cluster_resources().get(name, 0)) for name in ("CPU", "GPU"))
    actors = min(actors, gpus) if gpus else actors
    rows = ray.data.read_images(pictures, size=(side, side), mode="RGB", include_paths=True).map_batches(
        Selector,
        fn_constructor_args=(keep, levels, patch),
        batch_size=batch,
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=min(1.0, (cpus - 1) / actors),  # one is left that reads and writes
        num_gpus=1 if gpus else 0,
    )
    rows.write_parquet(out)
    return ray.data.read_parquet(out).count()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="The most salient patches of a folder of pictures, in Parquet.")
    parser.add_argument("pictures", help="a folder, or a URL of one")
    parser.add_argument("out", help="a folder for Parquet files, or a URL of one")
    for name, default, what in (
        ("side", 448, "pixels that pictures are resized to"),
        ("levels", 3, "levels of the pyramid"),
        ("patch", 14, "side of a patch in pixels"),
        ("keep", 144, "patches of each picture"),
        ("actors", 2, "how many run at once"),
        ("batch", 16, "pictures in a call"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{what} (default: %(default)s)")
    options = parser.parse_args(argv)
    start = time.perf_counter()
    count = run(**vars(options))
    ray.shutdown()
    seconds = time.perf_counter() - start
    print(f"{count // options.keep} pictures, {count} patches in {options.out}, {seconds:.1f} s")


if __name__ == "__main__":
    main()
