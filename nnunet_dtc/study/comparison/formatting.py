"""How numbers are written in tables and sentences: with a minus sign, and with an en dash where there is none."""

from __future__ import annotations

import math

from nnunet_dtc.study.evaluation.metrics import Metric

__all__ = ["NONE", "difference_text", "interval_text", "p_text", "percent_text", "score_text"]

NONE = "\N{EN DASH}"


def score_text(metric: Metric, score: float) -> str:
    """A score in the unit of its metric, without the unit."""
    return NONE if math.isnan(score) else metric.shown(score)


def difference_text(metric: Metric, difference: float) -> str:
    """A difference of scores in `Metric.difference_unit`, with its sign and without the unit."""
    return NONE if math.isnan(difference) else _with_sign(metric.signed(difference))


def interval_text(metric: Metric, low: float, high: float) -> str:
    """The interval of a difference: ``−0.73 to +8.48``."""
    return NONE if math.isnan(low) else f"{difference_text(metric, low)} to {difference_text(metric, high)}"


def p_text(p: float) -> str:
    """A p-value with three digits, or ``< 0.001``."""
    return NONE if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def percent_text(ratio: float) -> str:
    """A relative change in per cent: 1.013 is ``+1.3 %``."""
    return f"{_with_sign(f'{100 * (ratio - 1):+.1f}')} %"


def _with_sign(text: str) -> str:
    """A number that begins with + or -, with the minus sign; without a sign if it is rounded to zero."""
    return (text.lstrip("+-") if float(text) == 0 else text).replace("-", "\N{MINUS SIGN}")
