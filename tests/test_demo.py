"""The logic of the demo without training: options, folders, data sets and small plans."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import io
import json
import math
import sys
from pathlib import Path

import pytest
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


def test_an_error_of_the_system_is_one_message(demo, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    code, printed = run(demo, "--folder", str(tmp_path / "file" / "demo"), "--device", "cpu")
    assert (code, printed) == (2, f"error: Not a directory: {tmp_path}/file/demo")

    def missing(*arguments, **more):
        raise FileNotFoundError("nnUNetv2_train was not found: is nnU-Net installed?")

    monkeypatch.setattr(demo.Demo, "run_command", missing)
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
# Commands and their logs. tests/nnunet/test_demo_run.py runs the whole demo.


def a_demo(demo, folder: Path) -> tuple:
    """A demo in `folder` with two trainers of three epochs, and what it prints."""
    console = Console(file=io.StringIO(), width=200)
    options = demo.Options("phantom", ("nnUNetTrainer", "nnUNetTrainerDTC"), 3, "cpu")
    return demo.Demo(folder, options, console), console.file


def test_a_failing_command_ends_with_its_log(demo, tmp_path):
    it, _ = a_demo(demo, tmp_path)
    code = "import os, sys; print('the volume is', os.environ['nnUNet_raw']); print('broken', file=sys.stderr); exit(3)"
    with pytest.raises(demo.CommandFailedError, match="ended with exit code 3") as error:
        it.run_command([sys.executable, "-c", code], tmp_path / "logs" / "command.txt")
    assert error.value.log == tmp_path / "logs" / "command.txt"
    assert error.value.tail() == f"the volume is {tmp_path / 'nnUNet_raw'}\nbroken"
    with pytest.raises(demo.DemoError, match="there is no nnUNetv2_frain beside"):
        it.run_command(["nnUNetv2_frain"], tmp_path / "logs" / "command.txt")


def test_the_jobs_commands_and_epochs_are_shown(demo, tmp_path):
    it, printed = a_demo(demo, tmp_path)
    logs = tmp_path / "study" / "logs"
    train, program = logs / "train" / "nnUNetTrainerDTC" / "fold_0.txt", tmp_path / "program.py"
    program.write_text(f"""
from pathlib import Path
train = Path({str(train)!r})
train.parent.mkdir(parents=True)
with train.open("w") as log:
    log.write("waiting: all of cpu 0, 1 are in use by other jobs\\n")
    log.write("$ nnUNetv2_train Dataset917_Phantom [1]\\n2026-11-26 12:00:00.1: Epoch 1\\n")
    log.write("2026-11-26 12:00:05.1: Epoch t")
    log.flush()
    log.write("ime: 5.1 s\\nsomething else\\n")
""")
    it.run_command([sys.executable, str(program)], tmp_path / "logs" / "study.txt", logs)
    lines = [" ".join(line.split()) for line in printed.getvalue().splitlines()]
    assert "train nnUNetTrainerDTC fold_0: waiting: all of cpu 0, 1 are in use by other jobs" in lines
    assert "$ nnUNetv2_train Dataset917_Phantom [1] (train nnUNetTrainerDTC fold_0)" in lines
    assert "train nnUNetTrainerDTC fold_0: epoch 2 of 3" in lines
    assert "train nnUNetTrainerDTC fold_0: Epoch time: 5.1 s" in lines
    assert not any("something else" in line for line in lines)


def add(log, text):
    with log.open("a") as stream:
        stream.write(text)


def test_only_whole_new_lines_of_logs_are_read_and_each_once(demo, tmp_path):
    old = tmp_path / "old.txt"
    old.write_text("of an earlier run\n")
    reader = demo.LogReader(tmp_path)
    assert [*reader.news()] == []
    add(old, "one\ntw")
    assert [*reader.news()] == [("old", "one")]
    add(old, "o\n\n")
    (tmp_path / "compare").mkdir()
    (tmp_path / "compare" / "test.txt").write_bytes(b"\xffthree\r\n")
    assert [*reader.news()] == [("compare test", "\N{REPLACEMENT CHARACTER}three"), ("old", "two")]
    assert [*reader.news()] == []


def test_a_log_that_begins_again_is_read_from_its_beginning(demo, tmp_path):
    """As that of a job that Snakemake runs again, in this run of the demo or after the one before it."""
    log = tmp_path / "train.txt"
    log.write_text("a long line of an earlier run\n")
    reader = demo.LogReader(tmp_path)
    log.unlink()
    assert [*reader.news()] == []
    log.write_text("$ command\n")
    assert [*reader.news()] == [("train", "$ command")]
    log.write_text("again\n")
    assert [*reader.news()] == [("train", "again")]
    add(log, "and more\n")
    assert [*reader.news()] == [("train", "and more")]
    for number in range(3):  # the file system may use the inode again
        log.unlink()
        longer = number * "longer and " + "longer than all that was there before"
        log.write_text(f"{longer}\n")
        assert [*reader.news()] == [("train", longer)]


def test_the_study_of_the_demo(demo, tmp_path):
    """STUDY.yaml is one that `nnunet-dtc study` accepts, with the demo's folders, plans and trainers."""
    from nnunet_dtc.study.workflow.definition import read_study

    source = raw_dataset(tmp_path)
    options = demo.Options(str(source), ("nnUNetTrainer", "nnUNetTrainerDTC_RF10"), 3, "cpu")
    it = demo.Demo(tmp_path / "demo", options, Console(quiet=True))
    it.raw.mkdir(parents=True)
    demo.bring_dataset(source, it.dataset)
    it.write_study()
    study = read_study(it.study)
    assert (study.dataset, study.plans, study.folds, study.test) == ("17", "nnUNetPlansSmall", (0,), False)
    assert (study.raw, study.results) == (tmp_path / "demo" / "nnUNet_raw", tmp_path / "demo" / "nnUNet_results")
    assert study.models == tuple(demo.short_training(name, 3) for name in options.trainers)
