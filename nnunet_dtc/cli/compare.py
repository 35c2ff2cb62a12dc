"""``nnunet-dtc compare``."""

import os
from pathlib import Path
from typing import Annotated

import typer

from nnunet_dtc.cli.console import fail, out, progress_bars, say
from nnunet_dtc.errors import NnunetDtcError


def compare(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(help="Folders of trained models, .../TRAINER__PLANS__CONFIGURATION; or give -d, -c and -tr."),
    ] = None,
    dataset: Annotated[str | None, typer.Option("-d", help="Number or name of the data set.")] = None,
    configuration: Annotated[str | None, typer.Option("-c", help="Configuration, such as 3d_fullres.")] = None,
    trainers: Annotated[
        list[str] | None, typer.Option("-tr", help="Trainers, the first is what the others are compared with.")
    ] = None,
    plans: Annotated[str, typer.Option("-p", help="Name of the plans.")] = "nnUNetPlans",
    folds: Annotated[list[int] | None, typer.Option("-f", help="Folds; by default all that are there.")] = None,
    test: Annotated[
        bool, typer.Option("--test", help="On the held-out cases (imagesTs, labelsTs), by all folds together.")
    ] = False,
    per_fold: Annotated[
        bool, typer.Option("--per-fold", help="With --test: by each fold alone; mean and deviation over folds.")
    ] = False,
    average: Annotated[
        str, typer.Option("--average", help="Of the folds, with --test: logits (nnU-Net) or softmax (the paper).")
    ] = "logits",
    checkpoint: Annotated[
        str, typer.Option("--checkpoint", help="What predicts with --test, the same file of all models.")
    ] = "checkpoint_final.pth",
    device: Annotated[
        str | None, typer.Option("--device", help="Of predicting: cuda, cpu or mps; default: cuda where it is.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option("-labels", help="True segmentations; default: gt_segmentations or labelsTs.")
    ] = None,
    images: Annotated[Path | None, typer.Option("-images", help="Held-out images; default: imagesTs.")] = None,
    predictions: Annotated[
        list[str] | None,
        typer.Option("--predictions", help="TRAINER=FOLDER: take these for --test, may be repeated."),
    ] = None,
    complexity: Annotated[
        Path | None, typer.Option("--complexity", help="JSON of nnunet-dtc complexity, for the peak memory.")
    ] = None,
    tolerance: Annotated[
        list[str] | None, typer.Option("--tolerance", help="Of NSD, may be repeated, as of evaluate; default: 1 and 2.")
    ] = None,
    absent: Annotated[
        str, typer.Option("--absent", help="Organs that neither has: skip does not count them, flare counts 1.")
    ] = "skip",
    processes: Annotated[
        int | None, typer.Option("-np", help="Cases at a time; default: one a CPU, at most 8.")
    ] = None,
    strict_geometry: Annotated[
        bool,
        typer.Option(
            "--strict-geometry",
            help="Refuse cases whose prediction and label have another origin or direction; by default a note says so.",
        ),
    ] = False,
    seed: Annotated[int, typer.Option("--seed", help="Of the bootstrap.")] = 0,
    output: Annotated[
        Path | None, typer.Option("-o", help="Folder to write into; default: ./comparison_DATASET_KIND.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the comparison there; finished predictions are kept.")
    ] = False,
) -> None:
    """Compare trained models: organ by organ, fold by fold, case by case, with the noise beside the difference."""
    try:
        from nnunet_dtc.cli.devices import check_device
        from nnunet_dtc.study.comparison.execution import compare as run
        from nnunet_dtc.study.comparison.models import environment_folder, find_trainings
        from nnunet_dtc.study.comparison.output_folder import check_output, default_output, write_comparison
        from nnunet_dtc.study.comparison.plan import Options, plan_comparison
        from nnunet_dtc.study.comparison.terminal import terminal_sentences, terminal_tables
        from nnunet_dtc.study.evaluation import parse_tolerance

        if per_fold and not test:
            raise NnunetDtcError("--per-fold belongs to --test: in validation each fold has cases of its own")
        if trainers:
            if folders:
                raise NnunetDtcError("give either folders or -d, -c and -tr")
            if dataset is None or configuration is None:
                raise NnunetDtcError("-tr needs -d and -c")
            results = environment_folder("nnUNet_results", "finding models by -tr (or give their folders)")
            folders = find_trainings(dataset, configuration, trainers, plans, results)
        elif dataset is not None or configuration is not None:
            raise NnunetDtcError("-d and -c need -tr: the trainers to compare")
        options = Options(
            kind="test per fold" if per_fold else "test" if test else "validation",
            folds=tuple(folds) if folds else None,
            labels=labels,
            images=images,
            predictions=_named_folders(predictions or []),
            checkpoint=checkpoint,
            average=average,
            device=check_device(device).type,
            complexity=complexity,
            tolerances=tuple(parse_tolerance(text) for text in tolerance or ("1", "2")),
            absent=absent,
            processes=processes,
            strict_geometry=strict_geometry,
            seed=seed,
        )
        plan = plan_comparison(folders or [], options)
        output = Path(os.path.abspath(output or default_output(plan.dataset, options.kind)))
        check_output(output, overwrite)
        with progress_bars() as progress:
            comparison = run(plan, output, progress, say)
        for table in terminal_tables(comparison):
            out.print(table)
        say(*terminal_sentences(comparison))
        written = write_comparison(comparison, output)
    except (NnunetDtcError, OSError) as error:
        raise fail(error) from error
    say(f"wrote {', '.join(file.name for file in written)} into {output}")


def _named_folders(texts: list[str]) -> dict[str, Path]:
    named = {}
    for text in texts:
        name, equals, folder = text.partition("=")
        if not equals or not name or not folder or name in named:
            raise NnunetDtcError(f"--predictions takes TRAINER=FOLDER, each trainer once, got {text!r}")
        named[name] = Path(folder)
    return named
