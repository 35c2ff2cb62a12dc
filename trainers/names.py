"""The grammar of trainer names.

nnU-Net finds a trainer by its class name, writes the name into folders and checkpoints, and finds the trainer again for
prediction. Therefore the name contains everything that changes the network or the training, one model has one name, and
no name contains ``__``, where nnU-Net splits. The upsamplers, networks and optimizers are those of
``nnunet_dtc.registry``. Only the standard library is imported.
"""

import math
import re
from dataclasses import dataclass, fields, replace
from decimal import Decimal, InvalidOperation
from typing import Any

from nnunet_dtc.errors import NnunetDtcError
from nnunet_dtc.registry import NETWORKS, OPTIMIZERS, UPSAMPLERS

PREFIX = "nnUNetTrainer"
DEFAULT_RECEPTIVE_FIELD = 2.0
DEFAULT_EPOCHS = 1000  # nnU-Net's
DEFAULT_OPTIMIZER = "default"  # nnU-Net's SGD for the U-Nets, AdamW for the paper's other networks
PAPER2D = "paper2d"
PAPER2D_EPOCHS = 40  # 250 iterations each: the paper's 10,000

GRAMMAR = (
    f"{PREFIX}[{'|'.join(NETWORKS)}][{'|'.join(UPSAMPLERS)}][DTC][_RF<r>][_noweight|_nosigmoid][_notanh]"
    f"[_{PAPER2D}|{'|'.join(f'_{optimizer}' for optimizer in OPTIMIZERS)}][_<n>epochs][_NoMirroring][_rep<k>]"
)

# part of the name, its meaning, an example: the lines that `nnunet-dtc trainers` prints
PARTS = (
    *((name, network.meaning, f"{PREFIX}{name}{network.example}") for name, network in NETWORKS.items()),
    *((name, upsampler.meaning, f"{PREFIX}{name}") for name, upsampler in UPSAMPLERS.items()),
    ("DTC", "a DTC block around every upsampling of the network, receptive field 2", f"{PREFIX}DTC"),
    ("_RF<r>", "another receptive field, any number >= 0 or inf: shifts of up to r/4 voxels", f"{PREFIX}DTC_RF2.5"),
    ("_noweight", "table 4: offsets without weights", f"{PREFIX}DTC_RF10_noweight"),
    ("_nosigmoid", "table 4: weights without sigmoid", f"{PREFIX}DTC_nosigmoid"),
    ("_notanh", "table 4: offsets without tanh", f"{PREFIX}DTC_noweight_notanh"),
    (
        f"_{PAPER2D}",
        "the paper's 2D recipe: AdamW, 1e-4, 40 epochs (10,000 iterations), no augmentation; any trainer",
        f"{PREFIX}UNetDTC_{PAPER2D}",
    ),
    *((f"_{name}", f"{kind.meaning}; any trainer", f"{PREFIX}DTC_{name}") for name, kind in OPTIMIZERS.items()),
    ("_<n>epochs", "n epochs instead of 1000, saved often; any trainer", f"{PREFIX}_7epochs"),
    ("_NoMirroring", "no mirroring, as nnU-Net's NoMirroring trainers; any trainer", f"{PREFIX}DTC_NoMirroring"),
    ("_rep<k>", "a repetition of the training, k = 2, 3, ...; any trainer, also your own", f"{PREFIX}DTC_RF10_rep2"),
)
NOTES = (
    "RF 2 has no suffix. RF 0 never shifts (a control with the same parameters). RF inf shifts up to half the map.",
    "One model has one name: the suffixes have this order, and numbers have no needless digits.",
    f"{', '.join(list(UPSAMPLERS)[:-1])} and {list(UPSAMPLERS)[-1]} go into the planned U-Net and into UNet; the other "
    "networks keep their own upsampling.",
)


class TrainerNameError(NnunetDtcError):
    """A name of this package with a malformed suffix, or in another spelling than the one that the model has."""


class UnknownSuffixError(AttributeError):
    """A name that starts like this package's, with an unknown suffix. It may be a user's own subclass."""


@dataclass(frozen=True, repr=False)
class TrainerName:
    """The content of a trainer's name. ``str()`` returns the name.

    Attributes:
        dtc: whether the decoder has DTC blocks.
        receptive_field: RF of the DTC blocks (section 3.2).
        offset, weight: the variants of table 4, see :func:`nnunet_dtc.deformable_upsample`.
        optimizer: DEFAULT_OPTIMIZER, one of OPTIMIZERS, or PAPER2D for the paper's 2D recipe.
        epochs: the number of epochs.
        mirroring: whether images are mirrored in training and prediction, as nnU-Net does; the paper's recipe does not.
        repetition: 1 for the first training of a model, 2 for its first repetition, ...
        network: one of NETWORKS, or "" for the planned U-Net.
        upsampler: one of UPSAMPLERS, or "" for the network's own upsampling.

    Example:
        >>> str(TrainerName(dtc=True, receptive_field=10, epochs=250))
        'nnUNetTrainerDTC_RF10_250epochs'
    """

    dtc: bool = False
    receptive_field: float = DEFAULT_RECEPTIVE_FIELD
    offset: str = "tanh"
    weight: str = "sigmoid"
    optimizer: str = DEFAULT_OPTIMIZER
    epochs: int = DEFAULT_EPOCHS
    mirroring: bool = True
    repetition: int = 1
    network: str = ""
    upsampler: str = ""

    def __repr__(self) -> str:
        """The attributes that differ from nnU-Net's own trainer, for logs."""
        names = [field.name for field in fields(self) if getattr(self, field.name) != field.default]
        if self.dtc and "receptive_field" not in names:
            names.insert(1, "receptive_field")  # behind dtc
        return f"TrainerName({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"

    def __str__(self) -> str:
        repetition = f"_rep{self.repetition}" if self.repetition != 1 else ""
        if nnunets_own := replace(self, repetition=1)._nnunets_own():
            return nnunets_own + repetition
        paper2d = self.optimizer == PAPER2D
        suffixes = {
            f"_RF{_plain_number(self.receptive_field)}": self.receptive_field != DEFAULT_RECEPTIVE_FIELD,
            "_noweight": self.weight == "none",
            "_nosigmoid": self.weight == "linear",
            "_notanh": self.offset == "linear",
            f"_{self.optimizer}": self.optimizer != DEFAULT_OPTIMIZER,
            f"_{self.epochs}epochs": self.epochs != (PAPER2D_EPOCHS if paper2d else DEFAULT_EPOCHS),
            "_NoMirroring": not self.mirroring and not paper2d,
        }
        head = f"{PREFIX}{self.network}{self.upsampler}{'DTC' if self.dtc else ''}"
        return head + "".join(suffix for suffix, stands in suffixes.items() if stands) + repetition

    @property
    def deformation(self) -> dict[str, Any]:
        """The keyword arguments ``receptive_field``, ``offset`` and ``weight`` of DTC blocks."""
        return {"receptive_field": self.receptive_field, "offset": self.offset, "weight": self.weight}

    def _nnunets_own(self) -> str | None:
        """The name of nnU-Net's own trainer that does the same, or None."""
        if self == TrainerName(mirroring=False):
            return f"{PREFIX}NoMirroring"
        if self.optimizer in OPTIMIZERS and self == TrainerName(optimizer=self.optimizer):
            return OPTIMIZERS[self.optimizer].nnunets_name
        return None


def parse(name: str) -> TrainerName | None:
    """Parse a trainer's name.

    Args:
        name: such as "nnUNetTrainerDTC_RF10".

    Returns:
        The content of the name, or None for nnU-Net's own trainer and for trainers of others.

    Raises:
        TrainerNameError: a suffix has a malformed value, or the model has another name. The message gives the rule or
            the name to use.
        UnknownSuffixError: the name starts like this package's (``nnUNetTrainerDTC``, ``nnUNetTrainerUNetLinear``, ...)
            but has an unknown suffix.

    Example:
        >>> parse("nnUNetTrainerUNetLinearDTC_RF10")
        TrainerName(dtc=True, receptive_field=10.0, network='UNet', upsampler='Linear')
        >>> print(parse("nnUNetTrainerDA5"))
        None
    """
    if not name.startswith(PREFIX) or name == PREFIX:
        return None
    head, *suffixes = name.removeprefix(PREFIX).split("_")
    spec = _read_head(name, head)
    if spec is None:
        return None
    seen: set[str] = set()
    for suffix in suffixes:
        if not head and re.fullmatch(r"RF(?!(\d+(\.\d+)?|inf)$).*", suffix):
            return None  # nnUNetTrainer_RFsomething, which is no receptive field
        kind, change = _read_suffix(name, suffix)
        if kind is None and not head:
            return None  # nnUNetTrainer_something
        if kind is None:
            raise UnknownSuffixError(
                f"{name}: _{suffix} is no suffix of nnunet-dtc; its names are {GRAMMAR} (see `nnunet-dtc trainers`). "
                "If it is a trainer of your own, its file must be in nnU-Net's trainer folder or on nnUNet_extTrainer."
            )
        if kind in seen:
            raise TrainerNameError(f"{name}: only one of the suffixes for the {kind} may be given; {GRAMMAR}")
        if not spec.dtc and kind in ("receptive field", "weight", "offset"):
            with_dtc = f"{PREFIX}{head}DTC{name.removeprefix(PREFIX + head)}"
            raise TrainerNameError(f"{name}: _{suffix} belongs to DTC, use {with_dtc}")
        seen.add(kind)
        spec = replace(spec, **change)
    if spec.optimizer == PAPER2D:
        spec = replace(spec, mirroring=False, epochs=spec.epochs if "epochs" in seen else PAPER2D_EPOCHS)
    if str(spec) != name:
        raise TrainerNameError(f"one model has one name: instead of {name} use {spec}")
    return spec


def is_class_name(text: str) -> bool:
    """Whether a text can be the name of a trainer: an identifier, or one with a receptive field that has decimals.

    Example:
        >>> is_class_name("nnUNetTrainerDTC_RF2.5_rep2"), is_class_name("nnUNetTrainer.DTC")
        (True, False)
    """
    return re.fullmatch(r"[A-Za-z_]\w*(_RF\d+\.\d+(_\w+)?)?", text, re.ASCII) is not None


def split_repetition(name: str) -> tuple[str, int]:
    """The name without `_rep<k>`, and k, which is 1 without it. The name may be that of any trainer.

    Example:
        >>> split_repetition("nnUNetTrainerDA5_rep2")
        ('nnUNetTrainerDA5', 2)
        >>> split_repetition("nnUNetTrainerDA5")
        ('nnUNetTrainerDA5', 1)
    """
    found = re.fullmatch(r"(?!.*_rep\d+_rep)(.+)_rep([2-9]|[1-9]\d+)", name, flags=re.ASCII)
    return (name, 1) if found is None else (found[1], int(found[2]))


def _read_head(name: str, head: str) -> TrainerName | None:
    """Parse the part before the first suffix. None if it is not of this package.

    Raises:
        TrainerNameError: it has an upsampler, and a network whose upsampling cannot be chosen.
    """
    networks, upsamplers = ("|".join(map(re.escape, table)) for table in (NETWORKS, UPSAMPLERS))
    found = re.fullmatch(f"({networks})?({upsamplers})?(DTC)?", head)
    if found is None:
        return None
    network, upsampler, dtc = found.groups(default="")
    if network and upsampler and not NETWORKS[network].upsamplers:
        with_upsamplers = [f"{PREFIX}{upsampler}{dtc}"]
        with_upsamplers += [f"{PREFIX}{other}{upsampler}{dtc}" for other in NETWORKS if NETWORKS[other].upsamplers]
        raise TrainerNameError(
            f"{name}: {network} keeps its own upsampling, use {PREFIX}{network} or {PREFIX}{network}DTC; {upsampler} "
            f"can be used in nnU-Net's planned U-Net and in the paper's: {', '.join(with_upsamplers)}"
        )
    return TrainerName(network=network, upsampler=upsampler, dtc=bool(dtc))


def _read_suffix(name: str, suffix: str) -> tuple[str | None, dict]:
    """The kind of a suffix, None if it is unknown, and the attributes that it sets."""
    if suffix.startswith("RF"):
        return "receptive field", {"receptive_field": _read_receptive_field(name, suffix.removeprefix("RF"))}
    if suffix in ("noweight", "nosigmoid"):
        return "weight", {"weight": {"noweight": "none", "nosigmoid": "linear"}[suffix]}
    if suffix == "notanh":
        return "offset", {"offset": "linear"}
    if suffix in (*OPTIMIZERS, PAPER2D):
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
    """A number without exponent and needless digits: 10, 2.5, 0.001, inf."""
    if math.isinf(number):
        return "inf"
    text = format(Decimal(repr(number)), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text
