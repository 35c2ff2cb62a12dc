"""From a vanilla training to a DTC one: ``nnunet-dtc warm-start`` and nnU-Net's own loading of what it writes."""

import json
import re
import shutil
from copy import deepcopy
from pathlib import Path

import pytest

pytestmark = pytest.mark.nnunet

VANILLA = "nnUNetTrainer_1epoch"  # nnU-Net's own
DTC = "nnUNetTrainerDTC_1epochs"
AGAIN = "nnUNetTrainerDTC_1epochs_rep2"


@pytest.fixture(scope="module")
def vanilla(workspace, dataset):
    """A really trained vanilla checkpoint."""
    fold = workspace.train_shortly(dataset, "3d_fullres", 0, VANILLA)
    workspace.check_model(fold, epochs=1, dtc=False)
    return fold / "checkpoint_final.pth"


@pytest.fixture(scope="module")
def pretrained(workspace, vanilla):
    """The file for ``-pretrained_weights``."""
    output = workspace.root / "warm.pth"
    printed = workspace.run("nnunet-dtc", "warm-start", vanilla, "-tr", DTC, "-o", output)
    assert f"nnUNetv2_train ID 3d_fullres FOLD -tr {DTC} -p NEWPLANS -pretrained_weights {output}" in printed
    return output


@pytest.fixture(scope="module")
def latest(workspace, dataset, vanilla):
    """``checkpoint_latest.pth`` in the folder of a training that is to go on with ``--c``."""
    fold = workspace.fold_folder(dataset, "3d_fullres", 0, AGAIN)
    printed = workspace.run("nnunet-dtc", "warm-start", vanilla, "-tr", AGAIN, "--into", fold)
    assert f"nnUNetv2_train {dataset} 3d_fullres 0 -tr {AGAIN} -p nnUNetPlans --c" in " ".join(printed.split())
    assert [file.name for file in fold.iterdir()] == ["checkpoint_latest.pth"]
    # tests below train on from this file, and nnU-Net removes it at the end
    return Path(shutil.copy(fold / "checkpoint_latest.pth", workspace.root / "latest.pth"))


def listing(root):
    return {file: file.stat().st_size for file in root.rglob("*") if file.is_file()}


class TestRefusals:
    """Each with its reason, and nothing is written."""

    @pytest.fixture
    def refuse(self, workspace):
        """Run the command line here: no process per refusal. Returns what it prints."""
        from typer.testing import CliRunner

        from nnunet_dtc.cli import app

        def run(checkpoint, *arguments):
            before = listing(workspace.root)
            result = CliRunner().invoke(app, ["warm-start", str(checkpoint), *(str(item) for item in arguments)])
            assert result.exit_code == 1, result.output
            assert not isinstance(result.exception, Exception), result.output
            assert listing(workspace.root) == before
            return result.output

        return run

    def test_a_folder_with_a_training(self, refuse, vanilla, latest, workspace, dataset):
        fold = workspace.fold_folder(dataset, "3d_fullres", 0, AGAIN)
        printed = refuse(vanilla, "-tr", AGAIN, "--into", fold)
        assert "has a training already" in printed
        assert "nothing is overwritten" in printed

    @pytest.mark.parametrize(
        ("configuration", "fold", "trainer"),
        [("3d_fullres", 1, DTC), ("2d", 0, DTC), ("3d_fullres", 0, AGAIN), ("3d_fullres", "all", DTC)],
    )
    def test_a_folder_of_another_training(self, refuse, vanilla, workspace, dataset, configuration, fold, trainer):
        folder = workspace.fold_folder(dataset, configuration, fold, trainer)
        printed = refuse(vanilla, "-tr", DTC, "--into", folder)
        assert f"{dataset}/{DTC}__nnUNetPlans__3d_fullres/fold_0" in printed
        assert str(folder) in printed

    def test_a_folder_of_other_plans(self, refuse, vanilla, workspace, dataset):
        other = "nnUNetTrainerDTC_RF4_1epochs"
        fold = workspace.fold_folder(dataset, "3d_fullres", 0, other)
        fold.mkdir(parents=True)
        changed = json.loads((vanilla.parents[1] / "plans.json").read_text())
        changed["configurations"]["3d_fullres"]["patch_size"] = [24, 24, 24]
        (fold.parent / "plans.json").write_text(json.dumps(changed))
        assert "patch_size" in refuse(vanilla, "-tr", other, "--into", fold)

    def test_a_dtc_checkpoint(self, refuse, pretrained, workspace):
        printed = refuse(pretrained, "-tr", DTC, "-o", workspace.root / "new.pth")
        assert f"DTC network already ({DTC})" in printed

    def test_a_vanilla_trainer(self, refuse, vanilla, workspace):
        assert "must be a DTC trainer" in refuse(
            vanilla, "-tr", "nnUNetTrainer_1epochs", "-o", workspace.root / "new.pth"
        )

    def test_a_file_that_is_cut_off(self, refuse, vanilla, workspace):
        cut = workspace.root / "cut.pth"
        cut.write_bytes(vanilla.read_bytes()[:20_000])
        printed = refuse(cut, "-tr", DTC, "-o", workspace.root / "new.pth")
        assert f"{cut} cannot be read; it is cut off or no checkpoint" in printed

    def test_another_architecture(self, refuse, vanilla, workspace):
        import torch

        checkpoint = workspace.read_checkpoint(vanilla)
        arguments = checkpoint["init_args"]["plans"]["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
        arguments["features_per_stage"] = [8, 16, 12]
        weights = checkpoint["network_weights"]
        del weights["decoder.seg_layers.0.weight"]
        weights["surplus.weight"] = torch.zeros(1)
        other = workspace.root / "other.pth"
        torch.save(checkpoint, other)
        printed = refuse(other, "-tr", DTC, "-o", workspace.root / "new.pth")
        assert "missing in the checkpoint: decoder.seg_layers.0" in printed
        assert "not in nnU-Net's network: surplus" in printed
        assert (
            "other shape: encoder.stages.2.0.convs.0.conv.weight is (16, 16, 3, 3, 3) in the checkpoint, "
            "(12, 16, 3, 3, 3) in nnU-Net's network"
        ) in printed
        assert "decoder.encoder" not in printed
        assert len(printed.splitlines()) < 20

    def test_an_output_that_is_there(self, refuse, vanilla, pretrained):
        assert "is not overwritten" in refuse(vanilla, "-tr", DTC, "-o", pretrained)

    def test_an_output_in_no_folder(self, refuse, vanilla, workspace):
        assert "there is no folder" in refuse(vanilla, "-tr", DTC, "-o", workspace.root / "nowhere" / "warm.pth")


def test_nnunet_takes_the_pretrained_weights(workspace, dataset, pretrained):
    command = workspace.train_command(dataset, "3d_fullres", 0, DTC, "-pretrained_weights", pretrained)
    printed = workspace.run_in_one_process([command])
    fold = workspace.fold_folder(dataset, "3d_fullres", 0, DTC)
    assert f"Loading pretrained weights from file  {pretrained}" in printed
    assert re.search(r"^decoder\.transpconvs\.0\.coords\.weight shape", printed, re.MULTILINE)
    workspace.check_model(fold, epochs=1)


@pytest.fixture
def loaded(workspace, dataset, latest, monkeypatch):
    """The DTC trainer after nnU-Net's own loading of what ``--into`` wrote."""
    import torch
    from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint

    env = workspace.environment()
    for key in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_extTrainer"):
        monkeypatch.setenv(key, env[key])
    results = workspace.root / "loaded"  # of its own: nnU-Net's trainer starts a log where it is made
    fold = results / workspace.fold_folder(dataset, "3d_fullres", 0, AGAIN).relative_to(workspace.results)
    fold.mkdir(parents=True)
    shutil.copy(latest, fold / "checkpoint_latest.pth")
    monkeypatch.setenv("nnUNet_results", str(results))
    trainer = get_trainer_from_args(dataset, "3d_fullres", 0, AGAIN, "nnUNetPlans", True, torch.device("cpu"))
    maybe_load_checkpoint(trainer, continue_training=True, validation_only=False)
    yield trainer
    shutil.rmtree(results)


def test_the_same_function_bit_for_bit(workspace, vanilla, loaded):
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    checkpoint = workspace.read_checkpoint(vanilla)
    plans = PlansManager(deepcopy(checkpoint["init_args"]["plans"]))
    reference = nnUNetTrainer.build_network_architecture(plans, plans.get_configuration("3d_fullres"), 1, 3, True)
    reference.load_state_dict(checkpoint["network_weights"])

    assert loaded.current_epoch == 0
    assert loaded.inference_allowed_mirroring_axes == checkpoint["inference_allowed_mirroring_axes"]
    assert not loaded.optimizer.state
    assert {id(p) for group in loaded.optimizer.param_groups for p in group["params"]} == {
        id(p) for p in loaded.network.parameters()
    }
    torch.manual_seed(0)
    patch = torch.randn(2, 1, *loaded.configuration_manager.patch_size)
    for training in (True, False):
        for deep_supervision in (True, False):
            outputs = []
            for network in (reference.train(training), loaded.network.train(training)):
                network.decoder.deep_supervision = deep_supervision
                with torch.no_grad():
                    output = network(patch)
                outputs.append(output if deep_supervision else [output])
            assert len(outputs[0]) == len(outputs[1]) == (2 if deep_supervision else 1)
            assert all(torch.equal(ours, theirs) for theirs, ours in zip(*outputs, strict=True))


def test_the_training_goes_on(workspace, dataset, latest):
    fold = workspace.train_shortly(dataset, "3d_fullres", 0, AGAIN, "--c")
    [log] = fold.glob("training_log_*.txt")
    assert re.findall(r"Epoch (\d+) *$", log.read_text(), re.MULTILINE) == ["0"]
    weights = workspace.check_model(fold, epochs=1)["network_weights"]
    start = workspace.read_checkpoint(latest)["network_weights"]
    for block in ("decoder.transpconvs.0", "decoder.transpconvs.1"):
        assert not start[f"{block}.value.weight"].any()
        for part in ("value", "coords", "base"):
            assert not weights[f"{block}.{part}.weight"].equal(start[f"{block}.{part}.weight"])
