"""The base classes of all trainers: nnU-Net's trainer for the number of epochs in its name.

``__init__`` has nnU-Net's parameter names, because nnU-Net reads them by ``inspect.signature`` and ``locals()``.
"""

from typing import ClassVar

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

from nnunet_dtc._version import __version__
from nnunet_dtc.architectures.padding import padding_note
from nnunet_dtc.architectures.patch_size import check_planned
from nnunet_dtc.ops import backends
from nnunet_dtc.ops.dtc import is_dtc
from nnunet_dtc.trainers.names import DEFAULT_EPOCHS, TrainerName
from nnunet_dtc.upsamplers import DySample2d, DySample3d


class NamedTrainer(nnUNetTrainer):
    """nnU-Net's trainer with its own network, for the number of epochs in its name.

    A training of another length than nnU-Net's 1000 epochs saves ``checkpoint_latest.pth`` about 20 times, so that
    ``--c`` can resume it: after every epoch of a short training, and at least after every 50th epoch as nnU-Net does.

    Attributes:
        spec: the parsed name of the trainer.
        deep_supervision: whether the network has outputs for deep supervision.
    """

    spec: ClassVar[TrainerName]
    deep_supervision: ClassVar[bool] = True

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 (nnU-Net's signature)
    ):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.enable_deep_supervision = self.enable_deep_supervision and self.deep_supervision
        if self.spec.epochs != DEFAULT_EPOCHS:
            self.num_epochs = self.spec.epochs
            self.save_every = min(self.save_every, max(1, self.num_epochs // 20))
        self.print_to_log_file(f"nnunet-dtc {__version__}: {type(self).__name__} is {self.spec!r}")

    def initialize(self) -> None:
        """Initialise as nnU-Net does, after patch and batch size are checked.

        The ranks of a distributed training agree on the backend of DTC and DySample, and the log names it.
        """
        self.check_patch(self.configuration_manager)
        super().initialize()
        if any(is_dtc(module) or isinstance(module, DySample2d | DySample3d) for module in self.network.modules()):
            backends.agree_across_ranks(self.device)
            self.print_to_log_file(backends.backend_note(self.device))

    @classmethod
    def check_patch(cls, configuration: ConfigurationManager) -> None:
        """Refuse plans whose patches the network cannot be trained with.

        Args:
            configuration: nnU-Net's view of the planned configuration.

        Raises:
            PatchSizeError: the strides do not divide the patch size, or a normalisation has one value per channel.
        """
        check_planned(configuration.patch_size, configuration.network_arch_init_kwargs, configuration.batch_size)


class WithoutDeepSupervision(NamedTrainer):
    """A trainer whose network returns logits at full resolution only and pads its patches, as those of the paper do.

    Attributes:
        multiple: what the network pads sizes to a multiple of.
    """

    deep_supervision = False
    multiple: int

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Do nothing: there is no deep supervision."""

    def initialize(self) -> None:
        """Initialise as the base class does, and log how patches are padded."""
        super().initialize()
        note = padding_note(self.configuration_manager.patch_size, self.multiple)
        if note is not None:
            self.print_to_log_file(note)
