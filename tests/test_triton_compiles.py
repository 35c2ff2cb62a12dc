"""Triton's kernels, compiled ahead of time for A100 and H100 (H200) without a GPU: no register may spill."""

import re
import subprocess

import pytest

triton = pytest.importorskip("triton")
nvidia = pytest.importorskip("triton.backends.nvidia.compiler")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from nnunet_dtc.backends import cuda, triton_kernels  # noqa: E402

SHAPE = {"SD": 1, "SH": 2, "SW": 2, "AXES": 3, "BC": cuda.CHANNELS}
SAMPLES = SHAPE | {"BM": cuda.SAMPLES}
KERNELS = {  # constants, and the maps that are float32 in any case
    "forward_kernel": (SAMPLES | {"WEIGHTED": True, "HAS_BASE": True}, ()),
    "coords_kernel": (SAMPLES | {"WEIGHTED": True, "COORDS": True, "POSITIONS": True}, ("positions",)),
    "gather_kernel": (
        SHAPE | {"BM": cuda.VOXELS, "LEAD_D": 1, "LEAD_H": 2, "LEAD_W": 2, "REACH_D": 3, "REACH_H": 6, "REACH_W": 6},
        ("positions",),
    ),
    "scatter_kernel": (SAMPLES, ("positions", "grad_value")),
}
MAPS = ("out", "base", "value", "coords", "grad", "grad_value", "grad_coords", "positions")


@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
@pytest.mark.parametrize("name", KERNELS)
def test_no_spills(name, dtype, architecture, tmp_path):
    kernel = getattr(triton_kernels, name)
    if not isinstance(kernel, triton.JITFunction):
        pytest.skip("Triton interprets here")
    constants, always_float32 = KERNELS[name]
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
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32))
    (tmp_path / "kernel.ptx").write_text(compiled.asm["ptx"])
    target = re.search(r"\.target (sm_\w+)", compiled.asm["ptx"])[1]
    assert target.startswith(f"sm_{architecture}")
    said = subprocess.run(
        [nvidia.get_ptxas(architecture).path, "-v", f"-arch={target}", tmp_path / "kernel.ptx", "-o", tmp_path / "out"],
        capture_output=True, text=True, check=True,
    ).stderr  # fmt: skip
    assert re.search(r"Used \d+ registers", said), said
    assert re.findall(r"(\d+) bytes spill", said) == ["0", "0"], said
