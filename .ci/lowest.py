#!/usr/bin/env python3
"""Run a fast part of the tests with the lowest versions that pyproject.toml allows, in the environment .venv-lowest.

The Python is the oldest from 3.10 on that this machine has. Where that is a later one, each package has the lowest
version that has a wheel for it. uv, which finds these versions, is in the environment of ``run.py test``. A finished
environment is used again until pyproject.toml changes; a new one takes one or two minutes and 6 GB (CUDA's libraries,
which torch brings). What stands behind the command is handed to pytest instead of the tests below.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = ROOT / ".venv-lowest"
UV = ROOT / ".venv" / "bin" / "uv"
WHEELS_ONLY = ["numpy", "pandas", "scipy", "matplotlib", "numba", "llvmlite", "pillow", "simpleitk", "markupsafe"]
TESTS = (
    "tests/test_dependencies.py",
    "tests/test_cli.py",
    "tests/test_sampling.py",
    "tests/test_dtc.py",
    "tests/test_metrics.py",
    "tests/test_evaluate.py",
    "tests/test_comparison_page.py",
)
TOO_SLOW = (  # one function is compiled, in test_dtc; these compile four modules, and import all of nnU-Net's trainers
    "--deselect=tests/test_dtc.py::test_compiles_to_one_graph",
    "--deselect=tests/test_cli.py::test_doctor_when_all_is_well_and_when_not",
)


def oldest_python() -> str:
    """The interpreter of the lowest version from 3.10 up to the running one."""
    for minor in range(10, sys.version_info.minor):
        pyenv = sorted(Path.home().glob(f".pyenv/versions/3.{minor}.*/bin/python"))
        for candidate in filter(None, [shutil.which(f"python3.{minor}"), *map(str, pyenv)]):
            ask = [candidate, "-c", "import sys; print(sys.version_info[:2])"]  # pyenv has shims for what is not there
            asked = subprocess.run(ask, capture_output=True, text=True, check=False)
            if asked.stdout.strip() == f"(3, {minor})":
                return candidate
    print(f"there is no older Python than the running {sys.version.split()[0]}", flush=True)
    return sys.executable


def run(*command: object) -> None:
    """Run a command; end with its status if it fails."""
    words = [str(word) for word in command]
    print("$", " ".join(words), flush=True)
    status = subprocess.run(words, cwd=ROOT, check=False).returncode
    if status:
        raise SystemExit(status)


def install(python: str) -> None:
    """Make the environment, unless that was done for this pyproject.toml and this Python."""
    stamp = ENVIRONMENT / "installed"
    parts = [(ROOT / "pyproject.toml").read_bytes(), Path(__file__).read_bytes(), python.encode()]
    wanted = hashlib.sha256(b"\0".join(parts)).hexdigest()
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    run(UV, "venv", "--quiet", "--clear", "--python", python, ENVIRONMENT)
    wheels = [word for package in WHEELS_ONLY for word in ("--only-binary", package)]
    into = ("--quiet", "--python", ENVIRONMENT / "bin" / "python", "--resolution", "lowest-direct")
    run(UV, "pip", "install", *into, *wheels, "-e", f"{ROOT}[cpu]", "pytest>=8.0")
    stamp.write_text(wanted)


def main(arguments: list[str]) -> None:
    python = oldest_python()
    print(f"the lowest versions with {python}", flush=True)
    install(python)
    run(UV, "pip", "list", "--quiet", "--python", ENVIRONMENT / "bin" / "python")
    os.environ.pop("PYTHONPATH", None)
    run(ENVIRONMENT / "bin" / "python", "-m", "pytest", "-q", "--disable-warnings", *(arguments or (*TESTS, *TOO_SLOW)))


if __name__ == "__main__":
    main(sys.argv[1:])
