"""How the commands speak: results on stdout, progress and errors on stderr."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from nnunet_dtc.files import printable

out = Console()
err = Console(stderr=True)


def say(*lines: str) -> None:
    """Print lines as they are: no wrapping, so that commands in them can be copied."""
    for line in lines:
        out.print(escape(printable(line)), highlight=False, soft_wrap=True)


def note(line: str) -> None:
    """Print something that is worth knowing, but not wrong."""
    err.print(f"[yellow]note:[/] {escape(printable(line))}", highlight=False, soft_wrap=True)


def fail(error: object) -> typer.Exit:
    """Print what is wrong; to be raised."""
    err.print(f"[bold red]Error:[/] {escape(printable(str(error)))}", highlight=False, soft_wrap=True)
    return typer.Exit(1)


@contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int], None]]:
    """Progress bars, one a step: call with (step, done, total)."""
    tasks = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err) as bars:

        def show(step: str, done: int, total: int) -> None:
            if step not in tasks:
                tasks[step] = bars.add_task(step, total=total)
            bars.update(tasks[step], completed=done)

        yield show
