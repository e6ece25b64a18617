"""`pyramid-ops methods`: a panel for each method, of any photo."""

import pytest
import torch

from pyramid_ops import __main__ as cli

for module in ("matplotlib", "rich", "PIL.Image", "skimage"):
    pytest.importorskip(module)

from PIL import Image  # noqa: E402

from pyramid_ops.demo import images, methods, panels, standins  # noqa: E402
from tests.demo.pictures import picture  # noqa: E402


def test_methods_side_by_side(photo, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    out = tmp_path / "methods.png"
    options = ["--patch-size", "8", "--tokens", "16", "--at", "0", "1", "--out", str(out)]
    assert cli.main(["methods", str(photo), *options]) == 0
    printed = capsys.readouterr().out
    assert "192 patches of 8×8" in printed
    for name in panels.PANELS:
        assert name in printed
    with Image.open(out) as drawn:
        assert drawn.width > 1000


@pytest.mark.parametrize("pixels", [torch.zeros(1, 3, 32, 64), torch.rand(1, 3, 32, 32)], ids=["flat", "noise"])
def test_every_panel_shows_as_many_patches_as_there_can_be(pixels):
    given = standins.stand_ins(pixels, 4, (0.5, 0.5))
    size = given.grid[0] * given.grid[1]
    for name, rule in panels.PANELS.items():
        shown = rule(given, 8)
        assert 0 < shown.tokens <= size, name
        parts = [shown.group] if isinstance(shown, panels.Grouped) else [shown.mask]
        assert all(part.shape == (size,) for part in parts), name


def test_a_large_photo_is_made_smaller_for_methods(tmp_path):
    picture(90, 300).save(tmp_path / "wide.png")
    assert images.load(str(tmp_path / "wide.png"), 4, 3, 32).size == "32×128"


def test_a_small_photo_has_patches_enough_for_64_tokens(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(methods, "PANELS", {"FasterVLM": panels.fastervlm})
    picture(97, 131).save(tmp_path / "odd.png")
    assert cli.main(["methods", str(tmp_path / "odd.png"), "--out", str(tmp_path / "out.png")]) == 0
    assert "64×96, made smaller from 97×131, cropped from 71×96, 384 patches of 4×4" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tokens", "7"], "to 48 (a quarter of the 192 patches: with more the panels look alike), got 7"),
        (["--tokens", "49"], "--tokens: expected 8 (fewer are little more than DART's pivots) to 48 (a quarter"),
        (["--at", "0", "1.5"], "--at: expected shares from 0 to 1, got 0 1.5"),
        (["--at", "nan", "1"], "--at: expected shares from 0 to 1, got nan 1"),
        (["--patch-size", "26"], "IMAGE: expected at least 104×104 pixels, got 100×150"),
        (["--patch-size", "25"], "IMAGE: expected at least 32 patches of 25×25, got 16"),
    ],
)
def test_methods_explains_bad_input(photo, refused, options, message):
    assert message in refused("methods", photo, "--patch-size", "8", *options)
