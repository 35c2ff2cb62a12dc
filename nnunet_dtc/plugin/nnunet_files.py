"""Checks of nnU-Net's files: plans, dataset.json, summary.json, splits_final.json, and the contents of checkpoints.

Files are checked once, where they are read, so that later code can rely on their structure. An error names the file,
the path of the key, the rule and the value. The content itself is not changed. The rules accept everything that nnU-Net
2.0 to 2.8 writes, including plans of the old format (without ``architecture``), regions, the ignore label, and
``modality`` instead of ``channel_names``. Keys without a rule may have any value.
"""

from __future__ import annotations

import itertools
import json
import math
import numbers
import os
import re
import reprlib
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nnunet_dtc.errors import NnunetDtcError

__all__ = [
    "MAX_LABEL",
    "MalformedFileError",
    "check_checkpoint",
    "check_dataset_json",
    "check_file_ending",
    "check_labels",
    "check_plain_name",
    "check_plans",
    "check_splits",
    "check_summary",
    "is_printable",
    "label_value",
    "label_values_of",
    "read_json",
    "resolved_configuration",
    "shown",
]

MAX_LABEL = 65_535
"""The largest label value: nnU-Net writes segmentations of 8 or 16 bits."""

_MAX_COUNT = 1_000_000  # voxels along an axis, cases in a batch, features: more is a mistake
_MAX_LAYERS = 1000  # stages, blocks and convolutions of a stage, voxels along an axis of a kernel: more is a mistake
_MAX_NAME = 200  # characters: names become folders, whose names have at most 255 bytes
_MAX_NUMBER = 1e300
_MAX_DEPTH = 30
_TOO_DEEP = "{origin}: it is nested more deeply than nnU-Net's files are"
_OLD_ARCHITECTURES = ("PlainConvUNet", "ResidualEncoderUNet")

Rule = Callable[[Any, str], None]
"""A function that takes a value and the path of its key, and raises _BrokenRuleError."""


class MalformedFileError(NnunetDtcError):
    """A file that is not as nnU-Net writes it. The message gives the file, the key, the rule and the value."""


class _BrokenRuleError(Exception):
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
    _check_depth(content, file)
    return content


def check_plans(
    plans: Any, origin: object, configuration: str | None = None, path: str = "", needed: Sequence[str] = ()
) -> None:
    """Check the structure of plans.

    Args:
        plans: the content of the file.
        origin: the file, for messages.
        configuration: the configuration that is used and must be complete. Others are not checked.
        path: where the plans are in the file, for messages.
        needed: keys that this configuration must have besides patch size, batch size and architecture.

    Raises:
        MalformedFileError: the plans are not as nnU-Net writes them.
    """
    _check_depth(plans, origin)
    _apply(_PLANS, plans, path, origin)
    if configuration is not None:
        resolved = resolved_configuration(plans, configuration, origin, path)
        where = _join(path, f"configurations.{configuration}")
        _apply(_object(dict.fromkeys(needed, _anything)), resolved, where, origin)
        _apply(_CONFIGURATION, resolved, where, origin)
        _apply(_network, resolved, where, origin)
        _apply(_same_axes, resolved, where, origin)


def resolved_configuration(
    plans: Mapping[str, Any], configuration: str, origin: object, path: str = ""
) -> dict[str, Any]:
    """A configuration of plans with what it inherits, as nnU-Net resolves it.

    Args:
        plans: the content of the file.
        configuration: name of the configuration.
        origin: the file, for messages.
        path: where the plans are in the file, for messages.

    Raises:
        MalformedFileError: there is no such configuration, or it inherits from a missing one or from itself.
    """
    configurations = plans["configurations"]
    chain: list[str] = []
    name: Any = configuration
    while True:
        where = _join(path, f"configurations.{chain[-1]}.inherits_from") if chain else ""
        if not isinstance(name, str) or name not in configurations:
            there = ", ".join(map(_key, configurations)) or "none"
            if chain:
                raise MalformedFileError(f"{origin}: {where} must be a configuration ({there}), got {shown(name)}")
            raise MalformedFileError(f"{origin}: there is no configuration {_key(name)}; the plans have: {there}")
        if name in chain:
            cycle = " -> ".join((*chain, name))
            raise MalformedFileError(f"{origin}: {where} must not lead back to the configuration itself, got {cycle}")
        chain.append(name)
        _apply(_an_object, configurations[name], _join(path, f"configurations.{name}"), origin)
        if "inherits_from" not in configurations[name]:
            break
        name = configurations[name]["inherits_from"]
    resolved: dict[str, Any] = {}
    for name in reversed(chain):
        resolved |= configurations[name]
    return resolved


def check_dataset_json(content: Any, origin: object, path: str = "") -> None:
    """Check the structure of dataset.json: labels, channels and file ending.

    Args:
        content: the content of the file.
        origin: the file, for messages.
        path: where the content is in the file, for messages.

    Raises:
        MalformedFileError: the content is not as nnU-Net v2 needs it.
    """
    _apply(_an_object, content, path, origin)
    check_labels(content, origin, path)
    _apply(_DATASET, content, path, origin)
    channels = "modality" if "modality" in content and "channel_names" not in content else "channel_names"
    _apply(_object({channels: _CHANNELS}), content, path, origin)


def check_labels(content: Any, origin: object, path: str = "") -> None:
    """Check only the labels of dataset.json, which is all that evaluation needs.

    Args:
        content: the content of the file.
        origin: the file, for messages.
        path: where the content is in the file, for messages.

    Raises:
        MalformedFileError: the labels are not as nnU-Net v2 needs them. If they have nnU-Net v1's order, the message
            says so.
    """
    _check_depth(content, origin)
    _apply(_an_object, content, path, origin)
    labels = content.get("labels")
    if isinstance(labels, dict) and labels and all(re.fullmatch(r"\d+", name) for name in labels):
        names = [name for name in labels.values() if isinstance(name, str) and not name.isdecimal()]
        if names:
            number, name = next(item for item in labels.items() if item[1] == names[0])
            raise MalformedFileError(
                f"{origin}: {_join(path, 'labels')} are in the order of nnU-Net v1, number to name "
                f"({shown(number)}: {shown(name)}), and nnU-Net v2 has name to number ({shown(name)}: {number}): this "
                "is a dataset.json of nnU-Net v1, which nnUNetv2_convert_old_nnUNet_dataset converts"
            )
    _apply(_object({"labels": _LABELS}), content, path, origin)
    if "ignore" in content["labels"]:  # nnU-Net requires an integer here
        rule = _value(f"an integer from 0 to {MAX_LABEL}", _is_integer)
        _apply(rule, content["labels"]["ignore"], _join(path, "labels.ignore"), origin)


def check_file_ending(ending: Any, origin: object) -> None:
    """Check the ``file_ending`` of dataset.json.

    Raises:
        MalformedFileError: it is not an ending of file names.
    """
    _apply(_file_ending, ending, "file_ending", origin)


def check_splits(content: Any, origin: object) -> None:
    """Check splits_final.json: a list of folds, each with the names of its cases.

    Raises:
        MalformedFileError: the content is something else.
    """
    _apply(
        _list(_object({"val": _CASES}, {"train": _CASES}), "a list of folds with train and val"), content, "", origin
    )


def check_summary(content: Any, origin: object) -> None:
    """Check the part of nnU-Net's summary.json that this package reads: the voxels of each label in each case.

    Raises:
        MalformedFileError: the content is something else.
    """
    _apply(_object({"metric_per_case": _list(_SUMMARY_CASE, "a list of cases")}), content, "", origin)


def label_value(value: Any) -> int | None:
    """The integer that a label value in dataset.json stands for, or None. nnU-Net also accepts 1.0 and "1".

    Example:
        >>> label_value("7"), label_value(2.0), label_value(2.5)
        (7, 2, None)
    """
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value):
        return int(value)
    if _is_integer(value) or (isinstance(value, float) and value.is_integer()):
        return int(value)
    return None


def label_values_of(key: str) -> frozenset[int]:
    """The label values of a key in summary.json, such as "1" or, for a region, "(1, 2)".

    Example:
        >>> sorted(label_values_of("(1, 12)"))
        [1, 12]
    """
    return frozenset(int(value) for value in re.findall(r"\d+", key))


def check_checkpoint(content: Any, origin: object) -> None:
    """Check the content of a checkpoint of nnU-Net's trainers, with the plans and the dataset.json in it.

    Raises:
        MalformedFileError: the content is not as nnU-Net writes it.
    """
    missing = [key for key in ("network_weights", "init_args", "trainer_name") if not _has(content, key)]
    if missing:
        raise MalformedFileError(
            f"{origin}: it is no checkpoint of an nnU-Net v2 trainer, it has no {', '.join(missing)}"
        )
    _apply(_CHECKPOINT, content, "", origin)
    arguments = content["init_args"]
    check_plans(arguments["plans"], origin, arguments["configuration"], "init_args.plans")
    check_dataset_json(arguments["dataset_json"], origin, "init_args.dataset_json")


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
        _plain_name(name, what)
    except _BrokenRuleError as error:
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


def _check_depth(content: Any, origin: object) -> None:
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


def _has(content: Any, key: str) -> bool:
    return isinstance(content, dict) and key in content


def _apply(rule: Rule, value: Any, path: str, origin: object) -> None:
    try:
        rule(value, path)
    except _BrokenRuleError as error:
        raise MalformedFileError(f"{origin}: {error}") from None


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _key(key: Any) -> str:
    """A key as part of a path: unchanged if it is a plain word, else as JSON."""
    return key if isinstance(key, str) and re.fullmatch(r"[\w-]+", key) else shown(key)


def _broken(path: str, rule: str, value: Any) -> _BrokenRuleError:
    return _BrokenRuleError(f"{path or 'its content'} must be {rule}, got {shown(value)}")


def _value(rule: str, holds: Callable[[Any], bool]) -> Rule:
    def check(value: Any, path: str) -> None:
        if not holds(value):
            raise _broken(path, rule, value)

    return check


def _list(of: Rule, rule: str, lengths: Iterable[int] | None = None) -> Rule:
    def check(value: Any, path: str) -> None:
        if not isinstance(value, (list, tuple)) or (lengths is not None and len(value) not in lengths):
            raise _broken(path, rule, value)
        for index, item in enumerate(value):
            of(item, f"{path}[{index}]")

    return check


def _object(required: Mapping[str, Rule], optional: Mapping[str, Rule] | None = None) -> Rule:
    def check(value: Any, path: str) -> None:
        _an_object(value, path)
        if missing := [key for key in required if key not in value]:
            raise _BrokenRuleError(f"{path or 'it'} has no {', '.join(missing)}")
        for key, rule in required.items():
            rule(value[key], _join(path, key))
        for key, rule in (optional or {}).items():
            if key in value:
                rule(value[key], _join(path, key))

    return check


def _each(key_rule: Rule, value_rule: Rule, rule: str, empty: bool = False) -> Rule:
    def check(value: Any, path: str) -> None:
        if not isinstance(value, dict) or not (value or empty):
            raise _broken(path, rule, value)
        for key, item in value.items():
            key_rule(key, f"a name in {path}")
            value_rule(item, _join(path, _key(key)))

    return check


def _or_none(rule: Rule) -> Rule:
    def check(value: Any, path: str) -> None:
        if value is not None:
            rule(value, path)

    return check


def _single_or(single: Rule, several: Rule) -> Rule:
    """A rule for values that may be a list or a single value."""

    def check(value: Any, path: str) -> None:
        (several if isinstance(value, (list, tuple)) else single)(value, path)

    return check


def _is_integer(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    """Whether it is a real number that fits into a float; NaN and infinity are allowed."""
    if isinstance(value, numbers.Integral):
        return not isinstance(value, bool) and abs(value) < _MAX_NUMBER
    return isinstance(value, numbers.Real)


def _an_object(value: Any, path: str) -> None:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise _broken(path, "an object", value)


def _plain_name(value: Any, path: str) -> None:
    plain = isinstance(value, str) and 0 < len(value) <= _MAX_NAME and is_printable(value)
    if not plain or value[0] in ".-" or any(part in value for part in ("/", "\\", ":", os.sep)):
        rule = "a plain name (printable characters, no separator of paths, no dot or hyphen at the start)"
        raise _broken(path, rule, value)


def _anything(value: Any, path: str) -> None:
    """A rule that accepts any value."""


def _same_axes(configuration: Mapping[str, Any], path: str) -> None:
    """Patch size, spacing, kernels and strides must have one value for each axis."""
    axes = len(configuration["patch_size"])
    lists = {"spacing": configuration.get("spacing")}
    arguments = configuration.get("architecture", {}).get("arch_kwargs", {})
    for key, of in (("strides", arguments), ("kernel_sizes", arguments), ("pool_op_kernel_sizes", configuration)):
        stages = of.get(key)
        if isinstance(stages, (list, tuple)):
            inner = key if of is configuration else f"architecture.arch_kwargs.{key}"
            lists |= {f"{inner}[{index}]": stage for index, stage in enumerate(stages)}
    for key, value in lists.items():
        if isinstance(value, (list, tuple)) and len(value) != axes:
            raise _broken(_join(path, key), f"a list of {axes} values, one for each axis of patch_size", value)


_text = _value("a text", lambda value: isinstance(value, str))
_name = _value(
    "a name of printable characters, not empty",
    lambda value: isinstance(value, str) and bool(value.strip()) and is_printable(value),
)
_bool = _value("true or false", lambda value: isinstance(value, bool))
_count = _value("a positive integer", lambda value: _is_integer(value) and 0 < value <= _MAX_COUNT)
_layers = _value(f"an integer from 1 to {_MAX_LAYERS}", lambda value: _is_integer(value) and 0 < value <= _MAX_LAYERS)
_whole = _value("an integer that is not negative", lambda value: _is_integer(value) and 0 <= value < _MAX_NUMBER)
_length = _value("a positive number", lambda value: _is_number(value) and value > 0 and math.isfinite(value))
_voxels = _value(
    "a number of voxels", lambda value: _is_number(value) and math.isfinite(value) and 0 <= value < _MAX_NUMBER
)
_label = _value(
    f"an integer from 0 to {MAX_LABEL} (nnU-Net writes labels of 8 or 16 bits)",
    lambda value: (whole := label_value(value)) is not None and 0 <= whole <= MAX_LABEL,
)

_counts = _list(_count, "a list of positive integers")
_axes_counts = _list(_count, "a list of 2 or 3 positive integers", (2, 3))
_axes_lengths = _list(_length, "a list of 2 or 3 positive numbers", (2, 3))
_layers_list = _list(_layers, f"a list of integers from 1 to {_MAX_LAYERS}")
_layers_or_list = _single_or(_layers, _layers_list)
_count_or_counts = _single_or(_count, _counts)
_stages = _single_or(_layers, _list(_layers_or_list, "a list with an entry for each stage"))
_permutation = _value(
    "an order of the three axes such as [0, 1, 2]",
    lambda value: isinstance(value, (list, tuple)) and all(map(_is_integer, value)) and sorted(value) == [0, 1, 2],
)

_PLANS = _object(
    {"dataset_name": _plain_name, "plans_name": _plain_name, "configurations": _an_object},
    {
        "image_reader_writer": _text,
        "label_manager": _text,
        "experiment_planner_used": _text,
        "transpose_forward": _permutation,
        "transpose_backward": _permutation,
        "foreground_intensity_properties_per_channel": _an_object,
        "foreground_intensity_properties_by_modality": _an_object,
    },
)

_CONFIGURATION = _object(
    {"patch_size": _axes_counts, "batch_size": _count},
    {
        "data_identifier": _plain_name,
        "preprocessor_name": _text,
        "spacing": _axes_lengths,
        "normalization_schemes": _list(_text, "a list of names"),
        "use_mask_for_norm": _list(_bool, "a list of true and false"),
        "batch_dice": _bool,
        "resampling_fn_data": _text,
        "resampling_fn_seg": _text,
        "resampling_fn_probabilities": _text,
        "resampling_fn_data_kwargs": _an_object,
        "resampling_fn_seg_kwargs": _an_object,
        "resampling_fn_probabilities_kwargs": _an_object,
        "previous_stage": _or_none(_plain_name),
        "next_stage": _or_none(_single_or(_plain_name, _list(_plain_name, "a list of names"))),
    },
)

_ARCHITECTURE = _object(
    {
        "architecture": _object(
            {
                "network_class_name": _text,
                "arch_kwargs": _object(
                    {},
                    {
                        "n_stages": _layers,
                        "features_per_stage": _count_or_counts,
                        "kernel_sizes": _stages,
                        "strides": _stages,
                        "n_conv_per_stage": _layers_or_list,
                        "n_blocks_per_stage": _layers_or_list,
                        "n_conv_per_stage_decoder": _layers_or_list,
                        "conv_bias": _bool,
                        "norm_op_kwargs": _or_none(_an_object),
                        "dropout_op_kwargs": _or_none(_an_object),
                        "nonlin_kwargs": _or_none(_an_object),
                    },
                ),
                "_kw_requires_import": _list(_text, "a list of names"),
            }
        )
    }
)

_OLD_ARCHITECTURE: dict[str, Rule] = {
    "UNet_class_name": _value(
        f"{' or '.join(_OLD_ARCHITECTURES)} in plans without architecture (the old format)",
        lambda value: value in _OLD_ARCHITECTURES,
    ),
    "UNet_base_num_features": _count,
    "unet_max_num_features": _count,
    "n_conv_per_stage_encoder": _layers_list,
    "n_conv_per_stage_decoder": _layers_list,
    "num_pool_per_axis": _list(_whole, "a list of integers"),
    "pool_op_kernel_sizes": _list(_layers_list, "a list with an entry for each stage"),
    "conv_kernel_sizes": _list(_layers_list, "a list with an entry for each stage"),
}


def _network(configuration: Mapping[str, Any], path: str) -> None:
    """The network must be described by ``architecture``, or in plans of the old format by several keys."""
    if "architecture" in configuration:
        _ARCHITECTURE(configuration, path)
    elif any(key in configuration for key in _OLD_ARCHITECTURE):
        _object(_OLD_ARCHITECTURE)(configuration, path)
    else:
        first = next(iter(_OLD_ARCHITECTURE))
        raise _BrokenRuleError(f"{path} has neither architecture nor the keys of the old format ({first}, ...)")


_LABELS = _each(
    _text,
    _single_or(_label, _list(_label, "a list of label values", range(1, MAX_LABEL + 1))),
    "an object with a value for each name",
)
_CHANNELS = _each(_text, _text, "an object with a name for each channel")
_file_ending = _value(
    "the ending of file names, such as .nii.gz",
    lambda value: isinstance(value, str) and re.fullmatch(r"\.[\w.-]+", value) is not None,
)
_DATASET = _object(
    {"file_ending": _file_ending},
    {
        "regions_class_order": _or_none(_list(_label, "a list of label values")),
        "overwrite_image_reader_writer": _or_none(_text),
    },
)

_CASES = _list(_name, "a list of case names")

_LABEL_KEY = re.compile(r"\(?\d{1,5}(, ?\d{1,5})*,?\)?")
_SUMMARY_CASE = _object(
    {
        "prediction_file": _text,
        "metrics": _each(
            _value(
                'label values such as "1" or "(1, 2)"',
                lambda value: isinstance(value, str) and _LABEL_KEY.fullmatch(value) is not None,
            ),
            _object({"n_ref": _voxels, "n_pred": _voxels}),
            "an object with an entry for each label",
            empty=True,
        ),
    }
)


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


_CHECKPOINT = _object(
    {
        "network_weights": _each(_text, _value("a tensor", _is_tensor), "an object with a tensor for each name"),
        "init_args": _object(
            {
                "plans": _an_object,
                "configuration": _plain_name,
                "fold": _value(
                    'a number or "all"', lambda value: value == "all" or (_is_integer(value) and 0 <= value < 1000)
                ),
                "dataset_json": _an_object,
            }
        ),
        "trainer_name": _value(
            "the name of a class", lambda value: isinstance(value, str) and value.isascii() and value.isidentifier()
        ),
    },
    {
        "current_epoch": _whole,
        "inference_allowed_mirroring_axes": _or_none(
            _list(
                _value("the number of an axis, 0 to 2", lambda value: _is_integer(value) and value in (0, 1, 2)),
                "a list of axes",
            )
        ),
    },
)
