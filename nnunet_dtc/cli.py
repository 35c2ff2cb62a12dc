"""The command line ``nnunet-dtc``. Each command imports what it needs: torch and nnU-Net take seconds to load."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

app = typer.Typer(
    name="nnunet-dtc",
    help="Deformable Transposed Convolution (DTC) for nnU-Net v2.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
prepare = typer.Typer(help="Write a data set in nnU-Net's raw layout.", no_args_is_help=True)
app.add_typer(prepare, name="prepare")

out = Console()
err = Console(stderr=True)


def main() -> None:
    """The console script."""
    app()


def fail(error: object) -> typer.Exit:
    """Print what is wrong; to be raised."""
    err.print(f"[bold red]Error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
    return typer.Exit(1)


def _version(wanted: bool) -> None:
    if wanted:
        from nnunet_dtc._version import __version__

        out.print(__version__, highlight=False)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def register() -> None:
    """Make nnU-Net know the trainers, for good: one small file in its trainer folder."""
    from nnunet_dtc.plugin import registration

    try:
        file = registration.register()
    except registration.RegistrationError as error:
        raise fail(error) from error
    out.print(f"nnU-Net finds nnunet-dtc's trainers by {file}", highlight=False, soft_wrap=True)
    out.print("Now: nnUNetv2_train DATASET 3d_fullres 0 -tr nnUNetTrainerDTC", highlight=False, soft_wrap=True)


@app.command()
def unregister() -> None:
    """Take that file out of nnU-Net's trainer folder again."""
    from nnunet_dtc.plugin import registration

    try:
        file = registration.unregister()
    except registration.RegistrationError as error:
        raise fail(error) from error
    out.print(f"removed {file}" if file else "there was nothing to remove", highlight=False, soft_wrap=True)


@app.command()
def env() -> None:
    """Print the export line for nnUNet_extTrainer instead, for read-only installs: eval "$(nnunet-dtc env)"."""
    from nnunet_dtc.plugin import registration

    print(registration.export_line())


@app.command()
def doctor() -> None:
    """Say what is installed, whether nnU-Net finds the trainers, and what to do where something is wrong."""
    from nnunet_dtc.plugin.doctor import examine

    marks = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "wrong": "[bold red]wrong[/]"}
    findings = []
    with err.status("examining the installation ..."):
        for finding in examine():
            findings.append(finding)
            out.print(
                f"{marks[finding.state]:<18} {escape(finding.subject)}: {escape(finding.seen)}"
                + (f"  [bold]-> {escape(finding.advice)}[/]" if finding.advice else ""),
                highlight=False,
                soft_wrap=True,
            )
    wrong = sum(finding.state == "wrong" for finding in findings)
    if wrong:
        raise fail(f"{wrong} of {len(findings)} findings are wrong, see above")
    out.print("[green]All is well.[/]")


@app.command()
def trainers() -> None:
    """List the trainer names."""
    from nnunet_dtc.trainers import names

    out.print(f"[bold]{escape(names.GRAMMAR)}[/]\n", highlight=False, soft_wrap=True)
    widths = [max(len(part[column]) for part in names.PARTS) for column in range(2)]
    for part, meaning, example in names.PARTS:
        line = (
            f"[bold]{escape(part.ljust(widths[0]))}[/]  {escape(meaning.ljust(widths[1]))}  [dim]{escape(example)}[/]"
        )
        out.print(line, highlight=False, soft_wrap=True)
    out.print("\n" + "\n".join(names.NOTES), highlight=False, soft_wrap=True)


@app.command("warm-start")
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
    except (ValueError, OSError) as error:
        raise fail(error) from error

    arguments = start.source["init_args"]
    command = (
        f"nnUNetv2_train {arguments['plans']['dataset_name']} {arguments['configuration']} {arguments['fold']} "
        f"-tr {trainer} -p {arguments['plans']['plans_name']}"
    )
    if output is not None:
        out.print(f"wrote {output}. Now: {command} -pretrained_weights {output}", highlight=False, soft_wrap=True)
        out.print(
            "nnU-Net leaves the segmentation layers random with -pretrained_weights (its rule). To go on exactly where "
            "the vanilla training stopped, use --into MODEL/fold_k instead of -o.",
            highlight=False,
            soft_wrap=True,
        )
    else:
        out.print(f"wrote {written}. Now: {command} --c", highlight=False, soft_wrap=True)


@prepare.command("phantom")
def prepare_phantom(
    dataset_id: Annotated[int, typer.Option("-d", help="The data set's number, 1 to 999.")] = 917,
    cases: Annotated[int, typer.Option("--cases", help="Training cases, at least 5.")] = 12,
    test_cases: Annotated[int, typer.Option("--test-cases", help="Held-out cases, at least 1.")] = 4,
    seed: Annotated[int, typer.Option("--seed", help="The same seed gives the same bytes.")] = 917,
    raw: Annotated[
        Path | None, typer.Option("--raw", envvar="nnUNet_raw", help="nnU-Net's folder of raw data sets.")
    ] = None,
) -> None:
    """Write synthetic abdominal CTs with BTCV's 13 organs: for demonstrations and tests, without a download."""
    if raw is None:
        raise fail("nnUNet_raw is not set: export nnUNet_raw=/a/folder, or give --raw")
    from rich.progress import Progress

    from nnunet_dtc.datasets.phantom import write_phantom

    with Progress(console=err) as progress:
        task = progress.add_task("drawing cases", total=None)
        try:
            folder = write_phantom(
                raw,
                dataset_id,
                cases,
                test_cases,
                seed,
                progress=lambda done, total: progress.update(task, completed=done, total=total),
            )
        except (ValueError, OSError) as error:
            raise fail(error) from error
    out.print(f"wrote {folder} ({cases} training and {test_cases} held-out cases)", highlight=False, soft_wrap=True)
    out.print(f"Now: nnUNetv2_plan_and_preprocess -d {dataset_id} --verify_dataset_integrity", highlight=False)
