"""A trainer that records once an epoch where its DTC blocks sample: in its log file and in ``coordinates.csv``.

The statistics come from an additional forward pass, in eager mode, of one case of the epoch's first validation batch.
It costs the forward pass of one case per epoch and does not change the training. Hooks in a compiled network would
break its graph, and an additional batch from the data loader would change all later ones. nnU-Net's own logger accepts
only its own keys.
"""

from pathlib import Path

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.helpers import dummy_context

from nnunet_dtc.ops.coordinates import axis_names
from nnunet_dtc.ops.wrappers import unwrap
from nnunet_dtc.trainers.coordinates_csv import FILE_NAME, OFF_VARIABLE, is_on, record_epoch


class CoordinatesRecord(nnUNetTrainer):
    """A trainer that records the coordinates; the environment variable ``NNUNET_DTC_COORDINATES=0`` switches it off.

    If the recording fails, the log gives the reason and the training continues.
    """

    _coordinates_epoch: int | None = None

    def validation_step(self, batch: dict) -> dict:
        result = super().validation_step(batch)
        if self.local_rank == 0 and self._coordinates_epoch != self.current_epoch and is_on():
            is_first, self._coordinates_epoch = self._coordinates_epoch is None, self.current_epoch
            try:
                # nnU-Net puts the cases with guaranteed foreground at the end of a batch. With several GPUs the batch
                # of the first one may have none; the patch then comes from anywhere in the image.
                lines = self._record_coordinates(batch["data"][-1:])
            except Exception as error:  # no error of the record may end the training
                lines = [f"The DTC coordinates of this epoch are not recorded: {type(error).__name__}: {error}"]
            else:
                if is_first and lines:
                    lines.insert(0, f"DTC coordinates go to {FILE_NAME} once an epoch ({OFF_VARIABLE}=0: never)")
            for line in lines:
                self.print_to_log_file(line)
        return result

    def _record_coordinates(self, data: torch.Tensor) -> list[str]:
        plans, configuration = self.plans_manager, self.configuration_manager
        spacing = configuration.spacing
        # the same precision as nnU-Net's validation step
        with torch.autocast(self.device.type) if self.device.type == "cuda" else dummy_context():
            return record_epoch(
                Path(self.output_folder) / FILE_NAME,
                self.current_epoch,
                unwrap(self.network),
                data.to(self.device, non_blocking=True),
                spacing,
                axis_names(plans.transpose_forward, len(spacing)),
            )
