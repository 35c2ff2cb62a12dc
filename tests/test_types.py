"""The types that a user's type checker sees."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mypy")

FILE = """
import torch
from torch import Tensor, nn
from typing_extensions import assert_type

import nnunet_dtc
from nnunet_dtc import DTC2d, DTC3d, convert_dtc, deformable_upsample
from nnunet_dtc.upsamplers import DySample3d, dysample, upsampler_class


class Network(nn.Sequential):
    classes = 3


assert_type(convert_dtc(Network(), receptive_field=float("inf")).classes, int)
assert_type(convert_dtc(nn.Upsample(scale_factor=2), example_input=torch.zeros(1)), nn.Module)
assert_type(DTC3d(8, 4, (1, 2, 2), base=DySample3d(8, 4, (1, 2, 2))).stride, tuple[int, ...])
assert_type(DTC2d(8, 4, [1, 2]).receptive_field, float)
value = torch.zeros(1, 4, 3, 5)
assert_type(deformable_upsample(value, value, 1, offset="linear", weight="none"), Tensor)
assert_type(dysample(value, value, (1, 2)), Tensor)
assert_type(upsampler_class("DySample", 3)(8, 4, 2).value(value), Tensor)
DTC3d(8, 4, "two")  # arg-type
DTC2d(8, 4, 2, offset="sigmoid")  # arg-type
DySample3d(8, 4, 2, style="lq")  # arg-type
deformable_upsample(value, value)  # call-arg
convert_dtc("network")  # call-overload
nnunet_dtc.DTC4d  # attr-defined
"""


def test_a_users_file(tmp_path):
    """Every line with a comment is the error that the comment names, and no other line is an error."""
    file = tmp_path / "user.py"
    file.write_text(FILE)
    options = ["--config-file=", "--follow-imports=silent", "--cache-dir", str(tmp_path / "cache")]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, str(file)],
        env={**os.environ, "MYPYPATH": str(Path(__file__).parents[1])},  # mypy does not follow editable installs
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    found = [line for line in done.stdout.splitlines() if ": error: " in line]
    lines = list(enumerate(FILE.splitlines(), 1))
    expected = [(number, line.partition("  # ")[2]) for number, line in lines if "  # " in line]
    assert [(int(line.split(":")[1]), line.rpartition("[")[2].rstrip("]")) for line in found] == expected, done.stdout
