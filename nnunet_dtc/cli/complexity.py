"""``nnunet-dtc complexity``."""

from pathlib import Path
from typing import Annotated

import typer

from nnunet_dtc.cli.console import fail, note, out, progress_bars, say
from nnunet_dtc.errors import NnunetDtcError


def complexity(
    trainers: Annotated[
        list[str], typer.Option("-tr", help="Trainers, one or several (-tr A B C); the ratios are to the first.")
    ],
    configuration: Annotated[str, typer.Option("-c", help="Configuration: 2d, 3d_fullres, ...")],
    dataset: Annotated[str | None, typer.Option("-d", help="Data set: number or name.")] = None,
    plans_name: Annotated[str, typer.Option("-p", help="Plans of this data set.")] = "nnUNetPlans",
    plans_file: Annotated[Path | None, typer.Option("--plans", help="Instead of -d: a file of plans.")] = None,
    dataset_json: Annotated[
        Path | None, typer.Option("--dataset-json", help="Of --plans; by default dataset.json beside it.")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure/--no-measure", help="Also measure times and memory, or count only.")
    ] = True,
    device: Annotated[
        str | None, typer.Option("--device", help="cpu, cuda or mps; default: cuda where there is a GPU, else cpu.")
    ] = None,
    repeats: Annotated[
        int, typer.Option("--repeats", min=1, help="Timed training steps and forward passes of each trainer.")
    ] = 10,
    patch_size: Annotated[
        str | None, typer.Option("--patch-size", help="Instead of the planned one, as 32,96,96 (in the plans' order).")
    ] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", min=1, help="Instead of the planned one.")] = None,
    output: Annotated[Path | None, typer.Option("-o", help="Write OUT.json, OUT.csv and OUT.md, too.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace them where they are there.")] = False,
) -> None:
    """Count parameters and multiply-accumulates of trainers' networks, and measure times and memory (table 7).

    Times and memory are those of nnU-Net's own training step on random data, and of the forward pass of one patch.
    """
    from nnunet_dtc.cli.devices import check_device
    from nnunet_dtc.files import check_writable, output_files
    from nnunet_dtc.study import complexity as cx
    from nnunet_dtc.study.complexity.bench import WARM_UP
    from nnunet_dtc.study.complexity.report import OUTPUTS, caption, title

    try:
        plans, dataset_description, origin = cx.read_plans(dataset, plans_name, plans_file, dataset_json)
        training = cx.PlannedTraining.of(
            plans, dataset_description, configuration, _patch(patch_size) if patch_size else None, batch_size, origin
        )
        chosen = check_device(device) if measure else None
        if output is not None:
            check_writable(output_files(output, OUTPUTS, overwrite)[0].parent)
        found = cx.find_trainers(trainers)
        with progress_bars() as progress:
            result = cx.count_trainers(training, found, progress, trains=chosen is not None)
        if chosen is not None:
            say(
                f"Measuring {', '.join(found)} on {chosen.type} with random data: first the peak memory, each in a "
                f"process of its own, then {WARM_UP} training steps or more to warm up and {repeats} timed ones of "
                "each, in turn, and as many forward passes of one patch. Nothing else should run on this device."
            )
            with progress_bars() as progress:
                result = cx.measure_trainers(result, found, chosen, repeats, progress)
        say(title(result))  # first: should the writing fail, the numbers are seen
        out.print(cx.rich_table(result))
        say(caption(result))
        for sentence in result.notes:
            note(sentence)
        written = cx.write_report(result, output, overwrite) if output is not None else ()
    except (NnunetDtcError, OSError) as error:
        raise fail(error) from error
    if written:
        say(f"wrote {', '.join(map(str, written))}")


def _patch(text: str) -> list[int]:
    try:
        return [int(size) for size in text.split(",")]
    except ValueError:
        raise NnunetDtcError(f"--patch-size takes whole numbers of voxels as 32,96,96, got {text!r}") from None
