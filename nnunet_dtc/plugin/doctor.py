"""Examine the installation: versions, whether nnU-Net finds the trainers, devices, backends and nnU-Net's folders."""

import importlib.metadata
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from nnunet_dtc.plugin import registration

if TYPE_CHECKING:
    from nnunet_dtc.plugin.gpu import GpuFacts

State = Literal["ok", "note", "wrong"]

PROBED_TRAINERS = ("nnUNetTrainerDTC", "nnUNetTrainerDTC_RF2.5")
_PROBE = """
import sys
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
for name in sys.argv[1:]:
    found = recursive_find_trainer_class_by_name(name)
    again = recursive_find_trainer_class_by_name(name)
    print("FOUND", name, found.__module__, found is again)
"""


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report.

    Attributes:
        subject: what was examined.
        state: "ok", "note" for something to know, or "wrong".
        seen: what was found.
        advice: what to do about it.
    """

    subject: str
    state: State
    seen: str
    advice: str = ""


def examine() -> Iterator[Finding]:
    """Examine everything, one finding at a time. The trainer search takes some seconds."""
    yield from examine_versions()
    yield examine_torchvision()
    yield from examine_registration()
    yield examine_search()
    yield examine_device()
    yield from examine_backends()
    yield from examine_gpu()
    yield from examine_selective_scan()
    yield from examine_folders()


def examine_versions() -> Iterator[Finding]:
    """The versions of Python, of this package and of what it is built on."""
    from packaging.requirements import Requirement

    yield Finding("python", "ok", sys.version.split()[0])
    try:
        ours = importlib.metadata.version("nnunet-dtc")
        needed = importlib.metadata.requires("nnunet-dtc") or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding("nnunet-dtc", "wrong", "imported, but not installed", "pip install -e . in its repository")
        return
    yield Finding("nnunet-dtc", "ok", ours)
    for text in needed:
        requirement = Requirement(text)
        if requirement.name not in ("torch", "nnunetv2", "dynamic-network-architectures"):
            continue
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(requirement.name, "wrong", "not installed", f"pip install '{requirement}'")
            continue
        fits = requirement.specifier.contains(version.partition("+")[0], prereleases=True)
        yield Finding(
            requirement.name,
            "ok" if fits else "wrong",
            version if fits else f"{version}, needed is {requirement.specifier}",
            "" if fits else f"pip install '{requirement}'",
        )


def examine_torchvision() -> Finding:
    """Whether torchvision can be imported with this torch."""
    done = _python("-c", "import torchvision")
    if done.returncode == 0:
        return Finding("torchvision", "ok", "works with this torch")
    return Finding(
        "torchvision",
        "wrong",
        _last_line(done.stderr),
        "nnU-Net needs timm, and that torchvision: install torch and torchvision from the same index",
    )


def examine_registration() -> Iterator[Finding]:
    """Whether the trainers are registered, in nnU-Net's folder or through the environment variable."""
    try:
        file = registration.registered_file()
    except registration.RegistrationError as error:
        advice = f"repair nnU-Net's installation; if it cannot be changed, set {registration.EXT_VARIABLE}"
        yield Finding("registered", "wrong", str(error), f"{advice}: nnunet-dtc env")
        return
    on_path = str(registration.ext_trainer_folder()) in os.environ.get(registration.EXT_VARIABLE, "").split(os.pathsep)
    current = (registration.ext_trainer_folder() / registration.FILE_NAME).read_bytes()
    if file is not None and file.read_bytes() != current:
        yield Finding("registered", "wrong", f"{file} is from another version", "nnunet-dtc register")
    elif file is not None:
        yield Finding("registered", "ok", f"{file}")
    if on_path:
        yield Finding("registered", "ok", f"by {registration.EXT_VARIABLE}")
    if file is None and not on_path:
        advice = 'nnunet-dtc register; if nnU-Net\'s folder cannot be written, eval "$(nnunet-dtc env)"'
        yield Finding("registered", "wrong", "nnU-Net does not know the trainers", advice)


def examine_search() -> Finding:
    """Whether nnU-Net's search finds the trainers in a new process, and always the same class."""
    subject = "nnU-Net's search"
    with tempfile.TemporaryDirectory() as elsewhere:
        done = _python("-c", _PROBE, *PROBED_TRAINERS, cwd=elsewhere)
    found = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    if done.returncode != 0 or len(found) != len(PROBED_TRAINERS):
        return Finding(subject, "wrong", _last_line(done.stderr) or _last_line(done.stdout), "nnunet-dtc register")
    foreign = [f"{name} of {module}" for name, module, _ in found if not module.startswith("nnunet_dtc.")]
    if foreign:
        return Finding(subject, "wrong", f"finds {', '.join(foreign)} first", "remove or rename that file")
    if any(same != "True" for *_, same in found):
        return Finding(subject, "wrong", "finds another class object at every search", "please report this")
    return Finding(subject, "ok", f"finds {', '.join(PROBED_TRAINERS)} in a fresh process")


def examine_device() -> Finding:
    """The device that nnU-Net will use."""
    try:
        import torch
    except Exception as error:  # reported, since this is what the doctor is for
        return Finding("device", "wrong", f"torch cannot be imported: {error}", "reinstall torch")
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
        return Finding("device", "ok", f"CUDA {torch.version.cuda}: {names}")
    if torch.backends.mps.is_available():
        if (problem := _problem_on("mps")) is not None:
            advice = "pass -device cpu to nnU-Net's commands, or try torch 2.13 or later"
            return Finding("device", "wrong", f"Apple MPS, on which this torch cannot compute DTC: {problem}", advice)
        return Finding("device", "ok", "Apple MPS (pass -device mps)")
    return Finding(
        "device", "note", f"CPU, {torch.get_num_threads()} threads", "pass -device cpu to nnU-Net's commands"
    )


def _problem_on(device: str) -> str | None:
    """Why small DTC blocks for images and volumes cannot be trained on a device; None if they can."""
    import torch

    from nnunet_dtc import DTC2d, DTC3d
    from nnunet_dtc.ops.backends import use_backend

    try:
        with use_backend("reference"):
            for axes, block_class in ((2, DTC2d), (3, DTC3d)):
                block = block_class(2, 1, 2).to(device)
                block(torch.zeros(1, 2, *[3] * axes, device=device)).sum().backward()
    except Exception as error:  # reported, since this is what the doctor is for
        return _last_line(str(error)) or type(error).__name__
    return None


def examine_backends() -> Iterator[Finding]:
    """The backend of the operator for each available device."""
    import torch

    from nnunet_dtc.ops.backends import BACKENDS, VARIABLE, backend_for

    slow = "torch's grid_sample, slow in 3D"
    forced = f", forced by {VARIABLE}" if os.environ.get(VARIABLE, "").strip() else ""
    for device in ["cpu"] + ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available():
        try:
            name = backend_for(device).name
        except (ValueError, RuntimeError) as error:
            yield Finding("backend", "wrong", str(error), f"unset {VARIABLE}, or choose another")
            continue
        fast = next((backend for backend in BACKENDS.values() if backend.device == device), None)
        if forced or fast is None or name == fast.name:
            seen = slow if name == "reference" else f"{name}, fused kernels"
            yield Finding("backend", "ok", f"on {device}: {seen}{forced}")
        else:
            yield Finding("backend", "note", f"on {device}: {slow}", f"for fused kernels: {fast.why_not()}")


def examine_gpu() -> Iterator[Finding]:
    """The GPU, what Triton needs there, the self-check of its kernels, and how long the operator takes."""
    from nnunet_dtc.plugin.gpu import gather_facts

    facts = gather_facts()
    if facts is not None:
        yield from gpu_findings(facts)


def gpu_findings(facts: "GpuFacts") -> Iterator[Finding]:
    """The findings on a GPU, or on Triton's interpreter."""
    if facts.capability is not None:
        major, minor = facts.capability
        yield Finding("GPU", "ok", f"{facts.card}, compute capability {major}.{minor}, driver {facts.driver}")
    if facts.triton is None:
        yield Finding("triton", "note", "not installed", "" if os.name == "nt" else "pip install triton")
        return
    yield Finding("triton", "ok", facts.triton)
    if facts.card is not None:
        yield _compiler_finding(facts)
    if facts.cache_problem is None:
        yield Finding("Triton's cache", "ok", f"{facts.cache}")
    else:
        advice = "set TRITON_CACHE_DIR to a folder that can be written, preferably on a local disk"
        yield Finding("Triton's cache", "note", f"{facts.cache} cannot be written: {facts.cache_problem}", advice)
    yield _self_check_finding(facts)
    if facts.card is not None:
        yield _times_finding(facts)


def _compiler_finding(facts: "GpuFacts") -> Finding:
    subject = "C compiler"
    if facts.compiler is None:
        advice = "install gcc (apt-get install gcc, conda install gcc_linux-64) or set CC; torch.compile needs it, too"
        return Finding(subject, "note", "none found, but Triton needs one", advice)
    if not facts.compiler_exists:
        return Finding(subject, "note", f"CC={facts.compiler} is not a program", "unset CC, or set it to a C compiler")
    return Finding(subject, "ok", facts.compiler)


def _self_check_finding(facts: "GpuFacts") -> Finding:
    from nnunet_dtc.ops.self_check import VARIABLE

    subject = "self-check"
    if facts.problem is not None:
        return Finding(subject, "note", facts.problem, "please report this, with everything that is printed here")
    if math.isnan(facts.worst):
        return Finding(subject, "note", f"skipped by {VARIABLE}", f"unset {VARIABLE} to have the kernels checked")
    seen = f"Triton's kernels agree with the reference; the largest error is {facts.worst:.0%} of its tolerance"
    return Finding(subject, "ok", seen)


def _times_finding(facts: "GpuFacts") -> Finding:
    from nnunet_dtc.plugin.gpu import DTYPE, RECEPTIVE_FIELD, STAGE

    times = "; ".join(f"{milliseconds:.2f} ms ({name})" for name, milliseconds in facts.times.items())
    dtype = str(DTYPE).removeprefix("torch.")
    seen = f"{times or 'not measured'}, for {STAGE}, {dtype}, RF {RECEPTIVE_FIELD:g}, forward and backward"
    if facts.times_problem is not None:
        return Finding("time of the operator", "note", seen, f"not everything was measured: {facts.times_problem}")
    if min(facts.times, key=facts.times.__getitem__) == "reference" and len(facts.times) > 1:
        return Finding("time of the operator", "note", seen, "please report this: Triton's kernels should be faster")
    return Finding("time of the operator", "ok", seen)


def examine_selective_scan() -> Iterator[Finding]:
    """The implementation of NnMamba's and SegMamba's selective scan on a GPU."""
    import torch

    if not torch.cuda.is_available():
        return
    try:
        from nnunet_dtc.architectures.selective_scan import BACKEND_VARIABLE, TITLES, scan_backend, why_no_kernel
    except ImportError:  # the missing package is reported above
        return
    subject, variable = "selective scan", os.environ.get(BACKEND_VARIABLE)
    forced = f", forced by {BACKEND_VARIABLE}" if variable in TITLES else ""
    try:
        name = scan_backend("cuda")
    except (ValueError, ImportError) as error:
        yield Finding(subject, "wrong", str(error), f"unset {BACKEND_VARIABLE}, or choose another")
        return
    if name != "torch" or forced:
        yield Finding(subject, "ok", f"on cuda: {TITLES[name]}{forced}")
    else:
        yield Finding(subject, "note", "on cuda: PyTorch, which is slow", f"for a kernel: {why_no_kernel()}")


def examine_folders() -> Iterator[Finding]:
    """nnU-Net's three environment variables."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        value = os.environ.get(variable)
        if value is None:
            yield Finding(variable, "note", "not set", f"export {variable}=/a/folder before you use nnU-Net")
        elif not Path(value).is_dir():
            yield Finding(variable, "note", f"there is no folder {value}", f"mkdir -p '{value}'")
        else:
            yield Finding(variable, "ok", value)


def _python(*arguments: str, cwd: str | None = None) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, check=False)


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
