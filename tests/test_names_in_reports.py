"""Names of cases and organs with everything that a file system and a JSON file allow, in every report."""

import csv
import dataclasses
import io
import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from comparison_example import make_comparison

from nnunet_dtc.study.comparison.markdown import markdown
from nnunet_dtc.study.comparison.output_folder import write_comparison
from nnunet_dtc.study.comparison.page import render_page
from nnunet_dtc.study.comparison.terminal import terminal_tables
from nnunet_dtc.study.texts import markdown_text, visible, xml_text

A, B = "nnUNetTrainer", "nnUNetTrainerDTC"
NASTY = "a\x07\x1b[31m\n\t\"'<b>&amp;|$x_1$\u202e\u2028\x7f\x85\ufffe\udcff"
SHOWN = "a\\x07\\x1b[31m\\n\\t\"'<b>&amp;|$x_1$\\u202e\\u2028\\x7f\\x85\\ufffe\\udcff"


@pytest.fixture(scope="module")
def nasty(tmp_path_factory):
    """A comparison whose first organ and first case have such a name."""
    folder = tmp_path_factory.mktemp("nasty")
    comparison = make_comparison(folder, {A: 0.6, B: 0.5}, cases=2, epochs=5)
    organ, case = comparison.labels.names[0], comparison.pictures[0].case
    names = {organ: f"organ {NASTY}", case: f"case {NASTY}"}
    organs = (dataclasses.replace(comparison.labels.organs[0]), *comparison.labels.organs[1:])
    object.__setattr__(organs[0], "name", names[organ])
    labels = dataclasses.replace(comparison.labels)
    object.__setattr__(labels, "organs", organs)  # past the check of names, as if another tool had written them
    picture = comparison.pictures[0]
    return dataclasses.replace(
        comparison,
        metrics=("dice",),
        dataset=f"Dataset001_{NASTY}",
        labels=labels,
        scores=comparison.scores.replace({"organ": names, "case": names}),
        differences=comparison.differences.replace({"organ": names}),
        sentences=(f"A sentence about {names[case]}.",),
        pictures=(
            dataclasses.replace(
                picture,
                case=names[case],
                organ_dice={m: {names.get(o, o): v for o, v in d.items()} for m, d in picture.organ_dice.items()},
            ),
        ),
    )


class Cells(HTMLParser):
    """The texts of all cells, and all tags."""

    def __init__(self, page):
        super().__init__()
        self.cells, self.tags, self.inside = [], set(), False
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.inside = tag in ("td", "th")
        if self.inside:
            self.cells.append("")

    def handle_endtag(self, tag):
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data):
        if self.inside:
            self.cells[-1] += data


def test_the_page_shows_them_and_its_drawings_are_xml(nasty):
    page = render_page(nasty)
    page.encode("utf-8")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\u2028\ufffe\ud800-\udfff]", page)
    drawings = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(drawings) == 4
    texts = ["".join(element.itertext()) for drawing in drawings for element in ElementTree.fromstring(drawing).iter()]
    assert any(re.fullmatch(r"organ a\\x07.*…x85\\ufffe\\udcff", text) for text in texts)  # shortened
    cells = Cells(page)
    assert f"organ {SHOWN}".replace("_", " ") in cells.cells
    assert f"case {SHOWN}" in cells.cells
    assert "b" not in cells.tags


def test_every_file_can_be_written_and_read_again(nasty, tmp_path):
    written = {file.name: file.read_text(encoding="utf-8") for file in write_comparison(nasty, tmp_path)}
    content = json.loads(written["comparison.json"])
    assert f"case {SHOWN}" in [entry["case"] for entry in content["cases"]]
    assert f"organ {SHOWN}" in content["labels"]
    rows = list(csv.DictReader(io.StringIO(written["scores.csv"])))
    assert len(rows) == len(nasty.scores)
    assert {row["case"] for row in rows} >= {f"case {SHOWN}"}
    for text in written.values():
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\u2028\ufffe]", text)


def test_rows_of_markdown_tables_stay_rows(nasty):
    """Every row has as many cells as its head, and nothing is HTML."""
    columns = None
    for line in markdown(nasty).splitlines():
        if not line.startswith("|"):
            columns = None
            continue
        cells = len(re.findall(r"(?<!\\)\|", line)) - 1
        columns = columns or cells
        assert cells == columns, line
    assert "organ a\\x07" in markdown(nasty)
    assert not re.search(r"(?<!\\)<b>", markdown(nasty))


def test_tables_of_the_terminal_have_no_control_characters(nasty):
    texts = [cell for table in terminal_tables(nasty) for column in table.columns for cell in column.cells]
    assert any("organ a\\x07" in text for text in texts)
    assert all("\x1b" not in text and "\n" not in text.replace("\n(", "") for text in texts)  # differences are below


def test_a_figure_alone_is_xml_too():
    from nnunet_dtc.study.figures.style import inline_svg, new_figure

    figure = new_figure(2, 2)
    figure.text(0.5, 0.5, "a\x07b\nc")
    drawing = inline_svg(figure, "key", "label \x0c")
    assert "a\\x07b" in drawing
    ElementTree.fromstring(xml_text(drawing))


def test_what_can_be_printed_stays():
    text = "Übergröße 肝臓 \u05db\u05d1\u05d3 x\u00a0y_1 (a|b)"
    assert visible(text) == text == xml_text(text)
    assert markdown_text("p < 0.001 & q") == "p < 0.001 & q"
    assert visible(visible(NASTY)) == visible(NASTY) == SHOWN


def test_the_scores_of_evaluate_are_a_csv_whatever_the_names(tmp_path):
    """A case name with a line break and quotes, end to end."""
    import SimpleITK as sitk
    from typer.testing import CliRunner

    from nnunet_dtc.cli import app

    name = 'case\n"x",y\x07'
    for folder in ("p", "l"):
        (tmp_path / folder).mkdir()
        array = np.zeros((3, 4, 5), np.uint8)
        array[1, 1:3, 1:4] = 1
        sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / folder / f"{name}.nii.gz"))
    done = CliRunner().invoke(
        app, ["evaluate", str(tmp_path / "p"), str(tmp_path / "l"), "--labels", "a=1", "-np", "1"]
    )
    assert done.exit_code == 0, done.output
    with (tmp_path / "p" / "metrics.csv").open(newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert row["case"] == 'case\\n"x",y\\x07'
    assert float(row["dice"]) == 1
