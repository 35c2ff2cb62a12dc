"""``nnunet-dtc coordinates``."""

from pathlib import Path
from typing import Annotated

import typer

from nnunet_dtc.cli.console import err, fail, out, say
from nnunet_dtc.errors import NnunetDtcError


def coordinates(
    model: Annotated[Path, typer.Argument(help="Folder of a trained DTC model, TRAINER__PLANS__CONFIGURATION.")],
    images: Annotated[
        list[Path],
        typer.Option(
            "-i", help="The image. Of several channels give CASE_0000 alone, or each in its order (-i A -i B)."
        ),
    ],
    fold: Annotated[str, typer.Option("-f", help="The fold whose model it is: a number, or all.")] = "0",
    checkpoint: Annotated[str, typer.Option("-chk", help="Its checkpoint.")] = "checkpoint_final.pth",
    labels: Annotated[
        Path | None,
        typer.Option(
            "--labels",
            help="A segmentation of the image, truth or prediction: look where most of it is. For the second stage of "
            "a cascade the first one's prediction.",
        ),
    ] = None,
    center: Annotated[
        str | None, typer.Option("--center", help="Look here: z,y,x or y,x, in voxels of the image as it is stored.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", help="Folder to write into; by default ./coordinates_CASE.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the files there.")] = False,
    device: Annotated[
        str | None, typer.Option("--device", help="cuda, cpu or mps; by default CUDA where there is one.")
    ] = None,
) -> None:
    """Show where the samples of a trained DTC model go, for an image (the paper's figure 7).

    One patch of the image goes through the network once. For every decoder stage and axis: how long the shifts are, how
    much of their bound they use, and which coordinates are dead, saturated, shut or open. Written as coordinates.png,
    .csv and .json.
    """
    from nnunet_dtc.cli.devices import check_device
    from nnunet_dtc.study.coordinates import model as models
    from nnunet_dtc.study.coordinates import report

    try:
        if output is not None:
            report.output_files(output, overwrite)
        place = _numbers(center)
        on = check_device(device)
        with err.status("loading the model ..."):
            loaded = models.load_model(model, fold, checkpoint)
        with err.status("preprocessing the image ..."):
            patch = models.load_patch(loaded, images, labels, place)
        output = output or Path(f"coordinates_{patch.case}")
        report.output_files(output, overwrite)
        with err.status("running the network ..."):
            found = models.find_coordinates(loaded, patch, on)
        out.print(report.rich_table(found))
        say(*report.sentences(found))
        with err.status("drawing ..."):
            written = report.write_report(found, output, overwrite)
    except (NnunetDtcError, OSError) as error:
        raise fail(error) from error
    say("wrote " + " and ".join((", ".join(map(str, written[:-1])), str(written[-1]))))


def _numbers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    parts = text.replace(",", " ").split()
    if len(parts) not in (2, 3) or not all(part.isdecimal() for part in parts):
        raise NnunetDtcError(f"--center takes two or three whole numbers with commas between them, got {text!r}")
    return tuple(int(part) for part in parts)
