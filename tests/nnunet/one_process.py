"""nnU-Net's commands one after the other in one process, which saves the imports.

    python one_process.py COMMANDS.txt

Every line is a command as one would type it. ``stopped nnUNetv2_train ..`` ends the training after its first epoch and
keeps the checkpoint as ``stopped.pth``. It is nnU-Net, made short: epochs of a few iterations, the validation of the
first fold alone and without mirroring, by threads where nnU-Net starts processes, and an empty picture of the progress.
"""

import shutil
import sys
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace

from nnunetv2.evaluation import evaluate_predictions
from nnunetv2.inference.predict_from_raw_data import predict_entry_point
from nnunetv2.model_sharing.entry_points import export_pretrained_model_entry, install_from_zip_entry_point
from nnunetv2.run.run_training import run_training_entry
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as training

ITERATIONS = 3
COMMANDS = {
    "nnUNetv2_train": run_training_entry,
    "nnUNetv2_predict": predict_entry_point,
    "nnUNetv2_export_model_to_zip": export_pretrained_model_entry,
    "nnUNetv2_install_pretrained_model_from_zip": install_from_zip_entry_point,
}


class Stopped(Exception):
    """A training that was to be stopped has its first epoch behind it."""


def make_short() -> None:
    base = training.nnUNetTrainer
    init, validate = base.__init__, base.perform_actual_validation
    threads = SimpleNamespace(get_context=lambda _: SimpleNamespace(Pool=ThreadPool))
    training.multiprocessing = evaluate_predictions.multiprocessing = threads

    def short(self, plans, configuration, fold, dataset_json, *device):
        init(self, plans, configuration, fold, dataset_json, *device)
        self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = ITERATIONS, 1
        self.logger.plot_progress_png = lambda folder: Path(folder, "progress.png").touch()

    def first_fold(self, *more):
        if self.fold == 0:
            self.inference_allowed_mirroring_axes = None  # of the trained model, too, but its checkpoint is written
            validate(self, *more)

    base.__init__, base.perform_actual_validation = short, first_fold


def run(line: str) -> None:
    stopped, line = line.startswith("stopped "), line.removeprefix("stopped ")
    on_epoch_end = training.nnUNetTrainer.on_epoch_end

    def stop(self):
        on_epoch_end(self)
        for loader in (self.dataloader_train, self.dataloader_val):
            loader._finish()
        shutil.copy(Path(self.output_folder, "checkpoint_latest.pth"), Path(self.output_folder, "stopped.pth"))
        raise Stopped

    sys.argv = line.split()
    if not stopped:
        return COMMANDS[sys.argv[0]]()
    training.nnUNetTrainer.on_epoch_end = stop
    try:
        COMMANDS[sys.argv[0]]()
    except Stopped:
        return None
    finally:
        training.nnUNetTrainer.on_epoch_end = on_epoch_end
    raise AssertionError(f"it was to be stopped, and ended: {line}")


if __name__ == "__main__":  # nnU-Net's workers import this file
    make_short()
    for command in Path(sys.argv[1]).read_text().splitlines():
        print(f"\n$ {command}", flush=True)
        run(command)
