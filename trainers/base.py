"""What every trainer of ours is: nnU-Net's trainer, for the number of epochs that its name says.

Names and choices, no mathematics. ``__init__`` keeps nnU-Net's exact parameter names: nnU-Net reads them by
``inspect.signature`` and ``locals()``.
"""

from typing import ClassVar

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

from nnunet_dtc._version import __version__
from nnunet_dtc.architectures.patch_size import check_planned
from nnunet_dtc.trainers.names import DEFAULT_EPOCHS, TrainerName


class NamedTrainer(nnUNetTrainer):
    """nnU-Net's trainer with its own network, for the number of epochs that its name says.

    A training of another length than nnU-Net's 1000 epochs saves ``checkpoint_latest.pth`` about 20 times, after every
    epoch of a short one and at least after every 50th (nnU-Net's rule), so that ``--c`` can resume it.
    """

    spec: ClassVar[TrainerName]

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 (nnU-Net's signature)
    ):
        super().__init__(plans, configuration, fold, dataset_json, device)
        if self.spec.epochs != DEFAULT_EPOCHS:
            self.num_epochs = self.spec.epochs
            self.save_every = min(self.save_every, max(1, self.num_epochs // 20))
        self.print_to_log_file(f"nnunet-dtc {__version__}: {type(self).__name__} is {self.spec!r}")

    def initialize(self) -> None:
        """nnU-Net's, after a patch or a batch that the network cannot be trained with is refused."""
        self.check_patch(self.configuration_manager)
        super().initialize()

    @classmethod
    def check_patch(cls, configuration: ConfigurationManager) -> None:
        """Refuse plans whose patches the network cannot be trained with.

        Raises:
            PatchSizeError: its strides do not divide the patch, or a normalisation has one value per channel.
        """
        check_planned(configuration.patch_size, configuration.network_arch_init_kwargs, configuration.batch_size)


class WithoutDeepSupervision(NamedTrainer):
    """For networks that have logits at full resolution alone, as the paper's have."""

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 (nnU-Net's signature)
    ):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.enable_deep_supervision = False

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """There is none to switch."""
