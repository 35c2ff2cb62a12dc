import json
import pickle
import shlex
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from plans import DATASET, small_plans
from typer.testing import CliRunner

from nnunet_dtc.cli import app
from nnunet_dtc.ops.dtc import is_dtc
from nnunet_dtc.plugin.checkpoints import CheckpointError, open_checkpoint
from nnunet_dtc.plugin.planned_networks import NetworkError
from nnunet_dtc.plugin.warm_start import warm_start
from nnunet_dtc.study.complexity import process_memory
from nnunet_dtc.trainers import nnUNetTrainerDTC, nnUNetTrainerDTC_RF10

CONFIGURATIONS = ["2d", "3d_fullres", "3d_residual"]


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """A checkpoint as nnU-Net's own trainer saves it, after two real steps of its own optimizer and loss of logs."""

    def trained(configuration="3d_fullres", fold=0, cls=nnUNetTrainer, plans=None):
        monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
        torch.manual_seed(0)
        plans = (plans or small_plans()) | {"continue_training": False}
        trainer = cls(plans, configuration, fold, DATASET, torch.device("cpu"))
        trainer.network = trainer.build_network_architecture(
            trainer.plans_manager, trainer.configuration_manager, 1, 3, True
        )
        trainer.optimizer, trainer.lr_scheduler = trainer.configure_optimizers()
        x = torch.randn(2, 1, *trainer.configuration_manager.patch_size)
        for _ in range(2):
            trainer.optimizer.zero_grad()
            trainer.network(x)[0].square().mean().backward()
            trainer.optimizer.step()
        loss = trainer.network(x)[0].mean().detach().numpy().astype("float64")[()]
        for key in ("mean_fg_dice", "train_losses", "val_losses"):
            trainer.logger.log(key, loss, 0)
        trainer.inference_allowed_mirroring_axes = (0, 1)
        file = f"{trainer.output_folder}/checkpoint_final.pth"
        trainer.save_checkpoint(file)
        return file, trainer

    return trained


def command(*arguments):
    return CliRunner().invoke(app, ["warm-start", *map(str, arguments)])


def logits(network, configuration_manager):
    x = torch.randn(1, 1, *configuration_manager.patch_size, generator=torch.Generator().manual_seed(2))
    network.eval()
    with torch.no_grad():
        return network(x)


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_the_logits_are_bit_identical_and_gradients_reach_the_blocks(configuration, trained):
    file, trainer = trained(configuration)
    start = warm_start(file, "nnUNetTrainerDTC_RF10")
    theirs, ours = (logits(network, trainer.configuration_manager) for network in (trainer.network, start.network))
    for one, other in zip(theirs, ours, strict=True):
        assert torch.equal(one, other)
    found = [module for module in start.network.modules() if is_dtc(module)]
    assert found
    assert all(block.receptive_field == 10 and block.coords.weight.any() for block in found)
    x = torch.randn(1, 1, *trainer.configuration_manager.patch_size)
    start.network(x)[0].square().mean().backward()
    assert all(block.value.weight.grad.any() for block in found)


def test_the_same_checkpoint_gives_the_same_weights(trained):
    file, _ = trained()
    first, second = (warm_start(file, "nnUNetTrainerDTC").network.state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_pretrained_weights_file(trained, tmp_path):
    file, trainer = trained()
    output = tmp_path / "out.pth"
    done = command(file, "-tr", "nnUNetTrainerDTC", "-o", output)
    assert done.exit_code == 0, done.output
    assert "leaves the segmentation layers random" in done.output

    network = nnUNetTrainerDTC.build_network_architecture(
        trainer.plans_manager, trainer.configuration_manager, 1, 3, True
    )
    before = {key: value.clone() for key, value in network.state_dict().items()}
    load_pretrained_weights(network, str(output), verbose=False)  # nnU-Net's own, with all that it insists on
    for key, value in network.state_dict().items():
        if ".seg_layers." in key:
            assert torch.equal(value, before[key])
        elif ".base." in key:
            assert torch.equal(value, trainer.network.state_dict()[key.replace(".base.", ".")])
        elif ".value." in key:
            assert not value.any()

    assert "exists already and is not overwritten" in command(file, "-tr", "nnUNetTrainerDTC", "-o", output).output


def test_into_a_fold_for_continuing(trained, tmp_path):
    file, trainer = trained()
    fold = tmp_path / "results" / "Dataset998_Test" / "nnUNetTrainerDTC_RF10__nnUNetPlans__3d_fullres" / "fold_0"
    done = command(file, "-tr", "nnUNetTrainerDTC_RF10", "--into", fold)
    assert done.exit_code == 0, done.output
    assert "--c" in done.output
    assert [entry.name for entry in fold.iterdir()] == ["checkpoint_latest.pth"]

    plans = small_plans() | {"continue_training": True}
    resumed = nnUNetTrainerDTC_RF10(plans, "3d_fullres", 0, DATASET, torch.device("cpu"))
    resumed.network = resumed.build_network_architecture(
        resumed.plans_manager, resumed.configuration_manager, 1, 3, True
    )
    resumed.optimizer, resumed.lr_scheduler = resumed.configure_optimizers()
    resumed.was_initialized = True  # its data are not there, which initialize() looks at
    resumed.load_checkpoint(str(fold / "checkpoint_latest.pth"))
    assert resumed.current_epoch == 0
    assert resumed.inference_allowed_mirroring_axes == (0, 1)
    assert resumed.logger.get_value("train_losses", step=None) == []
    assert resumed.my_init_kwargs["configuration"] == "3d_fullres"
    assert not resumed.optimizer.state_dict()["state"]
    theirs, ours = (logits(t.network, trainer.configuration_manager) for t in (trainer, resumed))
    for one, other in zip(theirs, ours, strict=True):
        assert torch.equal(one, other)

    again = command(file, "-tr", "nnUNetTrainerDTC_RF10", "--into", fold)
    assert again.exit_code == 1
    assert "has a training already (checkpoint_latest.pth)" in again.output


@pytest.mark.parametrize(
    "wrong",
    [
        "Dataset998_Test/nnUNetTrainerDTC__nnUNetPlans__3d_fullres/fold_1",
        "Dataset998_Test/nnUNetTrainerDTC_RF4__nnUNetPlans__3d_fullres/fold_0",
        "Dataset998_Test/nnUNetTrainerDTC__nnUNetPlans__2d/fold_0",
        "Dataset998_Test/nnUNetTrainerDTC__otherPlans__3d_fullres/fold_0",
        "Dataset999_Test/nnUNetTrainerDTC__nnUNetPlans__3d_fullres/fold_0",
        "fold_0",
    ],
)
def test_into_another_trainings_folder_is_refused(wrong, trained, tmp_path):
    file, _ = trained()
    done = command(file, "-tr", "nnUNetTrainerDTC", "--into", tmp_path / wrong)
    assert done.exit_code == 1
    assert "Dataset998_Test/nnUNetTrainerDTC__nnUNetPlans__3d_fullres/fold_0" in done.output
    assert not (tmp_path / wrong).exists()


def test_into_a_model_with_other_plans_is_refused(trained, tmp_path):
    file, _ = trained()
    model = tmp_path / "Dataset998_Test" / "nnUNetTrainerDTC__nnUNetPlans__3d_fullres"
    model.mkdir(parents=True)
    plans = small_plans()
    plans["configurations"]["3d_fullres"]["patch_size"] = [12, 16, 24]
    (model / "plans.json").write_text(json.dumps(plans))
    done = command(file, "-tr", "nnUNetTrainerDTC", "--into", model / "fold_0")
    assert done.exit_code == 1
    assert "differs from the plans of the checkpoint in patch_size" in done.output
    assert [entry.name for entry in model.iterdir()] == ["plans.json"]


def test_into_when_nnunet_would_train_with_other_plans_is_refused(trained, tmp_path, monkeypatch):
    file, _ = trained()
    plans = small_plans()
    plans["configurations"]["3d_fullres"]["spacing"] = [3, 0.9, 0.9]
    (tmp_path / "preprocessed" / "Dataset998_Test").mkdir(parents=True)
    (tmp_path / "preprocessed" / "Dataset998_Test" / "nnUNetPlans.json").write_text(json.dumps(plans))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    fold = tmp_path / "Dataset998_Test" / "nnUNetTrainerDTC__nnUNetPlans__3d_fullres" / "fold_0"
    done = command(file, "-tr", "nnUNetTrainerDTC", "--into", fold)
    assert done.exit_code == 1
    assert "differs from the plans of the checkpoint in spacing" in done.output
    assert not fold.exists()


def test_into_starts_no_run_of_weights_and_biases(trained, tmp_path, monkeypatch):
    file, _ = trained()
    monkeypatch.setenv("nnUNet_wandb_enabled", "1")  # wandb is not installed: its logger would fail
    fold = tmp_path / "Dataset998_Test" / "nnUNetTrainerDTC__nnUNetPlans__3d_fullres" / "fold_0"
    done = command(file, "-tr", "nnUNetTrainerDTC", "--into", fold)
    assert done.exit_code == 0, done.output


def test_a_checkpoint_without_the_second_names_of_its_modules(trained, tmp_path):
    file, trainer = trained()
    content = torch.load(file, weights_only=False)
    for key in list(content["network_weights"]):
        if key.startswith("decoder.encoder.") or ".all_modules." in key:
            del content["network_weights"][key]
    torch.save(content, tmp_path / "slim.pth")
    start = warm_start(tmp_path / "slim.pth", "nnUNetTrainerDTC")
    theirs, ours = (logits(network, trainer.configuration_manager) for network in (trainer.network, start.network))
    assert all(torch.equal(one, other) for one, other in zip(theirs, ours, strict=True))


class Malicious:
    """Unpickling it touches a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        import os

        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("place", ["network_weights", "logging", "somewhere"])
def test_a_malicious_checkpoint_runs_nothing(place, trained, tmp_path):
    file, _ = trained()
    touched = tmp_path / "touched"
    content = torch.load(file, weights_only=False)
    content[place] = Malicious(touched)
    torch.save(content, tmp_path / "evil.pth")
    output = tmp_path / "out.pth"
    done = command(tmp_path / "evil.pth", "-tr", "nnUNetTrainerDTC", "-o", output)
    assert done.exit_code == 1
    assert "refused" in done.output
    assert "system" in done.output
    assert not touched.exists()
    assert not output.exists()
    torch.load(tmp_path / "evil.pth", weights_only=False)  # it would have
    assert touched.exists()


def test_a_malicious_bare_pickle_runs_nothing(tmp_path):
    touched = tmp_path / "touched"
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Malicious(touched), protocol=2))
    with pytest.raises(CheckpointError, match="refused"):
        open_checkpoint(tmp_path / "evil.pth")
    assert not touched.exists()


def test_a_file_of_something_else(tmp_path):
    (tmp_path / "page.pth").write_text("<html>404 not found</html>")
    with pytest.raises(CheckpointError, match="cannot be read; it is cut off or no checkpoint"):
        open_checkpoint(tmp_path / "page.pth")


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_a_checkpoint_that_is_cut_off(share, trained, tmp_path):
    file, _ = trained()
    with open(file, "rb") as opened:
        content = opened.read()
    cut = tmp_path / "cut.pth"
    cut.write_bytes(content[: int(len(content) * share)])
    before = sorted(tmp_path.iterdir())
    done = command(cut, "-tr", "nnUNetTrainerDTC", "-o", tmp_path / "out.pth")
    assert done.exit_code == 1
    assert f"{cut} cannot be read; it is cut off" in done.output
    assert sorted(tmp_path.iterdir()) == before


def test_a_checkpoint_of_another_architecture_is_refused_with_what_differs(trained, tmp_path):
    file, _ = trained()
    content = torch.load(file, weights_only=False)
    weights = content["network_weights"]
    del weights["encoder.stages.1.0.convs.0.conv.weight"]
    weights["attention.0.weight"] = torch.zeros(3)
    weights["decoder.seg_layers.0.weight"] = torch.zeros(7, 12, 1, 1, 1)
    torch.save(content, tmp_path / "other.pth")
    done = command(tmp_path / "other.pth", "-tr", "nnUNetTrainerDTC", "-o", tmp_path / "out.pth")
    assert done.exit_code == 1
    assert "missing in the checkpoint: encoder.stages.1.0.convs.0.conv\n" in done.output
    assert "not in nnU-Net's network: attention.0\n" in done.output
    assert "decoder.seg_layers.0.weight is (7, 12, 1, 1, 1) in the checkpoint, (3, 12, 1, 1, 1) in" in done.output
    assert "decoder.encoder" not in done.output
    assert not (tmp_path / "out.pth").exists()


def test_other_refusals(trained, tmp_path):
    file, _ = trained()
    output = tmp_path / "out.pth"
    assert "must be a DTC trainer" in command(file, "-tr", "nnUNetTrainer_rep2", "-o", output).output
    assert "must be a DTC trainer" in command(file, "-tr", "nnUNetTrainerDA5", "-o", output).output
    assert "use nnUNetTrainerDTC" in command(file, "-tr", "nnUNetTrainerDTC_RF2", "-o", output).output
    for name, other in (("UNETRDTC", "UNETR"), ("UNetLinearDTC_RF10", "UNet"), ("DySampleDTC_5epochs", "DySample")):
        refused = " ".join(command(file, "-tr", f"nnUNetTrainer{name}", "-o", output).output.split())
        assert f"must be a DTC trainer such as nnUNetTrainerDTC, got nnUNetTrainer{name}: a vanilla" in refused
        assert f"the planned U-Net with transposed convolutions, this trainer has {other}" in refused
    assert "give either -o" in command(file, "-tr", "nnUNetTrainerDTC").output
    assert "give either -o" in command(file, "-tr", "nnUNetTrainerDTC", "-o", output, "--into", tmp_path).output
    assert "there is no checkpoint" in command(tmp_path / "none.pth", "-tr", "nnUNetTrainerDTC", "-o", output).output
    missing = tmp_path / "missing" / "out.pth"
    assert "there is no folder" in command(file, "-tr", "nnUNetTrainerDTC", "-o", missing).output
    torch.save({"state_dict": {}}, tmp_path / "lightning.pth")
    refused = command(tmp_path / "lightning.pth", "-tr", "nnUNetTrainerDTC", "-o", output)
    assert "it has no network_weights, init_args, trainer_name" in refused.output
    for wrong in ({"init_args": "none"}, {"network_weights": [1]}):
        torch.save({**torch.load(file, weights_only=False), **wrong}, tmp_path / "odd.pth")
        odd = command(tmp_path / "odd.pth", "-tr", "nnUNetTrainerDTC", "-o", output)
        assert f"{next(iter(wrong))} must be an object" in odd.output
    content = torch.load(file, weights_only=False)
    del content["init_args"]["plans"]["configurations"]
    torch.save(content, tmp_path / "odd.pth")
    refused = command(tmp_path / "odd.pth", "-tr", "nnUNetTrainerDTC", "-o", output)
    assert "init_args.plans has no configurations" in refused.output
    ours, _ = trained(cls=nnUNetTrainerDTC)
    assert "are of a DTC network already" in command(ours, "-tr", "nnUNetTrainerDTC", "-o", output).output
    assert not output.exists()


def printed_commands(output):
    """The indented lines, as a shell takes them apart."""
    return [shlex.split(line) for line in output.splitlines() if line.startswith("    nnUNetv2_")]


def test_the_printed_commands_are_for_another_data_set_and_can_be_copied(trained, tmp_path):
    file, _ = trained()
    output = tmp_path / "it's warm $(touch x).pth"
    done = command(file, "-tr", "nnUNetTrainerDTC", "-o", output)
    assert done.exit_code == 0, done.output
    expected = """
        nnUNetv2_plan_and_preprocess -d ID --no_pp
        nnUNetv2_move_plans_between_datasets -s Dataset998_Test -t ID -sp nnUNetPlans -tp NEWPLANS
        nnUNetv2_preprocess -d ID -plans_name NEWPLANS -c 3d_fullres
        nnUNetv2_train ID 3d_fullres FOLD -tr nnUNetTrainerDTC -p NEWPLANS -pretrained_weights OUT
    """
    words = [line.split() for line in expected.strip().splitlines()]
    words[-1][-1] = str(output)
    assert printed_commands(done.output) == words


def test_nnunets_commands_have_the_printed_options(trained, tmp_path):
    """Its own parsers, asked for their help."""
    file, _ = trained()
    commands = printed_commands(command(file, "-tr", "nnUNetTrainerDTC", "-o", tmp_path / "out.pth").output)
    entry_points = {entry.name: entry for entry in metadata.entry_points(group="console_scripts")}
    for name, *arguments in commands:
        module = entry_points[name].load().__module__
        source = Path(sys.modules[module].__file__).read_text()
        for option in arguments:
            assert not option.startswith("-") or f"'{option}'" in source, (name, option)


def test_into_prints_the_command_of_the_same_training(trained, tmp_path):
    file, _ = trained()
    fold = tmp_path / "Dataset998_Test" / "nnUNetTrainerDTC__nnUNetPlans__3d_fullres" / "fold_0"
    done = command(file, "-tr", "nnUNetTrainerDTC", "--into", fold)
    assert printed_commands(done.output) == [
        ["nnUNetv2_train", "Dataset998_Test", "3d_fullres", "0", "-tr", "nnUNetTrainerDTC", "-p", "nnUNetPlans", "--c"]
    ]


UNFIT = {
    "integer": (lambda w: w.to(torch.int8), "is int8"),
    "boolean": (lambda w: w > 0, "is bool"),
    "complex": (lambda w: w.to(torch.complex64), "is complex64"),
    "sparse": (lambda w: w.to_sparse(), "is float32, sparse_coo"),
    "NaN": (lambda w: w.masked_fill(w == w.max(), float("nan")), "has 1 of "),
    "infinity": (lambda w: w.masked_fill(w == w.max(), float("-inf")), "has 1 of "),
    "float64 beyond float32": (
        lambda w: w.double().masked_fill(w == w.max(), 1e300),
        "has 1 of ",
    ),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_weights_that_are_no_finite_floating_numbers_are_refused(kind, trained, tmp_path):
    file, _ = trained()
    content = torch.load(file, weights_only=False)
    make, said = UNFIT[kind]
    for key in ("encoder.stages.1.0.convs.0.conv.weight", "decoder.seg_layers.1.bias"):
        content["network_weights"][key] = make(content["network_weights"][key])
    torch.save(content, tmp_path / "odd.pth")
    done = command(tmp_path / "odd.pth", "-tr", "nnUNetTrainerDTC", "-o", tmp_path / "out.pth")
    assert done.exit_code == 1
    assert isinstance(done.exception, SystemExit)
    assert "weights must be" in done.output
    assert f"encoder.stages.1.0.convs.0.conv.weight {said}" in done.output
    assert "decoder.seg_layers.1.bias" in done.output
    assert not (tmp_path / "out.pth").exists()


@pytest.mark.parametrize("value", [3.0, [1.0, 2.0], None], ids=str)
def test_weights_that_are_no_tensors_are_refused(value, trained, tmp_path):
    file, _ = trained()
    content = torch.load(file, weights_only=False)
    content["network_weights"]["decoder.seg_layers.1.bias"] = value
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=r"decoder\.seg_layers\.1\.bias.*must be a tensor"):
        warm_start(tmp_path / "odd.pth", "nnUNetTrainerDTC")


def test_all_weights_unfit_are_listed_briefly(trained, tmp_path):
    file, _ = trained()
    content = torch.load(file, weights_only=False)
    weights = content["network_weights"]
    content["network_weights"] = {key: value.int() for key, value in weights.items()}
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=r"is int32\n  \.\.\. and \d+ more$") as caught:
        warm_start(tmp_path / "odd.pth", "nnUNetTrainerDTC")
    assert "all_modules" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_weights_of_other_floating_dtypes_are_converted(dtype, trained, tmp_path):
    file, _ = trained()
    content = torch.load(file, weights_only=False)
    weights = content["network_weights"]
    content["network_weights"] = {key: value.to(dtype) for key, value in weights.items()}
    torch.save(content, tmp_path / "other.pth")
    network = warm_start(tmp_path / "other.pth", "nnUNetTrainerDTC").network
    for key, value in network.state_dict().items():
        assert value.dtype == torch.float32
        if (theirs := key.replace(".base.", ".")) in weights:
            assert torch.equal(value, weights[theirs].to(dtype).float())


def with_arguments(file, output, features=None, **changed):
    """A copy of a 2D checkpoint whose plans describe another network."""
    content = torch.load(file, weights_only=False)
    configuration = content["init_args"]["plans"]["configurations"]["2d"]
    arguments = configuration["architecture"]["arch_kwargs"]
    if features is not None:
        arguments["features_per_stage"] = features
    for key, value in changed.items():
        (arguments if key in arguments else configuration)[key] = value
    torch.save(content, output)
    return content


@pytest.mark.parametrize("features", [[4, 2500, 2500], [4, 100_000, 100_000]], ids=["1 GB", "2 TB"])
def test_plans_of_a_larger_network_than_the_weights_allocate_nothing(features, trained, tmp_path):
    file, _ = trained("2d")
    with_arguments(file, tmp_path / "large.pth", features)
    before = process_memory.resident_mib()
    process_memory.forget_peak()
    done = command(tmp_path / "large.pth", "-tr", "nnUNetTrainerDTC", "-o", tmp_path / "out.pth")
    if before is not None:
        assert process_memory.peak_resident_mib() - before < 150
    assert (done.exit_code, type(done.exception)) == (1, SystemExit)
    assert "large.pth (trainer nnUNetTrainer) is not of the network that nnU-Net builds from its plans" in done.output
    wide = features[1]
    assert f"convs.0.conv.weight is (8, 4, 3, 3) in the checkpoint, ({wide}, 4, 3, 3) in nnU-Net's" in done.output
    assert not (tmp_path / "out.pth").exists()


def test_a_network_that_does_not_fit_into_the_memory(trained, tmp_path):
    """With weights of the same shapes, each of which is one number in the file."""
    file, _ = trained("2d")
    content = with_arguments(file, tmp_path / "large.pth", [4, 1_000_000, 1_000_000])
    manager = PlansManager(content["init_args"]["plans"])
    with torch.device("meta"):
        network = nnUNetTrainer.build_network_architecture(manager, manager.get_configuration("2d"), 1, 3, True)
    content["network_weights"] = {
        key: torch.zeros(1).expand(value.shape) for key, value in network.state_dict().items()
    }
    torch.save(content, tmp_path / "large.pth")
    assert (tmp_path / "large.pth").stat().st_size < 1_000_000
    done = command(tmp_path / "large.pth", "-tr", "nnUNetTrainerDTC", "-o", tmp_path / "out.pth")
    assert (done.exit_code, type(done.exception)) == (1, SystemExit)
    assert f"the network of nnUNetTrainer from the plans in {tmp_path / 'large.pth'} needs at least" in done.output
    assert not (tmp_path / "out.pth").exists()


def test_a_machine_that_the_vanilla_network_alone_fits_into(trained, monkeypatch):
    file, trainer = trained()
    there = sum(4 * parameter.numel() for parameter in trainer.network.parameters())
    monkeypatch.setattr("nnunet_dtc.plugin.planned_networks.memory_of_machine", lambda: there)
    with pytest.raises(NetworkError, match=r"the network of nnUNetTrainerDTC from the plans in .* needs at least"):
        warm_start(file, "nnUNetTrainerDTC")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"n_stages": 99}, "nnUNetTrainer cannot build its network from the plans in {file}: AssertionError"),
        (
            {"patch_size": [16, 22]},
            "nnUNetTrainerDTC cannot build its network from the plans in {file}: the patch must be divisible by the "
            "strides of the planned network, 2 x 4, got 16 x 22",
        ),
    ],
)
def test_plans_that_no_network_can_be_built_from(changed, message, trained, tmp_path):
    file, _ = trained("2d")
    with_arguments(file, tmp_path / "odd.pth", **changed)
    done = command(tmp_path / "odd.pth", "-tr", "nnUNetTrainerDTC", "-o", tmp_path / "out.pth")
    assert (done.exit_code, type(done.exception)) == (1, SystemExit)
    assert message.format(file=tmp_path / "odd.pth") in done.output


def with_batch_norm():
    plans = small_plans()
    arguments = plans["configurations"]["2d"]["architecture"]["arch_kwargs"]
    arguments["norm_op"] = "torch.nn.modules.batchnorm.BatchNorm2d"
    return plans


def test_counters_are_whole_numbers(trained, tmp_path):
    file, _ = trained("2d", plans=with_batch_norm())
    network = warm_start(file, "nnUNetTrainerDTC").network
    counters = [value for key, value in network.state_dict().items() if key.endswith("num_batches_tracked")]
    assert counters
    assert all(value == 3 for value in counters)  # the fixture's forward passes
    content = torch.load(file, weights_only=False)
    for key in content["network_weights"]:
        if key.endswith("num_batches_tracked"):
            content["network_weights"][key] = torch.tensor(2.5)
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=r"num_batches_tracked is float32, but is a counter"):
        warm_start(tmp_path / "odd.pth", "nnUNetTrainerDTC")


@pytest.mark.parametrize("error", [RuntimeError("[enforce fail] unexpected pos 64 vs 0"), OSError(28, "No space left")])
@pytest.mark.parametrize("option", ["-o", "--into"])
def test_a_full_disk_names_the_target_and_leaves_nothing(option, error, trained, tmp_path, monkeypatch):
    file, _ = trained()
    root = tmp_path / "target"
    root.mkdir()
    target = root / "out.pth"
    if option == "--into":
        target = root / "Dataset998_Test" / "nnUNetTrainerDTC__nnUNetPlans__3d_fullres" / "fold_0"

    def full(content, file, *_, **__):
        Path(file).write_bytes(b"half")
        raise error

    monkeypatch.setattr(torch, "save", full)
    done = command(file, "-tr", "nnUNetTrainerDTC", option, target)
    assert done.exit_code == 1
    assert isinstance(done.exception, SystemExit)
    name = target if option == "-o" else target / "checkpoint_latest.pth"
    assert f"Error: cannot write {name}: {'No space left' if isinstance(error, OSError) else error}\n" in done.output
    assert ".warm_start_" not in done.output
    assert list(root.iterdir()) == []


def test_a_bug_keeps_its_traceback(trained, tmp_path, monkeypatch):
    file, _ = trained()
    monkeypatch.setattr("nnunet_dtc.plugin.warm_start.is_dtc", lambda module: 1 / 0)
    assert isinstance(command(file, "-tr", "nnUNetTrainerDTC", "-o", tmp_path / "out.pth").exception, ZeroDivisionError)


def test_plans_that_cannot_be_read_are_named(trained, tmp_path):
    file, _ = trained()
    model = tmp_path / "Dataset998_Test" / "nnUNetTrainerDTC__nnUNetPlans__3d_fullres"
    model.mkdir(parents=True)
    for text in ("{", "[1]", '{"configurations": {}}'):
        (model / "plans.json").write_text(text)
        done = command(file, "-tr", "nnUNetTrainerDTC", "--into", model / "fold_0")
        assert done.exit_code == 1
        assert isinstance(done.exception, SystemExit)
        assert str(model / "plans.json") in done.output
        assert not (model / "fold_0").exists()
