"""The paper's other networks as trainers: nnUNetTrainerUNETR, nnUNetTrainerSwinUNETRV2, nnUNetTrainerNnMamba and
nnUNetTrainerSegMamba, each with and without DTC."""

import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunet_dtc.architectures import NETWORKS, build_network, planned_settings
from nnunet_dtc.architectures.mamba import SelectiveSSM
from nnunet_dtc.architectures.networks import check_patch
from nnunet_dtc.architectures.padding import padding_note
from nnunet_dtc.architectures.selective_scan import scan_note
from nnunet_dtc.registry import NETWORKS as ENTRIES
from nnunet_dtc.trainers.base import WithoutDeepSupervision
from nnunet_dtc.trainers.names import DEFAULT_OPTIMIZER


class PaperNetworkTrainer(WithoutDeepSupervision):
    """nnU-Net's trainer with one of the paper's other networks in place of the planned one.

    AdamW with the learning rate of the network's entry in ``nnunet_dtc.registry`` and nnU-Net's schedule, unless the
    name has an optimizer. For patches of any size, in 2D and 3D; other sizes of the network by
    ``architecture.nnunet_dtc`` of the plans (``nnunet_dtc.architectures.settings``).
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

    @classmethod
    def check_patch(cls, configuration: ConfigurationManager) -> None:
        """As :meth:`NamedTrainer.check_patch`; patches are padded, so that the strides divide them."""
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
        """The network. nnU-Net calls this on the instance to train and on the class to predict."""
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
        """nnU-Net's, and for the log what the name does not say: the optimizer, how patches are padded, what scans."""
        super().initialize()
        self.print_to_log_file(
            f"Optimizer: {type(self.optimizer).__name__}, learning rate {self.initial_lr:g}, weight decay "
            f"{self.weight_decay:g}"
        )
        note = padding_note(self.configuration_manager.patch_size, NETWORKS[self.spec.network].multiple)
        if note is not None:
            self.print_to_log_file(note)
        if any(isinstance(module, SelectiveSSM) for module in self.network.modules()):
            self.print_to_log_file(scan_note(self.device.type))

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, PolyLRScheduler]:
        """AdamW, or what the name says, with nnU-Net's schedule."""
        if self.spec.optimizer != DEFAULT_OPTIMIZER:
            return super().configure_optimizers()
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=self.initial_lr, weight_decay=self.weight_decay)
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)
