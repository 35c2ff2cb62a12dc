"""Run commands, one or several at a time, with their output in log files and their progress on the terminal."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

EPOCH = re.compile(r"(?:^|: )Epoch (\d+)\s*$")
LOSS = re.compile(r"(train_loss|val_loss) (-?[\d.]+|nan)")
STAGE = re.compile(r"(predicting \S+|Predicting \S+|Preprocessing\.\.\.|Fingerprint extraction|Experiment planning)")


class StepFailedError(RuntimeError):
    """A command that ended with an error."""

    def __init__(self, name: str, code: int, log: Path) -> None:
        super().__init__(f"{name} ended with exit code {code}")
        self.name, self.code, self.log = name, code, log

    def tail(self, lines: int = 25) -> str:
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


def find_command(name: str) -> str:
    """Find a command in this Python environment or on the PATH.

    Raises:
        FileNotFoundError: there is no such command.
    """
    folders = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    found = shutil.which(name, path=folders)
    if found is None:
        raise FileNotFoundError(
            f"{name} was found neither beside {sys.executable} nor on the PATH: is nnU-Net installed?"
        )
    return found


@dataclass(frozen=True)
class Step:
    """A command, and how it is shown.

    Attributes:
        title: title above the command.
        name: short name for lines of progress when several commands run.
        command: the program and its arguments.
        log: log file for the output; each attempt is appended.
        epochs: number of epochs of a training, for the progress bar.
        shown: whether the output is printed as well.
    """

    title: str
    name: str
    command: tuple[str, ...]
    log: Path
    epochs: int | None = None
    shown: bool = False


def on_cpus_of_their_own(steps: Sequence[Step]) -> list[list[Step]]:
    """Group steps that run at the same time, each one on separate CPUs of this process (by `taskset`).

    The training of a small network is hardly faster on two cores than on one (measured), so that two trainings at the
    same time take little more than half the time. Without taskset, as on macOS and Windows, each step is a group.
    """
    cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") and shutil.which("taskset") else []
    at_once = max(1, min(len(cpus), len(steps)))
    if at_once == 1:
        return [[step] for step in steps]
    each = len(cpus) // at_once
    cpus_of = [",".join(map(str, cpus[k * each : (k + 1) * each])) for k in range(at_once)]
    pinned = [
        replace(step, command=("taskset", "-c", cpus_of[k % at_once], *step.command)) for k, step in enumerate(steps)
    ]
    return [pinned[k : k + at_once] for k in range(0, len(pinned), at_once)]


def run_steps(console: Console, steps: Sequence[Step], exports: Mapping[str, str]) -> list[float]:
    """Run commands at the same time, and return the seconds of each.

    Args:
        console: console for titles and progress.
        steps: the commands.
        exports: additional environment variables.

    Raises:
        StepFailedError: a command ended with an exit code other than 0; the others have been ended.
        KeyboardInterrupt: on Ctrl-C or SIGTERM; all commands have been ended.
    """
    for step in steps:
        console.print(f"\n[bold]{step.title}[/bold]  [dim](log: {escape(str(step.log))})[/dim]", soft_wrap=True)
        console.print(f"[cyan]$ {escape(' '.join(step.command))}[/cyan]", soft_wrap=True)
        step.log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, **exports, "PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
    environment["COLUMNS"] = str(console.width)  # the width of tables in the output
    if console.is_terminal:
        environment["FORCE_COLOR"] = "1"
    commands = [_found(step.command) for step in steps]
    processes: list[subprocess.Popen] = []
    with _progress(console) as progress, ThreadPoolExecutor(len(steps)) as followers:
        try:
            for command in commands:
                processes.append(
                    subprocess.Popen(
                        command,
                        stdout=subprocess.PIPE,
                        stderr=subprocess.STDOUT,
                        env=environment,
                        text=True,
                        encoding="utf-8",
                        errors="replace",
                        start_new_session=os.name
                        == "posix",  # so that it can be ended with all of its workers, see _end
                    )
                )
            alone = len(steps) == 1
            following = [
                followers.submit(_follow_to_end, process, step, alone, progress, console)
                for process, step in zip(processes, steps, strict=True)
            ]
            for finished in as_completed(following):
                finished.result()
        except BaseException:
            for process in processes:
                _end(process)
            raise
    return [future.result() for future in following]


def _found(command: Sequence[str]) -> list[str]:
    """The command with the path of its program, and also of the program after `taskset -c CPUS`."""
    programs = (0, 3) if command[0] == "taskset" else (0,)
    return [find_command(word) if k in programs else word for k, word in enumerate(command)]


def _follow_to_end(process: subprocess.Popen, step: Step, alone: bool, progress: Progress, console: Console) -> float:
    """Log the output of a command and show its progress until it ends; return its seconds."""
    threading.Thread(target=_end_leftovers, args=(process,), daemon=True).start()
    started = time.monotonic()
    prefix = "" if alone else f"{step.name}: "
    bar = progress.add_task(f"{prefix}starting", total=step.epochs, note="")
    with step.log.open("a", encoding="utf-8") as file:
        file.write(f"\n$ {' '.join(step.command)}\n")
        for line in process.stdout:
            file.write(line)
            file.flush()
            if step.shown:
                console.print(Text.from_ansi(line.rstrip("\n")), soft_wrap=True)
                continue
            _follow(progress, bar, line.strip(), step.epochs, console, started, prefix)
        code = process.wait()
    if code != 0:
        raise StepFailedError(step.name, code, step.log)
    seconds = time.monotonic() - started
    progress.remove_task(bar)
    console.print(f"[green]{escape(prefix)}done[/green] in {seconds:.0f} s")
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


def _follow(
    progress: Progress, bar, line: str, epochs: int | None, console: Console, started: float, prefix: str
) -> None:
    """Update the progress bar from a line of output; without a terminal print the epoch instead."""
    if epochs and (found := EPOCH.search(line)):
        epoch = int(found[1])
        progress.update(bar, completed=epoch, description=f"{prefix}epoch {epoch + 1} of {epochs}")
        if not console.is_terminal:
            console.print(f"  {escape(prefix)}{time.monotonic() - started:5.0f} s  epoch {epoch + 1} of {epochs}")
    elif epochs and (found := LOSS.search(line)):
        progress.update(bar, note=f"{found[1].replace('_', ' ')} {found[2]}")
    elif epochs and "Epoch time" in line:
        console.print(f"  [dim]{escape(prefix + line.split(': ', 1)[-1])}[/dim]")
    elif found := STAGE.search(line):
        what = found[1].rstrip(".")
        if epochs and what.startswith("predicting"):
            progress.update(bar, completed=epochs)
        progress.update(bar, description=prefix + what[:1].lower() + what[1:])


def _end_leftovers(process: subprocess.Popen) -> None:
    """End the workers that a command has left behind, because they would keep its output open."""
    if os.name != "posix":
        return
    with contextlib.suppress(ChildProcessError, ProcessLookupError):
        os.waitid(
            os.P_PID, process.pid, os.WEXITED | os.WNOWAIT
        )  # not reaped, so that its number still identifies the group
        os.killpg(process.pid, signal.SIGKILL)


def _end(process: subprocess.Popen, patience_s: float = 10) -> None:
    """End a command and its workers, which would outlive the command itself."""
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
