import contextlib
import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for the oracle and the small plans, which several files use

if "PYTEST_XDIST_WORKER" in os.environ:  # one thread a worker: workers that wait for each other's threads crawl
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(variable, "1")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Skip what needs the extra [monai] where MONAI is not installed, with the sentence that users get."""
    try:
        return (yield)
    except ImportError as error:
        if find_spec("monai") is None and "nnunet-dtc[monai]" in str(error):
            pytest.skip(str(error))
        raise


with contextlib.suppress(ImportError):  # property-based tests are skipped without it
    from hypothesis import HealthCheck, settings

    _common = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}
    settings.register_profile("short", max_examples=25, derandomize=True, **_common)
    settings.register_profile("long", max_examples=2500, print_blob=True, **_common)  # --hypothesis-profile=long
    settings.load_profile("short")
