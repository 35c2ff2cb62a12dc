"""Plans and checkpoints from elsewhere run no code by the names of classes in them.

The bait is ``os.system`` with a command that makes a file; a test of its own shows that nnU-Net alone would run it.
"""

import json
import sys
import warnings

import pytest
import torch
from model_folders import write_image
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from plans import CONFIGURATIONS, DATASET, small_plans
from typer.testing import CliRunner

from nnunet_dtc.cli import app
from nnunet_dtc.errors import NnunetDtcError
from nnunet_dtc.plugin.checkpoints import CheckpointError, open_checkpoint
from nnunet_dtc.plugin.finder import find_trainer
from nnunet_dtc.plugin.nnunet_files import check_plans
from nnunet_dtc.plugin.planned_networks import build_network
from nnunet_dtc.plugin.plans_safety import UnsafePlansError, check_names, reader_class

CONFIGURATION = "3d_fullres"


@pytest.fixture
def bait(tmp_path, monkeypatch):
    """Plans that run a command where their activation is built, and the file that it makes."""
    monkeypatch.chdir(tmp_path)
    plans, proof = small_plans(), tmp_path / "code_was_run"
    arguments = plans["configurations"][CONFIGURATION]["architecture"]["arch_kwargs"]
    arguments |= {"nonlin": "os.system", "nonlin_kwargs": {"command": f"touch {proof}"}}
    return plans, proof


def run(*arguments):
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code == 1
    return " ".join(done.output.split())


def checkpoint(plans, trainer):
    network = build_network(trainer, small_plans(), CONFIGURATION, DATASET, deep_supervision=True)
    init_args = {"plans": plans, "configuration": CONFIGURATION, "fold": 0, "dataset_json": DATASET}
    return {"network_weights": network.state_dict(), "init_args": init_args, "trainer_name": trainer.__name__}


def test_nnunet_alone_would_run_it(bait):
    plans, proof = bait
    architecture = plans["configurations"][CONFIGURATION]["architecture"]
    with pytest.raises(TypeError):  # the exit status of the command is no module
        get_network_from_plans(*(architecture[key] for key in CONFIGURATIONS["2d"]["architecture"]), 1, 3)
    assert proof.exists()


def test_warm_start_runs_nothing(bait):
    plans, proof = bait
    torch.save(checkpoint(plans, nnUNetTrainer), "vanilla.pth")
    message = run("warm-start", "vanilla.pth", "-tr", "nnUNetTrainerDTC", "-o", "out.pth")
    assert "init_args.plans.configurations.3d_fullres.architecture.arch_kwargs.nonlin must be the name" in message
    assert 'got "os.system"' in message
    assert not proof.exists()
    with pytest.raises(UnsafePlansError):
        open_checkpoint("vanilla.pth")
    assert open_checkpoint("vanilla.pth", to_build=False)["trainer_name"] == "nnUNetTrainer"  # nothing is built from it


def test_complexity_runs_nothing(bait, tmp_path):
    plans, proof = bait
    (tmp_path / "plans.json").write_text(json.dumps(plans))
    (tmp_path / "dataset.json").write_text(json.dumps(DATASET))
    arguments = ("complexity", "--plans", "plans.json", "-c", CONFIGURATION, "-tr", "nnUNetTrainer", "--no-measure")
    message = run(*arguments)
    assert "nonlin must be the name of a module class of torch.nn or dynamic_network_architectures" in message
    assert 'got "os.system"' in message
    assert not proof.exists()
    arguments = ("-c", "3d_lowres", "-tr", "nnUNetTrainer", "--no-measure")  # another configuration of these plans
    assert CliRunner().invoke(app, ["complexity", "--plans", "plans.json", *arguments]).exit_code == 0


@pytest.mark.parametrize("where", ["plans.json", "checkpoint"])
def test_coordinates_runs_nothing(bait, tmp_path, where):
    plans, proof = bait
    model = tmp_path / "nnUNetTrainerDTC__nnUNetPlans__3d_fullres"
    (model / "fold_0").mkdir(parents=True)
    harmless = small_plans()
    (model / "plans.json").write_text(json.dumps(plans if where == "plans.json" else harmless))
    (model / "dataset.json").write_text(json.dumps(DATASET))
    content = checkpoint(plans if where == "checkpoint" else harmless, find_trainer("nnUNetTrainerDTC"))
    torch.save(content, model / "fold_0" / "checkpoint_final.pth")
    write_image(tmp_path / "case_0000.nii.gz", torch.rand(6, 16, 24).numpy())
    assert 'got "os.system"' in run("coordinates", model, "-i", "case_0000.nii.gz")
    assert not proof.exists()


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("nonlin", "subprocess.run"),
        ("nonlin", "torch.nn.modules.module.os.system"),  # of an allowed module, by what it imports
        ("nonlin", "torch.nn.functional.relu"),
        ("nonlin", "torch.nn.Module.__class__"),
        ("nonlin", "torch.nn.nothing"),
        ("nonlin", "torch.hub.load"),
        ("nonlin", "torch.nnevil.Module"),
        ("nonlin", "torch.nn..ReLU"),
        ("nonlin", "torch.nn.parallel.DistributedDataParallel"),
        ("nonlin", "dynamic_network_architectures.architectures.unet.torch.save"),
        ("nonlin", ""),
        ("nonlin", 3),
        ("nonlin", ["torch.nn.ReLU"]),
        ("conv_op", "module_of_the_working_folder.run"),
        ("dropout_op", "os.system"),
        ("norm_op", "builtins.eval"),
        ("block", "os.system"),
    ],
)
def test_arguments_that_are_no_classes_of_modules(key, name, tmp_path, monkeypatch):
    """Neither called nor imported: the folder in which a command is called is on Python's path."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "module_of_the_working_folder.py").write_text("raise SystemExit('imported')")
    plans = small_plans()
    architecture = plans["configurations"][CONFIGURATION]["architecture"]
    architecture["arch_kwargs"][key] = name
    if key == "block":
        architecture["_kw_requires_import"].append("block")
    else:
        architecture["_kw_requires_import"].remove(key)  # some trainers look it up all the same
    for configuration in (CONFIGURATION, "3d_cascade_fullres"):  # which inherits it
        with pytest.raises(
            UnsafePlansError, match=f"configurations.{configuration}.architecture.arch_kwargs.{key} must"
        ):
            check_names(plans, configuration, "plans.json")
    assert "module_of_the_working_folder" not in sys.modules


def test_one_list_in_many_places_is_walked_once(tmp_path, monkeypatch):
    """2 to the power of 28 places in four kilobytes of a pickle; a list within itself is refused, too."""
    monkeypatch.chdir(tmp_path)
    plans = small_plans()
    shared = []
    for _ in range(28):
        shared = [shared, shared]
    plans["notes"] = shared
    torch.save(checkpoint(plans, nnUNetTrainer), "shared.pth")
    assert (tmp_path / "shared.pth").stat().st_size < 1_000_000
    assert open_checkpoint("shared.pth")["trainer_name"] == "nnUNetTrainer"
    plans["image_reader_writer"] = shared  # shown in the message
    torch.save(checkpoint(plans, nnUNetTrainer), "shown.pth")
    with pytest.raises(CheckpointError, match=r"image_reader_writer must be a text, got \[\[\[\["):
        open_checkpoint("shown.pth")
    shared = plans["notes"] = []
    shared.append(shared)
    del plans["image_reader_writer"]
    torch.save(checkpoint(plans, nnUNetTrainer), "circle.pth")
    with pytest.raises(CheckpointError, match="nested more deeply"):
        open_checkpoint("circle.pth")


def test_a_registered_reader_may_be_named(monkeypatch):
    from nnunetv2.imageio import reader_writer_registry
    from nnunetv2.imageio.nibabel_reader_writer import NibabelIO

    class OwnIO(NibabelIO):
        """A reader of a user's own."""

    plans = small_plans() | {"image_reader_writer": "OwnIO"}
    with pytest.raises(UnsafePlansError, match="image_reader_writer must be one of nnU-Net's readers"):
        check_names(plans, CONFIGURATION, "plans.json")
    monkeypatch.setattr(reader_writer_registry, "LIST_OF_IO_CLASSES", [OwnIO])
    check_names(plans, CONFIGURATION, "plans.json")


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "dynamic_network_architectures.architectures.unet.os",
        "dynamic_network_architectures.architectures.unet.torch.nn.Sequential",
        "dynamic_network_architectures.architectures.nothing.system",
        "torch.nn.Sequential",
        "my_own_networks.MyUNet",
    ],
)
def test_network_classes_of_elsewhere(name):
    plans = small_plans()
    plans["configurations"][CONFIGURATION]["architecture"]["network_class_name"] = name
    with pytest.raises(UnsafePlansError, match="network_class_name must be") as refused:
        check_names(plans, CONFIGURATION, "plans.json")
    assert f'got "{name}"' in str(refused.value)


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("image_reader_writer", "maybe_mkdir_p"),
        ("image_reader_writer", "os"),
        ("label_manager", "join"),
        ("preprocessor_name", "save_json"),
        ("preprocessor_name", "shutil.rmtree"),
        ("normalization_schemes", ["np"]),
        ("normalization_schemes", ["CTNormalization", "ABC"]),
        ("resampling_fn_data", "recursive_find_python_class"),
        ("resampling_fn_seg", "join"),
        ("resampling_fn_probabilities", "Callable"),
    ],
)
def test_what_nnunet_searches_in_its_own_modules(key, name):
    """The search returns any attribute of these modules, what they import among them."""
    plans = small_plans()
    of = plans if key in plans else plans["configurations"]["2d"]
    of[key] = name
    check_plans(plans, "plans.json", "2d")
    with pytest.raises(UnsafePlansError, match=rf"{key} must be (the name of|one of nnU-Net.s readers)"):
        check_names(plans, "2d", "plans.json")


def test_what_nnunet_writes_is_allowed():
    moved = small_plans()
    moved["configurations"]["2d"]["architecture"]["network_class_name"] = (
        "dynamic_network_architectures.architectures.residual_unet.ResidualEncoderUNet"  # of an older version
    )
    more = small_plans()
    more["configurations"]["2d"] |= {
        "preprocessor_name": "DefaultPreprocessor",
        "normalization_schemes": ["CTNormalization", "ZScoreNormalization", "RGBTo01Normalization", "NoNormalization"],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_torch_fornnunet",
        "resampling_fn_probabilities": "no_resampling_hack",
    }
    arguments = more["configurations"]["2d"]["architecture"]["arch_kwargs"]
    arguments |= {
        "conv_op": "torch.nn.Conv2d",
        "norm_op": "torch.nn.modules.batchnorm.BatchNorm2d",
        "dropout_op": "torch.nn.modules.dropout.Dropout2d",
        "nonlin": "torch.nn.modules.activation.SiLU",
        "block": "dynamic_network_architectures.building_blocks.residual.BottleneckD",
    }
    more["configurations"]["2d"]["architecture"]["_kw_requires_import"].append("block")
    for plans in (small_plans(), moved, more):
        for configuration in plans["configurations"]:
            check_plans(plans, "plans.json", configuration)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                check_names(plans, configuration, "plans.json")
    for name in ("SimpleITKIO", "NibabelIO", "NibabelIOWithReorient", "NaturalImage2DIO", "Tiff3DIO"):
        assert reader_class(name, "plans.json: image_reader_writer").__name__ == name


def test_plans_of_the_old_format_are_built():
    """nnU-Net 2.0 to 2.4 wrote no architecture; the network is the one that the new format describes."""
    plans = small_plans()
    configuration = plans["configurations"]["2d"]
    arguments = configuration.pop("architecture")["arch_kwargs"]
    configuration |= {
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": 4,
        "unet_max_num_features": 12,
        "n_conv_per_stage_encoder": [2, 2, 2],
        "n_conv_per_stage_decoder": [2, 2],
        "num_pool_per_axis": [1, 2],
        "pool_op_kernel_sizes": arguments["strides"],
        "conv_kernel_sizes": arguments["kernel_sizes"],
    }
    arguments["features_per_stage"] = [4, 8, 12]
    new = small_plans()
    new["configurations"]["2d"]["architecture"]["arch_kwargs"] = arguments
    shapes = [
        {
            key: value.shape
            for key, value in build_network(nnUNetTrainer, each, "2d", DATASET, True).state_dict().items()
        }
        for each in (plans, new)
    ]
    assert shapes[0] == shapes[1]
    configuration["UNet_class_name"] = "MyUNet"
    with pytest.raises(NnunetDtcError, match=r"UNet_class_name must be PlainConvUNet or ResidualEncoderUNet .*MyUNet"):
        check_plans(plans, "plans.json", "2d")
