"""Comparison of trained models in nnU-Net's folders, case by case.

`models` reads the folders, `checks` refuses models that cannot be compared, and `plan` does both before anything is
computed. `predictions` has nnU-Net predict held-out cases, whose files `held_out_checks` checks; `logs` reads training
logs. `execution` scores the predictions, with the mathematics in `statistics`, and returns a `Comparison` (`result`).
`sentences` and `verdicts` describe it in words and `tables` in numbers, written by `formatting`. `picture_choice`
chooses cases, and `picture_drawing` draws them. `page`, `markdown` and `terminal` render all of this, and
`output_folder` writes it.
"""

from nnunet_dtc.study.comparison.models import ComparisonError
from nnunet_dtc.study.comparison.result import CasePicture, ComparedModel, Comparison

__all__ = ["CasePicture", "ComparedModel", "Comparison", "ComparisonError"]
