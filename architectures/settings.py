"""Settings of the paper's networks in nnU-Net's plans: the key ``architecture.nnunet_dtc`` of a configuration.

Without settings the networks have their published sizes. Other sizes are given beside nnU-Net's own architecture, for
each network::

    "architecture": {
        "network_class_name": ..., "arch_kwargs": ..., "_kw_requires_import": ...,
        "nnunet_dtc": {"SegMamba": {"widths": [8, 16, 24, 32], "bottleneck": 48}, "UNet": {"width": 16}}
    }

nnU-Net saves the plans with the model, so that the same network is built for prediction. Its own trainers ignore the
key.
"""

from collections.abc import Mapping
from typing import Any

from nnunet_dtc.errors import NnunetDtcError
from nnunet_dtc.registry import NETWORKS

PLANS_KEY = "nnunet_dtc"


def read_settings(configuration: Mapping[str, Any], name: str, published: Mapping[str, Any]) -> dict[str, Any]:
    """Read the settings of a network from the plans.

    Args:
        configuration: one configuration of nnU-Net's plans (``ConfigurationManager.configuration``).
        name: one of ``nnunet_dtc.registry.NETWORKS``.
        published: the settings of the network with their published values.

    Returns:
        The settings in the plans, lists as tuples; empty if there are none.

    Raises:
        NnunetDtcError: a network or a setting is unknown, or a setting is of another type than the published value.
    """
    own = configuration.get("architecture", {}).get(PLANS_KEY, {})
    if not isinstance(own, Mapping) or not all(isinstance(settings, Mapping) for settings in own.values()):
        raise NnunetDtcError(
            f"architecture.{PLANS_KEY} of the plans must map names of networks to their settings, got {own!r}"
        )
    unknown = sorted(set(own) - set(NETWORKS))
    if unknown:
        raise NnunetDtcError(
            f"the networks in architecture.{PLANS_KEY} of the plans must be among {', '.join(NETWORKS)}, got "
            f"{', '.join(unknown)}"
        )
    return check_settings(name, own.get(name, {}), published)


def check_settings(name: str, settings: Mapping[str, Any], published: Mapping[str, Any]) -> dict[str, Any]:
    """Check the settings of a network.

    Args:
        name: the network, for messages.
        settings: the settings.
        published: all settings of the network with their published values.

    Returns:
        The settings, lists as tuples.

    Raises:
        NnunetDtcError: a setting is unknown, or of another type than the published value.
    """
    unknown = sorted(set(settings) - set(published))
    if unknown:
        raise NnunetDtcError(
            f"{name} has the settings {', '.join(published)}, got {', '.join(unknown)} (in plans they are in "
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
    """Whether a setting is a bool or a positive integer like the published one, or a tuple of as many of them."""
    if isinstance(published, tuple):
        return isinstance(value, tuple) and len(value) == len(published) and all(map(_is_like, value, published))
    if isinstance(published, bool) or isinstance(value, bool):
        return isinstance(published, bool) and isinstance(value, bool)
    return isinstance(value, int) and value >= 1
