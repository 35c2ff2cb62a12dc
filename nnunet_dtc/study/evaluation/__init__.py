"""How good are predicted segmentations? Dice, surface Dice (NSD) and HD95, per case and organ, and their means.

`overlap` and `surfaces` have the mathematics for two masks, and `metrics` is the registry of metrics. `scoring` applies
them to the organs of one case, `folders` to all cases of two folders in parallel processes. `scores` computes means,
`score_report` writes JSON, CSV and a table. `labels` describes the organs, `tolerances` the distances at which NSD is
reported; `readers` reads files as nnU-Net does, and `images` compares where their voxels are.
"""

from nnunet_dtc.study.evaluation.folders import Pair, evaluate_pairs, find_pairs
from nnunet_dtc.study.evaluation.images import Displacement, EvaluationError
from nnunet_dtc.study.evaluation.labels import LabelSet, Organ, labels_from_dataset_json, parse_labels
from nnunet_dtc.study.evaluation.metrics import Metric, metric
from nnunet_dtc.study.evaluation.overlap import dice
from nnunet_dtc.study.evaluation.readers import Reader, find_reader
from nnunet_dtc.study.evaluation.score_report import Evaluation, write_report
from nnunet_dtc.study.evaluation.surfaces import SurfaceDistances, surface_distances
from nnunet_dtc.study.evaluation.tolerances import DEFAULT_TOLERANCES, Tolerance, parse_tolerance

__all__ = [
    "DEFAULT_TOLERANCES",
    "Displacement",
    "Evaluation",
    "EvaluationError",
    "LabelSet",
    "Metric",
    "Organ",
    "Pair",
    "Reader",
    "SurfaceDistances",
    "Tolerance",
    "dice",
    "evaluate_pairs",
    "find_pairs",
    "find_reader",
    "labels_from_dataset_json",
    "metric",
    "parse_labels",
    "parse_tolerance",
    "surface_distances",
    "write_report",
]
