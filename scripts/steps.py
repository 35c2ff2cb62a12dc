"""Run commands one after the other: show each, log each, tell how far it is, and stop clearly when one fails."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

EPOCH = re.compile(r"(?:^|: )Epoch (\d+)\s*$")
LOSS = re.compile(r"(train_loss|val_loss) (-?[\d.]+|nan)")
TOLD = re.compile(r"(predicting \S+|Predicting \S+|Preprocessing\.\.\.|Fingerprint extraction|Experiment planning)")


class StepFailedError(RuntimeError):
    """A command ended with an error."""

    def __init__(self, name: str, code: int, log: Path) -> None:
        super().__init__(f"{name} ended with exit code {code}")
        self.name, self.code, self.log = name, code, log

    def tail(self, lines: int = 25) -> str:
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


def find_command(name: str) -> str:
    """The command of this Python environment, or else of the PATH.

    Raises:
        FileNotFoundError: when there is none.
    """
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    found = shutil.which(name, path=beside)
    if found is None:
        raise FileNotFoundError(f"{name} was not found beside {sys.executable} or on the PATH: is nnU-Net installed?")
    return found


def run_step(
    console: Console,
    title: str,
    command: Sequence[str],
    exports: Mapping[str, str],
    log: Path,
    epochs: int | None = None,
) -> float:
    """Run one command to its end; returns the seconds it took. Its output goes to `log`, which grows with each attempt.

    Args:
        exports: environment variables that the command gets on top of the present ones.
        epochs: for a training, how many there are: the bar then moves with them.

    Raises:
        StepFailedError: when the command ends with another exit code than 0.
        KeyboardInterrupt: on Ctrl-C or SIGTERM; the command has been ended by then.
    """
    console.print(f"\n[bold]{title}[/bold]  [dim](log: {escape(str(log))})[/dim]", soft_wrap=True)
    console.print(f"[cyan]$ {escape(' '.join(command))}[/cyan]", soft_wrap=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    environment = {**os.environ, **exports, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
    with log.open("a", encoding="utf-8") as file, _progress(console) as progress:
        file.write(f"\n$ {' '.join(command)}\n")
        file.flush()
        bar = progress.add_task("starting", total=epochs, note="")
        process = subprocess.Popen(
            [find_command(command[0]), *command[1:]],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            text=True,
            encoding="utf-8",
            errors="replace",
            start_new_session=os.name == "posix",  # to end it with all of its workers, see _end
        )
        try:
            for line in process.stdout:
                file.write(line)
                file.flush()
                _follow(progress, bar, line.strip(), epochs, console, started)
            code = process.wait()
        except BaseException:
            _end(process)
            raise
    if code != 0:
        raise StepFailedError(command[0], code, log)
    seconds = time.monotonic() - started
    console.print(f"[green]done[/green] in {seconds:.0f} s")
    return seconds


def _progress(console: Console) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[note]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _follow(progress: Progress, bar, line: str, epochs: int | None, console: Console, started: float) -> None:
    """Bring the bar up to what this line of output says; without a terminal, say it in a line of its own."""
    if epochs and (found := EPOCH.search(line)):
        epoch = int(found[1])
        progress.update(bar, completed=epoch, description=f"epoch {epoch + 1} of {epochs}")
        if not console.is_terminal:
            console.print(f"  {time.monotonic() - started:5.0f} s  epoch {epoch + 1} of {epochs}")
    elif epochs and (found := LOSS.search(line)):
        progress.update(bar, note=f"{found[1].replace('_', ' ')} {found[2]}")
    elif epochs and "Epoch time" in line:
        console.print(f"  [dim]{escape(line.split(': ', 1)[-1])}[/dim]")
    elif found := TOLD.search(line):
        what = found[1].rstrip(".")
        if epochs and what.startswith("predicting"):
            progress.update(bar, completed=epochs)
        progress.update(bar, description=what[:1].lower() + what[1:])


def _end(process: subprocess.Popen, patience_s: float = 10) -> None:
    """End a command that was started here and its workers, which outlive an nnU-Net that is only ended itself."""
    if process.poll() is not None:
        return
    if os.name != "posix":
        process.kill()
        process.wait()
        return
    os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(patience_s)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
