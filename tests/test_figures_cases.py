"""The pictures of a case: the content of each cell, and what is refused."""

import matplotlib as mpl
import numpy as np
import pytest

from nnunet_dtc.study.evaluation import LabelSet, Organ
from nnunet_dtc.study.figures.cases import BOX_COLOURS, Zoom, case_panel

SHAPE = (40, 52)
LABELS = LabelSet((Organ("whole", (1, 2)), Organ("core", (2,))), ignore=3)
BOX = (slice(4, 16), slice(10, 26))


@pytest.fixture
def truth():
    labels = np.zeros(SHAPE, np.uint8)
    labels[5:20, 8:30] = 1
    labels[8:14, 12:20] = 2
    labels[30:35, 40:50] = 3
    return labels


@pytest.fixture
def image():
    return np.linspace(0, 1, SHAPE[0] * SHAPE[1], dtype=np.float32).reshape(SHAPE)


def words(ax):
    return [text.get_text() for text in ax.texts]


def test_cells_hold_image_truth_and_models_and_boxes_below(image, truth):
    models = {"nnUNetTrainer": np.roll(truth, 2, 1), "nnUNetTrainerDTC_RF10": truth, "c": truth * 0}
    zooms = [Zoom(BOX, "core", {"nnUNetTrainer": "41.5 %"}), Zoom((slice(20, 32), slice(30, 46)), "", {})]
    figure = case_panel(
        image, {"truth": truth, **models}, LABELS, 1.5, zooms, {"c": "0.0 %"}, "axial 3/9", right_is_left=True
    )
    rows = np.reshape(figure.axes, (3, 5))
    titles = [ax.get_title().replace("\n", "") for ax in rows[0]]
    assert titles == ["image", "truth", *models]
    assert {"axial 3/9", "R", "1", "2"} <= set(words(rows[0, 0]))
    assert "0.0 %" in words(rows[0, 4])
    assert words(rows[1, 0]) == ["1  core"]
    assert words(rows[1, 2]) == ["41.5 %"]
    assert words(rows[1, 3]) == []
    shown = rows[1, 0].images[0].get_array()
    np.testing.assert_array_equal(shown[..., 1], image[BOX])
    for ax in rows[0]:
        rectangles = [patch for patch in ax.patches if isinstance(patch, mpl.patches.Rectangle)]
        assert [mpl.colors.to_hex(r.get_edgecolor()) for r in rectangles] == list(BOX_COLOURS)
        assert (rectangles[0].get_x(), rectangles[0].get_y()) == (9.5, 3.5)
        assert (rectangles[0].get_width(), rectangles[0].get_height()) == (16, 12)
    width, height = figure.get_size_inches()
    for ax in rows.ravel():  # voxels keep their proportions: those of a box, those of the whole
        box = ax.get_position()
        assert box.height * height / (box.width * width) == pytest.approx(40 * 1.5 / 52, rel=0.03)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["whole", "core"]


def test_regions_overlap_and_the_ignore_label_is_not_drawn(image, truth):
    figure = case_panel(image, {"truth": truth}, LABELS)
    drawn = figure.axes[1].images[1].get_array()
    assert drawn[32, 45, 3] == 0
    assert drawn[0, 0, 3] == 0
    whole, core = drawn[6, 9], drawn[10, 15]
    assert whole[3] == core[3] > 0
    assert not np.allclose(whole[:3], core[:3])
    np.testing.assert_array_equal(drawn[truth == 2], np.broadcast_to(core, ((truth == 2).sum(), 4)))


def test_the_truth_is_dashed_white_only_in_boxes_of_models(image, truth):
    figure = case_panel(
        image, {"truth": truth, "a": truth * 0}, LABELS, zooms=[Zoom(BOX, "core", {})], notes={"a": "0.0 %"}
    )

    def dashed(ax):
        return [
            c
            for c in ax.collections
            if mpl.colors.to_hex(c.get_edgecolor()[0]) == "#ffffff" and c.get_linestyle()[0][1] is not None
        ]

    assert [len(dashed(ax)) for ax in figure.axes] == [0, 0, 0, 0, 0, 2]


def test_colour_images_are_shown_in_colour(truth):
    picture = np.random.default_rng(3).random((*SHAPE, 3), dtype=np.float32)
    figure = case_panel(picture, {"truth": truth}, LABELS)
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), picture)


def test_long_names_are_folded_at_underscores_and_nothing_is_lost(image, truth):
    name = "nnUNetTrainerDTC_RFinf_noweight_notanh_250epochs_NoMirroring_rep2"
    models = {name: truth} | {f"m{k}": truth for k in range(4)}
    title = case_panel(image, {"truth": truth, **models}, LABELS).axes[2].get_title()
    lines = title.split("\n")
    assert "".join(lines) == name
    assert len(lines) > 1
    assert all(line.startswith("_") for line in lines[1:])


def test_what_does_not_fit_is_refused(image, truth):
    with pytest.raises(ValueError, match=r"all must have one shape, got image \(40, 52\) and 'a' \(40, 51\)"):
        case_panel(image, {"truth": truth, "a": truth[:, 1:]}, LABELS)
    with pytest.raises(ValueError, match="and a segmentation"):
        case_panel(image, {}, LABELS)
    with pytest.raises(ValueError, match="at most 2 boxes, got 3"):
        case_panel(image, {"truth": truth}, LABELS, zooms=[Zoom(BOX, "", {})] * 3)
