"""Slices and boxes that are selected, on volumes with a known answer."""

import numpy as np
import pytest

from nnunet_dtc.study.figures.views import (
    body,
    cut,
    errors,
    informative_slices,
    most_different_slice,
    pixel_aspect,
    zoom_boxes,
)

SHAPE = (6, 40, 52)


@pytest.fixture
def truth():
    """A large organ in all slices, a small one in slice 4."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[:, 4:24, 5:35] = 1
    labels[4, 30:33, 40:44] = 2
    return labels


def test_errors_weigh_organs_by_their_size_and_leave_out_ignored_voxels(truth):
    prediction = truth.copy()
    prediction[2, 4, 5] = 0
    prediction[4, 30, 40] = 0
    prediction[1, 10, 10] = 2
    total, differ = errors(truth, [prediction, truth])
    large, small = 1 / np.sqrt((truth == 1).sum()), 1 / np.sqrt((truth == 2).sum())
    expected = np.zeros(SHAPE)
    expected[2, 4, 5], expected[4, 30, 40], expected[1, 10, 10] = large, small, large + small
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    np.testing.assert_array_equal(differ, total)  # the predictions differ there
    assert errors(truth, [prediction, prediction])[1].max() == 0
    assert errors(truth, [prediction], ignore=2)[0][4, 30, 40] == 0
    assert errors(truth, [prediction], ignore=2)[0][2, 4, 5] > 0


def test_an_organ_that_only_a_prediction_has_counts_by_its_size_there(truth):
    prediction = truth.copy()
    prediction[0, 36:38, 3:8] = 9
    total, _ = errors(truth, [prediction])
    assert total[0, 36:38, 3:8] == pytest.approx(1 / np.sqrt(10))


def test_the_slice_has_the_most_differences_else_errors_else_labels(truth):
    both = truth.copy()
    both[0, 4:20, 5:30] = 0  # a large error, but the same in both
    one = both.copy()
    one[3, 10:14, 10:14] = 0
    assert most_different_slice(truth, [both, one]) == 3
    assert most_different_slice(truth, [both, both]) == 0
    assert most_different_slice(truth, [truth, truth]) == informative_slices(truth)[0] == 4
    assert most_different_slice(np.zeros(SHAPE, np.uint8), [np.zeros(SHAPE, np.uint8)]) == 3
    assert 10 <= most_different_slice(truth, [both, one], axis=1) < 14


def test_a_missed_gland_outweighs_small_errors_of_a_large_organ(truth):
    missed, off = truth.copy(), truth.copy()
    missed[4, 30:33, 40:44] = 0
    missed[1, 4, 5:12] = 0
    assert most_different_slice(truth, [missed, off]) == 4


def test_boxes_hold_the_largest_errors_and_do_not_overlap():
    error = np.zeros((60, 90))
    error[10:14, 70:75] = 3
    error[45:50, 8:12] = 1
    error[30, 45] = 0.1  # too small for a box
    first, second = zoom_boxes(error)
    for box in (first, second):
        assert (box[0].stop - box[0].start, box[1].stop - box[1].start) == (18, 27)
        assert box[0].start >= 0
        assert box[0].stop <= 60
        assert box[1].start >= 0
        assert box[1].stop <= 90
    assert error[first].sum() == 60
    assert error[second].sum() == 20
    apart_down = first[0].stop <= second[0].start or second[0].stop <= first[0].start
    apart_across = first[1].stop <= second[1].start or second[1].stop <= first[1].start
    assert apart_down or apart_across
    assert zoom_boxes(error, count=1) == [first]
    assert zoom_boxes(error * (error == 3)) == [first]


def test_no_box_where_nothing_is_wrong_or_nothing_can_be_enlarged():
    assert zoom_boxes(np.zeros((60, 90))) == []
    assert zoom_boxes(np.ones((16, 90))) == []


def test_cuts_have_the_head_up_and_the_crop_of_their_plane():
    volume = np.arange(4 * 5 * 7).reshape(4, 5, 7)
    ys, xs = slice(1, 4), slice(2, 7)
    np.testing.assert_array_equal(cut(volume, 0, 2, ys, xs), volume[2, 1:4, 2:7])
    np.testing.assert_array_equal(cut(volume, 1, 3, ys, xs), volume[::-1, 3, 2:7])
    np.testing.assert_array_equal(cut(volume, 2, 5, ys, xs), volume[::-1, 1:4, 5])
    colours = np.stack([volume, volume + 1, volume + 2], -1)
    np.testing.assert_array_equal(cut(colours, 1, 3), colours[::-1, 3])
    assert [pixel_aspect(axis, (6.0, 2.0, 1.0)) for axis in range(3)] == [2.0, 6.0, 3.0]


def test_the_body_is_found_in_a_ct_alone():
    ct = np.full((5, 50, 70), -1000)
    ct[:, 12:30, 20:60] = 40
    assert body(ct) == (slice(9, 33), slice(17, 63))
    assert body(np.zeros((5, 50, 70))) == (slice(None), slice(None))
