"""What trainers cost with the plans at hand: parameters and multiply-accumulates counted, times and memory measured.

`counting` has the counts from shapes, `bench` runs one trainer's real training step on random data, `memory` its peak
memory in a process of its own, `survey` does all of it for several trainers, `report` shows and writes it. `planned`
reads plans and finds trainers.
"""

from nnunet_dtc.plugin.finder import find_trainer
from nnunet_dtc.study.complexity.counting import Macs, count_macs, count_parameters, parameters_mib
from nnunet_dtc.study.complexity.planned import ComplexityError, PlannedTraining, read_plans
from nnunet_dtc.study.complexity.report import markdown, rich_table, write_report
from nnunet_dtc.study.complexity.survey import (
    Complexity,
    TrainerComplexity,
    count_trainers,
    find_trainers,
    measure_trainers,
    survey_trainers,
)

__all__ = [
    "Complexity",
    "ComplexityError",
    "Macs",
    "PlannedTraining",
    "TrainerComplexity",
    "count_macs",
    "count_parameters",
    "count_trainers",
    "find_trainer",
    "find_trainers",
    "markdown",
    "measure_trainers",
    "parameters_mib",
    "read_plans",
    "rich_table",
    "survey_trainers",
    "write_report",
]
