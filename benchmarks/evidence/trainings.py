"""The trainings of docs/evidence.md: which come next, their scores, and what follows from the scores.

    python benchmarks/evidence/trainings.py next hippocampus 6 > next.yaml    # a study of the next six
    nnunet-dtc study next.yaml -- --until predict_ensemble
    python benchmarks/evidence/trainings.py collect hippocampus next         # the folder of this study
    python benchmarks/evidence/trainings.py report                           # tables and a figure

The scores are in ``trainings.csv`` beside this file: one row for each training and class, with the means over the
held-out cases. So the study can go on where the models of earlier trainings are gone. ``next`` takes one repetition of
all arms after the other, in the order of ``hippocampus.yaml`` and ``isic2017.yaml``, without those in `DROPPED`.
``collect`` needs the models in ``nnUNet_results``, whose shifts it also measures.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch
import yaml
from matplotlib.figure import Figure

from nnunet_dtc.files import write_whole
from nnunet_dtc.study import evaluation
from nnunet_dtc.study.comparison.between_trainings import between_trainings
from nnunet_dtc.study.comparison.statistics import LEVEL, summarise
from nnunet_dtc.study.coordinates.forward_pass import find_coordinates
from nnunet_dtc.study.coordinates.image_patch import load_patch
from nnunet_dtc.study.coordinates.trained_model import load_model
from nnunet_dtc.study.figures.style import MUTED, named_rows, new_figure, series, style
from nnunet_dtc.trainers.names import split_repetition

HERE = Path(__file__).parent
TABLE = HERE / "trainings.csv"
FIGURE = HERE.parents[1] / "docs" / "evidence.svg"
DATA_SETS = {"hippocampus": "Hippocampus", "isic2017": "ISIC 2017"}
TOLERANCES = {"hippocampus": "1", "isic2017": "1voxel"}
METRICS = ["dice", "nsd"]
VANILLA, CONTROL = "nnUNetTrainer", "nnUNetTrainerDTC_RF0"
WITH_BLOCKS = re.compile("DTC|Guided|Alone")  # arms with DTC blocks, whose shifts are measured
# candidates dropped by the protocol's rule: no more trainings, but kept in the tables
DROPPED: tuple[str, ...] = ("nnUNetTrainerAlone", "nnUNetTrainerLogits")
SHIFT_CASES = 8  # held-out cases in which shifts are measured
SUFFIXES = re.compile(r"_Adam1en3_\d+epochs_NoMirroring$")


def study_of(data_set: str) -> dict:
    """The content of the study's file."""
    return yaml.safe_load((HERE / f"{data_set}.yaml").read_text())


def arm_of(trainer: str) -> tuple[str, int]:
    """The arm and the repetition of a trainer's name.

    Example:
        >>> arm_of("nnUNetTrainerDTC_RF0_Adam1en3_8epochs_NoMirroring_rep3")
        ('nnUNetTrainerDTC_RF0', 3)
    """
    first, repetition = split_repetition(trainer)
    found = SUFFIXES.search(first)
    if found is None:
        raise SystemExit(
            f"a trainer's name ends in _Adam1en3_<n>epochs_NoMirroring, perhaps with _rep<k>, got {trainer}"
        )
    return first[: found.start()], repetition


def read_table() -> pd.DataFrame:
    columns = ["data_set", "arm", "repetition", "label", "cases", *METRICS, "shift"]
    return pd.read_csv(TABLE) if TABLE.is_file() else pd.DataFrame(columns=columns)


def missing(data_set: str, table: pd.DataFrame) -> Iterator[str]:
    """The names of the trainers that the table lacks, one repetition after the other."""
    study = study_of(data_set)
    there = set(table.loc[table["data_set"] == data_set, ["arm", "repetition"]].itertuples(index=False, name=None))
    for repetition in range(1, study["repetitions"] + 1):
        for trainer in study["trainers"]:
            name = trainer if repetition == 1 else f"{trainer}_rep{repetition}"
            if arm_of(name) not in there and arm_of(name)[0] not in DROPPED:
                yield name


def next_study(data_set: str, count: int) -> str:
    """A study of the next trainings, as YAML."""
    names = list(missing(data_set, read_table()))[:count]
    if not names:
        raise SystemExit(f"all trainings of {data_set} are in {TABLE}")
    return yaml.safe_dump(study_of(data_set) | {"trainers": names, "repetitions": 1}, sort_keys=False)


def collect(data_set: str, folder: Path) -> None:
    """Score the held-out cases that a study has predicted, and add those trainings that the table lacks."""
    study = study_of(data_set)
    raw = Path(os.environ["nnUNet_raw"])
    (data,) = raw.glob(f"Dataset{study['dataset']:03d}_*")
    labels, ending = evaluation.labels_from_dataset_json(data / "dataset.json")
    wanted, rows = set(missing(data_set, read_table())), []
    for predictions in sorted((folder / "comparison" / "test" / "predictions").glob("*/ensemble")):
        if predictions.parent.name not in wanted:
            continue
        arm, repetition = arm_of(predictions.parent.name)
        pairs = evaluation.find_pairs(predictions, data / "labelsTs", ending)
        tolerance = evaluation.parse_tolerance(TOLERANCES[data_set])
        found = evaluation.evaluate_pairs(pairs, labels, [tolerance])
        (nsd,) = (key for key in found.metrics if key.startswith("nsd"))
        scores = found.scores.groupby("organ", sort=False)[["dice", nsd]].mean()
        shift = median_shift(study, data, predictions.parent.name) if WITH_BLOCKS.search(arm) else math.nan
        shown = "" if math.isnan(shift) else f", median shift {shift:.3f} voxels"
        print(f"{predictions.parent.name}: mean Dice {scores['dice'].mean():.4f}{shown}")
        for label, (dice, surface) in zip(scores.index, scores.to_numpy(), strict=True):
            numbers = {"cases": len(pairs), "dice": round(dice, 6), "nsd": round(surface, 6), "shift": round(shift, 4)}
            rows.append({"data_set": data_set, "arm": arm, "repetition": repetition, "label": label, **numbers})
    if not rows:
        raise SystemExit(f"{folder} has no predictions of trainings that {TABLE} lacks")
    order = {arm_of(name)[0]: number for number, name in enumerate(study["trainers"])}
    # read again, because the scores of the other data set may have been added
    table = pd.concat([read_table(), pd.DataFrame(rows)], ignore_index=True)
    table["order"] = table["arm"].map(order)
    table = table.sort_values(["data_set", "repetition", "order"], kind="stable").drop(columns="order")
    write_whole(TABLE, table.to_csv(index=False))


def median_shift(study: dict, data: Path, trainer: str) -> float:
    """The median length of the shifts in voxels of the stage's input, in the stage where it is largest.

    Over all positions of one patch of each of `SHIFT_CASES` held-out cases: the patch with the most foreground, which
    `load_patch` fills up where the image is smaller.
    """
    name = f"{trainer}__{study['plans']}__{study['configuration']}"
    model = load_model(Path(os.environ["nnUNet_results"]) / data.name / name, str(study["folds"]))
    lengths: dict[str, list[torch.Tensor]] = {}
    for label in sorted(file for file in (data / "labelsTs").iterdir() if not file.name.startswith("."))[:SHIFT_CASES]:
        case, dot, ending = label.name.partition(".")
        image = data / "imagesTs" / f"{case}_0000{dot}{ending}"
        for stage in find_coordinates(model, load_patch(model, [image], label)).stages:
            lengths.setdefault(stage.block, []).append(stage.shifts().norm(dim=1).flatten())
    return max(float(torch.cat(each).median()) for each in lengths.values())


def means_of_trainings(rows: pd.DataFrame) -> pd.DataFrame:
    """The means over the classes of each training."""
    return rows.groupby(["arm", "repetition"])[METRICS].mean()


def results(table: pd.DataFrame, data_set: str) -> pd.DataFrame:
    """For each arm, the trainings, means, standard deviation, shift, and difference to vanilla with its interval.

    Differences, intervals and p-values are those that ``nnunet-dtc compare`` finds between repeated trainings;
    ``p_holm`` is corrected over the arms.
    """
    rows = table[table["data_set"] == data_set]
    arms = [arm for arm in dict.fromkeys(arm_of(name)[0] for name in study_of(data_set)["trainers"])]
    arms = [arm for arm in arms if arm in set(rows["arm"])]
    scores = rows.rename(columns={"arm": "model", "repetition": "repeat", "label": "organ"}).assign(case="all", fold=0)
    of_training = means_of_trainings(rows)
    counts = {arm: len(of_training.loc[arm]) for arm in arms}
    summary = summarise(scores, ["dice"], arms, per_fold=False)
    noise = between_trainings(scores, ["dice"], counts, summary, per_fold=False).set_index("model")
    made = pd.DataFrame({"trainings": counts})
    for key in METRICS:
        made[key] = of_training[key].groupby("arm").mean()
    made["deviation"] = of_training["dice"].groupby("arm").std(ddof=1)
    made["shift"] = rows.groupby("arm")["shift"].mean()
    columns = ["mean", "low", "high", "p", "p_holm"]
    if VANILLA in arms:
        made = made.join(noise[columns])
    else:  # nothing to compare with yet
        made[columns] = math.nan
    return made


def markdown(made: pd.DataFrame) -> str:
    """The table of one data set, scores in points of 100 and shifts in voxels."""
    lines = [
        "| trainer | trainings | Dice | standard deviation | difference to vanilla (95 %) | p (Holm) | NSD | shift |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for arm, row in made.iterrows():
        difference = "" if math.isnan(row["mean"]) else "{:+.2f} ({:+.2f} to {:+.2f})".format(
            *(100 * row[key] for key in ("mean", "low", "high"))
        )  # fmt: skip
        cells = [f"`{arm}`", f"{row['trainings']:.0f}", f"{100 * row['dice']:.2f}", _number(100 * row["deviation"])]
        cells += [difference, _p_value(row["p_holm"]), f"{100 * row['nsd']:.2f}", _number(row["shift"])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _number(number: float) -> str:
    return "" if math.isnan(number) else f"{number:.2f}"


def _p_value(p: float) -> str:
    return "" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def gains(made: dict[str, pd.DataFrame]) -> list[str]:
    """The arms that count as a gain by the rule of the protocol."""

    def gains_here(table: pd.DataFrame, arm: str) -> bool:
        row = table.loc[arm]
        return row["mean"] > 0 and row["p_holm"] < LEVEL and row["dice"] > table.loc[CONTROL, "dice"]

    arms = set.intersection(*(set(table.index) for table in made.values())) - {VANILLA, CONTROL, *DROPPED}
    return sorted(arm for arm in arms if all(gains_here(table, arm) for table in made.values()))


def draw(made: dict[str, pd.DataFrame], table: pd.DataFrame) -> Figure:
    """The differences to the mean of vanilla: each training, and each arm with its interval; a panel for each data set.

    The squares of arms whose difference is significant are filled.

    Args:
        made: `results` of each data set.
        table: `read_table`.
    """
    with style():
        figure = new_figure(8.4, 1.3 + 0.42 * max(map(len, made.values())))
        panels = figure.subplots(1, len(made), squeeze=False)[0]
        for panel, (data_set, arms) in zip(panels, made.items(), strict=True):
            of_training = means_of_trainings(table[table["data_set"] == data_set])["dice"]
            colour, marker = series(1)
            for place, (arm, row) in enumerate(arms.iterrows()):
                single = 100 * (of_training[arm] - arms.loc[VANILLA, "dice"])
                panel.plot(
                    single, [place + 0.3] * len(single), "o", color=MUTED, markersize=4, alpha=0.5, label="a training"
                )
                if not math.isnan(row["mean"]):
                    interval = [100 * row["low"], 100 * row["high"]]
                    panel.plot(interval, [place, place], color=colour, linewidth=1.8, label="95 % interval")
                    is_significant = row["p_holm"] < LEVEL
                    looks = {"color": colour, "markerfacecolor": colour if is_significant else "white", "linestyle": ""}
                    what = f"mean, p (Holm) {'<' if is_significant else '>='} {LEVEL:g}"
                    panel.plot(100 * row["mean"], place, marker, label=what, **looks)
            panel.axvline(0, color=MUTED, linewidth=1.2, zorder=1)
            named_rows(panel, range(len(arms)), [arm.removeprefix(VANILLA) or VANILLA for arm in arms.index])
            panel.margins(y=0.1)
            panel.invert_yaxis()
            panel.set_title(DATA_SETS[data_set])
        figure.supxlabel("Dice: difference to the mean of nnUNetTrainer (points)", fontsize="medium")
        handles = [panel.get_legend_handles_labels() for panel in panels]
        by_label = {label: handle for pair in handles for handle, label in zip(*pair, strict=True)}
        figure.legend(by_label.values(), by_label, loc="outside upper center", ncols=len(by_label), frameon=False)
    return figure


def report() -> None:
    """Print the tables and write the figure."""
    table = read_table()
    made = {name: results(table, name) for name in DATA_SETS if name in set(table["data_set"])}
    for name, each in made.items():
        print(f"**{DATA_SETS[name]}**\n\n{markdown(each)}\n")
    waiting = {name: len(list(missing(name, table))) for name in DATA_SETS}
    if any(waiting.values()):
        print("not finished:", ", ".join(f"{count} trainings of {name} are missing" for name, count in waiting.items()))
    else:
        print("gains by the protocol's rule:", ", ".join(gains(made)) or "none")
    compared = {name: each for name, each in made.items() if each["mean"].notna().any()}
    if compared:
        with style():
            draw(compared, table).savefig(FIGURE, facecolor="white")
        print(f"wrote {FIGURE}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    following = commands.add_parser("next")
    following.add_argument("data_set", choices=DATA_SETS)
    following.add_argument("count", type=int)
    collecting = commands.add_parser("collect")
    collecting.add_argument("data_set", choices=DATA_SETS)
    collecting.add_argument("folder", type=Path)
    commands.add_parser("report")
    options = parser.parse_args()
    if options.command == "next":
        sys.stdout.write(next_study(options.data_set, options.count))
    elif options.command == "collect":
        collect(options.data_set, options.folder)
    else:
        report()


if __name__ == "__main__":
    main()
