"""The logic of the demo without training: options, small plans, finished steps, and commands."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import io
import itertools
import json
import math
import os
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from rich.console import Console

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"


@pytest.fixture(scope="module", autouse=True)
def _scripts_importable():
    sys.path.insert(0, str(SCRIPTS))
    yield
    sys.path.remove(str(SCRIPTS))


def script(name: str):
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture(scope="module")
def demo(_scripts_importable):
    return script("demo")


def run(demo, *arguments: str) -> tuple[int, str]:
    console = Console(file=io.StringIO(), width=200)
    code = demo.main(arguments, console)
    return code, " ".join(console.file.getvalue().split())


def raw_dataset(folder: Path, name: str = "Dataset017_BTCV", cases: int = 5) -> Path:
    dataset = folder / name
    for sub in ("imagesTr", "labelsTr"):
        (dataset / sub).mkdir(parents=True)
    for k in range(cases):
        (dataset / "labelsTr" / f"c{k}.nii.gz").touch()
    described = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1},
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    (dataset / "dataset.json").write_text(json.dumps(described), encoding="utf-8")
    return dataset


# ------------------------------------------------------------------------------------------------------------------
# Options.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["--trainers", "nnUNetTrainer", "nnUNetTrainer"], "must differ"),
        (["--trainers", "nnUNetTrainerDTC", "nnUNetTrainerDTC_Adam1en3"], "must differ"),
        (["--trainers", "Trainer"], "Trainer is no trainer of nnunet-dtc"),
        (["--trainers", "nnUNetTrainer__x"], "nnUNetTrainer__x is no trainer of nnunet-dtc"),
        (["--trainers", "nnUNetTrainerDA5"], "its names are nnUNetTrainer[UNet|"),
        (["--trainers", "nnUNetTrainerDTC_typo"], "_typo is no suffix of nnunet-dtc"),
        (["--trainers", "nnUNetTrainerDTC_RF2"], "instead of nnUNetTrainerDTC_RF2 use nnUNetTrainerDTC"),
        (["--trainers", "nnUNetTrainerDTC_5epochs"], "without _<n>epochs (use --epochs)"),
        (["--trainers", "nnUNetTrainer_5epochs_NoMirroring"], "without _<n>epochs (use --epochs)"),
        (["--trainers", "nnUNetTrainerDTC_NoMirroring"], "without _NoMirroring, which the demo adds"),
        (["--trainers", "nnUNetTrainerNoMirroring"], "without _NoMirroring, which the demo adds"),
    ],
)
def test_bad_options(demo, tmp_path, arguments, message):
    code, printed = run(demo, "--folder", str(tmp_path / "demo"), "--device", "cpu", *arguments)
    assert code == 2
    assert message in printed
    assert not (tmp_path / "demo").exists()


def test_bad_datasets(demo, tmp_path):
    def refused(path: Path) -> str:
        with pytest.raises(demo.DemoError) as error:
            demo.check_dataset(path)
        return str(error.value)

    assert "must be a folder" in refused(tmp_path / "Dataset017_BTCV")
    (tmp_path / "btcv").mkdir()
    assert "must be named Dataset<three digits>_<Name>" in refused(tmp_path / "btcv")
    (tmp_path / "Dataset001_A" / "imagesTr").mkdir(parents=True)
    assert "lacks dataset.json, labelsTr" in refused(tmp_path / "Dataset001_A")
    assert "at least 5 training cases" in refused(raw_dataset(tmp_path, "Dataset002_B", cases=4))
    broken = raw_dataset(tmp_path, "Dataset003_C")
    (broken / "dataset.json").write_text("{}", encoding="utf-8")
    assert "is not nnU-Net's" in refused(broken)
    good = raw_dataset(tmp_path)
    assert demo.check_dataset(good) == good


def test_a_dataset_may_be_a_link(demo, tmp_path, monkeypatch):
    there = raw_dataset(tmp_path).rename(tmp_path / "btcv_v3")
    link = tmp_path / "Dataset017_BTCV"
    link.symlink_to(there, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    assert demo.check_dataset(Path("Dataset017_BTCV")) == link
    target = tmp_path / "nnUNet_raw" / link.name
    target.parent.mkdir()
    demo.bring_dataset(link, target)
    link.unlink()  # the demo must not depend on it
    assert (target / "dataset.json").is_file()


@pytest.mark.parametrize(
    ("given", "epochs", "end"),
    [
        ("nnUNetTrainer", 12, "_12epochs_NoMirroring"),
        ("nnUNetTrainer", 1000, "_NoMirroring"),
        ("nnUNetTrainerDTC_RF2.5_noweight", 3, "_3epochs_NoMirroring"),
        ("nnUNetTrainerDTC_rep2", 12, "_12epochs_NoMirroring_rep2"),
        ("nnUNetTrainer_rep2", 12, "_12epochs_NoMirroring_rep2"),
        ("nnUNetTrainerDTC_Adam3en4_rep2", 12, "_Adam3en4_12epochs_NoMirroring_rep2"),
    ],
)
def test_names_of_the_trainers(demo, given, epochs, end):
    from nnunet_dtc.trainers import names

    arguments = ["--device", "cpu", "--epochs", str(epochs), "--trainers", given]
    name = demo.check_options(demo.parse(arguments), lambda: False).trainer(given)
    assert name.endswith(end)
    trained, asked = names.parse(name), names.parse(given) or names.TrainerName()
    assert trained == dataclasses.replace(asked, optimizer=trained.optimizer, epochs=epochs, mirroring=False)


def test_device_and_epochs(demo):
    def options(*arguments: str, cuda: bool):
        return demo.check_options(demo.parse(arguments), lambda: cuda)

    gpu, cpu = options(cuda=True), options(cuda=False)
    assert (gpu.device, gpu.epochs, gpu.plans) == ("cuda", demo.GPU_EPOCHS, "nnUNetPlans")
    assert (cpu.device, cpu.epochs, cpu.plans) == ("cpu", demo.CPU_EPOCHS, "nnUNetPlansSmall")
    assert (
        options("--device", "cpu", "--epochs", "7", cuda=True)
        .trainer("nnUNetTrainerDTC")
        .endswith("_7epochs_NoMirroring")
    )
    with pytest.raises(demo.DemoError, match="sees no CUDA GPU"):
        options("--device", "cuda", cuda=False)


def test_a_folder_has_one_set_of_options(demo, tmp_path):
    options = demo.Options("phantom", ("nnUNetTrainer", "nnUNetTrainerDTC"), 3, "cpu")
    folder = tmp_path / "demo"
    demo.claim_folder(folder, options)
    demo.claim_folder(folder, options)  # resumed
    with pytest.raises(demo.DemoError, match=r"other options.*epochs is 3 there and 4 now"):
        demo.claim_folder(folder, dataclasses.replace(options, epochs=4))
    with pytest.raises(demo.DemoError, match="dataset is 'phantom' there"):
        demo.claim_folder(folder, dataclasses.replace(options, dataset="/data/Dataset017_BTCV"))

    foreign = tmp_path / "mine"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("precious", encoding="utf-8")
    with pytest.raises(demo.DemoError, match="not empty and was not made by this demo"):
        demo.claim_folder(foreign, options)
    with pytest.raises(demo.DemoError, match="must be a folder"):
        demo.claim_folder(foreign / "thesis.txt", options)
    assert [f.name for f in foreign.iterdir()] == ["thesis.txt"]

    (folder / demo.OPTIONS_FILE).rename(folder / f".{demo.OPTIONS_FILE}.123")  # ended before it was renamed
    demo.claim_folder(folder, options)
    assert demo.OPTIONS_FILE in [f.name for f in folder.iterdir()]


def test_a_file_is_complete_or_unchanged(demo, tmp_path, monkeypatch):
    file = tmp_path / "demo" / demo.SECONDS_FILE
    it = demo.Demo(file.parent, demo.Options("phantom", ("nnUNetTrainer",), 2, "cpu"), Console(quiet=True))
    it.folder.mkdir()
    it.keep_time("a", 1)

    def full(self, content):
        self.open("wb").write(content[:5])
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match="no space"):
            it.keep_time("b", 2)
    assert demo.read_json(file) == {"a": 1}
    assert demo.Demo(it.folder, it.options, it.console).seconds == {"a": 1}
    file.write_text('{"a": 1', encoding="utf-8")
    assert demo.Demo(it.folder, it.options, it.console).seconds == {}
    assert demo.read_json(tmp_path / "nothing.json") is None


def test_an_error_of_the_system_is_one_message(demo, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    code, printed = run(demo, "--folder", str(tmp_path / "file" / "demo"), "--device", "cpu")
    assert (code, printed) == (2, f"error: Not a directory: {tmp_path}/file/demo")

    def missing(*arguments, **more):
        raise FileNotFoundError("nnUNetv2_train was not found: is nnU-Net installed?")

    monkeypatch.setattr(demo, "run_steps", missing)
    monkeypatch.setattr(demo.signal, "signal", lambda *_: None)
    source = raw_dataset(tmp_path)
    code, printed = run(demo, "--folder", str(tmp_path / "demo"), "--device", "cpu", "--dataset", str(source))
    assert code == 2
    assert printed.endswith("error: nnUNetv2_train was not found: is nnU-Net installed?")


def test_a_dataset_is_linked(demo, tmp_path):
    source, target = raw_dataset(tmp_path / "data"), tmp_path / "nnUNet_raw" / "Dataset017_BTCV"
    target.parent.mkdir()
    demo.bring_dataset(source, target)
    assert (target / "dataset.json").is_file()


def test_a_dataset_is_copied_where_links_are_not_allowed(demo, tmp_path, monkeypatch):
    def forbidden(self, *args, **kwargs):
        raise OSError("a required privilege is not held by the client")

    monkeypatch.setattr(Path, "symlink_to", forbidden)
    source, target = raw_dataset(tmp_path / "data"), tmp_path / "nnUNet_raw" / "Dataset017_BTCV"
    target.parent.mkdir()
    demo.bring_dataset(source, target)
    assert not target.is_symlink()
    assert (target / "labelsTr" / "c4.nii.gz").is_file()
    assert [f.name for f in target.parent.iterdir()] == [target.name]


def test_test_cases_need_labels(demo, tmp_path):
    source = raw_dataset(tmp_path)
    it = demo.Demo(tmp_path / "demo", demo.Options(str(source), ("nnUNetTrainer",), 2, "cpu"), Console(quiet=True))
    it.raw.mkdir(parents=True)
    demo.bring_dataset(source, it.dataset)
    assert not it.held_out
    for sub, name in (("imagesTs", "t_0000.nii.gz"), ("labelsTs", "t.nii.gz")):
        (source / sub).mkdir()
        assert not it.held_out
        (source / sub / name).touch()
    assert it.held_out
    (source / "imagesTs" / "another_0000.nii.gz").touch()  # without labels
    assert not it.held_out
    assert it.predictions("nnUNetTrainer").parts[-2:] == ("fold_0", "validation")


# ------------------------------------------------------------------------------------------------------------------
# Plans.


PLANS = {
    "plans_name": "nnUNetPlans",
    "dataset_name": "Dataset917_Phantom",
    "configurations": {
        "2d": {},
        "3d_fullres": {
            "data_identifier": "nnUNetPlans_3d_fullres",
            "batch_size": 2,
            "patch_size": [40, 112, 112],
            "median_image_size_in_voxels": [34.0, 112.0, 112.0],
            "spacing": [7.37, 3.27, 3.27],
            "architecture": {
                "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
                "arch_kwargs": {
                    "n_stages": 5,
                    "features_per_stage": [32, 64, 128, 256, 320],
                    "conv_op": "torch.nn.modules.conv.Conv3d",
                    "kernel_sizes": [[1, 3, 3], *[[3, 3, 3]] * 4],
                    "strides": [[1, 1, 1], [1, 2, 2], *[[2, 2, 2]] * 3],
                    "n_conv_per_stage": [2] * 5,
                    "n_conv_per_stage_decoder": [2] * 4,
                    "conv_bias": True,
                    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
                    "norm_op_kwargs": {"eps": 1e-05, "affine": True},
                    "dropout_op": None,
                    "dropout_op_kwargs": None,
                    "nonlin": "torch.nn.LeakyReLU",
                    "nonlin_kwargs": {"inplace": True},
                },
                "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
            },
        },
    },
}
"""What nnU-Net 2.8 plans for the synthetic data set."""


def test_small_plans(demo):
    import torch
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    before = copy.deepcopy(PLANS)
    small = demo.shrink_plans(PLANS)
    assert before == PLANS
    assert small["plans_name"] == demo.SMALL_PLANS
    assert list(small["configurations"]) == ["3d_fullres"]
    config = small["configurations"]["3d_fullres"]
    kwargs = config["architecture"]["arch_kwargs"]
    stages = kwargs["n_stages"]
    assert (
        kwargs["strides"] == before["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["strides"][:stages]
    )
    image = config["median_image_size_in_voxels"]
    for axis, extent_mm in enumerate((34 * 7.37, 112 * 3.27, 112 * 3.27)):
        assert image[axis] * config["spacing"][axis] == pytest.approx(extent_mm, rel=0.01)  # the extent is unchanged
        assert config["patch_size"][axis] % math.prod(stride[axis] for stride in kwargs["strides"]) == 0
        assert config["patch_size"][axis] < image[axis]
    assert math.prod(image) == pytest.approx(22 * 44 * 56, rel=0.01)
    assert config["spacing"][0] / config["spacing"][1] == pytest.approx(math.sqrt(7.37 / 3.27), rel=0.01)
    assert config["batch_dice"] is True
    assert [kernel[0] for kernel in kwargs["kernel_sizes"]] == [1, 1, 3, 3]
    finer = before["configurations"]["3d_fullres"]["spacing"]
    assert all(new >= old for new, old in zip(config["spacing"], finer, strict=True))

    manager = PlansManager(small)
    assert manager.plans_name == demo.SMALL_PLANS
    configuration = manager.get_configuration("3d_fullres")
    assert configuration.data_identifier == f"{demo.SMALL_PLANS}_3d_fullres"
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    network = get_network_from_plans(
        configuration.network_arch_class_name,
        configuration.network_arch_init_kwargs,
        configuration.network_arch_init_kwargs_req_import,
        1,
        14,
        deep_supervision=False,
    )
    with torch.no_grad():
        out = network(torch.zeros(1, 1, *configuration.patch_size))
    assert out.shape == (1, 14, *configuration.patch_size)


def test_small_plans_of_a_residual_encoder(demo):
    plans = copy.deepcopy(PLANS)
    kwargs = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    del kwargs["n_conv_per_stage"]
    kwargs["n_blocks_per_stage"] = [1, 3, 4, 6, 6]
    small = demo.shrink_plans(plans)["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    assert len(small["n_blocks_per_stage"]) == small["n_stages"]
    assert "n_conv_per_stage" not in small


def test_plans_that_cannot_be_made_small(demo):
    with pytest.raises(ValueError, match=r"must have the configuration '3d_fullres', got \['2d'\]"):
        demo.shrink_plans({"configurations": {"2d": {}}})
    with pytest.raises(ValueError, match="features_per_stage and strides, got"):
        demo.shrink_plans({"configurations": {"3d_fullres": {}}})


# ------------------------------------------------------------------------------------------------------------------
# Finished steps.


def checkpoint(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", b"weights" * 100)
    return file


def test_training_states(demo, tmp_path):
    fold = tmp_path / "fold_0"
    assert demo.training_state(fold) == "new"
    checkpoint(fold / "checkpoint_best.pth")
    assert demo.training_state(fold) == "interrupted"
    checkpoint(fold / "checkpoint_final.pth")
    assert demo.training_state(fold) == "interrupted"  # the validation is missing
    (fold / "validation").mkdir()
    assert demo.training_state(fold) == "interrupted"
    (fold / "validation" / "summary.json").write_text("{", encoding="utf-8")
    assert demo.training_state(fold) == "interrupted"
    (fold / "validation" / "summary.json").write_text("{}", encoding="utf-8")
    assert demo.training_state(fold) == "done"


def test_incomplete_checkpoints(demo, tmp_path):
    whole, cut = checkpoint(tmp_path / "checkpoint_best.pth"), checkpoint(tmp_path / "checkpoint_latest.pth")
    cut.write_bytes(cut.read_bytes()[:-40])
    assert demo.drop_broken_checkpoints(tmp_path) == [cut.name]
    assert whole.is_file()
    assert not cut.exists()
    assert demo.drop_broken_checkpoints(tmp_path / "not there") == []


def test_preprocessed_cases(demo, tmp_path):
    for name in ("a.b2nd", "a_seg.b2nd", "a.pkl", "b.b2nd"):  # b was interrupted
        (tmp_path / name).touch()
    assert demo.preprocessed_cases(tmp_path) == 1


def test_copied_labels(demo, tmp_path):
    labels, copies = tmp_path / "labelsTr", tmp_path / "gt_segmentations"
    assert not demo.labels_copied(copies, labels, 2, ".nii.gz")
    for folder in (labels, copies):
        folder.mkdir()
        for name in ("a.nii.gz", "b.nii.gz"):
            (folder / name).write_bytes(b"whole")
    assert demo.labels_copied(copies, labels, 2, ".nii.gz")
    assert not demo.labels_copied(copies, labels, 3, ".nii.gz")
    (copies / "b.nii.gz").write_bytes(b"who")
    assert not demo.labels_copied(copies, labels, 2, ".nii.gz")
    assert [f.name for f in copies.iterdir()] == ["a.nii.gz"]


# ------------------------------------------------------------------------------------------------------------------
# Commands and numbers.


def test_a_failing_command(demo, tmp_path):
    steps = sys.modules["steps"]
    console = Console(file=io.StringIO(), width=200)
    command = ("python", "-c", "print('it broke here'); raise SystemExit(3)")
    with pytest.raises(steps.StepFailedError, match="exit code 3") as error:
        steps.run_steps(console, [steps.Step("A step", "a", command, tmp_path / "logs" / "step.txt")], {"X": "1"})
    assert "it broke here" in error.value.tail()
    assert "$ python -c" in console.file.getvalue()
    with pytest.raises(FileNotFoundError, match="is nnU-Net installed"):
        steps.run_steps(console, [steps.Step("A step", "a", ("nnUNetv2_no_such",), tmp_path / "step.txt")], {})


def test_when_one_of_two_fails_the_other_is_ended(demo, tmp_path):
    steps = sys.modules["steps"]
    console = Console(file=io.StringIO(), width=200)
    left = tmp_path / "ended too late"
    wait = f"import pathlib, time; print('Epoch 0', flush=True); time.sleep(60); pathlib.Path({str(left)!r}).touch()"
    fail = (
        "import pathlib, sys, time\n"
        f"while 'Epoch 0' not in pathlib.Path({str(tmp_path / 'a.txt')!r}).read_text(): time.sleep(0.05)\n"
        "sys.exit(4)"
    )
    both = [
        steps.Step(title, title.lower(), ("python", "-c", code), tmp_path / f"{title.lower()}.txt", 2)
        for title, code in (("A", wait), ("B", fail))
    ]
    with pytest.raises(steps.StepFailedError, match="b ended with exit code 4"):
        steps.run_steps(console, both, {})
    assert "a: " in console.file.getvalue()
    assert "a: done" not in console.file.getvalue()
    assert not left.exists()


@pytest.mark.skipif(os.name != "posix", reason="no process groups on this system")
def test_a_killed_command_with_a_running_worker_has_failed(demo, tmp_path):
    """If the system kills nnU-Net because memory is low, its workers keep the pipe open."""
    steps = sys.modules["steps"]
    console = Console(file=io.StringIO(), width=200)
    command = ("bash", "-c", "sleep 3600 & kill -9 $$")
    with pytest.raises(steps.StepFailedError, match="a ended with exit code -9"):
        steps.run_steps(console, [steps.Step("A", "a", command, tmp_path / "a.txt")], {})


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="processes are not bound to CPUs on this system")
def test_steps_at_the_same_time_have_separate_cpus(demo, tmp_path, monkeypatch):
    steps = sys.modules["steps"]
    monkeypatch.setattr(steps.os, "sched_getaffinity", lambda _: {1, 2, 4, 5, 7})
    monkeypatch.setattr(steps.shutil, "which", lambda *_, **__: "/usr/bin/taskset")
    three = [steps.Step(name, name, ("nnUNetv2_train", name), tmp_path / name) for name in "abc"]

    def commands(given) -> list[list[str]]:
        return [[" ".join(step.command) for step in group] for group in steps.on_cpus_of_their_own(given)]

    two = [["taskset -c 1,2 nnUNetv2_train a", "taskset -c 4,5 nnUNetv2_train b"]]
    assert commands(three[:2]) == two
    assert commands(three[:1]) == [["nnUNetv2_train a"]]
    monkeypatch.setattr(steps.os, "sched_getaffinity", lambda _: {0, 3})
    assert commands(three) == [
        ["taskset -c 0 nnUNetv2_train a", "taskset -c 3 nnUNetv2_train b"],
        ["taskset -c 0 nnUNetv2_train c"],
    ]
    monkeypatch.setattr(steps.shutil, "which", lambda *_, **__: None)
    assert commands(three[:2]) == [["nnUNetv2_train a"], ["nnUNetv2_train b"]]


@pytest.mark.skipif(shutil.which("taskset") is None, reason="no taskset here")
def test_a_step_on_one_cpu(demo, tmp_path):
    steps = sys.modules["steps"]
    console = Console(file=io.StringIO(), width=200)
    cpus = sorted(os.sched_getaffinity(0))
    command = ("taskset", "-c", str(cpus[-1]), "python", "-c", "import os; print(os.sched_getaffinity(0))")
    steps.run_steps(console, [steps.Step("T", "t", command, tmp_path / "t.txt")], {})
    assert f"{{{cpus[-1]}}}" in (tmp_path / "t.txt").read_text(encoding="utf-8").splitlines()


def test_a_step_gets_the_exports_and_shows_epochs(demo, tmp_path):
    steps = sys.modules["steps"]
    console = Console(file=io.StringIO(), width=200)
    lines = "import os; print(os.environ['DEMO_X']); print('2026-01-01 10:00:00.000000: Epoch 1')"
    step = steps.Step("T", "t", ("python", "-c", lines), tmp_path / "t.txt", epochs=2)
    steps.run_steps(console, [step], {"DEMO_X": "seen"})
    assert "seen" in (tmp_path / "t.txt").read_text(encoding="utf-8")
    assert "epoch 2 of 2" in console.file.getvalue()


# ------------------------------------------------------------------------------------------------------------------
# All steps with a replacement of nnU-Net's commands.


def tiny_dataset(folder: Path, held_out: bool) -> Path:
    dataset = raw_dataset(folder)
    described = json.loads((dataset / "dataset.json").read_text(encoding="utf-8"))
    described["labels"]["spleen"] = 2
    (dataset / "dataset.json").write_text(json.dumps(described), encoding="utf-8")
    parts = {"Tr": [f"c{k}" for k in range(5)], "Ts": ["t0", "t1"] if held_out else []}
    for part, cases in parts.items():
        for case in cases:
            label = np.zeros((4, 12, 12), np.uint8)
            label[:, 2:6, 2:6], label[:, 7:10, 7:10] = 1, 2
            for sub, name, array in (("images", f"{case}_0000", label.astype(np.float32)), ("labels", case, label)):
                (dataset / f"{sub}{part}").mkdir(exist_ok=True)
                sitk.WriteImage(sitk.GetImageFromArray(array), str(dataset / f"{sub}{part}" / f"{name}.nii.gz"))
    return dataset


class FakeNNUNet:
    """Writes the files of nnU-Net's commands; for a failure a part of them, followed by an error."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.fails_at = ""

    def __call__(self, console, steps, exports) -> list[float]:
        for step in steps:
            self.run(step.command, step.log, exports)
        return [1.0] * len(steps)

    def run(self, command, log, exports) -> None:
        command = command[3:] if command[0] == "taskset" else command

        def option(name: str) -> str:
            return command[command.index(name) + 1]

        what = command[0].removeprefix("nnUNetv2_")
        if what in ("train", "predict"):
            what += f" {option('-tr')}" + " --c" * ("--c" in command)
        elif what == "nnunet-dtc":
            what = "compare"
        self.ran.append(what)
        self.fails = bool(self.fails_at) and what.startswith(self.fails_at)
        dataset = Path(exports["nnUNet_raw"]) / "Dataset017_BTCV"
        preprocessed = Path(exports["nnUNet_preprocessed"]) / dataset.name
        match what.split()[0]:
            case "plan_and_preprocess":
                preprocessed.mkdir(parents=True, exist_ok=True)
                (preprocessed / "nnUNetPlans.json").write_text(json.dumps(PLANS), encoding="utf-8")
                if "--no_pp" not in command:
                    self.preprocess(dataset, preprocessed, "nnUNetPlans")
            case "preprocess":
                self.preprocess(dataset, preprocessed, option("-plans_name"))
            case "train":
                model = f"{option('-tr')}__{option('-p')}__3d_fullres"
                self.train(dataset, Path(exports["nnUNet_results"]) / dataset.name / model / "fold_0")
            case "predict":
                self.predict(dataset / "labelsTs", Path(option("-o")))
            case "compare":
                self.compare(command)
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("the end of the log\n", encoding="utf-8")
        if self.fails:
            raise sys.modules["steps"].StepFailedError(command[0], 1, log)

    def preprocess(self, dataset: Path, preprocessed: Path, plans: str) -> None:
        data, copies = preprocessed / f"{plans}_3d_fullres", preprocessed / "gt_segmentations"
        for folder in (data, copies):
            folder.mkdir(exist_ok=True)
        for label in sorted((dataset / "labelsTr").iterdir()):
            (data / f"{label.name.removesuffix('.nii.gz')}.pkl").touch()
        for label in sorted((dataset / "labelsTr").iterdir()):
            copied = copies / label.name
            if not copied.exists():  # nnU-Net copies what is newer
                shutil.copyfile(label, copied)
            if self.fails:
                copied.write_bytes(label.read_bytes()[:9])

    def train(self, dataset: Path, fold: Path) -> None:
        checkpoint(fold / "checkpoint_latest.pth")
        if self.fails:
            (fold / "checkpoint_best.pth").write_bytes(b"cut off")
            return
        checkpoint(fold / "checkpoint_final.pth")
        (fold / "validation").mkdir()
        shutil.copyfile(dataset / "labelsTr" / "c0.nii.gz", fold / "validation" / "c0.nii.gz")
        (fold / "validation" / "summary.json").write_text("{}", encoding="utf-8")

    def predict(self, labels: Path, output: Path) -> None:
        output.mkdir(parents=True)
        for label in sorted(labels.iterdir())[: 1 if self.fails else None]:
            shutil.copyfile(label, output / label.name)

    def compare(self, command) -> None:
        models = command[2 : command.index("-f")]
        given = [text.partition("=") for flag, text in itertools.pairwise(command) if flag == "--predictions"]
        assert ("--test" in command) == bool(given)
        for model in models:
            assert (Path(model) / "fold_0" / "checkpoint_final.pth").is_file()
        for (name, _, folder), model in zip(given, models, strict=bool(given)):
            assert Path(model).name == f"{name}__nnUNetPlansSmall__3d_fullres"
            assert {f.name for f in Path(folder).glob("*.nii.gz")} == {"t0.nii.gz", "t1.nii.gz"}


@pytest.mark.parametrize("held_out", [True, False])
def test_all_steps_with_failures_between(demo, tmp_path, monkeypatch, held_out):
    """Held-out cases on a CPU, validation cases on a GPU; after a failure the same step continues."""
    nnunet = FakeNNUNet()
    monkeypatch.setattr(demo, "run_steps", nnunet)
    monkeypatch.setattr("torch.cuda.is_available", lambda: not held_out)
    monkeypatch.setattr(demo.signal, "signal", lambda *_: None)
    source, folder = tiny_dataset(tmp_path / "data", held_out), tmp_path / "demo"

    def attempt(fails_at: str = "") -> tuple[list[str], int, str]:
        nnunet.ran, nnunet.fails_at = [], fails_at
        code, printed = run(demo, "--folder", str(folder), "--dataset", str(source), "--epochs", "2")
        return nnunet.ran, code, printed

    vanilla, dtc = (demo.short_training(name, 2) for name in demo.DEFAULT_TRAINERS)
    prepare = ["plan_and_preprocess", "preprocess"] if held_out else ["plan_and_preprocess"]
    ran, code, printed = attempt(fails_at=prepare[-1])
    assert (ran, code) == (prepare, 1)
    assert "the end of the log" in printed
    assert "Run the same command again" in printed

    ran, code, printed = attempt(fails_at=f"train {dtc}")  # the copies of the labels were incomplete
    assert (ran, code) == ([prepare[-1], f"train {vanilla}", f"train {dtc}"], 1)
    ran, code, printed = attempt(fails_at=f"predict {dtc}" if held_out else "compare")
    assert "checkpoint_best.pth is incomplete" in printed
    last = [f"predict {vanilla}", f"predict {dtc}"] if held_out else ["compare"]
    assert (ran, code) == ([f"train {dtc} --c", *last], 1)
    ran, code, printed = attempt()
    assert (ran, code) == ([*last, "compare"] if held_out else ["compare"], 0)
    ran, code, printed = attempt()  # all steps are done, except for the comparison
    assert (ran, code) == (["compare"], 0)
    assert str(folder / "comparison" / "index.html") in printed
    seconds = json.loads((folder / demo.SECONDS_FILE).read_text(encoding="utf-8"))
    assert {f"3_train_{dtc}", "5_compare"} <= seconds.keys()
    small = folder / "nnUNet_preprocessed" / "Dataset017_BTCV" / "nnUNetPlansSmall.json"
    assert small.is_file() == held_out
    assert not [file for file in folder.rglob(".*")]
    splits = json.loads((folder / "nnUNet_preprocessed" / "Dataset017_BTCV" / "splits_final.json").read_text())
    assert sorted(case for fold in splits for case in fold["val"]) == [f"c{k}" for k in range(5)]
    assert not list(folder.rglob("*.unfinished"))
