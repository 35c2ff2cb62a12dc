"""The style of plots, and how they are embedded in an HTML page, which can replace the colours in its dark mode.

The colours of models are those of Okabe and Ito or close to them, so that most people with a colour vision deficiency
can distinguish them. Each model also has its own marker. The first model, which the others are compared with, is grey.
"""

from __future__ import annotations

import base64
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nnunet_dtc.study.texts import xml_text

__all__ = [
    "GRID",
    "INK",
    "MUTED",
    "PAPER",
    "VARIABLES",
    "inline_svg",
    "jpeg_uri",
    "legend_above",
    "named_rows",
    "new_figure",
    "plain_axes",
    "series",
    "style",
]

INK, MUTED, GRID, PAPER = "#1f2329", "#59626e", "#d9dee4", "#fdfdfe"

COLOURS = ("#666e7a", "#0072b2", "#d55e00", "#009e73", "#aa4499", "#a87a00", "#4b4fc4", "#c94b5c")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")

VARIABLES = {INK: "ink", MUTED: "muted", GRID: "line", PAPER: "paper"} | {
    colour: f"c{number}" for number, colour in enumerate(COLOURS)
}
"""Colour to the name of the CSS variable that replaces it in `inline_svg`."""

_SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",  # text remains text: searchable, accessible and in the page's font
    "svg.hashsalt": "nnunet_dtc",  # the same bytes for the same figure
    "text.parse_math": False,  # the name of a case may be a$1$
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.facecolor": "none",
    "axes.prop_cycle": mpl.cycler(color=COLOURS),
}

_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"


@contextmanager
def style() -> Iterator[None]:
    """Create and save figures in this style; matplotlib's own settings are restored afterwards."""
    with mpl.rc_context(_SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a browser has more fonts than matplotlib
        yield


def series(number: int) -> tuple[str, str]:
    """Colour and marker of a model; 0 is the model that the others are compared with.

    Example:
        >>> series(1)
        ('#0072b2', 's')
    """
    return COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]


def new_figure(width: float, height: float) -> Figure:
    """A transparent figure of this size in inches, with matplotlib's constrained layout."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    return figure


def plain_axes(ax: Axes, grid: str | None = None) -> None:
    """Keep only the lower and left spine, and draw grid lines for one axis ("x" or "y") if given."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(length=3)
    if grid:
        ax.grid(axis=grid, color=GRID, linewidth=0.8)
        ax.set_axisbelow(True)


def named_rows(ax: Axes, places: Sequence[float], names: Sequence[str]) -> None:
    """Label the rows of a horizontal plot, which has no line on its left side."""
    plain_axes(ax, "x")
    ax.set_yticks(places, names)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)


def legend_above(figure: Figure) -> None:
    """A legend with one entry per line above the axes."""
    figure.legend(loc="outside upper left", frameon=False, ncol=1, fontsize=9)


def inline_svg(figure: Figure, key: str, label: str) -> str:
    """A figure as an `<svg>` element for an HTML page.

    All of its ids begin with `key`, the colours of this style are CSS variables with the colours as fallback, and it
    has no references to anything outside it.

    Args:
        figure: the figure.
        key: unique in the page; letters, digits and `-`.
        label: description of the figure for screen readers.
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9-]*", key):
        raise ValueError(f"key must be letters, digits and -, got {key!r}")
    buffer = io.BytesIO()
    with style():
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    root = ElementTree.fromstring(xml_text(buffer.getvalue().decode("utf-8")))
    for child in [child for child in root if child.tag == f"{{{_SVG}}}metadata"]:
        root.remove(child)
    for element in root.iter():
        if "id" in element.attrib:
            element.set("id", f"{key}-{element.get('id')}")
        for name, value in element.attrib.items():
            if name == f"{{{_XLINK}}}href" or name == "href":
                value = re.sub(r"^#", f"#{key}-", value)
            if name == "style" or name.endswith(("clip-path", "fill", "stroke")):
                value = re.sub(r"url\(#", f"url(#{key}-", value)
                value = re.sub(r"#[0-9a-f]{6}\b", _variable, value)
            element.set(name, value)
        if element.tag == f"{{{_SVG}}}style" and element.text:  # restrict matplotlib's rule for all elements to these
            element.text = element.text.replace("*{", f"#{key} *{{")
    width = float(root.get("width", "0").removesuffix("pt")) * 4 / 3  # CSS pixels
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("id", key)
    root.set("role", "img")
    root.set("aria-label", label)
    root.set("style", f"max-width:{width:.0f}px")
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    return ElementTree.tostring(root, encoding="unicode")


def jpeg_uri(figure: Figure, width: int, quality: int = 84) -> str:
    """A figure of images as the data URI of a JPEG, `width` pixels wide."""
    buffer = io.BytesIO()
    options = {"quality": quality, "optimize": True}
    with style():
        figure.savefig(
            buffer,
            format="jpg",
            dpi=width / figure.get_figwidth(),
            pil_kwargs=options,
            facecolor=figure.get_facecolor(),
        )
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _variable(match: re.Match[str]) -> str:
    colour = match.group(0)
    name = VARIABLES.get(colour)
    return f"var(--{name},{colour})" if name else colour
