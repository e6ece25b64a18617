"""README and the pages of docs/: their code runs, their links lead somewhere, their numbers are the committed ones."""

import importlib.util
import pathlib
import re

import pytest

import pyramid_ops

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "bench/README.md")] + sorted(
    (ROOT / "docs").glob("*.md")
)
#: Code that a reader sees, and what stands before it in a comment that no reader does.
CODE = re.compile(r"^(?:```python|<!-- setup)\n(.*?)^(?:```|-->)$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("path", [page for page in PAGES if CODE.search(page.read_text())], ids=lambda path: path.name)
def test_code_runs(path):
    if "transformers" in path.read_text():
        pytest.importorskip("transformers")
    names: dict = {}
    for block in CODE.finditer(path.read_text()):
        line = path.read_text()[: block.start(1)].count("\n")
        exec(compile("\n" * line + block[1], str(path), "exec"), names)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files(path):
    for target in re.findall(r"\]\(([^)#\s]+)\)", path.read_text()):
        if not target.startswith(("http", "generated/")):
            assert (path.parent / target).exists(), f"{path.name}: {target}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_are_named_are_there(path):
    for name in re.findall(
        r"`((?:bench|docs|examples|kernels|pyramid_ops|reference|tests)/[\w./]*)`", path.read_text()
    ):
        if pathlib.Path(name).stem != "x" and not name.startswith("docs/_build"):
            assert (ROOT / name).exists(), f"{path.name}: {name}"


@pytest.mark.parametrize("name", ["serving", "own_rule", "adding", "accuracy", "methods", "proof"])
def test_pages_that_readme_leads_to_can_be_read_as_they_are(name):
    """On a code host, which knows no directives of Sphinx."""
    text = (ROOT / f"docs/{name}.md").read_text()
    assert not re.findall(r"^```\{.*|\{\w+\}`.*", text, re.MULTILINE)


def test_the_op_in_a_page_is_the_one_that_ships():
    text = (ROOT / "docs/adding.md").read_text()
    shown = re.findall(r"`([\w/]+\.py)`[^`]*\n\n```py\n(.*?)```", text, re.DOTALL)
    assert [name.rpartition("/")[0] for name, _ in shown] == [
        "reference",
        "kernels",
        "pyramid_ops/ops",
        "pyramid_ops/verify/cases",
    ]
    for name, code in shown:
        source = (ROOT / name).read_text()
        assert code in source if name.startswith("pyramid_ops/ops/") else code == source, name


def test_readme_is_short_and_says_what_is_not_shown():
    text = re.sub(r"<!--.*?-->", "", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert len(text.split()) <= 1000
    head = text.split("## ")[0]
    assert "Kernels have not yet run on a GPU" in head
    assert re.search(r"!\[.+\]\(docs/images/\S+\.png\)", head)


def test_tables_are_those_of_the_committed_times_and_of_the_code():
    pytest.importorskip("transformers")
    specification = importlib.util.spec_from_file_location("pages", ROOT / "docs/pages.py")
    pages = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(pages)
    readme = (ROOT / "README.md").read_text()
    assert pages.with_times(readme) == readme, "python docs/pages.py writes the table of now"
    serving = (ROOT / "docs/serving.md").read_text()
    assert pages.with_supported(serving) == serving, "python docs/pages.py writes the table of now"
    assert pages.supported_table() in serving
    listed = pages.api_page()
    assert all(f"   pyramid_ops.{name}\n" in listed for name in pyramid_ops.__all__)


def test_pictures_are_small():
    pictures = list((ROOT / "docs/images").iterdir())
    assert pictures
    assert all(path.suffix == ".png" and path.stat().st_size < 300_000 for path in pictures)
