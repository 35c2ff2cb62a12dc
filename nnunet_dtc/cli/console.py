"""How the commands speak: results on stdout, progress and errors on stderr."""

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
    """A text that may hold names from files, as a terminal may have it: control characters, which could move the cursor
    or hide what is written, and bytes that are not UTF-8 are shown as escapes. Line breaks and tabs stay."""
    return "".join(character if character in "\n\t" else visible(character) for character in printable(text))


def say(*lines: str) -> None:
    """Print lines as they are but for control characters: no wrapping, so that commands in them can be copied."""
    for line in lines:
        out.print(plain(line), markup=False, highlight=False, soft_wrap=True)


def note(line: str) -> None:
    """Print something that is worth knowing, but not wrong."""
    err.print(Text.assemble(("note:", "yellow"), f" {plain(line)}"), soft_wrap=True)


def fail(error: object) -> typer.Exit:
    """Print what is wrong; to be raised."""
    err.print(Text.assemble(("Error:", "bold red"), f" {plain(str(error))}"), soft_wrap=True)
    return typer.Exit(1)


@contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int], None]]:
    """Progress bars, one a step: call with (step, done, total)."""
    tasks = {}
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err) as bars:

        def show(step: str, done: int, total: int) -> None:
            if step not in tasks:
                tasks[step] = bars.add_task(plain(step), total=total)
            bars.update(tasks[step], completed=done)

        yield show
