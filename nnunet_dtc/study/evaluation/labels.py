"""The organs that the numbers in a segmentation stand for, as nnU-Net's dataset.json defines them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nnunet_dtc.errors import NnunetDtcError
from nnunet_dtc.plugin.file_rules import is_printable, read_json, shown
from nnunet_dtc.plugin.nnunet_files import MAX_LABEL, check_file_ending, check_labels, label_value

__all__ = ["LabelSet", "Organ", "find_dataset_json", "labels_from_dataset_json", "parse_labels"]


@dataclass(frozen=True)
class Organ:
    """A structure that is scored.

    Attributes:
        name: its name.
        values: the values of its voxels. nnU-Net's regions have several, which may include the background's.
    """

    name: str
    values: tuple[int, ...]


@dataclass(frozen=True)
class LabelSet:
    """All organs and the ignore label.

    Attributes:
        organs: the organs, in the order of tables.
        ignore: the value of the voxels that are left out; None if there is no such value.

    Raises:
        NnunetDtcError: there is no organ, two have the same name, a name is empty or cannot be printed, or a value
            cannot be a label.
    """

    organs: tuple[Organ, ...]
    ignore: int | None = None

    def __post_init__(self) -> None:
        if not self.organs:
            raise NnunetDtcError("there must be at least one label besides the background")
        if len(set(self.names)) < len(self.organs):
            raise NnunetDtcError(f"every label needs a name of its own, got {', '.join(map(shown, self.names))}")
        for organ in self.organs:
            if not organ.name.strip() or not is_printable(organ.name):
                raise NnunetDtcError(f"names of labels must be printable and not empty, got {shown(organ.name)}")
            if set(organ.values) <= {0} or any(_not_a_value(value) and value != 0 for value in organ.values):
                raise NnunetDtcError(
                    f"label values must be integers above 0 and up to {MAX_LABEL} (labels have 8 or 16 bits), got "
                    f"{organ.name}: {shown(list(organ.values))}"
                )
            if self.ignore in organ.values:
                raise NnunetDtcError(f"{organ.name} has the value {self.ignore} of the ignore label")
        if self.ignore is not None and _not_a_value(self.ignore):
            raise NnunetDtcError(
                f"the ignore label must be an integer above 0 and up to {MAX_LABEL}, got {shown(self.ignore)}"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the organs."""
        return tuple(organ.name for organ in self.organs)

    @property
    def values(self) -> frozenset[int]:
        """Every value that a prediction may have, including the background's."""
        return frozenset({0}.union(*(organ.values for organ in self.organs)))

    @property
    def known_in_reference(self) -> frozenset[int]:
        """Every value that a reference may have: those of predictions and the ignore label."""
        return self.values if self.ignore is None else self.values | {self.ignore}


def labels_from_dataset_json(file: Path) -> tuple[LabelSet, str | None]:
    """Read the labels of a data set.

    Returns:
        The labels, regions as unions of their labels, and the ending of the data set's files; None without an ending.

    Raises:
        NnunetDtcError: the file is not a dataset.json; names it.
    """
    content = read_json(file)
    check_labels(content, file)
    organs = []
    for name, value in content["labels"].items():
        values = tuple(map(label_value, value if isinstance(value, list) else [value]))
        if name != "ignore" and set(values) != {0}:  # 0 is the background
            organs.append(Organ(name, values))
    ending = content.get("file_ending")
    if ending is not None:
        check_file_ending(ending, file)
    try:
        return LabelSet(tuple(organs), content["labels"].get("ignore")), ending
    except NnunetDtcError as error:
        raise NnunetDtcError(f"the labels in {file} cannot be used: {error}") from error


def parse_labels(text: str) -> LabelSet:
    """Parse labels: `1,2,3`, or with names `spleen=1,kidneys=2+3,ignore=4`.

    Raises:
        NnunetDtcError: the text has another form.

    Example:
        >>> labels = parse_labels("spleen=1,kidneys=2+3,ignore=4")
        >>> labels.organs[1], labels.ignore
        (Organ(name='kidneys', values=(2, 3)), 4)
    """
    organs, ignore = [], None
    for part in text.split(","):
        name, _, values = (piece.strip() for piece in part.rpartition("="))
        try:
            numbers = tuple(int(number) for number in values.split("+"))
        except ValueError:
            raise NnunetDtcError(f"labels are 1,2,3 or spleen=1,kidneys=2+3,ignore=4; got {text!r}") from None
        if name == "ignore" and len(numbers) == 1:
            ignore = numbers[0]
        elif numbers != (0,):
            organs.append(Organ(name or values, numbers))
    return LabelSet(tuple(organs), ignore)


def find_dataset_json(predictions: Path, labels: Path) -> Path | None:
    """Find the dataset.json that belongs to predictions and labels.

    nnU-Net writes it beside its predictions, into the model's folder, which holds the validation folders of the folds,
    and beside labelsTr, labelsTs and gt_segmentations.

    Returns:
        The first of these files that exists; None if there is none.
    """
    predictions, labels = Path(predictions).resolve(), Path(labels).resolve()
    folders = (predictions, *predictions.parents[:2], labels, labels.parent)
    return next((folder / "dataset.json" for folder in folders if (folder / "dataset.json").is_file()), None)


def _not_a_value(value: object) -> bool:
    return isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_LABEL
