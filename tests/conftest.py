import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # for the oracle and the small plans, which several files use

if "PYTEST_XDIST_WORKER" in os.environ:  # one thread a worker: workers that wait for each other's threads crawl
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(variable, "1")
