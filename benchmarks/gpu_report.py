"""Measure on a GPU what cannot be measured without one, within eight minutes and with what a bare GPU machine has.

    python benchmarks/gpu_report.py                       gpu_report/gpu_report.json and gpu_report.md
    python benchmarks/gpu_report.py --out FOLDER          elsewhere
    python benchmarks/gpu_report.py --parts operator gather
    python benchmarks/gpu_report.py --device cpu --quick  tiny sizes, to try the script without a GPU
    python benchmarks/gpu_report.py --interpret           the same with Triton's interpreter in place of a GPU
    python benchmarks/draw_speed.py gpu_report/gpu_report.json FILE.png

Needs torch, triton and numpy; pytest and packaging are optional, and nnunet_dtc need not be
installed. Each part (``gpu_parts.py``) runs in a process of its own, because an illegal access on the GPU ends the
process. A part stops when its time is up, or ends with the reason why it cannot run; the others go on. The files are
written after each part.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
PARTS = {  # title, and a weight for the time that is left for it and those after it
    "machine": ("The machine", 20),
    "self_check": ("Kernels against the reference", 40),
    "operator": ("The operator by backend and receptive field", 80),
    "gather": ("The gradient of the value: gather against scatter", 40),
    "steps": ("Training steps", 130),
    "blocks": ("Block sizes of the kernels", 60),
    "scan": ("The selective scan", 40),
    "tests": ("tests/test_backends.py", 60),
}
TOTAL_SECONDS = 460
FEWEST_SECONDS = 2
GRACE_SECONDS = 8  # for what is being measured when the time is up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes and few rounds")
    parser.add_argument("--interpret", action="store_true", help="Triton's interpreter; implies --device cpu --quick")
    parser.add_argument("--parts", nargs="+", choices=tuple(PARTS), default=list(PARTS), metavar="PART")
    parser.add_argument("--seconds", type=float, default=TOTAL_SECONDS, help=f"in total, default: {TOTAL_SECONDS}")
    parser.add_argument("--out", type=Path, default=Path("gpu_report"), help="folder, default: gpu_report")
    options = parser.parse_args()
    if options.interpret:
        # the part self_check alone checks the kernels, because the interpreter is slow
        os.environ |= {"TRITON_INTERPRET": "1", "NNUNET_DTC_SELF_CHECK": "0"}
        options.device, options.quick = "cpu", True
    if not options.seconds > 0:
        parser.error(f"--seconds must be positive, got {options.seconds:g}")
    if present := [file for file in (options.out / "gpu_report.json", options.out / "gpu_report.md") if file.exists()]:
        parser.error(f"{present[0]} is there already; --out names another folder")
    options.out.mkdir(parents=True, exist_ok=True)

    deadline = time.monotonic() + options.seconds
    names = [name for name in PARTS if name == "machine" or name in options.parts]
    record: dict = {"device": options.device, "quick": options.quick, "parts": {}}
    for place, name in enumerate(names):
        weights = [PARTS[later][1] for later in names[place:]]
        seconds = max(deadline - time.monotonic(), 0) * weights[0] / sum(weights)
        print(f"{PARTS[name][0]} (at most {seconds:.0f} s) ...", flush=True)
        if seconds < FEWEST_SECONDS:
            part = {"rows": [], "notes": [], "problem": "skipped: no time was left", "seconds": 0.0}
        else:
            part = run_part(name, options.device, options.quick, seconds)
        record["parts"][name] = {"title": PARTS[name][0], **part}
        (options.out / "gpu_report.json").write_text(json.dumps(record, indent=1))
        (options.out / "gpu_report.md").write_text(markdown(record))
        state = part["problem"] or "done"
        print(f"  {len(part['rows'])} rows in {part['seconds']:.0f} s: {state}", flush=True)
    print(f"written: {options.out / 'gpu_report.json'} and {options.out / 'gpu_report.md'}")


def run_part(name: str, device: str, quick: bool, seconds: float) -> dict:
    """Run a part in a process of its own, and end it when its time is up.

    Returns:
        ``rows``, ``notes`` (sentences), ``problem`` (why the part is not complete, or None) and ``seconds``.
    """
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        lines, errors = Path(folder, "lines"), Path(folder, "errors")
        lines.touch()
        command = [sys.executable, str(HERE / "gpu_parts.py"), name, device, f"{seconds:.1f}", str(lines)]
        with errors.open("w") as stream:
            process = subprocess.Popen(
                command + ["--quick"] * quick, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                code: int | None = process.wait(seconds + GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                code = None
            finally:  # with the processes that it has started, also where this one is interrupted
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        found = [json.loads(line) for line in lines.read_text().splitlines() if line.endswith("}")]
        last = ([line for line in errors.read_text(errors="replace").splitlines() if line.strip()] or ["no message"])[
            -1
        ]
    problems = [line["problem"] for line in found if "problem" in line]
    if code is None:
        problems.append(f"ended after {seconds:.0f} s, when its time was up")
    elif code != 0:
        problems.append(f"failed with exit code {code}: {last}")
    return {
        "rows": [line["row"] for line in found if "row" in line],
        "notes": [line["note"] for line in found if "note" in line],
        "problem": "; ".join(problems) or None,
        "seconds": round(time.monotonic() - start, 1),
    }


def markdown(record: dict) -> str:
    """The report, a table for each part."""
    blocks = ["# Measured by `benchmarks/gpu_report.py`"]
    if record["quick"]:
        blocks.append("**With `--quick`: tiny sizes, which try the script. The times say nothing about speed.**")
    for name, part in record["parts"].items():
        blocks.append(f"## {part['title']}")
        if part["problem"]:
            blocks.append(f"Not complete: {part['problem']}.")
        blocks += part["notes"]
        rows = part["rows"]
        if name == "machine" and rows:
            blocks.append(table([{"property": title(key), "value": value} for key, value in rows[0].items()]))
        elif rows:
            blocks.append(table(rows))
    return "\n\n".join(blocks) + "\n"


def table(rows: list[dict]) -> str:
    """Rows as a table in Markdown, with a column for each key that any row has."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    lines = [
        " | ".join(title(key) for key in keys),
        " | ".join("--:" if any(is_number(row.get(key)) for row in rows) else "---" for key in keys),
        *(" | ".join(cell(row.get(key)) for key in keys) for row in rows),
    ]
    return "\n".join(f"| {line} |" for line in lines)


def title(key: str) -> str:
    return key.replace("_", " ")


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return str(value).replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    main()
