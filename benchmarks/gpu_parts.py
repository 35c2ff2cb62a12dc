"""What `gpu_report.py` measures, each part in a process of its own:

    python benchmarks/gpu_parts.py PART DEVICE SECONDS FILE [--quick]

A part is a generator of rows (dicts) and notes (sentences). Each is appended to FILE as a line of JSON when it is
there, and between two of them the part stops when its time is up.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import importlib.util
import itertools
import json
import math
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import clone
import numpy as np
import torch
from torch import Tensor

from nnunet_dtc.ops import self_check
from nnunet_dtc.ops.backends import BACKENDS, check_cases
from nnunet_dtc.ops.backends.timing import GATHER, SCATTER, Implementation, Passes, Stage, implementations, median_ms
from nnunet_dtc.plugin.gpu import c_compiler

STAGES = (  # of a plan like BTCV's, patch 48 x 192 x 192, as benchmarks/kernel_cost.py has them
    Stage(32, (48, 96, 96), (1, 2, 2)),
    Stage(64, (24, 48, 48), (2, 2, 2)),
    Stage(128, (12, 24, 24), (2, 2, 2)),
    Stage(256, (6, 12, 12), (2, 2, 2)),
    Stage(320, (3, 6, 6), (2, 2, 2)),
)
TINY_STAGES = (Stage(5, (2, 4, 6), (1, 2, 2), batch=1), Stage(8, (2, 3, 4), (2, 2, 2), batch=1))
FIELDS = (2.0, 10.0, 1.0, 4.0, float("inf"))
REACHES = (2.0, 4.0, 1.0, 6.0, 8.0, 10.0, 0.0, 16.0, 24.0)
SAMPLE_BLOCKS = {"SAMPLES": (16, 32, 64, 128), "CHANNELS": (16, 32)}
TILES = {"TILE": (16, 32, 64), "TILE_CHANNELS": (16, 32, 64), "ROWS": (4, 8, 16, 32)}
LENGTHS = (1024, 8192, 65536, 262144)
STEP_SECONDS = 1.5


class NotHere(Exception):
    """Why a part cannot run on this machine."""


@dataclass(frozen=True)
class Setting:
    """Where the parts run.

    Attributes:
        device: where.
        quick: whether sizes are tiny.
        seconds: after which the part stops.
    """

    device: torch.device
    quick: bool
    seconds: float

    @property
    def dtype(self) -> torch.dtype:
        """Half precision on a GPU, as in nnU-Net's training."""
        return torch.float16 if self.device.type == "cuda" else torch.float32

    @property
    def stages(self) -> tuple[Stage, ...]:
        return TINY_STAGES if self.quick else STAGES

    def ms(self, call: Callable[[], object], seconds: float = 0.4) -> float:
        """Median milliseconds of a call, which is repeated for some seconds."""
        if self.quick:
            return median_ms(call, self.device, rounds=1, warm_up=0)
        return median_ms(call, self.device, seconds=seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=tuple(PARTS))
    parser.add_argument("device", choices=("cuda", "cpu"))
    parser.add_argument("seconds", type=float)
    parser.add_argument("file", type=Path)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    start = time.monotonic()
    with options.file.open("a") as file:

        def write(**line: object) -> None:
            file.write(json.dumps(line) + "\n")
            file.flush()

        if options.device == "cuda" and not torch.cuda.is_available():
            write(problem="torch sees no CUDA device")
            return
        device = torch.device(options.device, 0 if options.device == "cuda" else None)
        try:
            for found in PARTS[options.part](Setting(device, options.quick, options.seconds)):
                write(**{"note" if isinstance(found, str) else "row": found})
                if time.monotonic() - start > options.seconds:
                    write(problem=f"stopped after {options.seconds:.0f} s, when its time was up")
                    return
        except NotHere as reason:
            write(problem=f"skipped: {reason}")


def machine(setting: Setting) -> Iterator[dict]:
    """The card, the versions and the commit, and the bandwidth of a copy."""
    row: dict[str, object] = {"device": platform.processor() or platform.machine()}
    if setting.device.type == "cuda":
        properties = torch.cuda.get_device_properties(setting.device)
        row = {
            "device": properties.name,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "memory_gib": properties.total_memory / 1024**3,
            "driver": self_check.driver_version(),
            "cuda": torch.version.cuda,
        }
    row["copy_gb_per_s"] = copy_bandwidth(setting) / 1e9
    row |= {"torch": torch.__version__, "triton": self_check.triton_version(), "numpy": np.__version__}
    row |= {"python": platform.python_version(), "c_compiler": c_compiler(), "commit": commit()}
    yield row


def commit() -> str | None:
    """The commit of the clone, and whether files differ from it; None where git does not know."""
    try:
        described = subprocess.run(
            ["git", "-C", str(clone.ROOT), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()


def copy_bandwidth(setting: Setting) -> float:
    """Bytes a second that a large copy reads and writes."""
    source = torch.empty(2 ** (22 if setting.device.type == "cpu" else 29), dtype=torch.uint8, device=setting.device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / (1e-3 * setting.ms(lambda: target.copy_(source)))


def check(setting: Setting) -> Iterator[dict]:
    """The cases of the self-check, each with its errors."""
    import_cuda(setting)
    for case in sorted(check_cases.CASES, key=lambda case: case.channels * math.prod(case.size)):
        row: dict[str, object] = {"case": str(case), "base": case.has_base, "gradient": "gather"}
        if not case.gathers:
            row["gradient"] = "scatter"
        try:
            errors = case.errors(setting.device)
        except Exception as error:
            yield row | {"failure": f"{type(error).__name__}: {self_check.first_line(error)}"}
            continue
        passes = all(error <= case.tolerance for error in errors.values())  # NaN does not
        yield row | {**errors, "tolerance": case.tolerance, "passes": passes}
    if setting.device.type == "cuda":  # the interpreter takes too long
        scan_check = importlib.import_module("nnunet_dtc.architectures.scan.check")
        problem = scan_check.find_problem("triton", setting.device)
        yield {"case": "the selective scan", "passes": problem is None, "failure": problem}


def operator(setting: Setting) -> Iterator[dict]:
    """Each implementation, with the bytes that it must move, and the share of a copy's bandwidth that it reaches."""
    bandwidth = copy_bandwidth(setting)
    ways = implementations(setting.device)
    if GATHER not in ways:
        yield f"Without Triton: {BACKENDS['triton'].why_not()}."
    for receptive_field, stage in itertools.product(FIELDS, setting.stages):
        passes = Passes(stage, setting.device, setting.dtype, receptive_field)
        for name, way in ways.items():
            if name in (GATHER, SCATTER) and name != chosen_way(passes):
                continue
            forward = setting.ms(functools.partial(passes.forward, way))
            backward = setting.ms(functools.partial(passes.backward, way))
            yield {
                "stage": str(stage), "receptive_field": finite(receptive_field), "backend": name,
                "forward_ms": forward, "backward_ms": backward,
                "forward_mb": passes.forward_bytes / 1e6, "backward_mb": passes.backward_bytes / 1e6,
                "forward_share_of_bandwidth": passes.forward_bytes / (1e-3 * forward) / bandwidth,
                "backward_share_of_bandwidth": passes.backward_bytes / (1e-3 * backward) / bandwidth,
            }  # fmt: skip


def finite(receptive_field: float) -> float | str:
    """JSON has no infinity."""
    return receptive_field if receptive_field < float("inf") else "inf"


def samples_in_reach(passes: Passes) -> int:
    """How many samples can touch a voxel."""
    cuda = importlib.import_module("nnunet_dtc.ops.backends.cuda")
    return cuda.Geometry(passes.value, passes.stage.stride, passes.deformation).samples_in_reach


def chosen_way(passes: Passes) -> str:
    """The way that the backend takes for the gradient of the value."""
    cuda = importlib.import_module("nnunet_dtc.ops.backends.cuda")
    return GATHER if samples_in_reach(passes) <= cuda.MOST_GATHERED else SCATTER


def gather(setting: Setting) -> Iterator[dict | str]:
    """The gradient of the value by both ways, over the number of samples in reach."""
    cuda, ways = import_cuda(setting), triton_ways(setting)
    rows: list[dict] = []
    for receptive_field, stage in itertools.product(REACHES, setting.stages[:2]):
        passes = Passes(stage, setting.device, setting.dtype, receptive_field)
        reach = samples_in_reach(passes)
        known = [(row["stage"], row["samples_in_reach"]) for row in rows]
        if (str(stage), reach) in known or reach > cuda.MOST_GATHERED_SLOWLY:
            continue
        by_gather, by_scatter = (
            setting.ms(functools.partial(passes.backward, ways[name], wants_coords=False)) for name in (GATHER, SCATTER)
        )
        rows.append(
            {
                "stage": str(stage),
                "receptive_field": receptive_field,
                "samples_in_reach": reach,
                "gather_ms": by_gather,
                "scatter_ms": by_scatter,
                "gather_over_scatter": by_gather / by_scatter,
            }
        )
        yield rows[-1]
    for stage in dict.fromkeys(row["stage"] for row in rows):
        faster = [row["samples_in_reach"] for row in rows if row["stage"] == stage and row["gather_over_scatter"] < 1]
        slower = [row["samples_in_reach"] for row in rows if row["stage"] == stage and row["gather_over_scatter"] >= 1]
        yield (
            f"{stage}: the gather is faster with {listed(faster)} samples in reach, the scatter with {listed(slower)}; "
            f"MOST_GATHERED is {cuda.MOST_GATHERED}."
        )


def listed(numbers: list[int]) -> str:
    return ", ".join(map(str, sorted(numbers))) or "no number of"


def blocks(setting: Setting) -> Iterator[dict | str]:
    """The kernels with other block sizes than those of cuda.py."""
    cuda, way = import_cuda(setting), triton_ways(setting)[GATHER]
    kernels: dict[str, tuple[dict, Callable[[Passes], Tensor | None]]] = {
        "forward": (SAMPLE_BLOCKS, lambda passes: passes.forward(way)),
        "gradient of the coordinates": (SAMPLE_BLOCKS, lambda passes: passes.backward(way, wants_value=False)[1]),
        "positions and gather": (TILES, lambda passes: passes.backward(way, wants_coords=False)[0]),
    }
    for stage, (kernel, (constants, call)) in itertools.product(setting.stages[:2], kernels.items()):
        passes = Passes(stage, setting.device, setting.dtype, 2.0)
        first, rows = None, []
        for values in settings_of(cuda, constants)[: 3 if setting.quick else None]:
            row = {"stage": str(stage), "kernel": kernel, **{name.lower(): value for name, value in values.items()}}
            with patched(cuda, values):
                try:
                    result = call(passes)
                    row["ms"] = setting.ms(functools.partial(call, passes))
                except Exception as error:  # does not compile, or too many registers
                    row["failure"] = f"{type(error).__name__}: {self_check.first_line(error)}"
                else:
                    first = result if first is None else first
                    row["difference"] = (result.float() - first.float()).abs().max().item()
                    rows.append(row)
            yield row
        if rows:
            best = min(rows, key=lambda row: row["ms"])
            sizes = ", ".join(f"{name} {best[name.lower()]}" for name in constants)
            yield f"{kernel}, {stage}: the best is {sizes} with {best['ms']:.3g} ms; now it is {rows[0]['ms']:.3g} ms."


def settings_of(module: object, constants: dict[str, tuple[int, ...]]) -> list[dict[str, int]]:
    """The values as they are, then all others, those with the fewest changes first."""
    missing = [name for name in constants if not hasattr(module, name)]
    if missing:
        raise NotHere(f"cuda.py has no constant {', '.join(missing)}")
    now = {name: getattr(module, name) for name in constants}
    every = [dict(zip(constants, values, strict=True)) for values in itertools.product(*constants.values())]
    changed = [values for values in every if values != now]
    return [now, *sorted(changed, key=lambda values: sum(values[name] != now[name] for name in now))]


@contextlib.contextmanager
def patched(module: object, values: dict[str, int]) -> Iterator[None]:
    before = {name: getattr(module, name) for name in values}
    for name, value in values.items():
        setattr(module, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)


def steps(setting: Setting) -> Iterator[dict | str]:
    """Training steps of networks, over the same network with transposed convolutions."""
    import gpu_networks

    ms = functools.partial(setting.ms, seconds=STEP_SECONDS)
    for compiled in (False, True):
        few = 1 if compiled and setting.quick else None  # compiling takes long on a CPU, also what is tiny
        for name, variants in list(gpu_networks.NETWORKS.items())[:few]:
            vanilla = None
            for variant in variants[: few and 2]:
                row = {"network": name, "mode": "torch.compile" if compiled else "eager", "variant": variant.name}
                try:
                    measured = gpu_networks.measure(name, variant, setting.device, setting.quick, compiled, ms)
                except Exception as error:  # a missing package, no memory, or a network that is not compiled
                    yield row | {"failure": f"{type(error).__name__}: {self_check.first_line(error)}"}
                    continue
                vanilla = measured["step_ms"] if variant.is_vanilla else vanilla
                yield row | measured | {"over_vanilla": vanilla and measured["step_ms"] / vanilla}


def scan(setting: Setting) -> Iterator[dict | str]:
    """The selective scan, forward and backward, by length."""
    from nnunet_dtc.architectures import selective_scan
    from nnunet_dtc.architectures.scan import operators

    names = ["torch"]
    for name in ("triton", "mamba_ssm"):
        reason = selective_scan.why_not(name) if setting.device.type == "cuda" else "it needs CUDA"
        if reason is None:
            names.append(name)
        else:
            yield f"Without {name}: {reason}."
    channels, states = (4, 3) if setting.quick else (96, 16)
    for length in (33, 130) if setting.quick else LENGTHS:
        generator = torch.Generator(setting.device).manual_seed(0)
        maps, rows = (1, channels, length), (1, states, length)
        shapes = (maps, maps, (channels, states), rows, rows, (channels,))
        normal = [torch.randn(shape, generator=generator, device=setting.device) for shape in shapes]
        u, delta, A, B, C, D = (t.requires_grad_() for t in (normal[0], normal[1].abs(), -normal[2].abs(), *normal[3:]))
        into, row = torch.randn_like(u), {"channels": channels, "states": states, "length": length}
        for name in names:

            def forward(name: str = name) -> Tensor:
                return operators.compute(name, u, delta, A, B, C, D)  # noqa: B023

            def both(name: str = name) -> None:
                torch.autograd.grad(forward(name), (u, delta, A, B, C, D), into)  # noqa: B023

            yield row | {"backend": name, "forward_ms": setting.ms(forward), "forward_backward_ms": setting.ms(both)}


def tests(setting: Setting) -> Iterator[dict | str]:
    """The tests of the backends: those that fail, and how many do what."""
    if importlib.util.find_spec("pytest") is None:
        raise NotHere("pytest is not installed")
    paths = [str(clone.ROOT), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    command = [sys.executable, "-m", "pytest", "-v", "--tb=line", "-p", "clone", "-p", "no:cacheprovider"]
    command += ["tests/test_backends.py", *(["-k", "loops_forward and size0"] if setting.quick else [])]
    start, counts = time.monotonic(), {}
    process = subprocess.Popen(
        command, cwd=clone.ROOT, env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    lines = []
    for line in process.stdout:
        lines.append(line)
        if found := re.match(r"(tests/\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL)", line):
            counts[found[2].lower()] = counts.get(found[2].lower(), 0) + 1
            if found[2] in ("FAILED", "ERROR"):
                yield {"test": found[1], "result": found[2].lower()}
        if time.monotonic() - start > setting.seconds - 5:
            process.kill()
            yield "Not all tests were run, because the time was up."
            break
    process.wait()
    yield (
        ", ".join(f"{number} {result}" for result, number in counts.items()) or f"No test was run: {lines[-1].strip()}"
    )


def import_cuda(setting: Setting) -> ModuleType:
    """The CUDA backend, where its kernels can be launched, whatever their self-check finds."""
    if setting.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        raise NotHere("it needs CUDA, or Triton's interpreter (--interpret)")
    try:
        return importlib.import_module("nnunet_dtc.ops.backends.cuda")
    except Exception as error:
        raise NotHere(f"Triton cannot be used: {self_check.first_line(error)}") from error


def triton_ways(setting: Setting) -> dict[str, Implementation]:
    """Triton's implementations, which have passed their self-check."""
    ways = implementations(setting.device)
    if GATHER not in ways:
        raise NotHere(str(BACKENDS["triton"].why_not()))
    return ways


PARTS: dict[str, Callable[[Setting], Iterator[dict | str]]] = {
    "machine": machine,
    "self_check": check,
    "operator": operator,
    "gather": gather,
    "steps": steps,
    "blocks": blocks,
    "scan": scan,
    "tests": tests,
}

if __name__ == "__main__":
    main()
