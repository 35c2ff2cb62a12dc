"""Commands that are ended by a signal: nothing of them goes on, and what they had begun is cleared away.

Every command is a process of its own here, and its descendants are those that the system lists.
"""

import multiprocessing
import os
import pty
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from default_signals import default_signals

from nnunet_dtc.cli.signals import ending_in_order

if not Path("/proc/self/task").is_dir():
    pytest.skip("the descendants of a process are read from Linux's /proc", allow_module_level=True)

PATIENCE_S = 60  # for what takes a second on a machine that has nothing else to do


def descendants(pid):
    """Numbers of the processes that a process has started, and they in turn."""
    found = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += [int(child), *descendants(int(child))]
    return found


def lives(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"  # a zombie has ended, but nobody has asked for its status


def wait_until(true, what):
    until = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < until, what
        time.sleep(0.02)


class Command:
    """A running program with a pipe behind it, and all that descends from it, ended in the end."""

    def __init__(self, *words, **environment):
        with default_signals():
            self.process = subprocess.Popen(
                [*map(str, words)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1", **{name: str(value) for name, value in environment.items()}},
                start_new_session=True,
            )
        self.seen = {self.process.pid}

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for pid in self.seen.union(descendants(self.process.pid)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.stdout.close()
        self.process.wait()

    def family(self):
        """How many descendants there are."""
        found = descendants(self.process.pid)
        self.seen.update(found)
        return len(found)

    def end(self, number):
        """Send the signal; what the command printed, once its pipe has ended and all of its processes are gone."""
        self.family()
        self.process.send_signal(number)
        printed, _ = self.process.communicate(timeout=PATIENCE_S)
        wait_until(lambda: not any(map(lives, self.seen)), f"processes are left of {self.process.args}")
        return printed.decode()


def python(code, *arguments, **environment):
    return Command(sys.executable, "-c", code, *arguments, **environment)


def nnunet_dtc(*arguments, **environment):
    return Command(sys.executable, "-m", "nnunet_dtc", *arguments, **environment)


# ---- processes that score ----------------------------------------------------------------------------------------

POOL = """
import sys, time
from pathlib import Path
from nnunet_dtc.study.evaluation.workers import Workers

if __name__ == "__main__":
    from nnunet_dtc.cli.signals import ending_in_order

    with ending_in_order(), Workers(2) as workers:
        workers.map("sleeping", time.sleep, [0.0, 0.0], None)  # both are there
        Path(sys.argv[1]).touch()
        workers.map("sleeping", time.sleep, [1000.0, 1000.0], None)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGHUP])
def test_workers_end_with_their_parent_in_the_middle_of_their_work(tmp_path, number):
    ready, script = tmp_path / "ready", tmp_path / "pool.py"
    script.write_text(POOL)
    with Command(sys.executable, script, ready) as command:
        wait_until(ready.exists, "the workers did not start")
        assert command.family() >= 2
        printed = command.end(number)
        code = command.process.returncode
    if number == signal.SIGKILL:
        assert code == -number
    else:
        assert code == 128 + number
        assert [line for line in printed.splitlines() if "Interrupted" in line] == [f"Interrupted by {number.name}."]
    assert "Traceback" not in printed


WATCHED = """
import multiprocessing, sys, time
from pathlib import Path

def child(ready):
    from nnunet_dtc.study import processes

    processes.sys = type("sys", (), {"platform": "other"})  # without the kernel's help
    processes.end_with_parent()
    Path(ready).touch()
    time.sleep(1000)

if __name__ == "__main__":
    process = multiprocessing.get_context("spawn").Process(target=child, args=(sys.argv[1],))
    process.start()
    process.join()
"""


def test_the_watching_thread_alone_ends_a_worker(tmp_path):
    ready, script = tmp_path / "ready", tmp_path / "watched.py"
    script.write_text(WATCHED)
    with Command(sys.executable, script, ready) as command:
        wait_until(ready.exists, "the worker did not start")
        assert command.family() >= 1
        command.end(signal.SIGKILL)


def test_only_a_process_of_multiprocessing_has_a_parent_to_end_with():
    from nnunet_dtc.study.processes import end_with_parent

    assert multiprocessing.parent_process() is None
    with pytest.raises(RuntimeError, match="multiprocessing"):
        end_with_parent()


# ---- programs that are started -----------------------------------------------------------------------------------

PROGRAM = """
import multiprocessing, signal, sys, time
from pathlib import Path

def worker(ready):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a stubborn one
    Path(ready).touch()
    time.sleep(1000)

if __name__ == "__main__":
    process = multiprocessing.get_context("spawn").Process(target=worker, args=(sys.argv[1],))
    process.start()
    process.join()
"""

GUARDED = """
import subprocess, sys, time
from nnunet_dtc.cli.signals import ending_in_order
from nnunet_dtc.study.processes import guarded

with ending_in_order(), guarded([sys.executable, *sys.argv[1:]]) as process:
    process.wait()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_guarded_program_ends_with_its_own_workers(tmp_path, number):
    ready, script = tmp_path / "ready", tmp_path / "program.py"
    script.write_text(PROGRAM)
    with python(GUARDED, script, ready) as command:
        wait_until(ready.exists, "the program did not start")
        assert command.family() >= 3  # the guard, the program, its worker
        command.end(number)
        assert command.process.returncode == (-number if number == signal.SIGKILL else 128 + number)


@pytest.mark.parametrize(("code", "status"), [("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 15)", -15)])
def test_a_guarded_program_has_its_status_and_output(code, status):
    from nnunet_dtc.study.processes import guarded

    command = [sys.executable, "-c", f"print('hello'); import sys; sys.stdout.flush(); print(sys.stdin.read()); {code}"]
    with guarded(command, stdout=subprocess.PIPE, text=True) as process:
        printed = process.communicate(timeout=PATIENCE_S)[0]
    assert process.returncode == status
    assert printed.split() == ["hello"]


def test_what_a_guarded_program_leaves_behind_is_ended(tmp_path):
    from nnunet_dtc.study.processes import guarded

    leaving = (
        "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1000)']).pid)"
    )
    with guarded([sys.executable, "-c", leaving], stdout=subprocess.PIPE, text=True) as process:
        left = int(process.communicate(timeout=PATIENCE_S)[0])  # the pipe ends although the child had it, too
    assert process.returncode == 0
    wait_until(lambda: not lives(left), "the child is left")


# ---- the commands ------------------------------------------------------------------------------------------------


def write_labels(folder, cases):
    folder.mkdir(parents=True)
    for seed in range(cases):
        array = np.random.default_rng(seed).integers(0, 2, (5, 7, 6)).astype(np.uint8)
        sitk.WriteImage(sitk.GetImageFromArray(array), str(folder / f"case_{seed}.nii.gz"))


STAND_IN = """#!{python}
import subprocess, sys, time
from pathlib import Path

stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
worker = stubborn + "print('there', flush=True); time.sleep(1000)"
process = subprocess.Popen([sys.executable, "-c", worker], stdout=subprocess.PIPE)
process.stdout.readline()
Path({ready!r}).touch()
time.sleep(1000)
"""

WITH_STAND_IN = """
import shutil, sys
from nnunet_dtc.cli import main

program = sys.argv.pop(1)
shutil.which = lambda command, **options: program
main()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_compare_while_nnunet_predicts(tmp_path, monkeypatch, number):
    """A program that has a worker stands in for nnU-Net's command."""
    from model_folders import DATASET, Folders, draw, write_image

    folders = Folders(tmp_path / "nnunet", monkeypatch)
    for kind, name in (("labelsTs", "test_1.nii.gz"), ("imagesTs", "test_1_0000.nii.gz")):
        write_image(folders.raw / DATASET / kind / name, draw(1))
    models = [folders.train(trainer) for trainer in ("nnUNetTrainer", "nnUNetTrainerDTC")]
    ready, program, out = tmp_path / "ready", tmp_path / "stand_in", tmp_path / "out"
    program.write_text(STAND_IN.format(python=sys.executable, ready=str(ready)))
    program.chmod(0o755)
    arguments = ("compare", *models, "--test", "--device", "cpu", "-np", 1, "-o", out)
    with python(WITH_STAND_IN, program, *arguments) as command:
        wait_until(lambda: ready.exists() or command.process.poll() is not None, "nnU-Net was not called")
        assert command.family() >= 3, command.process.stdout.read()  # the guard, the command, its worker
        printed = command.end(number)
        assert command.process.returncode == (-number if number == signal.SIGKILL else 128 + number)
    assert "Traceback" not in printed
    assert not (out / "comparison.json").exists()


def test_evaluate(tmp_path):
    """The workers are stopped before they can end (SIGSTOP), so that the command is sure to be in the middle."""
    for folder in ("predictions", "labels"):
        write_labels(tmp_path / folder, 4)
    arguments = ("evaluate", tmp_path / "predictions", tmp_path / "labels", "--labels", "1", "-np", 2)
    with nnunet_dtc(*arguments) as command:

        def workers():
            return [
                pid
                for pid in descendants(command.process.pid)
                if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
            ]

        wait_until(lambda: len(workers()) == 2 or command.process.poll() is not None, "there are no workers")
        time.sleep(0.3)  # the command has registered them, too; what they import takes longer
        for pid in workers():
            os.kill(pid, signal.SIGSTOP)
        printed = command.end(signal.SIGTERM)
        assert command.process.returncode == 128 + signal.SIGTERM, printed
    assert "Interrupted by SIGTERM." in printed
    assert "Traceback" not in printed
    assert not list((tmp_path / "predictions").glob("*metrics*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_prepare_leaves_nothing(tmp_path, number):
    raw = tmp_path / "raw"
    with nnunet_dtc("prepare", "phantom", "--cases", 50, "--raw", raw) as command:
        wait_until(lambda: list(raw.glob(".Dataset*/*/imagesTr/*")), "nothing was written")
        printed = command.end(number)
        assert command.process.returncode == 128 + number
    assert printed.splitlines()[-1] == f"Interrupted by {number.name}."
    assert "Traceback" not in printed
    assert not list(raw.iterdir())


def test_what_a_killed_prepare_leaves_is_removed_by_the_next(tmp_path):
    from nnunet_dtc.study.datasets.nnunet_raw import new_raw_dataset

    raw = tmp_path / "raw"
    with nnunet_dtc("prepare", "phantom", "--cases", 50, "--raw", raw) as command:
        wait_until(lambda: list(raw.glob(".Dataset*/*/imagesTr/*")), "nothing was written")
        with new_raw_dataset(raw, 18, "Other"):
            assert len(list(raw.glob(".Dataset917_*"))) == 1  # its process lives
        command.end(signal.SIGKILL)
    assert len(list(raw.glob(".Dataset917_*"))) == 1
    with new_raw_dataset(raw, 18, "Other", overwrite=True):
        assert [folder.name[:11] for folder in raw.glob(".Dataset*")] == [".Dataset018"]
    assert [folder.name for folder in raw.iterdir()] == ["Dataset018_Other"]


KILLED_WHILE_REPLACING = """
import os, signal, sys
from pathlib import Path
from nnunet_dtc.study.datasets.nnunet_raw import new_raw_dataset

with new_raw_dataset(Path(sys.argv[1]), 17, "BTCV", overwrite=True) as folder:
    rename = Path.rename

    def kill_at_the_second(self, target):
        if self == folder:
            os.kill(os.getpid(), signal.SIGKILL)
        return rename(self, target)

    Path.rename = kill_at_the_second
"""


def test_a_data_set_that_was_moved_aside_comes_back(tmp_path):
    from nnunet_dtc.study.datasets.nnunet_raw import new_raw_dataset

    mine = tmp_path / "Dataset017_BTCV" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    done = subprocess.run([sys.executable, "-c", KILLED_WHILE_REPLACING, tmp_path], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not mine.exists()
    with new_raw_dataset(tmp_path, 18, "Other"):
        assert mine.read_text() == "mine"
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["Dataset017_BTCV", "Dataset018_Other"]


def test_hidden_folders_of_others_stay(tmp_path):
    """Another machine's, whose locks this one may not see, and one without a mark."""
    from nnunet_dtc.work_folders import MARK, work_folder

    for name, content in ((".Dataset017_BTCV.elsewhere", "another.machine"), (".Dataset017_BTCV.unknown", None)):
        (tmp_path / name / "imagesTr").mkdir(parents=True)
        if content is not None:
            (tmp_path / name / MARK).write_text(content)
    with work_folder(tmp_path, "Dataset017_BTCV") as folder:
        assert folder.parent == tmp_path
        assert len(list(tmp_path.iterdir())) == 3
    assert len(list(tmp_path.glob(".Dataset017_BTCV.*/imagesTr"))) == 2


# ---- signals -----------------------------------------------------------------------------------------------------

SLEEPING = """
import os, sys, time
from pathlib import Path
from nnunet_dtc.cli.signals import ending_in_order

with ending_in_order():
    try:
        Path(sys.argv[1]).touch()
        time.sleep(1000)
    finally:
        print("clearing", flush=True)
        time.sleep(float(sys.argv[2]))
        print("cleared", flush=True)
"""


def test_a_second_signal_does_not_disturb_the_clearing(tmp_path):
    with python(SLEEPING, tmp_path / "ready", 1) as command:
        wait_until((tmp_path / "ready").exists, "it did not start")
        command.process.send_signal(signal.SIGTERM)
        assert command.process.stdout.readline() == b"clearing\n"
        command.process.send_signal(signal.SIGINT)
        printed = command.end(signal.SIGTERM)
        assert command.process.returncode == 128 + signal.SIGTERM
    assert printed == "cleared\nInterrupted by SIGTERM.\n"


def test_an_ignored_signal_stays_ignored(tmp_path):
    """As by nohup."""
    ignoring = (
        "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    )
    with python(ignoring, sys.executable, "-c", SLEEPING, tmp_path / "ready", 0) as command:
        wait_until((tmp_path / "ready").exists, "it did not start")
        command.process.send_signal(signal.SIGHUP)
        time.sleep(0.3)
        assert command.process.poll() is None
        assert "Interrupted by SIGTERM." in command.end(signal.SIGTERM)


def test_a_fork_does_not_clear_away_what_is_its_parents(tmp_path):
    forking = SLEEPING.replace("time.sleep(1000)", "os.write(1, b'%d\\n' % os.fork()); time.sleep(1000)")
    with python(forking, tmp_path / "ready", 0) as command:
        pids = [int(command.process.stdout.readline()) for _ in range(2)]
        (child,) = (pid for pid in pids if pid)
        os.kill(child, signal.SIGTERM)
        wait_until(lambda: not lives(child), "the fork lives")
        printed = command.end(signal.SIGTERM)
    assert printed.count("cleared") == 1


def test_the_clearing_goes_on_when_the_terminal_is_gone(tmp_path):
    ours, theirs = pty.openpty()
    code = SLEEPING.replace('print("cleared", flush=True)', 'Path(sys.argv[1]).with_name("cleared").touch()')
    with default_signals():
        process = subprocess.Popen(
            [sys.executable, "-c", code, tmp_path / "ready", "0"],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
    os.close(theirs)
    wait_until((tmp_path / "ready").exists, "it did not start")
    os.close(ours)
    process.send_signal(signal.SIGHUP)
    assert process.wait(PATIENCE_S) == 128 + signal.SIGHUP
    assert (tmp_path / "cleared").exists()


# ---- what torch's compiler leaves ----------------------------------------------------------------------------------


def test_the_empty_folder_that_importing_torch_makes_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "torchinductor_before").mkdir()
    with ending_in_order():
        (tmp_path / "torchinductor_empty").mkdir()
        (tmp_path / "torchinductor_used" / "aotautograd").mkdir(parents=True)
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["torchinductor_before", "torchinductor_used"]


@pytest.mark.parametrize("users", [None, "mine"])
def test_what_is_compiled_to_be_measured_is_removed(tmp_path, monkeypatch, users):
    import torch
    from test_complexity import planned

    from nnunet_dtc.study import complexity

    seen = []

    def fail(*arguments):
        seen.append(Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]))
        (seen[0] / "fxgraph").mkdir(parents=True)
        raise complexity.ComplexityError("out of memory")

    monkeypatch.setattr("nnunet_dtc.study.complexity.survey.measure_peak_memory", fail)
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    if users:
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / users))
    trainers = complexity.find_trainers(["nnUNetTrainer"])
    with pytest.raises(complexity.ComplexityError, match="out of memory"):
        complexity.survey_trainers(planned("2d"), trainers, torch.device("cpu"))
    assert seen[0].exists() == bool(users)
    assert os.environ.get("TORCHINDUCTOR_CACHE_DIR") == (str(tmp_path / users) if users else None)
