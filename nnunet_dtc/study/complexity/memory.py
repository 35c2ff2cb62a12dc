"""Peak memory of a training step, measured in a separate process for each trainer.

On CUDA it is the maximum that torch's allocator had allocated and reserved during steps after the warm-up. On the CPU
it is the growth of the process: its largest resident size during the steps minus its size before the network was built
(Python, torch and nnU-Net alone take some hundred MiB). On other devices nothing is measured. MiB are 1024 * 1024
bytes.

In this process glibc returns freed blocks to the system at once (`MALLOC`). In a training on the CPU the blocks that it
retains by default are added to the peak.

The process runs this module with the files of a request and of a result as arguments.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from nnunet_dtc.files import write_whole
from nnunet_dtc.ops.dtc import DTC2d, DTC3d
from nnunet_dtc.plugin.finder import find_trainer
from nnunet_dtc.study.complexity.bench import Bench, nnunet_settings
from nnunet_dtc.study.complexity.counting import MIB
from nnunet_dtc.study.complexity.planned import ComplexityError, PlannedTraining
from nnunet_dtc.study.complexity.process_memory import MALLOC, forget_peak, peak_resident_mib, resident_mib, why_ended
from nnunet_dtc.study.processes import guarded

__all__ = ["PeakMemory", "measure_peak_memory"]

STEPS = 2  # after the warm-up, after which all steps need the same memory


@dataclass(frozen=True)
class PeakMemory:
    """Peak memory of the training steps of one trainer in MiB.

    Attributes:
        peak_mib: allocated by torch on CUDA, growth of the process on the CPU; None if it cannot be measured.
        reserved_mib: reserved by torch on CUDA; None on other devices.
    """

    peak_mib: float | None = None
    reserved_mib: float | None = None


def measure_peak_memory(trainer_name: str, training: PlannedTraining, device: torch.device) -> PeakMemory:
    """Do some training steps in a new process, and measure their peak memory.

    Raises:
        ComplexityError: the process failed or was killed.
    """
    if device.type not in ("cpu", "cuda"):
        return PeakMemory()
    with tempfile.TemporaryDirectory(prefix="nnunet_dtc_complexity_") as folder:
        request, result = Path(folder) / "request.json", Path(folder) / "result.json"
        request.write_text(
            json.dumps({"trainer": trainer_name, "training": asdict(training), "device": device.type}), encoding="utf-8"
        )
        command = [sys.executable, "-m", "nnunet_dtc.study.complexity.memory", request, result]
        options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        # its temporary files are in this folder, because it is killed if this process is interrupted
        with guarded(command, env=os.environ | MALLOC | {"TMPDIR": folder}, **options) as process:
            errors = process.communicate()[1]
        done = subprocess.CompletedProcess(command, process.returncode, "", errors)
        if done.returncode != 0:
            raise ComplexityError(f"the memory of {trainer_name} could not be measured: {why_ended(done)}")
        return PeakMemory(**json.loads(result.read_text(encoding="utf-8")))


def _measure(trainer_name: str, training: PlannedTraining, device: torch.device) -> PeakMemory:
    """Measure the peak memory in this process."""
    trainer = find_trainer(trainer_name)
    _load_libraries(device)
    before = resident_mib()
    forget_peak()
    bench = Bench(trainer, training, device)
    try:
        with nnunet_settings():
            bench.warm_up()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
                torch.cuda.reset_peak_memory_stats(device)
            for _ in range(STEPS):
                bench.step()
            if device.type == "cuda":
                return PeakMemory(
                    torch.cuda.max_memory_allocated(device) / MIB, torch.cuda.max_memory_reserved(device) / MIB
                )
            after = peak_resident_mib()
    finally:
        bench.close()
    return PeakMemory(after - before if before is not None and after is not None else None)


def _load_libraries(device: torch.device) -> None:
    """Load what any first step loads, so that it is not counted: convolutions, optimizers, dynamo, DTC's backend."""
    network = torch.nn.Sequential(torch.nn.Conv3d(1, 2, 3), torch.nn.ConvTranspose3d(2, 1, 2, 2))
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    network(torch.ones(1, 1, 4, 4, 4)).sum().backward()
    optimizer.step()
    if device.type == "cpu":  # the only device where the growth of the process is measured
        DTC2d(1, 1, 2)(torch.ones(1, 1, 3, 3)).sum().backward()
        DTC3d(1, 1, 2)(torch.ones(1, 1, 3, 3, 3)).sum().backward()


def run_request(request: str, result: str) -> None:
    """Measure what the file of a request names, and write the file of the result; exits with a message on errors."""
    content = json.loads(Path(request).read_text(encoding="utf-8"))
    training = PlannedTraining(**content["training"])
    try:
        peak = _measure(content["trainer"], training, torch.device(content["device"]))
    except ComplexityError as error:
        sys.exit(" ".join(str(error).split()))
    write_whole(Path(result), json.dumps(asdict(peak)))


if __name__ == "__main__":
    run_request(*sys.argv[1:])
