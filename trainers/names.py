"""The grammar of trainer names: the name of a trainer is its whole configuration.

nnU-Net finds a trainer by its class name, writes that name into folders and checkpoints, and finds it again at
prediction. So everything that changes the network or the training stands in the name, one model has one name, and no
name contains ``__``, where nnU-Net splits. Standard library only.
"""

import math
import re
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation

PREFIX = "nnUNetTrainer"
GRAMMAR = (
    "nnUNetTrainer[DTC][_RF<r>][_noweight|_nosigmoid][_notanh][_Adam1en3|_Adam3en4][_<n>epochs][_NoMirroring][_rep<k>]"
)
DEFAULT_RECEPTIVE_FIELD = 2.0
DEFAULT_EPOCHS = 1000  # nnU-Net's
OPTIMIZERS = ("Adam1en3", "Adam3en4")  # as nnU-Net names its trainers with AdamW, learning rates 1e-3 and 3e-4

# part of the name, what it says, examples; a line each of what `nnunet-dtc trainers` prints
PARTS = (
    ("DTC", "DTC beside every transposed convolution of the planned U-Net, receptive field 2", "nnUNetTrainerDTC"),
    ("_RF<r>", "another receptive field, any number >= 0 or inf: shifts of up to r/4 voxels", "nnUNetTrainerDTC_RF2.5"),
    ("_noweight", "table 4: offsets without weights", "nnUNetTrainerDTC_RF10_noweight"),
    ("_nosigmoid", "table 4: weights without sigmoid", "nnUNetTrainerDTC_nosigmoid"),
    ("_notanh", "table 4: offsets without tanh", "nnUNetTrainerDTC_noweight_notanh"),
    (
        "_Adam1en3",
        "AdamW as nnU-Net's Adam1en3 and Adam3en4; with or without DTC",
        "nnUNetTrainerDTC_Adam1en3",
    ),
    ("_<n>epochs", "n epochs instead of 1000, saved often; with or without DTC", "nnUNetTrainer_7epochs"),
    (
        "_NoMirroring",
        "no mirroring, as nnU-Net's NoMirroring trainers; with or without DTC",
        "nnUNetTrainerDTC_NoMirroring",
    ),
    ("_rep<k>", "the same training again, k = 2, 3, ...; with or without DTC", "nnUNetTrainerDTC_RF10_rep2"),
)
NOTES = (
    "RF 2 has no suffix, RF 0 never shifts (the control with the same parameters), RF inf shifts up to half the map.",
    "One model has one name: the suffixes in this order, numbers without needless digits.",
)


class TrainerNameError(ValueError):
    """A name with a malformed value of a suffix of ours, or another spelling than the one a model has."""


class UnknownSuffixError(AttributeError):
    """A name that starts as ours, with a suffix that is not ours: perhaps somebody's own subclass."""


@dataclass(frozen=True)
class TrainerName:
    """What a trainer's name says. ``str()`` of it is the one name of that model.

    Attributes:
        dtc: whether the decoder has DTC blocks.
        receptive_field: RF of section 3.2 (with DTC).
        offset, weight: table 4's variants, see :func:`nnunet_dtc.deformable_upsample`.
        optimizer: one of nnU-Net's own, "SGD" or one of OPTIMIZERS.
        epochs: the number of epochs.
        mirroring: whether training and prediction mirror the images; nnU-Net does.
        repetition: 1 for the first training of a model, 2 for its repetition, ...
    """

    dtc: bool = False
    receptive_field: float = DEFAULT_RECEPTIVE_FIELD
    offset: str = "tanh"
    weight: str = "sigmoid"
    optimizer: str = "SGD"
    epochs: int = DEFAULT_EPOCHS
    mirroring: bool = True
    repetition: int = 1

    def __str__(self) -> str:
        if self in _NNUNETS_OWN:
            return _NNUNETS_OWN[self]
        name = PREFIX + "DTC" * self.dtc
        if self.receptive_field != DEFAULT_RECEPTIVE_FIELD:
            name += f"_RF{_plain_number(self.receptive_field)}"
        name += {"sigmoid": "", "none": "_noweight", "linear": "_nosigmoid"}[self.weight]
        name += "_notanh" * (self.offset == "linear")
        name += f"_{self.optimizer}" * (self.optimizer != "SGD")
        name += f"_{self.epochs}epochs" * (self.epochs != DEFAULT_EPOCHS)
        name += "_NoMirroring" * (not self.mirroring)
        name += f"_rep{self.repetition}" * (self.repetition != 1)
        return name


# a training that nnU-Net has under a name of its own: ours would be a second one
_NNUNETS_OWN = {
    TrainerName(mirroring=False): f"{PREFIX}NoMirroring",
    **{TrainerName(optimizer=optimizer): f"{PREFIX}{optimizer}" for optimizer in OPTIMIZERS},
}


def parse(name: str) -> TrainerName | None:
    """Read a trainer's name.

    Returns:
        What the name says, or None where it is nobody's business of ours: nnU-Net's own trainer, other people's names.

    Raises:
        TrainerNameError: a suffix of ours with a malformed value, or another spelling of a model's one name; says
            the rule or the name to use.
        UnknownSuffixError: a name that starts with ``nnUNetTrainerDTC`` and goes on with a suffix that is not ours.
    """
    if not name.startswith(PREFIX) or name == PREFIX:
        return None
    head, *suffixes = name.removeprefix(PREFIX).split("_")
    if head not in ("", "DTC"):
        return None
    spec = TrainerName(dtc=head == "DTC")
    seen: set[str] = set()
    for suffix in suffixes:
        if not spec.dtc and re.fullmatch(r"RF(?!(\d+(\.\d+)?|inf)$).*", suffix):
            return None  # nnUNetTrainer_RFsomething: without DTC a receptive field is ours only where it is one
        kind, change = _read_suffix(name, suffix)
        if kind is None and not spec.dtc:
            return None  # nnUNetTrainer_something
        if kind is None:
            raise UnknownSuffixError(
                f"{name}: _{suffix} is no suffix of nnunet-dtc; its names are {GRAMMAR} (see `nnunet-dtc trainers`). "
                "If it is a trainer of your own, its file must be in nnU-Net's trainer folder or on nnUNet_extTrainer."
            )
        if kind in seen:
            raise TrainerNameError(f"{name}: only one of the suffixes for the {kind} may be given; {GRAMMAR}")
        if not spec.dtc and kind not in ("optimizer", "epochs", "mirroring", "repetition"):
            raise TrainerNameError(f"{name}: _{suffix} belongs to DTC, use {PREFIX}DTC{name.removeprefix(PREFIX)}")
        seen.add(kind)
        spec = replace(spec, **change)
    if str(spec) != name:
        raise TrainerNameError(f"one model has one name: instead of {name} use {spec}")
    return spec


def _read_suffix(name: str, suffix: str) -> tuple[str | None, dict]:
    """What kind of suffix this is, None for one that is not ours, and what it changes."""
    if suffix.startswith("RF"):
        return "receptive field", {"receptive_field": _read_receptive_field(name, suffix.removeprefix("RF"))}
    if suffix in ("noweight", "nosigmoid"):
        return "weight", {"weight": {"noweight": "none", "nosigmoid": "linear"}[suffix]}
    if suffix == "notanh":
        return "offset", {"offset": "linear"}
    if suffix in OPTIMIZERS:
        return "optimizer", {"optimizer": suffix}
    if suffix.lower() == "nomirroring":  # nnU-Net writes nnUNetTrainer_250epochs_NoMirroring
        return "mirroring", {"mirroring": False}
    if epochs := re.fullmatch(r"([-+.\d]*)epochs?", suffix):
        return "epochs", {"epochs": _read_count(name, epochs[1], 1, "_<n>epochs takes a whole number of epochs")}
    if repetition := re.fullmatch(r"rep([-+.\d]*)", suffix):
        return "repetition", {
            "repetition": _read_count(name, repetition[1], 1, "_rep<k> takes the number of the training, 2, 3, ...")
        }
    return None, {}


def _read_receptive_field(name: str, text: str) -> float:
    try:
        number = float(text)
        Decimal(text)
    except (ValueError, InvalidOperation):
        number = math.nan
    if math.isnan(number) or number < 0 or text.startswith(("+", "-")) or "_" in text:
        raise TrainerNameError(
            f"{name}: _RF<r> takes a receptive field, a number >= 0 such as 10 or 2.5, or inf; got {text!r}"
        )
    return number


def _read_count(name: str, text: str, least: int, rule: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < least:
        raise TrainerNameError(f"{name}: {rule}, at least {least}; got {text!r}")
    return int(text)


def _plain_number(number: float) -> str:
    """Without exponent, trailing zeros or a point that says nothing: 10, 2.5, 0.001, inf."""
    if math.isinf(number):
        return "inf"
    text = format(Decimal(repr(number)), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text
