"""Import this first: it makes nnunet_dtc importable where it is not installed, from the clone that has this file.

The three source folders of the clone are one package when they are installed, and are put together to the same package
here. Where dynamic-network-architectures is missing, the networks of ``nnunet_dtc.architectures`` that do not need it
can still be imported from their modules.
"""

import importlib.util
import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

if importlib.util.find_spec("nnunet_dtc") is None:
    sys.path.insert(0, str(ROOT))
import nnunet_dtc  # noqa: E402

if importlib.util.find_spec("nnunet_dtc.architectures") is None:
    nnunet_dtc.__path__.append(str(ROOT))
if importlib.util.find_spec("dynamic_network_architectures") is None:  # nnunet_dtc.architectures itself imports it
    package = types.ModuleType("nnunet_dtc.architectures")
    package.__path__ = list(importlib.util.find_spec("nnunet_dtc.architectures").submodule_search_locations)
    sys.modules[package.__name__] = package
