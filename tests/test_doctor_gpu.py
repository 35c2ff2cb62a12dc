"""What the doctor says of a GPU: from facts that are filled in here, and from what can be examined without one."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nnunet_dtc.ops.backends import timing
from nnunet_dtc.ops.backends.timing import Passes, Stage
from nnunet_dtc.plugin import doctor, gpu

FACTS = gpu.GpuFacts(
    card="NVIDIA H100",
    capability=(9, 0),
    driver="550.54.15",
    triton="3.4.0",
    compiler="/usr/bin/gcc",
    compiler_exists=True,
    cache=Path("/home/a/.triton/cache"),
    cache_problem=None,
    problem=None,
    worst=0.25,
    times={"reference": 12.3456, "triton, gather": 0.8, "triton, scatter": 1.1},
)


def findings(**changes):
    """State, text and advice of each finding by its subject."""
    found = list(doctor.gpu_findings(dataclasses.replace(FACTS, **changes)))
    assert len({finding.subject for finding in found}) == len(found)
    return {finding.subject: (finding.state, finding.seen, finding.advice) for finding in found}


def test_a_gpu_where_all_is_well():
    found = findings()
    assert {state for state, *_ in found.values()} == {"ok"}
    assert found["GPU"][1] == "NVIDIA H100, compute capability 9.0, driver 550.54.15"
    assert found["triton"][1] == "3.4.0"
    assert found["C compiler"][1] == "/usr/bin/gcc"
    assert found["Triton's cache"][1] == str(FACTS.cache)
    assert "25% of its tolerance" in found["self-check"][1]
    times = found["time of the operator"][1]
    assert times.startswith("12.35 ms (reference); 0.80 ms (triton, gather); 1.10 ms (triton, scatter), for 2 x 64")


@pytest.mark.parametrize(
    ("changes", "subject", "seen", "advice"),
    [
        ({"compiler": None, "compiler_exists": False}, "C compiler", "none found", "apt-get install gcc"),
        ({"compiler": "icc", "compiler_exists": False}, "C compiler", "CC=icc", "unset CC"),
        ({"cache_problem": "Read-only file system"}, "Triton's cache", "Read-only file system", "TRITON_CACHE_DIR"),
        ({"problem": "the output has an error of 3"}, "self-check", "the output has an error of 3", "report"),
        ({"worst": float("nan")}, "self-check", "skipped by NNUNET_DTC_SELF_CHECK", "unset NNUNET_DTC_SELF_CHECK"),
        ({"times": {"reference": 1.0, "triton, gather": 2.0}}, "time of the operator", "2.00 ms", "report"),
        ({"times": {}, "times_problem": "no memory"}, "time of the operator", "not measured", "no memory"),
    ],
)  # fmt: skip
def test_each_problem_is_a_note_with_advice_and_nothing_else_changes(changes, subject, seen, advice):
    found = findings(**changes)
    state, text, help_ = found.pop(subject)
    assert state == "note"
    assert seen in text
    assert advice in help_
    assert found == {key: value for key, value in findings().items() if key != subject}


def test_without_triton_nothing_is_said_of_its_kernels():
    found = findings(triton=None, problem="triton is not installed")
    assert list(found) == ["GPU", "triton"]
    assert found["triton"][:2] == ("note", "not installed")


def test_the_interpreter_has_no_card_and_is_not_timed():
    found = findings(card=None, capability=None, times={})
    assert list(found) == ["triton", "Triton's cache", "self-check"]


def test_on_a_machine_without_a_gpu_nothing_is_examined(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "c_compiler", lambda: pytest.fail("examined"))
    assert list(doctor.examine_gpu()) == []


def test_the_interpreter_is_examined():
    pytest.importorskip("triton")
    lines = [
        "import os, torch",
        "os.environ['TRITON_INTERPRET'] = '1'",
        "torch.cuda.is_available = lambda: False",
        "from nnunet_dtc.ops.backends import check_cases",
        "check_cases.CASES = [check_cases.OperatorCase((2, 3), (1, 2), 2.0, 5, torch.float32, True, True)]",
        "from nnunet_dtc.plugin import doctor",
        "print(*(f'{found.state} {found.subject}: {found.seen}' for found in doctor.examine_gpu()), sep='\\n')",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    assert "ok self-check: Triton's kernels agree with the reference" in done.stdout
    assert "time of the operator" not in done.stdout


def test_the_c_compiler_is_the_one_that_triton_takes(monkeypatch):
    def programs(*names):
        monkeypatch.setattr(gpu.shutil, "which", lambda name: f"/bin/{name}" if name in names else None)

    monkeypatch.delenv("CC", raising=False)
    programs("clang", "gcc")
    assert gpu.c_compiler() == "/bin/gcc"
    programs("clang")
    assert gpu.c_compiler() == "/bin/clang"
    programs()
    assert gpu.c_compiler() is None
    monkeypatch.setenv("CC", "/opt/icx")
    assert gpu.c_compiler() == "/opt/icx"


def test_tritons_cache(monkeypatch, tmp_path):
    knobs = pytest.importorskip("triton.knobs")
    for variable in ("TRITON_CACHE_DIR", "TRITON_HOME"):
        monkeypatch.delenv(variable, raising=False)
    assert gpu.triton_cache() == Path(knobs.cache.dir)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "here"))
    assert gpu.triton_cache() == tmp_path / "here"


def test_a_folder_that_cannot_be_written(tmp_path):
    assert gpu.why_not_writable(tmp_path / "not" / "made" / "yet") is None
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    assert gpu.why_not_writable(tmp_path / "file" / "cache") is not None


def test_times_on_a_device():
    small = Stage(3, (2, 3, 5), (1, 2, 2), batch=1)
    times, problem = gpu.operator_times(torch.device("cpu"), small, torch.float32)
    assert problem is None
    assert times.keys() >= {"reference"}
    assert all(milliseconds > 0 for milliseconds in times.values())


def test_a_gpu_that_cannot_be_timed():
    times, problem = gpu.operator_times(torch.device("meta"), Stage(1, (2, 2, 2), (1, 1, 1), batch=-1))
    assert times == {}
    assert problem is not None


def test_the_median_of_a_clock(monkeypatch):
    readings = iter([0.0, 1.0, 6.0, 7.0, 8.0, 9.0, 11.0])
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: next(readings)))
    calls = []
    assert timing.median_ms(lambda: calls.append(1), torch.device("cpu"), rounds=3, warm_up=2) == 2000.0
    assert len(calls) == 5


def test_what_takes_too_long_is_timed_three_times():
    calls = []
    timing.median_ms(lambda: calls.append(1), torch.device("cpu"), rounds=50, warm_up=0, seconds=0)
    assert len(calls) == 3


def test_passes_have_the_sizes_and_bytes_of_their_stage():
    passes = Passes(Stage(3, (2, 5, 7), (1, 2, 3), batch=2), torch.device("cpu"), torch.float16, 2.0)
    out = passes.forward(timing.implementations(torch.device("cpu"))["reference"])
    assert out.shape == (2, 3, 2, 10, 21)
    fine, coarse = 2 * 2 * 10 * 21, 2 * 2 * 5 * 7  # with the batch
    assert passes.forward_bytes == 2 * (2 * 3 * fine + 3 * coarse + 6 * fine)
    assert passes.backward_bytes == 2 * (3 * fine + 2 * 3 * coarse + 2 * 6 * fine)
