"""examples/ray_images.py: what actors write is what one process selects."""

import pathlib
import runpy

import numpy as np
import pytest
import torch

pytest.importorskip("ray")
pytestmark = pytest.mark.slow


def test_a_folder_of_pictures(tmp_path, capsys):
    import pyarrow.parquet
    from PIL import Image

    generator = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for k in range(5):
        coarse = Image.fromarray(generator.integers(0, 256, (9, 7, 3), dtype=np.uint8))
        coarse.resize((90 + k, 70)).save(tmp_path / "in" / f"{k}.png")
    example = runpy.run_path(str(pathlib.Path(__file__).parents[2] / "examples" / "ray_images.py"))
    example["main"]([str(tmp_path / "in"), str(tmp_path / "out"), "--side", "112", "--keep", "20", "--batch", "2"])
    assert "5 pictures, 100 patches" in capsys.readouterr().out
    table = pyarrow.parquet.read_table(tmp_path / "out").to_pylist()
    select = example["Selector"](20, 3, 14).select
    for k in range(5):
        path = tmp_path / "in" / f"{k}.png"
        pixels = np.array(Image.open(path).convert("RGB").resize((112, 112), resample=Image.BILINEAR))
        tokens, places = select(torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255)
        rows = [row for row in table if row["path"] == str(path)]
        assert [[row["level"], row["row"], row["column"]] for row in rows] == places[0].tolist()
        assert torch.equal(torch.tensor([row["token"] for row in rows]), tokens[0])
