"""Register the trainers of this package with nnU-Net, and unregister them.

nnU-Net finds them through one file, ``ext_trainer/nnunet_dtc_trainers.py``. Either a copy of it is in the trainer
folder of the installed nnU-Net, or its folder is in the environment variable ``nnUNet_extTrainer``, for installations
that cannot be written.
"""

import contextlib
import importlib.util
import os
import shlex
import shutil
from pathlib import Path

from nnunet_dtc.errors import NnunetDtcError
from nnunet_dtc.files import write_whole

EXT_VARIABLE = "nnUNet_extTrainer"
FILE_NAME = "nnunet_dtc_trainers.py"
MARK = "# nnunet-dtc: this line marks the file as ours"


class RegistrationError(NnunetDtcError):
    """nnU-Net is not installed, cannot be written, or has a file of the same name that is not this package's."""


def ext_trainer_folder() -> Path:
    """The folder for ``nnUNet_extTrainer``, which contains only the file that nnU-Net imports."""
    return Path(__file__).parent / "ext_trainer"


def nnunet_trainer_folder() -> Path:
    """The trainer folder of the installed nnU-Net, which is not imported.

    Raises:
        RegistrationError: nnU-Net is not installed, or has no such folder.
    """
    spec = importlib.util.find_spec("nnunetv2")
    if spec is None or not spec.submodule_search_locations:
        raise RegistrationError("nnU-Net is not installed in this environment: pip install 'nnunetv2>=2.8,<3'")
    folder = Path(next(iter(spec.submodule_search_locations))) / "training" / "nnUNetTrainer"
    if not folder.is_dir():
        raise RegistrationError(f"nnU-Net has no trainer folder where it should be: {folder}")
    return folder


def registered_file() -> Path | None:
    """This package's file in nnU-Net's trainer folder, or None if there is none.

    Raises:
        RegistrationError: nnU-Net is not installed, or a file of that name cannot be read.
    """
    file = nnunet_trainer_folder() / FILE_NAME
    try:
        return file if file.exists() and _is_ours(file) else None
    except OSError as error:
        raise RegistrationError(f"cannot read {file} ({error.strerror or error})") from error


def register() -> Path:
    """Write this package's file into nnU-Net's trainer folder, or bring it up to date.

    Returns:
        The file.

    Raises:
        RegistrationError: nnU-Net is not installed, its folder cannot be written, or it has a file of that name that is
            not this package's. Nothing is changed then.
    """
    target = nnunet_trainer_folder() / FILE_NAME
    content = (ext_trainer_folder() / FILE_NAME).read_bytes()
    try:
        if target.exists():
            if not _is_ours(target):
                raise RegistrationError(f"{target} is not a file of nnunet-dtc and is left alone; remove it first")
            if target.read_bytes() == content:
                return target
        write_whole(target, content)  # a training that starts now finds the old file or the new one
        with contextlib.suppress(FileNotFoundError):  # whoever may read nnU-Net's files may read it, too
            shutil.copymode(target.with_name("nnUNetTrainer.py"), target)
        return target
    except OSError as error:
        raise RegistrationError(
            f"cannot write into nnU-Net's trainer folder {target.parent} ({error.strerror or error}). Use the "
            "environment variable instead: nnunet-dtc env"
        ) from error


def unregister() -> Path | None:
    """Remove this package's file and its bytecode from nnU-Net's trainer folder.

    Returns:
        The file that was removed, or None if there was none.

    Raises:
        RegistrationError: nnU-Net is not installed, or a file of that name cannot be read or removed, or is not this
            package's.
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
    """The value for ``nnUNet_extTrainer``: the folders that are in it already, and this package's.

    Args:
        current: the present value; None for that of the environment.
    """
    current = os.environ.get(EXT_VARIABLE, "") if current is None else current
    folders = [folder for folder in current.split(os.pathsep) if folder.strip()]
    ours = str(ext_trainer_folder())
    if ours not in folders:
        folders.append(ours)
    return os.pathsep.join(folders)


def export_line() -> str:
    """The shell command that sets ``nnUNet_extTrainer``."""
    if os.name == "nt":
        return f"set {EXT_VARIABLE}={environment_value()}"
    return f"export {EXT_VARIABLE}={shlex.quote(environment_value())}"


def _is_ours(file: Path) -> bool:
    return file.read_text(encoding="utf-8", errors="ignore").startswith(MARK)
