"""Train nnU-Net's own network with and without DTC, and compare the two on unseen cases.

    python scripts/demo.py                                    synthetic CTs; minutes, also on a CPU
    python scripts/demo.py --dataset /data/Dataset017_BTCV    your data, in nnU-Net's raw layout

Every step is one of nnU-Net's own commands, which is shown when it runs. All files are in one folder. After an
interruption the same command continues. The results are the page comparison/index.html in that folder and files with
its numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table
from small_plans import PLANS_NAME as SMALL_PLANS
from small_plans import shrink_plans
from steps import Step, StepFailedError, on_cpus_of_their_own, run_steps

CONFIGURATION, FOLD = "3d_fullres", 0
PHANTOM_ID, PHANTOM_CASES, PHANTOM_TEST_CASES = 917, 32, 6
CPU_EPOCHS, GPU_EPOCHS = 5, 20
DEFAULT_TRAINERS = ("nnUNetTrainer", "nnUNetTrainerDTC")
DATASET_NAME = re.compile(r"Dataset(\d{3})_[^/]+")
OPTIONS_FILE, SECONDS_FILE = "demo.json", "seconds.json"


class DemoError(Exception):
    """An error that the user can correct."""


@dataclass(frozen=True)
class Options:
    """The options of a demo folder, which are the same in all runs."""

    dataset: str  # "phantom" or the absolute path of a data set
    trainers: tuple[str, ...]  # names without _<n>epochs and _NoMirroring
    epochs: int
    device: str  # cuda, cpu or mps

    @property
    def small(self) -> bool:
        return self.device != "cuda"

    @property
    def plans(self) -> str:
        return SMALL_PLANS if self.small else "nnUNetPlans"

    def trainer(self, name: str) -> str:
        """The name of the trainer with this number of epochs and without mirroring."""
        return short_training(name, self.epochs)


# ------------------------------------------------------------------------------------------------------------------
# Options.


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="demo.py",
        description="Train nnU-Net with and without DTC on synthetic or your own CTs, compare them on held-out cases.",
        epilog="After an interruption, run the same command again.",
    )
    default_folder = Path(__file__).resolve().parent.parent / "demo"
    parser.add_argument("--folder", type=Path, default=default_folder, help="folder for all files (%(default)s)")
    parser.add_argument(
        "--dataset",
        type=Path,
        help="a data set in nnU-Net's raw layout, .../Dataset<ID>_<Name>, instead of the synthetic one",
    )
    parser.add_argument(
        "--trainers",
        nargs="+",
        default=list(DEFAULT_TRAINERS),
        metavar="NAME",
        help="trainer names without _<n>epochs and NoMirroring (%(default)s)",
    )
    parser.add_argument(
        "--epochs", type=int, help=f"epochs of 250 iterations; {GPU_EPOCHS} on a GPU, else {CPU_EPOCHS}"
    )
    parser.add_argument("--device", choices=("auto", "cuda", "cpu", "mps"), default="auto")
    return parser.parse_args(arguments)


def check_dataset(path: Path) -> Path:
    """Check a data set in nnU-Net's raw layout, and return its absolute path.

    Raises:
        DemoError: it is not a data set in nnU-Net's raw layout, or has fewer than five training cases.
    """
    path = Path(os.path.abspath(path.expanduser()))  # not resolved, because the name of a link counts
    if not path.is_dir():
        raise DemoError(f"--dataset must be a folder, got {path}")
    if not DATASET_NAME.fullmatch(path.name):
        raise DemoError(f"--dataset must be named Dataset<three digits>_<Name>, got {path.name}")
    missing = [name for name in ("dataset.json", "imagesTr", "labelsTr") if not (path / name).exists()]
    if missing:
        raise DemoError(
            f"--dataset must contain dataset.json, imagesTr and labelsTr; {path} lacks {', '.join(missing)}"
        )
    try:
        described = json.loads((path / "dataset.json").read_text(encoding="utf-8"))
        ending, cases = described["file_ending"], int(described["numTraining"])
        described["labels"]["background"]
    except (ValueError, KeyError, TypeError) as error:
        raise DemoError(f"{path / 'dataset.json'} is not nnU-Net's: {error!r}") from error
    if cases < 5:
        raise DemoError(f"nnU-Net needs at least 5 training cases for its 5 folds, {path.name} has {cases}")
    if not list((path / "labelsTr").glob(f"*{ending}")):
        raise DemoError(f"no *{ending} file in {path / 'labelsTr'}")
    return path


def short_training(name: str, epochs: int) -> str:
    """The name of a trainer of nnunet-dtc with this number of epochs, AdamW, and without mirroring.

    With AdamW small organs are learned after hundreds of iterations, with nnU-Net's SGD after thousands (measured on
    the phantom). A short training has no time to learn mirrored organs as well.

    Raises:
        DemoError: the name already contains the epochs or the mirroring, or is not a trainer of nnunet-dtc.
    """
    from nnunet_dtc.trainers import names

    if re.search(r"_[^_]*epochs?(_|$)|NoMirroring", name, re.IGNORECASE):
        raise DemoError(
            f"give trainers without _<n>epochs (use --epochs) and without _NoMirroring, which the demo adds; got {name}"
        )
    try:
        spec = names.TrainerName() if name == names.PREFIX else names.parse(name)
    except (names.TrainerNameError, names.UnknownSuffixError) as error:
        raise DemoError(str(error)) from error
    if spec is None:
        raise DemoError(f"{name} is no trainer of nnunet-dtc; its names are {names.GRAMMAR}")
    optimizer = next(iter(names.OPTIMIZERS)) if spec.optimizer == names.TrainerName.optimizer else spec.optimizer
    return str(replace(spec, optimizer=optimizer, epochs=epochs, mirroring=False))


def check_options(args: argparse.Namespace, cuda: Callable[[], bool]) -> Options:
    """Check the options of the command line.

    Args:
        args: the parsed options.
        cuda: returns whether there is a GPU; called only if needed.

    Raises:
        DemoError: an option is not allowed.
    """
    if args.epochs is not None and args.epochs < 1:
        raise DemoError(f"--epochs must be at least 1, got {args.epochs}")
    trained = {short_training(name, args.epochs or CPU_EPOCHS) for name in args.trainers}
    if len(trained) != len(args.trainers):
        raise DemoError(f"--trainers must differ from each other, got {' '.join(args.trainers)}")
    dataset = "phantom" if args.dataset is None else str(check_dataset(args.dataset))
    device = args.device
    if device == "auto":
        device = "cuda" if cuda() else "cpu"
    elif device == "cuda" and not cuda():
        raise DemoError("--device cuda was asked for, but PyTorch sees no CUDA GPU; try --device cpu")
    epochs = args.epochs or (GPU_EPOCHS if device == "cuda" else CPU_EPOCHS)
    return Options(dataset, tuple(args.trainers), epochs, device)


def claim_folder(folder: Path, options: Options) -> None:
    """Create the demo's folder, or check that it is from an earlier run with the same options.

    Raises:
        DemoError: the folder has other content, or is from a run with other options.
    """
    file = folder / OPTIONS_FILE
    if folder.exists() and not folder.is_dir():
        raise DemoError(f"--folder must be a folder, got the file {folder}")
    if not file.exists():
        if folder.exists() and any(not entry.name.startswith(f".{file.name}.") for entry in folder.iterdir()):
            raise DemoError(f"{folder} is not empty and was not made by this demo: choose another --folder")
        folder.mkdir(parents=True, exist_ok=True)
        write_json(file, asdict(options))
        return
    found = read_json(file)
    if found is None:
        raise DemoError(f"{file} cannot be read: delete {folder} or choose another --folder")
    wanted = json.loads(json.dumps(asdict(options)))
    differing = [
        f"{key} is {found.get(key)!r} there and {wanted[key]!r} now" for key in wanted if found.get(key) != wanted[key]
    ]
    if differing:
        raise DemoError(
            f"{folder} was made with other options ({'; '.join(differing)}): use the same options, choose another "
            "--folder, or delete this one"
        )


# ------------------------------------------------------------------------------------------------------------------
# Steps that are already done are recognised by their results.


def write_json(file: Path, content: Any) -> None:
    from nnunet_dtc.files import write_whole

    write_whole(file, json.dumps(content, indent=4) + "\n")


def read_json(file: Path) -> dict[str, Any] | None:
    """The content of a JSON file; None if it does not exist or is incomplete because nnU-Net was ended."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def preprocessed_cases(folder: Path) -> int:
    """The number of preprocessed cases, which nnU-Net completes with a .pkl file."""
    return len(list(folder.glob("*.pkl")))


def labels_copied(copies: Path, labels: Path, cases: int, ending: str) -> bool:
    """Whether nnU-Net's copies of the labels for its validation are complete.

    Truncated copies are removed, because nnU-Net keeps copies that are newer than the labels.
    """
    found = list(copies.glob(f"*{ending}"))
    truncated = [
        f for f in found if (labels / f.name).is_file() and f.stat().st_size != (labels / f.name).stat().st_size
    ]
    for file in truncated:
        file.unlink()
    return len(found) == cases and not truncated


def training_state(fold: Path) -> str:
    """ "done", "interrupted" (there is a complete checkpoint to continue from) or "new"."""
    if (fold / "checkpoint_final.pth").is_file() and read_json(fold / "validation" / "summary.json") is not None:
        return "done"
    names = ("checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth")
    return "interrupted" if any(zipfile.is_zipfile(fold / name) for name in names) else "new"


def drop_broken_checkpoints(fold: Path) -> list[str]:
    """Remove incomplete checkpoints, zip files without the directory at their end, and return their names."""
    broken = [f for f in fold.glob("checkpoint_*.pth") if not zipfile.is_zipfile(f)]
    for file in broken:
        file.unlink()
    return [file.name for file in broken]


# ------------------------------------------------------------------------------------------------------------------
# The demo.


class Demo:
    """One demo folder and the steps that fill it."""

    def __init__(self, folder: Path, options: Options, console: Console) -> None:
        self.folder, self.options, self.console = folder, options, console
        self.raw, self.preprocessed = folder / "nnUNet_raw", folder / "nnUNet_preprocessed"
        self.results, self.logs = folder / "nnUNet_results", folder / "logs"
        # of every finished step, including those of earlier runs in this folder
        self.seconds: dict[str, float] = read_json(folder / SECONDS_FILE) or {}

    @property
    def exports(self) -> dict[str, str]:
        """The environment variables of every command."""
        from nnunet_dtc.plugin.registration import environment_value

        variables = {
            "nnUNet_raw": str(self.raw),
            "nnUNet_preprocessed": str(self.preprocessed),
            "nnUNet_results": str(self.results),
            "nnUNet_extTrainer": environment_value(),
        }
        if self.options.small:
            # Each further process takes seconds to import packages, and every worker takes a core from the network.
            variables |= {"nnUNet_def_n_proc": "1", "nnUNet_n_proc_DA": "1"}
        return variables

    @property
    def dataset(self) -> Path:
        """The data set inside the demo's nnUNet_raw."""
        if self.options.dataset == "phantom":
            return self.raw / f"Dataset{PHANTOM_ID:03d}_Phantom"
        return self.raw / Path(self.options.dataset).name

    @property
    def dataset_id(self) -> str:
        return str(int(DATASET_NAME.fullmatch(self.dataset.name)[1]))

    @property
    def description(self) -> dict[str, Any]:
        return json.loads((self.dataset / "dataset.json").read_text(encoding="utf-8"))

    @property
    def held_out(self) -> bool:
        """Whether the data set has test cases with labels; otherwise the validation cases of the fold are used."""
        ending = self.description["file_ending"]
        truths = {f.name for f in (self.dataset / "labelsTs").glob(f"*{ending}")}
        images = {f.name for f in (self.dataset / "imagesTs").glob(f"*_0000{ending}")}
        return bool(truths) and truths == {name.replace(f"_0000{ending}", ending) for name in images}

    def model(self, trainer: str, fold: int | None = None) -> Path:
        """The folder of a model, or of one of its folds."""
        from nnunet_dtc.plugin.model_folder import model_path

        names = self.dataset.name, self.options.trainer(trainer), self.options.plans, CONFIGURATION
        return self.results / model_path(*names, fold)

    def predictions(self, trainer: str) -> Path:
        if self.held_out:
            return self.folder / "predictions" / self.options.trainer(trainer)
        return self.model(trainer, FOLD) / "validation"

    def step(self, title: str, log: str, *command: str, name: str = "", epochs: int | None = None) -> Step:
        return Step(title, name or command[0], command, self.logs / f"{log}.txt", epochs)

    def run_steps(self, *steps: Step) -> None:
        """Run steps at the same time, and keep the time of each under the name of its log."""
        for step, seconds in zip(steps, run_steps(self.console, steps, self.exports), strict=True):
            self.keep_time(step.log.stem, seconds)

    def run_side_by_side(self, *steps: Step) -> None:
        """Run steps at the same time on separate CPUs; on a GPU one after the other."""
        for group in on_cpus_of_their_own(steps) if self.options.device == "cpu" else [[step] for step in steps]:
            self.run_steps(*group)

    def keep_time(self, step: str, seconds: float) -> None:
        self.seconds[step] = round(seconds, 1)
        write_json(self.folder / SECONDS_FILE, self.seconds)

    def say(self, text: str) -> None:
        self.console.print(f"[dim]{escape(text)}[/dim]")

    def run(self) -> None:
        self.console.print("To run these commands yourself:")
        for name, value in self.exports.items():
            self.console.print(f"[cyan]export {name}={escape(_quoted(value))}[/cyan]", soft_wrap=True)
        self.make_dataset()
        self.prepare()
        self.split()
        self.run_side_by_side(*(step for trainer in self.options.trainers if (step := self.training(trainer))))
        self.predict()
        self.compare()

    def make_dataset(self) -> None:
        if self.dataset.exists():
            self.say(f"\nThe data set already exists: {self.dataset}")
            return
        self.raw.mkdir(parents=True, exist_ok=True)
        if self.options.dataset != "phantom":
            bring_dataset(Path(self.options.dataset), self.dataset)
            self.console.print(f"\n[bold]Data set[/bold] {escape(self.options.dataset)}")
            return
        from nnunet_dtc.study.datasets.phantom import write_phantom

        self.console.print("\n[bold]Drawing synthetic abdominal CTs[/bold] with the 13 organs of BTCV")
        started = time.monotonic()
        with Progress(console=self.console, transient=True, disable=not self.console.is_terminal) as progress:
            bar = progress.add_task("  cases", total=None)
            write_phantom(
                self.raw,
                PHANTOM_ID,
                PHANTOM_CASES,
                PHANTOM_TEST_CASES,
                progress=lambda done, total: progress.update(bar, completed=done, total=total),
            )
        self.keep_time("0_phantom", time.monotonic() - started)
        self.console.print(
            f"  {PHANTOM_CASES} to train with, {PHANTOM_TEST_CASES} held out: {escape(str(self.dataset))}\n"
            f"[green]done[/green] in {self.seconds['0_phantom']:.0f} s"
        )

    def split(self) -> None:
        """Write the five folds that nnU-Net would draw, because two trainings that start together would both do so."""
        from nnunet_dtc.study.datasets.splits import five_folds, write_splits

        ending = self.description["file_ending"]
        cases = [file.name.removesuffix(ending) for file in (self.dataset / "labelsTr").glob(f"*{ending}")]
        write_splits(self.preprocessed / self.dataset.name / "splits_final.json", five_folds(cases))

    def prepare(self) -> None:
        """Plan and preprocess, on a CPU with small plans."""
        folder = self.preprocessed / self.dataset.name
        plans = folder / "nnUNetPlans.json"
        data = folder / f"{self.options.plans}_{CONFIGURATION}"
        cases, ending = int(self.description["numTraining"]), self.description["file_ending"]
        planned = read_json(folder / f"{self.options.plans}.json") is not None
        labelled = labels_copied(folder / "gt_segmentations", self.dataset / "labelsTr", cases, ending)
        if planned and labelled and preprocessed_cases(data) == cases:
            self.say("\nPlanning and preprocessing are already done.")
            return
        plan = ["nnUNetv2_plan_and_preprocess", "-d", self.dataset_id, "-c", CONFIGURATION]
        if not self.options.small:
            self.run_steps(self.step("Planning and preprocessing", "1_prepare", *plan, "--verify_dataset_integrity"))
        else:
            if read_json(plans) is None:
                plan += ["--verify_dataset_integrity", "--no_pp", "-npfp", "1"]
                self.run_steps(self.step("Planning", "1_plan", *plan))
            self.shrink(plans)
            prepare = ["nnUNetv2_preprocess", "-d", self.dataset_id, "-c", CONFIGURATION]
            prepare += ["-plans_name", SMALL_PLANS, "-np", "1"]
            self.run_steps(self.step("Preprocessing", "2_preprocess", *prepare))
        if not data.is_dir():
            raise DemoError(f"nnU-Net planned no {CONFIGURATION} for {self.dataset.name}; see the log in {self.logs}")

    def shrink(self, plans: Path) -> None:
        full = json.loads(plans.read_text(encoding="utf-8"))
        try:
            small = shrink_plans(full, CONFIGURATION)
        except ValueError as error:
            raise DemoError(f"nnU-Net's plans for {self.dataset.name} cannot be made small: {error}") from error
        before, after = full["configurations"][CONFIGURATION], small["configurations"][CONFIGURATION]
        write_json(plans.with_name(f"{SMALL_PLANS}.json"), small)
        table = Table(box=None, pad_edge=False)
        for heading in ("", "nnU-Net's plans", SMALL_PLANS):
            table.add_column(heading)
        for key, what in (("patch_size", "patch (z, y, x)"), ("spacing", "voxel (mm)"), ("batch_size", "batch")):
            table.add_row(what, _short(before[key]), _short(after[key]))
        for key, what in (("features_per_stage", "channels"), ("strides", "strides")):
            table.add_row(what, *(_short(plan["architecture"]["arch_kwargs"][key]) for plan in (before, after)))
        self.console.print(
            f"\n[bold]No GPU: training with small plans.[/bold] nnU-Net's own plans would take days on a CPU. "
            f"{SMALL_PLANS} is a copy of them with coarser voxels and a smaller network for all trainers "
            f"(-p {SMALL_PLANS} below). The numbers compare the trainers; nnU-Net's own plans achieve more.",
        )
        self.console.print(table)

    def training(self, trainer: str) -> Step | None:
        """The training of a trainer; None if it is already done."""
        name = self.options.trainer(trainer)
        fold = self.model(trainer, FOLD)
        for broken in drop_broken_checkpoints(fold):
            self.say(f"\n{broken} is incomplete and is removed.")
        state = training_state(fold)
        if state == "done":
            self.say(f"\n{name} is already trained.")
            return None
        command = ["nnUNetv2_train", self.dataset_id, CONFIGURATION, str(FOLD), "-tr", name, "-p", self.options.plans]
        command += ["-device", self.options.device]
        if state == "interrupted":
            self.say(f"\n{name} was interrupted and continues from its last checkpoint.")
            command.append("--c")
        return self.step(f"Training {name}", f"3_train_{name}", *command, name=trainer, epochs=self.options.epochs)

    def prediction(self, trainer: str) -> Step | None:
        """The prediction of the held-out cases; None if it is already done."""
        name, output = self.options.trainer(trainer), self.predictions(trainer)
        ending = self.description["file_ending"]
        wanted = {f.name for f in (self.dataset / "labelsTs").glob(f"*{ending}")}
        if wanted <= {f.name for f in output.glob(f"*{ending}")}:
            self.say(f"\nThe predictions of {name} already exist.")
            return None
        shutil.rmtree(output, ignore_errors=True)
        shutil.rmtree(_unfinished(output), ignore_errors=True)
        command = ["nnUNetv2_predict", "-d", self.dataset_id, "-c", CONFIGURATION, "-f", str(FOLD), "-tr", name]
        command += ["-p", self.options.plans, "-i", str(self.dataset / "imagesTs"), "-o", str(_unfinished(output))]
        command += ["-device", self.options.device]
        if self.options.small:
            command += ["-npp", "0", "-nps", "0"]
        return self.step(f"Predicting with {name}", f"4_predict_{name}", *command, name=trainer)

    def predict(self) -> None:
        """Predict the held-out cases if there are any."""
        if not self.held_out:
            return
        missing = {t: step for t in self.options.trainers if (step := self.prediction(t))}
        self.run_side_by_side(*missing.values())
        for trainer in missing:
            output = self.predictions(trainer)
            _unfinished(output).rename(output)

    def compare(self) -> None:
        """Compute scores, differences and their page with nnunet-dtc compare."""
        trainers, output = self.options.trainers, self.folder / "comparison"
        command = ["nnunet-dtc", "compare", *(str(self.model(t)) for t in trainers), "-f", str(FOLD)]
        if self.held_out:
            given = [f"{self.options.trainer(t)}={self.predictions(t)}" for t in trainers]
            command += ["--test", *(word for text in given for word in ("--predictions", text))]
        command += ["-o", str(output), "--overwrite"]
        self.run_steps(replace(self.step("Comparing", "5_compare", *command), shown=True))
        self.console.print(
            f"\n[bold]The comparison as a page:[/bold] {escape(str(output / 'index.html'))}", soft_wrap=True
        )
        if self.options.epochs < 100:
            self.say("After one short training each, it is chance which organs have been learned.")


def _unfinished(folder: Path) -> Path:
    """The name of a folder until it is complete."""
    return folder.with_name(f"{folder.name}.unfinished")


def bring_dataset(source: Path, target: Path) -> None:
    """Link the data set into the demo's folder, or copy it if links are not allowed."""
    source = source.resolve()
    try:
        target.symlink_to(source, target_is_directory=True)
    except OSError:
        unfinished = target.with_name(f".{target.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(source, unfinished)
        unfinished.rename(target)


def _short(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(_short(v) if not isinstance(v, list) else "x".join(map(str, v)) for v in value)
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def _quoted(text: str) -> str:
    return text if re.fullmatch(r"[\w./:\\+-]+", text) else "'" + text.replace("'", "'\\''") + "'"


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def main(arguments: Sequence[str] | None = None, console: Console | None = None) -> int:
    console = console or Console(highlight=False)
    folder = None
    started = time.monotonic()
    try:
        args = parse(arguments)
        folder = args.folder.expanduser().resolve()
        options = check_options(args, _cuda)
        claim_folder(folder, options)
        signal.signal(signal.SIGTERM, _interrupt)
        Demo(folder, options, console).run()
    except DemoError as error:
        console.print(f"[red]error:[/red] {escape(str(error))}", soft_wrap=True)
        return 2
    except OSError as error:  # no nnU-Net, no permission, no space
        what = f"{error.strerror}: {error.filename}" if error.strerror and error.filename else str(error)
        console.print(f"[red]error:[/red] {escape(what)}", soft_wrap=True)
        return 2
    except StepFailedError as error:
        console.print(f"\n[red]{escape(str(error))}[/red]; the end of its log:\n")
        console.print(escape(error.tail()), soft_wrap=True)
        console.print(f"\nThe complete log: {escape(str(error.log))}\nRun the same command again to continue.")
        return 1
    except KeyboardInterrupt:
        console.print("\nInterrupted. Run the same command again to continue.")
        return 130
    console.print(f"[green]All done[/green] in {(time.monotonic() - started) / 60:.1f} minutes.")
    return 0


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
