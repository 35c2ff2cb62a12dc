import math
import pickle

import pytest

from nnunet_dtc import trainers
from nnunet_dtc.trainers import names
from nnunet_dtc.trainers.names import TrainerName, TrainerNameError, UnknownSuffixError, parse

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
    "nnUNetTrainer_Adam1en3": "nnUNetTrainerAdam1en3",
    "nnUNetTrainerDTC_5epochs_Adam1en3": "nnUNetTrainerDTC_Adam1en3_5epochs",
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
    "__path__",
]
UNKNOWN_SUFFIX = [
    "nnUNetTrainerDTC_mylab",
    "nnUNetTrainerDTC_RF10_mylab",
    "nnUNetTrainerDTC__RF10",
    "nnUNetTrainerDTC_",
]


@pytest.mark.parametrize("name", GOOD)
def test_good_names_say_what_they_say_and_no_other_name_does(name):
    assert parse(name) == GOOD[name]
    assert str(GOOD[name]) == name
    assert "__" not in name


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
