"""Prepare the two data sets of docs/evidence.md: raw layout, small plans, one fixed split, and preprocessed cases.

    python benchmarks/evidence/prepare.py DATA FOLDER

DATA contains ``hippocampus`` (volumes of the Medical Segmentation Decathlon's Task04_Hippocampus, unchanged) and
``isic2017`` (images of the ISIC 2017 challenge, part 1, as PNG of 128 x 128 pixels), each with the folders ``images``
and ``labels``, where an image and its label have the same name and size. The labels are those of `DATA_SETS`. Only the
cases in ``cases.yaml`` are used. FOLDER gets ``nnUNet_raw``, ``nnUNet_preprocessed`` and ``nnUNet_results``. The split
is drawn with a fixed seed from the sorted names, so that it is the same everywhere. What is prepared already is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK
import yaml

PLANS = "nnUNetPlansEvidence"
SEED = 2026


@dataclass(frozen=True)
class DataSet:
    """One of the two data sets.

    Attributes:
        number, name: nnU-Net's.
        source: the folder in DATA.
        ending: ending of the files.
        labels, channels: of ``dataset.json``.
        validation, held_out: number of cases; the others are for training.
        configuration: nnU-Net's name.
        network: the changed entries of ``arch_kwargs``.
        patch_size, batch_size: patch size and batch size of the small plans.
    """

    number: int
    name: str
    source: str
    ending: str
    labels: dict[str, int]
    channels: dict[str, str]
    validation: int
    held_out: int
    configuration: str
    network: dict[str, object]
    patch_size: list[int]
    batch_size: int

    @property
    def folder(self) -> str:
        return f"Dataset{self.number:03d}_{self.name}"


DATA_SETS = (
    DataSet(
        number=4,
        name="Hippocampus",
        source="hippocampus",
        ending=".nii.gz",
        labels={"background": 0, "anterior": 1, "posterior": 2},
        channels={"0": "MRI"},
        validation=6,
        held_out=20,
        configuration="3d_fullres",
        network={
            "n_stages": 4,
            "features_per_stage": [8, 16, 32, 64],
            "kernel_sizes": [[3, 3, 3]] * 4,
            "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]],
            "n_conv_per_stage": [1, 2, 2, 2],
            "n_conv_per_stage_decoder": [1, 1, 1],
        },
        patch_size=[40, 56, 40],
        batch_size=2,
    ),
    DataSet(
        number=117,
        name="ISIC2017",
        source="isic2017",
        ending=".png",
        labels={"background": 0, "lesion": 1},
        channels={"0": "R", "1": "G", "2": "B"},
        validation=60,
        held_out=300,
        configuration="2d",
        network={
            "n_stages": 5,
            "features_per_stage": [8, 16, 32, 64, 64],
            "kernel_sizes": [[3, 3]] * 5,
            "strides": [[1, 1], [2, 2], [2, 2], [2, 2], [2, 2]],
            "n_conv_per_stage": [1, 2, 2, 2, 2],
            "n_conv_per_stage_decoder": [1, 1, 1, 1],
        },
        patch_size=[128, 128],
        batch_size=6,
    ),
)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", choices=[each.source for each in DATA_SETS])
    options = parser.parse_args(arguments)
    chosen = [each for each in DATA_SETS if options.only in (None, each.source)]
    cases = yaml.safe_load(Path(__file__).with_name("cases.yaml").read_text())
    for each in chosen:
        try:
            check(each, options.data / each.source, cases[each.source])
            check_raw(each, cases[each.source], options.folder / "nnUNet_raw" / each.folder)
        except ValueError as error:
            parser.error(str(error))
    for each in chosen:
        prepare(each, options.data / each.source, cases[each.source], options.folder.absolute())


def check(each: DataSet, source: Path, names: list[str]) -> None:
    """Raise a ValueError if a file is missing, or if it has another size or other labels than the data set's."""
    files = [source / part / f"{name}{each.ending}" for part in ("images", "labels") for name in names]
    if missing := [str(file) for file in files if not file.is_file()]:
        raise ValueError(f"DATA must contain all cases of cases.yaml, got no {missing[0]} ({len(missing)} are missing)")
    for image, label in zip(files[: len(names)], files[len(names) :], strict=True):
        size = size_of(image)
        if each.configuration == "2d" and size != tuple(reversed(each.patch_size)):
            raise ValueError(f"the images of {each.source} must have {each.patch_size} pixels, got {size} in {image}")
        labels = SimpleITK.ReadImage(str(label))
        if labels.GetSize() != size:
            raise ValueError(f"a label must be as large as its image, got {labels.GetSize()} in {label}, not {size}")
        values = np.unique(SimpleITK.GetArrayFromImage(labels))
        if not set(values.tolist()) <= set(each.labels.values()):
            raise ValueError(f"labels must be among {sorted(each.labels.values())}, got {values.tolist()} in {label}")


def size_of(file: Path) -> tuple[int, ...]:
    """The size of an image, (x, y) or (x, y, z)."""
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(file))
    reader.ReadImageInformation()
    return reader.GetSize()


def check_raw(each: DataSet, names: list[str], raw: Path) -> None:
    """Raise a ValueError if FOLDER has this data set already, of other cases."""
    if not (raw / "dataset.json").is_file():
        return
    split = draw(each, sorted(names))
    for part, wanted in (("labelsTr", split["train"] + split["val"]), ("labelsTs", split["test"])):
        found = {file.name.removesuffix(each.ending) for file in (raw / part).glob(f"*{each.ending}")}
        if found != set(wanted):
            raise ValueError(
                f"FOLDER must have no {each.folder} or one of the cases of cases.yaml, got {raw / part} with "
                f"{len(found - set(wanted))} other cases and without {len(set(wanted) - found)}"
            )


def prepare(each: DataSet, source: Path, names: list[str], folder: Path) -> None:
    """Write, plan and preprocess a data set."""
    raw, preprocessed = (folder / part / each.folder for part in ("nnUNet_raw", "nnUNet_preprocessed"))
    split = draw(each, sorted(names))
    if not (raw / "dataset.json").is_file():
        write_raw(each, source, split, raw)
    if not (preprocessed / "nnUNetPlans.json").is_file():
        nnunet(folder, "nnUNetv2_plan_and_preprocess", "-d", each.number, "--no_pp", "-npfp", 1)
    plans = json.loads((preprocessed / "nnUNetPlans.json").read_text())
    (preprocessed / f"{PLANS}.json").write_text(json.dumps(small_plans(each, plans), indent=4))
    fold = {part: split[part] for part in ("train", "val")}
    (preprocessed / "splits_final.json").write_text(json.dumps([fold], indent=4))
    if len(list((preprocessed / f"{PLANS}_{each.configuration}").glob("*.pkl"))) < len(split["train"] + split["val"]):
        nnunet(
            folder, "nnUNetv2_preprocess", "-d", each.number, "-plans_name", PLANS, "-c", each.configuration, "-np", 1
        )


def draw(each: DataSet, names: list[str]) -> dict[str, list[str]]:
    """The names of the cases for training, validation and held out."""
    shuffled = [names[index] for index in np.random.default_rng(SEED).permutation(len(names))]
    test, rest = shuffled[: each.held_out], shuffled[each.held_out :]
    return {"test": sorted(test), "val": sorted(rest[: each.validation]), "train": sorted(rest[each.validation :])}


def write_raw(each: DataSet, source: Path, split: dict[str, list[str]], raw: Path) -> None:
    for part, names in (("Tr", split["train"] + split["val"]), ("Ts", split["test"])):
        for kind, suffix in (("images", "_0000"), ("labels", "")):
            (raw / f"{kind}{part}").mkdir(parents=True, exist_ok=True)
            for name in names:
                shutil.copyfile(
                    source / kind / f"{name}{each.ending}", raw / f"{kind}{part}" / f"{name}{suffix}{each.ending}"
                )
    described = {
        "channel_names": each.channels,
        "labels": each.labels,
        "numTraining": len(split["train"] + split["val"]),
        "file_ending": each.ending,
    }
    (raw / "dataset.json").write_text(json.dumps(described, indent=4))


def small_plans(each: DataSet, plans: dict) -> dict:
    """nnU-Net's plans with one configuration that a CPU can train. Everything that is not named here is nnU-Net's."""
    config = plans["configurations"][each.configuration]
    config["architecture"]["arch_kwargs"].update(each.network)
    config["patch_size"], config["batch_size"] = each.patch_size, each.batch_size
    config["data_identifier"] = f"{PLANS}_{each.configuration}"
    return {**plans, "plans_name": PLANS, "configurations": {each.configuration: config}}


def nnunet(folder: Path, *command: object) -> None:
    environment = {part: str(folder / part) for part in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    words = [str(word) for word in command]
    words[0] = str(Path(sys.executable).with_name(words[0]))
    subprocess.run(words, check=True, env={"nnUNet_n_proc_DA": "1", **os.environ, **environment})


if __name__ == "__main__":
    main()
