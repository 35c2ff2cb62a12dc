"""The whole demo with a data set of the user's own, interrupted in a training."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from default_signals import default_signals

from nnunet_dtc.study.processes import usable_cores

DEMO = Path(__file__).parents[2] / "scripts" / "demo.py"
SNAKEMAKE = shutil.which("snakemake", path=str(Path(sys.executable).parent)) or shutil.which("snakemake")

pytestmark = [
    pytest.mark.nnunet,
    pytest.mark.skipif(SNAKEMAKE is None, reason="no Snakemake (pip install 'nnunet-dtc[study]')"),
]

PATIENCE_S = 900
VANILLA, DTC = (f"{name}_Adam1en3_2epochs_NoMirroring" for name in ("nnUNetTrainer", "nnUNetTrainerDTC"))
# the demo's trainers, with few iterations, which stay in their second epoch until there is the file GO_ON; a user's own
# trainers go before those that nnunet-dtc makes of a name
TRAINERS = f"""
import os
import time

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunet_dtc.trainers import nnUNetTrainerDTC


class Short:
    def __init__(self, plans: dict, configuration: str, fold: int, dataset_json: dict,
                 device: torch.device = torch.device("cuda")):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs, self.save_every = 2, 1
        self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 2, 1
        self.inference_allowed_mirroring_axes = None
        self.logger.plot_progress_png = lambda folder: None

    def on_train_epoch_start(self):
        super().on_train_epoch_start()
        until = time.monotonic() + {PATIENCE_S}
        while self.current_epoch == 1 and not os.path.exists(os.environ["GO_ON"]) and time.monotonic() < until:
            time.sleep(0.1)


class {VANILLA}(Short, nnUNetTrainer):
    pass


class {DTC}(Short, nnUNetTrainerDTC):
    pass
"""


@pytest.fixture(scope="module")
def own_dataset(tmp_path_factory):
    """Five cases to train with and two held out, of two organs."""
    folder = tmp_path_factory.mktemp("own") / "Dataset018_Own"
    random = np.random.default_rng(0)
    for part, cases in (("Tr", range(5)), ("Ts", range(5, 7))):
        for case in cases:
            label = np.zeros((10 + case % 2, 24, 28), np.uint8)
            label[:, 4:12, 4:14], label[:, 14:20, 15:24] = 1, 2
            image = (100 * label + random.normal(0, 20, label.shape)).astype(np.float32)
            for kind, array, suffix in (("images", image, "_0000"), ("labels", label, "")):
                (folder / f"{kind}{part}").mkdir(parents=True, exist_ok=True)
                volume = sitk.GetImageFromArray(array)
                volume.SetSpacing((1.5, 1.5, 4.0))
                sitk.WriteImage(volume, str(folder / f"{kind}{part}" / f"case_{case}{suffix}.nii.gz"))
    described = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1, "spleen": 2},
        "numTraining": 5,
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(described))
    return folder


@pytest.mark.skipif(usable_cores() < 2, reason="both trainings must run at the same time")
def test_the_demo_is_interrupted_and_continues(own_dataset, tmp_path, folder_for_locks):
    trainers, folder, log = tmp_path / "trainers", tmp_path / "demo", tmp_path / "printed.txt"
    go_on = tmp_path / "go_on"
    trainers.mkdir()
    (trainers / "short_trainers.py").write_text(TRAINERS)
    env = {**os.environ, "nnUNet_extTrainer": str(trainers), "PYTHONUNBUFFERED": "1", "COLUMNS": "200"}
    env["GO_ON"] = str(go_on)
    env["TMPDIR"] = folder_for_locks
    command = [sys.executable, DEMO, "--folder", folder, "--dataset", own_dataset, "--epochs", "2", "--device", "cpu"]

    @contextlib.contextmanager
    def started():
        with log.open("w") as output, default_signals():
            process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env=env, start_new_session=True
            )
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    with started() as first:
        until = time.monotonic() + PATIENCE_S
        while log.read_text().count("epoch 2 of 2") < 2:
            assert first.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < until, log.read_text()[-4000:]
            time.sleep(0.2)
        os.killpg(first.pid, signal.SIGINT)  # as a terminal does
        assert first.wait(60) == 130, log.read_text()[-4000:]
    printed = log.read_text()
    assert "Interrupted. Run the same command again" in printed
    assert re.search(r"\$ nnUNetv2_plan_and_preprocess -d 18 ", printed)
    assert re.search(r"\$ nnUNetv2_preprocess -d 18 .*-plans_name nnUNetPlansSmall", printed)
    assert not _processes_of(folder)

    go_on.touch()
    with started() as second:
        assert second.wait(PATIENCE_S) == 0, log.read_text()[-4000:]
    before, printed = printed, log.read_text()
    for trainer in (VANILLA, DTC):
        command_line = rf"\$ nnUNetv2_train Dataset018_Own 3d_fullres 0 -tr {trainer} -p nnUNetPlansSmall -device cpu"
        assert re.search(rf"{command_line}(?! --c)", before)
        assert re.search(rf"{command_line} --c", printed)
        (fold,) = (folder / "nnUNet_results" / "Dataset018_Own").glob(f"{trainer}__*/fold_0")
        assert (fold / "checkpoint_final.pth").is_file()
        begun, continued = (file.read_text() for file in sorted(fold.glob("training_log_*.txt")))
        assert re.findall(r": Epoch (\d+) *$", begun, re.MULTILINE) == ["0", "1"]
        assert re.findall(r": Epoch (\d+) *$", continued, re.MULTILINE) == ["1"]
    assert "nnUNetv2_preprocess" not in printed  # it was done
    assert "It is not known whether Dice differs: there is one training each" in printed
    page = folder / "comparison" / "comparison" / "test" / "index.html"
    assert str(page) in printed
    assert page.is_file()
    assert 'href="comparison/test/index.html"' in (folder / "comparison" / "index.html").read_text()


def _processes_of(folder):
    """The command lines of processes that name a file in this folder (on Linux)."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in words:
            found.append(words)
    return found
