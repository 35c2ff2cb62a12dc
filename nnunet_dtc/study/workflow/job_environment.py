"""The environment variables with which a study's jobs start nnU-Net's commands: processes, threads and memory."""

import os
import sys
from pathlib import Path

__all__ = ["job_environment"]

PYTHON_CPU_COUNT = Path(__file__).with_name("python_cpu_count")
"""A folder for PYTHONPATH, with which older versions of Python know PYTHON_CPU_COUNT."""

KEEP_FREED_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**33)}  # bytes
"""With these, glibc keeps the memory of freed tensors for the next ones; the first value is its upper limit.

By default it returns memory to the system in each iteration, which then takes up to a quarter of the time of a training
of a small network on a CPU. The peak of the memory is the same.
"""

NNUNETS_PROCESSES = 8
"""nnU-Net's own value of ``nnUNet_def_n_proc``."""


def job_environment(device: str) -> dict[str, str]:
    """Environment variables for the commands of a job, without those that are set already.

    - nnU-Net starts as many processes beside itself as a scheduler has given cores, and one on a CPU, where more would
      take the core from the network. For the export of a validation there are never more than nnU-Net's own 8, because
      each may need several GB.
    - On a CPU a training has one core, and nnU-Net as many threads as Python counts cores. More than one thread would
      wait for each other on one core.

    Args:
        device: `cuda`, `cpu` or `mps`.
    """
    cores = "1" if device == "cpu" else os.environ.get("SLURM_CPUS_PER_TASK")
    values = {}
    if cores is not None:
        values = {"nnUNet_n_proc_DA": cores, "nnUNet_def_n_proc": str(min(int(cores), NNUNETS_PROCESSES))}
    if device == "cpu":
        values |= {"PYTHON_CPU_COUNT": "1", **KEEP_FREED_MEMORY}
    values = {name: value for name, value in values.items() if name not in os.environ}
    if device == "cpu" and sys.version_info < (3, 13):
        before = os.environ.get("PYTHONPATH")
        values["PYTHONPATH"] = os.pathsep.join(filter(None, (str(PYTHON_CPU_COUNT), before)))
    return values
