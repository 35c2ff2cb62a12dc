"""Turn a trained vanilla checkpoint into a checkpoint of a DTC trainer that computes the same function.

The trained transposed convolution becomes the base of each DTC block, and the value convolution starts at zero, so that
the deformable branch adds exactly zero. This is ours; the paper trains from scratch. The value convolution has a
gradient from the first step on, the coordinates from the second.
"""

import contextlib
import io
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor, nn

from nnunet_dtc.errors import NnunetDtcError
from nnunet_dtc.files import WriteError, writing
from nnunet_dtc.ops.dtc import is_dtc
from nnunet_dtc.plugin.checkpoints import CheckpointError, first_line, is_second_name, open_checkpoint
from nnunet_dtc.plugin.environment import environment
from nnunet_dtc.plugin.file_rules import read_json
from nnunet_dtc.plugin.finder import TrainerNotFoundError, find_trainer
from nnunet_dtc.plugin.model_folder import model_path
from nnunet_dtc.plugin.nnunet_files import check_plans
from nnunet_dtc.plugin.planned_networks import build_network, build_without_memory
from nnunet_dtc.work_folders import work_folder

COORDS_SEED = 0  # a checkpoint always gives the same file
WEIGHT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class WarmStartError(NnunetDtcError):
    """A trainer or a folder that does not fit a vanilla checkpoint, with the reason."""


@dataclass
class WarmStart:
    """A DTC network with the weights of a vanilla checkpoint.

    Attributes:
        network: the DTC network with deep supervision. Its logits are those of the vanilla network.
        trainer: class of the DTC trainer.
        source: content of the vanilla checkpoint.
    """

    network: nn.Module
    trainer: type[nnUNetTrainer]
    source: dict[str, Any]


def warm_start(checkpoint: Path | str, trainer_name: str) -> WarmStart:
    """Build the network of a DTC trainer and load the weights of a vanilla checkpoint into it.

    Args:
        checkpoint: a file that nnU-Net's own trainer saved, such as checkpoint_final.pth.
        trainer_name: the DTC trainer, such as "nnUNetTrainerDTC".

    Raises:
        CheckpointError: the checkpoint cannot be read safely, its weights are not those of the network that nnU-Net
            builds from its plans, or they are not finite floating-point numbers. The message lists what differs.
        NetworkError: a network cannot be built from the plans in the checkpoint, or does not fit into the memory.
        WarmStartError: there is no such trainer, it has no DTC, or its network without DTC is not the planned U-Net.
    """
    trainer = _find_dtc_trainer(trainer_name)
    source = open_checkpoint(checkpoint)
    weights = source["network_weights"]
    if any(key.endswith(".coords.weight") for key in weights):
        raise CheckpointError(
            f"the weights in {checkpoint} are of a DTC network already ({source['trainer_name']}): give the file to "
            "nnUNetv2_train as it is"
        )
    init_args = source["init_args"]
    arguments = (init_args["plans"], init_args["configuration"], init_args["dataset_json"], True)
    origin = f"the plans in {checkpoint}"
    shapes = build_without_memory(nnUNetTrainer, *arguments)
    if shapes is not None:  # first, because the planned network may be much larger than that of the weights
        _check_architecture(shapes, source, checkpoint)
    vanilla = build_network(nnUNetTrainer, *arguments, origin)
    _check_architecture(vanilla, source, checkpoint)
    if unfit := describe_unfit_weights(vanilla.state_dict(), weights):
        raise CheckpointError(
            f"{checkpoint} (trainer {source['trainer_name']}): weights must be floating tensors of finite numbers "
            f"({', '.join(str(dtype).removeprefix('torch.') for dtype in WEIGHT_DTYPES)}), but there are others:"
            + _listed(unfit)
        )

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(COORDS_SEED)
        network = build_network(trainer, *arguments, origin)
    blocks = [name for name, module in network.named_modules(remove_duplicate=False) if is_dtc(module)]
    vanilla.load_state_dict(weights, strict=False)  # only second names of a weight can be missing, see above
    trained, state = vanilla.state_dict(), network.state_dict()
    for key in state:
        block = next((name for name in blocks if key.startswith(name + ".")), None)
        if block is None:
            state[key] = trained[key]
        elif key.startswith(f"{block}.base."):
            state[key] = trained[f"{block}.{key.removeprefix(f'{block}.base.')}"]
        elif key.startswith(f"{block}.value."):
            state[key] = torch.zeros_like(state[key])
    network.load_state_dict(state)
    return WarmStart(network, trainer, source)


def _check_architecture(vanilla: nn.Module, source: Mapping[str, Any], checkpoint: Path | str) -> None:
    """Raise a CheckpointError that lists the differences if the weights are not those of this network."""
    if differences := describe_differences(vanilla.state_dict(), source["network_weights"]):
        raise CheckpointError(
            f"{checkpoint} (trainer {source['trainer_name']}) is not of the network that nnU-Net builds from its plans:"
            + _listed(differences)
        )


def _find_dtc_trainer(name: str) -> type[nnUNetTrainer]:
    """The class of a trainer that has the planned U-Net with DTC, or a WarmStartError."""
    needed = f"the trainer must be a DTC trainer such as nnUNetTrainerDTC, got {name}"
    try:
        trainer = find_trainer(name)
    except TrainerNotFoundError as error:
        raise WarmStartError(f"{needed} ({error})") from error
    if not getattr(getattr(trainer, "spec", None), "dtc", False):
        raise WarmStartError(needed)
    if other := trainer.spec.network or trainer.spec.upsampler:
        raise WarmStartError(
            f"{needed}: a vanilla checkpoint has the weights of the planned U-Net with transposed convolutions, "
            f"this trainer has {other}"
        )
    return trainer


def save_pretrained(start: WarmStart, output: Path) -> None:
    """Write a file for ``nnUNetv2_train -pretrained_weights``, which loads all weights but the segmentation layers.

    Args:
        start: what :func:`warm_start` returned.
        output: the file to write.

    Raises:
        OSError: ``output`` exists already or cannot be written.
    """
    check_output(output)
    init_args = start.source["init_args"]
    content = {
        "network_weights": start.network.state_dict(),
        "init_args": init_args,
        "trainer_name": start.trainer.__name__,
        "inference_allowed_mirroring_axes": start.source.get("inference_allowed_mirroring_axes"),
        "current_epoch": 0,
    }
    _write(output, lambda file: torch.save(content, file))


def save_latest(start: WarmStart, fold_folder: Path) -> Path:
    """Write ``checkpoint_latest.pth`` for ``nnUNetv2_train ... --c``: all weights, epoch 0, a new optimizer.

    nnU-Net's own trainer creates the optimizer and saves the file.

    Args:
        start: what :func:`warm_start` returned.
        fold_folder: ``nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION/fold_k``; it is created if necessary.

    Returns:
        The file.

    Raises:
        WarmStartError: data set, trainer, plans, configuration or fold of the folder are not those of the weights.
        MalformedFileError: plans that the training would use cannot be read.
        OSError: the fold has a checkpoint already, or the file cannot be written. New folders are then removed.
    """
    check_fold_folder(start, fold_folder)
    init_args = deepcopy(start.source["init_args"])
    with tempfile.TemporaryDirectory() as scratch, environment(nnUNet_results=scratch, nnUNet_wandb_enabled="0"):
        arguments = {key: init_args[key] for key in ("plans", "configuration", "fold", "dataset_json")}
        plans = deepcopy(arguments.pop("plans"))
        with contextlib.redirect_stdout(io.StringIO()):
            trainer = start.trainer(plans | {"continue_training": False}, **arguments, device=torch.device("cpu"))
        trainer.network = start.network
        trainer.optimizer, trainer.lr_scheduler = trainer.configure_optimizers()
        trainer.my_init_kwargs = init_args
        trainer.inference_allowed_mirroring_axes = start.source.get("inference_allowed_mirroring_axes")
        trainer.current_epoch = -1  # save_checkpoint writes the epoch to go on with
        target = fold_folder / "checkpoint_latest.pth"
        with _new_folders(fold_folder):
            _write(target, lambda file: trainer.save_checkpoint(str(file)))
    return target


def check_output(output: Path) -> None:
    """Check that a file can be created.

    Raises:
        FileExistsError: it exists already.
        FileNotFoundError: its folder does not exist.
    """
    if output.exists():
        raise FileExistsError(f"{output} exists already and is not overwritten")
    if not output.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {output.parent} to write {output.name} into")


def check_fold_folder(start: WarmStart, fold_folder: Path) -> None:
    """Check that a fold's folder is the one that nnU-Net will read, and that it has no training yet.

    Raises:
        WarmStartError: data set, trainer, plans, configuration or fold of the folder are not those of the weights.
        MalformedFileError: plans that the training would use cannot be read.
        FileExistsError: the folder has checkpoints.
    """
    init_args = start.source["init_args"]
    plans = init_args["plans"]
    fold_folder = Path(os.path.abspath(fold_folder))
    names = (start.trainer.__name__, plans["plans_name"], init_args["configuration"], init_args["fold"])
    expected = model_path(plans["dataset_name"], *names)
    if fold_folder.parts[-3:] != expected.parts:
        raise WarmStartError(
            f"fold_folder must be where nnU-Net will look for this training, .../{expected.as_posix()} (a vanilla "
            f"checkpoint is continued with its own data set, plans and fold), got {fold_folder}"
        )
    there = sorted(file.name for file in fold_folder.glob("checkpoint_*.pth")) if fold_folder.is_dir() else []
    if there:
        raise FileExistsError(f"{fold_folder} has a training already ({', '.join(there)}); nothing is overwritten")
    configuration = init_args["configuration"]
    ours = PlansManager(deepcopy(plans)).get_configuration(configuration).configuration
    for file in _plans_files(fold_folder, plans):
        content = read_json(file)
        check_plans(content, file, configuration)
        theirs = PlansManager(content).get_configuration(configuration).configuration
        compared = ("architecture", "patch_size", "spacing", "batch_size")
        if changed := [key for key in compared if theirs.get(key) != ours.get(key)]:
            raise WarmStartError(f"{file} differs from the plans of the checkpoint in {', '.join(changed)}")


def _plans_files(fold_folder: Path, plans: dict[str, Any]) -> Iterator[Path]:
    """The plans that nnU-Net would continue the training with: those of the model, and those of the data set."""
    files = [fold_folder.parent / "plans.json"]
    if preprocessed := os.environ.get("nnUNet_preprocessed"):
        files.append(Path(preprocessed) / plans["dataset_name"] / f"{plans['plans_name']}.json")
    yield from (file for file in files if file.is_file())


def describe_differences(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """Describe how weights differ from the expected ones: one line per module, or per weight of another shape.

    Args:
        expected: state dict of the network.
        given: state dict of the checkpoint.

    Returns:
        The lines, without second names of weights; empty if the weights fit.
    """
    lines = []
    missing = [key for key in expected if key not in given]
    surplus = [key for key in given if key not in expected]
    changed = [key for key in expected if key in given and expected[key].shape != given[key].shape]
    for title, keys in (("missing in the checkpoint", missing), ("not in nnU-Net's network", surplus)):
        for module in dict.fromkeys(_module_of(key) for key in keys if not is_second_name(key)):
            lines.append(f"{title}: {module}")
    for key in changed:
        if not is_second_name(key):
            lines.append(
                f"other shape: {key} is {tuple(given[key].shape)} in the checkpoint, {tuple(expected[key].shape)} in "
                "nnU-Net's network"
            )
    return lines


def describe_unfit_weights(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """Describe weights that are not finite floating-point numbers, one line each.

    Counters, such as ``num_batches_tracked`` of a batch normalisation, must be integers in both.

    Args:
        expected: state dict of the network.
        given: state dict of the checkpoint, with the same shapes. Weights that the network does not have are ignored.

    Returns:
        The lines; empty if all weights can be used.
    """
    lines = []
    for key, ours in expected.items():
        if key not in given or is_second_name(key):
            continue
        value = given[key]
        if not ours.is_floating_point():
            if value.dtype == torch.bool or value.is_floating_point() or value.is_complex():
                lines.append(f"{key} is {_dtype_name(value)}, but is a counter")
        elif value.layout != torch.strided or value.is_quantized or value.dtype not in WEIGHT_DTYPES:
            lines.append(f"{key} is {_dtype_name(value)}")
        elif wrong := int((~value.to(ours.dtype).isfinite()).sum()):  # in the network's dtype: float64 holds more
            lines.append(f"{key} has {wrong} of {value.numel()} numbers that are not finite in {_dtype_name(ours)}")
    return lines


def _dtype_name(tensor: Tensor) -> str:
    name = str(tensor.dtype).removeprefix("torch.")
    return name if tensor.layout == torch.strided else f"{name}, {str(tensor.layout).removeprefix('torch.')}"


def _listed(lines: list[str], shown: int = 12) -> str:
    """The first lines, and how many more there are."""
    more = [f"... and {len(lines) - shown} more"] if len(lines) > shown else []
    return "".join(f"\n  {line}" for line in [*lines[:shown], *more])


def _module_of(key: str) -> str:
    return key.rpartition(".")[0]


def _write(target: Path, write: Callable[[Path], None]) -> None:
    """Write a file in a temporary folder first, so that it is complete or absent.

    It has its final name there, because torch writes the name into the file.

    Raises:
        WriteError: it cannot be written.
    """
    try:
        with writing(target), work_folder(target.parent, "warm_start") as folder:
            write(folder / target.name)
            (folder / target.name).replace(target)
    except RuntimeError as error:  # torch's writer on a full disk
        raise WriteError(target, OSError(first_line(error))) from error


@contextlib.contextmanager
def _new_folders(folder: Path) -> Iterator[None]:
    """Create a folder with its parents. New ones are removed if the block fails."""
    missing = [part for part in (folder, *folder.parents) if not part.exists()]  # the deepest first
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for part in missing:
            with contextlib.suppress(OSError):
                part.rmdir()
        raise
