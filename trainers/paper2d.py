"""The paper's 2D recipe (Sun et al., arXiv:2601.17939, section 4.1) for any trainer: the suffix ``_paper2d``.

AdamW, learning rate 1e-4, weight decay 1e-5, 10,000 iterations (40 epochs of nnU-Net's 250), and no augmentation, hence
no mirroring either. The best model on the validation cases is saved as a separate checkpoint. Where the paper is
silent, these choices are ours: the learning rate is constant; the best model is that with the highest mean foreground
Dice on one epoch's validation patches; loss, patch size and batch size are nnU-Net's.
"""

from pathlib import Path

import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoDA import nnUNetTrainerNoDA

LEARNING_RATE = 1e-4
WEIGHT_DECAY = 1e-5
BEST_CHECKPOINT = "checkpoint_best_validation.pth"


class Paper2DRecipe(nnUNetTrainerNoDA):
    """nnU-Net's trainer without augmentation, with the paper's optimizer and ``checkpoint_best_validation.pth``.

    nnU-Net's own ``checkpoint_best.pth`` is still that of the highest moving average of the same Dice.
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
        self.initial_lr = LEARNING_RATE
        self.weight_decay = WEIGHT_DECAY
        self._kept_dice: float | None = None  # Dice of BEST_CHECKPOINT; None until the first epoch ends

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, PolyLRScheduler]:
        """AdamW with a constant learning rate."""
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=self.initial_lr, weight_decay=self.weight_decay)
        # nnU-Net steps the scheduler every epoch; with an exponent of zero the rate is constant
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs, exponent=0.0)

    def on_epoch_end(self) -> None:
        """Save the checkpoint if this epoch is the best one, then continue as nnU-Net does."""
        if self.local_rank == 0 and not self.disable_checkpointing:
            self._save_best()
        super().on_epoch_end()

    def _save_best(self) -> None:
        file = Path(self.output_folder) / BEST_CHECKPOINT
        if self._kept_dice is None:
            self._kept_dice = self._dice_of(file)
        dice = self.logger.get_value("mean_fg_dice", step=self.current_epoch)
        if dice > self._kept_dice:  # False for NaN, the Dice without foreground
            self.print_to_log_file(f"Best Dice of an epoch so far: {dice:.4f}, saved in {BEST_CHECKPOINT}")
            unfinished = file.with_suffix(".part")  # a process that is killed leaves the previous checkpoint
            self.save_checkpoint(str(unfinished))
            unfinished.replace(file)
            self._kept_dice = dice

    def _dice_of(self, file: Path) -> float:
        """The Dice of the epoch that the checkpoint was saved after; -1 if there is no checkpoint of this training.

        It is read from the file, because a training that is resumed from ``checkpoint_latest.pth`` has no log of later
        epochs. The start of the first epoch tells whether the checkpoint is of this training.
        """
        if not file.is_file():
            return -1.0
        checkpoint = torch.load(file, map_location="cpu", weights_only=False)
        log = checkpoint["logging"]
        if log["epoch_start_timestamps"][0] != self.logger.get_value("epoch_start_timestamps", step=0):
            return -1.0
        return log["mean_fg_dice"][checkpoint["current_epoch"] - 1]
