"""``nnunet-dtc evaluate``."""

from pathlib import Path
from typing import Annotated

import typer

from nnunet_dtc.cli.console import fail, note, out, progress_bars, say
from nnunet_dtc.errors import NnunetDtcError


def evaluate(
    predictions: Annotated[Path, typer.Argument(help="Folder of predicted segmentations.")],
    labels: Annotated[Path, typer.Argument(help="Folder of reference labels, in files of the same names.")],
    dataset_json: Annotated[
        Path | None,
        typer.Option("-djfile", help="dataset.json; default: the one beside these folders."),
    ] = None,
    given_labels: Annotated[
        str | None,
        typer.Option("--labels", help="In place of dataset.json: 1,2,3 or spleen=1,kidneys=2+3,ignore=4."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", help="Write OUT.json and OUT.csv; default: PREDICTIONS/metrics.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace these files if they exist.")] = False,
    tolerance: Annotated[
        list[str] | None,
        typer.Option(
            "--tolerance",
            help="Tolerance of NSD, may be repeated; default: 1 and 2 (mm). 0.5voxel takes the spacing as 1; "
            "2,liver=5,spleen=3 or FILE.json has one for each organ.",
        ),
    ] = None,
    absent: Annotated[
        str, typer.Option("--absent", help="Organs absent in both: skip leaves them out, flare scores them 1.")
    ] = "skip",
    subset: Annotated[
        bool, typer.Option("--subset", help="Leave out labels without a prediction, as for one fold's validation.")
    ] = False,
    strict_geometry: Annotated[
        bool,
        typer.Option(
            "--strict-geometry",
            help="Refuse cases whose prediction and label differ in origin or direction; default: print a note.",
        ),
    ] = False,
    processes: Annotated[
        int | None, typer.Option("-np", help="Number of processes; default: one per CPU, at most 8.")
    ] = None,
) -> None:
    """Score segmentations: Dice, surface Dice (NSD) and HD95 per case and organ, and their means."""
    from nnunet_dtc.files import check_writable, output_files
    from nnunet_dtc.study import evaluation
    from nnunet_dtc.study.evaluation.folders import ending_of
    from nnunet_dtc.study.evaluation.labels import find_dataset_json
    from nnunet_dtc.study.evaluation.readers import reader_of_folder
    from nnunet_dtc.study.evaluation.score_report import OUTPUTS, rich_table

    try:
        tolerances = [evaluation.parse_tolerance(text) for text in tolerance or ("1", "2")]
        if dataset_json is not None and given_labels is not None:
            raise NnunetDtcError("give either -djfile or --labels")
        if given_labels is not None:
            label_set, ending = evaluation.parse_labels(given_labels), None
        else:
            dataset_json = dataset_json or find_dataset_json(predictions, labels)
            if dataset_json is None:
                raise NnunetDtcError("there is no dataset.json beside these folders: give -djfile or --labels")
            label_set, ending = evaluation.labels_from_dataset_json(dataset_json)
        pairs = evaluation.find_pairs(predictions, labels, ending, subset)
        reader = None
        if given_labels is None:
            example = pairs[0].reference
            reader = reader_of_folder(dataset_json.parent, ending or ending_of(example), example, note)
        output = output or predictions / "metrics"
        check_writable(output_files(output, OUTPUTS, overwrite)[0].parent)
        with progress_bars() as progress:
            result = evaluation.evaluate_pairs(
                pairs, label_set, tolerances, absent, processes, progress, reader, strict_geometry
            )
        for line in result.notes:
            note(line)
        out.print(rich_table(result))  # before they are written, in case that fails
        written = evaluation.write_report(result, output, overwrite)
    except (NnunetDtcError, OSError) as error:
        raise fail(error) from error
    say(f"wrote {written[0]} and {written[1]}")
