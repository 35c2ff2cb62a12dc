"""The command line ``nnunet-dtc``. Commands import what they need, since torch and nnU-Net take seconds to load."""

from typing import Annotated

import typer

from nnunet_dtc.cli import compare, complexity, coordinates, evaluate, plugin, prepare, study, warm_start
from nnunet_dtc.cli.console import say
from nnunet_dtc.cli.many_values import ManyValues
from nnunet_dtc.cli.signals import ending_in_order

app = typer.Typer(
    name="nnunet-dtc",
    help="Deformable Transposed Convolution (DTC) for nnU-Net v2.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (plugin.register, plugin.unregister, plugin.env, plugin.doctor, plugin.trainers):
    app.command()(command)
app.add_typer(prepare.app, name="prepare")
app.add_typer(study.app, name="study")
app.command("warm-start")(warm_start.warm_start)
app.command()(evaluate.evaluate)
app.command(cls=ManyValues)(compare.compare)
app.command()(coordinates.coordinates)
app.command(cls=ManyValues)(complexity.complexity)


def main() -> None:
    """Run the command line; the entry point of the console script."""
    with ending_in_order():
        app()


def _version(wanted: bool) -> None:
    if wanted:
        from nnunet_dtc._version import __version__

        say(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass
