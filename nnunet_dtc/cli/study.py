"""``nnunet-dtc study``."""

from __future__ import annotations

import contextlib
import math
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from nnunet_dtc.cli.console import fail, out, plain, progress_bars, say
from nnunet_dtc.cli.many_values import ManyValues
from nnunet_dtc.errors import NnunetDtcError

if TYPE_CHECKING:
    from rich.table import Table

    from nnunet_dtc.study.workflow.definition import Study
    from nnunet_dtc.study.workflow.status import TrainingStatus

WATCHED_EVERY_S = 10.0


class RunByDefault(TyperGroup):
    """``study STUDY.yaml`` for ``study run STUDY.yaml``."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, *ctx.help_option_names):
            args = ["run", *args]
        return super().parse_args(ctx, args)


class PassedOn(ManyValues):
    """What follows ``--`` is kept in ``ctx.obj``, for Snakemake."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        end = args.index("--") if "--" in args else len(args)
        ctx.obj = args[end + 1 :]
        return super().parse_args(ctx, args[:end])


app = typer.Typer(
    cls=RunByDefault,
    help="Train several models over folds and repetitions, and compare them, by Snakemake: study STUDY.yaml.",
    no_args_is_help=True,
)
StudyFile = Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="What is trained; see docs/study.md.")]


@app.command(cls=PassedOn)
def run(
    ctx: typer.Context,
    study: Annotated[
        Path | None, typer.Argument(metavar="[STUDY.yaml]", help="What is trained; or give -d, -c and -tr.")
    ] = None,
    dataset: Annotated[str | None, typer.Option("-d", help="Number or name of the data set.")] = None,
    configuration: Annotated[str | None, typer.Option("-c", help="Configuration, such as 3d_fullres.")] = None,
    trainers: Annotated[
        list[str] | None, typer.Option("-tr", help="Trainers, the first is what the others are compared with.")
    ] = None,
    plans: Annotated[str, typer.Option("-p", help="Name of the plans.")] = "nnUNetPlans",
    folds: Annotated[str, typer.Option("--folds", help="Such as 0-4 or 0,2.")] = "0-4",
    repetitions: Annotated[int, typer.Option("--repetitions", help="Trainings of each model and fold.")] = 1,
    test: Annotated[bool, typer.Option("--test", help="Also predict the held-out cases (imagesTs, labelsTs).")] = False,
    device: Annotated[str, typer.Option("--device", help="cuda, cpu or mps.")] = "cuda",
    output: Annotated[
        Path | None,
        typer.Option("-o", help="STUDY.yaml to write, with these options; default: ./study_DATASET_CONFIGURATION.yaml"),
    ] = None,
    profile: Annotated[
        str,
        typer.Option(
            "--profile", help="default (this machine, all its GPUs), gpus (for snakemake alone) or slurm (a cluster)."
        ),
    ] = "default",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Check the study and print its jobs without running them.")
    ] = False,
    snakefile: Annotated[bool, typer.Option("--snakefile", help="Print the path of the Snakefile.")] = False,
) -> None:
    """Run a study, or go on with it. What follows -- is for Snakemake, such as: -- --executor slurm --jobs 50."""
    try:
        from nnunet_dtc.study.workflow import engine
        from nnunet_dtc.study.workflow.definition import read_study

        if snakefile:
            say(str(engine.SNAKEFILE))
            return
        if profile not in engine.PROFILES:
            raise NnunetDtcError(f"--profile is one of {', '.join(engine.PROFILES)}, got {profile}")
        options = {
            "dataset": dataset, "configuration": configuration, "trainers": trainers, "plans": plans,
            "repetitions": repetitions, "folds": folds, "test": test, "device": device,
        }  # fmt: skip
        more = [*ctx.obj, *["--dry-run"] * dry_run]
        engine.find_snakemake()
        if study is not None:
            sources = filter(None, map(ctx.get_parameter_source, (*options, "output")))
            if any(source.name != "DEFAULT" for source in sources):
                raise NnunetDtcError(
                    "give either STUDY.yaml or the options that describe a study (-d, -c, -tr, -p, --folds, "
                    "--repetitions, --test, --device, -o)"
                )
            definition: contextlib.AbstractContextManager[Study] = contextlib.nullcontext(read_study(study))
        else:
            definition = _from_options(options, output, engine.is_dry_run(more))
        with definition as described:
            status = _run(described, profile, more)
        if status:
            raise typer.Exit(status)
    except (NnunetDtcError, OSError) as error:
        raise fail(error) from error


@app.command()
def status(
    study: StudyFile,
    watch: Annotated[bool, typer.Option("--watch", help="Repeat every 10 s, until Ctrl-C.")] = False,
) -> None:
    """Show how far the trainings are; reads only logs, so the jobs may run anywhere."""
    try:
        from nnunet_dtc.study.workflow.definition import read_study

        definition = read_study(study)
        with _environment(definition):
            if not watch:
                _show(definition)
            while watch:
                out.clear()
                _show(definition)
                time.sleep(WATCHED_EVERY_S)
    except (NnunetDtcError, OSError) as error:
        raise fail(error) from error


@app.command(hidden=True, cls=ManyValues)
def job(
    what: Annotated[str, typer.Argument(help="preprocess, train, validate, predict, compare or index.")],
    study: StudyFile,
    trainer: Annotated[str, typer.Option("-tr")] = "",
    fold: Annotated[int | None, typer.Option("-f")] = None,
    kind: Annotated[str, typer.Option("--kind")] = "",
) -> None:
    """One job of the Snakefile."""
    try:
        from nnunet_dtc.study.workflow.definition import read_study
        from nnunet_dtc.study.workflow.job_environment import job_environment

        definition = read_study(study)
        with _environment(definition, **job_environment(definition.device)):
            from nnunet_dtc.study.workflow import index_page, jobs
            from nnunet_dtc.study.workflow.model_files import StudyFiles

            files = StudyFiles(definition)
            arguments: dict[str, tuple[Any, tuple]] = {
                "preprocess": (jobs.preprocess, ()),
                "train": (jobs.train, (trainer, fold)),
                "validate": (jobs.validate, (trainer, fold)),
                "predict": (jobs.predict, (trainer, fold)),
                "compare": (jobs.compare, (kind,)),
                "index": (index_page.write_index, ()),
            }
            function, values = arguments[what]
            function(files, *values)
    except (NnunetDtcError, OSError) as error:
        raise fail(error) from error


def _environment(study: Study, **more: str) -> Any:
    """nnU-Net's variables, which it reads when it is imported, and others."""
    from nnunet_dtc.plugin.environment import environment

    return environment(**study.environment, **more)


@contextlib.contextmanager
def _from_options(options: dict[str, Any], output: Path | None, dry_run: bool) -> Iterator[Study]:
    """The study that options describe. They are written into a file first, to go on with later; into a temporary one
    in a dry run."""
    from nnunet_dtc.files import write_whole
    from nnunet_dtc.study.workflow.checks import check_own_folder
    from nnunet_dtc.study.workflow.definition import parse_study, study_yaml

    dataset, configuration, trainers = (options[key] for key in ("dataset", "configuration", "trainers"))
    if not (dataset and configuration and trainers):
        raise NnunetDtcError("a study needs STUDY.yaml, or -d, -c and -tr")
    file = output or Path(f"study_{dataset}_{configuration}.yaml")
    text = study_yaml(options)
    study = parse_study(file, text)
    if file.exists():
        if file.read_text(encoding="utf-8") != text:
            raise NnunetDtcError(f"{file} is there with other options: use it (nnunet-dtc study {file}), or another -o")
        yield study
        return
    check_own_folder(study)
    if not dry_run:
        write_whole(file, text)
        yield study
        return
    with tempfile.TemporaryDirectory() as folder:
        yield parse_study(write_whole(Path(folder, file.name), text), text)


def _run(study: Study, profile: str, more: Sequence[str]) -> int:
    """Check the study, print what it will do, and become Snakemake. Returns the exit status of a dry run."""
    from nnunet_dtc.study.workflow import engine

    with _environment(study):
        from nnunet_dtc.cli.devices import check_device
        from nnunet_dtc.study.workflow.checks import check_study
        from nnunet_dtc.study.workflow.forecast import drop_outdated_stamps, forecast

        if engine.is_on_this_machine(profile, more):
            check_device(study.device)
        with progress_bars() as progress:
            files = check_study(study, progress)
        if not engine.is_dry_run(more):
            engine.lock_study(study)
            drop_outdated_stamps(files)
        say(*forecast(files))
        command = engine.snakemake_command(study, profile, more)
        out.file.flush()
        return engine.run_snakemake(study, command)


def _show(study: Study) -> None:
    from nnunet_dtc.study.workflow.model_files import StudyFiles
    from nnunet_dtc.study.workflow.status import failed_jobs, log_end, read_status, summary_line

    trainings = read_status(StudyFiles(study))
    out.print(_table(trainings))
    say(summary_line(trainings))
    for note in failed_jobs(study):
        say("", f"failed: {note.job} (on {note.where}); the end of {note.log}:")
        say(*(f"  {line}" for line in log_end(Path(note.log))))
    if (page := study.folder / "index.html").is_file():
        say(f"page: {page}")


def _table(trainings: Sequence[TrainingStatus]) -> Table:
    from rich.table import Table

    from nnunet_dtc.study.workflow.index_page import duration

    table = Table()
    for heading in ("trainer", "fold", "state", "epochs", "pseudo Dice", "left", "where"):
        right = heading in ("fold", "epochs", "pseudo Dice", "left")
        table.add_column(heading, justify="right" if right else "left", overflow="fold")
    for training in trainings:
        table.add_row(
            plain(training.trainer),
            str(training.fold),
            training.state,
            f"{training.epochs}/{training.of}",
            "" if math.isnan(training.dice) else f"{training.dice:.3f}",
            duration(training.seconds_left),
            plain(training.where),
        )
    return table
