"""What is installed, whether nnU-Net finds our trainers, and what to do where something is wrong."""

import importlib.metadata
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nnunet_dtc.plugin import registration

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
    """One line of the doctor: what was looked at, how it is, what was seen, and what to do about it."""

    subject: str
    state: State
    seen: str
    advice: str = ""


def examine() -> Iterator[Finding]:
    """Look at the installation, one finding at a time (the trainer search takes some seconds)."""
    yield from _versions()
    yield _torchvision()
    yield from _registration()
    yield _finder()
    yield _device()
    yield from _backends()
    yield from _selective_scan()
    yield from _folders()


def _versions() -> Iterator[Finding]:
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


def _torchvision() -> Finding:
    done = _python("-c", "import torchvision")
    if done.returncode == 0:
        return Finding("torchvision", "ok", "works with this torch")
    return Finding(
        "torchvision",
        "wrong",
        _last_line(done.stderr),
        "nnU-Net needs timm, and that torchvision: install torch and torchvision from the same index",
    )


def _registration() -> Iterator[Finding]:
    try:
        file = registration.registered_file()
    except registration.RegistrationError as error:
        advice = f"repair nnU-Net's installation; where it may not be changed, {registration.EXT_VARIABLE} does without"
        yield Finding("registered", "wrong", str(error), f"{advice}: nnunet-dtc env")
        return
    on_path = str(registration.ext_trainer_folder()) in os.environ.get(registration.EXT_VARIABLE, "").split(os.pathsep)
    current = (registration.ext_trainer_folder() / registration.FILE_NAME).read_bytes()
    if file is not None and file.read_bytes() != current:
        yield Finding("registered", "wrong", f"{file} is of another version", "nnunet-dtc register")
    elif file is not None:
        yield Finding("registered", "ok", f"{file}")
    if on_path:
        yield Finding("registered", "ok", f"by {registration.EXT_VARIABLE}")
    if file is None and not on_path:
        advice = 'nnunet-dtc register; where nnU-Net cannot be written, eval "$(nnunet-dtc env)"'
        yield Finding("registered", "wrong", "nnU-Net does not know the trainers", advice)


def _finder() -> Finding:
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


def _device() -> Finding:
    try:
        import torch
    except Exception as error:  # a torch that does not load is what a doctor is called for
        return Finding("device", "wrong", f"torch cannot be imported: {error}", "reinstall torch")
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
        return Finding("device", "ok", f"CUDA {torch.version.cuda}: {names}")
    if torch.backends.mps.is_available():
        return Finding("device", "ok", "Apple MPS (pass -device mps)")
    return Finding(
        "device", "note", f"CPU, {torch.get_num_threads()} threads", "pass -device cpu to nnU-Net's commands"
    )


def _backends() -> Iterator[Finding]:
    """The backend of each device that is here."""
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


def _selective_scan() -> Iterator[Finding]:
    """What scans the sequences of NnMamba and SegMamba on a GPU."""
    import torch

    if not torch.cuda.is_available():
        return
    try:
        from nnunet_dtc.architectures.selective_scan import BACKEND_VARIABLE, scan_backend, why_no_kernel
    except ImportError:  # what is missing was said above
        return
    subject, variable = "selective scan", os.environ.get(BACKEND_VARIABLE)
    forced = f", forced by {BACKEND_VARIABLE}" if variable in ("torch", "mamba_ssm") else ""
    try:
        name = scan_backend("cuda")
    except (ValueError, ImportError) as error:
        yield Finding(subject, "wrong", str(error), f"unset {BACKEND_VARIABLE}, or choose another")
        return
    if name == "mamba_ssm":
        yield Finding(subject, "ok", f"on cuda: mamba-ssm's kernel{forced}")
    elif forced:
        yield Finding(subject, "ok", f"on cuda: PyTorch{forced}")
    else:
        yield Finding(subject, "note", "on cuda: PyTorch", f"for the kernel: {why_no_kernel()}")


def _folders() -> Iterator[Finding]:
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        value = os.environ.get(variable)
        if value is None:
            yield Finding(variable, "note", "not set", f"export {variable}=/a/folder before you use nnU-Net")
        elif not Path(value).is_dir():
            yield Finding(variable, "note", f"{value} is no folder yet", f"mkdir -p '{value}'")
        else:
            yield Finding(variable, "ok", value)


def _python(*arguments: str, cwd: str | None = None) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, check=False)


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
