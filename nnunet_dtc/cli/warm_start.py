"""``nnunet-dtc warm-start``."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from nnunet_dtc.cli.console import fail, say
from nnunet_dtc.errors import NnunetDtcError


def warm_start(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint of a vanilla training, e.g. checkpoint_final.pth.")],
    trainer: Annotated[str, typer.Option("-tr", help="The DTC trainer to continue with.")],
    output: Annotated[
        Path | None, typer.Option("-o", help="Write a file for nnUNetv2_train -pretrained_weights.")
    ] = None,
    into: Annotated[
        Path | None,
        typer.Option("--into", help="Write checkpoint_latest.pth into this fold's folder, for nnUNetv2_train --c."),
    ] = None,
) -> None:
    """Turn a trained vanilla checkpoint into a checkpoint of a DTC trainer that computes the same function."""
    if (output is None) == (into is None):
        raise fail("give either -o OUT.pth (for -pretrained_weights) or --into MODEL/fold_0 (for --c)")
    from nnunet_dtc.plugin import warm_start as warm

    try:
        if output is not None:
            warm.check_output(output)
        start = warm.warm_start(checkpoint, trainer)
        if output is not None:
            warm.save_pretrained(start, output)
        else:
            written = warm.save_latest(start, into)
    except (NnunetDtcError, OSError) as error:
        raise fail(error) from error

    arguments = start.source["init_args"]
    dataset, plans = arguments["plans"]["dataset_name"], arguments["plans"]["plans_name"]
    configuration = arguments["configuration"]
    if output is None:
        training = ("nnUNetv2_train", dataset, configuration, arguments["fold"], "-tr", trainer, "-p", plans, "--c")
        say(f"wrote {written}. Now:", _command(*training))
        return
    move = ("nnUNetv2_move_plans_between_datasets", "-s", dataset, "-t", "ID", "-sp", plans, "-tp", "NEWPLANS")
    training = ("nnUNetv2_train", "ID", configuration, "FOLD", "-tr", trainer, "-p", "NEWPLANS")
    say(
        f"wrote {output}",
        "nnU-Net loads weights only into the network that they were trained in. To fine-tune on another data set, "
        "whose number is ID, copy the plans to it under a name of your choice, NEWPLANS:",
        _command("nnUNetv2_plan_and_preprocess", "-d", "ID", "--no_pp"),
        _command(*move),
        _command("nnUNetv2_preprocess", "-d", "ID", "-plans_name", "NEWPLANS", "-c", configuration),
        _command(*training, "-pretrained_weights", output),
        f"The second command reads {plans}.json of {dataset} in nnUNet_preprocessed, which is plans.json in a model's "
        "folder.",
        "With -pretrained_weights nnU-Net leaves the segmentation layers random. To continue on the same data set with "
        "all weights (from epoch 0, with a new optimizer), use --into MODEL/fold_k instead of -o.",
    )


def _command(*parts: object) -> str:
    """An indented command line to copy."""
    return "    " + shlex.join(str(part) for part in parts)
