"""benchmarks/gpu_report.py on the CPU with tiny sizes: its files, its time limits, and a machine with torch alone."""

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "benchmarks" / "gpu_report.py"

STUB = """
import json, subprocess, sys, time
part, device, seconds, file = sys.argv[1:5]
with open(file, "a") as stream:
    print(json.dumps({"row": {"part": part, "device": device}}), file=stream, flush=True)
if part == "operator":
    sys.exit("CUDA error: an illegal memory access")
if part == "gather":
    subprocess.run([sys.executable, "-c", "import time; time.sleep(600)"])
if part == "scan":
    with open(file, "a") as stream:
        print(json.dumps({"note": "a sentence"}), json.dumps({"problem": "skipped: a reason"}), sep="\\n", file=stream)
"""


@pytest.fixture
def report(monkeypatch, tmp_path):
    """The script as a module, whose parts are those of STUB."""
    spec = importlib.util.spec_from_file_location("gpu_report", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "gpu_parts.py").write_text(STUB)
    monkeypatch.setattr(module, "HERE", tmp_path)
    return module


def run(report, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["gpu_report.py", *map(str, arguments)])
    report.main()


def test_tiny_sizes_on_the_cpu(tmp_path):
    command = [sys.executable, SCRIPT, "--device", "cpu", "--quick", "--parts", "operator", "gather", "scan"]
    done = subprocess.run([*command, "--out", tmp_path / "out"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "out" / "gpu_report.json").read_text())
    assert list(record["parts"]) == ["machine", "operator", "gather", "scan"]
    (machine,) = record["parts"]["machine"]["rows"]
    assert machine["torch"] == torch.__version__
    assert machine["copy_gb_per_s"] > 0

    rows = record["parts"]["operator"]["rows"]
    backends = {"reference"} | ({"numba"} if importlib.util.find_spec("numba") else set())
    assert {row["backend"] for row in rows} == backends
    assert {row["receptive_field"] for row in rows} == {1, 2, 4, 10, "inf"}
    assert len(rows) == 2 * 5 * len(backends)
    first = next(row for row in rows if row["stage"] == "1 x 5 channels of 2x4x6, stride (1, 2, 2)")
    fine, coarse = 2 * 8 * 12, 2 * 4 * 6
    assert first["forward_mb"] * 1e6 == pytest.approx(4 * (2 * 5 * fine + 5 * coarse + 6 * fine))
    seconds, bandwidth = first["forward_ms"] / 1e3, first["forward_mb"] * 1e6 / first["forward_share_of_bandwidth"]
    assert 0 < bandwidth / seconds < 1e13

    assert record["parts"]["gather"]["rows"] == []
    assert "needs CUDA" in record["parts"]["gather"]["problem"]
    assert {(row["length"], row["backend"]) for row in record["parts"]["scan"]["rows"]} == {
        (33, "torch"),
        (130, "torch"),
    }
    text = (tmp_path / "out" / "gpu_report.md").read_text()
    assert text.index("## The machine") < text.index(f"| torch | {torch.__version__} |") < text.index("## The operator")
    assert "The times say nothing" in text


def test_a_part_that_fails_or_hangs_does_not_stop_the_others(report, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(report, "GRACE_SECONDS", 0.2)
    monkeypatch.setattr(report, "FEWEST_SECONDS", 0)
    start = time.monotonic()
    parts = ("operator", "gather", "scan")
    run(report, monkeypatch, "--device", "cpu", "--parts", *parts, "--seconds", 6, "--out", tmp_path / "out")
    assert time.monotonic() - start < 12
    found = json.loads((tmp_path / "out" / "gpu_report.json").read_text())["parts"]
    assert all(part["rows"] == [{"part": name, "device": "cpu"}] for name, part in found.items())
    assert found["machine"]["problem"] is None
    assert found["operator"]["problem"] == "failed with exit code 1: CUDA error: an illegal memory access"
    assert "when its time was up" in found["gather"]["problem"]
    assert (found["scan"]["problem"], found["scan"]["notes"]) == ("skipped: a reason", ["a sentence"])
    text = (tmp_path / "out" / "gpu_report.md").read_text()
    assert "Not complete: failed with exit code 1: CUDA error: an illegal memory access." in text
    assert "| scan | cpu |" in text


def test_without_time_the_later_parts_are_skipped(report, monkeypatch, tmp_path):
    run(report, monkeypatch, "--device", "cpu", "--seconds", 0.01, "--out", tmp_path / "out")
    found = json.loads((tmp_path / "out" / "gpu_report.json").read_text())["parts"]
    assert list(found) == list(report.PARTS)
    assert {part["problem"] for part in found.values()} == {"skipped: no time was left"}


def test_an_earlier_report_is_not_overwritten(report, monkeypatch, tmp_path, capsys):
    (tmp_path / "gpu_report.md").write_text("mine")
    with pytest.raises(SystemExit):
        run(report, monkeypatch, "--out", tmp_path)
    assert "is there already; --out names another folder" in capsys.readouterr().err
    assert (tmp_path / "gpu_report.md").read_text() == "mine"


def test_the_budget_is_below_eight_minutes(report):
    assert report.TOTAL_SECONDS + 2 * report.GRACE_SECONDS < 480


def test_tables(report):
    rows = [{"a_b": "x|y", "c": 1234.5}, {"c": 0.123456, "d": True}, {"d": None}]
    assert report.table(rows).splitlines() == [
        "| a b | c | d |",
        "| --- | --: | --- |",
        "| x\\|y | 1,234 |  |",
        "|  | 0.123 | yes |",
        "|  |  |  |",
    ]


def test_its_figure(tmp_path):
    """From a report with a failure in each part that has them, a part without rows and an infinite field."""
    stages = ["2 x 32 channels of 48x96x96, stride (1, 2, 2)", "2 x 64 channels of 24x48x48, stride (2, 2, 2)"]
    step = {"network": "a network", "mode": "eager"}
    rows = {
        "machine": [{"device": "a card", "torch": "2.14", "triton": None}],
        "operator": [
            {"stage": stage, "receptive_field": field, "backend": backend, "forward_ms": 1.0, "backward_ms": 2.0}
            for field in (2.0, "inf") for stage in stages for backend in ("reference", "triton, gather")
        ],
        "gather": [{"stage": stages[0], "samples_in_reach": 108, "gather_ms": 1.0, "scatter_ms": 2.0}],
        "steps": [
            {**step, "variant": "vanilla", "over_vanilla": 1.0},
            {**step, "variant": "DTC, RF 2", "over_vanilla": 1.1},
            {**step, "variant": "DTC, RF 10", "failure": "no memory"},
            {**step, "variant": "DTC, RF 2", "network": "another, whose vanilla failed", "over_vanilla": None},
        ],
        "scan": [],
    }  # fmt: skip
    record = {"quick": False, "parts": {name: {"rows": found} for name, found in rows.items()}}
    (tmp_path / "report.json").write_text(json.dumps(record))
    command = [sys.executable, ROOT / "benchmarks" / "draw_speed.py", tmp_path / "report.json", tmp_path / "figure.png"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pixels = np.asarray(Image.open(tmp_path / "figure.png").convert("L"))
    # two rows of two panels, of which the last is empty
    halves = [np.split(half, [pixels.shape[1] // 2], 1) for half in np.split(pixels, [pixels.shape[0] // 2])]
    dark = [[(panel < 200).mean() for panel in half] for half in halves]
    assert min(dark[0][0], dark[0][1], dark[1][0]) > 0.005
    assert dark[1][1] < 0.005


def test_the_networks_need_neither_nnunet_nor_an_installation():
    lines = [
        "import sys",
        "sys.modules |= {'nnunetv2': None, 'dynamic_network_architectures': None}",
        "sys.meta_path = [finder for finder in sys.meta_path if 'editable' not in repr(finder).lower()]",
        "sys.path = [folder for folder in sys.path if 'editable' not in folder]",
        "sys.path.insert(0, 'benchmarks')",
        "import gpu_networks, gpu_parts, torch",
        "import nnunet_dtc",
        "assert nnunet_dtc.__path__[0] == str(gpu_networks.clone.ROOT / 'nnunet_dtc')",
        "call = lambda step: step() and None or 1.0",
        "for name, variants in gpu_networks.NETWORKS.items():",
        "    if 'U-Net' in name:",
        "        found = gpu_networks.measure(name, variants[-1], torch.device('cpu'), True, False, call)",
        "        print(name, variants[-1].name, found['step_ms'])",
        "from nnunet_dtc.architectures.scan import operators",
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "3D U-Net as planned for BTCV DySampleDTC, RF 2 1.0",
        "the paper's 2D U-Net DySampleDTC, RF 2 1.0",
    ]
