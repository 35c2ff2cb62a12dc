"""Make nnU-Net's trainer search know our trainers, and forget them.

Two ways, one file (``ext_trainer/nnunet_dtc_trainers.py``): a copy of it in the installed nnU-Net's trainer folder, or
its folder on the environment variable ``nnUNet_extTrainer`` (nnU-Net 2.8 and later), for read-only installs.
"""

import contextlib
import importlib.util
import os
import shlex
import tempfile
from pathlib import Path

EXT_VARIABLE = "nnUNet_extTrainer"
FILE_NAME = "nnunet_dtc_trainers.py"
MARK = "# nnunet-dtc: this line marks the file as ours"


class RegistrationError(RuntimeError):
    """nnU-Net is not there, cannot be written, or holds a file of our name that is not ours."""


def ext_trainer_folder() -> Path:
    """Our folder for ``nnUNet_extTrainer``. It holds the one flat file and nothing else."""
    return Path(__file__).parent / "ext_trainer"


def nnunet_trainer_folder() -> Path:
    """The trainer folder of the installed nnU-Net, editable installs too, without importing it."""
    spec = importlib.util.find_spec("nnunetv2")
    if spec is None or not spec.submodule_search_locations:
        raise RegistrationError("nnU-Net is not installed in this environment: pip install 'nnunetv2>=2.8,<3'")
    folder = Path(next(iter(spec.submodule_search_locations))) / "training" / "nnUNetTrainer"
    if not folder.is_dir():
        raise RegistrationError(f"nnU-Net has no trainer folder where it should be: {folder}")
    return folder


def registered_file() -> Path | None:
    """Our file in nnU-Net's trainer folder, None where there is none.

    Raises:
        RegistrationError: nnU-Net is missing, or a file of that name cannot be read.
    """
    file = nnunet_trainer_folder() / FILE_NAME
    try:
        return file if file.exists() and _is_ours(file) else None
    except OSError as error:
        raise RegistrationError(f"cannot read {file} ({error.strerror or error})") from error


def register() -> Path:
    """Write our file into nnU-Net's trainer folder, or bring it up to date. Returns where it is.

    Raises:
        RegistrationError: nnU-Net is missing, its folder cannot be written, or a file of that name is not ours.
            Nothing is changed then.
    """
    target = nnunet_trainer_folder() / FILE_NAME
    content = (ext_trainer_folder() / FILE_NAME).read_bytes()
    temporary = None
    try:
        if target.exists():
            if not _is_ours(target):
                raise RegistrationError(f"{target} is not a file of nnunet-dtc and is left alone; remove it first")
            if target.read_bytes() == content:
                return target
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".nnunet_dtc_", delete=False) as opened:
            temporary = Path(opened.name)
            opened.write(content)
        temporary.chmod(0o644)
        temporary.replace(target)  # at once: a training that starts now sees the old file or the new one
    except OSError as error:
        raise RegistrationError(
            f"cannot write into nnU-Net's trainer folder {target.parent} ({error.strerror or error}). Use the "
            "environment variable instead: nnunet-dtc env"
        ) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()
    return target


def unregister() -> Path | None:
    """Remove our file, and what Python compiled from it, from nnU-Net's trainer folder. None where there was none.

    Raises:
        RegistrationError: nnU-Net is missing, or a file of that name cannot be read or removed, or is not ours.
    """
    target = nnunet_trainer_folder() / FILE_NAME
    try:
        if not target.exists():
            return None
        ours = _is_ours(target)
    except OSError as error:
        raise RegistrationError(f"cannot read {target} ({error.strerror or error})") from error
    if not ours:
        raise RegistrationError(f"{target} is not a file of nnunet-dtc and is left alone")
    try:
        for compiled in (target.parent / "__pycache__").glob(f"{target.stem}.*.pyc"):
            compiled.unlink()
        target.unlink()
    except OSError as error:
        raise RegistrationError(f"cannot remove {target} ({error.strerror or error})") from error
    return target


def environment_value(current: str | None = None) -> str:
    """What ``nnUNet_extTrainer`` has to hold: what it holds already, and our folder."""
    current = os.environ.get(EXT_VARIABLE, "") if current is None else current
    folders = [folder for folder in current.split(os.pathsep) if folder.strip()]
    ours = str(ext_trainer_folder())
    if ours not in folders:
        folders.append(ours)
    return os.pathsep.join(folders)


def export_line() -> str:
    """The line for a shell that sets ``nnUNet_extTrainer``."""
    if os.name == "nt":
        return f"set {EXT_VARIABLE}={environment_value()}"
    return f"export {EXT_VARIABLE}={shlex.quote(environment_value())}"


def _is_ours(file: Path) -> bool:
    return file.read_text(encoding="utf-8", errors="ignore").startswith(MARK)
