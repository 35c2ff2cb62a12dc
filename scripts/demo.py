"""Train nnU-Net's own network with and without DTC, and compare the two on unseen cases.

    python scripts/demo.py                                    synthetic CTs; minutes, also on a CPU
    python scripts/demo.py --dataset /data/Dataset017_BTCV    your data, in nnU-Net's raw layout

The demo is a small study: it makes the data set, on a CPU small plans, and a STUDY.yaml, which `nnunet-dtc study` runs.
Every command of nnU-Net is shown when it runs. All files are in one folder. After an interruption the same command
continues. The results are the page comparison/index.html in that folder and the pages that it links.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from subprocess import STDOUT, TimeoutExpired
from typing import Any, BinaryIO

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table
from rich.text import Text
from small_plans import PLANS_NAME as SMALL_PLANS
from small_plans import shrink_plans

CONFIGURATION, FOLD = "3d_fullres", 0
PHANTOM_ID, PHANTOM_CASES, PHANTOM_TEST_CASES = 917, 32, 6
CPU_EPOCHS, GPU_EPOCHS = 5, 20
DEFAULT_TRAINERS = ("nnUNetTrainer", "nnUNetTrainerDTC")
DATASET_NAME = re.compile(r"Dataset(\d{3})_[^/]+")
OPTIONS_FILE = "demo.json"
EPOCH = re.compile(r": Epoch (\d+) *$")
NEWS = re.compile(r": ((?:train_loss|Pseudo dice|Epoch time)[: ].*)|([Pp]redicting \S+)")
POLL_S = 0.5


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


# ------------------------------------------------------------------------------------------------------------------
# The demo.


class CommandFailedError(RuntimeError):
    """A command that ended with an error; its output is in `log`."""

    def __init__(self, name: str, code: int, log: Path) -> None:
        super().__init__(f"{name} ended with exit code {code}")
        self.log = log

    def tail(self, lines: int = 40) -> str:
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


class Demo:
    """One demo folder, and what fills it."""

    def __init__(self, folder: Path, options: Options, console: Console) -> None:
        self.folder, self.options, self.console = folder, options, console
        self.raw, self.preprocessed = folder / "nnUNet_raw", folder / "nnUNet_preprocessed"
        self.results, self.logs = folder / "nnUNet_results", folder / "logs"
        self.study = folder / "comparison.yaml"

    @property
    def exports(self) -> dict[str, str]:
        """The environment variables of every command."""
        from nnunet_dtc.plugin.registration import environment_value

        return {
            "nnUNet_raw": str(self.raw),
            "nnUNet_preprocessed": str(self.preprocessed),
            "nnUNet_results": str(self.results),
            "nnUNet_extTrainer": environment_value(),
        }

    @property
    def dataset(self) -> Path:
        """The data set inside the demo's nnUNet_raw."""
        if self.options.dataset == "phantom":
            return self.raw / f"Dataset{PHANTOM_ID:03d}_Phantom"
        return self.raw / Path(self.options.dataset).name

    @property
    def held_out(self) -> bool:
        """Whether the data set has test cases with labels; otherwise the validation cases of the fold are used."""
        ending = json.loads((self.dataset / "dataset.json").read_text(encoding="utf-8"))["file_ending"]
        truths = {f.name for f in (self.dataset / "labelsTs").glob(f"*{ending}")}
        images = {f.name for f in (self.dataset / "imagesTs").glob(f"*_0000{ending}")}
        return bool(truths) and truths == {name.replace(f"_0000{ending}", ending) for name in images}

    def run(self) -> None:
        self.console.print("To run these commands yourself:")
        for name, value in self.exports.items():
            self.console.print(f"[cyan]export {name}={escape(_quoted(value))}[/cyan]", soft_wrap=True)
        self.make_dataset()
        if self.options.small:
            self.make_small_plans()
        self.write_study()
        self.run_study()
        self.show_result()

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
        with Progress(console=self.console, transient=True, disable=not self.console.is_terminal) as progress:
            bar = progress.add_task("  cases", total=None)
            write_phantom(
                self.raw,
                PHANTOM_ID,
                PHANTOM_CASES,
                PHANTOM_TEST_CASES,
                progress=lambda done, total: progress.update(bar, completed=done, total=total),
            )
        self.console.print(
            f"  {PHANTOM_CASES} to train with, {PHANTOM_TEST_CASES} held out: {escape(str(self.dataset))}"
        )

    def make_small_plans(self) -> None:
        """Plan as nnU-Net does, and write small plans beside its plans; the study preprocesses with them."""
        folder = self.preprocessed / self.dataset.name
        plans = folder / "nnUNetPlans.json"
        if read_json(folder / f"{SMALL_PLANS}.json") is not None:
            return
        if read_json(plans) is None:
            number = str(int(DATASET_NAME.fullmatch(self.dataset.name)[1]))
            command = ["nnUNetv2_plan_and_preprocess", "-d", number, "-c", CONFIGURATION, "--no_pp"]
            self.run_command([*command, "-npfp", "1", "--verify_dataset_integrity"], self.logs / "plan.txt")
        full = read_json(plans)
        try:
            small = shrink_plans(full or {}, CONFIGURATION)
        except ValueError as error:
            raise DemoError(f"nnU-Net's plans for {self.dataset.name} cannot be made small: {error}") from error
        before, after = full["configurations"][CONFIGURATION], small["configurations"][CONFIGURATION]
        write_json(folder / f"{SMALL_PLANS}.json", small)
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

    def write_study(self) -> None:
        from nnunet_dtc.files import write_whole
        from nnunet_dtc.study.workflow.definition import study_yaml

        content = {
            "dataset": int(DATASET_NAME.fullmatch(self.dataset.name)[1]),
            "configuration": CONFIGURATION,
            "plans": self.options.plans,
            "trainers": [self.options.trainer(name) for name in self.options.trainers],
            "folds": FOLD,
            "test": self.held_out,
            "device": self.options.device,
        } | {folder: folder for folder in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
        write_whole(self.study, study_yaml(content))

    def run_study(self) -> None:
        """Run the study; what its jobs write into their logs is shown while they run."""
        command = ["nnunet-dtc", "study", str(self.study)]
        self.run_command(command, self.folder / "logs" / "study.txt", self.study.with_suffix("") / "logs")

    def run_command(self, command: Sequence[str], log: Path, of_jobs: Path | None = None) -> None:
        """Run a command to its end.

        Args:
            command: a program of this environment, and its arguments.
            log: the file for its output.
            of_jobs: the folder with the logs of the study's jobs, which are shown; None to show nothing.

        Raises:
            CommandFailedError: it ended with an error.
        """
        from nnunet_dtc.study.processes import find_program, guarded

        self.console.print(f"\n[cyan]$ {escape(' '.join(command))}[/cyan]  [dim](log: {escape(str(log))})[/dim]")
        if (program := find_program(command[0])) is None:
            raise DemoError(f"there is no {command[0]} beside {sys.executable} or on PATH: is nnU-Net installed?")
        log.parent.mkdir(parents=True, exist_ok=True)
        shown = LogReader(of_jobs) if of_jobs is not None else None
        environment = {**os.environ, **self.exports, "PYTHONUNBUFFERED": "1", "COLUMNS": str(self.console.width)}
        with (
            log.open("ab") as output,
            guarded([program, *command[1:]], stdout=output, stderr=STDOUT, env=environment) as process,
        ):
            status = None
            while status is None:
                with contextlib.suppress(TimeoutExpired):
                    status = process.wait(POLL_S)
                for job, line in shown.news() if shown else ():
                    self.show(job, line)
        if status != 0:
            raise CommandFailedError(command[0], status, log)

    def show(self, job: str, line: str) -> None:
        """A line of a job's log, if it is a command, or says what a job waits for or how far it is."""
        if line.startswith("$ "):
            self.console.print(f"[cyan]{escape(line)}[/cyan]  [dim]({escape(job)})[/dim]", soft_wrap=True)
        elif line.startswith("waiting: "):
            self.console.print(f"  {escape(job)}: {escape(line)}", soft_wrap=True)
        elif found := EPOCH.search(line):
            self.console.print(f"  {escape(job)}: epoch {int(found[1]) + 1} of {self.options.epochs}")
        elif found := NEWS.search(line):
            self.console.print(f"  [dim]{escape(job)}: {escape(found[1] or found[2])}[/dim]")

    def show_result(self) -> None:
        kind, output = "test" if self.held_out else "validation", self.study.with_suffix("")
        log = output / "logs" / "compare" / f"{kind}.txt"
        if log.is_file():
            lines = log.read_text(encoding="utf-8").rpartition("\n$ ")[2].splitlines()[1:]
            self.console.print(*map(Text, ["", *lines]), sep="\n", soft_wrap=True)
            self.console.print(
                f"\n[bold]The comparison as a page:[/bold] {escape(str(output / 'comparison' / kind / 'index.html'))}",
                soft_wrap=True,
            )
        self.console.print(f"[bold]The study:[/bold] {escape(str(output / 'index.html'))}", soft_wrap=True)
        if self.options.epochs < 100:
            self.say("After one short training each, it is chance which organs have been learned.")

    def say(self, text: str) -> None:
        self.console.print(f"[dim]{escape(text)}[/dim]")


class LogReader:
    """Reads what is added to the logs in a folder and its subfolders, from now on.

    Args:
        folder: it need not exist yet.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Kept open, because the file system may give the inode of a deleted file to the next one.
        self.streams = {file: file.open("rb") for file in folder.rglob("*.txt")}
        for stream in self.streams.values():
            stream.seek(0, os.SEEK_END)

    def news(self) -> Iterator[tuple[str, str]]:
        """The lines that were completed since the last call, each with the name of its job.

        Snakemake deletes the log of a job that begins again: the new one is read from its beginning.
        """
        for file in sorted({*self.streams, *self.folder.rglob("*.txt")}):
            stream = self._stream(file)
            if stream is None:
                continue
            done = stream.tell()
            lines, newline, _ = stream.read().rpartition(b"\n")
            stream.seek(done + len(lines) + len(newline))
            job = " ".join(file.relative_to(self.folder).with_suffix("").parts)
            for line in lines.decode("utf-8", "replace").splitlines():
                yield job, line.rstrip()

    def _stream(self, file: Path) -> BinaryIO | None:
        """The open file, at the first byte that has not been read. None where it has been deleted."""
        stream = self.streams.pop(file, None)
        try:
            if stream is not None and not os.path.samestat(os.fstat(stream.fileno()), file.stat()):
                stream.close()
                stream = None
            if stream is None:
                stream = file.open("rb")
        except FileNotFoundError:
            if stream is not None:
                stream.close()
            return None
        if os.fstat(stream.fileno()).st_size < stream.tell():  # emptied and written again
            stream.seek(0)
        self.streams[file] = stream
        return stream


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
    if os.name == "nt":
        console.print("[red]error:[/red] the demo runs a study, which needs Linux or macOS (on Windows: WSL)")
        return 2
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
    except CommandFailedError as error:
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
