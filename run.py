#!/usr/bin/env python3
"""Two commands that do everything on a fresh machine with Python 3.10 or later, standard library only:

    python3 run.py demo    environment, install, phantom, plan, train vanilla and DTC, predict, compare (Python 3.11)
    python3 run.py test    environment, install, all tests

Both make a virtual environment in .venv beside this file and install the package into it. What stands behind the
command goes on to the demo (python3 run.py demo --help) or to pytest (python3 run.py test tests/test_dtc.py).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
ENVIRONMENT = ROOT / ".venv"
PYTHON = ENVIRONMENT / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
MARK = "made_by_run.py"  # a file in the environment
EXTRAS = {"demo": "[cpu,study]", "test": "[test]"}


def main(arguments: list[str]) -> int:
    if sys.version_info < (3, 10):  # noqa: UP036 (this file runs before anything is installed)
        print(f"Python 3.10 or later is needed, this is {sys.version.split()[0]}", file=sys.stderr)
        return 2
    if not arguments or arguments[0] not in EXTRAS:
        print(__doc__)
        return 0 if arguments in (["-h"], ["--help"]) else 2
    command, *options = arguments
    if command == "demo" and sys.version_info < (3, 11):
        here = sys.version.split()[0]
        print(f"The demo runs a study with Snakemake 9, which needs Python 3.11; this is {here}", file=sys.stderr)
        return 2
    if command == "demo" and sys.platform == "win32":
        print("The demo runs a study, which needs Linux or macOS; use WSL on Windows", file=sys.stderr)
        return 2
    install(EXTRAS[command])
    if command == "demo":
        hand_over(PYTHON, ROOT / "scripts" / "demo.py", *options)
    # files in their order: nnU-Net's long tests come first, so that the short ones fill what is left of the cores; one
    # worker more than cores, because those of nnU-Net often wait for processes
    workers = str(min(4, (os.cpu_count() or 1) + 1))
    hand_over(PYTHON, "-m", "pytest", "-n", workers, "--dist", "loadfile", "--no-loadscope-reorder", *options)


def install(extra: str) -> None:
    """Make the environment and install the package, unless that was done for this pyproject.toml."""
    stamp = ENVIRONMENT / f"installed{extra.strip('[]') and '-' + extra.strip('[]')}"
    wanted = hashlib.sha256((ROOT / "pyproject.toml").read_bytes() + os.fsencode(ROOT)).hexdigest()
    works = has_pip()
    if works and stamp.is_file() and stamp.read_text() == wanted:
        return
    if not works:
        make_environment()
    print("installing nnunet-dtc with torch and nnU-Net (with CUDA about 6 GB, some minutes)", flush=True)
    if run(PYTHON, "-m", "pip", "install", "--disable-pip-version-check", "-e", f"{ROOT}{extra}"):
        raise SystemExit("the installation failed, see above; the same command goes on where it stopped")
    stamp.write_text(wanted)


def has_pip() -> bool:
    """Whether the environment's Python starts and has pip."""
    try:
        return subprocess.run([PYTHON, "-c", "import pip"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def make_environment() -> None:
    """Make the environment, anew if an earlier command made it in part."""
    if ENVIRONMENT.is_dir() and any(ENVIRONMENT.iterdir()):
        if not (ENVIRONMENT / MARK).exists():
            raise SystemExit(f"{ENVIRONMENT} has no Python with pip and was not made by this run.py: move it away")
        shutil.rmtree(ENVIRONMENT)
    print(f"making the environment {ENVIRONMENT}", flush=True)
    ENVIRONMENT.mkdir(exist_ok=True)
    (ENVIRONMENT / MARK).touch()
    try:
        venv.create(ENVIRONMENT, with_pip=True, symlinks=os.name != "nt")
    except subprocess.CalledProcessError:
        raise SystemExit("Python cannot make environments here; on Debian: apt install python3-venv") from None


def run(*command: object) -> int:
    """Run a command and return its exit status."""
    words = [str(word) for word in command]
    print("$", " ".join(words), flush=True)
    return subprocess.run(words, cwd=ROOT, check=False).returncode


def hand_over(*command: object) -> None:
    """Become that command: what interrupts or ends this process then reaches it, and it can end in order."""
    words = [str(word) for word in command]
    print("$", " ".join(words), flush=True)
    os.chdir(ROOT)
    if os.name != "nt":
        os.execv(words[0], words)
    process = subprocess.Popen(words)
    while True:
        try:
            raise SystemExit(process.wait())
        except KeyboardInterrupt:  # the other process has it, too
            continue


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
