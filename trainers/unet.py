"""The paper's 2D U-Net as trainers: nnUNetTrainerUNet with transposed convolutions, nnUNetTrainerUNetLinear, ..."""

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunet_dtc.architectures.padding import padding_note
from nnunet_dtc.architectures.unet import REDUCTION, UNet, check_patch, planned_width
from nnunet_dtc.errors import NnunetDtcError
from nnunet_dtc.trainers.base import WithoutDeepSupervision


class UNetTrainer(WithoutDeepSupervision):
    """nnU-Net's trainer with the 2D U-Net of the paper's table 7 in place of the planned network.

    For 2d configurations of any patch size; narrower networks by
    ``architecture.nnunet_dtc.UNet.width`` of the plans.
    """

    def initialize(self) -> None:
        """nnU-Net's, and for the log how patches are padded."""
        super().initialize()
        note = padding_note(self.configuration_manager.patch_size, REDUCTION)
        if note is not None:
            self.print_to_log_file(note)

    @classmethod
    def check_patch(cls, configuration: ConfigurationManager) -> None:
        """As :meth:`NamedTrainer.check_patch`; patches are padded, so that the strides divide them."""
        check_patch(configuration.patch_size, configuration.batch_size)

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = False,
    ) -> nn.Module:
        """The U-Net. nnU-Net calls this on the instance to train and on the class to predict.

        Raises:
            NnunetDtcError: the configuration is not 2D.
        """
        axes = len(configuration_manager.patch_size)
        if axes != 2:
            raise NnunetDtcError(
                f"{cls.__name__} is the paper's 2D U-Net, use it with -c 2d; got a patch with {axes} axes"
            )
        spec = cls.spec
        return UNet(
            num_input_channels,
            num_output_channels,
            spec.upsampler or None,
            **(spec.deformation if spec.dtc else {}),
            width=planned_width(configuration_manager.configuration),
        )
