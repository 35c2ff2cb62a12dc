"""The paper's 2D recipe (Sun et al., arXiv:2601.17939, section 4.1) for any of our trainers: the suffix ``_paper2d``.

AdamW, learning rate 1e-4, weight decay 1e-5, 10,000 iterations (40 epochs of nnU-Net's 250), no augmentation beyond
nnU-Net's normalisation, and so no mirroring either. The best model on the validation cases is kept as a checkpoint of
its own. Ours, where the paper is silent: the learning rate stays what it is; "best" is the highest mean Dice over the
foreground in one epoch's validation patches; loss, patches and batch size are nnU-Net's.
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

    nnU-Net's own ``checkpoint_best.pth`` follows a running mean of the same Dice, as ever.
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
        self._kept_dice: float | None = None  # of BEST_CHECKPOINT; None before it has been looked for

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, PolyLRScheduler]:
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=self.initial_lr, weight_decay=self.weight_decay)
        # nnU-Net gives it the epoch; with an exponent of zero the rate stays
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs, exponent=0.0)

    def on_epoch_end(self) -> None:
        """nnU-Net's, and before it the checkpoint, where no epoch of this training was as good."""
        if self.local_rank == 0 and not self.disable_checkpointing:
            self._keep_the_best()
        super().on_epoch_end()

    def _keep_the_best(self) -> None:
        file = Path(self.output_folder) / BEST_CHECKPOINT
        if self._kept_dice is None:
            self._kept_dice = self._dice_of(file)
        dice = self.logger.get_value("mean_fg_dice", step=self.current_epoch)
        if dice > self._kept_dice:  # not where it is NaN, with no foreground
            self.print_to_log_file(f"Best Dice of an epoch so far: {dice:.4f}, kept in {BEST_CHECKPOINT}")
            unfinished = file.with_suffix(".part")  # a kill while it is written leaves the one before
            self.save_checkpoint(str(unfinished))
            unfinished.replace(file)
            self._kept_dice = dice

    def _dice_of(self, file: Path) -> float:
        """The Dice that a checkpoint was kept for; -1, less than any, where there is none of this training.

        A resumed training begins at ``checkpoint_latest.pth``, whose log does not know of a better epoch behind it. A
        new training in the same folder has begun its first epoch at another time.
        """
        if not file.is_file():
            return -1.0
        checkpoint = torch.load(file, map_location="cpu", weights_only=False)
        log = checkpoint["logging"]
        if log["epoch_start_timestamps"][0] != self.logger.get_value("epoch_start_timestamps", step=0):
            return -1.0
        return log["mean_fg_dice"][checkpoint["current_epoch"] - 1]
