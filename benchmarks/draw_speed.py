"""Draw what `speed.py` or `gpu_report.py` measured (needs matplotlib):

python benchmarks/draw_speed.py speed_cpu.json docs/speed_cpu.png
python benchmarks/draw_speed.py gpu_report/gpu_report.json docs/gpu_report.png
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import clone  # noqa: F401
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from nnunet_dtc.study.figures.style import COLOURS as PALETTE
from nnunet_dtc.study.figures.style import GRID, INK, MARKERS

COLOURS = dict(zip(("vanilla", "numba", "parts", "reference", "triton"), PALETTE, strict=False))
MODES = ("step", "forward", "inference")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("record", type=Path)
    parser.add_argument("picture", type=Path)
    options = parser.parse_args()
    record = json.loads(options.record.read_text())
    if "parts" in record:
        draw_gpu_report(record, options.picture)
        return
    machine = record["machine"]
    rows = [part for part in ("networks", "operator") if record[part]]  # speed.py --only measures one of them
    if not rows:
        parser.error(f"{options.record} has neither networks nor the operator")
    figure = plt.figure(figsize=(12, 4.5 * len(rows)), layout="constrained")
    for part, subfigure in zip(rows, np.atleast_1d(figure.subfigures(len(rows), 1)), strict=True):
        left, right = subfigure.subplots(1, 2)
        if part == "networks":
            networks(left, record[part])
            memory(right, record[part])
        else:
            fields(left, record[part])
            growth(right, record[part])
    versions = ", ".join(f"{key} {value}" for key, value in machine.items() if key not in ("device", "python"))
    figure.suptitle(f"What DTC costs: {machine['device']}; {versions}", color=INK)
    figure.savefig(options.picture, dpi=110)


def median_ratio(ours: list[float], first: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, first, strict=True))


def groups(rows: list[dict]) -> dict[str, dict[str, dict]]:
    """Rows of RF 2 and of the first dtype by plan and contestant."""
    found: dict[str, dict[str, dict]] = {}
    for row in rows:
        if row["receptive_field"] == 2 and row["dtype"] == rows[0]["dtype"]:
            found.setdefault(row["plan"], {})[row["contestant"]] = row
    return found


def dots(axis: plt.Axes, plans: dict[str, dict[str, dict]], kinds: Sequence[str], ratio: Callable, title: str) -> None:
    """A line for every plan and kind, a dot on it for every contestant."""
    names = [name for name in next(iter(plans.values())) if name != "vanilla"]
    labels = [(plan, kind) for plan in plans for kind in kinds]
    for name, marker in zip(names, "osD^", strict=False):
        values = [ratio(plans[plan][name], plans[plan]["vanilla"], kind) for plan, kind in labels]
        axis.plot(values, range(len(labels)), marker, color=COLOURS[name], label=name, markersize=7, alpha=0.9)
    axis.axvline(1, color=INK, linewidth=0.8)
    axis.set_yticks(range(len(labels)), [f"{plan}, {kind}" for plan, kind in labels], fontsize=9)
    axis.set_ylim(len(labels) - 0.5, -0.5)
    axis.grid(axis="both", color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.set_xlabel("ratio to the same network without DTC")
    axis.set_title(title, fontsize=10, loc="left")
    axis.legend(fontsize=8, framealpha=1)


def networks(axis: plt.Axes, rows: list[dict]) -> None:
    def ratio(ours: dict, vanilla: dict, mode: str) -> float:
        return median_ratio(ours[f"{mode}_s"], vanilla[f"{mode}_s"])

    dots(axis, groups(rows), MODES, ratio, f"Time of a network, receptive field 2, {rows[0]['dtype']}")


def memory(axis: plt.Axes, rows: list[dict]) -> None:
    def ratio(ours: dict, vanilla: dict, mode: str) -> float:
        return ours[f"{mode}_mib"] / vanilla[f"{mode}_mib"]

    plans = {name: plan for name, plan in groups(rows).items() if plan["vanilla"].get("step_mib")}
    if plans:
        dots(
            axis,
            plans,
            ("step", "inference"),
            ratio,
            f"Peak memory of a network, receptive field 2, {rows[0]['dtype']}",
        )
    else:
        axis.set_axis_off()


def fields(axis: plt.Axes, rows: list[dict]) -> None:
    """The operator over receptive fields, as ratios to the parts."""
    dtype = rows[0]["dtype"]
    styles = {"stride (1, 2, 2)": "-", "stride (2, 2, 2)": "--", "2D, stride (2, 2)": ":"}
    for label, style in styles.items():
        mine = [row for row in rows if row["operator"] == label and row["dtype"] == dtype]
        reaches = sorted({row["receptive_field"] for row in mine})
        for name in dict.fromkeys(row["contestant"] for row in mine):
            by_reach = {
                reach: {row["contestant"]: row["step_s"] for row in mine if row["receptive_field"] == reach}
                for reach in reaches
            }
            heights = [median_ratio(times[name], times["parts"]) for times in by_reach.values()]
            if name != "parts":
                axis.plot(
                    range(len(reaches)), heights, style, marker="o", color=COLOURS[name], label=f"{name}, {label}"
                )
        axis.set_xticks(range(len(reaches)), [f"{reach:g}" for reach in reaches])
    axis.axhline(1, color=COLOURS["parts"], linewidth=0.8)
    axis.set_ylim(bottom=0)
    axis.set_xlabel("receptive field (voxels)")
    axis.set_ylabel("ratio to torch's parts")
    axis.set_title(f"The operator alone, forward and backward, {dtype}", fontsize=10, loc="left")
    axis.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3)


def growth(axis: plt.Axes, rows: list[dict]) -> None:
    dtype = rows[0]["dtype"]
    mine = [row for row in rows if row["operator"] == "growth" and row["dtype"] == dtype]
    for name in dict.fromkeys(row["contestant"] for row in mine):
        points = []
        for row in (row for row in mine if row["contestant"] == name):
            voxels = row["size"][0]
            for extent, step in zip(row["size"][2:], row["stride"], strict=True):
                voxels *= extent * step
            points.append((voxels / 1e6, statistics.median(row["step_s"]) * 1e3))
        axis.plot(*zip(*points, strict=True), marker="o", color=COLOURS[name], label=name)
    axis.set_xlim(left=0)
    axis.set_ylim(bottom=0)
    axis.set_xlabel("output voxels (millions), 32 channels")
    axis.set_ylabel("ms, forward and backward")
    axis.set_title(f"The operator alone grows linearly with its voxels, {dtype}", fontsize=10, loc="left")
    axis.legend(fontsize=8, frameon=False)


def draw_gpu_report(record: dict, picture: Path) -> None:
    """One figure of what `gpu_report.py` measured; parts without rows are left out."""
    panels = {"operator": stages, "gather": reach, "steps": over_vanilla, "scan": lengths}
    rows = {name: record["parts"].get(name, {}).get("rows", []) for name in panels}
    rows = {name: [row for row in rows[name] if "failure" not in row] for name in panels if rows[name]}
    if not rows:
        raise SystemExit(f"the report has none of the parts {', '.join(panels)}")
    lines = (len(rows) + 1) // 2
    figure = plt.figure(figsize=(14, 5.5 * lines), layout="constrained")
    for place, (name, mine) in enumerate(rows.items()):
        panels[name](figure.add_subplot(lines, min(2, len(rows)), place + 1), mine)
    (machine,) = record["parts"]["machine"]["rows"]
    names = ("driver", "torch", "triton", "commit")
    title = ", ".join([machine["device"], *(f"{name} {machine[name]}" for name in names if machine.get(name))])
    figure.suptitle(f"{title}; tiny sizes, to try the script" if record["quick"] else title, color=INK)
    figure.savefig(picture, dpi=110)


def stages(axis: plt.Axes, rows: list[dict]) -> None:
    """Time of the operator by stage and backend, at the first receptive field."""
    field = rows[0]["receptive_field"]
    mine = [row for row in rows if row["receptive_field"] == field]
    names = list(dict.fromkeys(row["stage"] for row in mine))
    for number, backend in enumerate(dict.fromkeys(row["backend"] for row in mine)):
        points = [
            (names.index(row["stage"]), row["forward_ms"] + row["backward_ms"])
            for row in mine
            if row["backend"] == backend
        ]
        axis.plot(*zip(*points, strict=True), marker=MARKERS[number], color=PALETTE[number], label=backend)
    axis.set_xticks(
        range(len(names)), [name.replace(", ", ",\n", 1).replace(" of ", "\nof ") for name in names], fontsize=7
    )
    finish(axis, f"The operator, forward and backward, RF {float(field):g}", "", "ms")


def reach(axis: plt.Axes, rows: list[dict]) -> None:
    """Gather and scatter over the number of samples in reach."""
    for number, stage in enumerate(dict.fromkeys(row["stage"] for row in rows)):
        mine = sorted((row for row in rows if row["stage"] == stage), key=lambda row: row["samples_in_reach"])
        for way, line in (("gather", "-"), ("scatter", "--")):
            x, y = ([row[key] for row in mine] for key in ("samples_in_reach", f"{way}_ms"))
            fill = "full" if way == "gather" else "none"
            style = {"marker": MARKERS[number], "fillstyle": fill, "color": PALETTE[number + 1]}
            axis.plot(x, y, line, label=f"{way}, {stage}", **style)
    axis.set_xscale("log")
    finish(axis, "The gradient of the value", "samples in reach of a voxel", "ms")


def over_vanilla(axis: plt.Axes, rows: list[dict]) -> None:
    """Steps of networks over vanilla's."""
    mine = [row for row in rows if row["variant"] != "vanilla" and row["over_vanilla"]]
    names = list(dict.fromkeys((row["network"], row["mode"]) for row in mine))
    for number, variant in enumerate(dict.fromkeys(row["variant"] for row in mine)):
        chosen = [row for row in mine if row["variant"] == variant]
        places = [names.index((row["network"], row["mode"])) for row in chosen]
        colour, marker = PALETTE[number + 1], MARKERS[number + 1]
        axis.plot([row["over_vanilla"] for row in chosen], places, marker, color=colour, label=variant, alpha=0.9)
    axis.axvline(1, color=INK, linewidth=0.8)
    axis.set_yticks(range(len(names)), [f"{network},\n{mode}" for network, mode in names], fontsize=8)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.grid(color=GRID, linewidth=0.6)
    axis.set_xlabel("ratio to the same network without DTC")
    axis.set_title("Time of a training step", fontsize=10, loc="left")
    axis.legend(fontsize=8, frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=4, columnspacing=1)


def lengths(axis: plt.Axes, rows: list[dict]) -> None:
    """The selective scan by length."""
    for number, backend in enumerate(dict.fromkeys(row["backend"] for row in rows)):
        points = [(row["length"], row["forward_backward_ms"]) for row in rows if row["backend"] == backend]
        axis.plot(*zip(*points, strict=True), marker=MARKERS[number], color=PALETTE[number], label=backend)
    axis.set_xscale("log")
    finish(axis, "The selective scan, forward and backward", "length of the sequence", "ms")


def finish(axis: plt.Axes, title: str, x: str, y: str) -> None:
    """Titles, and a logarithmic axis for times."""
    axis.set_yscale("log")
    axis.grid(color=GRID, linewidth=0.6)
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.set_title(title, fontsize=10, loc="left")
    axis.legend(fontsize=8, frameon=False)


if __name__ == "__main__":
    main()
