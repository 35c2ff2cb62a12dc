"""Triton's kernels, compiled ahead of time for A100 and H100 (H200) without a GPU: no register may spill."""

import re
import subprocess

import pytest

triton = pytest.importorskip("triton")
nvidia = pytest.importorskip("triton.backends.nvidia.compiler")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from nnunet_dtc.ops.backends import OLDEST_GPU, cuda, triton_kernels  # noqa: E402

SHAPE = {"SD": 1, "SH": 2, "SW": 2, "AXES": 3}
SAMPLES = SHAPE | {"BM": cuda.SAMPLES, "BC": cuda.CHANNELS}
KERNELS = {  # constants, the maps that are float32 in any case, and warps
    "forward_kernel": (SAMPLES | {"OFFSET": "tanh", "WEIGHT": "sigmoid", "HAS_BASE": True}, (), 1),
    "coords_kernel": (
        SAMPLES | {"OFFSET": "tanh", "WEIGHT": "sigmoid", "COORDS": True, "POSITIONS": True},
        ("positions",),
        1,
    ),
    "gather_kernel": (
        SHAPE | {"EZ": 1, "EY": 1, "EX": 1, "SLOTS": 2, "ROLLED": True, "BX": cuda.TILE // 2, "BC": cuda.TILE_CHANNELS},
        ("positions",),
        cuda.TILE_CHANNELS // cuda.CHANNELS,
    ),
    "scatter_kernel": (SAMPLES, ("positions", "grad_value"), 1),
}
IN_2D = {"AXES": 2, "SD": 1, "D": 1, "EZ": 0}
OTHERWISE = {  # a size of one is a constant for Triton, as every integer of that value
    "one slice": {"D": 1, "EZ": 0},
    "one row": {"H": 1, "EY": 0, "ROLLED": False},
    "one column": {"W": 1, "EX": 0},
    "one voxel and channel": {"C": 1, "D": 1, "H": 1, "W": 1, "EZ": 0, "EY": 0, "EX": 0, "ROLLED": False},
    "2D": IN_2D,
    "2D, one pixel": IN_2D | {"H": 1, "W": 1, "EY": 0, "EX": 0, "ROLLED": False},
    "without weight": {"WEIGHT": "none"},
    "without tanh and weight": {"OFFSET": "linear", "WEIGHT": "none"},
    "without tanh and sigmoid": {"OFFSET": "linear", "WEIGHT": "linear"},
    "without base": {"HAS_BASE": False},
    "coordinates alone": {"POSITIONS": False},
    "value alone": {"COORDS": False},
    "strides of one and three": {"SD": 1, "SH": 1, "SW": 3, "SLOTS": 4, "BX": cuda.TILE // 4},
    "longer shifts": {"EZ": 2, "EY": 2, "EX": 2, "ROLLED": False},
    "rows one by one": {"ROWS": 1},
}
MAPS = ("out", "base", "value", "coords", "grad", "grad_value", "grad_coords", "positions")


def compiled(name, dtype, architecture, changes=None):
    kernel = getattr(triton_kernels, name)
    if not isinstance(kernel, triton.JITFunction):
        pytest.skip("Triton interprets here")
    constants, always_float32, warps = KERNELS[name]
    constants = constants | {key: value for key, value in (changes or {}).items() if key in kernel.arg_names}
    signature, divisible = {}, {}
    for place, argument in enumerate(kernel.arg_names):
        if argument in constants:
            signature[argument] = "constexpr"
        elif argument in MAPS:
            signature[argument] = "*fp32" if argument in always_float32 else f"*{dtype}"
            divisible[(place,)] = [["tt.divisibility", 16]]
        else:
            signature[argument] = "fp32" if argument in ("RD", "RH", "RW") else "i32"
            if argument == "P":  # the pitch is a multiple of 16, which Triton sees when it is called
                divisible[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constexprs=constants, attrs=divisible)
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options={"num_warps": warps})


@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
@pytest.mark.parametrize("name", KERNELS)
def test_no_spills(name, dtype, architecture, tmp_path):
    ptx = compiled(name, dtype, architecture).asm["ptx"]
    (tmp_path / "kernel.ptx").write_text(ptx)
    target = re.search(r"\.target (sm_\w+)", ptx)[1]
    assert target.startswith(f"sm_{architecture}")
    said = subprocess.run(
        [nvidia.get_ptxas(architecture).path, "-v", f"-arch={target}", tmp_path / "kernel.ptx", "-o", tmp_path / "out"],
        capture_output=True, text=True, check=True,
    ).stderr  # fmt: skip
    assert re.search(r"Used \d+ registers", said), said
    assert re.findall(r"(\d+) bytes spill", said) == ["0", "0"], said


@pytest.mark.parametrize("title", OTHERWISE)
def test_compiles_for_every_kind_of_map(title):
    changes = OTHERWISE[title]
    names = [name for name in KERNELS if set(changes) & set(getattr(triton_kernels, name).arg_names)]
    assert names
    for name in names:
        assert "cubin" in compiled(name, "bf16", 80, changes).asm


@pytest.mark.parametrize("name", KERNELS)
def test_compiles_for_the_oldest_gpu_that_is_taken(name):
    assert "cubin" in compiled(name, "fp16", 10 * OLDEST_GPU[0] + OLDEST_GPU[1]).asm
