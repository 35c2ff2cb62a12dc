"""``nnunet-dtc complexity``."""

from pathlib import Path
from typing import Annotated

import typer

from nnunet_dtc.cli.console import fail, note, out, progress_bars, say
from nnunet_dtc.errors import NnunetDtcError


def complexity(
    trainers: Annotated[
        list[str], typer.Option("-tr", help="One or several trainers (-tr A B C); ratios are relative to the first.")
    ],
    configuration: Annotated[str, typer.Option("-c", help="Configuration: 2d, 3d_fullres, ...")],
    dataset: Annotated[str | None, typer.Option("-d", help="Data set: number or name.")] = None,
    plans_name: Annotated[str, typer.Option("-p", help="Name of the data set's plans.")] = "nnUNetPlans",
    plans_file: Annotated[Path | None, typer.Option("--plans", help="A file of plans instead of -d.")] = None,
    dataset_json: Annotated[
        Path | None,
        typer.Option("--dataset-json", help="The dataset.json for --plans; by default the one in its folder."),
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure/--no-measure", help="Measure times and memory, or only count.")
    ] = True,
    device: Annotated[
        str | None, typer.Option("--device", help="cpu, cuda or mps; by default cuda if available.")
    ] = None,
    repeats: Annotated[
        int, typer.Option("--repeats", min=1, help="Timed training steps and forward passes of each trainer.")
    ] = 10,
    patch_size: Annotated[
        str | None,
        typer.Option(
            "--patch-size", help="Another patch size than the planned one, such as 32,96,96 (in the plans' order)."
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Another batch size than the planned one.")
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", help="Also write OUT.json, OUT.csv and OUT.md.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")] = False,
) -> None:
    """Count the parameters and multiply-accumulates of networks, and measure times and memory (table 7).

    Times and memory are measured for nnU-Net's training step on random data and for the forward pass of one patch.
    """
    from nnunet_dtc.cli.devices import check_device
    from nnunet_dtc.files import check_writable, output_files
    from nnunet_dtc.study import complexity as cx
    from nnunet_dtc.study.complexity.bench import WARM_UP
    from nnunet_dtc.study.complexity.cost_report import OUTPUTS, caption, title

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
                f"separate process, then at least {WARM_UP} training steps to warm up and {repeats} timed ones of each "
                "in turn, and as many forward passes of one patch. Nothing else should run on this device."
            )
            with progress_bars() as progress:
                result = cx.measure_trainers(result, found, chosen, repeats, progress)
        say(title(result))  # before writing, which may fail
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
        raise NnunetDtcError(f"--patch-size takes whole numbers of voxels such as 32,96,96, got {text!r}") from None
