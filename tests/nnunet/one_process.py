"""nnU-Net's commands one after the other in one process, which saves the imports.

    python one_process.py COMMANDS.txt ITERATIONS

Every line is a command as one would type it. ``stopped nnUNetv2_train ..`` ends the training after its first epoch and
keeps the checkpoint as ``stopped.pth``; ``unvalidated nnUNetv2_train ..`` does without the validation. It is nnU-Net,
made short: epochs of a few iterations, the validation without mirroring, threads where nnU-Net starts processes, and an
empty picture of the progress.
"""

import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace

from nnunetv2.ensembling import ensemble
from nnunetv2.evaluation import evaluate_predictions
from nnunetv2.evaluation.evaluate_predictions import evaluate_folder_entry_point
from nnunetv2.evaluation.find_best_configuration import find_best_configuration_entry_point
from nnunetv2.experiment_planning import verify_dataset_integrity
from nnunetv2.experiment_planning.dataset_fingerprint import fingerprint_extractor
from nnunetv2.experiment_planning.plan_and_preprocess_entrypoints import (
    plan_and_preprocess_entry,
    plan_experiment_entry,
    preprocess_entry,
)
from nnunetv2.inference.predict_from_raw_data import predict_entry_point
from nnunetv2.model_sharing.entry_points import export_pretrained_model_entry, install_from_zip_entry_point
from nnunetv2.postprocessing import remove_connected_components
from nnunetv2.preprocessing.preprocessors import default_preprocessor
from nnunetv2.run.run_training import run_training_entry
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as training

COMMANDS = {
    "nnUNetv2_plan_and_preprocess": plan_and_preprocess_entry,
    "nnUNetv2_plan_experiment": plan_experiment_entry,
    "nnUNetv2_preprocess": preprocess_entry,
    "nnUNetv2_train": run_training_entry,
    "nnUNetv2_predict": predict_entry_point,
    "nnUNetv2_evaluate_folder": evaluate_folder_entry_point,
    "nnUNetv2_find_best_configuration": find_best_configuration_entry_point,
    "nnUNetv2_export_model_to_zip": export_pretrained_model_entry,
    "nnUNetv2_install_pretrained_model_from_zip": install_from_zip_entry_point,
}
STARTING_PROCESSES = (
    verify_dataset_integrity,
    fingerprint_extractor,
    default_preprocessor,
    training,
    evaluate_predictions,
    ensemble,
    remove_connected_components,
)


class Stopped(Exception):
    """A training that was to be stopped has its first epoch behind it."""


_began = 0


def make_short(iterations: int) -> None:
    base = training.nnUNetTrainer
    init, validate = base.__init__, base.perform_actual_validation
    threads = SimpleNamespace(get_context=lambda _: SimpleNamespace(Pool=ThreadPool))
    for module in STARTING_PROCESSES:
        module.multiprocessing = threads

    def short(self, plans, configuration, fold, dataset_json, *device):
        wait_for_another_second()
        init(self, plans, configuration, fold, dataset_json, *device)
        self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = iterations, 1
        self.logger.plot_progress_png = lambda folder: Path(folder, "progress.png").touch()

    def without_mirroring(self, *more):
        self.inference_allowed_mirroring_axes = None  # of the trained model, too, but its checkpoint is written
        validate(self, *more)

    base.__init__, base.perform_actual_validation = short, without_mirroring


def wait_for_another_second() -> None:
    """nnU-Net names a log after the second in which its training began: two in one second would share a file."""
    global _began
    while int(time.time()) == _began:
        time.sleep(0.05)
    _began = int(time.time())


def stop_after_first_epoch(self) -> None:
    for loader in (self.dataloader_train, self.dataloader_val):
        loader._finish()
    shutil.copy(Path(self.output_folder, "checkpoint_latest.pth"), Path(self.output_folder, "stopped.pth"))
    raise Stopped


@contextmanager
def stopped() -> Iterator[None]:
    base = training.nnUNetTrainer
    on_epoch_end = base.on_epoch_end
    base.on_epoch_end = lambda self: (on_epoch_end(self), stop_after_first_epoch(self))
    try:
        yield
    except Stopped:
        return
    finally:
        base.on_epoch_end = on_epoch_end
    raise AssertionError(f"it was to be stopped, and ended: {sys.argv}")


@contextmanager
def unvalidated() -> Iterator[None]:
    base = training.nnUNetTrainer
    validate = base.perform_actual_validation
    base.perform_actual_validation = lambda self, *more: None
    try:
        yield
    finally:
        base.perform_actual_validation = validate


def run(line: str) -> None:
    first, _, rest = line.partition(" ")
    if first in (changes := {"stopped": stopped, "unvalidated": unvalidated}):
        with changes[first]():
            run(rest)
    else:
        sys.argv = line.split()
        COMMANDS[first]()


if __name__ == "__main__":  # nnU-Net's workers import this file
    make_short(int(sys.argv[2]))
    for command in Path(sys.argv[1]).read_text().splitlines():
        print(f"\n$ {command}", flush=True)
        run(command)
