"""Pages that are written from the code: the methods with what their docstrings say, and the API reference."""

import inspect
import json
import pathlib
import re
import textwrap
from collections.abc import Callable, Iterator
from types import ModuleType

import pyramid_ops
import pyramid_ops.huggingface as hf
from pyramid_ops import compat, cost, methods, plans, schedules, serving

ROOT = pathlib.Path(__file__).parents[1]

#: Cases of `bench/results/cpu.json` in words; those of README with a star.
TIMED = {
    "* 4-level pyramid of [2, 3, 1024, 1024], float32": "gaussian_pyramid[2x3x1024x1024-float32]",
    "the same, bfloat16": "gaussian_pyramid[2x3x1024x1024-bfloat16]",
    "3 × kornia `pyrdown` of [2, 3, 1024, 1024] (eager: kornia)": "pyrdown_like_kornia",
    "* select 273 of 5440, D = 1024, B = 2, float32": "select_topk_levels[2x5440x1024-float32]",
    "select 273 of 5440, D = 1024, B = 2, bfloat16": "select_topk_levels[2x5440x1024-bfloat16]",
    "select 273 of 5440, D = 64, B = 2, float32": "select_topk_levels[2x5440x64-float32]",
    "* select 867 of 11,390 packed tokens of four images, D = 1024, float32": "select_topk_levels_packed[float32]",
    "* variance of [2, 5440, 1024], float32": "scores[token_variance-2x5440x1024-float32]",
    "* norm of [2, 5440, 1024], float32": "scores[token_norm-2x5440x1024-float32]",
    "variance of 4×4 regions of [2, 4096, 1024], float32": "region_variance[2x64x1024-float32]",
    "entropy of 16×16 patches of [2, 3, 1024, 1024], uint8": "patch_entropy[1024-uint8]",
    '* ToMe, a quarter of [2, 4096, 64] merged, `"grid"`, float32': "tome[2x4096x64x64-float32]",
    'ToMe, a quarter of [2, 4096, 1024] merged, `"grid"`, float32': "tome[2x4096x1024x1024-float32]",
    '* mean attention of [1, 8, 2048, 64], `"grid"`, float32': "column_mean[1x8x2048x64-float32]",
    '* attention of one query to [1, 8, 8192, 128], `"grid"`, float32': "few_queries[1-float32]",
}


def write(folder: pathlib.Path) -> None:
    """Files that are as they should be keep their time, so that Sphinx reads only what has changed."""
    folder.mkdir(exist_ok=True)
    parts = {
        "methods": methods_page(),
        "api": api_page(),
        "cpu": timed_table(),
        "measured": measured(),
        "bench": re.sub(r"\[[^]]*\]\((results/[^)]*)\)", r"`bench/\1`", (ROOT / "bench/README.md").read_text()),
        "contributing": (ROOT / "CONTRIBUTING.md")
        .read_text()
        .replace("](docs/", "](../")
        .replace("CHANGELOG", "changelog"),
        "changelog": (ROOT / "CHANGELOG.md").read_text(),
    }
    for name, text in parts.items():
        path = folder / f"{name}.md"
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def functions(module: ModuleType) -> Iterator[tuple[str, Callable]]:
    for name in module.__all__:
        if inspect.isfunction(getattr(module, name)):
            yield name, getattr(module, name)


def by_file(module: ModuleType) -> dict[ModuleType, list[tuple[str, Callable]]]:
    """The functions of a package by the file that has them, files by name."""
    found: dict[str, list[tuple[str, Callable]]] = {}
    for name, function in functions(module):
        found.setdefault(function.__module__, []).append((name, function))
    return {inspect.getmodule(rows[0][1]): rows for _, rows in sorted(found.items())}


def summary(thing: object) -> str:
    """The first sentence of a docstring, without its last point."""
    return inspect.getdoc(thing).split("\n\n")[0].replace("\n", " ").rstrip(".")


def part(document: str, start: str, ends: tuple[str, ...] = ("\n\n",)) -> str:
    """What a docstring says from `start` to the first of `ends`, as one line in Markdown; "" where it does not."""
    if start not in document:
        return ""
    text = document.split(start, 1)[1]
    for end in ends:
        text = text.split(end, 1)[0]
    return markdown(" ".join(text.split()))


def markdown(text: str) -> str:
    """The few roles and literals of reStructuredText that docstrings have."""
    text = re.sub(r":func:`~?([\w.]+)`", lambda name: f"{{func}}`{target(name[1])}`", text)
    outside = re.split(r"(`[^`]*`)", text.replace("``", "`"))
    return "".join(part if part.startswith("`") else re.sub(r"([*|])", r"\\\1", part) for part in outside)


def target(name: str) -> str:
    """The full name of what a docstring of methods refers to."""
    return name if name.startswith("pyramid_ops.") else f"pyramid_ops.methods.{name}"


def needs(function: Callable) -> str:
    """The arguments without a default: what a model has to give."""
    parameters = inspect.signature(function).parameters.values()
    return ", ".join(
        f"`{p.name}`" for p in parameters if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    )


def methods_page() -> str:
    lines = ["# Every method", "", "Written from the docstrings; a name leads to all arguments and an example.", ""]
    for module, rows in by_file(methods).items():
        title = summary(module).removeprefix("Published methods ").removeprefix("that ").partition(":")[0]
        lines += [f"## {title[0].upper()}{title[1:]}", ""]
        for name, function in rows:
            document = inspect.getdoc(function)
            lines += [f"### `{name}`", "", f"{markdown(summary(function))}.", ""]
            lines += [f"- **Rule:** {part(document, 'Rule: ')}", f"- **Needs:** {needs(function)}"]
            lines += [f"- **Cost:** {part(document, 'Cost: ')}"]
            lines += [f"- **Differs from the authors' code:** {part(document, 'Differs: ', ('Cost: ',))}"]
            source = part(document, "References\n----------\n", ("\n\nExamples",))
            source = re.sub(r"arXiv (\d{4}\.\d{5})", r"[arXiv \1](https://arxiv.org/abs/\1)", source)
            lines += [f"- **Source:** {source}", f"- **More:** {{func}}`pyramid_ops.methods.{name}`", ""]
    return "\n".join(lines)


def listed(names: list[str]) -> list[str]:
    head = ["```{eval-rst}", ".. autosummary::", "   :toctree: api", "   :nosignatures:", ""]
    return [*head, *(f"   {name}" for name in names), "```", ""]


def api_page() -> str:
    text = """\
        # API reference

        Shapes, dtypes, errors, determinism, launches and a runnable example of every public function. On the command
        line: `help(pyramid_ops.select_topk_levels)`.
        """
    lines = [textwrap.dedent(text), "## Ops", ""]
    lines += listed([f"pyramid_ops.{name}" for name, _ in functions(pyramid_ops)])
    results = [name for name in pyramid_ops.__all__ if inspect.isclass(getattr(pyramid_ops, name))]
    lines += ["## What ops return", "", *listed([f"pyramid_ops.{name}" for name in results])]
    for title, module in (
        ("Plans", plans),
        ("Methods", methods),
        ("How many tokens are left", methods.retained),
        ("Serving", serving),
        ("Schedules", schedules),
        ("Cost", cost),
        ("Names of ToMe and tomesd", compat),
    ):
        own = [f"{module.__name__}.{name}" for name, _ in functions(module)]
        lines += [f"## {title}", "", f"`{module.__name__}`: {markdown(inspect.getdoc(module).split(chr(10))[0])}", ""]
        lines += listed(own)
    lines += ["## Models of transformers", "", "`pyramid_ops.huggingface`", ""]
    lines += listed([f"pyramid_ops.huggingface.{name}" for name in hf.__all__])
    return "\n".join(lines)


def with_links(text: str) -> str:
    """Rows of a table whose names of functions are links."""

    def linked(name: re.Match) -> str:
        for module in (pyramid_ops, methods):
            if inspect.isfunction(getattr(module, name[1], None)) and name[1] in module.__all__:
                return f"{{py:func}}`~{module.__name__}.{name[1]}`"
        return name[0]

    lines = text.splitlines(keepends=True)
    return "".join(re.sub(r"`(\w+)`", linked, line) if line.startswith("|") else line for line in lines)


def supported_table() -> str:
    """Methods by models of transformers."""
    rows = (f"| `{model}` | {', '.join(f'`{name}`' for name in names)} |" for model, names in hf.supported().items())
    return "\n".join(["| `config.model_type` | methods |", "|---|---|", *rows, ""])


def timed_table(short: bool = False) -> str:
    """Times of the reference on a CPU beside eager PyTorch's, from the committed results."""
    cases = json.loads((ROOT / "bench/results/cpu.json").read_text())["cases"]
    lines = [
        "| case | pyramid_ops, ms | eager, ms | `torch.compile`, ms | eager / pyramid_ops |",
        "|---|---|---|---|---|",
    ]
    for words, case in TIMED.items():
        if words.startswith("* ") or not short:
            times = cases[case]["providers"]
            own, eager, compiled = (times[name]["median"] for name in ("pyramid_ops", "eager", "torch.compile"))
            row = (words.removeprefix("* "), f"{own:.3g}", f"{eager:.3g}", f"{compiled:.3g}", f"{eager / own:.2f}×")
            lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def measured() -> str:
    """All tables of `bench/results/` that stand on no other page and are no tables of code."""
    elsewhere = ("attention", "greedy", "merging", "nearest", "coverage", "mutants", "compile", "executed", "tiles")
    paths = sorted((ROOT / "bench/results").glob("*.md"))
    text = "\n\n".join(path.read_text() for path in paths if path.stem not in elsewhere)
    return re.sub(r"\[([^]]*)\]\(\w+\.md\)", r"\1", text)


def with_times(readme: str) -> str:
    """README with the table of now."""
    return re.sub(r"\| case \|.*?\n(?!\|)", lambda _: timed_table(short=True), readme, count=1, flags=re.DOTALL)


def with_supported(serving: str) -> str:
    """The page on serving with the table of now."""
    return re.sub(r"\| `config.*?\n(?!\|)", lambda _: supported_table(), serving, count=1, flags=re.DOTALL)


def with_results(text: str, offset: int) -> str:
    """A page with tables in place of lines that lead to them: a code host shows links, not what they include."""
    table = f"```{{include}} ../bench/results/\\1.md\n:heading-offset: {offset}\n```"
    return re.sub(r"^\[[\w ]+\]\(\.\./bench/results/(\w+)\.md\)$", table, text, flags=re.MULTILINE)


if __name__ == "__main__":
    for path, renewed in ((ROOT / "README.md", with_times), (ROOT / "docs/serving.md", with_supported)):
        path.write_text(renewed(path.read_text()))
