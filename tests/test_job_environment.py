"""The environment of a study's jobs: threads, processes and memory of the programs that they start."""

import os
import subprocess
import sys

import pytest

from nnunet_dtc.study.workflow.job_environment import job_environment

SETTINGS = ("nnUNet_n_proc_DA", "nnUNet_def_n_proc", "PYTHON_CPU_COUNT", "PYTHONPATH", "SLURM_CPUS_PER_TASK")
SETTINGS += ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")

CORES = """
import multiprocessing, os, sys

def cores():
    return os.cpu_count(), multiprocessing.cpu_count()

if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(cores(), pool.apply(cores), getattr(sys, "greeting", ""))
"""

FAULTS = """
import resource, torch
from torch import nn

torch.set_num_threads(1)
layers = [[nn.Conv3d(8, 8, 3, padding=1), nn.InstanceNorm3d(8), nn.LeakyReLU(inplace=True)] for _ in range(4)]
network = nn.Sequential(nn.Conv3d(1, 8, 1), *sum(layers, []))

def step():
    network(torch.randn(2, 1, 40, 56, 40)).square().mean().backward()

for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 5)
"""


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch):
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)


def printed(code, tmp_path, **environment):
    script = tmp_path / "script.py"
    script.write_text(code)
    env = {**os.environ, **environment}
    return subprocess.run([sys.executable, script], env=env, check=True, capture_output=True, text=True).stdout.strip()


def test_on_a_cpu_python_counts_one_core_also_in_other_processes(tmp_path):
    assert printed(CORES, tmp_path, **job_environment("cpu")) == "(1, 1) (1, 1)"


@pytest.mark.parametrize(("value", "cores"), [("3", 3), ("default", os.cpu_count()), ("0", os.cpu_count())])
def test_the_number_of_cores_is_the_users(tmp_path, monkeypatch, value, cores):
    """The values that Python 3.13 accepts; Python 3.13 itself refuses 0."""
    if value == "0" and sys.version_info >= (3, 13):
        pytest.skip("Python refuses it")
    monkeypatch.setenv("PYTHON_CPU_COUNT", value)
    assert printed(CORES, tmp_path, **job_environment("cpu")) == f"({cores}, {cores}) ({cores}, {cores})"


def test_the_users_own_sitecustomize_and_modules_are_imported(tmp_path, monkeypatch):
    (tmp_path / "own").mkdir()
    code = f"import sys, mine; sys.greeting = mine.GREETING; sys.path.append({str(tmp_path / 'added')!r})"
    (tmp_path / "own" / "sitecustomize.py").write_text(code)
    (tmp_path / "own" / "mine.py").write_text("GREETING = 'hello'\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "own"))
    assert printed(CORES, tmp_path, **job_environment("cpu")) == "(1, 1) (1, 1) hello"
    assert printed("import sys; print(sys.path[-1])", tmp_path, **job_environment("cpu")) == str(tmp_path / "added")


def test_what_the_user_has_set_is_kept(monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "5")
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")
    assert not {"nnUNet_n_proc_DA", "MALLOC_TRIM_THRESHOLD_"} & job_environment("cpu").keys()
    assert job_environment("cpu")["nnUNet_def_n_proc"] == "1"


def test_on_a_gpu_there_are_as_many_processes_as_the_scheduler_gives_cores(monkeypatch):
    assert job_environment("cuda") == {}
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "12")
    assert job_environment("cuda") == {"nnUNet_n_proc_DA": "12", "nnUNet_def_n_proc": "8"}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="settings of glibc")
def test_freed_tensors_are_not_returned_to_the_system(tmp_path):
    """Each page that the system has to give again is a fault; this counts those of an iteration."""
    without, with_ = int(printed(FAULTS, tmp_path)), int(printed(FAULTS, tmp_path, **job_environment("cpu")))
    if without < 2000:
        pytest.skip("this C library keeps freed memory by default")
    assert with_ < without / 4
