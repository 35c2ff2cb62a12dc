"""Dice, NSD and HD95 of two masks against geometry, literal loops, MONAI's NSD and the reference's test shapes."""

import doctest
import importlib
import itertools
import math

import numpy as np
import pytest
from scipy import ndimage

from nnunet_dtc.study.evaluation.metrics import metric, metrics_for
from nnunet_dtc.study.evaluation.overlap import dice
from nnunet_dtc.study.evaluation.surface_elements import element_areas
from nnunet_dtc.study.evaluation.surfaces import surface_distances
from nnunet_dtc.study.evaluation.tolerances import parse_tolerance

ANISOTROPIC = (2.5, 0.7, 1.3)
WEIGHTS = {2: (8, 4, 2, 1), 3: (128, 64, 32, 16, 8, 4, 2, 1)}
"""What each voxel around a corner adds to the code, in the order of itertools.product((0, 1), repeat=axes)."""


def box(shape, start, stop):
    mask = np.zeros(shape, bool)
    mask[tuple(map(slice, start, stop))] = True
    return mask


def box_area(size, spacing):
    """The surface of a box of `size` voxels whose elements cut its edges and corners, by elementary geometry."""
    n, s = np.array(size), np.array(spacing)
    faces = sum(2 * (n[i] - 1) * s[i] * (n[j] - 1) * s[j] for i, j in ((0, 1), (0, 2), (1, 2)))
    edges = sum(4 * (n[k] - 1) * s[k] * math.hypot(s[i], s[j]) / 2 for i, j, k in ((0, 1, 2), (0, 2, 1), (1, 2, 0)))
    return faces + edges + 8 * corner_area(spacing)


def corner_area(spacing):
    """The area 1/2 |u x v| of a triangle whose corners are half a voxel from the voxel's centre along the axes."""
    a, b, c = spacing
    return math.sqrt((a * b) ** 2 + (b * c) ** 2 + (a * c) ** 2) / 8


def random_masks(shape, seed):
    """Two blobs that agree in most voxels, with loose voxels and holes."""
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.standard_normal(shape), 1.2)
    first = noise > np.quantile(noise, 0.7)
    return first ^ (rng.random(shape) < 0.04), first


def elements_by_loops(mask, spacing):
    """The area of the element at each corner, from the voxels around one corner after the other."""
    areas = element_areas(spacing)
    found = {}
    for corner in itertools.product(*(range(size + 1) for size in mask.shape)):
        code, inside = 0, 0
        for offset, weight in zip(itertools.product((0, 1), repeat=mask.ndim), WEIGHTS[mask.ndim], strict=True):
            voxel = tuple(c + o - 1 for c, o in zip(corner, offset, strict=True))
            in_image = all(0 <= v < size for v, size in zip(voxel, mask.shape, strict=True))
            if in_image and mask[voxel]:
                code, inside = code + weight, inside + 1
        if 0 < inside < 2**mask.ndim:
            found[corner] = areas[code]
    return found


def scores_by_loops(prediction, reference, spacing, tolerance, skipped=frozenset()):
    """NSD and the area-weighted 95th percentile."""
    surfaces = [elements_by_loops(mask, spacing) for mask in (prediction, reference)]
    within = total = 0.0
    percentiles = []
    for mine, other in (surfaces, surfaces[::-1]):
        measured = sorted(
            (min(math.dist(np.multiply(c, spacing), np.multiply(d, spacing)) for d in other), area)
            for c, area in mine.items()
            if c not in skipped
        )
        whole = sum(area for _, area in measured)
        total += whole
        within += sum(area for distance, area in measured if distance <= tolerance + 1e-9)
        passed = 0.0
        for distance, area in measured:
            passed += area
            if passed >= 0.95 * whole - 1e-9:
                percentiles.append(distance)
                break
    return within / total, max(percentiles)


# ---- surface elements --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), ANISOTROPIC])
def test_areas_are_those_of_marching_cubes(spacing):
    """Every neighbourhood without ambiguity, against scikit-image's mesh."""
    from skimage.measure import marching_cubes, mesh_surface_area

    areas = element_areas(spacing)
    compared = 0
    for code in range(1, 255):
        cube = np.array([bool(code & weight) for weight in WEIGHTS[3]]).reshape(2, 2, 2)
        if ndimage.label(cube)[1] == 1 == ndimage.label(~cube)[1]:
            vertices, faces, *_ = marching_cubes(cube.astype(float), 0.5, spacing=spacing, method="lorensen")
            assert areas[code] == pytest.approx(mesh_surface_area(vertices, faces), rel=1e-5), cube
            compared += 1
    assert compared == 126
    assert (areas[1:-1] > 0).all()


@pytest.mark.parametrize(
    "spacing", [(1.0, 1.0, 1.0), ANISOTROPIC, (5.0, 0.78, 0.78), (0.3, 4.1, 1.7), (1.0, 1.0), (0.6, 2.3), (3.7, 0.2)]
)
def test_areas_are_those_of_the_reference(spacing):
    """Every neighbourhood, also the ambiguous ones, against MONAI's copy of the reference's table."""
    monai = pytest.importorskip("monai.metrics.utils")
    areas, kernel = monai.get_code_to_measure_table(spacing)
    assert WEIGHTS[len(spacing)] == tuple(kernel.flatten().tolist())
    assert element_areas(spacing) == pytest.approx(areas.numpy(), rel=1e-6)


def test_areas_of_ambiguous_neighbourhoods():
    """Diagonal neighbours are cut off one by one; four in a winding row by a plane and two triangles."""

    def area(*inside):
        code = sum(WEIGHTS[3][4 * z + 2 * y + x] for z, y, x in inside)
        assert areas[code] == areas[255 - code]
        return areas[code]

    areas, (a, b, c) = element_areas(ANISOTROPIC), ANISOTROPIC
    corner = corner_area(ANISOTROPIC)
    assert area((0, 0, 0), (0, 1, 1)) == pytest.approx(2 * corner)
    assert area((0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 0)) == pytest.approx(4 * corner)
    triangles = math.hypot(a * c, b * c) / 4 + math.hypot(a * c, a * b) / 4
    assert area((0, 0, 0), (1, 0, 0), (1, 1, 0), (1, 1, 1)) == pytest.approx(4 * corner + triangles)
    flat = element_areas((0.6, 1.7))
    assert flat[0b1001] == flat[0b0110] == pytest.approx(2 * math.hypot(0.6, 1.7) / 2)


@pytest.mark.parametrize("at_border", [False, True])
@pytest.mark.parametrize("size", [(1, 1, 1), (2, 5, 3), (1, 4, 2)])
def test_area_of_a_box(size, at_border):
    inside = box((6, 9, 7), (2, 3, 1), (2 + size[0], 3 + size[1], 1 + size[2]))
    mask = np.ones(size, bool) if at_border else inside  # the surface of a box that the image cuts off is the same
    surfaces = surface_distances(mask, mask, ANISOTROPIC)
    assert surfaces.prediction_areas.sum() == pytest.approx(box_area(size, ANISOTROPIC), rel=1e-6)
    assert surfaces.nsd(0) == 1
    assert surfaces.hausdorff() == 0


def test_length_of_a_rectangle():
    mask = box((7, 9), (2, 3), (4, 8))  # 2 x 5 pixels
    expected = 2 * 1 * 0.7 + 2 * 4 * 1.3 + 4 * math.hypot(0.7, 1.3) / 2
    assert surface_distances(mask, mask, (0.7, 1.3)).reference_areas.sum() == pytest.approx(expected)


# ---- known distances ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("voxels", [1, 2])
def test_plates_at_a_known_distance(axis, voxels):
    """A plate through the whole image and the same plate moved: all elements of both have the same distance."""
    shape = [5, 6, 7]
    shape[axis] = 12
    first, second = np.zeros((2, *shape), bool)
    first.swapaxes(0, axis)[2] = True
    second.swapaxes(0, axis)[2 + 1 + voxels] = True  # one voxel thick: `voxels` from surface to surface
    away = voxels * ANISOTROPIC[axis]
    surfaces = surface_distances(first, second, ANISOTROPIC)
    near, far = away, away + ANISOTROPIC[axis]
    np.testing.assert_allclose(np.unique(np.round(surfaces.prediction_to_reference, 9)), [near, far])
    assert surfaces.nsd(near - 0.01) == 0
    assert surfaces.nsd(near) == pytest.approx(0.5)  # the two faces towards each other
    assert surfaces.nsd(far) == 1
    assert surfaces.hausdorff(95) == pytest.approx(far)
    assert surfaces.hausdorff(50) == pytest.approx(near)
    assert dice(first, second) == 0


def test_a_tolerance_that_single_precision_misses():
    """Ten voxels of 0.1 mm, in the precision of files, are within 1 mm."""
    spacing = (float(np.float32(0.1)),) * 2
    first, second = box((3, 20), (1, 2), (2, 3)), box((3, 20), (1, 13), (2, 14))
    surfaces = surface_distances(first, second, spacing)
    assert surfaces.prediction_to_reference.min() > 1
    assert surfaces.nsd(1) == pytest.approx(0.5)
    assert surfaces.nsd(0.9999) == 0


# ---- the reference's test shapes: google-deepmind/surface-distance, surface_distance_test.py ----------------------


def test_reference_two_pixels():
    first, second = np.zeros((2, 128, 128), bool)
    first[50, 70] = second[50, 72] = True
    surfaces = surface_distances(second, first, (2, 1))
    for distances, lengths in (
        (surfaces.prediction_to_reference, surfaces.prediction_areas),
        (surfaces.reference_to_prediction, surfaces.reference_areas),
    ):
        assert sorted(distances) == [1, 1, 2, 2]
        np.testing.assert_allclose(lengths, math.sqrt(5) / 2)
    assert surfaces.nsd(1) == pytest.approx(0.5)
    assert surfaces.hausdorff(100) == surfaces.hausdorff(95) == 2
    assert dice(second, first) == 0


def test_reference_two_squares():
    reference, prediction = box((6, 6), (1, 1), (3, 3)), box((6, 6), (1, 1), (4, 3))
    surfaces = surface_distances(prediction, reference, (2, 1))
    diagonal = math.sqrt(5) / 2
    assert surfaces.reference_areas.sum() == pytest.approx(4 * diagonal + 6)
    assert surfaces.prediction_areas.sum() == pytest.approx(4 * diagonal + 10)
    assert sorted(surfaces.reference_to_prediction) == [0] * 7 + [1]
    assert sorted(surfaces.prediction_to_reference) == [0] * 7 + [2] * 3
    # beyond 1 mm is only the far side of the longer box: two corners and one pixel
    assert surfaces.nsd(1) == pytest.approx((6 * diagonal + 15) / (8 * diagonal + 16))
    assert surfaces.hausdorff(95) == surfaces.hausdorff(100) == 2
    assert dice(prediction, reference) == pytest.approx(0.8)


def test_reference_two_voxels():
    first, second = np.zeros((2, 128, 128, 128), bool)
    first[50, 60, 70] = second[50, 60, 72] = True
    surfaces = surface_distances(second, first, (3, 2, 1))
    np.testing.assert_allclose(surfaces.prediction_areas, corner_area((3, 2, 1)), rtol=1e-6)
    assert surfaces.nsd(1) == pytest.approx(0.5)
    assert surfaces.hausdorff(100) == surfaces.hausdorff(95) == 2
    assert dice(second, first) == 0


def test_reference_two_cubes():
    """Boxes of 50 and 51 full slices; the reference's test has 0.836, 2.0, 2.0 and 0.990."""
    reference, prediction = np.zeros((2, 100, 100, 100), bool)
    reference[:50] = prediction[:51] = True
    spacing = (2, 1, 1)
    surfaces = surface_distances(prediction, reference, spacing)
    # Beyond 1 mm are the cap of the longer box with its edges and corners, and that part of the shorter box's cap which
    # is more than 1 mm from the sides.
    cap = 99**2 + 4 * 99 * math.sqrt(5) / 2 + 4 * corner_area(spacing)
    total = box_area((50, 100, 100), spacing) + box_area((51, 100, 100), spacing)
    assert surfaces.nsd(1) == pytest.approx(1 - (cap + 97**2) / total, rel=1e-6)
    assert surfaces.nsd(1) == pytest.approx(0.836, abs=5e-4)
    assert surfaces.hausdorff(100) == surfaces.hausdorff(95) == 2
    assert dice(prediction, reference) == pytest.approx(0.990, abs=5e-4)


@pytest.mark.parametrize(("shape", "spacing"), [((12, 13), (3, 2)), ((12, 13, 14), (3, 2, 1))])
def test_reference_empty_masks(shape, spacing):
    empty = np.zeros(shape, bool)
    voxel = empty.copy()
    voxel[(5,) * len(shape)] = True
    for masks in ((voxel, empty), (empty, voxel)):
        surfaces = surface_distances(*masks, spacing)
        assert surfaces.nsd(1) == dice(*masks) == 0
        assert surfaces.hausdorff(95) == surfaces.hausdorff(100) == math.inf
    surfaces = surface_distances(empty, empty, spacing)
    assert math.isnan(surfaces.nsd(1))
    assert math.isnan(dice(empty, empty))
    assert math.isnan(surfaces.hausdorff(95))  # infinite in the reference; here it is not counted


# ---- against other implementations -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "spacing"), [((4, 7, 6), ANISOTROPIC), ((5, 3, 8), (1.0, 1.0, 1.0)), ((1, 5, 9), (3.0, 0.8, 0.8))]
)
def test_literal_loops(shape, spacing):
    prediction, reference = random_masks(shape, seed=sum(shape))
    surfaces = surface_distances(prediction, reference, spacing)
    for tolerance in (0, 0.7, 1, 2.5):
        nsd, hd95 = scores_by_loops(prediction, reference, spacing, tolerance)
        assert surfaces.nsd(tolerance) == pytest.approx(nsd)
        assert surfaces.hausdorff(95) == pytest.approx(hd95)


def test_literal_loops_in_2d():
    prediction, reference = random_masks((11, 17), seed=3)
    surfaces = surface_distances(prediction, reference, (0.6, 1.7))
    assert (surfaces.nsd(1.0), surfaces.hausdorff()) == pytest.approx(
        scores_by_loops(prediction, reference, (0.6, 1.7), 1.0)
    )


@pytest.mark.parametrize(("shape", "spacing"), [((9, 17, 23), (3.0, 0.7, 1.1)), ((25, 31), (2.0, 0.9))])
def test_monai_surface_dice(shape, spacing):
    import torch

    compute_surface_dice = pytest.importorskip("monai.metrics").compute_surface_dice
    prediction, reference = random_masks(shape, seed=0)
    tensors = [torch.from_numpy(mask)[None, None].float() for mask in (prediction, reference)]
    surfaces = surface_distances(prediction, reference, spacing)
    for tolerance in (0.0, 1.0, 2.0):
        expected = compute_surface_dice(
            *tensors, [tolerance], include_background=True, spacing=list(spacing), use_subvoxels=True
        )
        assert surfaces.nsd(tolerance) == pytest.approx(expected.item(), abs=1e-6)


def test_symmetry_and_axes():
    prediction, reference = random_masks((6, 9, 11), seed=1)
    surfaces = surface_distances(prediction, reference, ANISOTROPIC)
    swapped = surface_distances(reference, prediction, ANISOTROPIC)
    turned = surface_distances(
        prediction.transpose(2, 0, 1)[:, ::-1], reference.transpose(2, 0, 1)[:, ::-1], (1.3, 2.5, 0.7)
    )
    for other in (swapped, turned):
        assert other.nsd(1.5) == pytest.approx(surfaces.nsd(1.5))
        assert other.hausdorff() == pytest.approx(surfaces.hausdorff())


# ---- voxels to ignore --------------------------------------------------------------------------------------------


def test_ignored_voxels_by_loops():
    prediction, reference = random_masks((5, 8, 7), seed=4)
    ignored = box((5, 8, 7), (1, 3, 0), (3, 6, 4))
    touching = {
        tuple(np.add(voxel, offset)) for voxel in np.argwhere(ignored) for offset in itertools.product((0, 1), repeat=3)
    }
    surfaces = surface_distances(prediction, reference, ANISOTROPIC, ignored)
    expected = scores_by_loops(prediction & ~ignored, reference & ~ignored, ANISOTROPIC, 1.0, touching)
    assert (surfaces.nsd(1.0), surfaces.hausdorff()) == pytest.approx(expected)


def test_ignored_voxels_change_nothing():
    prediction, reference = random_masks((5, 8, 7), seed=5)
    ignored = box((5, 8, 7), (0, 2, 2), (3, 6, 4))
    expected = surface_distances(prediction, reference, ANISOTROPIC, ignored)
    flipped = surface_distances(prediction ^ ignored, reference, ANISOTROPIC, ignored)
    assert flipped.nsd(1) == expected.nsd(1)
    assert flipped.hausdorff() == expected.hausdorff()
    nothing = surface_distances(prediction, reference, ANISOTROPIC, np.zeros_like(ignored))
    assert nothing.nsd(1) == surface_distances(prediction, reference, ANISOTROPIC).nsd(1)


def test_an_organ_surrounded_by_ignored_voxels():
    mask = box((3, 4, 5), (1, 1, 1), (2, 2, 2))
    surfaces = surface_distances(mask, mask, ANISOTROPIC, ~mask)
    assert math.isnan(surfaces.nsd(1))
    assert math.isnan(surfaces.hausdorff())


# ---- the registry, and examples ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "heading", "shown", "difference", "unit"),
    [
        ("dice", "Dice (%)", "50.00", "-12.50", "points"),
        ("nsd_1mm", "NSD 1mm (%)", "50.00", "-12.50", "points"),
        ("nsd_1mm,left_kidney=2mm", "NSD 1mm,left_kidney=2mm (%)", "50.00", "-12.50", "points"),
        ("hd95_mm", "HD95 (mm)", "0.50", "-0.12", "mm"),
    ],
)
def test_how_scores_are_shown(key, heading, shown, difference, unit):
    entry = metric(key)
    assert (entry.key, entry.heading) == (key, heading)
    assert (entry.shown(0.5), entry.signed(-0.125), entry.difference_unit) == (shown, difference, unit)
    assert entry.shown(math.nan) == entry.signed(math.nan) == "-"
    assert entry.higher_is_better == (key != "hd95_mm")


def test_metrics_for_tolerances():
    tolerances = [parse_tolerance("1"), parse_tolerance("2,liver=5")]
    entries = metrics_for(tolerances)
    assert [entry.title for entry in entries] == ["Dice", "NSD 1mm", "NSD 2mm,liver=5mm", "HD95"]
    assert [metric(entry.key).title for entry in entries] == [entry.title for entry in entries]


@pytest.mark.parametrize("key", ["", "nsd", "nsd1mm", "hd95", "assd_mm"])
def test_a_metric_that_is_not_registered(key):
    with pytest.raises(ValueError, match=f"metric must be one of dice, nsd, hd95_mm .*, got '{key}'"):
        metric(key)


@pytest.mark.parametrize("module", ["labels", "metrics", "overlap", "scores", "surfaces", "tolerances"])
def test_examples(module):
    result = doctest.testmod(importlib.import_module(f"nnunet_dtc.study.evaluation.{module}"))
    assert result.attempted > 0
    assert result.failed == 0


# ---- errors ------------------------------------------------------------------------------------------------------


def test_errors():
    mask = np.zeros((3, 4, 5), bool)
    with pytest.raises(ValueError, match="boolean"):
        dice(mask.astype(np.uint8), mask)
    with pytest.raises(ValueError, match="same shape"):
        surface_distances(mask, mask[1:], ANISOTROPIC)
    with pytest.raises(ValueError, match="as many"):
        surface_distances(mask, mask, (1, 1))
    with pytest.raises(ValueError, match="2 or 3 axes"):
        surface_distances(mask[0, 0], mask[0, 0], (1,))
    for spacing in ((1, 0, 1), (1, -1, 1), (1, math.nan, 1)):
        with pytest.raises(ValueError, match="positive"):
            surface_distances(mask, mask, spacing)
    surfaces = surface_distances(mask, mask, ANISOTROPIC)
    for tolerance in (-1, math.inf, math.nan):
        with pytest.raises(ValueError, match="tolerance"):
            surfaces.nsd(tolerance)
    with pytest.raises(ValueError, match="percent"):
        surfaces.hausdorff(101)
