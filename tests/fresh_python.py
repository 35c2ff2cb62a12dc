"""Python processes that have not imported nnU-Net or this package, without 5 s of imports for each of them.

On Linux, a process that has imported what nnU-Net needs, such as torch, forks itself for each call; nnU-Net and this
package are then imported anew, by the child alone. Elsewhere each call is a new process.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path

ANEW = ("nnunetv2", "nnunet_dtc")
NEVER_BEFORE = ("monai", "mamba_ssm", "numba")  # optional packages, which tests break on purpose


class FreshPython:
    """Runs `python -c CODE ..` and `python -m MODULE ..` as `subprocess.run` with `capture_output` and `text` does."""

    def __init__(self) -> None:
        self.server: subprocess.Popen | None = None
        if sys.platform == "linux":
            given = os.environ.items()  # PYTHONPATH is set for each call
            environment = {name: each for name, each in given if not name.startswith(("nnUNet_", "PYTHONPATH"))}
            self.server = subprocess.Popen(
                [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
            )

    def run(self, arguments: list[str], cwd: Path, env: dict[str, str]) -> subprocess.CompletedProcess:
        if self.server is None:
            return subprocess.run(
                [sys.executable, *arguments], cwd=cwd, env=env, capture_output=True, text=True, check=False
            )
        with tempfile.TemporaryDirectory() as folder:
            out, err = Path(folder, "out"), Path(folder, "err")
            request = {"arguments": arguments, "cwd": str(cwd), "env": env, "out": str(out), "err": str(err)}
            print(json.dumps(request), file=self.server.stdin, flush=True)
            answer = self.server.stdout.readline()
            if not answer:
                raise RuntimeError(f"the process that runs {arguments[:2]} has ended; its error is printed above")
            status = int(answer)
            return subprocess.CompletedProcess(arguments, status, out.read_text(), err.read_text())

    def close(self) -> None:
        if self.server is not None:
            self.server.stdin.close()
            self.server.wait()
            self.server.stdout.close()


def serve() -> None:
    """Answer each request, a line on stdin, by the exit status of a child that has run it."""
    import nnunetv2.training.nnUNetTrainer.nnUNetTrainer  # noqa: F401 (for all that it imports)

    assert not set(NEVER_BEFORE) & set(sys.modules)
    for name in list(sys.modules):
        if name.partition(".")[0] in ANEW:
            del sys.modules[name]
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        child = os.fork()
        if not child:
            _become(**json.loads(line))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)


def _become(arguments: list[str], cwd: str, env: dict[str, str], out: str, err: str) -> None:
    """What a new process would do with these arguments. Does not return."""
    for number, file in ((1, out), (2, err)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.path[:] = ["", *filter(None, env.get("PYTHONPATH", "").split(os.pathsep)), *sys.path[1:]]
    kind, what, *rest = arguments
    status = 0
    try:
        if kind == "-m":
            sys.argv = [what, *rest]
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            sys.argv = ["-c", *rest]
            exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
    except SystemExit as end:
        status = 0 if end.code is None else end.code
        if not isinstance(status, int):
            print(status, file=sys.stderr)
            status = 1
    except BaseException:
        traceback.print_exc()
        status = 1
    finally:
        threading._shutdown()
        atexit._run_exitfuncs()
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    serve()
