"""Python 3.13's environment variable PYTHON_CPU_COUNT, for Python 3.10 to 3.12.

Python imports this module when it starts with this folder on PYTHONPATH. It then imports the `sitecustomize` that would
have been imported without this folder.
"""

import importlib
import os
import sys

_count = os.environ.get("PYTHON_CPU_COUNT", "")
if _count.isdecimal() and int(_count) > 0:
    os.cpu_count = lambda: int(_count)

_here = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [folder for folder in sys.path if os.path.abspath(folder) != _here]  # other processes find it themselves
_this = sys.modules.pop(__name__)
try:
    importlib.import_module("sitecustomize")
except ModuleNotFoundError as error:
    if error.name != "sitecustomize":
        raise
    sys.modules[__name__] = _this
