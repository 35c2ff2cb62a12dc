"""A small phantom, and real volumes where they are available, through nnU-Net's own commands.

A test file asks for a ``workspace``: an ``nnUNet_raw``, ``nnUNet_preprocessed`` and ``nnUNet_results`` of its own, with
a phantom of 12 cases. ``test_real_volumes.py`` uses hippocampus volumes of the Medical Segmentation Decathlon instead.
The trainers are registered by the environment variable ``nnUNet_extTrainer``, never in the installed nnU-Net. Plans are
nnU-Net's, with the networks and patches made small by hand.
"""

import contextlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from nnunet_dtc.plugin.registration import EXT_VARIABLE, ext_trainer_folder

DATA_VARIABLE = "NNUNET_DTC_DATA"
DATA_FALLBACK = Path(__file__).parents[2].parent / "shared" / "data"
CASES_TRAINING, CASES_HELD_OUT = 10, 2
DATASET_ID, DATASET_NAME = 4, "Phantom"
LABELS = {"background": 0, "anterior": 1, "posterior": 2}
TIMEOUT_S = 600
SHORT_ITERATIONS = 3  # of an epoch in ``one_process.py``
ONE_PROCESS = Path(__file__).with_name("one_process.py")
ENVIRONMENT = {
    "nnUNet_n_proc_DA": "1",  # 0 breaks the planner
    "nnUNet_def_n_proc": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHON_CPU_COUNT": "1",  # Python 3.13 and later; before that SITECUSTOMIZE
    "PYTHONUNBUFFERED": "1",
}
# What every command and each of its workers runs first. `-device cpu` sets as many threads as os.cpu_count() says; of
# several commands side by side (pytest-xdist) these wait for each other and training is ten times slower, so the
# commands believe in one core. And each ends with the process that started it (Linux): killed tests leave nothing.
SITECUSTOMIZE = """\
import ctypes, os, signal, sys

os.cpu_count = lambda: 1
if sys.platform == "linux":
    prctl, PR_SET_PDEATHSIG = ctypes.CDLL(None).prctl, 1
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.register_at_fork(after_in_child=lambda: prctl(PR_SET_PDEATHSIG, signal.SIGKILL))
"""

# What is made small in nnU-Net's plans; an uneven stride is in each of the 3D networks.
SMALL_3D = {"patch_size": [16, 24, 16], "batch_size": 2}
SMALL_2D = {"patch_size": [32, 40], "batch_size": 4}
SPACING_3D = (1.6, 1.6, 1.6)  # instead of 1 mm: 8 positions of the patch cover a volume, instead of 64
SMALL_STRIDES_3D = [[1, 1, 1], [2, 2, 2], [1, 2, 2]]
SMALL_STRIDES_2D = [[1, 1], [2, 2], [2, 2]]
SMALL_FEATURES_3D = [8, 16, 16]  # with fewer, one epoch is not enough to find any foreground
SMALL_FEATURES_2D = [16, 32, 32]


def find_data() -> Path | None:
    """The folder with ``hippocampus/images`` and ``hippocampus/labels``, or None if there is none."""
    folder = Path(os.environ.get(DATA_VARIABLE) or DATA_FALLBACK)
    complete = all((folder / "hippocampus" / part).is_dir() for part in ("images", "labels"))
    return folder / "hippocampus" if complete else None


def write_phantom(folder: Path) -> Path:
    """Write ``images`` and ``labels`` of ellipsoids with two halves, each case with another size, position and noise.

    The volumes have 1 mm voxels. With ``SPACING_3D`` they are longer than the patch on one axis, so that several
    patches cover them.
    """
    import SimpleITK as sitk

    random = np.random.default_rng(0)
    for case in range(CASES_TRAINING + CASES_HELD_OUT):
        shape = np.array([24 + case % 2, 45 + case % 5, 25 + case % 3])  # z, y, x
        centre = shape / 2 + random.uniform(-2, 2, 3)
        radii = random.uniform([5, 12, 6], [8, 16, 8])
        z, y, x = np.indices(shape)
        inside = sum(((axis - at) / radius) ** 2 for axis, at, radius in zip((z, y, x), centre, radii, strict=True)) < 1
        label = (inside * np.where(y < centre[1], 1, 2)).astype(np.uint8)
        image = (np.array([40, 120, 200])[label] + random.normal(0, 20, shape)).astype(np.float32)
        for part, array in (("images", image), ("labels", label)):
            (folder / part).mkdir(parents=True, exist_ok=True)
            sitk.WriteImage(sitk.GetImageFromArray(array), str(folder / part / f"phantom_{case:02d}.nii.gz"))
    return folder


class CommandFailed(AssertionError):
    """A command of nnU-Net ended with an error, or not at all; with the tail of what it printed."""


class Workspace:
    """An nnU-Net of its own: folders, environment, and commands that run in it.

    Attributes:
        root: everything is below it.
        raw, preprocessed, results: nnU-Net's three folders.
        cases: the case names, ``CASES_TRAINING`` for training, then ``CASES_HELD_OUT`` held out.
    """

    def __init__(self, root: Path, data: Path) -> None:
        self.root, self.data = root, data
        self.raw, self.preprocessed, self.results = (
            root / name for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
        )
        self.logs = root / "logs"
        self.site = root / "site"
        for folder in (self.raw, self.preprocessed, self.results, self.logs, self.site):
            folder.mkdir(parents=True, exist_ok=True)
        (self.site / "sitecustomize.py").write_text(SITECUSTOMIZE)
        names = sorted(file.name.removesuffix(".nii.gz") for file in (data / "images").glob("*.nii.gz"))
        self.cases = names[: CASES_TRAINING + CASES_HELD_OUT]
        self.training, self.held_out = self.cases[:CASES_TRAINING], self.cases[CASES_TRAINING:]

    # data

    @property
    def images_held_out(self) -> Path:
        """Images of the cases that no training sees, named as nnU-Net wants them."""
        return self.root / "held_out" / "images"

    @property
    def labels_held_out(self) -> Path:
        return self.root / "held_out" / "labels"

    def write_raw(
        self,
        dataset_id: int = DATASET_ID,
        name: str = DATASET_NAME,
        labels: dict[str, int | list[int]] = LABELS,
        change_labels: Callable[[np.ndarray], np.ndarray] | None = None,
        **dataset_json: object,
    ) -> str:
        """Write a data set in nnU-Net's raw layout, the training labels changed by ``change_labels``."""
        import SimpleITK as sitk

        dataset = f"Dataset{dataset_id:03d}_{name}"
        folders = {
            "images": self.raw / dataset / "imagesTr",
            "labels": self.raw / dataset / "labelsTr",
            "held out images": self.images_held_out,
            "held out labels": self.labels_held_out,
        }
        for folder in folders.values():
            folder.mkdir(parents=True, exist_ok=True)
        for case in self.cases:
            kind = "" if case in self.training else "held out "
            image, label = (self.data / part / f"{case}.nii.gz" for part in ("images", "labels"))
            shutil.copyfile(image, folders[f"{kind}images"] / f"{case}_0000.nii.gz")
            target = folders[f"{kind}labels"] / f"{case}.nii.gz"
            if change_labels is None or kind:
                shutil.copyfile(label, target)
            else:
                original = sitk.ReadImage(str(label))
                changed = sitk.GetImageFromArray(change_labels(sitk.GetArrayFromImage(original)))
                changed.CopyInformation(original)
                sitk.WriteImage(changed, str(target))
        content = {
            "channel_names": {"0": "MRI"},
            "labels": labels,
            "numTraining": len(self.training),
            "file_ending": ".nii.gz",
            **dataset_json,
        }
        (self.raw / dataset / "dataset.json").write_text(json.dumps(content))
        return dataset

    @staticmethod
    def plan_and_preprocess_command(*more: object) -> tuple[object, ...]:
        """``nnUNetv2_plan_and_preprocess`` with the coarse spacing."""
        command = ("nnUNetv2_plan_and_preprocess", "-overwrite_target_spacing", *SPACING_3D)
        return (*command, "-npfp", 1, "-np", 1, "--no_pbar", *more)

    @staticmethod
    def plan_command(planner: str, *more: object) -> tuple[object, ...]:
        """``nnUNetv2_plan_experiment`` with the coarse spacing."""
        return ("nnUNetv2_plan_experiment", "-pl", planner, "-overwrite_target_spacing", *SPACING_3D, *more)

    def read_plans(self, dataset: str, plans: str = "nnUNetPlans") -> dict:
        return json.loads((self.preprocessed / dataset / f"{plans}.json").read_text())

    def write_plans(self, dataset: str, content: dict, plans: str = "nnUNetPlans") -> None:
        (self.preprocessed / dataset / f"{plans}.json").write_text(json.dumps(content, indent=4))

    def shrink_plans(
        self, dataset: str, plans: str = "nnUNetPlans", *, features_2d: Sequence[int] = SMALL_FEATURES_2D
    ) -> dict:
        """Make the planned networks, patches and batches small. Returns the plans."""
        content = self.read_plans(dataset, plans)
        for name, configuration in content["configurations"].items():
            if "architecture" not in configuration:
                continue
            flat = name == "2d"
            configuration.update(SMALL_2D if flat else SMALL_3D)
            arguments = configuration["architecture"]["arch_kwargs"]
            strides = SMALL_STRIDES_2D if flat else SMALL_STRIDES_3D
            arguments.update(
                n_stages=len(strides),
                features_per_stage=list(features_2d if flat else SMALL_FEATURES_3D),
                strides=strides,
                kernel_sizes=[[3] * (2 if flat else 3)] * len(strides),
                n_conv_per_stage_decoder=[1] * (len(strides) - 1),
            )
            per_stage = "n_blocks_per_stage" if "n_blocks_per_stage" in arguments else "n_conv_per_stage"
            arguments[per_stage] = [1] * len(strides)
        self.write_plans(dataset, content, plans)
        return content

    # commands

    def environment(self, *, results: Path | None = None, only_results: bool = False) -> dict[str, str]:
        """nnU-Net's environment: the trainers by ``nnUNet_extTrainer``, nothing of the caller's nnU-Net."""
        env = {key: value for key, value in os.environ.items() if not key.lower().startswith("nnunet")}
        env |= ENVIRONMENT | {EXT_VARIABLE: str(ext_trainer_folder())}
        env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(self.site), env.get("PYTHONPATH"))))
        env["nnUNet_results"] = str(results or self.results)
        if not only_results:
            env |= {"nnUNet_raw": str(self.raw), "nnUNet_preprocessed": str(self.preprocessed)}
        return env

    @contextlib.contextmanager
    def start(
        self, command: str, *arguments: object, env: dict[str, str] | None = None
    ) -> Iterator[tuple[subprocess.Popen, Path]]:
        """Start a command in a process group of its own, which is gone when the block ends. Its output is the file."""
        log = self.logs / f"{len(list(self.logs.iterdir())):03d}_{command}.txt"
        program = shutil.which(command, path=str(Path(sys.executable).parent)) or shutil.which(command)
        assert program is not None, f"there is no command {command} beside {sys.executable} or on PATH"
        line = [program, *(str(argument) for argument in arguments)]
        with log.open("w") as output:
            output.write(" ".join(line) + "\n")
            output.flush()
            process = subprocess.Popen(
                line,
                cwd=self.root,
                env=env or self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            yield process, log
        finally:
            self.end(process)

    @staticmethod
    def end(process: subprocess.Popen) -> None:
        """SIGKILL to the whole process group, and wait until it is empty."""
        until = time.monotonic() + 10  # where nobody reaps orphans they stay in the group
        while time.monotonic() < until:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                break
            process.poll()
            time.sleep(0.05)
        process.wait(timeout=30)

    def run(
        self, command: str, *arguments: object, env: dict[str, str] | None = None, timeout_s: float = TIMEOUT_S
    ) -> str:
        """Run a command to its end and return what it printed. CommandFailed where it does not end well."""
        import resource

        started, cpu = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
        with self.start(command, *arguments, env=env) as (process, log):
            try:
                code: int | str = process.wait(timeout=timeout_s)
            except subprocess.TimeoutExpired:
                code = f"none after {timeout_s} s"
        printed = log.read_text(errors="replace")
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_s = used.ru_utime + used.ru_stime - cpu.ru_utime - cpu.ru_stime
        with log.open("a") as output:
            output.write(f"\n[exit status {code}, {time.monotonic() - started:.1f} s, {cpu_s:.1f} s of one core]\n")
        if code != 0:
            raise CommandFailed(self.describe(log, code))
        return printed

    def run_in_one_process(
        self,
        commands: Iterable[Sequence[object] | str],
        *,
        iterations: int = SHORT_ITERATIONS,
        env: dict[str, str] | None = None,
    ) -> str:
        """Run nnU-Net's commands, made short, one after the other by ``one_process.py``. Returns what they printed."""
        return self.run(*self.one_process_command(commands, iterations), env=env, timeout_s=2 * TIMEOUT_S)

    def one_process_command(
        self, commands: Iterable[Sequence[object] | str], iterations: int = SHORT_ITERATIONS
    ) -> tuple[object, ...]:
        """The command of ``run_in_one_process``."""
        lines = [command if isinstance(command, str) else " ".join(map(str, command)) for command in commands]
        file = self.root / f"commands_{len(list(self.root.glob('commands_*.txt')))}.txt"
        file.write_text("\n".join(lines))
        return ("python", ONE_PROCESS, file, iterations)

    @staticmethod
    def describe(log: Path, code: object) -> str:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-40:])
        return f"exit status {code}; the end of {log}:\n{tail}"

    # nnU-Net's commands, as short as the tests need them

    @staticmethod
    def train_command(
        dataset: str, configuration: str, fold: int | str, trainer: str, *more: object, plans: str = "nnUNetPlans"
    ) -> tuple[object, ...]:
        """``nnUNetv2_train`` on the CPU."""
        command = ("nnUNetv2_train", dataset, configuration, fold, "-tr", trainer, "-p", plans)
        return (*command, "-device", "cpu", *more)

    def train(
        self,
        dataset: str,
        configuration: str,
        fold: int | str,
        trainer: str,
        *more: object,
        plans: str = "nnUNetPlans",
    ) -> Path:
        """Run ``train_command``. Returns the fold's folder."""
        self.run(*self.train_command(dataset, configuration, fold, trainer, *more, plans=plans))
        return self.fold_folder(dataset, configuration, fold, trainer, plans)

    def train_shortly(self, dataset: str, configuration: str, fold: int | str, trainer: str, *more: object) -> Path:
        """Run ``train_command`` with epochs of ``SHORT_ITERATIONS``. Returns the fold's folder."""
        self.run_in_one_process([self.train_command(dataset, configuration, fold, trainer, *more)])
        return self.fold_folder(dataset, configuration, fold, trainer)

    def model_folder(self, dataset: str, configuration: str, trainer: str, plans: str = "nnUNetPlans") -> Path:
        return self.results / dataset / f"{trainer}__{plans}__{configuration}"

    def fold_folder(
        self, dataset: str, configuration: str, fold: int | str, trainer: str, plans: str = "nnUNetPlans"
    ) -> Path:
        return self.model_folder(dataset, configuration, trainer, plans) / f"fold_{fold}"

    def predict_command(
        self,
        folder: Path,
        dataset: str,
        configuration: str,
        trainer: str,
        *more: object,
        folds: tuple[int | str, ...] = (0,),
        workers: int = 0,
    ) -> tuple[object, ...]:
        """``nnUNetv2_predict`` of the held-out cases on the CPU."""
        return (
            "nnUNetv2_predict",
            *("-i", self.images_held_out, "-o", folder, "-d", dataset, "-c", configuration, "-tr", trainer),
            *("-f", *folds, "-device", "cpu", "-npp", workers, "-nps", workers),
            "--disable_progress_bar",
            *more,
        )

    def read_label(self, case: str) -> np.ndarray:
        """The true label map of a held-out case."""
        import SimpleITK as sitk

        return sitk.GetArrayFromImage(sitk.ReadImage(str(self.labels_held_out / f"{case}.nii.gz")))

    def read_predictions(self, folder: Path) -> dict[str, np.ndarray]:
        """The label maps of the held-out cases in a folder, each on the grid of its image."""
        import SimpleITK as sitk

        predictions = {}
        for case in self.held_out:
            predicted = sitk.ReadImage(str(folder / f"{case}.nii.gz"))
            image = sitk.ReadImage(str(self.images_held_out / f"{case}_0000.nii.gz"))
            assert predicted.GetSize() == image.GetSize()
            assert predicted.GetSpacing() == pytest.approx(image.GetSpacing())
            predictions[case] = sitk.GetArrayFromImage(predicted)
        return predictions

    # what nnU-Net wrote

    @staticmethod
    def read_checkpoint(file: Path) -> dict:
        import torch

        return torch.load(file, map_location="cpu", weights_only=False)  # written by these tests a moment ago

    def check_model(self, fold_folder: Path, epochs: int, dtc: bool = True) -> dict:
        """What every finished training must have left behind. Returns the final checkpoint."""
        trainer, plans, configuration = fold_folder.parent.name.split("__")
        assert {file.name for file in fold_folder.glob("checkpoint_*.pth")} == {
            "checkpoint_best.pth",
            "checkpoint_final.pth",
        }
        checkpoint = self.read_checkpoint(fold_folder / "checkpoint_final.pth")
        assert checkpoint["trainer_name"] == trainer
        assert checkpoint["init_args"]["configuration"] == configuration
        assert checkpoint["init_args"]["plans"]["plans_name"] == plans
        assert checkpoint["current_epoch"] == epochs
        for losses in ("train_losses", "val_losses"):
            assert len(checkpoint["logging"][losses]) == epochs
            assert all(math.isfinite(loss) for loss in checkpoint["logging"][losses])
        self.check_decoder(checkpoint, dtc)
        summary = json.loads((fold_folder / "validation" / "summary.json").read_text())
        assert 0 <= summary["foreground_mean"]["Dice"] <= 1
        assert summary["metric_per_case"]
        return checkpoint

    @staticmethod
    def check_decoder(checkpoint: dict, dtc: bool) -> None:
        """Every upsampling of the planned decoder has a DTC block around it (or none), with finite weights."""
        weights = checkpoint["network_weights"]
        configuration = checkpoint["init_args"]["plans"]["configurations"][checkpoint["init_args"]["configuration"]]
        while "architecture" not in configuration:
            configuration = checkpoint["init_args"]["plans"]["configurations"][configuration["inherits_from"]]
        strides = configuration["architecture"]["arch_kwargs"]["strides"][:0:-1]
        for index, stride in enumerate(strides):
            block = f"decoder.transpconvs.{index}"
            assert (f"{block}.weight" in weights) != dtc
            for part in ("base", "value", "coords"):
                assert (f"{block}.{part}.weight" in weights) == dtc
            if dtc:
                axes = len(stride)
                assert list(weights[f"{block}.coords.weight"].shape[1:]) == [2 * axes, *stride]
                assert list(weights[f"{block}.base.weight"].shape[2:]) == list(stride)
                assert list(weights[f"{block}.value.weight"].shape[2:]) == [1] * axes
        assert f"decoder.transpconvs.{len(strides)}.weight" not in weights
        assert all(value.isfinite().all() for value in weights.values())


@pytest.fixture(scope="session")
def session_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of pytest-xdist share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the phantom's images and labels."""
    if os.name == "nt":
        pytest.skip("the commands are started and ended as POSIX process groups")
    return write_phantom(tmp_path_factory.mktemp("phantom"))


@pytest.fixture(scope="session")
def real_volumes() -> Path:
    """The folder of the hippocampus volumes. Tests that need them are skipped without them."""
    if os.name == "nt":
        pytest.skip("the commands are started and ended as POSIX process groups")
    if (folder := find_data()) is None:
        wanted = os.environ.get(DATA_VARIABLE)
        where = f"{DATA_VARIABLE}={wanted}" if wanted else f"{DATA_FALLBACK}, and {DATA_VARIABLE} is not set"
        pytest.skip(f"no hippocampus volumes (hippocampus/images, hippocampus/labels) in {where}")
    return folder


@pytest.fixture(scope="session")
def preprocessed_once(phantom: Path, session_folder: Path) -> Workspace:
    """The default data set, planned and preprocessed once for all workers; to be copied, not to be changed."""
    import fcntl

    workspace = Workspace(session_folder / "preprocessed_once", phantom)
    done = workspace.root / "done"
    with (session_folder / "preprocessed_once.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.is_file():
            workspace.write_raw()
            configurations = ("-c", "2d", "3d_fullres", "--verify_dataset_integrity")
            workspace.run_in_one_process([workspace.plan_and_preprocess_command("-d", DATASET_ID, *configurations)])
            done.touch()
    return workspace


@pytest.fixture(scope="module")
def empty_workspace(phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace without a data set."""
    return Workspace(tmp_path_factory.mktemp("workspace"), phantom)


@pytest.fixture(scope="module")
def real_workspace(real_volumes: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace without a data set, with the hippocampus volumes as its cases."""
    return Workspace(tmp_path_factory.mktemp("workspace"), real_volumes)


@pytest.fixture(scope="module")
def workspace(preprocessed_once: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace of the test file's own with the default data set, preprocessed, with small plans."""
    root = tmp_path_factory.mktemp("workspace")
    for folder in (preprocessed_once.raw, preprocessed_once.preprocessed, preprocessed_once.root / "held_out"):
        shutil.copytree(folder, root / folder.name)
    own = Workspace(root, preprocessed_once.data)
    own.shrink_plans(f"Dataset{DATASET_ID:03d}_{DATASET_NAME}")
    return own


@pytest.fixture(scope="module")
def folder_for_locks() -> Iterator[str]:
    """A TMPDIR for studies, which would otherwise wait for the cores that other studies on this machine use.

    Its path is short enough for the sockets of PyTorch's processes, unlike those of pytest's folders.
    """
    with tempfile.TemporaryDirectory() as folder:
        yield folder


@pytest.fixture(scope="session")
def dataset() -> str:
    """The name of the default data set."""
    return f"Dataset{DATASET_ID:03d}_{DATASET_NAME}"
