"""The costs of trainers with given plans: number of parameters and multiply-accumulates, measured times and memory.

`planned` reads plans, `counting` counts from shapes, `bench` runs a trainer's training step on random data, `memory`
measures its peak memory in a separate process, `survey` does all of this for several trainers, and `cost_report` prints
and writes the results.
"""

from nnunet_dtc.plugin.finder import find_trainer
from nnunet_dtc.study.complexity.cost_report import markdown, rich_table, write_report
from nnunet_dtc.study.complexity.counting import Macs, count_macs, count_parameters, parameters_mib
from nnunet_dtc.study.complexity.planned import ComplexityError, PlannedTraining, read_plans
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
