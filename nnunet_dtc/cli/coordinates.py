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
            "-i", help="The image. For several channels give CASE_0000 alone, or each one in order (-i A -i B)."
        ),
    ],
    fold: Annotated[str, typer.Option("-f", help="Fold of the model: a number, or all.")] = "0",
    checkpoint: Annotated[str, typer.Option("-chk", help="Checkpoint of the fold.")] = "checkpoint_final.pth",
    labels: Annotated[
        Path | None,
        typer.Option(
            "--labels",
            help="A segmentation of the image, reference or prediction: the patch is cut where it has the most "
            "foreground. For the second stage of a cascade give the prediction of the first one.",
        ),
    ] = None,
    center: Annotated[
        str | None, typer.Option("--center", help="Centre of the patch: z,y,x or y,x, in voxels of the stored image.")
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", help="Output folder; by default ./coordinates_CASE.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")] = False,
    device: Annotated[
        str | None, typer.Option("--device", help="cuda, cpu or mps; by default CUDA if available.")
    ] = None,
) -> None:
    """Show where a trained DTC model samples an image (the paper's figure 7).

    One patch of the image goes through the network once. The command reports for every decoder stage and axis how long
    the shifts are, how much of their bound they use, and where they are constant or an offset or weight is saturated.
    It writes coordinates.png, coordinates.csv and coordinates.json.
    """
    from nnunet_dtc.cli.devices import check_device
    from nnunet_dtc.study.coordinates import sampling_report as report
    from nnunet_dtc.study.coordinates.forward_pass import find_coordinates
    from nnunet_dtc.study.coordinates.image_patch import load_patch
    from nnunet_dtc.study.coordinates.trained_model import load_model

    try:
        if output is not None:
            report.output_files(output, overwrite)
        place = _numbers(center)
        on = check_device(device)
        with err.status("loading the model ..."):
            loaded = load_model(model, fold, checkpoint)
        with err.status("preprocessing the image ..."):
            patch = load_patch(loaded, images, labels, place)
        output = output or Path(f"coordinates_{patch.case}")
        report.output_files(output, overwrite)
        with err.status("running the network ..."):
            found = find_coordinates(loaded, patch, on)
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
