"""The command line: a picture in, a picture out, one clear line where it cannot."""

import ast
import contextlib
import io
import os
import pathlib
import random
import re
import shlex
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

import pyramid_ops
from pyramid_ops import __main__ as cli

matplotlib = pytest.importorskip("matplotlib")
pytest.importorskip("rich")
Image = pytest.importorskip("PIL.Image")
pytest.importorskip("skimage")

from pyramid_ops.demo import console, figures, images, merge, select, usage  # noqa: E402
from tests.demo.pictures import picture  # noqa: E402

ROOT = pathlib.Path(__file__).parents[2]
Image.init()
# All formats that Pillow writes and reads itself: of EPS a program of its own makes pixels.
FORMATS = sorted(set(Image.SAVE) & set(Image.OPEN) - {"EPS"})


@pytest.fixture(scope="module")
def default(tmp_path_factory):
    """The figure of the default photo, and what is printed."""
    out = tmp_path_factory.mktemp("default") / "selection.png"
    with contextlib.redirect_stdout(io.StringIO()) as printed, pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "120")
        assert cli.main(["select", "--out", str(out)]) == 0
    return out, printed.getvalue()


def test_default_photo_selects_273_of_1360(default):
    out, printed = default
    for text in ("1360", "273", "115", "85", "57", "16", "kept by detail", "plain downscaling"):
        assert text in printed
    with Image.open(out) as drawn:
        assert drawn.width > 1000
        assert len(drawn.convert("RGB").getcolors(1 << 24)) > 1000


def test_the_page_tells_what_the_demo_prints(default):
    _, printed = default
    page = (ROOT / "docs/start.md").read_text()
    rows = {
        "kept by detail": r"\| kept by \*detail\*.*?\| ([\d.]+) dB \| (\d+) % \|",
        "uniform choice": r"\| uniform choice \| ([\d.]+) dB \| (\d+) % \|",
        "random choice": r"\| random choice \| ([\d.]+) dB \| (\d+) % \|",
        "plain downscaling": r"\| the photo plainly downscaled.*?\| \**([\d.]+) dB\** \| (\d+) % \|",
    }
    for name, pattern in rows.items():
        told = re.search(pattern, page).groups()
        assert re.search(rf"{name}\W+([\d.]+)\W+(\d+)%", printed).groups() == told


@pytest.mark.parametrize("saliency", ["detail", "variance", "norm"])
def test_own_photo(photo, tmp_path, capsys, saliency):
    out = tmp_path / "out.pdf"
    options = ["--tokens", "40", "--patch-size", "8", "--levels", "3", "--saliency", saliency, "--out", str(out)]
    assert cli.main(["select", str(photo), *options]) == 0
    assert "cropped from 100×150" in capsys.readouterr().out
    assert out.stat().st_size > 1000


def test_module_runs_without_unicode_or_a_usual_backend(photo, tmp_path):
    out = tmp_path / "out.png"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "MPLBACKEND": "module://missing"}
    command = [sys.executable, "-m", "pyramid_ops", "select", str(photo), "--tokens", "54", "--levels", "1"]
    command += ["--out", str(out)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)
    assert (result.returncode, result.stderr) == (0, "")
    assert f"figure: {out}" in result.stdout
    assert out.exists()


@pytest.mark.parametrize(
    "name",
    [b"$\\frac$.png", b"$x^2_{.png", b"\\$_^%#&~.png", b"\xff\xe9.png", b"a\nb\x1b[31m.png", "写真🙂.png".encode()],
)
@pytest.mark.parametrize("command", ["select", "merge"])
def test_any_file_name(photo, tmp_path, capsys, recwarn, command, name):
    try:
        photo = photo.rename(tmp_path / os.fsdecode(name))
    except OSError:
        pytest.skip("no such name here")
    out = tmp_path / f"out {os.fsdecode(name)}"
    options = ["--levels", "1", "--tokens", "6"] if command == "select" else ["--keep", "0.5"]
    assert cli.main([command, str(photo), "--patch-size", "50", *options, "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    shown = usage.printable(photo.name)
    assert f"{shown}: 100×150" in printed.out
    assert f"out {shown}" in printed.out
    assert shown.isprintable()
    shown.encode()
    assert not recwarn.list
    assert out.exists()
    # And where it is refused:
    assert cli.main([command, str(photo), "--patch-size", "73", "--out", str(photo)]) == 2
    assert shown in capsys.readouterr().err


def test_a_title_is_no_formula_and_stands_above_its_picture():
    title = f"{'long ' * 50}$\\frac$.png"
    axis = matplotlib.figure.Figure().subplots()
    photo = images.Photo(torch.zeros(1, 3, 4, 4), title, "")
    figures.show(axis, photo.pixels, photo.title)
    assert axis.title.get_text() == f"…{title[-35:]}"
    assert not axis.title.get_parse_math()


def test_a_large_picture_is_drawn_with_fewer_pixels_in_the_same_place():
    axis = matplotlib.figure.Figure().subplots()
    figures.show(axis, torch.rand(1, 3, 5000, 3000), "")
    assert axis.images[0].get_array().shape == (1250, 750, 3)
    assert axis.get_xlim() == (-0.5, 2999.5)
    assert axis.get_ylim() == (4999.5, -0.5)


def test_a_matplotlibrc_does_not_matter(photo, tmp_path):
    out = tmp_path / "out.png"
    with matplotlib.rc_context({"text.usetex": True, "savefig.bbox": "tight", "image.cmap": "gray"}):
        options = ["--patch-size", "50", "--keep", "0.5", "--out"]
        assert cli.main(["merge", str(photo), *options, str(out)]) == 0
    with Image.open(out) as drawn:
        assert drawn.width == 2 * 4 * 110


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.png"], "IMAGE: cannot read missing.png: No such file or directory"),
        ([__file__], "not an image"),
        (["."], "IMAGE: cannot read .: Is a directory"),
        (["SMALL", "--patch-size", "51"], "IMAGE: expected at least one patch of 51×51 pixels, got 50×60"),
        (
            ["PHOTO", "--patch-size", "80"],
            "--patch-size: expected at most 73 (of three channels, where a token has at most 16384 features), got 80",
        ),
        (["PHOTO", "--patch-size", "0"], "--patch-size: expected at least 1, got 0"),
        (["PHOTO", "--levels", "4"], "--levels: expected at most 3 for 100×150 pixels, got 4"),
        (["PHOTO", "--levels", "1000000"], "--levels: expected at most 3"),
        (["PHOTO", "--levels", "0"], "--levels: expected at least 1, got 0"),
        (
            ["PHOTO", "--levels", "2", "--tokens", "999"],
            "--tokens: expected 12 (the coarsest level, always kept) to 60",
        ),
        (["PHOTO", "--levels", "2", "--tokens", "3"], "--tokens: expected 12"),
        (["PHOTO", "--tokens", "0"], "--tokens: expected at least 1, got 0"),
        (["PHOTO", "--tokens", "many"], "argument --tokens: invalid int value: 'many'"),
        (["PHOTO", "--saliency", "entropy"], "argument --saliency: invalid choice: 'entropy'"),
    ],
)
def test_select_explains_bad_input(photo, refused, arguments, message):
    small = photo.with_name("small.png")
    picture(50, 60).save(small)
    names = {"PHOTO": photo, "SMALL": small}
    assert message in refused("select", *[names.get(argument, argument) for argument in arguments])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--keep", "0"], "--keep: expected shares above 0, at most 1, got 0"),
        (["--keep", "nan"], "--keep: expected shares above 0"),
        (["--keep", *["0.5"] * 101], "--keep: expected at most 100 shares, got 101"),
        (["--patch-size", "0"], "--patch-size: expected at least 1, got 0"),
        (
            ["--patch-size", "99"],
            "--patch-size: expected at most 73 (of three channels, where a token has at most 16384 features), got 99",
        ),
    ],
)
def test_merge_explains_bad_input(photo, refused, options, message):
    assert message in refused("merge", photo, *options)


@pytest.mark.parametrize("command", ["select", "merge"])
@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("/no/such/folder/x.png", "--out: cannot write /no/such/folder/x.png: No such file or directory"),
        ("/proc/x.png", "--out: cannot write /proc/x.png"),  # whoever one is
        ("FOLDER/x.unknown", "x.unknown: Format 'unknown' is not supported"),
        ("FOLDER/" + "x" * 300 + ".png", ".png: File name too long"),
        ("FOLDER/loop.png", "loop.png: Too many levels of symbolic links"),
        ("figure", "--out: expected a file name such as {usual}, got 'figure'"),
        ("figure.", "--out: expected a file name such as {usual}, got 'figure.'"),
        ("", "--out: expected a file name such as {usual}, got ''"),
        ("FOLDER", "--out: expected a file name such as {usual}, got"),
        ("FOLDER/photo.png", "--out: expected another file than IMAGE"),
        ("FOLDER/./symlink.png", "--out: expected another file than IMAGE"),
        ("FOLDER/hardlink.png", "--out: expected another file than IMAGE"),
    ],
)
def test_out_that_cannot_be_written(photo, refused, command, out, message):
    before = photo.read_bytes()
    folder = photo.parent
    (folder / "symlink.png").symlink_to(photo)
    (folder / "hardlink.png").hardlink_to(photo)
    (folder / "loop.png").symlink_to(folder / "loop.png")
    out = out.replace("FOLDER", str(folder))
    options = ["--levels", "1", "--tokens", "6"] if command == "select" else ["--keep", "0.5"]
    usual = {"select": "selection.png", "merge": "merging.png"}[command]
    error = refused(command, photo, "--patch-size", "50", *options, "--out", out)
    assert message.format(usual=usual) in error
    assert photo.read_bytes() == before


def test_what_is_no_readable_file(photo, refused):
    empty, pipe, closed = (photo.with_name(name) for name in ("empty.png", "pipe.png", "closed.png"))
    empty.touch()
    assert f"IMAGE: cannot read {empty}: not an image" in refused("select", empty)
    if hasattr(os, "mkfifo"):
        os.mkfifo(pipe)
        assert f"IMAGE: cannot read {pipe}: not a regular file" in refused("select", pipe)
    if os.path.exists("/proc/self/mem"):  # which nobody can read from its start
        assert "IMAGE: cannot read /proc/self/mem: Input/output error" in refused("select", "/proc/self/mem")
    closed.touch(mode=0)
    if not os.access(closed, os.R_OK):
        assert f"IMAGE: cannot read {closed}: Permission denied" in refused("select", closed)


@pytest.mark.parametrize("format", FORMATS)
def test_damaged_files_are_read_or_refused(tmp_path, monkeypatch, format):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1 << 20)  # a damaged size takes no gigabyte
    rng = random.Random(0)
    path = tmp_path / "damaged"
    for mode in ("RGB", "RGBA", "P", "1", "F"):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # a format that Pillow will drop
                picture(16, 16).convert(mode).save(path, format)
        except (OSError, ValueError, KeyError):
            continue
        data = path.read_bytes()
        for attempt in range(2 if format == "ICNS" else 16):  # 1.6 MB
            damaged = bytearray(data)
            if attempt % 2:
                del damaged[rng.randrange(len(data)) :]
            else:
                for _ in range(rng.randint(1, 4)):  # most in the header
                    damaged[int(len(data) * rng.random() ** 3)] = rng.choice([0, 1, 127, 255, rng.randrange(256)])
            path.write_bytes(damaged)
            with contextlib.suppress(usage.UsageError), warnings.catch_warnings():
                warnings.simplefilter("error")
                assert images.read(str(path)).shape[2] == 3


@pytest.mark.parametrize(
    ("format", "mode", "at", "byte"),
    [
        ("AVIF", "RGB", 81, 0),  # RuntimeError
        ("BLP", "P", 8, 3),  # BLPFormatError
        ("DDS", "RGB", 80, 0),  # NotImplementedError
        ("SPIDER", "F", 107, 127),  # AttributeError
        ("TIFF", "RGB", 72, 2),  # TypeError
    ],
)
def test_a_decoder_that_stumbles_is_one_line(tmp_path, refused, format, mode, at, byte):
    if format not in FORMATS:
        pytest.skip(f"Pillow without {format}")
    path = tmp_path / "damaged"
    picture(16, 16).convert(mode).save(path, format)
    data = bytearray(path.read_bytes())
    data[at] = byte
    path.write_bytes(data)
    assert re.search(rf"IMAGE: cannot read {path}: \w+", refused("merge", path, "--patch-size", "4"))


@pytest.mark.parametrize(
    "error", [KeyError(7), IndexError(), MemoryError(), OSError(5, "Input/output error"), OSError()]
)
def test_a_reason_is_never_empty(error):
    assert len(usage.reason(error)) > 7


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        ("1", "png"),
        ("L", "png"),
        ("LA", "png"),
        ("P", "png"),
        ("P", "gif"),
        ("RGBA", "png"),
        ("CMYK", "jpg"),
        ("YCbCr", "jpg"),
        ("LAB", "tif"),
    ],
)
def test_every_mode_of_8_bits_a_channel(tmp_path, recwarn, mode, suffix):
    path = tmp_path / f"photo.{suffix}"
    original = picture(20, 30)
    if mode == "LAB":
        from PIL import ImageCms

        original = ImageCms.profileToProfile(
            original, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
        )
    original.convert(mode).save(path)
    photo = images.load(str(path), 1, 1)
    with Image.open(path) as file:
        expected = np.asarray(file.convert("RGB"))
    assert torch.equal((photo.pixels[0] * 255).round().byte().permute(1, 2, 0), torch.from_numpy(expected.copy()))
    assert not recwarn.list


@pytest.mark.parametrize(("dtype", "mode"), [("uint16", "I;16"), ("int32", "I"), ("float32", "F")])
def test_deeper_modes_are_refused(tmp_path, refused, dtype, mode):
    path = tmp_path / "deep.tif"
    Image.fromarray(np.arange(4096, dtype=dtype).reshape(64, 64)).save(path)
    assert f"IMAGE: expected 8 bits a channel, got mode {mode} in {path}" in refused("select", path)


def test_an_animation_is_its_first_frame(tmp_path):
    path = tmp_path / "photo.gif"
    colours = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    colours[0].save(path, save_all=True, append_images=colours[1:])
    assert images.read(str(path))[4, 4].tolist() == [255, 0, 0]


def test_orientation_is_followed(tmp_path):
    path = tmp_path / "photo.png"
    original = picture(20, 30)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    original.save(path, exif=exif)
    assert np.array_equal(images.read(str(path)), np.rot90(np.asarray(original), -1))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 40), (40, 1), (2, 3)])
@pytest.mark.parametrize("command", ["select", "merge"])
def test_tiny_pictures(tmp_path, capsys, recwarn, command, height, width):
    path, out = tmp_path / "tiny.png", tmp_path / "out.png"
    picture(height, width).save(path)
    options = ["--levels", "1", "--tokens", str(height * width)] if command == "select" else ["--keep", "0.5"]
    assert cli.main([command, str(path), "--patch-size", "1", *options, "--out", str(out)]) == 0
    assert f"{height}×{width}" in capsys.readouterr().out
    assert out.exists()
    assert not recwarn.list


@pytest.mark.parametrize("command", ["select", "merge"])
def test_the_largest_patches(photo, tmp_path, command):
    options = ["--levels", "1", "--tokens", "2"] if command == "select" else ["--keep", "0.5"]
    out = str(tmp_path / "out.png")
    assert cli.main([command, str(photo), "--patch-size", str(usage.LARGEST_PATCH), *options, "--out", out]) == 0
    assert 3 * (usage.LARGEST_PATCH + 1) ** 2 > 16384


@pytest.mark.parametrize(("height", "width"), [(97, 131), (5, 9), (1500, 40), (700, 2100)])
@pytest.mark.parametrize("command", ["select", "merge"])
def test_defaults_fit_any_picture(tmp_path, capsys, command, height, width):
    picture(height, width).save(tmp_path / "any.png")
    assert cli.main([command, str(tmp_path / "any.png"), "--out", str(tmp_path / "out.png")]) == 0
    assert (f"made smaller from {height}×{width}" in capsys.readouterr().out) == (max(height, width) > 1024)


def test_transparent_is_white(tmp_path):
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    clear.putpixel((1, 0), (0, 0, 255, 255))
    clear.putpixel((2, 0), (0, 0, 0, 51))
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    clear.save(tmp_path / "clear.png")
    palette.save(tmp_path / "palette.png", transparency=0)
    Image.new("RGB", (4, 4), "red").save(tmp_path / "key.png", transparency=(255, 0, 0))
    for name in ("clear", "palette"):
        assert images.read(str(tmp_path / f"{name}.png"))[0, :2].tolist() == [[255, 255, 255], [0, 0, 255]]
    assert images.read(str(tmp_path / "clear.png"))[0, 2].tolist() == [204, 204, 204]
    assert (images.read(str(tmp_path / "key.png")) == 255).all()


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"pyramid-ops {pyramid_ops.__version__}\n"


def test_one_place_is_shown_everywhere():
    pages = [
        ROOT / "README.md",
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "docs/gallery").glob("*.py"),
        ROOT / cli.__file__,
    ]
    assert {place for page in pages for place in re.findall(r"--at ([\d.]+ [\d.]+)", page.read_text())} == {"0.2 0.43"}


def test_the_picture_rebuilt_from_all_patches_is_the_photo():
    levels = pyramid_ops.gaussian_pyramid(torch.rand(1, 3, 64, 32), 3)
    everything = [torch.stack((torch.full((n,), k), torch.arange(n)), 1) for k, n in enumerate((32, 8, 2))]
    assert torch.equal(select.rebuild(levels, torch.cat(everything)[None], 8), levels[0])


def test_the_picture_rebuilt_from_the_coarsest_level_is_that_level_enlarged():
    levels = pyramid_ops.gaussian_pyramid(torch.rand(1, 3, 32, 64), 2)
    indices = torch.tensor([[[1, 0], [1, 1], [0, 5]]])
    expected = select.upsample(levels[1])
    expected[..., 16:32, 16:32] = levels[0][..., 16:32, 16:32]
    assert torch.equal(select.rebuild(levels, indices, 16), expected)


def test_uniform_and_random_choices_have_the_asked_size_and_no_repeats():
    levels = [torch.rand(1, 3, 128 >> k, 192 >> k) for k in range(3)]
    sizes = [96, 24, 6]
    for budgets in ([0, 0, 6], [1, 5, 6], [37, 11, 6], [95, 23, 5], sizes):
        for chosen in (select.uniform_indices(levels, 16, budgets), select.random_indices(sizes, budgets)):
            pairs = {tuple(pair) for pair in chosen[0].tolist()}
            assert len(pairs) == sum(budgets)
            assert all(0 <= index < sizes[level] for level, index in pairs)


def test_merge_draws_the_default_photo(tmp_path, capsys):
    out = tmp_path / "merging.png"
    assert cli.main(["merge", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    for text in ("1024 patches", "512", "256", "102"):
        assert text in printed
    with Image.open(out) as drawn:
        assert len(drawn.convert("RGB").getcolors(1 << 24)) > 500


def test_merge_own_photo(photo, tmp_path, capsys):
    out = tmp_path / "out.pdf"
    assert cli.main(["merge", str(photo), "--patch-size", "10", "--keep", "1", "0.001", "--out", str(out)]) == 0
    assert "150 patches of 10×10" in capsys.readouterr().out
    assert out.stat().st_size > 1000


def test_merged_groups_cover_all_tokens():
    metric = torch.randn(1, 61, 8, generator=torch.Generator().manual_seed(0))
    for left in (61, 30, 7, 1):
        group = merge.merge_to(metric, left)
        assert group.unique().tolist() == list(range(left))


def test_progress_shows_on_a_terminal_only(capsys, monkeypatch):
    for terminal in ("", "1"):
        monkeypatch.setenv("FORCE_COLOR", terminal)
        with console.progress(2) as advance:
            advance()
        assert bool(capsys.readouterr().err) == bool(terminal)


@pytest.mark.parametrize("command", ["select", "merge", "methods", "verify", "cost"])
def test_help_has_one_example_that_parses(capsys, command):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    _, example = capsys.readouterr().out.split("\n\nexample:\n")
    words = shlex.split(example, comments=True)
    assert example.count("\n") == 1
    assert cli.parser().parse_args(words[words.index("pyramid-ops") + 1 :]).command == command


def test_a_missing_extra_is_named(refused, monkeypatch):
    for name in ("select", "console"):
        monkeypatch.delitem(sys.modules, f"pyramid_ops.demo.{name}")
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert "needs rich: install the extra with pip install 'pyramid_ops[demo]'" in refused("select")


def test_only_the_command_line_imports_demo_and_verify():
    for path in [path for room in ("pyramid_ops", "kernels", "reference") for path in (ROOT / room).rglob("*.py")]:
        if path.parent.name in ("demo", "verify") or path.name == "__main__.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {"demo", "verify"} & {part for name in names for part in name.split(".")}, path
