"""The figure of ``nnunet-dtc coordinates``."""

import math

import numpy as np
import pytest
import torch
from coordinates_example import build_network, draw_stage
from matplotlib.collections import PathCollection

from nnunet_dtc.ops.coordinates import collect, measure
from nnunet_dtc.study.coordinates.sampling_figure import coordinates_figure
from nnunet_dtc.study.figures.views import informative_slices


@pytest.mark.parametrize("axes", [2, 3])
def test_the_figure_shows_every_stage(axes, tmp_path):
    if axes == 3:
        network, size, spacing, names = build_network(10), (6, 16, 24), (3.0, 0.8, 1.0), "zyx"
    else:
        flat = {"kernel_sizes": [[3, 3]] * 3, "strides": [[1, 1], [2, 2], [1, 2]]}
        network, size, spacing, names = build_network(10, strides=flat), (64, 96), (0.8, 1.0), "yx"
    image = torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(1))
    logits, stages = collect(network, image)
    numbers = measure(stages, size, spacing, names)
    segmentation = logits[0].argmax(0).numpy()
    colour = np.repeat(image[0, 0].numpy()[..., None], 3, -1)
    figure = coordinates_figure(stages, numbers, colour if axes == 2 else image[0, 0].numpy(), segmentation, spacing)
    texts = {text.get_text() for ax in figure.axes for text in ax.texts}
    for stage in numbers:
        assert f"S{stage.title[1:]}, RF 10" in texts
    drawn = [ax.collections[0] for ax in figure.axes if ax.collections and not ax.images]
    drawn = [dots for dots in drawn if isinstance(dots, PathCollection)]
    assert len(drawn) == len(stages)
    samples = np.asarray(drawn[-1].get_offsets())  # of the last stage, (x, y) in pixels
    last = stages[-1]
    cut = () if axes == 2 else (informative_slices(segmentation)[0],)  # the last stage has as many slices
    expected = last.positions()[0].numpy()
    expected = expected[(slice(axes - 2, None), *cut)].reshape(2, -1)
    for row, axis in ((1, -2), (0, -1)):
        ratio = size[axis] / last.sizes[axis]
        np.testing.assert_allclose(samples[:, row], (expected[axis] + 0.5) * ratio - 0.5, atol=1e-4)
    file = tmp_path / "figure.png"
    figure.savefig(file, dpi=40)
    assert file.stat().st_size > 10_000


def test_the_figure_of_stages_that_cannot_be_drawn(tmp_path):
    broken = draw_stage((4, 6), (2, 2), batch=1)
    broken.coords[0, 0, 0, 0] = math.nan
    fixed = draw_stage((8, 12), (2, 2), receptive_field=0, batch=1)
    numbers = measure([broken, fixed], (16, 24), (1, 1), "yx")
    figure = coordinates_figure([broken, fixed], numbers, np.zeros((16, 24)), np.zeros((16, 24), int), (1, 1))
    figure.savefig(tmp_path / "figure.png", dpi=40)
    texts = " ".join(text.get_text() for ax in figure.axes for text in ax.texts)
    assert "y not finite" in texts
    assert "y fixed, x fixed" in texts
    assert "no shift" in texts
    with pytest.raises(ValueError, match="one shape of 2 axes"):
        coordinates_figure([fixed], numbers[1:], np.zeros((16, 20)), np.zeros((16, 24), int), (1, 1))
