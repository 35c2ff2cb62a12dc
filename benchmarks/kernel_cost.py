#!/usr/bin/env python3
"""Predict what the CUDA backend's kernels cost, on a machine without a GPU.

    python benchmarks/kernel_cost.py [--arch 90] [--dtype float16] [--rf 2] [--batch 2] [--json FILE]

The script calls the CUDA backend's own forward and backward functions on meta tensors of a BTCV-like plan (patch
48 x 192 x 192, features 32 to 320). A stand-in for Triton's driver compiles every kernel with the specialisation that
a GPU would get, and launches nothing. For each kernel it prints registers, spilled bytes, and the warp instructions
that a launch issues: the instructions of the disassembled program, each loop multiplied by its number of iterations,
times warps, times programs. Both sides of a branch count. The last column divides them by the issue rate of an H100
(132 multiprocessors, 4 instructions a cycle, 1.7 GHz): a lower bound for the time, which tells two versions of a kernel
apart but is no measurement.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = ""

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.runtime import driver

STAGES = [  # channels, size, stride
    (320, (3, 6, 6), (2, 2, 2)),
    (256, (6, 12, 12), (2, 2, 2)),
    (128, (12, 24, 24), (2, 2, 2)),
    (64, (24, 48, 48), (2, 2, 2)),
    (32, (48, 96, 96), (1, 2, 2)),
]
INSTRUCTIONS_PER_SECOND = 132 * 4 * 1.7e9  # of an H100
SHORTEST_LOOP = 12  # instructions; the hardware's own short waiting loops are not ours


class CompilingDriver:
    """The part of a CUDA driver that compiling needs."""

    def __init__(self, architecture: int) -> None:
        self.architecture = architecture

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_device_interface(self) -> object:
        return torch.cuda

    def map_python_to_cpp_type(self, kind: str) -> str:
        return "x"


@dataclass
class Launch:
    """One kernel launch as it would be."""

    kernel: str
    programs: int
    warps: int
    registers: int = 0
    spilled_bytes: int = 0
    issued: int = 0

    @property
    def milliseconds(self) -> float:
        return 1e3 * self.issued / INSTRUCTIONS_PER_SECOND


class Recorder:
    """Stands for the module of kernels: compiles them instead of launching them."""

    def __init__(self, module: object, launches: list[tuple]) -> None:
        self._module, self._launches = module, launches

    def __getattr__(self, name: str) -> object:
        kernel = getattr(self._module, name)
        if not isinstance(kernel, triton.JITFunction):
            return kernel
        return _Launcher(name, kernel, self._launches)


class _Launcher:
    def __init__(self, name: str, kernel: triton.JITFunction, launches: list[tuple]) -> None:
        self._name, self._kernel, self._launches = name, kernel, launches

    def __getitem__(self, grid: tuple[int, ...]):
        def launch(*arguments: object, **constants: object) -> None:
            compiled = self._kernel.run(*arguments, grid=grid, warmup=True, **constants)
            values = dict(zip(self._kernel.arg_names, arguments, strict=False)) | constants
            self._launches.append((self._name, grid, compiled, values))

        return launch


def iterations(kernel: str, values: dict) -> list[int]:
    """How often the loops of a kernel run, from the outermost to the innermost."""
    blocks = [math.ceil(values["C"] / values["BC"])]
    if kernel == "gather_kernel":
        planes = (2 * values["EZ"] + 1) * values["SD"]
        if values["ROLLED"]:
            return [values["ROWS"] + 2, planes]
        return [values["ROWS"], (2 * values["EY"] + 1) * values["SH"], planes, 2 * values["EX"] + 1]
    return blocks


def executed(code: list[str], labels: dict[str, int], counts: list[int]) -> int:
    """Instructions that a warp executes: each loop's body as often as the loop runs."""
    loops = []
    for place, text in enumerate(code):
        jump = re.search(r"\bBRA\b.*`\((\.L_x_\d+)\)", text)
        if jump and labels.get(jump[1], place) < place - SHORTEST_LOOP:
            loops.append((labels[jump[1]], place))
    total = 0
    for place in range(len(code)):
        depth = sum(start <= place <= end for start, end in loops)
        total += math.prod(counts[:depth])
    return total


def disassembled(compiled: object, architecture: int) -> tuple[int, int, list[str], dict[str, int]]:
    """Registers, spilled bytes, instructions, and the places of the labels of a compiled kernel."""
    found = get_ptxas(architecture)
    ptxas = Path(found.path if hasattr(found, "path") else found[0])
    with tempfile.TemporaryDirectory() as folder:
        ptx, cubin = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        ptx.write_text(compiled.asm["ptx"])
        target = re.search(r"\.target (sm_\w+)", compiled.asm["ptx"])[1]
        command = [ptxas, "-v", f"-arch={target}", ptx, "-o", cubin]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
        command = [ptxas.with_name("nvdisasm"), "-c", cubin]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    code: list[str] = []
    labels: dict[str, int] = {}
    for line in listing.splitlines():
        if label := re.match(r"(\.L_x_\d+):", line):
            labels[label[1]] = len(code)
        elif instruction := re.match(r"\s+/\*([0-9a-f]{4,})\*/\s+(.*);", line):
            code.append(instruction[2].strip())
    registers = int(re.search(r"Used (\d+) registers", report)[1])
    return registers, sum(map(int, re.findall(r"(\d+) bytes spill", report))), code, labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=int, default=90, help="compute capability, 80 for an A100, 90 for an H100")
    parser.add_argument("--dtype", default="float16", choices=("float16", "bfloat16", "float32"))
    parser.add_argument("--rf", type=float, default=2.0, help="receptive field")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the numbers there, too")
    parser.add_argument("--sass", type=Path, help="write the disassembled kernels of the last stage into this folder")
    arguments = parser.parse_args()
    driver.set_active(CompilingDriver(arguments.arch))
    cuda = importlib.import_module("nnunet_dtc.ops.backends.cuda")
    deformation = importlib.import_module("nnunet_dtc.ops.deformation").Deformation(arguments.rf)
    launches: list[tuple] = []
    cuda.triton_kernels = Recorder(cuda.triton_kernels, launches)
    dtype = getattr(torch, arguments.dtype)
    print(
        f"sm_{arguments.arch}, {arguments.dtype}, RF {arguments.rf:g}, batch {arguments.batch}, "
        f"Triton {triton.__version__}"
    )
    print(
        f"{'stage':>26} {'kernel':18} {'programs':>9} {'warps':>5} {'regs':>4} {'spill':>5} {'M issued':>9} {'ms':>6}"
    )
    rows, sums = [], {}
    for channels, size, stride in STAGES:
        launches.clear()
        out = [extent * step for extent, step in zip(size, stride, strict=True)]

        def meta(*shape: int) -> torch.Tensor:
            return torch.empty((arguments.batch, *shape), dtype=dtype, device="meta")

        value, coords, grad = meta(channels, *size), meta(6, *out), meta(channels, *out)
        cuda.forward(grad, value, coords, stride, deformation)
        cuda.backward(grad, value, coords, stride, deformation, True, True)
        stage = f"{channels:>4} ch {'x'.join(map(str, size)):>9} {'x'.join(map(str, stride))}"
        for name, grid, compiled, values in launches:
            registers, spilled, code, labels = disassembled(compiled, arguments.arch)
            if arguments.sass:
                Path(arguments.sass, f"{name}.sass").write_text("\n".join(code) + "\n")
            launch = Launch(name, math.prod(grid), compiled.metadata.num_warps, registers, spilled)
            launch.issued = executed(code, labels, iterations(name, values)) * launch.warps * launch.programs
            print(
                f"{stage:>26} {name:18} {launch.programs:>9} {launch.warps:>5} {registers:>4} {spilled:>5} "
                f"{launch.issued / 1e6:>9.1f} {launch.milliseconds:>6.3f}"
            )
            rows.append({"stage": stage} | asdict(launch))
            sums[name] = sums.get(name, 0) + launch.issued
    for name, issued in [*sums.items(), ("all kernels", sum(sums.values()))]:
        print(f"{'sum':>26} {name:44} {issued / 1e6:>9.1f} {1e3 * issued / INSTRUCTIONS_PER_SECOND:>6.3f}")
    if arguments.json:
        settings = {"arch": arguments.arch, "dtype": arguments.dtype, "rf": arguments.rf, "batch": arguments.batch}
        arguments.json.write_text(json.dumps(settings | {"triton": triton.__version__, "launches": rows}, indent=1))


if __name__ == "__main__":
    sys.exit(main())
