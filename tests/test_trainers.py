import inspect

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoMirroring import (
    nnUNetTrainerNoMirroring,
)
from nnunetv2.training.nnUNetTrainer.variants.optimizer.nnUNetTrainerAdam import nnUNetTrainerAdam
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from plans import DATASET, small_plans

from nnunet_dtc import trainers
from nnunet_dtc.dtc import is_dtc

NO_MIRRORING = "nnUNetTrainerDTC_7epochs_NoMirroring"
NAMES = ["nnUNetTrainerDTC", "nnUNetTrainerDTC_RF10", "nnUNetTrainerDTC_RF2.5_7epochs", "nnUNetTrainer_rep2"]
OURS = {"__init__", "build_network_architecture", "spec"}
RECORD = {"validation_step", "_record_coordinates", "_coordinates_epoch"}  # of the coordinates, with DTC alone


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
    ours = OURS | RECORD if found.spec.dtc else OURS
    assert issubclass(found, nnUNetTrainer)
    touched = {
        attribute
        for cls in found.__mro__[: found.__mro__.index(nnUNetTrainer)]
        for attribute in vars(cls)
        if attribute not in ("__module__", "__doc__", "__annotations__", "__firstlineno__", "__static_attributes__")
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
        assert [(block.receptive_field, block.weight_kind, block.offset_kind) for block in found] == [
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


def test_a_subclass_of_a_users_own_keeps_the_choices(make):
    class nnUNetTrainerDTC_mylab(trainers.nnUNetTrainerDTC_RF10):
        def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):  # noqa: B008
            super().__init__(plans, configuration, fold, dataset_json, device)
            self.initial_lr = 1e-3

    trainer = make(None, cls=nnUNetTrainerDTC_mylab)
    assert trainer.initial_lr == 1e-3
    network = trainer.build_network_architecture(trainer.plans_manager, trainer.configuration_manager, 1, 3, True)
    assert {module.receptive_field for module in network.modules() if is_dtc(module)} == {10}
