"""The names of classes in nnU-Net's plans, checked before anything is built from them.

Plans are text, but nnU-Net imports and calls what they name. It finds ``network_class_name`` and the arguments listed
in ``_kw_requires_import`` by :func:`pydoc.locate`, which imports any module and returns any object in it, such as
``os.system``. It finds the others (reader, preprocessor, normalization, resampling, label manager) by a search through
modules of nnU-Net, which returns any attribute of them. Plans of unknown origin, in a file or in a checkpoint, could
run code that way. Here each name is looked up without calling it, only in the packages that are allowed for it, and
must be a class or function made for its purpose.
"""

from __future__ import annotations

import inspect
import os
import pydoc
from collections.abc import Mapping
from typing import Any

from nnunet_dtc.errors import NnunetDtcError
from nnunet_dtc.plugin.file_rules import shown
from nnunet_dtc.plugin.nnunet_files import resolved_configuration

__all__ = ["UnsafePlansError", "check_names", "reader_class"]

_ARCHITECTURES = "dynamic_network_architectures"
_MODULES = ("torch.nn.modules", _ARCHITECTURES)  # where the classes that networks are built from are defined
_ALWAYS_CLASSES = ("conv_op", "norm_op", "dropout_op", "nonlin")  # some trainers look them up even if not listed


class UnsafePlansError(NnunetDtcError):
    """Plans that name something other than the classes that nnU-Net builds networks and preprocessing from."""


def check_names(plans: Mapping[str, Any], configuration: str, origin: object, path: str = "") -> None:
    """Check every name that nnU-Net would look up and call for one configuration. Nothing is called.

    Args:
        plans: nnU-Net's plans, after :func:`nnunet_dtc.plugin.nnunet_files.check_plans`.
        configuration: name of the configuration; what it inherits is checked too.
        origin: the file of the plans, for messages.
        path: where the plans are in that file, such as "init_args.plans", for messages.

    Raises:
        UnsafePlansError: a name is not that of a suitable class or function; the message gives the key and the name.
    """
    where = f"{origin}: {path}." if path else f"{origin}: "
    in_configuration = f"{where}configurations.{configuration}."
    resolved = resolved_configuration(plans, configuration, origin, path)
    architecture = resolved.get("architecture")
    if architecture is not None:
        _check_network(architecture["network_class_name"], f"{in_configuration}architecture.network_class_name")
        arguments = architecture["arch_kwargs"]
        for key in (*architecture["_kw_requires_import"], *_ALWAYS_CLASSES):
            name = arguments.get(key)
            if name is not None:
                _check_module_class(name, f"{in_configuration}architecture.arch_kwargs.{key}")
    if (name := plans.get("image_reader_writer")) is not None:
        reader_class(name, f"{where}image_reader_writer")
    if (name := plans.get("label_manager")) is not None:
        _find_label_manager(name, f"{where}label_manager")
    if (name := resolved.get("preprocessor_name")) is not None:
        rule = "the name of a preprocessor class of nnunetv2.preprocessing"
        _check_found(name, f"{in_configuration}preprocessor_name", "preprocessing", rule, None)
    for name in resolved.get("normalization_schemes") or ():
        from nnunetv2.preprocessing.normalization.default_normalization_schemes import ImageNormalization

        key = f"{in_configuration}normalization_schemes"
        rule = "the name of a normalization class of nnunetv2.preprocessing.normalization"
        _check_found(name, key, "preprocessing.normalization", rule, ImageNormalization)
    for key in ("resampling_fn_data", "resampling_fn_seg", "resampling_fn_probabilities"):
        if (name := resolved.get(key)) is not None:
            _check_resampling(name, f"{in_configuration}{key}")


def reader_class(name: str, where: str) -> type:
    """Find a class of nnU-Net that reads images, without calling it.

    Args:
        name: such as "SimpleITKIO", from plans or from ``overwrite_image_reader_writer`` in dataset.json. It is looked
            up in nnU-Net's registry of readers, then by nnU-Net's own search.
        where: the file and the key, for messages.

    Raises:
        UnsafePlansError: nnU-Net has no reader of this name.
    """
    from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
    from nnunetv2.imageio.reader_writer_registry import LIST_OF_IO_CLASSES

    registered = {io_class.__name__: io_class for io_class in LIST_OF_IO_CLASSES}
    if isinstance(name, str) and name in registered:
        return registered[name]
    rule = f"one of nnU-Net's readers, {', '.join(registered)}, or one in a module of nnunetv2.imageio"
    return _check_found(name, where, "imageio", rule, BaseReaderWriter)


def _find_label_manager(name: str, where: str) -> type:
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    rule = "the name of a label manager class of nnunetv2.utilities.label_handling"
    return _check_found(name, where, "utilities.label_handling", rule, LabelManager)


def _check_network(name: str, where: str) -> None:
    """Check the class of the network, found as ``nnunetv2.utilities.get_network_from_plans`` finds it."""
    rule = f"a network class of {_ARCHITECTURES}.architectures"
    advice = "; only networks of these classes are built, so that plans cannot run other code"
    found = _locate(name, (f"{_ARCHITECTURES}.architectures",), where, rule, advice)
    if found is None:  # nnU-Net then searches for the last part of the name, as classes move between its versions
        import dynamic_network_architectures
        from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

        folder = os.path.join(dynamic_network_architectures.__path__[0], "architectures")
        found = recursive_find_python_class(folder, name.split(".")[-1], f"{_ARCHITECTURES}.architectures")
    if not _is_module_class(found, (_ARCHITECTURES,)):
        raise _refusal(where, rule, name, advice)


def _check_module_class(name: str, where: str) -> None:
    rule = f"the name of a module class of torch.nn or {_ARCHITECTURES}"
    if not _is_module_class(_locate(name, ("torch.nn", _ARCHITECTURES), where, rule), _MODULES):
        raise _refusal(where, rule, name)


def _locate(name: object, packages: tuple[str, ...], where: str, rule: str, advice: str = "") -> object:
    """What ``pydoc.locate`` finds for a name in one of these packages. No other package is imported."""
    if not (isinstance(name, str) and name.isascii() and all(part.isidentifier() for part in name.split("."))):
        raise _refusal(where, rule, name, advice)
    if not name.startswith(tuple(f"{package}." for package in packages)):
        raise _refusal(where, rule, name, advice)
    try:
        return pydoc.locate(name)
    except pydoc.ErrorDuringImport as error:
        raise _refusal(where, rule, name, advice) from error


def _is_module_class(found: object, packages: tuple[str, ...]) -> bool:
    """Whether it is a subclass of ``torch.nn.Module`` that is defined in one of these packages."""
    from torch import nn

    return isinstance(found, type) and issubclass(found, nn.Module) and _is_defined_in(found, packages)


def _is_defined_in(found: Any, packages: tuple[str, ...]) -> bool:
    return any(found.__module__ == package or found.__module__.startswith(f"{package}.") for package in packages)


def _check_found(name: object, where: str, package: str, rule: str, base: type | None) -> type:
    """The class that nnU-Net's search through one of its packages finds.

    A subclass of ``base`` may be a user's own that a module of the package imports; without ``base`` the class must be
    defined in nnU-Net.
    """
    found = _search(name, package, where, rule)
    suitable = isinstance(found, type) and not inspect.isabstract(found)
    if not suitable or not (_is_defined_in(found, ("nnunetv2",)) if base is None else issubclass(found, base)):
        raise _refusal(where, rule, name)
    return found


def _check_resampling(name: object, where: str) -> None:
    package = "preprocessing.resampling"
    rule = f"the name of a resampling function of nnunetv2.{package}"
    found = _search(name, package, where, rule)
    if not (inspect.isfunction(found) and _is_defined_in(found, (f"nnunetv2.{package}",))):
        raise _refusal(where, rule, name)


def _search(name: object, package: str, where: str, rule: str) -> object:
    import nnunetv2
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    if not (isinstance(name, str) and name.isascii() and name.isidentifier()):
        raise _refusal(where, rule, name)
    folder = os.path.join(nnunetv2.__path__[0], *package.split("."))
    return recursive_find_python_class(folder, name, f"nnunetv2.{package}")


def _refusal(where: str, rule: str, name: object, advice: str = "") -> UnsafePlansError:
    return UnsafePlansError(f"{where} must be {rule}, got {shown(name)}{advice}")
