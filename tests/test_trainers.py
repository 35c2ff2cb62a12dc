import inspect
import pickle
from importlib import metadata

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerDA5 import nnUNetTrainerDA5
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoMirroring import (
    nnUNetTrainerNoMirroring,
)
from nnunetv2.training.nnUNetTrainer.variants.optimizer.nnUNetTrainerAdam import nnUNetTrainerAdam
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from plans import DATASET, SMALL_NETWORKS, small_plans

from nnunet_dtc import trainers
from nnunet_dtc.architectures import build_network, monai_networks
from nnunet_dtc.ops.dtc import is_dtc

NO_MIRRORING = "nnUNetTrainerDTC_7epochs_NoMirroring"
NAMES = [
    "nnUNetTrainerDTC",
    "nnUNetTrainerDTC_RF10",
    "nnUNetTrainerDTC_RF2.5_7epochs",
    "nnUNetTrainer_rep2",
    "nnUNetTrainerDySample",
    "nnUNetTrainerFADEDTC_RF10_7epochs",
    "nnUNetTrainerUNet",
    "nnUNetTrainerUNetLinearDTC",
    "nnUNetTrainerUNETR",
    "nnUNetTrainerSegMambaDTC_RF10",
]
OURS = {"__init__", "build_network_architecture", "spec", "initialize", "check_patch", "deep_supervision"}
RECORD = {"validation_step"}  # of the coordinates, with DTC alone
NO_DEEP_SUPERVISION = {"set_deep_supervision_enabled", "multiple"}  # a network without nnU-Net's decoder
PAPER_NETWORK = {"configure_optimizers"}  # the optimizer of their authors


@pytest.fixture
def make(tmp_path, monkeypatch):
    """A trainer as nnU-Net makes it, with its results in a temporary folder."""
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)

    def make(name, configuration="3d_fullres", cls=None):
        cls = cls or getattr(trainers, name)
        plans = small_plans() | {"continue_training": False}
        return cls(plans, configuration, 0, DATASET, torch.device("cpu"))

    return make


@pytest.mark.parametrize("name", NAMES)
def test_hooks_that_we_do_not_touch_are_the_base_classs_own_objects(name):
    found = getattr(trainers, name)
    ours = OURS | (RECORD if found.spec.dtc else set()) | (NO_DEEP_SUPERVISION if found.spec.network else set())
    ours = ours | (PAPER_NETWORK if found.spec.network in SMALL_NETWORKS else set())
    assert issubclass(found, nnUNetTrainer)
    touched = {
        attribute
        for cls in found.__mro__[: found.__mro__.index(nnUNetTrainer)]
        for attribute in vars(cls)
        if attribute not in ("__module__", "__doc__", "__annotations__", "__firstlineno__", "__static_attributes__")
        and (hasattr(nnUNetTrainer, attribute) or not attribute.startswith("_"))
    }
    assert touched <= ours
    for attribute, hook in vars(nnUNetTrainer).items():
        if attribute not in ours and callable(hook) and not attribute.startswith("__"):
            assert inspect.getattr_static(found, attribute) is hook


def test_the_optimizer_is_nnunets_own(make):
    found = trainers.nnUNetTrainerDTC_Adam1en3_7epochs
    assert inspect.getattr_static(found, "configure_optimizers") is vars(nnUNetTrainerAdam)["configure_optimizers"]
    trainer = make(None, cls=found)
    assert (trainer.initial_lr, trainer.num_epochs, trainer.save_every) == (1e-3, 7, 1)
    trainer.network = trainer.build_network_architecture(trainer.plans_manager, trainer.configuration_manager, 1, 3)
    assert any(is_dtc(module) for module in trainer.network.modules())
    optimizer, _ = trainer.configure_optimizers()
    assert isinstance(optimizer, torch.optim.AdamW)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(trainer.network.parameters()))


def test_a_vanilla_repetition_has_nnunets_own_network():
    hook = inspect.getattr_static(trainers.nnUNetTrainer_rep2, "build_network_architecture")
    assert hook is vars(nnUNetTrainer)["build_network_architecture"]


def test_a_repetition_of_a_trainer_of_others_differs_in_its_name_alone(make, tmp_path):
    found = trainers.nnUNetTrainerDA5_rep2
    assert pickle.loads(pickle.dumps(found)) is found
    assert issubclass(found, nnUNetTrainerDA5)
    for attribute, hook in vars(nnUNetTrainerDA5).items():
        if callable(hook):
            assert inspect.getattr_static(found, attribute) is hook
    make("nnUNetTrainerDA5_rep2")
    assert (tmp_path / "Dataset998_Test" / "nnUNetTrainerDA5_rep2__nnUNetPlans__3d_fullres" / "fold_0").is_dir()
    with pytest.raises(AttributeError, match="nnUNetTrainerNobody_rep2 is not a trainer of nnunet-dtc"):
        _ = trainers.nnUNetTrainerNobody_rep2


def test_no_mirroring_is_nnunets_own(make):
    found = getattr(trainers, NO_MIRRORING)
    hook = "configure_rotation_dummyDA_mirroring_and_inital_patch_size"
    assert inspect.getattr_static(found, hook) is vars(nnUNetTrainerNoMirroring)[hook]
    for attribute, theirs in vars(nnUNetTrainer).items():
        if attribute not in {*OURS, *RECORD, hook} and callable(theirs) and not attribute.startswith("__"):
            assert inspect.getattr_static(found, attribute) is theirs
    trainer = make(NO_MIRRORING)
    assert trainer.num_epochs == 7
    assert getattr(trainer, hook)()[-1] is None
    assert trainer.inference_allowed_mirroring_axes is None
    network = found.build_network_architecture(trainer.plans_manager, trainer.configuration_manager, 1, 3)
    assert any(is_dtc(module) for module in network.modules())


@pytest.mark.parametrize("name", NAMES)
def test_init_keeps_nnunets_parameter_names(name, make):
    theirs, ours = (inspect.signature(cls.__init__) for cls in (nnUNetTrainer, getattr(trainers, name)))
    assert list(ours.parameters) == list(theirs.parameters)
    assert {k: p.default for k, p in ours.parameters.items()} == {k: p.default for k, p in theirs.parameters.items()}
    assert set(make(name).my_init_kwargs) == {"plans", "configuration", "fold", "dataset_json", "device"}


@pytest.mark.parametrize(
    ("name", "epochs", "save_every"),
    [
        ("nnUNetTrainerDTC", 1000, 50),
        ("nnUNetTrainerDTC_1epochs", 1, 1),
        ("nnUNetTrainerDTC_5epochs", 5, 1),
        ("nnUNetTrainer_7epochs", 7, 1),
        ("nnUNetTrainerDTC_RF10_250epochs", 250, 12),
        ("nnUNetTrainerDTC_4000epochs", 4000, 50),
        ("nnUNetTrainer_rep2", 1000, 50),
    ],
)
def test_epochs_and_how_often_they_are_saved(name, epochs, save_every, make, tmp_path):
    trainer = make(name)
    assert (trainer.num_epochs, trainer.save_every) == (epochs, save_every)
    assert (tmp_path / "Dataset998_Test" / f"{name}__nnUNetPlans__3d_fullres" / "fold_0").is_dir()


def test_build_network_architecture_on_the_instance_and_on_the_class(make):
    name = "nnUNetTrainerDTC_RF4_noweight"
    trainer = make(name)
    plans = PlansManager(small_plans())
    arguments = (plans, plans.get_configuration("3d_fullres"), 1, 3)
    for build in (trainer.build_network_architecture, getattr(trainers, name).build_network_architecture):
        assert "plans_manager" in inspect.signature(build).parameters  # how nnU-Net tells the new signature
        network = build(*arguments, enable_deep_supervision=False)
        found = [module for module in network.modules() if is_dtc(module)]
        assert [(block.receptive_field, block.deformation.weight, block.deformation.offset) for block in found] == [
            (4, "none", "tanh")
        ] * 3
        assert network.decoder.deep_supervision is False
    trainer.network = trainer.build_network_architecture(*arguments)
    assert trainer.network.decoder.deep_supervision is True
    trainer.set_deep_supervision_enabled(False)
    assert torch.is_tensor(trainer.network(torch.zeros(1, 1, 6, 16, 24)))


@pytest.mark.parametrize("configuration", ["2d", "2d_residual", "3d_lowres", "3d_residual", "3d_cascade_fullres"])
def test_every_configuration(configuration, make):
    trainer = make("nnUNetTrainerDTC", configuration)
    channels = 1 + 2 * trainer.is_cascaded  # a cascade's second stage sees the first one's organs too
    network = trainer.build_network_architecture(
        trainer.plans_manager, trainer.configuration_manager, channels, 3, True
    )
    size = trainer.configuration_manager.patch_size
    outputs = network(torch.zeros(1, channels, *size))
    assert [out.shape[1] for out in outputs] == [3] * len(outputs)
    assert list(outputs[0].shape[2:]) == list(size)


def test_a_network_without_deep_supervision(make):
    trainer = make("nnUNetTrainerUNetLinearDTC", "2d")
    assert trainer.enable_deep_supervision is False
    trainer.network = torch.nn.Identity()
    trainer.set_deep_supervision_enabled(True)  # nnU-Net's would look for a decoder


@pytest.mark.parametrize(
    ("network", "rate", "decay"),
    [("UNETR", 1e-4, 1e-5), ("SwinUNETRV2", 1e-4, 1e-5), ("NnMamba", 2e-4, 3e-5), ("SegMamba", 1e-4, 1e-5)],
)
def test_the_optimizer_of_the_papers_networks(network, rate, decay, make):
    """AdamW with nnU-Net's schedule; where the name has an optimizer, that one."""

    def optimizer_of(name):
        trainer = make(name)
        trainer.network = torch.nn.Linear(2, 3)
        optimizer, scheduler = trainer.configure_optimizers()
        scheduler.step(3)
        assert type(optimizer) is torch.optim.AdamW
        [group] = optimizer.param_groups
        return group["lr"], group["weight_decay"], group["amsgrad"]

    decayed = (1 - 3 / 7) ** 0.9
    assert optimizer_of(f"nnUNetTrainer{network}DTC_RF4_7epochs") == (pytest.approx(rate * decayed), decay, False)
    assert optimizer_of(f"nnUNetTrainer{network}_Adam1en3_7epochs") == (pytest.approx(1e-3 * decayed), 3e-5, True)
    assert optimizer_of(f"nnUNetTrainer{network}DTC_paper2d_7epochs") == (1e-4, 1e-5, False)


def test_a_name_without_an_optimizer_does_not_say_sgd():
    for name in ("nnUNetTrainerSegMamba", "nnUNetTrainerDTC"):
        assert "SGD" not in repr(getattr(trainers, name).spec)


@pytest.mark.parametrize("network", SMALL_NETWORKS)
def test_the_papers_networks_are_what_name_and_plans_say(network, make):
    plans = small_plans()
    for configuration, patch in (("2d", [16, 40]), ("3d_fullres", [6, 16, 40])):
        plans["configurations"][configuration]["patch_size"] = patch
        plans["configurations"][configuration]["architecture"]["nnunet_dtc"] = SMALL_NETWORKS
    manager = PlansManager(plans)
    for name, configuration, dtc in (
        (f"nnUNetTrainer{network}", "2d", None),
        (f"nnUNetTrainer{network}DTC_RF10_notanh", "3d_fullres", {"receptive_field": 10, "offset": "linear"}),
    ):
        arguments = (manager, manager.get_configuration(configuration), 2, 3)
        patch = manager.get_configuration(configuration).patch_size
        built = getattr(trainers, name).build_network_architecture(*arguments, enable_deep_supervision=False)
        assert str(built) == str(build_network(network, 2, 3, patch, SMALL_NETWORKS[network], dtc=dtc))
        assert any(map(is_dtc, built.modules())) == (dtc is not None)
        trainer = make(name, configuration)
        assert trainer.enable_deep_supervision is False
        trainer.network = trainer.build_network_architecture(*arguments, trainer.enable_deep_supervision)
        trainer.set_deep_supervision_enabled(True)
        assert trainer.network(torch.zeros(1, 2, *patch)).shape == (1, 3, *patch)


def test_without_monai_the_search_finds_the_trainer_and_the_network_says_what_to_install(make, monkeypatch):
    def version(package):
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(monai_networks.metadata, "version", version)
    trainer = make("nnUNetTrainerUNETRDTC_RF4_3epochs")
    with pytest.raises(ImportError, match=r'need MONAI 1.6 or later: pip install "nnunet-dtc\[monai\]"$'):
        trainer.build_network_architecture(trainer.plans_manager, trainer.configuration_manager, 1, 3)


def test_a_subclass_of_a_users_own_keeps_the_choices(make):
    class nnUNetTrainerDTC_mylab(trainers.nnUNetTrainerDTC_RF10):
        def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):  # noqa: B008
            super().__init__(plans, configuration, fold, dataset_json, device)
            self.initial_lr = 1e-3

    trainer = make(None, cls=nnUNetTrainerDTC_mylab)
    assert trainer.initial_lr == 1e-3
    network = trainer.build_network_architecture(trainer.plans_manager, trainer.configuration_manager, 1, 3, True)
    assert {module.receptive_field for module in network.modules() if is_dtc(module)} == {10}
