"""Rules for the content of files, and the error that names the key, the rule and the value where one is broken.

A rule is a function of a value and of the path of its key. Larger rules are made from smaller ones: `object_with`,
`mapping_of`, `list_of`, `none_or` and `one_or_several`. :mod:`nnunet_dtc.plugin.nnunet_files` has the rules for
nnU-Net's files.
"""

from __future__ import annotations

import itertools
import json
import numbers
import os
import re
import reprlib
import unicodedata
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Any

from nnunet_dtc.errors import NnunetDtcError

__all__ = [
    "MAX_NUMBER",
    "BrokenRuleError",
    "MalformedFileError",
    "Rule",
    "an_object",
    "anything",
    "broken",
    "check_content",
    "check_depth",
    "check_plain_name",
    "is_integer",
    "is_number",
    "is_printable",
    "join",
    "key_text",
    "list_of",
    "mapping_of",
    "none_or",
    "object_with",
    "one_or_several",
    "plain_name",
    "read_json",
    "satisfies",
    "shown",
]

MAX_NUMBER = 1e300
_MAX_NAME = 200  # characters: names become folders, whose names have at most 255 bytes
_MAX_DEPTH = 30
_TOO_DEEP = "{origin}: it is nested more deeply than nnU-Net's files are"

Rule = Callable[[Any, str], None]
"""A function that takes a value and the path of its key, and raises BrokenRuleError."""


class MalformedFileError(NnunetDtcError):
    """A file that is not as nnU-Net writes it. The message gives the file, the key, the rule and the value."""


class BrokenRuleError(Exception):
    """Raised by rules, which do not know the file; becomes a MalformedFileError."""


def read_json(file: Path) -> Any:
    """Read a JSON file.

    Raises:
        MalformedFileError: the file is missing, cannot be read, or is not JSON.
    """
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MalformedFileError(f"there is no {file}") from None
    except (OSError, ValueError) as error:
        raise MalformedFileError(f"cannot read {file}: {error}") from error
    except RecursionError:
        raise MalformedFileError(_TOO_DEEP.format(origin=file)) from None
    check_depth(content, file)
    return content


def check_plain_name(name: Any, what: str) -> None:
    """Check a name that becomes the name of a file or folder, or a part of it.

    Args:
        name: the name.
        what: what it is the name of, for messages.

    Raises:
        MalformedFileError: it is not text, is empty or too long, has path separators or unprintable characters, or
            starts with a dot or a hyphen.
    """
    try:
        plain_name(name, what)
    except BrokenRuleError as error:
        raise MalformedFileError(str(error)) from None


def is_printable(text: str) -> bool:
    """Whether a text can be shown unchanged.

    It must not contain line breaks, control or direction characters, or bytes that are not UTF-8 (which Python reads as
    surrogates). All kinds of spaces and the joiners of some scripts are allowed.

    Example:
        >>> is_printable("spleen"), is_printable("spl\\x1been")
        (True, False)
    """
    return all(
        character.isprintable() or character in "\u200c\u200d" or unicodedata.category(character) == "Zs"
        for character in text
    )


def shown(value: Any) -> str:
    """A value as shortened JSON, without characters that a terminal would interpret.

    Example:
        >>> shown({"spacing": [3, None]})
        '{"spacing": [3, null]}'
    """
    try:
        text = json.dumps(_beginning(value))
    except (TypeError, ValueError):
        text = ascii(reprlib.repr(value))
    return text if len(text) <= 80 else f"{text[:77]}..."


def _beginning(value: Any, depth: int = 4) -> Any:
    """The part of a value that a message can show. A file may contain a list many times, or within itself."""
    if not isinstance(value, (dict, list, tuple)):
        return value
    if not depth:
        return "..."
    if isinstance(value, dict):
        return {key: _beginning(item, depth - 1) for key, item in itertools.islice(value.items(), 40)}
    return [_beginning(item, depth - 1) for item in itertools.islice(value, 40)]


def check_depth(content: Any, origin: object) -> None:
    """Refuse content that is nested deeper than nnU-Net's files: copying it would fail, and it may contain itself."""
    level = [content]
    for _ in range(_MAX_DEPTH):
        next_level = (
            item
            for part in level
            if isinstance(part, (dict, list, tuple))
            for item in (part.values() if isinstance(part, dict) else part)
            if isinstance(item, (dict, list, tuple))
        )
        level = list({id(item): item for item in next_level}.values())  # each once: a pickle can repeat an object
        if not level:
            return
    raise MalformedFileError(_TOO_DEEP.format(origin=origin))


def check_content(rule: Rule, value: Any, path: str, origin: object) -> None:
    """Apply a rule to the content of a file.

    Args:
        rule: the rule.
        value: the content, or a part of it.
        path: where this part is in the file, such as ``configurations.2d``; empty for the whole content.
        origin: the file, for messages.

    Raises:
        MalformedFileError: the rule is broken.
    """
    try:
        rule(value, path)
    except BrokenRuleError as error:
        raise MalformedFileError(f"{origin}: {error}") from None


def join(path: str, key: str) -> str:
    """The path of a key of the object at a path."""
    return f"{path}.{key}" if path else key


def key_text(key: Any) -> str:
    """A key as part of a path: unchanged if it is a plain word, else as JSON."""
    return key if isinstance(key, str) and re.fullmatch(r"[\w-]+", key) else shown(key)


def broken(path: str, rule: str, value: Any) -> BrokenRuleError:
    """The error for a value that is not what a rule says."""
    return BrokenRuleError(f"{path or 'its content'} must be {rule}, got {shown(value)}")


def satisfies(rule: str, holds: Callable[[Any], bool]) -> Rule:
    """A rule for values of which a function returns True; `rule` describes them, after "must be"."""

    def check(value: Any, path: str) -> None:
        if not holds(value):
            raise broken(path, rule, value)

    return check


def list_of(of: Rule, rule: str, lengths: Container[int] | None = None) -> Rule:
    """A rule for lists, perhaps of certain lengths, with a rule for each item."""

    def check(value: Any, path: str) -> None:
        if not isinstance(value, (list, tuple)) or (lengths is not None and len(value) not in lengths):
            raise broken(path, rule, value)
        for index, item in enumerate(value):
            of(item, f"{path}[{index}]")

    return check


def object_with(required: Mapping[str, Rule], optional: Mapping[str, Rule] | None = None) -> Rule:
    """A rule for objects that have certain keys. Other keys may have any value."""

    def check(value: Any, path: str) -> None:
        an_object(value, path)
        if missing := [key for key in required if key not in value]:
            raise BrokenRuleError(f"{path or 'it'} has no {', '.join(missing)}")
        for key, rule in required.items():
            rule(value[key], join(path, key))
        for key, rule in (optional or {}).items():
            if key in value:
                rule(value[key], join(path, key))

    return check


def mapping_of(key_rule: Rule, value_rule: Rule, rule: str, empty: bool = False) -> Rule:
    """A rule for objects with any keys, with a rule for each key and one for each value."""

    def check(value: Any, path: str) -> None:
        if not isinstance(value, dict) or not (value or empty):
            raise broken(path, rule, value)
        for key, item in value.items():
            key_rule(key, f"a name in {path}")
            value_rule(item, join(path, key_text(key)))

    return check


def none_or(rule: Rule) -> Rule:
    """A rule for values that may be null."""

    def check(value: Any, path: str) -> None:
        if value is not None:
            rule(value, path)

    return check


def one_or_several(single: Rule, several: Rule) -> Rule:
    """A rule for values that may be a list or a single value."""

    def check(value: Any, path: str) -> None:
        (several if isinstance(value, (list, tuple)) else single)(value, path)

    return check


def is_integer(value: Any) -> bool:
    """Whether it is an integer and not a truth value, which Python also counts as one."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether it is a real number that fits into a float; NaN and infinity are allowed."""
    if isinstance(value, numbers.Integral):
        return not isinstance(value, bool) and abs(value) < MAX_NUMBER
    return isinstance(value, numbers.Real)


def an_object(value: Any, path: str) -> None:
    """A rule for objects, which JSON writes in braces."""
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise broken(path, "an object", value)


def plain_name(value: Any, path: str) -> None:
    """The rule of `check_plain_name`."""
    plain = isinstance(value, str) and 0 < len(value) <= _MAX_NAME and is_printable(value)
    if not plain or value[0] in ".-" or any(part in value for part in ("/", "\\", ":", os.sep)):
        rule = "a plain name (printable characters, no separator of paths, no dot or hyphen at the start)"
        raise broken(path, rule, value)


def anything(value: Any, path: str) -> None:
    """A rule that accepts any value."""
