"""The costs of trainers as a table for the terminal, and as JSON, CSV and Markdown files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nnunet_dtc.files import output_files, write_all
from nnunet_dtc.ops.checks import times
from nnunet_dtc.study.complexity.survey import QUANTITIES, Complexity, versions

__all__ = ["FORMAT", "OUTPUTS", "caption", "markdown", "rich_table", "title", "write_report"]

FORMAT = 1
MOST_COLUMNS = 3  # trainers side by side in a terminal
OUTPUTS = (".json", ".csv", ".md")
PEAK_MEMORY = {"cuda": "as allocated by torch", "cpu": "as growth of the process"}
UNITS = {
    "parameters": "number of parameters of the network",
    "parameters_mib": "MiB of the parameters in float32",
    "macs": "multiply-accumulates of the forward pass of one patch: convolutions, matrix products, and 2 ** axes for "
    "each sample and channel of a linear interpolation (4 in 2D, 8 in 3D); the paper's 'FLOPs'",
    "step_seconds": "median of step_runs: nnU-Net's training step with a batch of random data, without data loading",
    "inference_seconds": "median of inference_runs: the forward pass of one patch, without mirroring",
    "peak_memory_mib": "MiB in training steps; "
    + ", ".join(f"{device}: {what}" for device, what in PEAK_MEMORY.items()),
    "peak_memory_reserved_mib": "MiB in training steps; cuda: reserved by torch",
    "ratios": "multiples of the first trainer's",
}


def as_json(complexity: Complexity) -> dict[str, Any]:
    """The content of the JSON file; values that were not measured are null."""
    training, machine = complexity.training, complexity.machine
    return {
        "format": FORMAT,
        "versions": versions(),
        "units": UNITS,
        "dataset": training.plans.get("dataset_name"),
        "plans": training.plans.get("plans_name"),
        "configuration": training.configuration,
        "patch_size": list(training.patch_size),
        "batch_size": training.batch_size,
        "planned_patch_size": list(training.planned_patch_size),
        "planned_batch_size": training.planned_batch_size,
        "device": None if machine is None else vars(machine),
        "repeats": complexity.repeats,
        "baseline": complexity.baseline,
        "notes": list(complexity.notes),
        "trainers": {
            name: {
                "parameters": costs.parameters,
                "parameters_mib": costs.parameters_mib,
                "macs": costs.macs,
                "step_seconds": costs.step_seconds,
                "inference_seconds": costs.inference_seconds,
                "peak_memory_mib": costs.peak_memory_mib,
                "peak_memory_reserved_mib": costs.peak_memory_reserved_mib,
                "ratios": {quantity: complexity.ratio(name, quantity) for quantity in QUANTITIES},
                "step_runs": list(costs.step_runs),
                "inference_runs": list(costs.inference_runs),
            }
            for name, costs in complexity.trainers.items()
        },
    }


def write_report(complexity: Complexity, out: Path, overwrite: bool = False) -> tuple[Path, Path, Path]:
    """Write OUT.json, OUT.csv (one row per trainer, with empty cells if not measured) and OUT.md, or none of them.

    Raises:
        OSError: see ``nnunet_dtc.files.output_files`` and ``nnunet_dtc.files.write_all``.
    """
    files = output_files(out, OUTPUTS, overwrite)
    content = as_json(complexity)
    rows = []
    for name, costs in content["trainers"].items():
        ratios = {f"{quantity}_ratio": value for quantity, value in costs["ratios"].items()}
        numbers = {key: value for key, value in costs.items() if key not in ("ratios", "step_runs", "inference_runs")}
        rows.append({"trainer": name, **numbers, **ratios})
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    texts = (json.dumps(content, indent=2, allow_nan=False) + "\n", table.getvalue(), markdown(complexity))
    write_all(dict(zip(files, texts, strict=True)))
    return files


def rich_table(complexity: Complexity) -> Any:
    """The costs as a `rich.table.Table` like table 7, with ratios to the first trainer.

    A few trainers are columns, which fit into 80 characters; more are rows.

    ``title`` and ``caption`` are not part of it, because they would be wrapped to its width.
    """
    from rich.markup import escape
    from rich.table import Table

    headings, rows = _cells(complexity)
    if len(rows) <= MOST_COLUMNS:
        table = Table()
        table.add_column("", no_wrap=True)
        for name in rows:
            table.add_column(escape(name), justify="right", overflow="fold")
        for heading, *cells in zip(headings, *rows.values(), strict=True):
            table.add_row(heading, *cells)
        return table
    table = Table(pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("trainer", overflow="fold")
    for heading in headings:
        table.add_column(heading, justify="right", overflow="fold")
    for name, cells in rows.items():
        table.add_row(escape(name), *(cell.replace(" (", "\n(") for cell in cells))
    return table


def markdown(complexity: Complexity) -> str:
    """The costs as a Markdown table, with the title above and the caption and the notes below."""
    headings, rows = _cells(complexity)
    lines = [title(complexity), "", f"| trainer | {' | '.join(headings)} |"]
    lines.append("|---|" + "---:|" * len(headings))
    lines += [f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()]
    lines += ["", caption(complexity)]
    for note in complexity.notes:
        lines += ["", f"Note: {note}."]
    return "\n".join(lines) + "\n"


def _cells(complexity: Complexity) -> tuple[list[str], dict[str, list[str]]]:
    """The headings of the quantities, and the cells of each trainer; quantities that no trainer has are left out."""

    def cell(name: str, quantity: str) -> str:
        number = getattr(complexity.trainers[name], quantity)
        text = "-" if number is None else _QUANTITIES[quantity][1](number)
        ratio = complexity.ratio(name, quantity) if quantity in QUANTITIES else None
        return text if ratio is None or name == complexity.baseline else f"{text} ({ratio:.3f}x)"

    known = [
        quantity
        for quantity in _QUANTITIES
        if any(getattr(costs, quantity) is not None for costs in complexity.trainers.values())
    ]
    rows = {name: [cell(name, quantity) for quantity in known] for name in complexity.trainers}
    return [_QUANTITIES[quantity][0] for quantity in known], rows


def _digits(number: float) -> str:
    """A number with four significant digits, and all digits before the decimal point."""
    return f"{number:.0f}" if abs(number) >= 1000 else f"{number:#.4g}"


# quantity to its heading and the format of its numbers
_QUANTITIES: dict[str, tuple[str, Callable[[Any], str]]] = {
    "parameters": ("parameters", lambda number: f"{number:,}"),
    "parameters_mib": ("parameters, MiB", lambda number: f"{number:.2f}"),
    "macs": ("MACs, G", lambda number: _digits(number / 1e9)),
    "step_seconds": ("training step, s", _digits),
    "inference_seconds": ("inference, s", _digits),
    "peak_memory_mib": ("peak memory, MiB", _digits),
    "peak_memory_reserved_mib": ("reserved, MiB", _digits),
}


def title(complexity: Complexity) -> str:
    """The data set, plans, configuration and sizes that were counted and measured."""
    training = complexity.training

    def sizes(patch: tuple[int, ...], batch: int) -> str:
        return f"patch {times(patch)}, batch {batch}"

    text = f"{training.plans.get('dataset_name', '')} {training.plans.get('plans_name', '')} {training.configuration}"
    text = f"{text.strip()}: {sizes(training.patch_size, training.batch_size)}"
    if training.changed:
        text += f" (planned: {sizes(training.planned_patch_size, training.planned_batch_size)})"
    return text


def caption(complexity: Complexity) -> str:
    """What the numbers are, and the machine that they were measured on."""
    parts = ["MiB of float32 parameters; MACs of the forward pass of one patch"]
    machine = complexity.machine
    if machine is not None:
        parts.append(f"inference of one patch; medians of {complexity.repeats} runs in turn")
        if complexity.trainers[complexity.baseline].peak_memory_mib is not None:
            parts.append(f"peak memory in training, {PEAK_MEMORY[machine.device]}")
        parts.append(f"on {machine.device} ({machine.name}" + ", torch.compile" * machine.compiled)
        parts[-1] += f", {machine.threads} threads)" if machine.device == "cpu" else ")"
    if len(complexity.trainers) > 1:
        parts.append(f"(x) is to {complexity.baseline}")
    return "; ".join(parts)
