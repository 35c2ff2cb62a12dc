"""Import this first: where nnunet_dtc is not installed, the clone that this file lies in is it.

Its three source folders install as one package; here they are put together as that.
"""

import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec("nnunet_dtc") is None:
    ROOT = Path(__file__).resolve().parents[1]
    sys.path.insert(0, str(ROOT))
    import nnunet_dtc

    nnunet_dtc.__path__.append(str(ROOT))
