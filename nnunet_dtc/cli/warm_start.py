"""``nnunet-dtc warm-start``."""

from pathlib import Path
from typing import Annotated

import typer

from nnunet_dtc.cli.console import fail, say


def warm_start(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint of a vanilla training, e.g. checkpoint_final.pth.")],
    trainer: Annotated[str, typer.Option("-tr", help="The DTC trainer to go on with.")],
    output: Annotated[
        Path | None, typer.Option("-o", help="Write a file for nnUNetv2_train -pretrained_weights.")
    ] = None,
    into: Annotated[
        Path | None,
        typer.Option("--into", help="Write checkpoint_latest.pth into this fold's folder, for nnUNetv2_train --c."),
    ] = None,
) -> None:
    """Turn a trained vanilla checkpoint into a DTC one that computes the same function."""
    if (output is None) == (into is None):
        raise fail("give either -o OUT.pth (for -pretrained_weights) or --into MODEL/fold_0 (for --c)")
    from nnunet_dtc import warm_start as warm

    try:
        if output is not None:
            warm.check_output(output)
        start = warm.warm_start(checkpoint, trainer)
        if output is not None:
            warm.save_pretrained(start, output)
        else:
            written = warm.save_latest(start, into)
    except (ValueError, OSError, RuntimeError) as error:  # RuntimeError: torch cannot write, the disk is full
        raise fail(error) from error

    arguments = start.source["init_args"]
    command = (
        f"nnUNetv2_train {arguments['plans']['dataset_name']} {arguments['configuration']} {arguments['fold']} "
        f"-tr {trainer} -p {arguments['plans']['plans_name']}"
    )
    if output is not None:
        say(
            f"wrote {output}. Now: {command} -pretrained_weights {output}",
            "nnU-Net leaves the segmentation layers random with -pretrained_weights (its rule). To go on exactly where "
            "the vanilla training stopped, use --into MODEL/fold_k instead of -o.",
        )
    else:
        say(f"wrote {written}. Now: {command} --c")
