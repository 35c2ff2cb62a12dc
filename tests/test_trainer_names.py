import ast
import math
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace

import nnunetv2
import pytest
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_dtc import registry, trainers
from nnunet_dtc.architectures import NETWORKS
from nnunet_dtc.plugin.ext_trainer.nnunet_dtc_trainers import defined_by
from nnunet_dtc.trainers import names
from nnunet_dtc.trainers.names import TrainerName, TrainerNameError, UnknownSuffixError, parse
from nnunet_dtc.upsamplers import UPSAMPLERS

GOOD = {
    "nnUNetTrainerDTC": TrainerName(dtc=True),
    "nnUNetTrainerDTC_RF10": TrainerName(dtc=True, receptive_field=10),
    "nnUNetTrainerDTC_RF1": TrainerName(dtc=True, receptive_field=1),
    "nnUNetTrainerDTC_RF0": TrainerName(dtc=True, receptive_field=0),
    "nnUNetTrainerDTC_RF2.5": TrainerName(dtc=True, receptive_field=2.5),
    "nnUNetTrainerDTC_RF0.001": TrainerName(dtc=True, receptive_field=0.001),
    "nnUNetTrainerDTC_RF1000": TrainerName(dtc=True, receptive_field=1000),
    "nnUNetTrainerDTC_RFinf": TrainerName(dtc=True, receptive_field=math.inf),
    "nnUNetTrainerDTC_noweight": TrainerName(dtc=True, weight="none"),
    "nnUNetTrainerDTC_nosigmoid": TrainerName(dtc=True, weight="linear"),
    "nnUNetTrainerDTC_notanh": TrainerName(dtc=True, offset="linear"),
    "nnUNetTrainerDTC_noweight_notanh": TrainerName(dtc=True, weight="none", offset="linear"),
    "nnUNetTrainerDTC_nosigmoid_notanh": TrainerName(dtc=True, weight="linear", offset="linear"),
    "nnUNetTrainerDTC_250epochs": TrainerName(dtc=True, epochs=250),
    "nnUNetTrainerDTC_rep2": TrainerName(dtc=True, repetition=2),
    "nnUNetTrainerDTC_RF10_250epochs": TrainerName(dtc=True, receptive_field=10, epochs=250),
    "nnUNetTrainerDTC_RF10_noweight_notanh_7epochs_rep12": TrainerName(
        dtc=True, receptive_field=10, weight="none", offset="linear", epochs=7, repetition=12
    ),
    "nnUNetTrainerDTC_NoMirroring": TrainerName(dtc=True, mirroring=False),
    "nnUNetTrainerDTC_RF4_20epochs_NoMirroring_rep2": TrainerName(
        dtc=True, receptive_field=4, epochs=20, mirroring=False, repetition=2
    ),
    "nnUNetTrainerDTC_Adam1en3": TrainerName(dtc=True, optimizer="Adam1en3"),
    "nnUNetTrainerDTC_RF4_notanh_Adam3en4_9epochs_NoMirroring": TrainerName(
        dtc=True, receptive_field=4, offset="linear", optimizer="Adam3en4", epochs=9, mirroring=False
    ),
    "nnUNetTrainerLinear": TrainerName(upsampler="Linear"),
    "nnUNetTrainerDySample": TrainerName(upsampler="DySample"),
    "nnUNetTrainerDySampleDTC_RF10": TrainerName(upsampler="DySample", dtc=True, receptive_field=10),
    "nnUNetTrainerCARAFE_NoMirroring": TrainerName(upsampler="CARAFE", mirroring=False),
    "nnUNetTrainerFADE_5epochs_rep2": TrainerName(upsampler="FADE", epochs=5, repetition=2),
    "nnUNetTrainerSAPADTC_noweight": TrainerName(upsampler="SAPA", dtc=True, weight="none"),
    "nnUNetTrainerUNet": TrainerName(network="UNet"),
    "nnUNetTrainerUNetDTC_RF10": TrainerName(network="UNet", dtc=True, receptive_field=10),
    "nnUNetTrainerUNetLinearDTC_RFinf": TrainerName(
        network="UNet", upsampler="Linear", dtc=True, receptive_field=math.inf
    ),
    "nnUNetTrainerUNETR": TrainerName(network="UNETR"),
    "nnUNetTrainerUNETRDTC": TrainerName(network="UNETR", dtc=True),
    "nnUNetTrainerSwinUNETRV2": TrainerName(network="SwinUNETRV2"),
    "nnUNetTrainerSwinUNETRV2DTC_RF4_Adam1en3_9epochs": TrainerName(
        network="SwinUNETRV2", dtc=True, receptive_field=4, optimizer="Adam1en3", epochs=9
    ),
    "nnUNetTrainerNnMamba_NoMirroring_rep2": TrainerName(network="NnMamba", mirroring=False, repetition=2),
    "nnUNetTrainerNnMambaDTC_RF1": TrainerName(network="NnMamba", dtc=True, receptive_field=1),
    "nnUNetTrainerSegMamba_paper2d": TrainerName(network="SegMamba", optimizer="paper2d", epochs=40, mirroring=False),
    "nnUNetTrainerSegMambaDTC_RF10_notanh": TrainerName(
        network="SegMamba", dtc=True, receptive_field=10, offset="linear"
    ),
    "nnUNetTrainerUNetFADEDTC": TrainerName(network="UNet", upsampler="FADE", dtc=True),
    "nnUNetTrainer_paper2d": TrainerName(optimizer="paper2d", epochs=40, mirroring=False),
    "nnUNetTrainerUNetDySampleDTC_RF4_notanh_paper2d_2epochs_rep3": TrainerName(
        network="UNet",
        upsampler="DySample",
        dtc=True,
        receptive_field=4,
        offset="linear",
        optimizer="paper2d",
        epochs=2,
        mirroring=False,
        repetition=3,
    ),
    "nnUNetTrainerLinear_paper2d_1000epochs": TrainerName(
        upsampler="Linear", optimizer="paper2d", epochs=1000, mirroring=False
    ),
    "nnUNetTrainer_Adam1en3_9epochs": TrainerName(optimizer="Adam1en3", epochs=9),
    "nnUNetTrainer_7epochs_NoMirroring": TrainerName(epochs=7, mirroring=False),
    "nnUNetTrainer_7epochs": TrainerName(epochs=7),
    "nnUNetTrainer_rep2": TrainerName(repetition=2),
    "nnUNetTrainer_250epochs_rep3": TrainerName(epochs=250, repetition=3),
}

ONE_NAME = {  # another spelling, and the name to use
    "nnUNetTrainerDTC_RF2": "nnUNetTrainerDTC",
    "nnUNetTrainerDTC_RF2.0": "nnUNetTrainerDTC",
    "nnUNetTrainerDTC_RF02": "nnUNetTrainerDTC",
    "nnUNetTrainerDTC_RF10.0": "nnUNetTrainerDTC_RF10",
    "nnUNetTrainerDTC_RF.5": "nnUNetTrainerDTC_RF0.5",
    "nnUNetTrainerDTC_RF1e1": "nnUNetTrainerDTC_RF10",
    "nnUNetTrainerDTC_RFInfinity": "nnUNetTrainerDTC_RFinf",
    "nnUNetTrainerDTC_250epochs_RF10": "nnUNetTrainerDTC_RF10_250epochs",
    "nnUNetTrainerDTC_notanh_noweight": "nnUNetTrainerDTC_noweight_notanh",
    "nnUNetTrainerDTC_rep2_5epochs": "nnUNetTrainerDTC_5epochs_rep2",
    "nnUNetTrainerDTC_1000epochs": "nnUNetTrainerDTC",
    "nnUNetTrainerDTC_1epoch": "nnUNetTrainerDTC_1epochs",
    "nnUNetTrainerDTC_007epochs": "nnUNetTrainerDTC_7epochs",
    "nnUNetTrainerDTC_rep1": "nnUNetTrainerDTC",
    "nnUNetTrainer_rep1": "nnUNetTrainer",
    "nnUNetTrainer_rep02": "nnUNetTrainer_rep2",
    "nnUNetTrainer_NoMirroring": "nnUNetTrainerNoMirroring",
    "nnUNetTrainer_NoMirroring_rep2": "nnUNetTrainerNoMirroring_rep2",
    "nnUNetTrainer_Adam1en3_rep3": "nnUNetTrainerAdam1en3_rep3",
    "nnUNetTrainer_Adam1en3": "nnUNetTrainerAdam1en3",
    "nnUNetTrainerDTC_5epochs_Adam1en3": "nnUNetTrainerDTC_Adam1en3_5epochs",
    "nnUNetTrainerUNetDTC_RF2": "nnUNetTrainerUNetDTC",
    "nnUNetTrainerUNETRDTC_RF2": "nnUNetTrainerUNETRDTC",
    "nnUNetTrainerSegMamba_1000epochs": "nnUNetTrainerSegMamba",
    "nnUNetTrainerLinear_1000epochs": "nnUNetTrainerLinear",
    "nnUNetTrainerUNet_paper2d_40epochs": "nnUNetTrainerUNet_paper2d",
    "nnUNetTrainerUNet_5epochs_paper2d": "nnUNetTrainerUNet_paper2d_5epochs",
    "nnUNetTrainerUNet_paper2d_NoMirroring": "nnUNetTrainerUNet_paper2d",
    "nnUNetTrainerDTC_paper2d_RF10": "nnUNetTrainerDTC_RF10_paper2d",
    "nnUNetTrainerDTC_nomirroring": "nnUNetTrainerDTC_NoMirroring",
    "nnUNetTrainerDTC_NoMirroring_5epochs": "nnUNetTrainerDTC_5epochs_NoMirroring",
}

MALFORMED = {
    "nnUNetTrainerDTC_RF-3": "number >= 0 such as 10 or 2.5, or inf; got '-3'",
    "nnUNetTrainerDTC_RFx": "got 'x'",
    "nnUNetTrainerDTC_RF": "got ''",
    "nnUNetTrainerDTC_RFnan": "got 'nan'",
    "nnUNetTrainerDTC_RF-inf": "got '-inf'",
    "nnUNetTrainerDTC_RF+3": r"got '\+3'",
    "nnUNetTrainerDTC_0epochs": "whole number of epochs, at least 1; got '0'",
    "nnUNetTrainerDTC_2.5epochs": "got '2.5'",
    "nnUNetTrainerDTC_epochs": "got ''",
    "nnUNetTrainerDTC_-5epochs": "got '-5'",
    "nnUNetTrainerDTC_rep0": "number of the training, 2, 3, ..., at least 1; got '0'",
    "nnUNetTrainerDTC_rep": "got ''",
    "nnUNetTrainerDTC_noweight_nosigmoid": "only one of the suffixes for the weight",
    "nnUNetTrainerDTC_RF4_RF10": "only one of the suffixes for the receptive field",
    "nnUNetTrainer_RF10": "_RF10 belongs to DTC, use nnUNetTrainerDTC_RF10",
    "nnUNetTrainer_notanh": "belongs to DTC",
    "nnUNetTrainerUNetLinear_RF10_5epochs": "_RF10 belongs to DTC, use nnUNetTrainerUNetLinearDTC_RF10_5epochs",
    "nnUNetTrainerFADE_RFx": "got 'x'",
    "nnUNetTrainerUNETR_RF10": "_RF10 belongs to DTC, use nnUNetTrainerUNETRDTC_RF10",
    "nnUNetTrainerFADE_noweight": "_noweight belongs to DTC, use nnUNetTrainerFADEDTC_noweight",
    "nnUNetTrainerDTC_paper2d_Adam1en3": "only one of the suffixes for the optimizer",
    "nnUNetTrainerUNet_0epochs": "at least 1; got '0'",
}

NOT_OURS = [
    "nnUNetTrainer_Adam",
    "nnUNetTrainerAdam1en3",
    "nnUNetTrainer",
    "nnUNetTrainerDA5",
    "nnUNetTrainerDTCx",
    "nnUNetTrainer_mylab",
    "nnUNetTrainer_RFnet",
    "nnUNetTrainer_probabilisticOversampling_010",
    "nnUNetTrainerNoMirroring",
    "nnUNetTrainer_100epochs_mylab",
    "somebodysTrainerDTC",
    "nnUNetTrainerLinearUNet",
    "nnUNetTrainerDTCLinear",
    "nnUNetTrainerLinearDySample",
    "nnUNetTrainerUNet3D",
    "nnUNetTrainerUNetPlusPlus",
    "nnUNetTrainerunet",
    "nnUNetTrainerDysample",
    "nnUNetTrainerLinearWarmup",
    "nnUNetTrainer_UNet",
    "nnUNetTrainerSwinUNETR",
    "nnUNetTrainerSwinUNETRDTC",
    "nnUNetTrainerUNETRV2",
    "nnUNetTrainernnMamba",
    "__path__",
]
UNKNOWN_SUFFIX = [
    "nnUNetTrainerDTC_mylab",
    "nnUNetTrainerDTC_RF10_mylab",
    "nnUNetTrainerDTC__RF10",
    "nnUNetTrainerDTC_",
    "nnUNetTrainerUNet_3D",
    "nnUNetTrainerUNETR_V2",
    "nnUNetTrainerLinear_warmup",
    "nnUNetTrainerLinear_paper2D",
]


@pytest.mark.parametrize("name", GOOD)
def test_good_names_say_what_they_say_and_no_other_name_does(name):
    assert parse(name) == GOOD[name]
    assert str(GOOD[name]) == name
    assert "__" not in name


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("nnUNetTrainerUNETRLinear", "nnUNetTrainerLinear, nnUNetTrainerUNetLinear"),
        ("nnUNetTrainerSegMambaDySampleDTC_RF10", "nnUNetTrainerDySampleDTC, nnUNetTrainerUNetDySampleDTC"),
    ],
)
def test_networks_that_keep_their_upsampling(name, instead):
    with pytest.raises(TrainerNameError, match=rf"^{name}: \w+ keeps its own upsampling, use .*: {instead}$"):
        parse(name)


def test_the_log_says_what_the_name_says():
    assert repr(parse("nnUNetTrainerFADE_1epochs")) == "TrainerName(epochs=1, upsampler='FADE')"
    assert repr(parse("nnUNetTrainerDTC")) == "TrainerName(dtc=True, receptive_field=2.0)"


@pytest.mark.parametrize("name", ONE_NAME)
def test_one_model_has_one_name(name):
    with pytest.raises(TrainerNameError, match=f"instead of {name} use {ONE_NAME[name]}$"):
        parse(name)


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_values_fail_with_the_rule(name):
    with pytest.raises(ValueError, match=MALFORMED[name]):
        parse(name)


@pytest.mark.parametrize("name", NOT_OURS)
def test_other_peoples_names_are_not_ours(name):
    assert parse(name) is None
    with pytest.raises(AttributeError):
        getattr(trainers, name.replace("__path__", "__nothing__"))


@pytest.mark.parametrize("name", UNKNOWN_SUFFIX)
def test_an_unknown_suffix_is_an_attribute_error_with_a_hint(name):
    with pytest.raises(UnknownSuffixError, match="is no suffix of nnunet-dtc"):
        parse(name)
    assert not hasattr(trainers, name)


@pytest.mark.parametrize("name", GOOD)
def test_every_good_name_is_one_class(name):
    found = getattr(trainers, name)
    assert found.__name__ == name
    assert found.spec == GOOD[name]
    assert getattr(trainers, name) is found
    if "." not in name:  # pickle takes a point for an attribute of an attribute; nnU-Net passes names, not classes
        assert pickle.loads(pickle.dumps(found)) is found


def test_the_listed_examples_are_good_names():
    for part, _, example in names.PARTS:
        assert parse(example) is not None
        assert part.split("<")[0] in example


def test_every_upsampler_of_the_registry_is_there_in_2d_and_3d():
    assert list(registry.UPSAMPLERS) == list(UPSAMPLERS)
    for by_axes in UPSAMPLERS.values():
        assert [by_axes[axes].axes for axes in (2, 3)] == [2, 3]


def test_every_network_of_the_registry_is_there():
    assert {"UNet", *NETWORKS} == set(registry.NETWORKS)
    for name in NETWORKS:
        assert len(registry.NETWORKS[name].adamw) == 2


class SGD5en3(nnUNetTrainer):
    """An optimizer that nnU-Net has no trainer for."""

    initial_lr = 5e-3


def test_an_optimizer_is_one_entry(monkeypatch):
    """Of one that nnU-Net does not have, no name is refused in favour of a trainer that nobody has."""
    monkeypatch.setitem(registry.OPTIMIZERS, "SGD5en3", registry.OptimizerEntry("here:SGD5en3", "SGD"))
    monkeypatch.setitem(sys.modules, "here", SimpleNamespace(SGD5en3=SGD5en3))
    for name in ("nnUNetTrainer_SGD5en3", "nnUNetTrainerDTC_RF10_SGD5en3_7epochs", "nnUNetTrainerNnMamba_SGD5en3"):
        assert str(parse(name)) == name
        made = getattr(trainers, name)
        assert issubclass(made, SGD5en3)
        assert made.__mro__.index(SGD5en3) < made.__mro__.index(nnUNetTrainer)
    with pytest.raises(TrainerNameError, match=r"use nnUNetTrainerAdam1en3$"):
        parse("nnUNetTrainer_Adam1en3")


def nnunets_own_names():
    """Every trainer that the installed nnU-Net defines."""
    folder = Path(nnunetv2.__path__[0]) / "training" / "nnUNetTrainer"
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and file.name != "nnunet_dtc_trainers.py":
                yield node.name


def test_no_trainer_of_nnunet_has_a_network_or_an_upsampler_of_ours():
    """Those that the grammar can read at all are nnU-Net's network; the file that nnU-Net sees leaves them to it."""
    own = set(nnunets_own_names())
    assert len(own) > 50
    read = {name: parse(name) for name in own - set(MALFORMED) - set(ONE_NAME) if not unparsable(name)}
    assert read["nnUNetTrainer_250epochs"] == TrainerName(epochs=250)
    assert read["nnUNetTrainerNoMirroring"] is None
    for name, spec in read.items():
        assert spec is None or (spec.network, spec.upsampler, spec.dtc) == ("", "", False), name
        assert defined_by(name) is not None


def unparsable(name):
    """nnUNetTrainer_1epoch, for which the grammar has another spelling."""
    try:
        parse(name)
    except TrainerNameError:
        return True
    return False
