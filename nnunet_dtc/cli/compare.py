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
        list[str] | None, typer.Option("-tr", help="Trainers; the others are compared with the first.")
    ] = None,
    plans: Annotated[str, typer.Option("-p", help="Name of the plans.")] = "nnUNetPlans",
    folds: Annotated[list[int] | None, typer.Option("-f", help="Folds; default: all that are there.")] = None,
    test: Annotated[
        bool,
        typer.Option(
            "--test", help="Compare on the held-out cases (imagesTs, labelsTs), predicted by the ensemble of all folds."
        ),
    ] = False,
    per_fold: Annotated[
        bool,
        typer.Option(
            "--per-fold", help="With --test: predict by each fold alone; mean and standard deviation over folds."
        ),
    ] = False,
    average: Annotated[
        str,
        typer.Option(
            "--average",
            help="With --test: average the logits (nnU-Net) or the softmax outputs (the paper) of the folds.",
        ),
    ] = "logits",
    checkpoint: Annotated[
        str,
        typer.Option(
            "--checkpoint", help="With --test: the file name of the checkpoints that predict, the same for all models."
        ),
    ] = "checkpoint_final.pth",
    device: Annotated[
        str | None,
        typer.Option("--device", help="Device for predicting: cuda, cpu or mps; default: cuda if available."),
    ] = None,
    labels: Annotated[
        Path | None, typer.Option("-labels", help="True segmentations; default: gt_segmentations or labelsTs.")
    ] = None,
    images: Annotated[Path | None, typer.Option("-images", help="Held-out images; default: imagesTs.")] = None,
    predictions: Annotated[
        list[str] | None,
        typer.Option("--predictions", help="TRAINER=FOLDER: use these predictions with --test; may be repeated."),
    ] = None,
    complexity: Annotated[
        Path | None, typer.Option("--complexity", help="JSON file of nnunet-dtc complexity, for the peak memory.")
    ] = None,
    tolerance: Annotated[
        list[str] | None,
        typer.Option("--tolerance", help="Tolerance of NSD, as for evaluate; may be repeated; default: 1 and 2."),
    ] = None,
    absent: Annotated[
        str,
        typer.Option(
            "--absent", help="Organs absent in prediction and label: skip does not count them, flare counts them as 1."
        ),
    ] = "skip",
    processes: Annotated[
        int | None, typer.Option("-np", help="Number of processes; default: one for each CPU, at most 8.")
    ] = None,
    strict_geometry: Annotated[
        bool,
        typer.Option(
            "--strict-geometry",
            help="Refuse cases whose prediction and label differ in origin or direction; by default they are reported.",
        ),
    ] = False,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the bootstrap.")] = 0,
    output: Annotated[
        Path | None, typer.Option("-o", help="Folder to write; default: ./comparison_DATASET_PLANS_CONFIGURATION_KIND.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing comparison; finished predictions are kept.")
    ] = False,
) -> None:
    """Compare trained models by organ, fold and case, with intervals, tests and the noise between trainings."""
    try:
        from nnunet_dtc.cli.devices import check_device
        from nnunet_dtc.plugin.model_folder import environment_folder
        from nnunet_dtc.study.comparison.execution import compare as run
        from nnunet_dtc.study.comparison.models import find_trainings
        from nnunet_dtc.study.comparison.output_folder import (
            check_output,
            default_output,
            for_this_process_alone,
            write_comparison,
        )
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
        output = Path(os.path.abspath(output or default_output(plan)))
        check_output(output, overwrite)
        with for_this_process_alone(output):
            check_output(output, overwrite)  # another process may have written meanwhile
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
