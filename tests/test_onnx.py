"""Export to ONNX: onnxruntime and torch compute the same on patches and batch sizes that the export has not seen.

Every public module and network is exported by torch's TorchScript exporter, which takes a second, and one of each kind
by the newer exporter, which can take minutes. The example in docs/onnx.md is run as well.
"""

import re
import warnings
from pathlib import Path

import pytest
import torch
from plans import DATASET, SMALL_NETWORKS, small_plans
from torch import nn

from nnunet_dtc import DTC2d, DTC3d, convert_dtc, trainers, upsamplers
from nnunet_dtc.architectures import NETWORKS, UNet, build_network
from nnunet_dtc.plugin import ext_trainer

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

OPSET = 20  # the first whose GridSample takes volumes
UPSAMPLERS = ("Linear", "DySample", "CARAFE", "FADE", "SAPA")
SIZES = {2: (5, 7), 3: (3, 5, 4)}
STRIDES = {2: (2, 3), 3: (1, 2, 3)}
DTC = {2: DTC2d, 3: DTC3d}

both_axes = pytest.mark.parametrize("axes", [2, 3])


def enliven(module):
    """Draw weights with which learned positions and windows matter; the initial ones are almost zero."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if re.search(r"(coords|offset|scope|encode|query|key|gate)[^.]*\.weight$", name):
                nn.init.normal_(parameter, std=0.3)
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm2d | nn.BatchNorm3d):
                norm.running_mean.normal_(std=0.1)
                norm.running_var.uniform_(0.5, 2)
    return module.eval()


def largest_difference(module, shapes, file, dynamo):
    """Export with a batch of 2 and compare batches of 1, 2 and 3, relative to the largest value."""
    torch.manual_seed(0)
    enliven(module)
    names = [f"input_{index}" for index in range(len(shapes))]
    if dynamo:
        how = {"dynamic_shapes": ({0: torch.export.Dim("batch")},) * len(shapes)}
    else:
        how = {"dynamic_axes": {name: {0: "batch"} for name in [*names, "output"]}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of conditions on sizes, and of the older exporter's end
        torch.onnx.export(
            module, tuple(torch.randn(2, *shape) for shape in shapes), str(file), opset_version=OPSET, dynamo=dynamo,
            input_names=names, output_names=["output"], **how,
        )  # fmt: skip
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    differences = []
    for batch in (1, 2, 3):
        inputs = [torch.randn(batch, *shape) for shape in shapes]
        with torch.no_grad():
            expected = module(*inputs)
        assert expected.std() > 1e-3
        [found] = session.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})
        differences.append((torch.from_numpy(found) - expected).abs().max() / expected.abs().max())
    return max(differences).item()


def shapes_of(name, axes):
    fine = (size * step for size, step in zip(SIZES[axes], STRIDES[axes], strict=True))
    return [(6, *SIZES[axes]), *[(4, *fine)] * (name in ("FADE", "SAPA"))]


class WithSkip(nn.Module):
    """A DTC block around an upsampler that needs the encoder's features."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x, skip):
        return self.block(x, skip=skip)


def upsampler(name, axes, dtc):
    made = getattr(upsamplers, f"{name}{axes}d")(6, 4, STRIDES[axes])
    if not dtc:
        return made
    block = DTC[axes](6, 4, STRIDES[axes], 4, made)
    return WithSkip(block) if block.needs_skip else block


VARIANTS = {
    "RF 2": {},
    "RF 10": {"receptive_field": 10},
    "RF inf": {"receptive_field": float("inf")},
    "RF 0": {"receptive_field": 0},
    "noweight": {"weight": "none"},
    "nosigmoid, notanh": {"weight": "linear", "offset": "linear"},
}


@both_axes
@pytest.mark.parametrize("variant", VARIANTS)
def test_dtc_block(axes, variant, tmp_path):
    block = DTC[axes](6, 4, STRIDES[axes], **VARIANTS[variant])
    assert largest_difference(block, [(6, *SIZES[axes])], tmp_path / "block.onnx", dynamo=False) < 1e-5


@both_axes
@pytest.mark.parametrize("dtc", [False, True], ids=["alone", "DTC"])
@pytest.mark.parametrize("name", UPSAMPLERS)
def test_upsampler(name, dtc, axes, tmp_path):
    module = upsampler(name, axes, dtc)
    assert largest_difference(module, shapes_of(name, axes), tmp_path / "up.onnx", dynamo=False) < 1e-4


@pytest.mark.parametrize(
    ("style", "dynamic_scope"), [("pl", False), ("lp", True), ("pl", True)], ids=["pl", "dynamic", "pl dynamic"]
)
def test_dysamples_options(style, dynamic_scope, tmp_path):
    module = upsamplers.DySample2d(6, 4, (2, 3), style=style, dynamic_scope=dynamic_scope)
    assert largest_difference(module, [(6, 5, 7)], tmp_path / "up.onnx", dynamo=False) < 1e-5


@pytest.mark.parametrize(("name", "axes"), [("DTC", 2), ("DTC", 3), ("Linear", 3), ("DySample", 3), ("CARAFE", 2)])
def test_module_by_the_newer_exporter(name, axes, tmp_path):
    if name == "DTC":
        module = DTC[axes](6, 4, STRIDES[axes], 4)
    else:
        small_window = {"kernel_size": (3, 1)} if name == "CARAFE" else {}
        module = getattr(upsamplers, f"{name}{axes}d")(6, 4, STRIDES[axes], **small_window)
    assert largest_difference(module, [(6, *SIZES[axes])], tmp_path / "up.onnx", dynamo=True) < 1e-4


@pytest.mark.parametrize("name", ["FADE", "SAPA"])
def test_skip_upsampler_by_the_newer_exporter(name, tmp_path):
    base = getattr(upsamplers, f"{name}2d")(6, 4, (2, 3), kernel_size=(1, 3))
    module = WithSkip(DTC2d(6, 4, (2, 3), 4, base))
    assert largest_difference(module, shapes_of(name, 2), tmp_path / "up.onnx", dynamo=True) < 1e-4


def planned(trainer, configuration):
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = PlansManager(small_plans())
    torch.manual_seed(0)
    build = getattr(trainers, trainer).build_network_architecture
    return build(plans, plans.get_configuration(configuration), 2, 3, False)


PATCHES = {"2d": (2, 16, 24), "2d_residual": (2, 16, 24), "3d_fullres": (2, 6, 16, 24), "3d_residual": (2, 6, 16, 24)}


@pytest.mark.parametrize(
    ("trainer", "configuration"),
    [
        *[("nnUNetTrainerDTC", configuration) for configuration in PATCHES],
        ("nnUNetTrainerDTC_RF10_noweight", "3d_fullres"),
        ("nnUNetTrainerDySampleDTC", "3d_fullres"),
        ("nnUNetTrainerLinear", "3d_residual"),
        ("nnUNetTrainerFADE", "2d"),
    ],
)
def test_planned_network(trainer, configuration, tmp_path):
    network = planned(trainer, configuration)
    assert largest_difference(network, [PATCHES[configuration]], tmp_path / "network.onnx", dynamo=False) < 1e-4


def test_planned_network_by_the_newer_exporter(tmp_path):
    network = planned("nnUNetTrainerDTC", "2d_residual")  # the other kind is the example of the docs
    assert largest_difference(network, [PATCHES["2d_residual"]], tmp_path / "network.onnx", dynamo=True) < 1e-4


@pytest.mark.parametrize("upsampler", [None, "Linear", "DySample"])
def test_the_papers_unet(upsampler, tmp_path):
    """The exported network pads the patch of an odd size."""
    network = UNet(2, 3, upsampler, 4, width=4)
    assert largest_difference(network, [(2, 19, 33)], tmp_path / "network.onnx", dynamo=False) < 1e-4


@pytest.mark.parametrize("name", NETWORKS)
def test_the_papers_networks(name, tmp_path):
    if name in ("UNETR", "SwinUNETRV2"):
        pytest.importorskip("monai")
    torch.manual_seed(0)
    network = build_network(name, 2, 3, (19, 40), SMALL_NETWORKS[name], dtc={"receptive_field": 4})
    assert largest_difference(network, [(2, 19, 40)], tmp_path / "network.onnx", dynamo=False) < 1e-3


def test_a_converted_network_of_another_origin(tmp_path):
    network = nn.Sequential(nn.Conv2d(2, 6, 3, 2, 1), nn.ReLU(), nn.ConvTranspose2d(6, 4, 2, 2), nn.Conv2d(4, 3, 1))
    network = convert_dtc(network, 4)
    assert largest_difference(network, [(2, 6, 10)], tmp_path / "network.onnx", dynamo=False) < 1e-5


def code_blocks():
    text = (Path(__file__).parents[1] / "docs" / "onnx.md").read_text()
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


OLDER = 'dynamo=False, dynamic_axes={"patches": {0: "batch"}, "logits": {0: "batch"}}'


@pytest.mark.parametrize("older", [False, True], ids=["dynamo", "TorchScript"])
def test_the_example_of_the_docs(older, tmp_path, monkeypatch, capsys):
    """On a model folder as nnU-Net's own trainer writes it."""
    import json

    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    monkeypatch.setenv("nnUNet_extTrainer", str(Path(ext_trainer.__path__[0])))
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    plans = small_plans() | {"continue_training": False}
    trainer = trainers.nnUNetTrainerDTC_RF4(plans, "3d_fullres", 0, DATASET, torch.device("cpu"))
    torch.manual_seed(0)
    trainer.network = trainer.build_network_architecture(
        trainer.plans_manager, trainer.configuration_manager, 1, 3, True
    )
    trainer.optimizer, trainer.lr_scheduler = trainer.configure_optimizers()
    trainer.save_checkpoint(f"{trainer.output_folder}/checkpoint_final.pth")
    model = Path(trainer.output_folder).parent
    (model / "plans.json").write_text(json.dumps(small_plans()))
    (model / "dataset.json").write_text(json.dumps(DATASET))

    export, check = code_blocks()
    assert export.count('"MODEL"') == 1
    export = export.replace('"MODEL"', repr(str(model)))
    if older:
        export, changed = re.subn(r"dynamo=True,\n.*\n", f"{OLDER},\n", export)
        assert changed == 1
        assert OLDER in (Path(__file__).parents[1] / "docs" / "onnx.md").read_text()
    monkeypatch.chdir(tmp_path)
    names = {}
    capsys.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(export, names)
    exec(check, names)
    assert names["logits"].shape == (3, 3, 6, 16, 24)
    printed = re.search(r"largest difference, relative to the largest logit: (\S+)", capsys.readouterr().out)
    assert float(printed.group(1)) < 1e-4

    trained = trainer.network.eval()  # not the network of the example: the weights came by way of the checkpoint
    trained.decoder.deep_supervision = False
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(names["logits"]), trained(names["patches"]), rtol=1e-3, atol=1e-4)
