"""Snakemake: where it is, and the command line that runs a study."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from nnunet_dtc.study.processes import find_program
from nnunet_dtc.study.workflow.definition import Study, StudyError
from nnunet_dtc.study.workflow.machine import Lock, visible_gpus

__all__ = [
    "PROFILES",
    "SNAKEFILE",
    "find_snakemake",
    "is_dry_run",
    "is_on_this_machine",
    "lock_study",
    "run_snakemake",
    "snakemake_command",
]

SNAKEFILE = Path(__file__).with_name("Snakefile")
PROFILES = ("default", "gpus", "slurm")


def find_snakemake() -> str:
    """Snakemake's command: of this Python's environment, else the one on PATH.

    Raises:
        StudyError: there is none, with what to install.
    """
    found = find_program("snakemake")
    if found is not None:
        return found
    advice = "pip install 'nnunet-dtc[study]'"
    if sys.version_info < (3, 11):
        advice = (
            "which needs Python 3.11 or newer (here is 3.10): install snakemake into an environment of its own and put "
            "it on PATH"
        )
    raise StudyError(f"a study is run by Snakemake, {advice}")


def is_on_this_machine(profile: str, more: Sequence[str]) -> bool:
    """Whether the jobs run here, as far as Snakemake's options say so.

    Args:
        profile: one of PROFILES.
        more: the options given to Snakemake.
    """
    if profile == "slurm" or os.environ.get("SNAKEMAKE_PROFILE"):  # which may name any executor
        return False
    words = [part for word in more for part in word.split("=", 1)]
    executors = [after for word, after in itertools.pairwise(words) if word in ("--executor", "-e")]
    return "--profile" not in words and all(name == "local" for name in executors)


def is_dry_run(more: Sequence[str]) -> bool:
    """Whether Snakemake's options ask for a list of the jobs instead of running them."""
    return not {"--dry-run", "--dryrun", "-n"}.isdisjoint(more)


def snakemake_command(study: Study, profile: str, more: Sequence[str]) -> list[str]:
    """The command line.

    Args:
        profile: one of PROFILES.
        more: options for Snakemake, which override those of the profile.
    """
    command = [find_snakemake(), "--snakefile", str(SNAKEFILE), "--configfile", str(study.file)]
    command += ["--directory", str(study.folder)]  # where Snakemake keeps its own files
    more = list(more)
    if study.device == "cuda" and is_on_this_machine(profile, more):
        resources, more = _take_resources(more)
        if not any(each.startswith("gpu=") for each in resources):
            resources.append(f"gpu={len(visible_gpus())}")
        command += ["--resources", *resources]  # an option must follow, and `more` may begin with a target
    command += ["--workflow-profile", str(SNAKEFILE.parent / "profiles" / profile), "--nolock"]
    return [*command, *more]


def _take_resources(more: Sequence[str]) -> tuple[list[str], list[str]]:
    """What the user gives as Snakemake's ``--resources``, and the other words.

    Snakemake accepts abbreviations of the option, and of several it uses the last. Behind ``--resources=`` there is one
    resource, otherwise it is followed by one or more.
    """
    resources: list[str] = []
    others: list[str] = []
    words = deque(more)
    while words:
        word = words.popleft()
        name, equals, value = word.partition("=")
        if not (name.startswith("--res") and "--resources".startswith(name)):
            others.append(word)
        elif equals:
            resources = [value]
        else:
            resources = []
            while words and not words[0].startswith("-"):
                resources.append(words.popleft())
    return resources, others


def lock_study(study: Study) -> Lock:
    """Keep a second run of the same study away. Snakemake inherits the lock; its own one (--nolock) would stay behind
    where it is killed.

    Raises:
        StudyError: the study runs already.
    """
    file = study.folder / ".lock"
    lock = Lock(file)
    if not lock.taken():
        raise StudyError(f"this study runs already, as process {file.read_text().strip() or 'unknown'}")
    file.write_text(f"{os.getpid()}\n", encoding="utf-8")
    os.set_inheritable(lock.descriptor, True)
    return lock


def run_snakemake(study: Study, command: Sequence[str]) -> int:
    """Replace this process by Snakemake, so that its signals and its exit status are those of the study.

    Returns:
        The exit status of a dry run, after which this process goes on.
    """
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))  # for nnunet-dtc
    environment = {**os.environ, **study.environment, "PATH": path}
    if is_dry_run(command):
        return subprocess.run(command, env=environment, check=False).returncode
    os.execve(command[0], list(command), environment)
