"""The command line: a picture in, a picture out, one clear line where it cannot."""

import os
import pathlib
import re
import subprocess
import sys

import pytest
import torch

import pyramid_ops
from pyramid_ops import __main__ as cli

pytest.importorskip("matplotlib")
pytest.importorskip("rich")
Image = pytest.importorskip("PIL.Image")
pytest.importorskip("skimage")


@pytest.fixture
def photo(tmp_path):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (100, 150, 3), generator=generator, dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_default_photo_selects_273_of_1360(tmp_path, capsys):
    out = tmp_path / "selection.png"
    assert cli.main(["select", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    for text in ("1360", "273", "115", "85", "57", "16", "kept by detail", "plain downscaling"):
        assert text in printed
    with Image.open(out) as picture:
        assert picture.width > 1000
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 1000


def test_readme_tells_what_the_demo_prints(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    assert cli.main(["select", "--out", str(tmp_path / "selection.png")]) == 0
    printed = capsys.readouterr().out
    readme = (pathlib.Path(__file__).parents[2] / "README.md").read_text()
    rows = {
        "kept by detail": r"\| kept by \*detail\*.*?\| ([\d.]+) dB \| (\d+) % \|",
        "uniform choice": r"\| uniform choice \| ([\d.]+) dB \| (\d+) % \|",
        "random choice": r"\| random choice \| ([\d.]+) dB \| (\d+) % \|",
        "plain downscaling": r"\| the photo plainly downscaled.*?\| \**([\d.]+) dB\** \| (\d+) % \|",
    }
    for name, pattern in rows.items():
        told = re.search(pattern, readme).groups()
        assert re.search(rf"{name}\W+([\d.]+)\W+(\d+)%", printed).groups() == told


@pytest.mark.parametrize("saliency", ["detail", "variance", "norm"])
def test_own_photo(photo, tmp_path, capsys, saliency):
    out = tmp_path / "out.pdf"
    options = ["--tokens", "40", "--patch-size", "8", "--levels", "3", "--saliency", saliency, "--out", str(out)]
    assert cli.main(["select", str(photo), *options]) == 0
    assert "cropped from 100×150" in capsys.readouterr().out
    assert out.stat().st_size > 1000


def test_module_runs_without_unicode_or_a_usual_backend(photo, tmp_path):
    photo = photo.rename(tmp_path / "$\\frac$.png")
    out = tmp_path / "out.png"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "MPLBACKEND": "module://missing"}
    command = [sys.executable, "-m", "pyramid_ops", "select", str(photo), "--tokens", "54", "--levels", "1"]
    command += ["--out", str(out)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr
    assert out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.png"], "IMAGE: cannot read missing.png: No such file or directory"),
        ([__file__], "not an image"),
        (["."], "IMAGE: cannot read .: Is a directory"),
        (["PHOTO", "--patch-size", "101"], "IMAGE: expected at least one patch of 101×101 pixels, got 100×150"),
        (["PHOTO", "--levels", "4"], "--levels: expected at most 3 for 100×150 pixels, got 4"),
        (["PHOTO", "--levels", "1000000"], "--levels: expected at most 3"),
        (["PHOTO", "--levels", "0"], "--levels: expected at least 1, got 0"),
        (
            ["PHOTO", "--levels", "2", "--tokens", "999"],
            "--tokens: expected 12 (the coarsest level, always kept) to 60",
        ),
        (["PHOTO", "--levels", "2", "--tokens", "3"], "--tokens: expected 12"),
        (["PHOTO", "--tokens", "many"], "argument --tokens: invalid int value: 'many'"),
        (["PHOTO", "--saliency", "entropy"], "argument --saliency: invalid choice: 'entropy'"),
        (["PHOTO", "--levels", "2", "--tokens", "20", "--out", "/no/such/folder/x.png"], "--out: cannot write"),
        (["PHOTO", "--levels", "2", "--tokens", "20", "--out", "x.unknown"], "--out: cannot write x.unknown"),
        (["PHOTO", "--out", "selection"], "--out: expected a file name such as selection.png, got 'selection'"),
        (["PHOTO", "--out", "PHOTO"], "--out: expected another file than IMAGE"),
        (["DEEP"], "IMAGE: expected 8 bits a channel, got mode I;16"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(photo, capsys, arguments, message):
    deep = photo.with_name("deep.png")
    Image.fromarray(torch.arange(4096).view(64, 64).numpy().astype("uint16")).save(deep)
    names = {"PHOTO": str(photo), "DEEP": str(deep)}
    arguments = [names.get(argument, argument) for argument in arguments]
    try:
        code = cli.main(["select", *arguments])
    except SystemExit as stop:
        code = stop.code
    error = capsys.readouterr().err
    assert code == 2
    assert message in error
    assert error.count("\n") == 1


def test_the_picture_rebuilt_from_all_patches_is_the_photo():
    levels = pyramid_ops.gaussian_pyramid(torch.rand(1, 3, 64, 32), 3)
    everything = [torch.stack((torch.full((n,), k), torch.arange(n)), 1) for k, n in enumerate((32, 8, 2))]
    assert torch.equal(cli.rebuild(levels, torch.cat(everything)[None], 8), levels[0])


def test_uniform_and_random_choices_have_the_asked_size_and_no_repeats():
    levels = [torch.rand(1, 3, 128 >> k, 192 >> k) for k in range(3)]
    sizes = [96, 24, 6]
    for budgets in ([0, 0, 6], [1, 5, 6], [37, 11, 6], [95, 23, 5], sizes):
        for chosen in (cli.uniform_indices(levels, 16, budgets), cli.random_indices(sizes, budgets)):
            pairs = {tuple(pair) for pair in chosen[0].tolist()}
            assert len(pairs) == sum(budgets)
            assert all(0 <= index < sizes[level] for level, index in pairs)


def test_merge_draws_the_default_photo(tmp_path, capsys):
    out = tmp_path / "merging.png"
    assert cli.main(["merge", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    for text in ("1024 patches", "512", "256", "102"):
        assert text in printed
    with Image.open(out) as picture:
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 500


def test_merge_own_photo(photo, tmp_path, capsys):
    out = tmp_path / "out.pdf"
    assert cli.main(["merge", str(photo), "--patch-size", "10", "--keep", "1", "0.001", "--out", str(out)]) == 0
    assert "150 patches of 10×10" in capsys.readouterr().out
    assert out.stat().st_size > 1000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--keep", "0"], "--keep: expected shares above 0, at most 1, got 0"),
        (["--keep", "nan"], "--keep: expected shares above 0"),
        (["--patch-size", "0"], "--patch-size: expected at least 1, got 0"),
        (["--patch-size", "99"], "--patch-size: expected at most 73, got 99"),
        (["--patch-size", "101"], "IMAGE: expected at least one patch"),
        (["--out", "figure"], "--out: expected a file name such as merging.png"),
    ],
)
def test_merge_explains_bad_input(photo, capsys, options, message):
    assert cli.main(["merge", str(photo), *options]) == 2
    assert message in capsys.readouterr().err


def test_merged_groups_cover_all_tokens():
    metric = torch.randn(1, 61, 8, generator=torch.Generator().manual_seed(0))
    for left in (61, 30, 7, 1):
        group = cli.merge_to(metric, left)
        assert group.unique().tolist() == list(range(left))
