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
from comparison_example import make_comparison
from PIL import Image

from nnunet_dtc.study.comparison.page import render_page
from nnunet_dtc.study.comparison.picture_drawing import PictureError, draw_picture, is_ct
from nnunet_dtc.study.comparison.sentences import what_was_predicted
from nnunet_dtc.study.comparison.statistics import paired_differences, summarise
from nnunet_dtc.study.comparison.tables import case_table, difference_table, markdown, noise_table, overview_table

A, B, C = "nnUNetTrainer", "nnUNetTrainerDTC", "nnUNetTrainerDTC_RF10_250epochs"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"


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


def test_the_overview_has_the_means_of_the_scores(photos, photo_page):
    rows = Parsed(photo_page).tables["Table of all models"]
    assert [row[0] for row in rows[2:]] == [A, B, C]
    for place, metric in enumerate(photos.metrics):
        factor = 1 if metric == "hd95_mm" else 100
        finite = photos.scores.assign(value=photos.scores[metric].replace(np.inf, np.nan))
        cases = finite.groupby(["model", "case"])["value"].mean()
        means = cases.groupby("model").mean() * factor
        folds = finite.groupby(["model", "fold"])["value"].mean().groupby("model").std() * factor
        for row, name in zip(rows[2:], (A, B, C), strict=True):
            assert row[1 + 2 * place] == f"{means[name]:.2f} ± {folds[name]:.2f}"
            difference = f"{means[name] - means[A]:+.2f}".replace("-", MINUS)
            assert row[2 + 2 * place] == ("" if name == A else difference)
    cost = Parsed(photo_page).tables["Table of what the models cost"]
    assert cost[0] == ["model", "parameters (M)", "epochs", "time of an epoch (s)", "peak memory (GiB)"]
    assert cost[1] == [A, "30.79", "450", "53.2", "7.13"]
    assert cost[2] == [B, "31.20 (+1.3 %)", "450", f"50.2 ({MINUS}5.6 %)", DASH]


def test_organs_folds_and_cases_are_tables_of_the_scores(ct, ct_page):
    tables = Parsed(ct_page).tables
    scores = ct.scores
    organ = tables[f"Dice by organ, {B}"]
    assert [row[0] for row in organ[1:]] == [
        "mean over organs",
        *(name.replace("_", " ") for name in ct.labels.names),
    ]
    for row, name in zip(organ[2:], ct.labels.names, strict=True):
        of_cases = scores[scores["organ"] == name].groupby(["model", "case"])["dice"].mean()
        of_models = of_cases.groupby("model").mean() * 100
        assert row[1:3] == [DASH if math.isnan(of_models[m]) else f"{of_models[m]:.2f}" for m in (A, B)]
        gains = of_cases[B] - of_cases[A]
        assert row[6:8] == [str((gains > 1e-9).sum()), str((gains < -1e-9).sum())]
        assert row[5] == DASH  # two cases are no test
    of_case = scores.groupby(["model", "case", "organ"])["dice"].mean().groupby(["model", "case"]).mean() * 100
    cases = tables["Dice of all cases"]
    assert [row[0] for row in cases[1:]] == ["phantom_001", "phantom_002"]
    for row in cases[1:]:
        a, b = of_case[A, row[0]], of_case[B, row[0]]
        assert row[1:] == [f"{a:.2f}", f"{b:.2f}", f"{b - a:+.2f}".replace("-", MINUS)]
    folds = tables["Dice of the folds"]
    assert [row[:2] for row in folds[1:]] == [["0", "1"], ["1", "1"]]
    assert folds[1][2:4] == cases[1][1:3]  # fold 0 is the first case


def test_the_verdict_says_no_more_than_interval_and_test(ct, photos, ct_page, photo_page):
    assert "2 cases are too few to tell: the test needs 6." in Parsed(ct_page).text
    row = photos.differences.query("metric == 'dice' and organ == '' and model == @C").iloc[0]
    text = Parsed(photo_page).text
    assert row["low"] > 0  # the fixture's models do differ
    assert "Over these cases Dice is better: the interval excludes 0." in text
    assert f"95 % interval +{row['low'] * 100:.2f} to +{row['high'] * 100:.2f}" in text
    assert f"better in {row['better']}, worse in {row['worse']}, equal in 0 of 42 cases" in text


@pytest.mark.parametrize(
    ("metric", "mean", "low", "high", "p", "says"),
    [
        ("dice", 0.01, -0.01, 0.03, 0.3, "These cases show no difference in Dice: the interval holds 0."),
        ("dice", 0.01, -0.01, 0.03, 0.04, "No clear difference in Dice: p is below 0.05, but the interval holds 0."),
        ("dice", 0.01, 0.001, 0.03, 0.06, "No clear difference in Dice: the interval excludes 0, but p is not"),
        ("dice", -0.01, -0.03, -0.001, 0.01, "Over these cases Dice is worse"),
        ("hd95_mm", -1, -3, -0.1, 0.01, "Over these cases HD95 is better"),
        ("hd95_mm", 1, 0.1, 3, 0.01, "Over these cases HD95 is worse"),
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


def test_noise_is_said_where_it_is_known(ct, ct_page, photo_page):
    text = Parsed(ct_page).text
    for sentence in ct.noise["sentence"]:
        assert re.sub(r"\s+", " ", sentence) in text
    assert "Is that more than chance between trainings? Dice, " in text
    assert "no repeated trainings" not in text
    assert "no repeated trainings" in Parsed(photo_page).text


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
    assert "Table of what the models cost" not in page.tables
    assert not any(label.endswith("of the folds") for label in page.tables)
    assert "Pseudo Dice" not in page.text
    assert page.tables["NSD 1mm of all cases"][1][1:] == [DASH, DASH, DASH]
    assert "2 held-out cases, predictions as they were given" in page.text
    assert "ensemble" not in page.text


@pytest.mark.parametrize(
    ("kind", "folds", "given", "expected"),
    [
        ("validation", (0, 1), (), "2 validation cases of folds 0, 1, each predicted by the model of its own fold"),
        ("test", (0, 1), (), "2 held-out cases, predicted by the ensemble of folds 0, 1"),
        ("test", (0,), (), "2 held-out cases, predicted by the model of fold 0"),
        ("test per fold", (0, 1), (), "2 held-out cases, predicted by each model of folds 0, 1 alone"),
        ("test", (0, 1), (A, B), "2 held-out cases, predictions as they were given"),
        ("test", (), (A, B), "2 held-out cases, predictions as they were given"),
        ("test", (0, 1), (B,), f"2 held-out cases, predicted by the ensemble of folds 0, 1 ({B}: as given)"),
    ],
)
def test_who_predicted_is_said_as_it_was(ct, kind, folds, given, expected):
    models = tuple(
        dataclasses.replace(model, folds=folds, checkpoint="predictions were given" if model.name in given else "x.pth")
        for model in ct.models
    )
    assert what_was_predicted(kind, models, 2) == expected
    small = dataclasses.replace(ct, kind=kind, models=models, metrics=("dice",), pictures=(), sentences=())
    facts = re.search(r'<p class="facts">(.*?)</p>', render_page(small)).group(1)
    assert html.unescape(facts) == f"{expected} · 3d_fullres · nnUNetPlans"


def test_an_invented_organ_is_in_the_verdict_and_in_the_case(ct):
    """The label of the first case has no liver: A leaves it empty, B invents it."""
    scores = ct.scores.copy()
    here = (scores["case"] == "phantom_001") & (scores["organ"] == "liver")
    metrics = list(ct.metrics)
    scores.loc[here & (scores["model"] == A), metrics] = math.nan
    scores.loc[here & (scores["model"] == B), metrics] = [math.inf if m == "hd95_mm" else 0.0 for m in metrics]
    names = [A, B]
    changed = dataclasses.replace(
        ct,
        metrics=("dice",),
        scores=scores,
        differences=paired_differences(scores, ["dice"], names, ct.labels.names),
        summary=summarise(scores, ["dice"], names, per_fold=False),
        pictures=(),
    )
    filled = scores.copy()
    filled.loc[here & (filled["model"] == A), "dice"] = 1.0
    of_case = filled.groupby(["model", "case", "organ"])["dice"].mean().groupby(["model", "case"]).mean() * 100
    gains = of_case[B] - of_case[A]
    page = Parsed(render_page(changed))
    assert [row[3] for row in page.tables["Dice of all cases"][1:]] == [f"{g:+.2f}".replace("-", MINUS) for g in gains]
    assert [row[3] for row in case_table(changed, "dice").rows] == [f"{gain:+.2f}" for gain in gains]
    overview = page.tables["Table of all models"]
    shown = f"{gains.mean():+.2f}".replace("-", MINUS)
    assert f"{shown} points" in page.text
    assert overview[3][2] != shown
    assert "The differences in this table are those of its means; the paired ones above" in page.text


def test_a_difference_of_percentages_is_in_points(ct, ct_page):
    assert overview_table(ct).head[1:3] == ("Dice (%)", "difference (points)")
    assert overview_table(ct).head[-2:] == ("HD95 (mm)", "difference (mm)")
    assert difference_table(ct, "dice", B).title == f"Dice (points): {B} minus {A}"
    assert case_table(ct, "nsd_1mm").head[-1] == f"{B}: difference (points)"
    noise = noise_table(ct)
    assert [row[1] for row in noise.rows] == ["Dice (points)", "NSD 1mm (points)", "NSD 2mm (points)", "HD95 (mm)"]
    p = f"{ct.noise['p_noise'].iloc[0]:.3f}".replace("0.000", "< 0.001")
    assert noise.rows[0][4] == p
    text = markdown(ct) + Parsed(ct_page).text
    assert not re.search(r"difference (of|is) [+-][\d.]+ %", text)
    assert "difference (points)" in Parsed(ct_page).tables["Dice of all cases"][0]
    assert "difference (mm)" in Parsed(ct_page).tables["HD95 of the folds"][0]


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


def test_every_figure_and_table_says_what_it_is(ct, ct_page):
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
    assert evil in [row[0] for row in parsed.tables["Dice of all cases"]]


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
