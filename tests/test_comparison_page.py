"""The HTML page: of real scores and files of phantom CTs and of colour photographs, read back as a browser would."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import html
import io
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from comparison_example import comparison_of, make_comparison
from PIL import Image
from scipy import stats

from nnunet_dtc.study.comparison.markdown import markdown
from nnunet_dtc.study.comparison.output_folder import as_json
from nnunet_dtc.study.comparison.page import render_page
from nnunet_dtc.study.comparison.picture_drawing import PictureError, draw_picture, is_ct
from nnunet_dtc.study.comparison.sentences import what_was_predicted
from nnunet_dtc.study.comparison.terminal import terminal_sentences, terminal_tables
from nnunet_dtc.study.comparison.verdicts import noise_sentences, verdict_sentences
from nnunet_dtc.study.evaluation.metrics import METRICS, Metric

A, B, C = "nnUNetTrainer", "nnUNetTrainerDTC", "nnUNetTrainerDTC_RF10_250epochs"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"
POINTS, BETTER = "difference (points)", "better / worse / equal"


@pytest.fixture(scope="module")
def ct(tmp_path_factory):
    return make_comparison(tmp_path_factory.mktemp("ct"), {A: 0.6, B: 0.5}, cases=2, repeats=2)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make_comparison(
        tmp_path_factory.mktemp("photos"), {A: 4, B: 3, C: 2}, two_d=True, cases=42, folds=3, epochs=450
    )


@pytest.fixture(scope="module")
def ct_page(ct):
    return render_page(ct)


@pytest.fixture(scope="module")
def photo_page(photos):
    return render_page(photos)


class Parsed(HTMLParser):
    """Tags with their attributes, tables as rows of texts, and all text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.tables, self.texts, self.path = [], {}, [], []
        self.label = self.row = None
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if tag == "div" and attributes.get("role") == "region":
            self.label = attributes["aria-label"]
        if tag == "table":
            self.tables[self.label] = []
        if tag == "tr":
            self.row = []
            self.tables[self.label].append(self.row)
        if tag in ("td", "th"):
            self.row.append("")
        if tag in ("style", "td", "th"):
            self.path.append(tag)

    def handle_endtag(self, tag):
        if self.path and self.path[-1] == tag:
            self.path.pop()

    def handle_data(self, data):
        if self.path == ["style"]:
            return
        if self.path:
            self.row[-1] += data
        self.texts.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", "".join(self.texts))

    def attributes(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


# ---- numbers -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory):
    """Two models, three cases in two folds, two organs. The label of the last case has no left kidney: A leaves it
    empty, and B predicts one."""
    nan, inf = math.nan, math.inf
    rows = [
        (A, 1, 0, "case_a", "liver", 0.90, 4.0),
        (A, 1, 0, "case_a", "left_kidney", 0.70, 2.0),
        (A, 1, 1, "case_b", "liver", 0.60, 6.0),
        (A, 1, 1, "case_b", "left_kidney", 0.80, 8.0),
        (A, 1, 1, "case_c", "liver", 0.50, 5.0),
        (A, 1, 1, "case_c", "left_kidney", nan, nan),
        (B, 1, 0, "case_a", "liver", 0.94, 3.0),
        (B, 1, 0, "case_a", "left_kidney", 0.86, 1.0),
        (B, 1, 1, "case_b", "liver", 0.62, 9.0),
        (B, 1, 1, "case_b", "left_kidney", 0.78, 9.0),
        (B, 1, 1, "case_c", "liver", 0.74, 3.0),
        (B, 1, 1, "case_c", "left_kidney", 0.0, inf),
    ]
    columns = ["model", "repeat", "fold", "case", "organ", "dice", "hd95_mm"]
    scores = pd.DataFrame(rows, columns=columns).astype({"fold": "Int64"})
    return comparison_of(scores, tmp_path_factory.mktemp("by_hand"))


@pytest.fixture(scope="module")
def tables_by_hand(by_hand):
    return Parsed(render_page(by_hand)).tables


def test_the_overview_by_hand(tables_by_hand):
    """Means of the cases: A 80, 70, 50 and 3, 7, 5; B 90, 70, 37 and 2, 9, 3. Means of the folds: Dice 80 and 60 of A,
    90 and 53.5 of B; HD95 3 and 6 of A, 2 and 6 of B."""
    assert tables_by_hand["Means over organs, then cases (± standard deviation over folds)"] == [
        ["model", "Dice (%)", "difference (points)", "HD95 (mm, lower is better)", "difference (mm)"],
        [A, "66.67 ± 14.14", "", "5.00 ± 2.12", ""],
        [B, "65.67 ± 25.81", f"{MINUS}1.00", "4.67 ± 2.83", f"{MINUS}0.33"],
    ]


def test_cases_and_folds_by_hand(tables_by_hand):
    """In the last case, the left kidney that A leaves empty counts as Dice 1 against that of B: 75 and 37."""
    head = [A, B, "difference (points)"]
    assert tables_by_hand["Dice (%) by case"] == [
        ["case", *head],
        ["case_a", "80.00", "90.00", "+10.00"],
        ["case_b", "70.00", "70.00", "0.00"],
        ["case_c", "50.00", "37.00", f"{MINUS}38.00"],
    ]
    assert [row[3] for row in tables_by_hand["HD95 (mm, lower is better) by case"][1:]] == [
        f"{MINUS}1.00",
        "+2.00",
        f"{MINUS}2.00",
    ]
    assert tables_by_hand["Dice (%) by fold"] == [
        ["fold", "cases", *head],
        ["0", "1", "80.00", "90.00", "+10.00"],
        ["1", "2", "60.00", "53.50", f"{MINUS}6.50"],
    ]


def test_organs_by_hand(tables_by_hand):
    """Dice: +4, +2, +24 of the liver, +16, -2, -100 of the left kidney. HD95 leaves out the infinite one."""
    dice = tables_by_hand[f"Dice (%) by organ: {B} against {A}"]
    assert dice[0] == ["organ", A, B, "difference (points)", "95 % interval", "p", "p (Holm)", "cases", BETTER]
    assert [row[:4] + row[7:] for row in dice[1:]] == [
        ["mean over organs", "66.67", "65.67", f"{MINUS}9.33", "3", "1 / 1 / 1"],
        ["liver", "66.67", "76.67", "+10.00", "3", "3 / 0 / 0"],
        ["left kidney", "75.00", "54.67", f"{MINUS}28.67", "3", "1 / 2 / 0"],
    ]
    assert dice[2][4] == "+2.00 to +24.00"  # the smallest and the largest of three
    assert [row[5:7] for row in dice[1:]] == [[DASH, ""], [DASH, DASH], [DASH, DASH]]  # three cases are no test
    hd95 = tables_by_hand[f"HD95 (mm, lower is better) by organ: {B} against {A}"]
    assert [row[:4] + row[7:] for row in hd95[1:]] == [
        ["mean over organs", "5.00", "4.67", f"{MINUS}0.33", "3", "2 / 1 / 0"],
        ["liver", "5.00", "5.00", "0.00", "3", "2 / 1 / 0"],
        ["left kidney", "5.00", "5.00", "0.00", "2", "1 / 1 / 0"],
    ]


def test_an_invented_organ_is_in_the_verdict(by_hand):
    text = Parsed(render_page(by_hand)).text
    assert f"These trained networks: {MINUS}9.33 points, 95 % interval over cases" in text
    assert "The paired differences above also count organs that one model correctly leaves empty" in text
    assert "Infinite values of HD95 are left out of its means. They occur where an organ is absent in the prediction "
    assert f"alone: 0 of {A}, 1 of {B}." in text


def test_markdown_and_terminal_show_the_same_tables(by_hand, tables_by_hand):
    document = markdown(by_hand)
    for title, rows in tables_by_hand.items():
        if title.startswith("Model size"):
            continue
        assert f"\n## {title}\n" in document
        for row in rows:
            assert f"| {' | '.join(row)} |" in document
    overview, organs, cost, noise = terminal_tables(by_hand)
    assert [*noise.columns[5].cells] == ["folds"] * len(by_hand.metrics)
    assert [[*column.cells] for column in overview.columns] == [
        [A, B],
        ["66.67 ± 14.14", "65.67 ± 25.81\n(-1.00)"],  # not every terminal has a minus sign
        ["5.00 ± 2.12", "4.67 ± 2.83\n(-0.33)"],
    ]
    assert [*organs.columns[2].cells] == ["65.67 (-9.33)", "76.67 (+10.00)", "54.67 (-28.67)"]
    assert [*cost.columns[1].cells] == ["60", "60"]


def test_the_cost_of_the_models(photo_page):
    cost = Parsed(photo_page).tables[f"Model size and training cost, with the change from {A}"]
    assert cost == [
        ["model", "parameters", "epochs", "time per epoch", "peak memory"],
        [A, "30.79 M", "450", "53.2 s", "7.13 GiB"],
        [B, "31.20 M (+1.3 %)", "450", f"50.2 s ({MINUS}5.6 %)", DASH],
        [C, "31.61 M (+2.7 %)", "450", f"47.2 s ({MINUS}11.3 %)", DASH],
    ]


def test_a_metric_that_is_registered_is_shown_in_its_own_unit_and_direction(monkeypatch, tmp_path):
    """Eight cases of one organ: every volume difference of B is smaller, and so is every recall."""
    plain = {"compute": lambda organ: math.nan, "absent_in_one": 0.0, "absent_in_both": {"skip": math.nan, "flare": 1}}
    volume = Metric("volume_ml", "Volume difference", stored="ml", unit="ml", factor=1, higher_is_better=False, **plain)
    recall = Metric("recall", "Recall", stored="0 to 1", unit="%", factor=100, higher_is_better=True, **plain)
    for entry in (volume, recall):
        monkeypatch.setitem(METRICS, entry.key, entry)
    rows = [
        (
            model,
            1,
            0,
            f"case_{number}",
            "liver",
            0.8,
            20.0 + number - model_number * number,
            0.9 - 0.01 * model_number * number,
        )
        for model_number, model in enumerate((A, B))
        for number in range(1, 9)
    ]
    columns = ["model", "repeat", "fold", "case", "organ", "dice", "volume_ml", "recall"]
    scores = pd.DataFrame(rows, columns=columns).astype({"fold": "Int64"})
    comparison = comparison_of(scores, tmp_path)
    page = Parsed(render_page(dataclasses.replace(comparison, metrics=("volume_ml", "recall"))))
    overview = page.tables["Means over organs, then cases"]
    assert overview[0] == ["model", "Volume difference (ml, lower is better)", "difference (ml)", "Recall (%)", POINTS]
    assert overview[1:] == [[A, "24.50", "", "90.00", ""], [B, "20.00", f"{MINUS}4.50", "85.50", f"{MINUS}4.50"]]
    title = f"Volume difference (ml, lower is better) by organ: {B} against {A}"
    (row,) = page.tables[title][1:]
    assert row[5:] == ["0.008", "0.008", "8", "8 / 0 / 0"]  # all signs alike: p is 2 / 2**8
    assert page.tables[f"Recall (%) by organ: {B} against {A}"][1][-1] == "0 / 8 / 0"
    assert "On these cases Volume difference is better with these trained networks: " in page.text
    drawn = [svg["aria-label"] for svg in page.attributes("svg")]
    assert any(label.startswith(f"Differences of Volume difference to {A}") for label in drawn)
    only_recall = Parsed(render_page(dataclasses.replace(comparison, metrics=("recall",)))).text
    assert "On these cases Recall is worse with these trained networks: the interval excludes 0" in only_recall

    assert f"\n## {title}\n" in markdown(comparison)
    assert "| Volume difference (ml, lower is better) | difference (ml) |" in markdown(comparison)
    heads = [column.header for column in terminal_tables(comparison)[0].columns]
    assert heads == ["model", "Dice (%)", "Volume difference (ml, lower is better)", "Recall (%)"]
    content = as_json(comparison)
    assert "volume_ml: ml" in content["units"]
    entry = next(row for row in content["differences"] if row["metric"] == "volume_ml")
    assert (entry["mean"], entry["better"], entry["worse"]) == (-4.5, 8, 0)


def test_the_verdict_follows_from_interval_and_test(ct, photos, ct_page, photo_page):
    assert "2 cases are too few for a conclusion: the test needs 6." in Parsed(ct_page).text
    row = photos.differences.query("metric == 'dice' and organ == '' and model == @C").iloc[0]
    text = Parsed(photo_page).text
    assert row["low"] > 0  # the fixture's models do differ
    assert "On these cases Dice is better with these trained networks: the interval excludes 0, and p" in text
    assert f"95 % interval over cases +{row['low'] * 100:.2f} to +{row['high'] * 100:.2f}" in text
    assert f"better in {row['better']}, worse in {row['worse']}, equal in 0 of 42 cases" in text


def of_trainings(folder, dice_of_repeats):
    """Two cases of one fold, whose Dice in every training is the given mean plus and minus 0.05."""
    rows = [
        (model, repeat, 0, case, "liver", mean + shift)
        for model, repeats in dice_of_repeats.items()
        for repeat, mean in enumerate(repeats, 1)
        for case, shift in (("a", 0.05), ("b", -0.05))
    ]
    scores = pd.DataFrame(rows, columns=["model", "repeat", "fold", "case", "organ", "dice"]).astype({"fold": "Int64"})
    return comparison_of(scores, folder, max(map(len, dice_of_repeats.values())))


def test_the_headline_of_one_training_each_is_that_nothing_is_known(tmp_path):
    one = of_trainings(tmp_path, {A: [0.70], B: [0.73]})
    page, says = (
        Parsed(render_page(one)).text,
        "It is not known whether Dice differs: there is one training each, and another",
    )
    says += " one may give the opposite."
    assert f"{B} not known Dice, difference to {A} {says}" in page
    assert "These trained networks: +3.00 points, 95 % interval over cases +3.00 to +3.00" in page
    for text in (markdown(one), " ".join(terminal_sentences(one)), " ".join(verdict_sentences(one))):
        assert f"{B} against {A}: {says}" in text


def test_the_terminal_explains_the_noise_of_one_model_and_refers_to_the_file_for_several(tmp_path):
    dice = {A: [0.70, 0.71], B: [0.73, 0.75], C: [0.72, 0.74]}
    pair, three = (of_trainings(tmp_path, {name: dice[name] for name in names}) for names in ((A, B), (A, B, C)))
    start, refers = f"Dice, {B} against {A}: the difference is", "comparison.md explains each row"
    assert [start in " ".join(terminal_sentences(one)) for one in (pair, three)] == [True, False]
    assert [refers in " ".join(terminal_sentences(one)) for one in (pair, three)] == [False, True]
    assert start in markdown(three)
    pages = [Parsed(render_page(one)).text for one in (pair, three)]
    p = three.between("dice", B)["p_holm"]
    assert f", p for all models = {p:.3f}." in pages[1]
    assert "corrected over the models by Holm's method" in pages[1]
    assert "all models" not in pages[0]
    assert f"{C} against {A}: " in " ".join(terminal_sentences(three))  # what is known of the differences


@pytest.mark.parametrize(
    ("repeats", "says"),
    [
        ({A: [0.70, 0.71, 0.705], B: [0.74, 0.75, 0.745]}, "Dice is better: the interval over trainings excludes 0."),
        ({A: [0.74, 0.75, 0.745], B: [0.70, 0.71, 0.705]}, "Dice is worse: the interval over trainings excludes 0."),
        # a difference of 0.3 deviations: 176 in each group, as in tables of the power of Student's test
        (
            {A: [0.60, 0.70, 0.80], B: [0.63, 0.73, 0.83]},
            "No difference in Dice is shown: the interval over trainings includes 0. A difference of this size would "
            "need about 176 trainings of each model.",
        ),
    ],
)
def test_the_headline_of_repeated_trainings(repeats, says, tmp_path):
    several = of_trainings(tmp_path, repeats)
    a, b = map(np.array, repeats.values())
    error = math.sqrt((a.var(ddof=1) + b.var(ddof=1)) / len(a))
    interval = stats.t.interval(0.95, 2 * len(a) - 2, np.mean(b) - np.mean(a), error)
    page = Parsed(render_page(several)).text
    ends = [f"{100 * end:+.2f}".replace("-", MINUS) for end in interval]
    assert f"95 % interval over trainings {ends[0]} to {ends[1]}, p " in page
    assert f"{B} {100 * (np.mean(b) - np.mean(a)):+.2f} points".replace("-", MINUS) in page
    assert says in page
    assert says in markdown(several)


@pytest.mark.parametrize(
    ("metric", "mean", "low", "high", "p", "says"),
    [
        ("dice", 0.01, -0.01, 0.03, 0.3, "These cases do not show a difference in Dice: the interval includes 0."),
        ("dice", 0.01, -0.01, 0.03, 0.04, "No clear difference in Dice: p is below 0.05, but the interval includes 0."),
        ("dice", 0.01, 0.001, 0.03, 0.06, "No clear difference in Dice: the interval excludes 0, but p is not"),
        ("dice", -0.01, -0.03, -0.001, 0.01, "On these cases Dice is worse"),
        ("hd95_mm", -1, -3, -0.1, 0.01, "On these cases HD95 is better"),
        ("hd95_mm", 1, 0.1, 3, 0.01, "On these cases HD95 is worse"),
    ],
)
def test_every_verdict(photos, metric, mean, low, high, p, says):
    numbers = {"mean": mean, "low": low, "high": high, "p": p}
    differences = photos.differences.copy()
    differences.loc[differences["metric"] == metric, list(numbers)] = list(numbers.values())
    small = dataclasses.replace(
        photos,
        metrics=(metric,),
        differences=differences,
        models=photos.models[:2],
        scores=photos.scores[photos.scores["model"] != C],
        curves=photos.curves.iloc[:0],
        pictures=(),
    )
    assert says in Parsed(render_page(small)).text


def test_noise_is_reported_where_it_is_known(ct, ct_page, photo_page, tmp_path):
    text = Parsed(ct_page).text
    for sentence in noise_sentences(ct.noise, {A: 2, B: 2}):
        assert re.sub(r"\s+", " ", sentence) in text
    assert "Are the differences larger than those between repeated trainings? Dice, " in text
    assert "No repeated trainings" not in text
    assert "No repeated trainings" not in Parsed(photo_page).text  # over folds more is known
    once = render_page(of_trainings(tmp_path, {A: [0.7], B: [0.8]}))
    assert "No repeated trainings" in Parsed(once).text


def test_what_is_not_known_is_a_dash_and_not_an_error(ct):
    models = [
        dataclasses.replace(m, epochs=None, parameters=None, epoch_seconds=None, peak_memory_mib=None, folds=())
        for m in ct.models
    ]
    bare = dataclasses.replace(
        ct,
        kind="test",
        models=tuple(models),
        scores=ct.scores.assign(fold=pd.array([pd.NA] * len(ct.scores), "Int64"), nsd_1mm=math.nan),
        curves=ct.curves.iloc[:0],
        noise=ct.noise.iloc[:0],
        pictures=(),
    )
    page = Parsed(render_page(bare))
    assert not any(title.startswith("Model size") for title in page.tables)
    assert not any(label.endswith("by fold") for label in page.tables)
    assert "Pseudo Dice" not in page.text
    assert page.tables["NSD 1mm (%) by case"][1][1:] == [DASH, DASH, DASH]
    assert "2 held-out cases, with predictions given by the user" in page.text
    assert "ensemble" not in page.text


@pytest.mark.parametrize(
    ("kind", "folds", "given", "expected"),
    [
        ("validation", (0, 1), (), "2 validation cases of folds 0, 1, each predicted by the model of its own fold"),
        ("test", (0, 1), (), "2 held-out cases, predicted by the ensemble of folds 0, 1"),
        ("test", (0,), (), "2 held-out cases, predicted by the model of fold 0"),
        ("test per fold", (0, 1), (), "2 held-out cases, predicted by each model of folds 0, 1 alone"),
        ("test", (0, 1), (A, B), "2 held-out cases, with predictions given by the user"),
        ("test", (), (A, B), "2 held-out cases, with predictions given by the user"),
        (
            "test",
            (0, 1),
            (B,),
            f"2 held-out cases, predicted by the ensemble of folds 0, 1 ({B}: predictions given by the user)",
        ),
    ],
)
def test_the_facts_name_who_predicted(ct, kind, folds, given, expected):
    models = tuple(
        dataclasses.replace(model, folds=folds, checkpoint="predictions were given" if model.name in given else "x.pth")
        for model in ct.models
    )
    assert what_was_predicted(kind, models, 2) == expected
    small = dataclasses.replace(ct, kind=kind, models=models, metrics=("dice",), pictures=(), sentences=())
    page = render_page(small)
    facts = re.search(r'<p class="facts">(.*?)</p>', page).group(1)
    assert html.unescape(facts) == f"{expected} · 3d_fullres · nnUNetPlans"
    assert ("Means over organs, cases, then folds" in page) == (kind == "test per fold")


def test_a_difference_of_percentages_is_in_points(ct, ct_page):
    tables = Parsed(ct_page).tables
    assert tables["Dice (%) by case"][0][-1] == POINTS
    assert tables["HD95 (mm, lower is better) by fold"][0][-1] == "difference (mm)"
    text = markdown(ct)
    noise = ct.noise.iloc[0]
    p = "< 0.001" if noise["p_noise"] < 0.001 else f"{noise['p_noise']:.3f}"
    assert f"| {B} | Dice (points) | {noise['difference'] * 100:+.2f} |" in text
    assert f"| {noise['run_to_run'] * 100:.2f} | {p} |" in text
    assert "| HD95 (mm) |" in text
    assert not re.search(r"difference (of|is) [+-][\d.]+ %", text + Parsed(ct_page).text)


# ---- the page as a file ------------------------------------------------------------------------------------------


def test_the_page_needs_nothing_else(ct_page, photo_page):
    for page in (ct_page, photo_page):
        parsed = Parsed(page)
        assert not parsed.attributes("script")
        assert not parsed.attributes("link")
        for tag, attributes in parsed.tags:
            for name in ("src", "href", "xlink:href", "srcset", "data", "action"):
                assert attributes.get(name, "#").startswith(("#", "data:image/")), (tag, attributes)
        assert "@import" not in page
        assert "url(http" not in page
        assert len(page.encode()) < 3_000_000


def test_the_same_comparison_gives_the_same_bytes(photos, photo_page):
    small = dataclasses.replace(photos, metrics=("dice",), pictures=photos.pictures[:1])
    page = render_page(small)
    assert "data:image/jpeg" in page
    assert render_page(small) == page


def test_ids_are_unique_and_links_lead_somewhere(ct_page):
    tags = Parsed(ct_page).tags
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [attributes["href"][1:] for tag, attributes in tags if tag == "a"]
    assert len(links) >= 6
    assert set(links) <= set(ids)


def test_every_figure_and_table_has_a_label(ct, ct_page):
    parsed = Parsed(ct_page)
    pictures = parsed.attributes("img")
    assert len(pictures) == len(ct.pictures)
    for picture, attributes in zip(ct.pictures, pictures, strict=True):
        assert picture.case in attributes["alt"]
        assert all(f"{name} {picture.dice[name] * 100:.2f} %" in attributes["alt"] for name in (A, B))
    drawn = parsed.attributes("svg")
    assert len(drawn) == 4 + 4 + 2  # organs and cases of every metric, two of the training
    assert all(svg["role"] == "img" and len(svg["aria-label"]) > 20 for svg in drawn)
    assert all(th.get("scope") in ("row", "col", "colgroup") for th in parsed.attributes("th"))
    assert parsed.attributes("html")[0]["lang"] == "en"


def test_names_are_text_whatever_is_in_them(ct):
    evil = '<img src=x onerror="alert(1)">&amp;$x_1$'
    organs = [
        dataclasses.replace(organ, name=f"{evil}{n}" if n == 0 else organ.name)
        for n, organ in enumerate(ct.labels.organs)
    ]
    renamed = {ct.labels.names[0]: organs[0].name}
    picture = dataclasses.replace(
        ct.pictures[0],
        case=evil,
        why="worst, largest loss",
        organ_dice={m: {renamed.get(o, o): v for o, v in d.items()} for m, d in ct.pictures[0].organ_dice.items()},
    )
    page = render_page(
        dataclasses.replace(
            ct,
            metrics=("dice",),
            dataset=f"Dataset001_{evil}",
            labels=dataclasses.replace(ct.labels, organs=tuple(organs)),
            scores=ct.scores.replace({"case": {ct.scores["case"].iloc[0]: evil}, "organ": renamed}),
            differences=ct.differences.replace({"organ": renamed}),
            sentences=(evil,),
            pictures=(picture,),
        )
    )
    parsed = Parsed(page)
    assert all(attributes["src"].startswith("data:image/jpeg") for attributes in parsed.attributes("img"))
    assert not any("onerror" in attributes for _, attributes in parsed.tags)
    assert f"{evil}: worst case of {A}; largest loss of {B} against {A}" in parsed.text
    assert evil in [row[0] for row in parsed.tables["Dice (%) by case"]]


# ---- pictures ----------------------------------------------------------------------------------------------------


def test_pictures_are_jpegs_of_their_case(ct_page, photo_page):
    for page, columns in ((ct_page, 4), (photo_page, 5)):
        for attributes in Parsed(page).attributes("img"):
            image = Image.open(io.BytesIO(base64.b64decode(attributes["src"].split(",", 1)[1])))
            assert image.format == "JPEG"
            assert abs(image.width - (1500 if columns == 4 else 2000)) <= 1  # Matplotlib 3.7 rounds down
            pixels = np.asarray(image.convert("L"), float)
            assert pixels.std() > 20
            assert f"min-width:{165 * columns}px" in attributes["style"]


def test_a_missing_or_misfit_image_leaves_a_sentence(photos, tmp_path):
    gone, small, broken = tmp_path / "gone.png", tmp_path / "small.png", tmp_path / "broken.png"
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((9, 8), np.uint8)), str(small))
    broken.write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    first = photos.pictures[0]
    cases = {
        "its image was not found": dataclasses.replace(first, images=()),
        f"{gone} is not there": dataclasses.replace(first, images=(gone,)),
        f"cannot read {broken}: ITK ERROR: PNGImageIO: PNG": dataclasses.replace(first, images=(broken,)),
        f"{small} has the shape (1, 9, 8), its image (1, 96, 128)": dataclasses.replace(
            first, predictions={**first.predictions, A: small}
        ),
    }
    for problem, picture in cases.items():
        with pytest.raises(PictureError, match=re.escape(problem)):
            draw_picture(picture, photos.labels, False)
    parsed = Parsed(
        render_page(dataclasses.replace(photos, metrics=("dice",), pictures=(cases[f"{gone} is not there"],)))
    )
    assert not parsed.attributes("img")
    assert f"The picture is left out: {gone} is not there. Mean Dice: {A}" in parsed.text


def test_a_volume_is_shown_in_lps_whatever_its_storage(ct, ct_page):
    """The fixture stores RAS; the body lies on its back, and the liver is in the left half of the picture."""
    picture = ct.pictures[0]
    assert sitk.ReadImage(str(picture.reference)).GetDirection()[0] == -1
    figure, where = draw_picture(picture, ct.labels, True)
    assert re.fullmatch(r"axial \d+/18", where)
    index = int(where.split()[1].split("/")[0]) - 1
    labels = sitk.GetArrayFromImage(sitk.DICOMOrient(sitk.ReadImage(str(picture.reference)), "LPS"))[index]
    drawn = figure.axes[1].images[1].get_array()[..., 3] > 0
    rows, columns = labels.shape
    assert drawn.shape[0] <= rows  # cropped to the body
    assert drawn.shape[1] <= columns
    assert drawn.sum() == (labels > 0).sum()
    liver = next(n for n, organ in enumerate(ct.labels.organs, start=1) if organ.name == "liver")
    if (labels == liver).any():
        assert np.argwhere(labels == liver)[:, 1].mean() < columns / 2


def test_labels_are_drawn_voxel_by_voxel_whatever_their_headers_say(ct, tmp_path):
    """As they are scored: a label whose direction is not the image's is not turned by its own header."""
    picture = ct.pictures[0]
    moved = sitk.ReadImage(str(picture.reference))
    moved.SetDirection((1, 0, 0, 0, 1, 0, 0, 0, 1))  # the image's is RAS
    moved.SetOrigin((11, 12, 13))
    sitk.WriteImage(moved, str(tmp_path / "moved.nii.gz"))
    drawn = []
    for reference in (picture.reference, tmp_path / "moved.nii.gz"):
        figure, where = draw_picture(dataclasses.replace(picture, reference=reference), ct.labels, True)
        drawn.append((where, [np.asarray(image.get_array()) for ax in figure.axes for image in ax.images]))
    assert drawn[0][0] == drawn[1][0]
    for a, b in zip(drawn[0][1], drawn[1][1], strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("which", ["image", "prediction"])
def test_a_file_that_is_cut_off_is_not_drawn(ct, tmp_path, which):
    picture = ct.pictures[0]
    file = picture.images[0] if which == "image" else picture.predictions[A]
    damaged = tmp_path / "damaged.nii.gz"
    damaged.write_bytes(gzip.compress(gzip.decompress(file.read_bytes())[:-200]))
    files = {"images": (damaged,)} if which == "image" else {"predictions": {**picture.predictions, A: damaged}}
    with pytest.raises(PictureError, match=r"cannot read .*damaged.nii.gz: it is cut off"):
        draw_picture(dataclasses.replace(picture, **files), ct.labels, True)


def test_thick_slices_are_cut_along_and_flat_images_not_turned(ct, tmp_path):
    array = np.zeros((20, 9, 30), np.int16)
    array[5:12, 4, 8:20] = 1
    files = {}
    for name, data in (("image", array * 100), ("truth", array), ("prediction", np.roll(array, 1, 0))):
        image = sitk.GetImageFromArray(data)
        image.SetSpacing((1, 5, 1))  # thick along y: a coronal scan
        files[name] = tmp_path / f"{name}.nii.gz"
        sitk.WriteImage(image, str(files[name]))
    picture = dataclasses.replace(
        ct.pictures[0], images=(files["image"],), reference=files["truth"], predictions={A: files["prediction"]}
    )
    figure, where = draw_picture(picture, ct.labels, False)
    assert where == "coronal 5/9"
    shown = figure.axes[0].images[0].get_array()[..., 0]
    np.testing.assert_array_equal(shown > 0.5, array[::-1, 4] > 0)

    flat = np.zeros((1, 24, 33), np.uint8)
    flat[0, 3:9, 4:12] = 1
    for name in files:
        image = sitk.GetImageFromArray(flat)
        image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
        sitk.WriteImage(image, str(files[name]))
    figure, where = draw_picture(picture, ct.labels, False)
    assert where == ""
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array()[..., 0] > 0.5, flat[0] > 0)


def test_the_ct_window_is_for_cts(tmp_path):
    assert not is_ct(tmp_path)
    for content, expected in (
        ({"channel_names": {"0": "CT"}}, True),
        ({"modality": {"0": "ct"}}, True),
        ({"channel_names": {"0": "T2", "1": "CT"}}, False),
        ({"channel_names": {"0": "noNorm_CT"}}, False),
        ([], False),
    ):
        (tmp_path / "dataset.json").write_text(json.dumps(content))
        assert is_ct(tmp_path) is expected


# ---- in a browser ------------------------------------------------------------------------------------------------

PROBE = """
<script>
addEventListener("load", () => {
  const root = document.documentElement;
  const report = {width: innerWidth, room: root.clientWidth, scrolls: root.scrollWidth};
  for (const details of document.querySelectorAll("details")) details.open = true;
  report.scrollsOpen = root.scrollWidth;
  report.images = [...document.images].map(image => image.naturalWidth);
  report.requests = performance.getEntriesByType("resource").map(e => e.name).filter(n => !n.startsWith("data:"));
  report.cut = [];
  for (const svg of document.querySelectorAll("svg")) {
    const whole = svg.getBoundingClientRect();
    for (const text of svg.querySelectorAll("text")) {
      const box = text.getBoundingClientRect();
      const beside = box.left < whole.left - 3 || box.right > whole.right + 3;
      if (beside || box.top < whole.top - 3 || box.bottom > whole.bottom + 3) report.cut.push(text.textContent);
    }
  }
  report.svgs = document.querySelectorAll("svg").length;
  const style = getComputedStyle(document.body);
  report.ink = style.color; report.paper = style.backgroundColor;
  report.label = getComputedStyle(document.querySelector("svg text")).fill;
  parent.postMessage({name: location.hash, report}, "*");
});
</script></body>"""

FRAMES = """<!DOCTYPE html><body><pre id="out"></pre><script>
const found = {};
addEventListener("message", event => {
  found[event.data.name] = event.data.report;
  document.getElementById("out").textContent = JSON.stringify(found);
});
for (const [name, width] of [["laptop", 1366], ["phone", 390]]) {
  const frame = document.createElement("iframe");
  frame.style = `width:${width}px;height:800px;border:0`;
  frame.src = "page.html#" + name;
  document.body.append(frame);
}
</script></body>"""


def in_browser(page: str, folder, dark: bool) -> dict:
    """What a page looks like from inside, at a laptop's and a phone's width."""
    assert page.count("</body>") == 1
    (folder / "page.html").write_text(page.replace("</body>", PROBE), encoding="utf-8")
    (folder / "frames.html").write_text(FRAMES, encoding="utf-8")
    command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-extensions"]
    command += ["--disable-background-networking", f"--user-data-dir={folder / 'profile'}", "--window-size=1500,2000"]
    command += [
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        "--virtual-time-budget=20000",
        "--dump-dom",
    ]
    done = subprocess.run(
        [*command, (folder / "frames.html").as_uri()], capture_output=True, text=True, timeout=180, check=True
    )
    found = json.loads(html.unescape(re.search(r'<pre id="out">(.*?)</pre>', done.stdout, re.DOTALL).group(1)))
    assert set(found) == {"#laptop", "#phone"}
    return found


def luminance(colour: str) -> float:
    """WCAG 2's relative luminance of `rgb(r, g, b)`."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome on the path")
@pytest.mark.parametrize(("which", "dark"), [("ct_page", False), ("photo_page", True)])
def test_in_a_browser(which, dark, request, tmp_path):
    page = request.getfixturevalue(which)
    found = in_browser(page, tmp_path, dark)
    for name, width in (("#laptop", 1366), ("#phone", 390)):
        report = found[name]
        assert report["width"] == width
        assert report["scrolls"] <= report["room"] <= width
        assert report["scrollsOpen"] <= report["room"]
        assert report["images"]
        assert all(natural > 0 for natural in report["images"])
        assert report["requests"] == []
        assert report["svgs"] >= 8
        assert report["cut"] == []
        assert contrast(report["ink"], report["paper"]) > 7
        assert contrast(report["label"], report["paper"]) > 7
        assert (luminance(report["paper"]) < 0.1) == dark
