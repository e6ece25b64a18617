"""`python -m bench`: run the suite, write `results/<device>.json`, `.md` and `.png`, print the table.

Options are pytest's and those of `conftest.py`: `-k selection`, `--seconds 120`, `--no-compile`.
"""

import datetime
import importlib.util
import json
import pathlib
import platform
import re
import subprocess
import sys
import tempfile
import time

import pytest
import torch

from bench.figure import draw

HERE = pathlib.Path(__file__).parent


def copy_bandwidth() -> float:
    """GB/s of a large copy, bytes read and written counted."""
    cuda = torch.cuda.is_available()
    source = torch.empty((4 << 30) if cuda else (256 << 20), dtype=torch.uint8, device="cuda" if cuda else "cpu").fill_(
        1
    )
    target = torch.empty_like(source)
    times = []
    for _ in range(7):
        start = time.perf_counter()
        target.copy_(source)
        if cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 2 * source.nbytes / sorted(times)[3] / 1e9


def device_name() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines() if platform.system() == "Linux" else []:
        if line.startswith("model name"):
            return f"{line.split(':')[1].strip()}, {torch.get_num_threads()} threads"
    return f"{platform.machine()}, {torch.get_num_threads()} threads"


def commit() -> str:
    try:
        command = ["git", "describe", "--always", "--dirty"]
        return subprocess.run(command, capture_output=True, text=True, cwd=HERE, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def version(module: str) -> str:
    try:
        return __import__(module).__version__
    except ImportError:
        return "none"


def table(result: dict) -> str:
    lines = [
        f"# {result['device']}",
        "",
        f"{result['date']}, commit {result['commit']}, "
        + ", ".join(f"{name} {number}" for name, number in result["versions"].items())
        + f". Large copy: {result['copy_GB_per_s']:.0f} GB/s (read + write).",
        "",
        "Medians in ms of one run, providers interleaved; *ratio* is eager over pyramid_ops; *floor* is the time in "
        "which the copy moves the bytes that must be read and written; *peak* is memory held beyond the inputs, in MB.",
        "",
        "| case | pyramid_ops | p20 to p80 | eager | torch.compile | other | ratio | floor | peak, eager's peak |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for case, entry in result["cases"].items():
        providers = dict(entry["providers"])
        ours, eager = providers.pop("pyramid_ops"), providers.pop("eager")
        compiled = providers.pop("torch.compile", None)
        other = ", ".join(f"{name} {value['median']:.3g}" for name, value in providers.items())
        floor = entry["floor_bytes"] / result["copy_GB_per_s"] / 1e6
        lines.append(
            f"| {case} | {ours['median']:.3g} | {ours['p20']:.3g} to {ours['p80']:.3g} | {eager['median']:.3g} | "
            f"{compiled['median']:.3g} | {other} | " if compiled else
            f"| {case} | {ours['median']:.3g} | {ours['p20']:.3g} to {ours['p80']:.3g} | {eager['median']:.3g} | "
            f"| {other} | "
        )  # fmt: skip
        lines[-1] += (
            f"{eager['median'] / ours['median']:.2f}× | {floor:.2g} | "
            f"{ours['peak_bytes'] / 2**20:.0f}, {eager['peak_bytes'] / 2**20:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    if not torch.cuda.is_available():
        torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        raw = pathlib.Path(folder) / "raw.json"
        options = ["-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:benchmark", "-q", "-rs", f"--results={raw}"]
        status = pytest.main([str(HERE), "--override-ini=testpaths=bench", *options, *sys.argv[1:]])
        if status:
            return int(status)
        measured = json.loads(raw.read_text())
    result = {
        "device": device_name(),
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "versions": {"Python": platform.python_version(), **{m: version(m) for m in ("torch", "triton", "numpy")}},
        "copy_GB_per_s": copy_bandwidth(),
        "cases": {case.removeprefix("test_").replace("torch.", ""): entry for case, entry in measured.items()},
    }
    name = re.sub(r"\W+", "-", result["device"]).strip("-").lower() if torch.cuda.is_available() else "cpu"
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    (HERE / "results" / f"{name}.md").write_text(table(result))
    if importlib.util.find_spec("matplotlib"):
        draw(HERE / "results" / f"{name}.json")
    else:
        print("No figure: matplotlib is not installed.")
    print(table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
