"""A comparison as a Markdown document."""

from __future__ import annotations

from collections.abc import Sequence

from nnunet_dtc.study.comparison.printable_names import printable_names
from nnunet_dtc.study.comparison.result import Comparison
from nnunet_dtc.study.comparison.tables import (
    Table,
    case_table,
    cost_table,
    difference_table,
    fold_table,
    noise_table,
    organ_table,
    overview_table,
)
from nnunet_dtc.study.comparison.verdicts import noise_sentences, verdict_sentences
from nnunet_dtc.study.evaluation.metrics import metric
from nnunet_dtc.study.texts import markdown_text

__all__ = ["markdown"]

MOST_CASES = 100  # more cases are in the CSV alone


def markdown(comparison: Comparison) -> str:
    """The whole comparison as a Markdown document, in which names are shown as they are, without any markup."""
    comparison = printable_names(comparison)
    first, *others = (model.name for model in comparison.models)
    metrics = [metric(key) for key in comparison.metrics]
    tables = [overview_table(comparison), cost_table(comparison)]
    title = f"{comparison.dataset}: {' and '.join(others)} against {first}"
    parts = [f"# {markdown_text(title)}", ""]
    parts += [*_items(verdict_sentences(comparison)), ""]
    parts += [*_items(comparison.sentences), *map(_markdown, filter(None, tables))]
    if noise := noise_table(comparison):
        parts += [_markdown(noise), "", *_items(noise_sentences(comparison.noise, comparison.trainings))]
    for of in metrics:
        if len(others) > 1:
            parts.append(_markdown(organ_table(comparison, of)))
        parts += [_markdown(difference_table(comparison, of, name)) for name in others]
    parts += [_markdown(table) for of in metrics if (table := fold_table(comparison, of))]
    cases = comparison.scores["case"].nunique()
    if cases <= MOST_CASES:
        parts += [_markdown(case_table(comparison, of)) for of in metrics]
    else:
        parts += ["", f"The {cases} cases are in comparison.json. The scores of their organs are in scores.csv."]
    return "\n".join(parts) + "\n"


def _markdown(table: Table) -> str:
    head = [table.names, *(heading for column in table.columns for heading in column.headings)]
    lines = [_line(head), "|---|" + "---:|" * (len(head) - 1)]
    for row in table.rows:
        pairs = zip(table.columns, row.cells, strict=True)
        lines.append(_line([row.name, *(text for column, cell in pairs for text in column.texts(cell))]))
    return "\n".join(["", f"## {markdown_text(table.title)}", "", *lines])


def _line(texts: Sequence[str]) -> str:
    return "| " + " | ".join(map(markdown_text, texts)) + " |"


def _items(sentences: Sequence[str]) -> list[str]:
    return [f"- {markdown_text(sentence)}" for sentence in sentences]
