"""What the plans set for a network: the key ``architecture.nnunet_dtc`` of a configuration.

The sizes are the published ones, unless the plans say otherwise. Others stand beside nnU-Net's own architecture, per
network::

    "architecture": {
        "network_class_name": ..., "arch_kwargs": ..., "_kw_requires_import": ...,
        "nnunet_dtc": {"SegMamba": {"widths": [8, 16, 24, 32], "bottleneck": 48}, "UNet": {"width": 16}}
    }

nnU-Net saves the plans with the model, so a prediction builds the same network; its own trainers do not read that key,
so the same plans serve them, too.
"""

from collections.abc import Mapping
from typing import Any

from nnunet_dtc.errors import NnunetDtcError
from nnunet_dtc.registry import NETWORKS

PLANS_KEY = "nnunet_dtc"


def read_settings(configuration: Mapping[str, Any], name: str, published: Mapping[str, Any]) -> dict[str, Any]:
    """What the plans set for a network, lists as tuples; empty where they say nothing.

    Args:
        configuration: one configuration of nnU-Net's plans (``ConfigurationManager.configuration``).
        name: one of ``nnunet_dtc.registry.NETWORKS``.
        published: what may be set, with the published values.

    Raises:
        NnunetDtcError: a network or a setting that is not there, or a setting of another kind than the published one.
    """
    own = configuration.get("architecture", {}).get(PLANS_KEY, {})
    if not isinstance(own, Mapping) or not all(isinstance(settings, Mapping) for settings in own.values()):
        raise NnunetDtcError(
            f"architecture.{PLANS_KEY} of the plans has settings for each network by name, got {own!r}"
        )
    unknown = sorted(set(own) - set(NETWORKS))
    if unknown:
        raise NnunetDtcError(
            f"architecture.{PLANS_KEY} of the plans takes {', '.join(NETWORKS)}, got {', '.join(unknown)}"
        )
    return check_settings(name, own.get(name, {}), published)


def check_settings(name: str, settings: Mapping[str, Any], published: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, lists as tuples.

    Raises:
        NnunetDtcError: one is not there, or is of another kind than the published one.
    """
    unknown = sorted(set(settings) - set(published))
    if unknown:
        raise NnunetDtcError(
            f"{name} has the settings {', '.join(published)}, got {', '.join(unknown)} (in plans they stand in "
            f"architecture.{PLANS_KEY}.{name} of a configuration)"
        )
    checked = {}
    for key, value in settings.items():
        if isinstance(value, list):
            value = tuple(value)
        if not _is_like(value, published[key]):
            raise NnunetDtcError(
                f"{name}'s {key} must be like its published {published[key]}, got {value!r} (in plans it is "
                f"architecture.{PLANS_KEY}.{name}.{key} of a configuration)"
            )
        checked[key] = value
    return checked


def _is_like(value: Any, published: Any) -> bool:
    """Whether a setting is a truth value, a positive whole number, or as many of these as the published one."""
    if isinstance(published, tuple):
        return isinstance(value, tuple) and len(value) == len(published) and all(map(_is_like, value, published))
    if isinstance(published, bool) or isinstance(value, bool):
        return isinstance(published, bool) and isinstance(value, bool)
    return isinstance(value, int) and value >= 1
