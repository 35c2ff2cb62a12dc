"""The demo's numbers and their tables.

All Dice are nnU-Net's own, from its summary.json; an organ that is nowhere has none (NaN).
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.table import Table


def dice_rows(summaries: dict[str, Any], labels: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per organ, `{"organ": name, trainer: Dice, ...}`, and a last one with the means; NaN becomes None."""
    organs = {str(tuple(v) if isinstance(v, list) else v): n for n, v in labels.items() if v != 0 and n != "ignore"}
    rows = []
    for key, organ in organs.items():
        found = {t: s["mean"][key]["Dice"] for t, s in summaries.items() if key in s["mean"]}
        if found:
            rows.append({"organ": organ, **{t: _finite(found.get(t)) for t in summaries}})
    rows.append({"organ": "mean", **{t: _finite(mean([row[t] for row in rows])) for t in summaries}})
    return rows


def case_dice(summary: dict[str, Any], ending: str) -> dict[str, float]:
    """Mean Dice over the organs of each case, by the case's name."""
    return {
        Path(entry["prediction_file"]).name.removesuffix(ending): mean(
            [m["Dice"] for label, m in entry["metrics"].items() if str(label) != "0"]
        )
        for entry in summary["metric_per_case"]
    }


def dice_table(rows: list[dict[str, Any]], names: dict[str, str], title: str) -> Table:
    """Organs by trainers; with two trainers the difference too."""
    table = Table(title=title, title_style="bold")
    table.add_column("organ")
    for name in names.values():
        table.add_column(name, justify="right", overflow="fold")
    two = len(names) == 2
    if two:
        table.add_column("difference", justify="right")
    for row in rows:
        values = [row[t] for t in names]
        best = max((v for v in values if v is not None), default=None)
        cells = [
            f"[bold]{number(v)}[/bold]" if v is not None and v == best and len(values) > 1 else number(v)
            for v in values
        ]
        if two:
            cells.append("-" if None in values else f"{values[1] - values[0]:+.3f}")
        if row["organ"] == "mean":
            table.add_section()
        table.add_row(row["organ"].replace("_", " "), *cells)
    return table


def dice_csv(rows: list[dict[str, Any]], names: dict[str, str]) -> str:
    """Organs by trainers, with four digits."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["organ", *names.values()])
    writer.writerows([row["organ"], *(number(row[t], 4) for t in names)] for row in rows)
    return text.getvalue()


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def mean(values: Iterable[float | None]) -> float:
    """Of the numbers among them; NaN if there is none."""
    finite = [v for v in values if v is not None and math.isfinite(v)]
    return sum(finite) / len(finite) if finite else math.nan


def number(value: float | None, digits: int = 3) -> str:
    """With these digits; a dash for none."""
    return "-" if value is None else f"{value:.{digits}f}"
