"""Is one trained model better than another? Trained models in nnU-Net's folders, compared case by case.

`models` reads the folders, `checks` refuses what cannot be compared, `plan` puts both together before anything is
computed; `predictions` has nnU-Net predict held-out cases, `logs` reads what trainings cost; `compare` scores, with the
mathematics in `statistics`. `result` is the object that comes out; `sentences`, `pictures`, `tables`, `page` and
`report` show and write it.
"""

from nnunet_dtc.study.comparison.models import ComparisonError
from nnunet_dtc.study.comparison.result import CasePicture, ComparedModel, Comparison

__all__ = ["CasePicture", "ComparedModel", "Comparison", "ComparisonError"]
