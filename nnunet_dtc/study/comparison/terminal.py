"""A comparison in the terminal."""

from __future__ import annotations

from rich import table as rich
from rich.markup import escape

from nnunet_dtc.study.comparison.printable_names import printable_names
from nnunet_dtc.study.comparison.result import Comparison
from nnunet_dtc.study.comparison.tables import Table, cost_table, noise_table, organ_table, overview_table
from nnunet_dtc.study.comparison.verdicts import noise_sentences, verdict_sentences
from nnunet_dtc.study.evaluation.metrics import metric

__all__ = ["terminal_sentences", "terminal_tables"]

_ASCII = str.maketrans("\N{MINUS SIGN}\N{EN DASH}", "--")  # not every terminal and code page has these


def terminal_tables(comparison: Comparison) -> list[rich.Table]:
    """The overview, the first metric by organ, the cost, and the noise where it is known."""
    comparison = printable_names(comparison)
    shown = [_rich(overview_table(comparison), between="\n")]  # the means of all metrics leave no space for more
    if len(comparison.labels.names) > 1:
        shown.append(_rich(organ_table(comparison, metric(comparison.metrics[0]))))
    return shown + [_rich(table) for table in (cost_table(comparison), noise_table(comparison)) if table]


def terminal_sentences(comparison: Comparison) -> list[str]:
    """The sentences about the comparison and the noise, and last what is known of the differences.

    With several models there is a sentence about the noise for each model and metric, which only the files have.
    """
    noise = noise_sentences(comparison.noise, comparison.trainings)
    if len(comparison.models) > 2 and noise:
        noise = ["comparison.md explains each row of the table of the noise."]
    sentences = [*comparison.sentences, *noise, *verdict_sentences(comparison)]
    return [sentence.translate(_ASCII) for sentence in sentences]


def _rich(table: Table, between: str = " ") -> rich.Table:
    """A table in which a difference stands in the cell of its value, in parentheses, with `between` before it."""
    has_differences = any(column.difference_unit for column in table.columns)
    caption = "in parentheses: the difference to the first model" if has_differences else None
    result = rich.Table(title=escape(table.title), caption=caption)
    result.add_column(escape(table.names), overflow="fold")
    for column in table.columns:
        # names of models are long and have no spaces to break at
        result.add_column(escape(column.headings[0]), justify="right", overflow="fold")
    for row in table.rows:
        texts = (f"{cell.value}{between}({cell.difference})" if cell.difference else cell.value for cell in row.cells)
        result.add_row(escape(row.name), *(escape(text.translate(_ASCII)) for text in texts))
    return result
