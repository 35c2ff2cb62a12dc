"""Files that are not what nnU-Net writes: every change of one ends in success or in one sentence; nothing is written.

Hypothesis takes a file as nnU-Net leaves it, changes one or two of its values, and the commands' own functions read it,
in this process. A traceback, which is any exception but NnunetDtcError and OSError, fails the test.
``--hypothesis-profile=long`` tries a hundred times as many changes.
"""

import copy
import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from model_folders import Folders, write_image
from plans import DATASET, small_plans
from typer.testing import CliRunner

pytest.importorskip("hypothesis")
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_dtc.cli import app
from nnunet_dtc.errors import NnunetDtcError
from nnunet_dtc.plugin.checkpoints import open_checkpoint
from nnunet_dtc.plugin.finder import find_trainer
from nnunet_dtc.plugin.planned_networks import build_network
from nnunet_dtc.study.comparison.logs import read_log
from nnunet_dtc.study.comparison.plan import Options, plan_comparison
from nnunet_dtc.study.coordinates.forward_pass import find_coordinates
from nnunet_dtc.study.coordinates.image_patch import load_patch
from nnunet_dtc.study.coordinates.trained_model import load_model

FEWER = settings(max_examples=max(settings().max_examples // 3, 1))  # where networks are built
CONFIGURATION = "2d"
MODEL = "nnUNetTrainerDTC__nnUNetPlans__2d"


def nested(depth):
    return json.loads("[" * depth + "]" * depth)


STRANGE = [
    None, True, False, 0, 1, -1, 2, 7, 99, 3_000_000_000, 10**30, 0.5, 1.0, -0.0, 1e308, math.nan, math.inf, -math.inf,
    "", "x", "1", "os.system", "torch.nn.Module", "../../escaped", "/", ".", "\x1b[31mred\x1b[0m",
    "line\nbreak", "\ud800", "[/red]", "a" * 300, [], [0], [1, 2, 3], ["a", None], [[1, 1], [2, 2]], [math.nan], {},
    nested(50), {"": {}}, {"a": {"b": [1]}}, {"0": 1}, {"1": "liver"}, {"inherits_from": "2d"},
]  # fmt: skip


def places(document, path=()):
    """The path of every value in a document, itself included."""
    yield path
    items = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in items:
        yield from places(value, (*path, key))


def changed(draw, document, strange=STRANGE):
    """A copy of a document with one or two values removed, replaced, doubled or added."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 2))):
        all_places = list(places(document))
        path = draw(st.sampled_from(all_places))
        how = draw(st.sampled_from(["replace", "replace", "remove", "double", "add"]))
        value = copy.deepcopy(draw(st.sampled_from(strange)))
        if not path:
            if how == "replace":
                return value
            continue
        parent = document
        for key in path[:-1]:
            parent = parent[key]
        if how == "remove":
            del parent[path[-1]]
        elif how == "replace":
            parent[path[-1]] = value
        elif how == "double":
            parent[path[-1]] = [parent[path[-1]]] * 2
        elif isinstance(parent, dict):
            parent[draw(st.sampled_from(["", "x", "ignore", "inherits_from", "architecture", "../x", "\x07"]))] = value
        else:
            parent.append(value)
    return document


def everything_in(folder):
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def survives(call):
    """Call it. Errors of the two kinds that the commands print must say something, in a text that can be printed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            call()
        except (NnunetDtcError, OSError) as error:
            message = str(error)
        else:
            return None
    assert message.strip()
    return message


def command(*arguments):
    """Run a command. It ends well or in one error; other exceptions come through."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done = CliRunner().invoke(app, list(map(str, arguments)))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code in (0, 1)
    assert done.output.count("Error:") == done.exit_code
    assert "\x1b" not in done.output
    return done


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """A data set with two models of one validated configuration, and a checkpoint and an image for each command."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("nnUNet_extTrainer", raising=False)
        patch.setenv("NNUNET_DTC_BACKEND", "reference")
        found = Example(tmp_path_factory.mktemp("example"), patch)
        patch.chdir(found.root / "work")
        yield found


class Example:
    def __init__(self, root, patch):
        self.root = root
        (root / "work").mkdir()
        self.folders = Folders(root / "nnunet", patch)
        for trainer in ("nnUNetTrainer", "nnUNetTrainerDTC"):
            self.folders.train(trainer)
        self.models = sorted((root / "nnunet/results").glob("*/*"), key=lambda path: path.name)
        self.image = root / "case_0000.nii.gz"
        write_image(self.image, np.random.default_rng(0).standard_normal((3, 16, 24)).astype(np.float32))
        self.plans = small_plans()
        self.plans["configurations"] = {CONFIGURATION: self.plans["configurations"][CONFIGURATION]}
        self.plans["foreground_intensity_properties_per_channel"] = {
            "0": {"mean": 0.0, "std": 1.0, "percentile_00_5": -2.0, "percentile_99_5": 2.0}
        }
        self.dtc = root / MODEL
        (self.dtc / "fold_0").mkdir(parents=True)
        (self.dtc / "plans.json").write_text(json.dumps(self.plans))
        (self.dtc / "dataset.json").write_text(json.dumps(DATASET))
        self.vanilla = self.checkpoint(nnUNetTrainer)
        torch.save(self.checkpoint(find_trainer("nnUNetTrainerDTC")), self.dtc / "fold_0" / "checkpoint_final.pth")

    def checkpoint(self, trainer):
        network = build_network(trainer, self.plans, CONFIGURATION, DATASET, deep_supervision=True)
        return {
            "network_weights": dict(network.state_dict()),
            "current_epoch": 2,
            "logging": {"train_losses": [0.5, math.nan], "val_losses": [np.float64(0.1)], "mean_fg_dice": []},
            "init_args": {
                "plans": self.plans,
                "configuration": CONFIGURATION,
                "fold": 0,
                "dataset_json": copy.deepcopy(DATASET),
            },
            "trainer_name": trainer.__name__,
            "inference_allowed_mirroring_axes": [0, 1],
        }

    def compare(self):
        plan = plan_comparison(self.models, Options())
        for training in plan.trainings:
            read_log(training, plan.folds)

    def coordinates(self):
        model = load_model(self.dtc)
        find_coordinates(model, load_patch(model, [self.image]))

    def with_changed(self, file, document, call):
        """Call with other content of a file, and see that nothing is written."""
        before = file.read_bytes()
        try:
            file.write_text(json.dumps(document))
            there = everything_in(self.root)
            message = survives(call)
            assert everything_in(self.root) == there
        finally:
            file.write_bytes(before)
        return message


def test_the_example_is_whole(example):
    example.compare()
    example.coordinates()


@pytest.mark.parametrize("name", ["plans.json", "dataset.json", "dataset_fingerprint.json"])
@given(data=st.data())
def test_compare_with_changed_descriptions(example, name, data):
    file = example.models[-1] / name
    example.with_changed(file, changed(data.draw, json.loads(file.read_text())), example.compare)


@given(data=st.data())
def test_compare_with_changed_summaries(example, data):
    file = example.models[0] / "fold_1" / "validation" / "summary.json"
    example.with_changed(file, changed(data.draw, json.loads(file.read_text())), example.compare)


@given(data=st.data())
def test_compare_with_changed_splits(example, data):
    file = next((example.root / "nnunet/preprocessed").glob("*/splits_final.json"))
    example.with_changed(file, changed(data.draw, json.loads(file.read_text())), example.compare)


@given(data=st.data())
def test_compare_with_changed_checkpoints(example, data):
    file = example.models[0] / "fold_0" / "checkpoint_final.pth"
    content = torch.load(file, weights_only=False)
    document = changed(data.draw, {**content, "network_weights": dict(list(content["network_weights"].items())[:3])})
    before = file.read_bytes()
    try:
        torch.save(document, file)
        survives(example.compare)
    finally:
        file.write_bytes(before)


@given(data=st.data())
def test_evaluate_with_changed_labels(example, data):
    original = {**DATASET, "labels": {"background": 0, "liver": 1, "both": [1, 2], "ignore": 3}}
    fold = example.models[0] / "fold_0" / "validation"
    file = example.root / "dataset.json"
    file.write_text(json.dumps(changed(data.draw, original)))
    out = example.root / "metrics"
    done = command("evaluate", fold, example.folders.gt, "-djfile", file, "--subset", "-np", 1, "-o", out)
    written = [path for path in map(out.with_suffix, (".json", ".csv")) if path.exists()]
    assert len(written) == (2 if done.exit_code == 0 else 0)
    for path in written:
        path.unlink()


@pytest.mark.parametrize("name", ["plans.json", "dataset.json"])
@FEWER
@given(data=st.data())
def test_complexity_with_changed_descriptions(example, name, data):
    documents = {"plans.json": example.plans, "dataset.json": DATASET}
    for file, document in documents.items():
        document = changed(data.draw, document) if file == name else document
        (example.root / "work" / file).write_text(json.dumps(document))
    out = Path("costs")
    done = command(
        "complexity", "--plans", "plans.json", "-c", CONFIGURATION, "-tr", "nnUNetTrainer", "nnUNetTrainerDTC",
        "--no-measure", "-o", out,
    )  # fmt: skip
    written = list(Path.cwd().glob("costs*"))
    assert len(written) == (3 if done.exit_code == 0 else 0)
    for path in written:
        path.unlink()


@pytest.mark.parametrize("name", ["plans.json", "dataset.json"])
@FEWER
@given(data=st.data())
def test_coordinates_with_changed_descriptions(example, name, data):
    document = {"plans.json": example.plans, "dataset.json": DATASET}[name]
    example.with_changed(example.dtc / name, changed(data.draw, document), example.coordinates)


@FEWER
@given(data=st.data())
def test_warm_start_with_changed_checkpoints(example, data):
    few = dict(list(example.vanilla["network_weights"].items())[:2])  # so that most changes are elsewhere
    document = changed(data.draw, {**example.vanilla, "network_weights": few})
    if isinstance(document, dict) and isinstance(weights := document.get("network_weights"), dict):
        document["network_weights"] = {**example.vanilla["network_weights"], **weights}
    file, out = example.root / "changed.pth", example.root / "out.pth"
    torch.save(document, file)
    done = command("warm-start", file, "-tr", "nnUNetTrainerDTC", "-o", out)
    assert out.exists() == (done.exit_code == 0)
    out.unlink(missing_ok=True)


def test_nesting_without_end(example):
    """Copying and comparing such a document would exceed Python's stack."""
    for file in (example.models[0] / "plans.json", example.models[0] / "dataset.json"):
        before = file.read_bytes()
        for depth in (100, 900, 100_000):
            file.write_text(json.dumps({"a": 0})[:-2] + "[" * depth + "]" * depth + "}")
            assert "nested" in survives(example.compare)
        file.write_bytes(before)


@given(start=st.integers(0, 400), length=st.integers(0, 40), data=st.data())
def test_damaged_bytes_of_checkpoints(example, start, length, data):
    """Cut off, or overwritten in the header, the pickle or the directory of the archive."""
    whole = (example.models[0] / "fold_0" / "checkpoint_final.pth").read_bytes()
    file = example.root / "damaged.pth"
    if data.draw(st.booleans()):
        file.write_bytes(whole[: start * len(whole) // 400])
    else:
        place = data.draw(st.sampled_from([start, len(whole) - 450 + start]))
        file.write_bytes(whole[:place] + bytes([start % 256]) * length + whole[place + length :])
    survives(lambda: open_checkpoint(file))
