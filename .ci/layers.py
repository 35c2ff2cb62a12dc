#!/usr/bin/env python3
"""Check that no layer of the package imports one above it (``tool.importlinter`` in pyproject.toml).

import-linter finds modules by their folders, and two packages of ours stand beside the folder of the package, so it is
given a copy in which they are inside.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLACES = {"nnunet_dtc": "nnunet_dtc", "architectures": "nnunet_dtc/architectures", "trainers": "nnunet_dtc/trainers"}


def main() -> int:
    with tempfile.TemporaryDirectory() as copy:
        for folder, place in PLACES.items():
            shutil.copytree(ROOT / folder, Path(copy, place), ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        command = [Path(sys.executable).with_name("lint-imports"), "--no-cache", *sys.argv[1:]]
        return subprocess.run(command, cwd=copy, env=os.environ | {"PYTHONPATH": copy}, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
