"""Where the samples of a network's DTC blocks go: the paper's figure 7 in numbers.

``collect`` runs a network once and keeps the coordinates of every block, ``measure`` turns them into numbers, and
``describe`` into sentences. ``nnunet_dtc.coordinates.record`` writes them once an epoch of a training,
``nnunet_dtc.coordinates.model`` finds them for a trained model and an image; that one alone imports nnU-Net.
"""

from nnunet_dtc.coordinates.stages import (
    AxisNumbers,
    StageCoordinates,
    StageNumbers,
    axis_names,
    collect,
    describe,
    measure,
)

__all__ = ["AxisNumbers", "StageCoordinates", "StageNumbers", "axis_names", "collect", "describe", "measure"]
