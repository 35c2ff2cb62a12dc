"""Escape the names of files and organs, so that reports stay readable whatever characters these have."""

from __future__ import annotations

import re

from nnunet_dtc.plugin.file_rules import is_printable

__all__ = ["markdown_text", "visible", "xml_text"]

_NOT_IN_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def visible(text: str) -> str:
    r"""Replace characters that cannot be printed by escapes.

    They are line breaks (``\n``), control characters (``\x07``), marks of the writing direction (``\u202e``) and bytes
    of file names that are not UTF-8 (``\udcff``).
    """
    return "".join(character if is_printable(character) else _escape(character) for character in text)


def xml_text(text: str) -> str:
    """Replace characters that XML does not allow by escapes. Line breaks are allowed."""
    return _NOT_IN_XML.sub(lambda found: _escape(found[0]), text)


def markdown_text(text: str) -> str:
    """Apply `visible`, and escape what Markdown would take for HTML or for the border of a table's cell."""
    text = visible(text).replace("|", "\\|")
    return re.sub(r"<(?=[A-Za-z/!?])|&(?=#?\w+;)", lambda found: "\\" + found[0], text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
