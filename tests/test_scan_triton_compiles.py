"""The selective scan's Triton kernels, compiled ahead of time without a GPU: no register may spill."""

import re
import subprocess

import pytest

triton = pytest.importorskip("triton")
nvidia = pytest.importorskip("triton.backends.nvidia.compiler")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from nnunet_dtc.architectures.scan import cuda, triton_kernels  # noqa: E402

BLOCKS = {"CHUNK": cuda.CHUNK, "BT": cuda.TILE, "BE": cuda.STATES // 16, "BS": 16}
KERNELS = {
    "ends_kernel": BLOCKS | {"REVERSE": False},
    "starts_kernel": {"REVERSE": False, "BC": cuda.CHUNKS, "BM": cuda.ELEMENTS},
    "outputs_kernel": BLOCKS | {"HAS_D": True},
    "gradients_kernel": BLOCKS | {"HAS_D": True},
}
ANY_DTYPE = ("u", "y", "delta", "left", "grad_y", "grad_u", "grad_delta")  # other maps are float32
NUMBERS = ("L", "E", "S", "chunks", "blocks", "cases", "first")
OTHERWISE = {  # a size of one is a constant for Triton, as every integer of that value
    "reversed": {"REVERSE": True},
    "one channel": {"E": 1, "BE": 1},
    "one state": {"S": 1, "BS": 1, "BE": cuda.CHANNELS},
    "many states": {"BS": cuda.STATES, "BE": 1},
    "without D": {"HAS_D": False},
}


def compiled(name, dtype, architecture, changes=None):
    kernel = getattr(triton_kernels, name)
    if not isinstance(kernel, triton.JITFunction):
        pytest.skip("Triton interprets here")
    constants = KERNELS[name] | {key: value for key, value in (changes or {}).items() if key in kernel.arg_names}
    signature, divisible = {}, {}
    for place, argument in enumerate(kernel.arg_names):
        if argument in constants:
            signature[argument] = "constexpr"
            continue
        if argument in NUMBERS:
            signature[argument] = "i32"
        else:
            signature[argument] = f"*{dtype}" if argument in ANY_DTYPE else "*fp32"
        if argument not in triton_kernels.UNSPECIALIZED:  # the others are multiples of 16
            divisible[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constexprs=constants, attrs=divisible)
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options={"num_warps": 1})


@pytest.mark.parametrize("architecture", [70, 80, 90])
@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
@pytest.mark.parametrize("name", KERNELS)
def test_no_spills(name, dtype, architecture, tmp_path):
    ptx = compiled(name, dtype, architecture).asm["ptx"]
    (tmp_path / "kernel.ptx").write_text(ptx)
    target = re.search(r"\.target (sm_\w+)", ptx)[1]
    assert target.startswith(f"sm_{architecture}")
    printed = subprocess.run(
        [nvidia.get_ptxas(architecture).path, "-v", f"-arch={target}", tmp_path / "kernel.ptx", "-o", tmp_path / "out"],
        capture_output=True, text=True, check=True,
    ).stderr  # fmt: skip
    assert re.search(r"Used \d+ registers", printed), printed
    assert re.findall(r"(\d+) bytes spill", printed) == ["0", "0"], printed


@pytest.mark.parametrize("title", OTHERWISE)
def test_compiles_for_every_kind_of_sequence(title):
    names = [name for name in KERNELS if set(OTHERWISE[title]) & set(getattr(triton_kernels, name).arg_names)]
    assert names
    for name in names:
        assert "cubin" in compiled(name, "bf16", 80, OTHERWISE[title]).asm
