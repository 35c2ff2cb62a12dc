"""What is known of nnU-Net's commands, without importing nnU-Net: jobs and their checks need it."""

from __future__ import annotations

import sys
from pathlib import Path

from nnunet_dtc.study.processes import find_program
from nnunet_dtc.study.workflow.definition import StudyError

__all__ = ["PLANNERS", "label_files", "program"]

PLANNERS = {
    "nnUNetPlans": "ExperimentPlanner",
    **{f"nnUNetResEncUNet{size}Plans": f"nnUNetPlannerResEnc{size}" for size in ("M", "L", "XL")},
}
"""Names of plans that nnU-Net's planners write without further options."""


def program(command: str) -> str:
    """A command of this Python's environment, else the one on PATH.

    Raises:
        StudyError: there is none.
    """
    found = find_program(command)
    if found is None:
        raise StudyError(f"there is no command {command} beside {sys.executable} or on PATH: install nnunetv2")
    return found


def label_files(folder: Path, ending: str) -> dict[str, Path]:
    """The labels in a folder, by case.

    Raises:
        StudyError: there is none.
    """
    found = sorted(file for file in folder.glob(f"*{ending}") if not file.name.startswith("."))
    if not found:
        raise StudyError(f"there is no label (*{ending}) in {folder}")
    return {file.name.removesuffix(ending): file for file in found}
