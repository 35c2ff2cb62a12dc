"""The trainers of nnU-Net's planned U-Net with other upsamplings, among them nnUNetTrainerDTC.

All other classes are created on demand (``nnunet_dtc.trainers``). This module is not called ``nnUNetTrainerDTC``,
because it would then hide the class of that name in the package.
"""

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunet_dtc.architectures import with_dtc, with_upsampler
from nnunet_dtc.architectures.patch_size import check_planned
from nnunet_dtc.trainers.base import NamedTrainer
from nnunet_dtc.trainers.coordinates_record import CoordinatesRecord
from nnunet_dtc.trainers.names import TrainerName


class PlannedUNetTrainer(NamedTrainer):
    """nnU-Net's trainer with other upsamplings in the decoder of the U-Net that nnU-Net has planned."""

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """Build the network. nnU-Net calls this on the instance for training and on the class for prediction.

        Raises:
            PatchSizeError: the strides do not divide the patch size, or the deepest map cannot be normalised.
            UnsupportedNetworkError: the plans name a network without nnU-Net's ``UNetDecoder``.
        """
        check_planned(configuration_manager.patch_size, configuration_manager.network_arch_init_kwargs)
        network = super().build_network_architecture(
            plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision
        )
        spec = cls.spec
        if not spec.dtc:
            return with_upsampler(network, spec.upsampler)
        return with_dtc(network, upsampler=spec.upsampler or None, **spec.deformation)


class nnUNetTrainerDTC(CoordinatesRecord, PlannedUNetTrainer):
    """The planned U-Net with transposed convolution + DTC, receptive field 2 (the paper's default, section 3.2).

    Once an epoch it records where the DTC blocks sample, see ``nnunet_dtc.trainers.coordinates_record``.

    On CUDA a training is not reproducible bit for bit, like nnU-Net's own. DTC itself is with the short shifts of RF 2
    (``nnunet_dtc.ops.backends.cuda``).
    """

    spec = TrainerName(dtc=True)
