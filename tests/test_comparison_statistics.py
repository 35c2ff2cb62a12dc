"""The numbers of a comparison against hand calculation and plain numpy."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from comparison_example import comparison_of
from scipy import stats

from nnunet_dtc.study.comparison import statistics
from nnunet_dtc.study.comparison.between_trainings import between_trainings, trainings_needed
from nnunet_dtc.study.comparison.tables import noise_table
from nnunet_dtc.study.comparison.verdicts import noise_sentences, verdict

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


@pytest.fixture
def invented():
    """The labels of a and b have no spleen: A leaves it empty, B and C predict it in a, C also in b. All livers are
    alike. The liver's NSD of A in case b is not known, since its surface touches the ignore label everywhere."""
    nan, inf = math.nan, math.inf
    empty, wrong, liver = (nan, nan, nan), (0.0, 0.0, inf), (0.8, 0.6, 4.0)
    rows = [
        ("A", 1, 0, "a", "liver", *liver),
        ("A", 1, 0, "a", "spleen", *empty),
        ("A", 1, 0, "b", "liver", 0.8, nan, nan),
        ("A", 1, 0, "b", "spleen", *empty),
        ("B", 1, 0, "a", "liver", *liver),
        ("B", 1, 0, "a", "spleen", *wrong),
        ("B", 1, 0, "b", "liver", *liver),
        ("B", 1, 0, "b", "spleen", *empty),
        ("C", 1, 0, "a", "liver", *liver),
        ("C", 1, 0, "a", "spleen", *wrong),
        ("C", 1, 0, "b", "liver", *liver),
        ("C", 1, 0, "b", "spleen", *wrong),
    ]
    columns = ["model", "repeat", "fold", "case", "organ", "dice", "nsd_1mm", "hd95_mm"]
    return pd.DataFrame(rows, columns=columns).astype({"fold": "Int64"})


def test_an_invented_organ_is_a_loss_against_the_rightly_empty_one(invented):
    metrics = ("dice", "nsd_1mm", "hd95_mm")
    table = statistics.paired_differences(invented, metrics, ["A", "B", "C"], ["liver", "spleen"])
    table = table.set_index(["model", "metric", "organ"])
    b = table.loc[("B", "dice", "spleen")]
    # case a: 0 against 1; case b: both are empty, and nothing is compared
    assert (b["n"], b["mean"], b["worse"], b["equal"], b["counted_as_1"]) == (1, -1, 1, 0, 1)
    b = table.loc[("B", "dice", "")]
    # case a: (0.8 + 0) / 2 - (0.8 + 1) / 2, case b: 0.8 - 0.8
    assert b["mean"] == pytest.approx((-0.5 + 0) / 2)
    assert (b["n"], b["worse"], b["equal"], b["counted_as_1"], b["left_out"]) == (2, 1, 1, 1, 0)
    nsd = table.loc[("B", "nsd_1mm", "")]
    # case b: the NSD of A is not known, and is not 1
    assert (nsd["n"], nsd["mean"], nsd["counted_as_1"]) == (1, pytest.approx(0.3 - 0.8), 1)
    assert table.loc[("B", "nsd_1mm", "liver"), "n"] == 1
    c = table.loc[("C", "dice", "")]
    assert (c["mean"], c["worse"], c["counted_as_1"]) == (pytest.approx(-0.5), 2, 2)
    hd95 = table.loc[table.index.get_level_values("metric") == "hd95_mm"]
    assert hd95["counted_as_1"].sum() == 0
    assert hd95.loc[("B", "hd95_mm", "spleen")][["n", "left_out"]].to_list() == [0, 1]
    assert hd95.loc[("C", "hd95_mm", "")][["n", "left_out"]].to_list() == [1, 2]
    # means are of what each model has itself
    summary = statistics.summarise(invented, metrics, ["A", "B", "C"], per_fold=False).set_index(["model", "metric"])
    assert summary.loc[("B", "dice"), "mean"] == pytest.approx((0.4 + 0.8) / 2)
    assert summary.loc[("B", "dice"), "difference"] == pytest.approx(0.6 - 0.8)
    by_case = statistics.case_differences(invented, "dice", "A", "B")
    assert by_case.to_dict() == pytest.approx({"a": -0.5, "b": 0})


def test_more_repeats_are_no_loss_by_themselves():
    """One of two trainings leaves an absent organ empty, one of two misses an organ: each is half as bad as both."""
    nan, inf = math.nan, math.inf
    rows = [
        ("A", 1, 0, "a", "liver", nan, nan),
        ("A", 2, 0, "a", "liver", 0.0, inf),
        ("A", 1, 0, "b", "liver", 0.8, 3.0),
        ("A", 2, 0, "b", "liver", 0.0, inf),
        ("A", 1, 0, "c", "liver", nan, nan),
        ("A", 2, 0, "c", "liver", nan, nan),
        ("A", 1, 0, "d", "liver", 0.0, inf),
        ("A", 2, 0, "d", "liver", 0.0, inf),
    ]
    for over_folds in (False, True):
        averaged = statistics.average_repeats(frame(rows), METRICS, over_folds).set_index("case")
        assert averaged["dice"].to_list() == pytest.approx([0.5, 0.4, nan, 0.0], nan_ok=True)
        assert averaged["hd95_mm"].to_list() == pytest.approx([inf, 3.0, nan, inf], nan_ok=True)
        alone = statistics.average_repeats(frame(rows), ("hd95_mm",), over_folds).set_index("case")
        pd.testing.assert_frame_equal(alone[["hd95_mm"]], averaged[["hd95_mm"]])


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


def test_wilcoxon_p_of_few_and_of_equal_pairs():
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
    return between_trainings(scores, METRICS, trainings(means_by_model), summary, per_fold=False)


def trainings(means_by_model):
    return {model: len(repeats) for model, repeats in means_by_model.items()}


def test_run_to_run_noise_by_hand():
    noise = noise_of({"A": [0.70, 0.74], "B": [0.80, 0.83, 0.83], "C": [0.73]})
    # squares around the means: A 0.0008, B 0.0006; 1 + 2 degrees of freedom
    one = math.sqrt(0.0014 / 3)
    b, c = (noise[(noise["metric"] == "dice") & (noise["model"] == model)].iloc[0] for model in "BC")
    assert b["difference"] == pytest.approx(0.82 - 0.72)
    assert b["run_to_run"] == pytest.approx(one * math.sqrt(1 / 2 + 1 / 3))
    assert c["run_to_run"] == pytest.approx(one * math.sqrt(1 / 2 + 1))
    # Student's t with 3 degrees of freedom: F(t) = 1/2 + (x / (1 + x**2) + atan(x)) / pi with x = t / sqrt(3)
    for row in (b, c):
        x = row["difference"] / row["run_to_run"] / math.sqrt(3)
        assert row["p_noise"] == pytest.approx(1 - 2 / math.pi * (x / (1 + x**2) + math.atan(x)))
        assert row["p"] == row["p_noise"]  # there is one fold
        assert row["p_holm"] == row["p_noise_holm"]
    assert b["p_noise"] == pytest.approx(0.0148, abs=1e-4)
    assert (b["p_holm"], c["p_holm"]) == pytest.approx((2 * b["p"], c["p"]))  # Holm's method for two models
    assert b["exceeds"]
    assert not c["exceeds"]


def test_sentences_about_noise():
    """The numbers of the test above: 0.0148 and 0.731 are the probabilities of the noise alone."""
    means = {"A": [0.70, 0.74], "B": [0.80, 0.83, 0.83], "C": [0.73]}
    b, c, hd95, _ = noise_sentences(noise_of(means), trainings(means))
    assert b.startswith("Dice, B against A: the difference is +10.00 points, the run-to-run noise 1.97 points")
    assert (
        "a difference at least as large in 1.4 % of such comparisons (Student's t, 3 degrees of freedom, corrected for "
        "the number of models p = 0.030)"
    ) in b
    assert "The difference is larger than the noise explains." in b
    assert "%" not in b.split("Noise alone")[0]
    assert "the difference is +1.00 points, the run-to-run noise 2.65 points" in c
    assert "a difference at least as large in 73 % of such comparisons" in c
    assert "The noise may explain it." in c
    assert "pooled with those of 1 more model" in c
    assert hd95.startswith("HD95, B against A: the difference is +1.00 mm, the run-to-run noise 0.20 mm")


def test_noise_of_two_models_is_students_test():
    a, b = [0.70, 0.74], [0.80, 0.77]
    row = noise_of({"A": a, "B": b}).iloc[0]
    assert row["difference"] > 2 * row["run_to_run"]  # two standard deviations, and yet
    assert row["p_noise"] == pytest.approx(stats.ttest_ind(b, a).pvalue)
    assert not row["exceeds"]


def test_noise_alone_seldom_exceeds_itself():
    rng = np.random.default_rng(8)
    found = [noise_of({"A": each[:2], "B": each[2:]}).iloc[0]["exceeds"] for each in rng.normal(0.8, 0.01, (60, 4))]
    assert np.mean(found) <= 0.15


def test_a_difference_that_is_one_of_many_is_not_shown():
    """B alone is better than A by Student's test; among four models the same numbers are no evidence."""
    a, b = [0.70, 0.71, 0.72], [0.722, 0.732, 0.742]
    others = {name: [mean - 0.01, mean, mean + 0.01] for name, mean in (("C", 0.71), ("D", 0.715), ("E", 0.705))}
    alone, among = noise_of({"A": a, "B": b}), noise_of({"A": a, "B": b} | others)
    assert alone.iloc[0]["p_holm"] == alone.iloc[0]["p"] == pytest.approx(stats.ttest_ind(b, a).pvalue)
    dice = among[among["metric"] == "dice"].set_index("model")
    of_one_training = dice.loc["B", "run_to_run"] * math.sqrt(3 / 2)
    assert dice.loc["B", "needed"] == trainings_needed(dice.loc["B", "difference"], of_one_training, 0.05 / 4)
    assert dice.loc["B", "p"] == dice["p"].min()
    assert dice.loc["B", "p_holm"] == pytest.approx(4 * dice.loc["B", "p"])  # Holm's method: the smallest of four
    assert dice.loc["B", "p"] < 0.05 < dice.loc["B", "p_holm"]
    assert not dice.loc["B", "exceeds"]
    row = pd.Series({"metric": "dice", "mean": 0.022})
    assert verdict(row, dice.loc["B"]).startswith(
        "No difference in Dice is shown: the interval over trainings excludes 0, but corrected for the number of models"
    )


def test_noise_alone_seldom_makes_one_of_many_models_exceed_it():
    rng = np.random.default_rng(4)
    found, uncorrected = [], []
    for each in rng.normal(0.8, 0.01, (80, 8, 3)):
        noise = noise_of(dict(zip("ABCDEFGH", each.tolist(), strict=True)))
        dice = noise[noise["metric"] == "dice"]
        found.append(dice["exceeds"].any())
        uncorrected.append((dice["p_noise"] < 0.05).any())
    assert np.mean(found) <= 0.1
    assert np.mean(uncorrected) > 0.15


def test_trainings_that_gave_the_same_have_no_noise():
    noise = noise_of({"A": [0.5, 0.5], "B": [0.5, 0.5], "C": [0.75, 0.75]})
    assert noise[noise["metric"] == "dice"]["p_noise"].to_list() == [1.0, 0.0]
    assert noise[noise["metric"] == "dice"]["exceeds"].to_list() == [False, True]


def test_a_repeat_that_is_rightly_empty_is_no_noise_of_its_own():
    """Its mean counts the empty organ as the mean over the trainings does."""
    nan, inf = math.nan, math.inf
    rows = [
        *[("A", repeat, 0, "a", "liver", 0.5, 1.0) for repeat in (1, 2)],
        *[("B", repeat, 0, "a", "liver", dice, 1.0) for repeat, dice in ((1, 0.5), (2, 0.46))],
        ("A", 1, 0, "a", "spleen", nan, nan),
        ("A", 2, 0, "a", "spleen", 0.0, inf),
        ("B", 1, 0, "a", "spleen", 0.0, inf),
        ("B", 2, 0, "a", "spleen", 0.0, inf),
    ]
    scores = frame(rows)
    summary = statistics.summarise(scores, METRICS, ["A", "B"], per_fold=False)
    row = between_trainings(scores, METRICS, {"A": 2, "B": 2}, summary, per_fold=False).iloc[0]
    a, b = [(0.5 + 1) / 2, (0.5 + 0) / 2], [0.25, 0.23]
    assert row["difference"] == pytest.approx(np.mean(b) - np.mean(a))
    assert row["p_noise"] == pytest.approx(stats.ttest_ind(b, a).pvalue)


def test_the_sentence_reports_how_weak_an_estimate_from_two_trainings_is():
    """Two degrees of freedom: the 95 % interval of a standard deviation reaches from 0.52 to 6.28 times."""
    means = {"A": [0.70, 0.74], "B": [0.80, 0.83]}
    sentence = noise_sentences(noise_of(means), trainings(means))[0]
    assert "weak: it comes from 2 and 2 trainings, and the true noise may be 0.5 to 6.3 times as large" in sentence


def test_without_repeats_there_is_no_noise_to_speak_of():
    noise = noise_of({"A": [0.7], "B": [0.8]})
    assert noise.empty
    assert {"run_to_run", "low", "high", "p"} <= set(noise.columns)


def folds_of(means_by_model, validation_ratio=None):
    """One organ and one case in each fold, from the trainings of each fold of each model."""
    rows = [
        (model, repeat, fold, f"case {fold}", "liver", mean, 10 * mean)
        for model, folds in means_by_model.items()
        for fold, repeats in enumerate(folds)
        for repeat, mean in enumerate(repeats, 1)
    ]
    scores, models = frame(rows), list(means_by_model)
    counts = {model: len(folds[0]) for model, folds in means_by_model.items()}
    summary = statistics.summarise(scores, METRICS, models, per_fold=False)
    return between_trainings(scores, METRICS, counts, summary, False, validation_ratio)


def test_repeated_trainings_are_compared_by_students_t():
    """The interval is that of scipy's test of two samples with one variance."""
    a, b = [0.70, 0.74, 0.71], [0.80, 0.77]
    row = noise_of({"A": a, "B": b}).iloc[0]
    test = stats.ttest_ind(b, a)
    interval = test.confidence_interval()
    assert (row["method"], row["freedom"]) == ("trainings", 3)
    assert math.isnan(row["overlap"])
    assert (row["p"], row["low"], row["high"]) == pytest.approx((test.pvalue, interval.low, interval.high))


def test_folds_with_one_training_each_by_hand():
    """Three folds with differences 0.02, 0.04, 0.09: mean 0.05, deviation sqrt(0.0013), times sqrt(1/3 + 1/2)."""
    noise = folds_of({"A": [[0.7], [0.6], [0.5]], "B": [[0.72], [0.64], [0.59]]})
    row = noise.iloc[0]
    assert (
        "corrected for the overlap of the folds' training sets, r = 0.5)."
        in noise_sentences(noise, {"A": 1, "B": 1})[0]
    )
    error = math.sqrt(0.0013 * (1 / 3 + 1 / 2))
    assert (row["method"], row["freedom"], row["mean"]) == ("folds", 2, pytest.approx(0.05))
    assert row["overlap"] == 1 / 2
    assert math.isnan(row["run_to_run"])
    assert pd.isna(row["exceeds"])
    # Student's t with 2 degrees of freedom: F(t) = 1/2 + t / (2 sqrt(2 + t^2)), and 4.3027 at 97.5 %
    t = 0.05 / error
    assert row["p"] == pytest.approx(1 - t / math.sqrt(2 + t * t))
    assert (row["low"], row["high"]) == pytest.approx((0.05 - 4.30265 * error, 0.05 + 4.30265 * error), rel=1e-5)


def test_the_split_says_how_much_training_sets_overlap():
    """Two of nnU-Net's five folds: sqrt(1/2 + 1/4) times the deviation of 0.02 and 0.04, not sqrt(1/2 + 1)."""
    means = {"A": [[0.7], [0.6]], "B": [[0.72], [0.64]]}
    t = 12.7062  # Student's, at 97.5 % with 1 degree of freedom
    for ratio, factor in ((0.25, 0.75), (None, 1.5)):
        row = folds_of(means, ratio).iloc[0]
        reach = t * math.sqrt(0.0002 * factor)
        assert (row["low"], row["high"]) == pytest.approx((0.03 - reach, 0.03 + reach), rel=1e-5)


def test_the_table_over_folds_shows_the_difference_that_its_interval_belongs_to(tmp_path):
    """Folds of one and three cases: the mean of the folds' differences is not the difference of the means."""
    dice = {"A": [0.5, 0.6, 0.6, 0.6], "B": [0.9, 0.7, 0.7, 0.7]}
    rows = [
        (model, repeat, fold, f"case {case}", "liver", value + repeat / 100, 1.0)
        for model, values in dice.items()
        for case, (fold, value) in enumerate(zip((0, 1, 1, 1), values, strict=True))
        for repeat in (1, 2)
    ]
    table = noise_table(comparison_of(frame(rows), tmp_path, repeats=2))
    shown = dict(
        zip([column.title for column in table.columns], [cell.value for cell in table.rows[0].cells], strict=True)
    )
    assert shown["over"] == "folds"
    assert shown["difference"] == "+25.00"
    assert shown["difference of means"] == "+17.50"


def test_the_table_of_several_models_shows_every_p_value_that_decides(tmp_path):
    rng = np.random.default_rng(6)
    rows = [
        (model, repeat, fold, f"case {fold}", "liver", mean + rng.normal(0, 0.01), 1.0)
        for model, mean in {"A": 0.70, "B": 0.715, "C": 0.705}.items()
        for fold in (0, 1, 2)
        for repeat in (1, 2)
    ]
    comparison = comparison_of(frame(rows), tmp_path, repeats=2)
    noise = comparison.noise[comparison.noise["metric"] == "dice"].set_index("model")
    for p in ("p", "p_noise"):
        assert noise.loc["B", p] < noise.loc["C", p]
        assert noise.loc["B", f"{p}_holm"] == pytest.approx(2 * noise.loc["B", p])
    table = noise_table(comparison)
    titles = [column.title for column in table.columns]
    shown = dict(zip(titles, [cell.value for cell in table.rows[0].cells], strict=True))
    for title, name in (("p, all models", "p_holm"), ("p of noise alone, all models", "p_noise_holm")):
        assert shown[title] == f"{noise.loc['B', name]:.3f}"
    one_fold = noise_table(comparison_of(frame([row for row in rows if row[2] == 0]), tmp_path, repeats=2))
    assert "p, all models" in [column.title for column in one_fold.columns]
    assert "p of noise alone, all models" not in [column.title for column in one_fold.columns]  # it is the same


def test_repeated_trainings_within_folds_have_the_error_term_of_the_balanced_mixed_model():
    """Against the analysis of variance: F of the models over the interaction of models and folds is the square of t,
    which the correction for overlapping folds then divides by 1 + k / (k - 1)."""
    rng = np.random.default_rng(3)
    table = rng.normal(0.8, 0.02, (2, 4, 3)) + rng.normal(0, 0.05, (1, 4, 1))  # model, fold, training
    row = folds_of({"A": table[0].tolist(), "B": table[1].tolist()}).iloc[0]
    cells = table.mean(2)
    of_model, of_fold = cells.mean(1, keepdims=True), cells.mean(0, keepdims=True)
    of_models = 3 * 4 * ((of_model - cells.mean()) ** 2).sum() / 1
    of_interaction = 3 * ((cells - of_model - of_fold + cells.mean()) ** 2).sum() / 3
    f = of_models / of_interaction / (1 + 4 / 3)
    assert row["p"] == pytest.approx(stats.f.sf(f, 1, 3))
    assert row["freedom"] == 3
    assert row["run_to_run"] > 0


def test_the_interval_over_trainings_covers_the_truth_and_no_difference_is_seldom_found():
    rng = np.random.default_rng(1)
    covered, found = [], []
    for _ in range(80):
        a, b = rng.normal(0.80, 0.01, 3), rng.normal(0.81, 0.01, 3)
        row = noise_of({"A": a, "B": b}).iloc[0]
        covered.append(row["low"] <= 0.01 <= row["high"])
        found.append(noise_of({"A": a, "B": rng.normal(0.80, 0.01, 2)}).iloc[0]["p"] < 0.05)
    assert 0.90 <= np.mean(covered) <= 0.99
    assert np.mean(found) <= 0.10


@pytest.mark.parametrize(("ratio", "level"), [(0.7, 0.05), (1.0, 0.05), (2.5, 0.05), (1.0, 0.0125)])
def test_as_many_trainings_as_are_needed_have_a_power_of_80_percent(ratio, level):
    """By simulation of Student's test with so many trainings, and with one less."""
    count, rng = int(trainings_needed(ratio, 1.0, level)), np.random.default_rng(0)

    def power(number):
        a, b = rng.normal(0, 1, (20000, number)), rng.normal(ratio, 1, (20000, number))
        return np.mean(stats.ttest_ind(b, a, axis=1).pvalue < level)

    assert power(count) >= 0.79
    assert power(count - 1) < 0.81


def test_trainings_needed_at_the_ends():
    assert trainings_needed(100.0, 1.0) == 2
    assert trainings_needed(0.1, 0.0) == 2
    assert math.isinf(trainings_needed(0.0, 0.0))
    assert math.isinf(trainings_needed(0.001, 1.0))
    assert math.isnan(trainings_needed(math.nan, 1.0))


def test_an_organ_that_no_training_of_a_fold_has_makes_the_folds_unknown():
    row = folds_of({"A": [[0.7], [math.nan]], "B": [[0.72], [0.64]]}).iloc[0]
    assert math.isnan(row["p"])
    assert math.isnan(row["low"])
