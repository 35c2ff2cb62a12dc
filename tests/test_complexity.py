"""Counts compared with sums by hand, and the training step of nnU-Net's trainers on small plans."""

import csv
import dataclasses
import io
import json
import math
import os
import signal
import statistics
import subprocess
from pathlib import Path

import pytest
import torch
from plans import CONFIGURATIONS, DATASET, SMALL_NETWORKS, small_plans
from rich.console import Console
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula
from typer.testing import CliRunner

from nnunet_dtc import DTC3d, convert_dtc
from nnunet_dtc.cli import app
from nnunet_dtc.cli.devices import check_device
from nnunet_dtc.errors import NnunetDtcError
from nnunet_dtc.ops import backends
from nnunet_dtc.study import complexity
from nnunet_dtc.study.complexity import bench, memory, process_memory, survey
from nnunet_dtc.study.complexity.counting import count_macs, count_parameters, parameters_mib

CPU = torch.device("cpu")
VANILLA, DTC = "nnUNetTrainer", "nnUNetTrainerDTC"
REGIONS = {
    **DATASET,
    "labels": {"background": 0, "organs": [1, 2], "spleen": 2, "ignore": 3},
    "regions_class_order": [1, 2],
}


def planned(configuration="3d_fullres", dataset=DATASET, **sizes):
    return complexity.PlannedTraining.of(small_plans(), dataset, configuration, **sizes)


def run(*arguments, **environment):
    return CliRunner().invoke(app, ["complexity", *map(str, arguments)], env={"COLUMNS": "200", **environment})


# ---- counting ----------------------------------------------------------------------------------------------------


def macs_by_hand(configuration, channels, classes, dtc):
    """MACs of the planned plain U-Net: a convolution costs kernel * channels in * channels out per output voxel."""
    architecture = CONFIGURATIONS[configuration]["architecture"]["arch_kwargs"]
    features, kernels, strides = (architecture[key] for key in ("features_per_stage", "kernel_sizes", "strides"))
    axes = len(strides[0])
    size, voxels, total, before = list(CONFIGURATIONS[configuration]["patch_size"]), [], 0, channels
    for feature, kernel, stride in zip(features, kernels, strides, strict=True):
        size = [extent // step for extent, step in zip(size, stride, strict=True)]
        voxels.append(math.prod(size))
        total += voxels[-1] * math.prod(kernel) * (before * feature + feature * feature)
        before = feature
    for level in reversed(range(len(features) - 1)):
        low, high, below, own = voxels[level + 1], voxels[level], features[level + 1], features[level]
        scale = math.prod(strides[level + 1])
        assert high == low * scale
        total += low * below * own * scale  # transposed convolution, kernel = stride
        if dtc:
            total += low * below * own  # value
            total += low * below * 2 * axes * scale  # coordinates
            total += high * own * 2**axes  # samples
        total += high * math.prod(kernels[level]) * (2 * own * own + own * own)
    return total + voxels[0] * features[0] * classes


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
@pytest.mark.parametrize("trainer", [VANILLA, DTC])
def test_macs_of_planned_networks_by_hand(configuration, trainer):
    training = planned(configuration)
    network = training.build_network(complexity.find_trainer(trainer), deep_supervision=False)
    counted = count_macs(network, training.input_channels, training.patch_size)
    assert counted.total == macs_by_hand(configuration, 1, 3, dtc=trainer == DTC)
    assert counted.uncounted == ()


def test_macs_of_single_operators():
    size = (3, 5, 7)
    voxels = math.prod(size)
    assert count_macs(nn.Conv3d(4, 6, (1, 3, 3), padding=(0, 1, 1), groups=2), 4, size).total == voxels * 9 * 2 * 6
    assert count_macs(nn.Conv3d(4, 6, 3, stride=2), 4, size).total == 1 * 2 * 3 * 27 * 4 * 6
    assert count_macs(nn.ConvTranspose3d(4, 6, (1, 2, 2), (1, 2, 2)), 4, size).total == voxels * 4 * 4 * 6
    assert count_macs(nn.ConvTranspose3d(4, 6, 3, (1, 2, 2), 1), 4, size).total == voxels * 27 * 4 * 6
    assert count_macs(nn.Linear(7, 11), 4, size).total == 4 * 3 * 5 * 7 * 11
    for mode, axes, neighbours in (("bilinear", 2, 4), ("trilinear", 3, 8), ("bicubic", 2, 16), ("nearest", 3, 0)):
        up = nn.Upsample(scale_factor=2, mode=mode)
        assert count_macs(up, 4, size[:axes]).total == 4 * 2**axes * math.prod(size[:axes]) * neighbours

    class Sample(nn.Module):
        def __init__(self, mode, axes):
            super().__init__()
            self.mode, self.axes = mode, axes

        def forward(self, x):
            return F.grid_sample(x, torch.zeros(1, *[9] * self.axes, self.axes), self.mode, align_corners=False)

    for mode, axes, neighbours in (("bilinear", 2, 4), ("bilinear", 3, 8), ("nearest", 3, 0), ("bicubic", 2, 16)):
        assert count_macs(Sample(mode, axes), 4, size[:axes]).total == 4 * 9**axes * neighbours


def test_counting_does_not_use_a_forced_backend_for_another_device(monkeypatch):
    block = DTC3d(2, 3, (1, 2, 2))
    counted = count_macs(block, 2, (2, 3, 4))
    there = dataclasses.replace(backends.BACKENDS["triton"], why_not=lambda: None)
    monkeypatch.setitem(backends.BACKENDS, "triton", there)
    monkeypatch.setenv(backends.VARIABLE, "triton")
    with pytest.raises(RuntimeError, match="computes on cuda, got tensors on cpu"):
        block(torch.zeros(1, 2, 2, 3, 4))
    assert count_macs(block, 2, (2, 3, 4)) == counted


def test_a_block_without_shifts_costs_what_linear_interpolation_costs():
    """In addition to the coordinates, which it also computes."""
    block = DTC3d(4, 6, (1, 2, 2), 0)
    linear = nn.Sequential(nn.Conv3d(4, 6, 1), nn.Upsample(scale_factor=(1, 2, 2), mode="trilinear"))
    parts = (block.base, block.coords, linear)
    assert count_macs(block, 4, (3, 5, 7)).total == sum(count_macs(part, 4, (3, 5, 7)).total for part in parts)


def test_counting_computes_nothing_and_changes_nothing():
    network = nn.Sequential(nn.Conv3d(1, 8, 3, padding=1), nn.BatchNorm3d(8), nn.Conv3d(8, 2, 1)).train()
    state = {key: value.clone() for key, value in network.state_dict().items()}
    huge = 4096  # 2 TB of features
    assert count_macs(network, 1, (huge,) * 3).total == huge**3 * (27 * 8 + 16)
    assert network.training
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


def test_networks_that_read_their_features_are_computed():
    class Reads(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) * (2 if x.sum().item() > 0 else 1)

    assert count_macs(Reads(3, 5, 1), 3, (7, 9)).total == 7 * 9 * 15


def test_operators_without_a_formula_are_named_and_those_with_one_are_counted():
    @torch.library.custom_op("nnunet_dtc_test::once", mutates_args=())
    def once(x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @torch.library.custom_op("nnunet_dtc_test::twice", mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    for operator in (once, twice):
        operator.register_fake(torch.empty_like)

    @register_flop_formula(torch.ops.nnunet_dtc_test.twice)
    def _operations(shape, *, out_shape=None):
        return 2 * math.prod(shape)  # a product per element

    class Uses(nn.Module):
        def forward(self, x):
            return once(twice(x))

    counted = count_macs(Uses(), 3, (7, 9))
    assert counted.total == 3 * 7 * 9
    assert counted.uncounted == ("nnunet_dtc_test.once",)


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_parameters_are_counted_once(configuration):
    network = planned(configuration).build_network(complexity.find_trainer(DTC), deep_supervision=True)
    weights = {
        key: value
        for key, value in network.state_dict().items()
        if not key.startswith("decoder.encoder.") and ".all_modules." not in key
    }
    assert len(weights) < len(network.state_dict())
    assert count_parameters(network) == sum(value.numel() for value in weights.values())


class BilinearUNet(nn.Module):
    """The U-Net of table 7 with 3 to 1 channels and 64 to 1024 features, the last ones halved if bilinear."""

    def __init__(self):
        super().__init__()
        widths = (64, 128, 256, 512, 512)
        self.down = nn.ModuleList(
            self.twice(before, width, width) for before, width in zip((3, *widths), widths, strict=False)
        )
        self.up = nn.ModuleList(nn.Upsample(scale_factor=2, mode="bilinear") for _ in range(4))
        self.join = nn.ModuleList(
            self.twice(2 * width, width, after)
            for width, after in ((512, 256), (256, 128), (128, 64), (64, 64))
        )  # fmt: skip
        self.out = nn.Conv2d(64, 1, 1)

    @staticmethod
    def twice(before, between, after):
        layers = []
        for one, other in ((before, between), (between, after)):
            layers += [nn.Conv2d(one, other, 3, padding=1, bias=False), nn.BatchNorm2d(other), nn.ReLU()]
        return nn.Sequential(*layers)

    def forward(self, x):
        kept = [self.down[0](x)]
        for down in self.down[1:]:
            kept.append(down(F.max_pool2d(kept[-1], 2)))
        x = kept.pop()
        for up, join in zip(self.up, self.join, strict=True):
            x = join(torch.cat([kept.pop(), up(x)], dim=1))
        return self.out(x)


def test_table_7():
    """Params (M) 65.95 and 67.25 are MiB, FLOPs (G) 40.13 and 40.52 are multiply-accumulates at 256 x 256."""
    network = BilinearUNet()
    assert count_parameters(network) == 17_262_977
    assert parameters_mib(17_262_977) == pytest.approx(65.95, abs=0.11)
    before = count_macs(network, 3, (256, 256)).total
    assert before / 1e9 == pytest.approx(40.13, rel=0.005)

    network = convert_dtc(network, example_input=torch.zeros(1, 3, 32, 32))
    assert count_parameters(network) == 17_262_977 + 364_496
    assert parameters_mib(count_parameters(network)) == pytest.approx(67.25, abs=0.01)
    added = count_macs(network, 3, (256, 256)).total - before
    by_hand = 0
    for width, extent in ((512, 16), (256, 32), (128, 64), (64, 128)):  # of the features that are upsampled
        by_hand += extent**2 * width * (width + 4 * 4) + 4 * extent**2 * width * 4
    assert added == by_hand
    assert added / 1e9 == pytest.approx(40.52 - 40.13, abs=0.07)


# ---- the training step -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("configuration", "trainer", "dataset"),
    [
        ("2d", DTC, DATASET),
        ("3d_residual", VANILLA, DATASET),
        ("3d_cascade_fullres", DTC, DATASET),
        ("3d_fullres", DTC, REGIONS),
        ("3d_fullres", "nnUNetTrainerDTC_Adam1en3", {**DATASET, "labels": {**DATASET["labels"], "ignore": 3}}),
        ("3d_fullres", "nnUNetTrainerNoDeepSupervision", DATASET),
    ],
)
def test_steps_train_and_inference_gives_logits(configuration, trainer, dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    training = planned(configuration, dataset)
    one = bench.Bench(complexity.find_trainer(trainer), training, CPU)
    assert (os.environ["nnUNet_results"], "nnUNet_preprocessed" in os.environ) == (str(tmp_path / "results"), False)
    network = one.trainer.network
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    seconds, loss = one.timed_step()
    assert seconds > 0
    assert math.isfinite(loss)
    after = dict(network.named_parameters())
    kernels = [name for name in before if before[name].ndim > 2]
    same = [name for name in kernels if torch.equal(before[name], after[name])]
    assert len(same) < len(kernels)
    assert all(".seg_layers." in name for name in same)  # the loss does not depend on the lowest one
    assert not one.compiles

    one.start_inference()
    logits = one.infer()
    classes = training.manager.get_label_manager(dataset).num_segmentation_heads
    assert logits.shape == (1, classes, *training.patch_size)
    assert not logits.requires_grad
    with torch.no_grad():
        expected = network.eval()(one.batch["data"][:1])
    assert torch.equal(logits, expected)
    scratch = Path(one.trainer.output_folder)
    assert scratch.is_dir()
    one.close()
    assert not scratch.exists()
    assert not (tmp_path / "results").exists()


def test_a_trainer_that_fails_is_named():
    """Instance normalisation cannot be trained on the single voxel of this patch at the lowest level."""
    training = planned("3d_fullres", patch_size=[2, 8, 4])
    with pytest.raises(complexity.ComplexityError, match=r"nnUNetTrainer cannot train on cpu: Expected more than 1"):
        bench.Bench(complexity.find_trainer(VANILLA), training, CPU).step()
    refused = (
        r"nnUNetTrainerDTC cannot set up on cpu: the planned network with patch_size=\(2, 8, 4\) has one voxel left"
    )
    with pytest.raises(complexity.ComplexityError, match=refused):
        bench.Bench(complexity.find_trainer(DTC), training, CPU)


def test_errors_of_the_process_that_measures_memory(tmp_path):
    """The last line of its standard error is shown to the user."""
    training = planned("3d_fullres", patch_size=[2, 8, 4])
    request = {"trainer": VANILLA, "training": dataclasses.asdict(training), "device": "cpu"}
    (tmp_path / "request.json").write_text(json.dumps(request))
    with pytest.raises(SystemExit) as ended:
        memory.run_request(str(tmp_path / "request.json"), str(tmp_path / "result.json"))
    message = str(ended.value)
    assert message.startswith("nnUNetTrainer cannot train on cpu: Expected more than 1 spatial element")
    assert "\n" not in message
    assert not (tmp_path / "result.json").exists()
    assert process_memory.why_ended(subprocess.CompletedProcess([], 1, "", f"a warning\n{message}\n")) == message
    assert process_memory.why_ended(subprocess.CompletedProcess([], 3, "", "")) == "its process ended with 3"


def test_every_one_of_many_networks_is_compiled():
    """torch compiles 8 graphs per forward, but many trainers have networks of one class."""
    graphs = []

    def compiler(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    def compile_all(count):
        torch._dynamo.reset()
        graphs.clear()
        for width in range(1, count + 1):
            network = torch.compile(nn.Sequential(nn.Conv2d(1, width, 1), nn.ReLU()), backend=compiler)
            network(torch.zeros(1, 1, 3, 5))
        return len(graphs)

    limit = torch._dynamo.config.recompile_limit
    assert compile_all(limit + 3) < limit + 3
    with survey.each_compiled(limit + 3):
        assert compile_all(limit + 3) == limit + 3
    assert torch._dynamo.config.recompile_limit == limit
    torch._dynamo.reset()


def test_inference_must_be_started():
    one = bench.Bench(complexity.find_trainer(VANILLA), planned("2d"), CPU)
    with pytest.raises(RuntimeError, match="start_inference"):
        one.infer()
    one.close()


def test_a_killed_process_is_explained():
    killed = subprocess.CompletedProcess([], -signal.SIGKILL, "", "")
    assert process_memory.why_ended(killed) == "its process was ended by SIGKILL, perhaps out of memory"


def test_peak_of_a_process_and_devices_that_are_not_measured(monkeypatch):
    assert memory.measure_peak_memory(VANILLA, planned("2d"), torch.device("mps")) == memory.PeakMemory()
    before = process_memory.resident_mib()
    if before is None:
        pytest.skip("this system does not tell the memory of a process")
    process_memory.forget_peak()
    block = torch.ones(64 * 2**20 // 4)  # 64 MiB
    del block
    assert process_memory.peak_resident_mib() - before > 55

    def unreadable(*arguments, **options):
        raise OSError

    monkeypatch.setattr(Path, "read_text", unreadable)  # a system without /proc
    assert process_memory.peak_resident_mib() >= before


# ---- the command -------------------------------------------------------------------------------------------------


@pytest.fixture
def preprocessed(tmp_path, monkeypatch):
    """nnU-Net's folder with the plans, and the variables that point to it."""
    folder = tmp_path / "preprocessed" / "Dataset998_Test"
    folder.mkdir(parents=True)
    (folder / "nnUNetPlans.json").write_text(json.dumps(small_plans()))
    (folder / "dataset.json").write_text(json.dumps(DATASET))
    monkeypatch.setenv("nnUNet_preprocessed", str(folder.parent))
    for variable in ("nnUNet_raw", "nnUNet_results"):
        monkeypatch.delenv(variable, raising=False)
    return folder


def test_counts_alone(preprocessed, tmp_path):
    out = tmp_path / "costs.json"
    trainers = (DTC, VANILLA, "nnUNetTrainerDTC_noweight")
    done = run("-d", 998, "-c", "3d_fullres", "-tr", *trainers, "--no-measure", "-o", out)
    assert done.exit_code == 0, done.output
    content = json.loads(out.read_text())
    assert content["format"] == 1
    assert list(content["trainers"]) == list(trainers)
    assert (content["dataset"], content["plans"], content["configuration"]) == (
        "Dataset998_Test",
        "nnUNetPlans",
        "3d_fullres",
    )
    assert (content["patch_size"], content["batch_size"], content["device"]) == ([6, 16, 24], 2, None)
    costs = content["trainers"]
    by_hand = [macs_by_hand("3d_fullres", 1, 3, dtc) for dtc in (True, False)]
    assert [costs[name]["macs"] for name in trainers[:2]] == by_hand
    assert costs[VANILLA]["ratios"]["macs"] == by_hand[1] / by_hand[0]
    assert costs[VANILLA]["ratios"]["parameters"] < costs["nnUNetTrainerDTC_noweight"]["ratios"]["parameters"] < 1
    assert costs[VANILLA]["step_seconds"] is costs[VANILLA]["peak_memory_mib"] is None
    assert costs[VANILLA]["ratios"]["step_seconds"] is None
    assert "training step" not in done.output
    assert (
        f"the ratios are relative to {DTC}, the first trainer, and not to nnU-Net's own network, which {VANILLA} has"
        in (done.output)
    )


def test_measured(preprocessed, tmp_path):
    sizes = ("--patch-size", "64,96", "--batch-size", 1, "--repeats", 2)
    done = run("-d", 998, "-c", "2d", "-tr", VANILLA, DTC, *sizes, "--device", "cpu", "-o", tmp_path / "costs")
    assert done.exit_code == 0, done.output
    assert "patch 64 x 96, batch 1 (planned: patch 16 x 24, batch 2)" in done.output
    assert "the sizes are not the planned ones" in done.output
    content = json.loads((tmp_path / "costs.json").read_text())
    assert (content["patch_size"], content["batch_size"], content["repeats"]) == ([64, 96], 1, 2)
    assert (content["planned_patch_size"], content["planned_batch_size"]) == ([16, 24], 2)
    assert content["device"]["device"] == "cpu"
    assert content["device"]["compiled"] is False
    first, other = (content["trainers"][name] for name in (VANILLA, DTC))
    training = planned("2d", patch_size=[64, 96], batch_size=1)
    for name, costs in content["trainers"].items():
        for kind in ("step", "inference"):
            assert len(costs[f"{kind}_runs"]) == 2
            assert min(costs[f"{kind}_runs"]) > 0
            assert costs[f"{kind}_seconds"] == statistics.median(costs[f"{kind}_runs"])
        network = training.build_network(complexity.find_trainer(name), True)
        kept = 4 * network.compute_conv_feature_map_size(training.patch_size) / 2**20
        assert kept > 0.5
        assert kept < costs["peak_memory_mib"] < 500  # backward needs at least the features
        assert costs["peak_memory_reserved_mib"] is None
        assert set(costs["ratios"]) == set(survey.QUANTITIES)
        for quantity, ratio in costs["ratios"].items():
            assert ratio == pytest.approx(costs[quantity] / first[quantity])
    assert first["ratios"] == dict.fromkeys(survey.QUANTITIES, 1)
    assert other["parameters"] > first["parameters"]

    with (tmp_path / "costs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["trainer"] for row in rows] == [VANILLA, DTC]
    assert float(rows[1]["step_seconds"]) == other["step_seconds"]
    assert float(rows[1]["peak_memory_mib_ratio"]) == other["ratios"]["peak_memory_mib"]
    assert rows[0]["peak_memory_reserved_mib"] == ""
    lines = (tmp_path / "costs.md").read_text().splitlines()
    heading, vanilla, dtc = (
        [cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "-|" not in line and line.startswith("|")
    )
    assert heading[:2] == ["trainer", "parameters"]
    assert vanilla[:2] == [VANILLA, f"{first['parameters']:,}"]
    assert dtc[:2] == [DTC, f"{other['parameters']:,} ({other['ratios']['parameters']:.3f}x)"]
    assert len(heading) == len(vanilla) == len(dtc) == 7  # all quantities but the reserved memory of a GPU


def test_a_trainer_of_the_user_is_found(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(
        "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer\n\n\n"
        "class nnUNetTrainerDTC_mylab(nnUNetTrainer):\n    pass\n"
    )
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path))
    found = complexity.find_trainer("nnUNetTrainerDTC_mylab")
    assert found.__name__ == "nnUNetTrainerDTC_mylab"
    assert capsys.readouterr().out == ""


def test_a_trainer_that_a_user_s_module_makes_when_asked_is_found(tmp_path, monkeypatch):
    """As the trainers of nnunet-dtc are made; a name that nobody has is still refused with the grammar."""
    (tmp_path / "mine.py").write_text(
        "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer\n\n\n"
        "def __getattr__(name):\n"
        "    if not name.startswith('nnUNetTrainerMyLab'):\n"
        "        raise AttributeError(name)\n"
        "    return type(name, (nnUNetTrainer,), {})\n"
    )
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path))
    assert complexity.find_trainer("nnUNetTrainerMyLab_rep2").__name__ == "nnUNetTrainerMyLab_rep2"
    with pytest.raises(NnunetDtcError, match="nnUNetTrainerYourLab is not a trainer of nnunet-dtc"):
        complexity.find_trainer("nnUNetTrainerYourLab")


@pytest.mark.parametrize("trainers", [2, 3, 4, 9])
def test_the_table_in_the_terminal_is_complete_in_80_columns(trainers):
    names = [f"nnUNetTrainerDTC_RF{number}" for number in range(trainers)]
    costs = {
        name: survey.TrainerComplexity(30_713_158 + number, 17_560_000_000, (1.347,), (0.3645,), 496.3, 520.0)
        for number, name in enumerate(names)
    }
    console = Console(width=80, file=io.StringIO())
    console.print(complexity.rich_table(complexity.Complexity(planned(), costs, None, 3, ())))
    lines = [line.replace("┃", "│").strip("│").split("│") for line in console.file.getvalue().splitlines()]
    lines = [[cell.strip() for cell in cells] for cells in lines if len(cells) > 1]
    text = "\n".join("".join(cells) for cells in zip(*lines, strict=True))  # cells that were broken into lines
    for name in names:
        assert name in text
    for number in range(trainers):
        assert f"{30_713_158 + number:,}" in text
    for words in ("17.56", "1.347", "0.3645", "496.3", "520.0"):
        assert text.count(words) >= trainers


def test_medians_and_ratios():
    costs = survey.TrainerComplexity(10, 20, (3.0, 1.0, 2.5), (0.4, 0.2), 100.0)
    dearer = survey.TrainerComplexity(15, 30, (5.0,), (), None)
    result = complexity.Complexity(planned(), {"A": costs, "B": dearer}, None, 3, ())
    assert (costs.step_seconds, costs.inference_seconds) == (2.5, pytest.approx(0.3))
    assert [result.ratio("B", quantity) for quantity in survey.QUANTITIES] == [1.5, 1.5, 2, None, None]


# ---- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-c", "3d_huge", "-tr", VANILLA), "there is no configuration 3d_huge; the plans have: 2d, 2d_res"),
        (("-p", "Others", "-tr", VANILLA), "Others.json: run nnUNetv2_plan_and_preprocess -d 998, or use the plans"),
        (("-p", "Others", "-tr", VANILLA), "or use the plans nnUNetPlans"),
        (("-tr", "os"), "there is no trainer os: "),
        (("-tr", "../x"), "a trainer's name is the name of a class, got '../x'"),
        (("-tr", VANILLA, "--device", "cpu", "--batch-size", "1000000000"), "a batch of 1000000000 with patches of"),
        (("-tr", VANILLA, "--device", "cpu", "--patch-size", "99999998,16,24"), "GiB of memory, this machine has"),
        (("-tr", "nnUNetTrainerNobodys"), "there is no trainer nnUNetTrainerNobodys: "),
        (("-tr", VANILLA, "nnUNetTrainerDTC_RF2"), "instead of nnUNetTrainerDTC_RF2 use nnUNetTrainerDTC"),
        (("-tr", "nnUNetTrainerDTC_mylab"), "_mylab is no suffix of nnunet-dtc"),
        (("-tr", VANILLA, DTC, VANILLA), "each trainer can be given once, got nnUNetTrainer several times"),
        (("-tr", VANILLA, "--patch-size", "6,16,25"), "by the strides of the planned network, 2 x 8 x 4, got 6"),
        (("-tr", VANILLA, "--patch-size", "16,24"), "the patch has 3 axes (planned: 6 x 16 x 24)"),
        (("-tr", VANILLA, "--patch-size", "6,0,24"), "each at least 1"),
        (("-tr", VANILLA, "--patch-size", "a"), "--patch-size takes whole numbers of voxels"),
        (("-tr", VANILLA, "--device", "cuda:1"), "--device is cpu, cuda or mps"),
        (("-tr", VANILLA, "--plans", "plans.json"), "give either a data set or a file of plans"),
        (("-tr", VANILLA, "--dataset-json", "dataset.json"), "a data set has its own dataset.json"),
        (("-tr", VANILLA, "-o", "no/such/folder/costs"), "there is no folder"),
    ],
)  # fmt: skip
def test_refused(preprocessed, arguments, message):
    defaults = () if "-c" in arguments else ("-c", "3d_fullres")
    done = run("-d", 998, *defaults, *arguments, nnUNet_compile="f")
    assert done.exit_code == 1
    assert "Error:" in done.output
    assert message in done.output
    assert "Measuring" not in done.output


@pytest.fixture
def odd_plans(tmp_path):
    """Files of plans whose patch nnU-Net would not plan."""

    def odd_plans(configuration, patch_size, batch_size=2, **arguments):
        plans = small_plans()
        changed = plans["configurations"][configuration]
        changed |= {"patch_size": patch_size, "batch_size": batch_size}
        changed["architecture"]["arch_kwargs"] |= arguments
        changed["architecture"]["nnunet_dtc"] = SMALL_NETWORKS | {"UNet": {"width": 4}}
        (tmp_path / "odd.json").write_text(json.dumps(plans))
        (tmp_path / "dataset.json").write_text(json.dumps(DATASET))
        return tmp_path / "odd.json"

    return odd_plans


BATCH_NORM = {"norm_op": "torch.nn.modules.batchnorm.BatchNorm2d"}


@pytest.mark.parametrize("trainer", [VANILLA, DTC, "nnUNetTrainer_7epochs", "nnUNetTrainerNoDeepSupervision"])
@pytest.mark.parametrize("measure", [True, False], ids=["measured", "counted"])
@pytest.mark.parametrize(
    ("configuration", "patch_size", "more", "message"),
    [
        ("3d_fullres", [7, 16, 16], {}, "network, 2 x 8 x 4, got 7 x 16 x 16 (axis 0: 7 is not divisible by 2)"),
        ("2d", [16, 22], {"strides": 2}, "network, 8 x 8, got 16 x 22 (axis 1: 22 is not divisible by 8)"),
        ("2d", [2, 4], {}, "the planned network with patch_size=(2, 4) has one voxel left in its deepest map"),
        ("2d", [2, 4], {"batch_size": 1, **BATCH_NORM}, "with a batch of one case batch normalisation has one value"),
    ],
    ids=["uneven", "one stride", "instance norm", "batch norm"],
)  # fmt: skip
def test_planned_patches_that_the_planned_network_does_not_accept(
    trainer, measure, configuration, patch_size, more, message, odd_plans
):
    file = odd_plans(configuration, patch_size, **more)
    done = run(
        "--plans", file, "-c", configuration, "-tr", trainer, *(("--device", "cpu") if measure else ("--no-measure",))
    )
    if more.get("batch_size") == 1 and not measure:  # a prediction accepts it
        assert done.exit_code == 0, done.output
        return
    assert (done.exit_code, type(done.exception)) == (1, SystemExit)
    assert message in done.output
    assert f"{file}: the network of {trainer} does not take this patch" in done.output or (
        f"{trainer} cannot build its network from {file}" in done.output
    )
    assert "Measuring" not in done.output


@pytest.mark.parametrize("asked", [True, False], ids=["--patch-size", "planned"])
@pytest.mark.parametrize(
    ("trainer", "configuration", "patch_size"),
    [
        ("nnUNetTrainerUNetDTC", "2d", [17, 22]),
        ("nnUNetTrainerUNETR", "3d_fullres", [7, 20, 18]),
        ("nnUNetTrainerSegMambaDTC", "3d_fullres", [7, 20, 18]),
    ],
)
def test_networks_that_pad_are_counted_for_any_patch(trainer, configuration, patch_size, asked, odd_plans):
    file = odd_plans(configuration, [8, 16, 24][-len(patch_size) :] if asked else patch_size)
    size = ("--patch-size", ",".join(map(str, patch_size))) if asked else ()
    done = run(
        "--plans", file, "-c", configuration, "-tr", trainer, *size, "--no-measure", "-o", file.with_name("costs")
    )
    assert done.exit_code == 0, done.output
    assert json.loads(file.with_name("costs.json").read_text())["patch_size"] == patch_size


def test_networks_that_pad_are_measured_for_any_patch(odd_plans, tmp_path):
    file = odd_plans("2d", [17, 22])
    sizes = ("-c", "2d", "--device", "cpu", "--repeats", 1, "-o", tmp_path / "costs")
    done = run("--plans", file, "-tr", "nnUNetTrainerUNetDTC", *sizes, nnUNet_compile="f")
    assert done.exit_code == 0, done.output
    assert done.output.index("Measuring nnUNetTrainerUNetDTC on cpu") < done.output.index("patch 17 x 22")
    content = json.loads((tmp_path / "costs.json").read_text())
    assert content["patch_size"] == [17, 22]
    (costs,) = content["trainers"].values()
    assert min(costs["step_runs"] + costs["inference_runs"]) > 0


def test_the_network_of_another_packages_trainer_is_tried(odd_plans):
    """nnU-Net's variant with batch normalisation in the planned network has its own builder."""
    file = odd_plans("3d_fullres", [7, 16, 16])
    done = run("--plans", file, "-c", "3d_fullres", "-tr", "nnUNetTrainerBN", "--device", "cpu")
    assert done.exit_code == 1
    assert f"{file}: the network of nnUNetTrainerBN does not take this patch: the patch must be divisible by the " in (
        done.output
    )
    assert "(Sizes of tensors must match" in done.output
    assert "Measuring" not in done.output


def test_a_network_that_cannot_be_built_is_refused_before_the_announcement(odd_plans):
    file = odd_plans("2d", [16, 24], n_stages=99)
    done = run("--plans", file, "-c", "2d", "-tr", VANILLA, "--device", "cpu")
    assert done.exit_code == 1
    assert f"nnUNetTrainer cannot build its network from {file}: AssertionError" in done.output
    assert "Measuring" not in done.output


@pytest.mark.parametrize("named", [True, False], ids=["--plans", "-d"])
def test_messages_name_the_file_of_the_plans(named, preprocessed):
    file = preprocessed / "nnUNetPlans.json"
    where = ("--plans", file) if named else ("-d", 998)
    plans = small_plans()
    plans["configurations"]["2d"]["architecture"]["arch_kwargs"]["norm_op"] = "os.system"
    plans["configurations"]["3d_lowres"] = {"inherits_from": "none"}
    del plans["configurations"]["3d_fullres"]["architecture"]
    plans["configurations"]["3d_residual"]["architecture"]["arch_kwargs"]["features_per_stage"] = 1_000_000
    file.write_text(json.dumps(plans))
    for configuration, message in {
        "2d": f"{file}: configurations.2d.architecture.arch_kwargs.norm_op must be",
        "3d_lowres": f"{file}: configurations.3d_lowres.inherits_from must be a configuration",
        "3d_fullres": f"{file}: configurations.3d_fullres has neither architecture nor the keys of the old format (",
        "3d_residual": f"the network of nnUNetTrainer from {file} needs at least",
        "3d_huge": f"{file}: there is no configuration 3d_huge",
    }.items():
        done = run(*where, "-c", configuration, "-tr", VANILLA, "--no-measure")
        assert done.exit_code == 1
        assert message in done.output


def test_refused_data_sets(preprocessed, tmp_path, monkeypatch):
    arguments = ("-c", "2d", "-tr", VANILLA, "--no-measure")
    assert "dataset 5: there must be one data set of this number, found none" in run("-d", 5, *arguments).output
    assert "give either a data set" in run(*arguments).output
    assert f"there is no {tmp_path / 'plans.json'}" in run("--plans", tmp_path / "plans.json", *arguments).output
    (tmp_path / "alone.json").write_text(json.dumps(small_plans()))
    assert "there is no dataset.json beside" in run("--plans", tmp_path / "alone.json", *arguments).output
    assert "it has no dataset_name" in run("--plans", preprocessed / "dataset.json", *arguments).output
    monkeypatch.delenv("nnUNet_preprocessed")
    assert "nnUNet_preprocessed is not set" in run("-d", 998, *arguments).output
    assert run("--plans", preprocessed / "nnUNetPlans.json", *arguments).exit_code == 0


def test_refused_configurations():
    plans = small_plans()
    plans["configurations"] |= {"a": {"inherits_from": "b"}, "b": {"inherits_from": "a"}}
    del plans["configurations"]["2d"]["batch_size"]
    with pytest.raises(NnunetDtcError, match=r"inherits_from must not lead back .*, got a -> b -> a"):
        complexity.PlannedTraining.of(plans, DATASET, "a")
    with pytest.raises(NnunetDtcError, match=r"the plans: configurations.2d has no batch_size"):
        complexity.PlannedTraining.of(plans, DATASET, "2d")
    plans = small_plans()
    plans["configurations"]["2d"]["architecture"]["arch_kwargs"]["n_stages"] = 99
    training = complexity.PlannedTraining.of(plans, DATASET, "2d")
    with pytest.raises(NnunetDtcError, match=r"cannot build its network from the plans: AssertionError .*99"):
        complexity.survey_trainers(training, complexity.find_trainers([VANILLA]), None)
    plans = small_plans()
    plans["configurations"]["2d"]["architecture"]["arch_kwargs"]["features_per_stage"] = [100_000, 1_000_000, 1_000_000]
    training = complexity.PlannedTraining.of(plans, DATASET, "2d")
    with pytest.raises(NnunetDtcError, match=r"needs at least .* GiB of memory, this machine has"):
        complexity.survey_trainers(training, complexity.find_trainers([VANILLA]), None)
    with pytest.raises(complexity.ComplexityError, match="at least one case, got 0"):
        planned(batch_size=0)
    without = {key: value for key, value in DATASET.items() if key != "channel_names"}
    with pytest.raises(NnunetDtcError, match=r"dataset.json: it has no channel_names"):
        planned(dataset=without)
    assert planned(dataset=without | {"modality": {"0": "CT"}}).input_channels == 1  # in nnU-Net 2.0


def test_missing_devices(preprocessed, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for device, message in (("cuda", "torch finds no CUDA GPU here"), ("mps", "torch finds no Apple GPU here")):
        done = run("-d", 998, "-c", "2d", "-tr", VANILLA, "--device", device)
        assert (done.exit_code, message in done.output) == (1, True)
    assert check_device(None) == CPU


def test_nothing_is_overwritten_unless_asked(preprocessed, tmp_path):
    kept = tmp_path / "costs.md"
    kept.write_text("mine")
    arguments = ("-d", "Dataset998_Test", "-c", "2d", "-tr", DTC, "--no-measure", "-o", tmp_path / "costs.csv")
    done = run(*arguments)
    assert done.exit_code == 1
    assert f"will not overwrite {kept} unless overwrite is set" in done.output
    assert sorted(file.name for file in tmp_path.iterdir()) == ["costs.md", "preprocessed"]
    assert run(*arguments, "--overwrite").exit_code == 0
    assert DTC in kept.read_text()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["costs.csv", "costs.json", "costs.md", "preprocessed"]
