"""Output of the commands: results on stdout, progress and errors on stderr."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from nnunet_dtc.files import printable
from nnunet_dtc.study.texts import visible

out = Console(emoji=False)
err = Console(stderr=True, emoji=False)


def plain(text: str) -> str:
    """Replace control characters, which could move the cursor or hide output, and bytes that are not UTF-8 by escapes.

    Line breaks and tabs are kept. Names from files must pass this function before they are printed.
    """
    return "".join(character if character in "\n\t" else visible(character) for character in printable(text))


def say(*lines: str) -> None:
    """Print lines without wrapping, so that commands in them can be copied."""
    for line in lines:
        out.print(plain(line), markup=False, highlight=False, soft_wrap=True)


def note(line: str) -> None:
    """Print a note, something worth knowing that is not an error."""
    err.print(Text.assemble(("note:", "yellow"), f" {plain(line)}"), soft_wrap=True)


def fail(error: object) -> typer.Exit:
    """Print an error. The caller raises the returned exception, which ends the command with exit code 1."""
    err.print(Text.assemble(("Error:", "bold red"), f" {plain(str(error))}"), soft_wrap=True)
    return typer.Exit(1)


@contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int], None]]:
    """Show progress bars, one for each step, while the block runs.

    Yields:
        A function of (step, done, total) that updates the bar of a step.
    """
    tasks = {}
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err) as bars:

        def show(step: str, done: int, total: int) -> None:
            if step not in tasks:
                tasks[step] = bars.add_task(plain(step), total=total)
            bars.update(tasks[step], completed=done)

        yield show
