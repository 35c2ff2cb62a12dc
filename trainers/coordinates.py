"""Once an epoch, where the samples of the DTC blocks go: in the log file, and in coordinates.csv beside it.

The numbers come from a forward pass of its own, in eager mode, of one case of the epoch's first validation batch. That
costs one case's forward pass an epoch, and touches nothing of the training: hooks in a compiled network would break its
graph, and a batch more from the data loader would change all later ones. nnU-Net's own logger knows only its own keys.
"""

from pathlib import Path

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.helpers import dummy_context

from nnunet_dtc.ops.coordinates import axis_names
from nnunet_dtc.ops.wrappers import unwrap
from nnunet_dtc.trainers.record import FILE_NAME, OFF_VARIABLE, is_on, record_epoch


class CoordinatesRecord(nnUNetTrainer):
    """A trainer that records the coordinates; the environment variable NNUNET_DTC_COORDINATES=0 switches it off.

    Where the record fails, the log says why, and the training goes on.
    """

    _coordinates_epoch: int | None = None  # the last one that was recorded

    def validation_step(self, batch: dict) -> dict:
        result = super().validation_step(batch)
        if self.local_rank == 0 and self._coordinates_epoch != self.current_epoch and is_on():
            first, self._coordinates_epoch = self._coordinates_epoch is None, self.current_epoch
            try:
                # nnU-Net puts the cases that are sure to hold foreground at the end of a batch; with several GPUs the
                # first one's batch may have none, and then this is a patch from anywhere
                lines = self._record_coordinates(batch["data"][-1:])
            except Exception as error:  # whatever it is, the training is worth more
                lines = [f"The DTC coordinates of this epoch are not recorded: {type(error).__name__}: {error}"]
            else:
                if first and lines:
                    lines.insert(0, f"DTC coordinates go to {FILE_NAME} once an epoch ({OFF_VARIABLE}=0: never)")
            for line in lines:
                self.print_to_log_file(line)
        return result

    def _record_coordinates(self, data: torch.Tensor) -> list[str]:
        plans, configuration = self.plans_manager, self.configuration_manager
        spacing = configuration.spacing
        # nnU-Net's own precision
        with torch.autocast(self.device.type) if self.device.type == "cuda" else dummy_context():
            return record_epoch(
                Path(self.output_folder) / FILE_NAME,
                self.current_epoch,
                unwrap(self.network),
                data.to(self.device, non_blocking=True),
                spacing,
                axis_names(plans.transpose_forward, len(spacing)),
            )
