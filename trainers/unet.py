"""The trainer of the paper's 2D U-Net: nnUNetTrainerUNet, nnUNetTrainerUNetLinear, nnUNetTrainerUNetDTC, ..."""

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunet_dtc.architectures.unet import REDUCTION, UNet, check_patch, planned_width
from nnunet_dtc.errors import NnunetDtcError
from nnunet_dtc.trainers.base import WithoutDeepSupervision


class UNetTrainer(WithoutDeepSupervision):
    """nnU-Net's trainer with the 2D U-Net of the paper's table 7 instead of the planned network.

    It is for 2d configurations with any patch size. ``architecture.nnunet_dtc.UNet.width`` in the plans sets another
    width.
    """

    multiple = REDUCTION

    @classmethod
    def check_patch(cls, configuration: ConfigurationManager) -> None:
        """The same as :meth:`NamedTrainer.check_patch`. Any patch size can be padded."""
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
        """Build the U-Net. nnU-Net calls this on the instance for training and on the class for prediction.

        Raises:
            NnunetDtcError: the configuration is not 2D.
        """
        axes = len(configuration_manager.patch_size)
        if axes != 2:
            raise NnunetDtcError(
                f"{cls.__name__} trains the paper's 2D U-Net and needs a 2d configuration, got a patch with {axes} axes"
            )
        spec = cls.spec
        return UNet(
            num_input_channels,
            num_output_channels,
            spec.upsampler or None,
            **(spec.deformation if spec.dtc else {}),
            width=planned_width(configuration_manager.configuration),
        )
