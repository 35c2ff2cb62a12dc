"""Plots show the numbers of their tables, and are embedded in a page."""

import re
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from nnunet_dtc.study.figures.curves import MOST_POINTS, training_curves
from nnunet_dtc.study.figures.differences import MOST_NAMED_CASES, organ_differences, paired_cases
from nnunet_dtc.study.figures.style import VARIABLES, inline_svg, new_figure, series, style

MODELS = ["nnUNetTrainer", "nnUNetTrainerDTC", "nnUNetTrainerDTC_RF10"]


def difference(model, organ, mean, low, high, p, metric="dice"):
    scores = {"mean": mean, "low": low, "high": high, "p": p, "p_holm": 2 * p}
    return {"model": model, "metric": metric, "organ": organ, **scores}


DIFFERENCES = pd.DataFrame(
    [
        difference(MODELS[1], "", 0.01, -0.01, 0.03, 0.04),  # the p of the mean is not corrected
        difference(MODELS[1], "liver", 0.02, 0.01, 0.03, 0.01),
        difference(MODELS[1], "left_kidney", -0.03, -0.05, 0.01, 0.04),
        difference(MODELS[2], "", 0.0, -0.01, 0.01, 0.9),
        difference(MODELS[2], "liver", np.nan, np.nan, np.nan, np.nan),
        difference(MODELS[2], "left_kidney", 0.04, np.nan, np.nan, np.nan),
        difference(MODELS[1], "", -1.5, -2.0, -0.5, 0.01, "hd95_mm"),
    ]
)


def offsets(collection):
    return np.asarray(collection.get_offsets())


def texts(figure):
    return [text.get_text() for text in figure.findobj(mpl.text.Text) if text.get_text()]


def test_organ_differences_are_in_points_and_filled_where_significant():
    figure = organ_differences(DIFFERENCES, "dice", MODELS, ["liver", "left_kidney"])
    ax = figure.axes[0]
    points = [c for c in ax.collections if isinstance(c, mpl.collections.PathCollection)]
    drawn = {}
    for collection in points:
        significant = mpl.colors.to_hex(collection.get_facecolor()[0]) == mpl.colors.to_hex(
            collection.get_edgecolor()[0]
        )
        for x, y in offsets(collection):
            if np.isfinite(x):
                drawn[round(float(x), 6)] = (significant, int(y > 0.7) + int(y > 1.85))  # its row
    assert drawn == {1: (True, 0), 2: (True, 1), -3: (False, 2), 0: (False, 0), 4: (False, 2)}
    ticks = [label.get_text() for label in ax.get_yticklabels()]
    assert ticks == ["mean over organs", "liver", "left kidney"]
    bounds = np.concatenate([np.asarray(s) for c in ax.collections[:1] for s in c.get_segments()])[:, 0]
    assert sorted(bounds) == pytest.approx([-5, -1, 1, 1, 3, 3])
    assert any("points" in text and "nnUNetTrainer" in text for text in texts(figure))


def test_the_better_side_of_hd95_is_the_left_one_in_mm():
    figure = organ_differences(DIFFERENCES, "hd95_mm", MODELS[:2], ["liver"])
    shown = texts(figure)
    assert any(text.endswith("better (lower)") for text in shown)
    assert any("(mm)" in text for text in shown)
    dice = texts(organ_differences(DIFFERENCES, "dice", MODELS[:2], ["liver"]))
    assert any(text.startswith("better") for text in dice)
    assert "mean over organs" not in dice  # of one organ it is the same


def test_nothing_to_draw_is_refused():
    with pytest.raises(ValueError, match="needs two models and differences of 'nsd_1mm', got 3 and 0 rows"):
        organ_differences(DIFFERENCES, "nsd_1mm", MODELS, ["liver"])
    with pytest.raises(ValueError, match="needs two models"):
        organ_differences(DIFFERENCES, "dice", MODELS[:1], ["liver"])
    with pytest.raises(ValueError, match="a case that two models have a number for"):
        paired_cases(pd.DataFrame({m: [np.nan, np.inf] for m in MODELS}), "hd95_mm", MODELS)
    curves = pd.DataFrame(columns=["model", "repeat", "fold", "epoch", "train_loss", "val_loss", "pseudo_dice"])
    with pytest.raises(ValueError, match="no number to draw"):
        training_curves(curves.assign(ema_pseudo_dice=[]), MODELS, "dice")
    with pytest.raises(ValueError, match="kind must be dice or loss, got 'lr'"):
        training_curves(curves, MODELS, "lr")


@pytest.mark.parametrize(("metric", "order"), [("dice", ["c", "a", "b$1$"]), ("hd95_mm", ["b$1$", "a", "c"])])
def test_few_cases_are_rows_with_the_largest_gain_first(metric, order):
    cases = pd.DataFrame(
        {MODELS[0]: [0.5, 0.8, 0.4, np.nan], MODELS[1]: [0.6, 0.7, 0.9, 0.5]}, index=["a", "b$1$", "c", "lonely"]
    )
    figure = paired_cases(cases, metric, MODELS[:2])
    ax = figure.axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == order
    factor = 1 if metric == "hd95_mm" else 100
    drawn = [offsets(c) for c in ax.collections if isinstance(c, mpl.collections.PathCollection) and len(offsets(c))]
    for model, dots in zip(MODELS[:2], drawn, strict=True):
        np.testing.assert_allclose(dots[:, 0], cases.loc[order, model] * factor)
    assert ("lower is better" in ax.get_xlabel()) == (metric == "hd95_mm")


def test_many_cases_are_points_around_zero():
    rng = np.random.default_rng(5)
    cases = pd.DataFrame(rng.uniform(0, 1, (MOST_NAMED_CASES + 1, 3)), columns=MODELS)
    figure = paired_cases(cases, "dice", MODELS)
    assert [ax.get_title(loc="left") for ax in figure.axes] == MODELS[1:]
    for ax, model in zip(figure.axes, MODELS[1:], strict=True):
        expected = np.stack([cases[MODELS[0]], cases[model] - cases[MODELS[0]]], 1) * 100
        np.testing.assert_allclose(offsets(ax.collections[0]), expected)


def test_every_fold_has_a_curve_and_the_mean_is_over_epochs_that_all_have():
    rows = [
        {"model": MODELS[0], "repeat": 1, "fold": fold, "epoch": epoch, "ema_pseudo_dice": 0.1 * fold + epoch / 100}
        for fold, epochs in ((0, 30), (1, 20))
        for epoch in range(epochs)
    ]
    curves = pd.DataFrame(rows).assign(pseudo_dice=0.5, train_loss=0.0, val_loss=np.nan)
    lines = [line.get_xydata() for line in training_curves(curves, MODELS[:1], "dice").axes[0].lines]
    lines = [line for line in lines if len(line)]
    assert [int(np.isfinite(line[:, 1]).sum()) for line in lines] == [30, 20, 20]
    np.testing.assert_allclose(lines[2][:, 1], 0.05 + np.arange(20) / 100)


def test_long_curves_are_thinned_by_means():
    epochs = np.arange(1000)
    curves = pd.DataFrame({"model": MODELS[1], "repeat": 1, "fold": 0, "epoch": epochs, "val_loss": epochs**2 / 1e6})
    curves = curves.assign(train_loss=np.nan, pseudo_dice=np.nan, ema_pseudo_dice=np.nan)
    figure = training_curves(curves, MODELS[1:2], "loss")
    (line,) = [line.get_xydata() for line in figure.axes[0].lines if len(line.get_xydata())]
    assert len(line) == MOST_POINTS
    np.testing.assert_allclose(line[0], [2, np.mean(epochs[:5] ** 2) / 1e6])
    np.testing.assert_allclose(line[-1], [997, np.mean(epochs[-5:] ** 2) / 1e6])


# ---- into a page -------------------------------------------------------------------------------------------------


def figure_with_everything():
    with style():
        figure = new_figure(3, 2)
        ax = figure.add_subplot()
        for number in range(3):
            colour, marker = series(number)
            ax.plot([0, 1, 2], [number, 2, 1], color=colour, marker=marker, label=f"<b>a$1$ & {number}")
        ax.set_title("case_$x^2$_\u5fc3")
        figure.legend()
    return figure


def test_svgs_have_ids_of_their_own_that_exist_and_the_same_bytes_each_time():
    first, second = (inline_svg(figure_with_everything(), key, "A < B") for key in ("one", "two"))
    assert first == inline_svg(figure_with_everything(), "one", "A < B")
    ids = {key: set(re.findall(r'\bid="([^"]+)"', svg)) for key, svg in (("one", first), ("two", second))}
    assert len(ids["one"]) > 5
    assert not ids["one"] & ids["two"]
    for key, svg in (("one", first), ("two", second)):
        used = set(re.findall(r'href="#([^"]+)"', svg)) | set(re.findall(r"url\(#([^)]+)\)", svg))
        assert used
        assert used <= ids[key]


def test_svgs_are_whole_xml_with_text_and_variables_and_nothing_from_elsewhere():
    svg = inline_svg(figure_with_everything(), "one", 'A "<" B')
    root = ElementTree.fromstring(svg)
    assert root.get("aria-label") == 'A "<" B'
    assert root.get("viewBox")
    text = "".join(root.itertext())
    assert "<b>a$1$ & 2" in text
    assert "case_$x^2$_\u5fc3" in text
    for colour, name in VARIABLES.items():
        if name in ("ink", "muted", "c0", "c1", "c2"):
            assert f"var(--{name},{colour})" in svg
    without = svg.replace("http://www.w3.org/2000/svg", "").replace("http://www.w3.org/1999/xlink", "")
    assert "http" not in without
    with pytest.raises(ValueError, match="letters, digits and -"):
        inline_svg(figure_with_everything(), 'a"b', "")


def test_matplotlibs_own_settings_are_left_alone():
    before = dict(mpl.rcParams)
    inline_svg(figure_with_everything(), "one", "")
    assert dict(mpl.rcParams) == before
