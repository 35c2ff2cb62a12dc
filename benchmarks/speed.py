"""Measure what DTC costs over the same network without it, by each backend, on the GPU or on the CPU.

    python benchmarks/speed.py                          a table, and its numbers in speed_<device>.json
    python benchmarks/speed.py --out FILE.json          into another file
    python benchmarks/speed.py --only networks --plans uneven --rounds 3
    python benchmarks/draw_speed.py FILE.json FILE.png  plots of that file

Needs torch and dynamic-network-architectures. Neither nnU-Net nor an installed nnunet_dtc is needed: a clone is enough.

The networks are those that nnU-Net plans: with uneven strides as for BTCV, isotropic, 2D, and with a residual encoder.
"vanilla" has nnU-Net's transposed convolutions, "parts" has DTC blocks built from torch's own functions, and the others
have DTC by one of the backends. A step is nnU-Net's: forward with deep supervision, Dice and cross entropy, backward,
clipping, SGD; on CUDA with float16 autocast and torch.compile. Inference is one patch without gradients. In each round
all networks are measured in turn, and a ratio is the median over the rounds of the time divided by vanilla's time in
the same round. Peak memory is, on CUDA, the most that torch's allocator had handed out, and on the CPU the growth of a
process of its own. Both are above the memory between two steps: weights, gradients and the state of the optimizer.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import contestants as field
import torch
from contestants import PLANS, UNEVEN, Contestant, Operator, Plan

from nnunet_dtc.files import write_whole
from nnunet_dtc.study.complexity.process_memory import MALLOC, forget_peak, peak_resident_mib, resident_mib, why_ended

FIELDS = (1.0, 2.0, 4.0, 10.0, float("inf"))
WARM_UP = {"cpu": 1, "cuda": 4}
MORE_ROUNDS = 3  # of passes that are not a whole step, which take less and vary more
MODES = ("step", "forward", "inference")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--dtype", choices=tuple(DTYPES), action="append", help="default: float32 on a CPU, float16 on CUDA"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--plans", default="", help="only plans whose name has this in it")
    parser.add_argument("--only", choices=("networks", "operator"))
    parser.add_argument("--no-compile", action="store_true", help="cuda: without torch.compile")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--memory-of", nargs=4, help=argparse.SUPPRESS)  # a process of its own, see peak_on_cpu
    options = parser.parse_args()
    if options.memory_of:
        print(json.dumps(grown(*options.memory_of)))
        return
    device = options.device
    # networks in bfloat16 take minutes a step on a CPU without instructions for it, hence only where asked for
    dtypes = options.dtype or {"cpu": ["float32"], "cuda": ["float16"]}[device]
    compiled = device == "cuda" and not options.no_compile
    out = options.out or Path(f"speed_{device}.json")
    if out.exists():
        sys.exit(f"{out} is there already; --out names another file")
    record = {"machine": machine(device), "compiled": compiled, "networks": [], "operator": []}
    print(", ".join(f"{key} {value}" for key, value in record["machine"].items()))
    if options.only != "operator":
        plans = [plan for plan in PLANS if options.plans in plan.name]
        for plan in plans:
            for dtype in dtypes:
                record["networks"] += networks(plan, device, dtype, compiled, options.rounds)
                write_whole(out, json.dumps(record, indent=1))  # what there is, should something fail
        if device == "cuda":  # quick there; on the CPU the operator alone shows it
            for receptive_field in FIELDS:
                if receptive_field != 2 and UNEVEN in plans:
                    record["networks"] += networks(UNEVEN, device, dtypes[0], compiled, options.rounds, receptive_field)
    if options.only != "networks":
        for dtype in options.dtype or {"cpu": ["float32", "bfloat16"], "cuda": ["float16"]}[device]:
            record["operator"] += operators(device, dtype, options.rounds)
    write_whole(out, json.dumps(record, indent=1))
    print(f"\nwritten: {out}")


def machine(device: str) -> dict[str, str]:
    """What the numbers depend on."""
    found = {"torch": torch.__version__, "python": platform.python_version()}
    for name in ("numba", "triton"):
        try:
            found[name] = __import__(name).__version__
        except Exception:  # not there, or not for this machine
            continue
    if device == "cuda":
        return {"device": torch.cuda.get_device_name()} | found
    cpu = next(
        (line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    return {"device": f"{cpu}, {torch.get_num_threads()} threads"} | found


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def networks(
    plan: Plan, device: str, dtype: str, compiled: bool, rounds: int, receptive_field: float = 2.0
) -> list[dict]:
    """Measure one plan's networks, and print their table."""
    batch, patch = plan.size(device)
    title = f"{plan.name}: {batch} x {' x '.join(map(str, patch))}, {dtype}, RF {receptive_field:g}"
    torch._dynamo.reset()
    names = field.contestants(device)
    made = [Contestant(name, plan, device, DTYPES[dtype], compiled, receptive_field) for name in names]
    rows = [
        {"plan": plan.name, "dtype": dtype, "receptive_field": receptive_field, "contestant": name} for name in names
    ]
    calls = {"step": Contestant.step, "forward": Contestant.forward, "inference": Contestant.infer}
    for mode in MODES:
        turns = [lambda one=one, mode=mode: calls[mode](one) for one in made]
        many = rounds if mode == "step" else rounds * MORE_ROUNDS
        for row, seconds in zip(rows, taking_turns(turns, many, device, f"{title}: {mode}"), strict=True):
            row[f"{mode}_s"] = seconds
    if device == "cuda":
        for row, one in zip(rows, made, strict=True):
            for mode in ("step", "inference"):
                row[f"{mode}_mib"] = peak_on_cuda(lambda one=one, mode=mode: calls[mode](one))
    del made, turns
    gc.collect()
    if device == "cpu":
        for row in rows:
            for mode in ("step", "inference"):
                progress(f"{title}: memory of {row['contestant']}, {mode}")
                row[f"{mode}_mib"] = peak_on_cpu(row["contestant"], plan, dtype, mode)
    print_table(title, rows, [f"{mode}_s" for mode in MODES] + ["step_mib", "inference_mib"])
    return rows


def operators(device: str, dtype: str, rounds: int) -> list[dict]:
    """The operator alone, forward and backward, at the finest stage of the uneven plan and an isotropic one."""
    large = device == "cuda"
    stages = [  # name, batch, channels, size of the value, stride
        ("stride (1, 2, 2)", *((2, 32, (48, 96, 96)) if large else (1, 32, (32, 48, 48))), (1, 2, 2)),
        ("stride (2, 2, 2)", *((2, 32, (64, 64, 64)) if large else (1, 32, (32, 32, 32))), (2, 2, 2)),
        ("2D, stride (2, 2)", *((12, 32, (256, 256)) if large else (2, 32, (128, 128))), (2, 2)),
    ]
    names = [name for name in field.contestants(device) if name != "vanilla"]
    rows = []

    def measure(
        label: str, batch: int, channels: int, size: Sequence[int], stride: Sequence[int], reach: float
    ) -> None:
        made = [
            Operator(name, batch, channels, tuple(size), tuple(stride), reach, device, DTYPES[dtype]) for name in names
        ]
        times = taking_turns([one.step for one in made], rounds, device, f"operator {label} RF {reach:g}")
        for name, seconds in zip(names, times, strict=True):
            rows.append(
                {"operator": label, "dtype": dtype, "size": [batch, channels, *size], "stride": list(stride),
                 "receptive_field": reach, "contestant": name, "step_s": seconds}
            )  # fmt: skip

    for label, batch, channels, size, stride in stages:
        for reach in FIELDS:
            measure(label, batch, channels, size, stride, reach)
            print_table(f"operator, {label}, {dtype}, RF {reach:g}", rows[-len(names) :], ["step_s"])
    label, batch, channels, size, stride = stages[0]
    for factor in (0.5, 1, 2):  # twice the voxels at each step
        grown_size = (round(size[0] * factor), *size[1:])
        measure("growth", batch, channels, grown_size, stride, 2.0)
        print_table(f"operator, growth, {dtype}, {' x '.join(map(str, grown_size))}", rows[-len(names) :], ["step_s"])
    return rows


def taking_turns(calls: Sequence[Callable[[], None]], rounds: int, device: str, title: str) -> list[list[float]]:
    """Seconds of every call in every round; in each round all have their turn."""
    for call in calls:
        for _ in range(WARM_UP[device]):
            call()
    seconds: list[list[float]] = [[] for _ in calls]
    for done in range(rounds):
        progress(f"{title}, round {done + 1} of {rounds}")
        for call, times in zip(calls, seconds, strict=True):
            synchronize(device)
            start = time.perf_counter()
            call()
            synchronize(device)
            times.append(time.perf_counter() - start)
    return seconds


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def peak_on_cuda(call: Callable[[], None]) -> float:
    """MiB that torch's allocator had handed out at most, above what was there before."""
    call()
    torch.cuda.synchronize()
    gc.collect()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1024**2


def peak_on_cpu(name: str, plan: Plan, dtype: str, mode: str) -> float | None:
    """MiB by which a process of its own grows; nothing else can hide in it."""
    done = subprocess.run(
        [sys.executable, __file__, "--memory-of", name, plan.name, dtype, mode],
        env=os.environ | MALLOC, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        sys.exit(f"the memory of {name} could not be measured: {why_ended(done)}")
    return json.loads(done.stdout.splitlines()[-1])


def grown(name: str, plan: str, dtype: str, mode: str) -> float | None:
    """In that process."""
    one = Contestant(name, next(p for p in PLANS if p.name == plan), "cpu", DTYPES[dtype], False)
    call = {"step": one.step, "inference": one.infer}[mode]
    call()  # libraries and compiled code are loaded, the optimizer has its state
    gc.collect()
    before = resident_mib()
    forget_peak()
    call()
    after = peak_resident_mib()
    return None if before is None or after is None else after - before


def ratio(ours: Sequence[float], first: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, first, strict=True))


def print_table(title: str, rows: Sequence[dict], columns: Sequence[str]) -> None:
    progress("")
    print(f"\n{title}")
    print(f"{'':12}" + "".join(f"{column.removesuffix('_s').replace('_mib', ' memory'):>24}" for column in columns))
    for row in rows:
        cells = []
        for column in columns:
            value, first = row[column], rows[0][column]
            if isinstance(value, list):
                cells.append(f"{statistics.median(value) * 1e3:.1f} ms {ratio(value, first):6.3f} x")
            elif value is None:
                cells.append("not measured")
            else:
                cells.append(f"{value:.0f} MiB {value / first:6.3f} x")
        print(f"{row['contestant']:12}" + "".join(f"{cell:>24}" for cell in cells), flush=True)


def progress(text: str) -> None:
    """One line that is written over, where there is a terminal."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
