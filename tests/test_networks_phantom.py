"""The paper's other networks stay finite and learn in 100 steps on the phantom (benchmarks/networks_phantom.py)."""

import functools
import importlib.util
import re
import statistics
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_dtc.architectures import NETWORKS
from nnunet_dtc.study.datasets.phantom import draw_case

FILE = Path(__file__).resolve().parents[1] / "benchmarks" / "networks_phantom.py"
STEPS = 100
# patch and batch: as small as the network allows, since the time goes with the number of operations
PATCHES = {"UNETR": ((14, 31), 1), "SwinUNETRV2": ((31, 33), 1), "NnMamba": ((7, 16, 15), 2), "SegMamba": ((14, 31), 1)}


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location(FILE.stem, FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def case():
    return draw_case(np.random.default_rng(0))


def test_patches_are_those_of_the_phantom(benchmark, case):
    patches = benchmark.PhantomPatches([case], (3, 9, 8))
    images, labels = patches.draw(5)
    assert images.shape == labels.shape == (5, 1, 3, 9, 8)
    [(image, truth, _)] = patches.cases
    windows = np.lib.stride_tricks.sliding_window_view(truth, (3, 9, 8))
    for patch, organs in zip(images[:, 0].numpy(), labels[:, 0].numpy(), strict=True):
        assert organs.any()
        places = np.argwhere((windows == organs).all((3, 4, 5)))
        assert any(np.array_equal(image[z : z + 3, y : y + 9, x : x + 8], patch) for z, y, x in places)
    flat, _ = benchmark.PhantomPatches([case], (40, 33)).draw(2)
    assert flat.shape == (2, 1, 40, 33)


def test_patches_that_exceed_the_phantom_are_refused(benchmark, case):
    z, y, x = case.image.shape
    for size in ((z, y, x), (y, x), (z, 1, x)):
        images, _ = benchmark.PhantomPatches([case], size).draw(1)
        assert images.shape == (1, 1, *size)
    for size in ((z + 1, y, x), (z, y + 1, x), (1, 1, x + 1), (y + 1, x), (256, 256)):
        says = f"a patch of {(1, *size)[-3:]} voxels does not fit a phantom of {z, y, x}"
        with pytest.raises(ValueError, match=re.escape(says)):
            benchmark.PhantomPatches([case], size)


@pytest.mark.parametrize("dtc", [False, True], ids=["plain", "DTC"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_hundred_steps_without_nan(benchmark, case, name, dtc, monkeypatch):
    """SegMamba with DTC under bfloat16 autocast."""
    # one call for all parameters: a quarter less time per step in networks as small as these
    monkeypatch.setattr(torch.optim, "AdamW", functools.partial(torch.optim.AdamW, fused=True))
    size, batch = PATCHES[name]
    network = benchmark.build(name, size, dtc)
    bfloat16 = dtc and name == "SegMamba"
    losses, _ = benchmark.train(network, benchmark.PhantomPatches([case], size), STEPS, batch, 1e-3, bfloat16)
    assert len(losses) == STEPS
    assert np.isfinite(losses).all()
    assert all(parameter.isfinite().all() for parameter in network.parameters())
    assert statistics.mean(losses[-20:]) < statistics.mean(losses[:20])
