"""The trainer of the paper's other networks: nnUNetTrainerUNETR, nnUNetTrainerSwinUNETRV2, nnUNetTrainerNnMamba and
nnUNetTrainerSegMamba, with or without DTC."""

import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunet_dtc.architectures import NETWORKS, build_network, planned_settings
from nnunet_dtc.architectures.mamba import SelectiveSSM
from nnunet_dtc.architectures.networks import check_patch
from nnunet_dtc.architectures.selective_scan import agree_across_ranks, scan_note
from nnunet_dtc.registry import NETWORKS as ENTRIES
from nnunet_dtc.trainers.base import WithoutDeepSupervision
from nnunet_dtc.trainers.names import DEFAULT_OPTIMIZER


class PaperNetworkTrainer(WithoutDeepSupervision):
    """nnU-Net's trainer with one of the paper's other networks instead of the planned one.

    Unless the name contains an optimizer, it is AdamW with nnU-Net's schedule and the learning rate in the network's
    entry of ``nnunet_dtc.registry``. Patches in 2D and 3D may have any size. ``architecture.nnunet_dtc`` in the plans
    sets other sizes of the network (``nnunet_dtc.architectures.settings``).
    """

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 (nnU-Net's signature)
    ):
        super().__init__(plans, configuration, fold, dataset_json, device)
        if self.spec.optimizer == DEFAULT_OPTIMIZER:
            self.initial_lr, self.weight_decay = ENTRIES[self.spec.network].adamw

    @property
    def multiple(self) -> int:
        """What the network pads sizes to a multiple of."""
        return NETWORKS[self.spec.network].multiple

    @classmethod
    def check_patch(cls, configuration: ConfigurationManager) -> None:
        """The same as :meth:`NamedTrainer.check_patch`. Any patch size can be padded."""
        check_patch(cls.spec.network, configuration.patch_size, configuration.batch_size)

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = False,
    ) -> nn.Module:
        """Build the network. nnU-Net calls this on the instance for training and on the class for prediction."""
        spec = cls.spec
        return build_network(
            spec.network,
            num_input_channels,
            num_output_channels,
            configuration_manager.patch_size,
            planned_settings(configuration_manager.configuration, spec.network),
            dtc=spec.deformation if spec.dtc else None,
        )

    def initialize(self) -> None:
        """Initialise as the base class does, and log the optimizer and the implementation of selective scans."""
        super().initialize()
        self.print_to_log_file(
            f"Optimizer: {type(self.optimizer).__name__}, learning rate {self.initial_lr:g}, weight decay "
            f"{self.weight_decay:g}"
        )
        if any(isinstance(module, SelectiveSSM) for module in self.network.modules()):
            agree_across_ranks(self.device)
            self.print_to_log_file(scan_note(self.device.type))

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, PolyLRScheduler]:
        """AdamW, or the optimizer in the name, with nnU-Net's schedule."""
        if self.spec.optimizer != DEFAULT_OPTIMIZER:
            return super().configure_optimizers()
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=self.initial_lr, weight_decay=self.weight_decay)
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)
