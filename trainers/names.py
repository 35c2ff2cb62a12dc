"""The grammar of trainer names: the name of a trainer is its whole configuration.

nnU-Net finds a trainer by its class name, writes that name into folders and checkpoints, and finds it again at
prediction. So everything that changes the network or the training stands in the name, one model has one name, and no
name contains ``__``, where nnU-Net splits. What can stand in a name is in ``nnunet_dtc.registry``. Standard library
only.
"""

import math
import re
from dataclasses import dataclass, fields, replace
from decimal import Decimal, InvalidOperation
from typing import Any

from nnunet_dtc.registry import NETWORKS, OPTIMIZERS, UPSAMPLERS

PREFIX = "nnUNetTrainer"
DEFAULT_RECEPTIVE_FIELD = 2.0
DEFAULT_EPOCHS = 1000  # nnU-Net's
DEFAULT_OPTIMIZER = "default"  # the network's own: nnU-Net's SGD for the U-Nets, AdamW for the paper's others
PAPER2D = "paper2d"
PAPER2D_EPOCHS = 40  # of nnU-Net's 250 iterations: the paper's 10,000


GRAMMAR = (
    f"{PREFIX}[{'|'.join(NETWORKS)}][{'|'.join(UPSAMPLERS)}][DTC][_RF<r>][_noweight|_nosigmoid][_notanh]"
    f"[_{PAPER2D}|{'|'.join(f'_{optimizer}' for optimizer in OPTIMIZERS)}][_<n>epochs][_NoMirroring][_rep<k>]"
)

# part of the name, what it says, examples; a line each of what `nnunet-dtc trainers` prints
PARTS = (
    *((name, network.meaning, f"{PREFIX}{name}{network.example}") for name, network in NETWORKS.items()),
    *((name, upsampler.meaning, f"{PREFIX}{name}") for name, upsampler in UPSAMPLERS.items()),
    ("DTC", "DTC beside every upsampling of the network, receptive field 2", f"{PREFIX}DTC"),
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
    ("_rep<k>", "the same training again, k = 2, 3, ...; any trainer", f"{PREFIX}DTC_RF10_rep2"),
)
NOTES = (
    "RF 2 has no suffix, RF 0 never shifts (the control with the same parameters), RF inf shifts up to half the map.",
    "One model has one name: the suffixes in this order, numbers without needless digits.",
    f"{', '.join(list(UPSAMPLERS)[:-1])} and {list(UPSAMPLERS)[-1]} go into the planned U-Net and into UNet; the other "
    "networks keep their own upsampling.",
)


class TrainerNameError(ValueError):
    """A name with a malformed value of a suffix of ours, or another spelling than the one a model has."""


class UnknownSuffixError(AttributeError):
    """A name that starts as ours, with a suffix that is not ours: perhaps somebody's own subclass."""


@dataclass(frozen=True, repr=False)
class TrainerName:
    """What a trainer's name says. ``str()`` of it is the one name of that model.

    Attributes:
        network: one of NETWORKS, "" for the planned U-Net.
        upsampler: one of UPSAMPLERS, "" for the transposed convolutions (or what else the network has).
        dtc: whether the decoder has DTC blocks.
        receptive_field: RF of section 3.2 (with DTC).
        offset, weight: table 4's variants, see :func:`nnunet_dtc.deformable_upsample`.
        optimizer: DEFAULT_OPTIMIZER, one of OPTIMIZERS, or PAPER2D, which stands for the paper's recipe.
        epochs: the number of epochs.
        mirroring: whether training and prediction mirror the images; nnU-Net does, the paper's recipe does not.
        repetition: 1 for the first training of a model, 2 for its repetition, ...
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
        """What the name says beyond nnU-Net's own trainer, for logs."""
        said = [
            f for f in fields(self) if getattr(self, f.name) != f.default or (f.name == "receptive_field" and self.dtc)
        ]
        return f"TrainerName({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in said)})"

    def __str__(self) -> str:
        if nnunets_own := self._nnunets_own():
            return nnunets_own
        name = PREFIX + self.network + self.upsampler + "DTC" * self.dtc
        if self.receptive_field != DEFAULT_RECEPTIVE_FIELD:
            name += f"_RF{_plain_number(self.receptive_field)}"
        name += {"sigmoid": "", "none": "_noweight", "linear": "_nosigmoid"}[self.weight]
        name += "_notanh" * (self.offset == "linear")
        name += f"_{self.optimizer}" * (self.optimizer != DEFAULT_OPTIMIZER)
        paper2d = self.optimizer == PAPER2D
        name += f"_{self.epochs}epochs" * (self.epochs != (PAPER2D_EPOCHS if paper2d else DEFAULT_EPOCHS))
        name += "_NoMirroring" * (not self.mirroring and not paper2d)
        name += f"_rep{self.repetition}" * (self.repetition != 1)
        return name

    @property
    def deformation(self) -> dict[str, Any]:
        """The keyword arguments ``receptive_field``, ``offset`` and ``weight`` of DTC blocks."""
        return {"receptive_field": self.receptive_field, "offset": self.offset, "weight": self.weight}

    def _nnunets_own(self) -> str | None:
        """The name under which nnU-Net has this training itself: a name of ours would be a second one."""
        if self == TrainerName(mirroring=False):
            return f"{PREFIX}NoMirroring"
        if self.optimizer in OPTIMIZERS and self == TrainerName(optimizer=self.optimizer):
            return OPTIMIZERS[self.optimizer].nnunets_name
        return None


def parse(name: str) -> TrainerName | None:
    """Read a trainer's name.

    Returns:
        What the name says, or None where it is nobody's business of ours: nnU-Net's own trainer, other people's names.

    Raises:
        TrainerNameError: a suffix of ours with a malformed value, or another spelling of a model's one name; says
            the rule or the name to use.
        UnknownSuffixError: a name that starts as ours (``nnUNetTrainerDTC``, ``nnUNetTrainerUNetLinear``, ...) and goes
            on with a suffix that is not ours.
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
            return None  # nnUNetTrainer_RFsomething: there a receptive field is ours only where it is one
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


def _read_head(name: str, head: str) -> TrainerName | None:
    """What the part before the first suffix says, None where it is not ours. TrainerNameError for a network whose
    upsampling cannot be chosen."""
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
            f"goes into nnU-Net's planned U-Net and into the paper's: {', '.join(with_upsamplers)}"
        )
    return TrainerName(network=network, upsampler=upsampler, dtc=bool(dtc))


def _read_suffix(name: str, suffix: str) -> tuple[str | None, dict]:
    """What kind of suffix this is, None for one that is not ours, and what it changes."""
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
    """Without exponent, trailing zeros or a point that says nothing: 10, 2.5, 0.001, inf."""
    if math.isinf(number):
        return "inf"
    text = format(Decimal(repr(number)), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text
