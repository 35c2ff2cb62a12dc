"""Count and measure several trainers: table 7 of the paper for given plans."""

import contextlib
import importlib.metadata
import math
import os
import platform
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from nnunet_dtc._version import __version__
from nnunet_dtc.plugin.environment import environment
from nnunet_dtc.plugin.finder import find_trainer
from nnunet_dtc.plugin.planned_networks import describe_error
from nnunet_dtc.study.complexity.bench import Bench, nnunet_settings
from nnunet_dtc.study.complexity.counting import count_macs, count_parameters, parameters_mib
from nnunet_dtc.study.complexity.memory import PeakMemory, measure_peak_memory
from nnunet_dtc.study.complexity.planned import ComplexityError, PlannedTraining, is_vanilla
from nnunet_dtc.torch_internals import compiler_config

__all__ = [
    "QUANTITIES",
    "Complexity",
    "Machine",
    "TrainerComplexity",
    "count_trainers",
    "find_trainers",
    "measure_trainers",
    "survey_trainers",
]

Progress = Callable[[str, int, int], None]

# quantities with ratios in the order of the tables, named as in the JSON file
QUANTITIES = ("parameters", "macs", "step_seconds", "inference_seconds", "peak_memory_mib")


@dataclass(frozen=True)
class TrainerComplexity:
    """The costs of one trainer; None or empty if not measured.

    Attributes:
        parameters: number of parameters of the network.
        macs: multiply-accumulates of the forward pass of one patch, see `counting`.
        step_runs: seconds of each timed training step.
        inference_runs: seconds of each timed forward pass of one patch.
        peak_memory_mib: peak memory of a training step, see `memory`.
        peak_memory_reserved_mib: reserved memory of a training step, see `memory`.
    """

    parameters: int
    macs: int
    step_runs: tuple[float, ...] = ()
    inference_runs: tuple[float, ...] = ()
    peak_memory_mib: float | None = None
    peak_memory_reserved_mib: float | None = None

    @property
    def parameters_mib(self) -> float:
        """Size of the parameters in float32, "Params (M)" of table 7."""
        return parameters_mib(self.parameters)

    @property
    def step_seconds(self) -> float | None:
        """Median of the training steps."""
        return statistics.median(self.step_runs) if self.step_runs else None

    @property
    def inference_seconds(self) -> float | None:
        """Median of the forward passes."""
        return statistics.median(self.inference_runs) if self.inference_runs else None


@dataclass(frozen=True)
class Machine:
    """Where it was measured.

    Attributes:
        device: "cpu", "cuda", "mps".
        name: name of the GPU or CPU.
        threads: that torch computes with on the CPU.
        compiled: whether training ran through torch.compile.
    """

    device: str
    name: str
    threads: int
    compiled: bool


@dataclass(frozen=True)
class Complexity:
    """The costs of several trainers; the first is the one that the others are compared with.

    Attributes:
        training: plans, configuration and sizes.
        trainers: name to costs.
        machine: the machine; None if nothing was measured.
        repeats: timed runs of each trainer.
        notes: remarks for the reader.
    """

    training: PlannedTraining
    trainers: dict[str, TrainerComplexity]
    machine: Machine | None
    repeats: int
    notes: tuple[str, ...]

    @property
    def baseline(self) -> str:
        """The first trainer."""
        return next(iter(self.trainers))

    def ratio(self, trainer: str, quantity: str) -> float | None:
        """One of QUANTITIES relative to the first trainer; None if one of the two is not known or 0."""
        own, first = (getattr(self.trainers[name], quantity) for name in (trainer, self.baseline))
        return own / first if own is not None and first else None


def find_trainers(names: Sequence[str]) -> dict[str, type]:
    """Find the classes of trainers by their names.

    Raises:
        ComplexityError: no name is given, or one of them twice.
        TrainerNotFoundError: there is no trainer of this name, see ``find_trainer``.
    """
    if not names:
        raise ComplexityError("give at least one trainer, such as nnUNetTrainerDTC")
    if twice := sorted({name for name in names if list(names).count(name) > 1}):
        raise ComplexityError(f"each trainer can be given once, got {', '.join(twice)} several times")
    return {name: find_trainer(name) for name in names}


def survey_trainers(
    training: PlannedTraining,
    trainers: dict[str, type],
    device: torch.device | None,
    repeats: int = 10,
    progress: Progress = lambda step, done, total: None,
) -> Complexity:
    """Count all trainers, then measure them: :func:`count_trainers` and, on a device, :func:`measure_trainers`.

    Args:
        training: plans and sizes.
        trainers: names and classes from ``find_trainers``.
        device: device to measure on; None to count only.
        repeats: timed training steps, and timed forward passes, of each trainer.
        progress: called with (step, done, total).

    Raises:
        NnunetDtcError: see these two functions.
    """
    if device is not None:
        _check_repeats(repeats)
    counted = count_trainers(training, trainers, progress, trains=device is not None)
    return counted if device is None else measure_trainers(counted, trainers, device, repeats, progress)


def count_trainers(
    training: PlannedTraining,
    trainers: dict[str, type],
    progress: Progress = lambda step, done, total: None,
    *,
    trains: bool = False,
) -> Complexity:
    """Build the networks of all trainers, and count their parameters and multiply-accumulates.

    Args:
        training: plans and sizes.
        trainers: names and classes from ``find_trainers``.
        progress: called with (step, done, total).
        trains: also check that the networks can be trained with such batches.

    Raises:
        ComplexityError: a network does not accept the patch, or cannot be trained with such batches.
        NetworkError: a network cannot be built, or the network or a training step does not fit into memory.
    """
    if trains:
        training.check_memory()
    for trainer in trainers.values():
        training.check_patch(trainer, trains)
    notes = _notes_before(training, trainers)
    counts = {}
    for done, (name, trainer) in enumerate(trainers.items()):
        progress("counting", done, len(trainers))
        network = training.build_network(trainer, deep_supervision=False)
        try:
            macs = count_macs(network, training.input_channels, training.patch_size)
        except Exception as error:  # from the code of any network
            reason = describe_error(error)
            if planned := training.why_not_planned():  # the network may still be the planned one
                reason = f"{planned} ({reason})"
            raise training.patch_refused(trainer, reason) from error
        counts[name] = TrainerComplexity(count_parameters(network), macs.total)
        if macs.uncounted:
            notes.append(f"{name}: the MACs leave out {', '.join(macs.uncounted)}, for which there is no formula")
    progress("counting", len(trainers), len(trainers))
    return Complexity(training, counts, None, 0, tuple(notes))


def measure_trainers(
    counted: Complexity,
    trainers: dict[str, type],
    device: torch.device,
    repeats: int = 10,
    progress: Progress = lambda step, done, total: None,
) -> Complexity:
    """Measure times and memory of trainers.

    Peak memory is measured in one process per trainer. Times are medians of runs in this process. The trainers take
    turns (first, second, first, second, ...), so that other load of the machine affects all of them.

    Args:
        counted: result of ``count_trainers`` with ``trains``.
        trainers: the same trainers.
        device: device to measure on.
        repeats: timed training steps, and timed forward passes, of each trainer.
        progress: called with (step, done, total).

    Raises:
        ComplexityError: a trainer fails; the message names it and the reason.
    """
    _check_repeats(repeats)
    training, notes = counted.training, list(counted.notes)
    peaks: dict[str, PeakMemory] = {}
    with _own_compiler_cache():
        for done, name in enumerate(trainers):
            progress("peak memory", done, len(trainers))
            peaks[name] = measure_peak_memory(name, training, device)
        progress("peak memory", len(trainers), len(trainers))
        steps, forwards, compiled = _times(training, trainers, device, repeats, progress, notes)
    measured = {
        name: replace(
            counted.trainers[name],
            step_runs=tuple(steps[name]),
            inference_runs=tuple(forwards[name]),
            peak_memory_mib=peaks[name].peak_mib,
            peak_memory_reserved_mib=peaks[name].reserved_mib,
        )
        for name in trainers
    }
    machine = Machine(device.type, _device_name(device), torch.get_num_threads(), compiled)
    return Complexity(training, measured, machine, repeats, tuple(notes))


def _check_repeats(repeats: int) -> None:
    if repeats < 1:
        raise ComplexityError(f"repeats must be at least 1, got {repeats}")


def _times(
    training: PlannedTraining,
    trainers: dict[str, type],
    device: torch.device,
    repeats: int,
    progress: Progress,
    notes: list[str],
) -> tuple[dict[str, list[float]], dict[str, list[float]], bool]:
    """Seconds of the training steps and forward passes of each trainer, and whether the training is compiled."""
    steps: dict[str, list[float]] = {name: [] for name in trainers}
    forwards: dict[str, list[float]] = {name: [] for name in trainers}
    skipped = set()
    benches: dict[str, Bench] = {}
    runs = repeats * len(trainers)
    try:
        with nnunet_settings(), each_compiled(len(trainers)):
            for done, (name, trainer) in enumerate(trainers.items()):
                progress("warm-up", done, len(trainers))
                benches[name] = Bench(trainer, training, device)
                benches[name].warm_up()
            progress("warm-up", len(trainers), len(trainers))
            compiled = any(bench.compiles for bench in benches.values())
            for done in range(runs):
                progress("training steps", done, runs)
                name = list(benches)[done % len(benches)]
                seconds, loss = benches[name].timed_step()
                steps[name].append(seconds)
                if not math.isfinite(loss):
                    skipped.add(name)
            progress("training steps", runs, runs)
            for bench in benches.values():
                bench.start_inference()
            for done in range(runs):
                progress("inference", done, runs)
                name = list(benches)[done % len(benches)]
                forwards[name].append(benches[name].timed_inference())
            progress("inference", runs, runs)
    finally:
        for bench in benches.values():
            bench.close()
    notes += [f"{name}: a loss was not finite, its step may have been skipped" for name in sorted(skipped)]
    return steps, forwards, compiled


@contextlib.contextmanager
def _own_compiler_cache() -> Iterator[None]:
    """Put the cache of torch.compile into a folder that is removed afterwards, unless the user has chosen one."""
    if os.environ.get("TORCHINDUCTOR_CACHE_DIR"):
        yield
        return
    with (
        tempfile.TemporaryDirectory(prefix="nnunet_dtc_complexity_") as folder,
        environment(TORCHINDUCTOR_CACHE_DIR=folder),
    ):
        yield


def each_compiled(trainers: int) -> contextlib.AbstractContextManager:
    """Raise torch.compile's limit of graphs per `forward`, beyond which networks run without compilation.

    Each trainer needs graphs for training and prediction, and many networks are of one class.
    """
    config = compiler_config()
    return config.patch(
        recompile_limit=max(config.recompile_limit, 4 * trainers),
        accumulated_recompile_limit=max(config.accumulated_recompile_limit, 32 * trainers),
    )


def _notes_before(training: PlannedTraining, trainers: dict[str, type]) -> list[str]:
    notes = []
    baseline = next(iter(trainers))
    if len(trainers) > 1 and not is_vanilla(trainers[baseline]):
        vanilla = [name for name, trainer in trainers.items() if is_vanilla(trainer)]
        notes.append(
            f"the ratios are relative to {baseline}, the first trainer, and not to nnU-Net's own network, which "
            + (f"{', '.join(vanilla)} has" if vanilla else "none of these trainers has (nnUNetTrainer has it)")
        )
    if training.changed:
        notes.append("the sizes are not the planned ones, for which costs and ratios may differ")
    return notes


def versions() -> dict[str, str]:
    """Versions of the packages that the numbers depend on."""
    found = {"nnunet_dtc": __version__, "torch": torch.__version__, "nnunetv2": importlib.metadata.version("nnunetv2")}
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    return found | {"python": platform.python_version()}


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
