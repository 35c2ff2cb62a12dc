"""Checks of nnU-Net's files: plans, dataset.json, summary.json, splits_final.json, and the contents of checkpoints.

Files are checked once, where they are read, so that later code can rely on their structure. An error names the file,
the path of the key, the rule and the value. The content itself is not changed. The rules accept everything that nnU-Net
2.0 to 2.8 writes, including plans of the old format (without ``architecture``), regions, the ignore label, and
``modality`` instead of ``channel_names``. Keys without a rule may have any value.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from nnunet_dtc.plugin.file_rules import (
    MAX_NUMBER,
    BrokenRuleError,
    MalformedFileError,
    Rule,
    an_object,
    anything,
    broken,
    check_content,
    check_depth,
    is_integer,
    is_number,
    is_printable,
    join,
    key_text,
    list_of,
    mapping_of,
    none_or,
    object_with,
    one_or_several,
    plain_name,
    satisfies,
    shown,
)
from nnunet_dtc.trainers.names import is_class_name

__all__ = [
    "MAX_LABEL",
    "check_checkpoint",
    "check_dataset_json",
    "check_file_ending",
    "check_labels",
    "check_plans",
    "check_splits",
    "check_summary",
    "label_value",
    "label_values_of",
    "resolved_configuration",
]

MAX_LABEL = 65_535
"""The largest label value: nnU-Net writes segmentations of 8 or 16 bits."""

_MAX_COUNT = 1_000_000  # voxels along an axis, cases in a batch, features: more is a mistake
_MAX_LAYERS = 1000  # stages, blocks and convolutions of a stage, voxels along an axis of a kernel: more is a mistake
_OLD_ARCHITECTURES = ("PlainConvUNet", "ResidualEncoderUNet")


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
    check_depth(plans, origin)
    check_content(_PLANS, plans, path, origin)
    if configuration is not None:
        resolved = resolved_configuration(plans, configuration, origin, path)
        where = join(path, f"configurations.{configuration}")
        check_content(object_with(dict.fromkeys(needed, anything)), resolved, where, origin)
        check_content(_CONFIGURATION, resolved, where, origin)
        check_content(_network, resolved, where, origin)
        check_content(_same_axes, resolved, where, origin)


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
        where = join(path, f"configurations.{chain[-1]}.inherits_from") if chain else ""
        if not isinstance(name, str) or name not in configurations:
            there = ", ".join(map(key_text, configurations)) or "none"
            if chain:
                raise MalformedFileError(f"{origin}: {where} must be a configuration ({there}), got {shown(name)}")
            raise MalformedFileError(f"{origin}: there is no configuration {key_text(name)}; the plans have: {there}")
        if name in chain:
            cycle = " -> ".join((*chain, name))
            raise MalformedFileError(f"{origin}: {where} must not lead back to the configuration itself, got {cycle}")
        chain.append(name)
        check_content(an_object, configurations[name], join(path, f"configurations.{name}"), origin)
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
    check_content(an_object, content, path, origin)
    check_labels(content, origin, path)
    check_content(_DATASET, content, path, origin)
    channels = "modality" if "modality" in content and "channel_names" not in content else "channel_names"
    check_content(object_with({channels: _CHANNELS}), content, path, origin)


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
    check_depth(content, origin)
    check_content(an_object, content, path, origin)
    labels = content.get("labels")
    if isinstance(labels, dict) and labels and all(re.fullmatch(r"\d+", name) for name in labels):
        names = [name for name in labels.values() if isinstance(name, str) and not name.isdecimal()]
        if names:
            number, name = next(item for item in labels.items() if item[1] == names[0])
            raise MalformedFileError(
                f"{origin}: {join(path, 'labels')} are in the order of nnU-Net v1, number to name "
                f"({shown(number)}: {shown(name)}), and nnU-Net v2 has name to number ({shown(name)}: {number}): this "
                "is a dataset.json of nnU-Net v1, which nnUNetv2_convert_old_nnUNet_dataset converts"
            )
    check_content(object_with({"labels": _LABELS}), content, path, origin)
    if "ignore" in content["labels"]:  # nnU-Net requires an integer here
        rule = satisfies(f"an integer from 0 to {MAX_LABEL}", is_integer)
        check_content(rule, content["labels"]["ignore"], join(path, "labels.ignore"), origin)


def check_file_ending(ending: Any, origin: object) -> None:
    """Check the ``file_ending`` of dataset.json.

    Raises:
        MalformedFileError: it is not an ending of file names.
    """
    check_content(_file_ending, ending, "file_ending", origin)


def check_splits(content: Any, origin: object) -> None:
    """Check splits_final.json: a list of folds, each with the names of its cases.

    Raises:
        MalformedFileError: the content is something else.
    """
    check_content(_SPLITS, content, "", origin)


def check_summary(content: Any, origin: object) -> None:
    """Check the part of nnU-Net's summary.json that this package reads: the voxels of each label in each case.

    Raises:
        MalformedFileError: the content is something else.
    """
    check_content(_SUMMARY, content, "", origin)


def label_value(value: Any) -> int | None:
    """The integer that a label value in dataset.json stands for, or None. nnU-Net also accepts 1.0 and "1".

    Example:
        >>> label_value("7"), label_value(2.0), label_value(2.5)
        (7, 2, None)
    """
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value):
        return int(value)
    if is_integer(value) or (isinstance(value, float) and value.is_integer()):
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
    check_content(_CHECKPOINT, content, "", origin)
    arguments = content["init_args"]
    check_plans(arguments["plans"], origin, arguments["configuration"], "init_args.plans")
    check_dataset_json(arguments["dataset_json"], origin, "init_args.dataset_json")


def _has(content: Any, key: str) -> bool:
    return isinstance(content, dict) and key in content


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
            raise broken(join(path, key), f"a list of {axes} values, one for each axis of patch_size", value)


_text = satisfies("a text", lambda value: isinstance(value, str))
_name = satisfies(
    "a name of printable characters, not empty",
    lambda value: isinstance(value, str) and bool(value.strip()) and is_printable(value),
)
_bool = satisfies("true or false", lambda value: isinstance(value, bool))
_count = satisfies("a positive integer", lambda value: is_integer(value) and 0 < value <= _MAX_COUNT)
_layers = satisfies(f"an integer from 1 to {_MAX_LAYERS}", lambda value: is_integer(value) and 0 < value <= _MAX_LAYERS)
_whole = satisfies("an integer that is not negative", lambda value: is_integer(value) and 0 <= value < MAX_NUMBER)
_length = satisfies("a positive number", lambda value: is_number(value) and value > 0 and math.isfinite(value))
_voxels = satisfies(
    "a number of voxels", lambda value: is_number(value) and math.isfinite(value) and 0 <= value < MAX_NUMBER
)
_label = satisfies(
    f"an integer from 0 to {MAX_LABEL} (nnU-Net writes labels of 8 or 16 bits)",
    lambda value: (whole := label_value(value)) is not None and 0 <= whole <= MAX_LABEL,
)

_counts = list_of(_count, "a list of positive integers")
_axes_counts = list_of(_count, "a list of 2 or 3 positive integers", (2, 3))
_axes_lengths = list_of(_length, "a list of 2 or 3 positive numbers", (2, 3))
_layers_list = list_of(_layers, f"a list of integers from 1 to {_MAX_LAYERS}")
_layers_or_list = one_or_several(_layers, _layers_list)
_count_or_counts = one_or_several(_count, _counts)
_stages = one_or_several(_layers, list_of(_layers_or_list, "a list with an entry for each stage"))
_permutation = satisfies(
    "an order of the three axes such as [0, 1, 2]",
    lambda value: isinstance(value, (list, tuple)) and all(map(is_integer, value)) and sorted(value) == [0, 1, 2],
)

_PLANS = object_with(
    {"dataset_name": plain_name, "plans_name": plain_name, "configurations": an_object},
    {
        "image_reader_writer": _text,
        "label_manager": _text,
        "experiment_planner_used": _text,
        "transpose_forward": _permutation,
        "transpose_backward": _permutation,
        "foreground_intensity_properties_per_channel": an_object,
        "foreground_intensity_properties_by_modality": an_object,
    },
)

_CONFIGURATION = object_with(
    {"patch_size": _axes_counts, "batch_size": _count},
    {
        "data_identifier": plain_name,
        "preprocessor_name": _text,
        "spacing": _axes_lengths,
        "normalization_schemes": list_of(_text, "a list of names"),
        "use_mask_for_norm": list_of(_bool, "a list of true and false"),
        "batch_dice": _bool,
        "resampling_fn_data": _text,
        "resampling_fn_seg": _text,
        "resampling_fn_probabilities": _text,
        "resampling_fn_data_kwargs": an_object,
        "resampling_fn_seg_kwargs": an_object,
        "resampling_fn_probabilities_kwargs": an_object,
        "previous_stage": none_or(plain_name),
        "next_stage": none_or(one_or_several(plain_name, list_of(plain_name, "a list of names"))),
    },
)

_ARCHITECTURE = object_with(
    {
        "architecture": object_with(
            {
                "network_class_name": _text,
                "arch_kwargs": object_with(
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
                        "norm_op_kwargs": none_or(an_object),
                        "dropout_op_kwargs": none_or(an_object),
                        "nonlin_kwargs": none_or(an_object),
                    },
                ),
                "_kw_requires_import": list_of(_text, "a list of names"),
            }
        )
    }
)

_OLD_ARCHITECTURE: dict[str, Rule] = {
    "UNet_class_name": satisfies(
        f"{' or '.join(_OLD_ARCHITECTURES)} in plans without architecture (the old format)",
        lambda value: value in _OLD_ARCHITECTURES,
    ),
    "UNet_base_num_features": _count,
    "unet_max_num_features": _count,
    "n_conv_per_stage_encoder": _layers_list,
    "n_conv_per_stage_decoder": _layers_list,
    "num_pool_per_axis": list_of(_whole, "a list of integers"),
    "pool_op_kernel_sizes": list_of(_layers_list, "a list with an entry for each stage"),
    "conv_kernel_sizes": list_of(_layers_list, "a list with an entry for each stage"),
}


def _network(configuration: Mapping[str, Any], path: str) -> None:
    """The network must be described by ``architecture``, or in plans of the old format by several keys."""
    if "architecture" in configuration:
        _ARCHITECTURE(configuration, path)
    elif any(key in configuration for key in _OLD_ARCHITECTURE):
        object_with(_OLD_ARCHITECTURE)(configuration, path)
    else:
        first = next(iter(_OLD_ARCHITECTURE))
        raise BrokenRuleError(f"{path} has neither architecture nor the keys of the old format ({first}, ...)")


_LABELS = mapping_of(
    _text,
    one_or_several(_label, list_of(_label, "a list of label values", range(1, MAX_LABEL + 1))),
    "an object with a value for each name",
)
_CHANNELS = mapping_of(_text, _text, "an object with a name for each channel")
_file_ending = satisfies(
    "the ending of file names, such as .nii.gz",
    lambda value: isinstance(value, str) and re.fullmatch(r"\.[\w.-]+", value) is not None,
)
_DATASET = object_with(
    {"file_ending": _file_ending},
    {
        "regions_class_order": none_or(list_of(_label, "a list of label values")),
        "overwrite_image_reader_writer": none_or(_text),
    },
)

_CASES = list_of(_name, "a list of case names")
_SPLITS = list_of(object_with({"val": _CASES}, {"train": _CASES}), "a list of folds with train and val")

_LABEL_KEY = re.compile(r"\(?\d{1,5}(, ?\d{1,5})*,?\)?")
_SUMMARY_CASE = object_with(
    {
        "prediction_file": _text,
        "metrics": mapping_of(
            satisfies(
                'label values such as "1" or "(1, 2)"',
                lambda value: isinstance(value, str) and _LABEL_KEY.fullmatch(value) is not None,
            ),
            object_with({"n_ref": _voxels, "n_pred": _voxels}),
            "an object with an entry for each label",
            empty=True,
        ),
    }
)
_SUMMARY = object_with({"metric_per_case": list_of(_SUMMARY_CASE, "a list of cases")})


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


_CHECKPOINT = object_with(
    {
        "network_weights": mapping_of(
            _text, satisfies("a tensor", _is_tensor), "an object with a tensor for each name"
        ),
        "init_args": object_with(
            {
                "plans": an_object,
                "configuration": plain_name,
                "fold": satisfies(
                    'a number or "all"', lambda value: value == "all" or (is_integer(value) and 0 <= value < 1000)
                ),
                "dataset_json": an_object,
            }
        ),
        "trainer_name": satisfies("the name of a class", lambda value: isinstance(value, str) and is_class_name(value)),
    },
    {
        "current_epoch": _whole,
        "inference_allowed_mirroring_axes": none_or(
            list_of(
                satisfies("the number of an axis, 0 to 2", lambda value: is_integer(value) and value in (0, 1, 2)),
                "a list of axes",
            )
        ),
    },
)
