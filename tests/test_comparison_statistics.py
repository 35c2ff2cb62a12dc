"""The numbers of a comparison against hand calculation and plain numpy."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest

from nnunet_dtc.comparison import statistics

METRICS = ("dice", "hd95_mm")


def frame(rows):
    """From (model, repeat, fold, case, organ, dice, hd95)."""
    columns = ["model", "repeat", "fold", "case", "organ", *METRICS]
    return pd.DataFrame(rows, columns=columns).astype({"fold": "Int64"})


@pytest.fixture
def scores():
    """Two models, two folds of one and two cases, two organs; the spleen of case b is missed by B."""
    nan, inf = math.nan, math.inf
    return frame(
        [
            ("A", 1, 0, "a", "liver", 0.5, 4.0),
            ("A", 1, 0, "a", "spleen", 0.7, 2.0),
            ("A", 1, 1, "b", "liver", 0.6, 6.0),
            ("A", 1, 1, "b", "spleen", 0.2, 9.0),
            ("A", 1, 1, "c", "liver", 0.9, 1.0),
            ("A", 1, 1, "c", "spleen", nan, nan),
            ("B", 1, 0, "a", "liver", 0.8, 3.0),
            ("B", 1, 0, "a", "spleen", 0.6, 5.0),
            ("B", 1, 1, "b", "liver", 0.6, 8.0),
            ("B", 1, 1, "b", "spleen", 0.0, inf),
            ("B", 1, 1, "c", "liver", 1.0, 0.0),
            ("B", 1, 1, "c", "spleen", nan, nan),
        ]
    )


def test_summary_by_hand(scores):
    summary = statistics.summarise(scores, METRICS, ["A", "B"], per_fold=False).set_index(["model", "metric"])
    a = [0.6, 0.4, 0.9]
    b = [0.7, 0.3, 1.0]
    assert summary.loc[("A", "dice"), "mean"] == pytest.approx(sum(a) / 3)
    assert summary.loc[("B", "dice"), "difference"] == pytest.approx((sum(b) - sum(a)) / 3)
    assert math.isnan(summary.loc[("A", "dice"), "difference"])
    # fold 0: 0.7, fold 1: (0.3 + 1) / 2
    assert summary.loc[("B", "dice"), "std_folds"] == pytest.approx(np.std([0.7, 0.65], ddof=1))
    assert summary.loc[("B", "hd95_mm"), "mean"] == pytest.approx((4 + 8 + 0) / 3)  # the infinite one is left out


def test_per_fold_means_weigh_folds_equally(scores):
    summary = statistics.summarise(scores, METRICS, ["A", "B"], per_fold=True).set_index(["model", "metric"])
    assert summary.loc[("B", "dice"), "mean"] == pytest.approx((0.7 + 0.65) / 2)


def test_one_fold_has_no_deviation(scores):
    one = scores.assign(fold=pd.array([pd.NA] * len(scores), dtype="Int64"))
    summary = statistics.summarise(one, METRICS, ["A", "B"], per_fold=False)
    assert summary["std_folds"].isna().all()
    assert summary["mean"].notna().all()


def test_paired_differences_leave_out_infinite_ones_on_both_sides(scores):
    table = statistics.paired_differences(scores, METRICS, ["A", "B"], ["liver", "spleen"]).set_index(
        ["metric", "organ"]
    )
    liver = table.loc[("hd95_mm", "liver")]
    assert (liver["n"], liver["better"], liver["worse"], liver["equal"], liver["left_out"]) == (3, 2, 1, 0, 0)
    assert liver["mean"] == pytest.approx((-1 + 2 - 1) / 3)
    spleen = table.loc[("hd95_mm", "spleen")]
    assert (spleen["n"], spleen["left_out"], spleen["mean"]) == (1, 1, 3.0)
    assert math.isnan(spleen["low"])
    overall = table.loc[("hd95_mm", "")]
    # case a: (3 + 5) / 2 - (4 + 2) / 2 = 1; b: only the liver, 8 - 6 = 2; c: 0 - 1
    assert overall["mean"] == pytest.approx((1 + 2 - 1) / 3)
    assert (overall["n"], overall["left_out"], overall["better"], overall["worse"]) == (3, 1, 1, 2)
    dice = table.loc[("dice", "")]
    assert dice["mean"] == pytest.approx((0.1 - 0.1 + 0.1) / 3)
    assert (dice["better"], dice["worse"], dice["equal"]) == (2, 1, 0)
    assert table.loc[("dice", "liver"), "equal"] == 1
    assert math.isnan(dice["p"])  # three pairs


def test_a_case_has_one_score_however_often_it_was_predicted():
    """Folds and repeats of one case are averaged, not counted as cases."""
    rows = [
        (model, repeat, fold, case, "liver", base + 0.1 * repeat + 0.01 * fold, 1.0)
        for model, base in (("A", 0.2), ("B", 0.25))
        for repeat in (1, 2)
        for fold in (0, 1, 2)
        for case in ("a", "b")
    ]
    row = statistics.paired_differences(frame(rows), METRICS, ["A", "B"], ["liver"]).iloc[0]
    assert (row["n"], row["better"]) == (2, 2)
    assert row["mean"] == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.6, 0.5, math.nan], [1.0, 1.0, math.nan]),
        ([0.02, math.nan, 0.01], [0.02, math.nan, 0.02]),
        ([], []),
    ],
)
def test_holm_by_hand(given, expected):
    assert statistics.holm(given) == pytest.approx(expected, nan_ok=True)


def test_holm_is_applied_over_organs_alone():
    rng = np.random.default_rng(3)
    organs = ["liver", "spleen", "aorta"]
    rows = [
        (model, 1, 0, f"case{number}", organ, value, 1.0)
        for number in range(9)
        for place, organ in enumerate(organs)
        for model, value in (("A", 0.5), ("B", 0.5 + 0.1 * rng.standard_normal() + 0.05 * place))
    ]
    table = statistics.paired_differences(frame(rows), ("dice",), ["A", "B"], organs).set_index("organ")
    p = table.loc[organs, "p"].to_list()
    assert len(set(p)) == 3
    order = np.argsort(p)
    expected, largest = [0.0] * 3, 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1, (3 - rank) * p[index]))
        expected[index] = largest
    assert table.loc[organs, "p_holm"].to_list() == pytest.approx(expected)
    assert table.loc["", "p_holm"] == table.loc["", "p"]


def test_wilcoxon_is_the_exact_count_of_sign_patterns():
    values = np.array([0.3, -0.1, 0.5, 0.7, 0.2, 0.9, -0.4])
    ranks = np.argsort(np.argsort(np.abs(values))) + 1
    observed = ranks[values > 0].sum()
    patterns = [sum(r for r, s in zip(ranks, signs, strict=True) if s) for signs in itertools.product((0, 1), repeat=7)]
    middle = ranks.sum() / 2
    expected = np.mean([abs(each - middle) >= abs(observed - middle) for each in patterns])
    assert statistics.wilcoxon_p(values) == pytest.approx(expected)


def test_wilcoxon_says_nothing_of_five_pairs_and_one_of_equal_ones():
    assert math.isnan(statistics.wilcoxon_p(np.arange(1.0, 6)))
    assert statistics.wilcoxon_p(np.arange(1.0, 7)) == pytest.approx(2 / 2**6)
    assert statistics.wilcoxon_p(np.zeros(8)) == 1


def test_bootstrap_of_three_reaches_from_least_to_largest():
    """All three draws are the least one with probability 1/27, more than 2.5 %."""
    low, high = statistics.bootstrap_interval(np.array([0.1, 0.5, -0.3]))
    assert (low, high) == pytest.approx((-0.3, 0.5))


def test_bootstrap_against_plain_numpy():
    values = np.random.default_rng(5).normal(2, 1, 25)
    rng = np.random.default_rng(11)
    means = [rng.choice(values, len(values)).mean() for _ in range(20000)]
    assert statistics.bootstrap_interval(values, seed=4) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.03)
    assert statistics.bootstrap_interval(values, seed=4) == statistics.bootstrap_interval(values, seed=4)
    assert all(math.isnan(end) for end in statistics.bootstrap_interval(values[:1]))


def noise_of(means_by_model):
    rows = [
        (model, repeat, 0, "a", "liver", mean, 10 * mean)
        for model, repeats in means_by_model.items()
        for repeat, mean in enumerate(repeats, 1)
    ]
    scores = frame(rows)
    summary = statistics.summarise(scores, METRICS, list(means_by_model), per_fold=False)
    counts = {model: len(repeats) for model, repeats in means_by_model.items()}
    return statistics.run_to_run(scores, METRICS, counts, summary, per_fold=False)


def test_run_to_run_noise_by_hand():
    noise = noise_of({"A": [0.70, 0.74], "B": [0.80, 0.83, 0.83], "C": [0.73]})
    # squares around the means: A 0.0008, B 0.0006; 1 + 2 degrees of freedom
    one = math.sqrt(0.0014 / 3)
    b, c = (noise[(noise["metric"] == "dice") & (noise["model"] == model)].iloc[0] for model in "BC")
    assert b["difference"] == pytest.approx(0.82 - 0.72)
    assert b["run_to_run"] == pytest.approx(one * math.sqrt(1 / 2 + 1 / 3))
    assert c["run_to_run"] == pytest.approx(one * math.sqrt(1 / 2 + 1))
    assert b["exceeds"]
    assert not c["exceeds"]
    assert "difference of +10.00 % exceeds the run-to-run noise of 1.97 %" in b["sentence"]
    assert "difference of +1.00 % does not exceed the run-to-run noise of 2.65 %" in c["sentence"]
    assert "pooled with those of 1 more model" in c["sentence"]


def test_the_sentence_says_how_weak_two_trainings_a_side_are():
    """Two degrees of freedom: the 95 % interval of a standard deviation reaches from 0.52 to 6.28 times."""
    sentence = noise_of({"A": [0.70, 0.74], "B": [0.80, 0.83]}).iloc[0]["sentence"]
    assert "weak: it comes from 2 and 2 trainings, and the true noise may be 0.5 to 6.3 times as large" in sentence


def test_without_repeats_there_is_no_noise_to_speak_of():
    noise = noise_of({"A": [0.7], "B": [0.8]})
    assert noise.empty
    assert list(noise.columns) == ["model", "metric", "difference", "run_to_run", "exceeds", "sentence"]
