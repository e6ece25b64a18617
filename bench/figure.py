"""The figure of a result: `python -m bench.figure bench/results/cpu.json` writes the `.png` beside it."""

import json
import pathlib
import sys

# Of the cases whose names begin so.
FAMILIES = {
    "pyramid": ("gaussian_pyramid", "pyrdown"),
    "row scores": ("scores", "region_variance"),
    "selection": ("select_topk", "progressive"),
    "merging": ("tome",),
    "attention": ("column_mean", "few_queries", "beside_attention"),
    "other": ("",),
}
# Below it a call is limited by what a launch costs.
LEAST_BYTES = 500_000


def family(case: str) -> str:
    return next(name for name, starts in FAMILIES.items() if case.startswith(starts))


def draw(path: pathlib.Path) -> pathlib.Path:
    """Bytes that must move, over the time taken, beside what a copy reaches; and time against those bytes."""
    from matplotlib import pyplot

    result = json.loads(path.read_text())
    cases = {case: entry for case, entry in result["cases"].items() if entry["floor_bytes"] >= LEAST_BYTES}
    copy = result["copy_GB_per_s"]
    figure, (rate, time) = pyplot.subplots(1, 2, figsize=(11, 4.8), layout="constrained")
    for number, name in enumerate(FAMILIES):
        entries = [entry for case, entry in cases.items() if family(case) == name]
        megabytes = [entry["floor_bytes"] / 1e6 for entry in entries]
        for kind, style in (("eager", {"marker": "x", "alpha": 0.5}), ("pyramid_ops", {"marker": "o", "label": name})):
            # On a GPU in a graph, where the host's time does not count.
            graphed = [entry["providers"].get(f"{kind}, graph", entry["providers"][kind]) for entry in entries]
            milliseconds = [provider["median"] for provider in graphed]
            rates = [size / ms for size, ms in zip(megabytes, milliseconds, strict=True)]
            rate.scatter(megabytes, rates, s=24, color=f"C{number}", **style)
            time.scatter(megabytes, milliseconds, s=24, color=f"C{number}", **style)
    ends = [bound(entry["floor_bytes"] for entry in cases.values()) / 1e6 for bound in (min, max)]
    rate.plot(ends, [copy, copy], "k--", linewidth=1, label=f"copy, {copy:.0f} GB/s")
    time.plot(ends, [end / copy for end in ends], "k--", linewidth=1)
    rate.set(ylabel="bytes that must move / time, GB/s", title="dots: pyramid_ops, crosses: eager")
    time.set(ylabel="time, ms", title=result["device"])
    for axes in (rate, time):
        axes.set(xscale="log", yscale="log", xlabel="bytes that must move, MB")
        axes.grid(alpha=0.3)
    handles, labels = rate.get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, loc="outside lower center", ncols=len(labels))
    out = path.with_suffix(".png")
    figure.savefig(out, dpi=110)
    pyplot.close(figure)
    return out


if __name__ == "__main__":
    print(draw(pathlib.Path(sys.argv[1])))
