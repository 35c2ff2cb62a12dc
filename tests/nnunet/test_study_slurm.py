"""A study on a real SLURM of one machine, whose time limit kills a training in the middle: the next try finishes it.

It starts SLURM's daemons as root and writes /etc/slurm/slurm.conf, which it removes in the end, and takes some minutes.
It therefore runs only where ``NNUNET_DTC_SLURM=1`` asks for it, best in a container.
"""

import contextlib
import itertools
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "squeue", "munged")  # Debian: apt install slurm-wlm munge
WITH_SBIN = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin"))
CONFIGURATION = Path("/etc/slurm/slurm.conf")  # Snakemake's jobs do not keep SLURM_CONF
MARK = "# of the tests of nnunet-dtc"
TRAINER = "nnUNetTrainer_9epochs"
PATIENCE_S = 1500

pytestmark = pytest.mark.nnunet

# An epoch takes so long that the shortest time limit of SLURM, one minute, ends the training in the middle.
TRAINERS = f"""
import time
from pathlib import Path

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class {TRAINER}(nnUNetTrainer):
    def __init__(self, plans: dict, configuration: str, fold: int, dataset_json: dict,
                 device: torch.device = torch.device("cuda")):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs, self.save_every = 9, 1
        self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 2, 1
        self.logger.plot_progress_png = lambda folder: Path(folder, "progress.png").touch()

    def on_epoch_end(self):
        super().on_epoch_end()
        time.sleep(12)
"""

SLURM_CONF = """\
{mark}
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldPort=16817
SlurmdPort=16818
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
KillWait=5
ReturnToService=2
MpiDefault=none
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=4000 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP OverTimeLimit=0
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """SLURM's two daemons, and munged where it does not run."""
    if os.environ.get("NNUNET_DTC_SLURM") != "1":
        pytest.skip("NNUNET_DTC_SLURM=1 lets it start SLURM's daemons on this machine")
    if shutil.which("snakemake", path=str(Path(sys.executable).parent)) is None and shutil.which("snakemake") is None:
        pytest.skip("no Snakemake (pip install 'nnunet-dtc[study]')")
    if missing := [program for program in PROGRAMS if shutil.which(program, path=WITH_SBIN) is None]:
        pytest.skip(f"no {', '.join(missing)} (apt install slurm-wlm munge)")
    if os.geteuid() != 0:
        pytest.skip("SLURM's daemons are started as root")
    if CONFIGURATION.exists() and MARK not in CONFIGURATION.read_text():
        pytest.skip(f"there is a SLURM already: {CONFIGURATION}")
    folder = tmp_path_factory.mktemp("slurm")
    for name in ("state", "spool"):
        (folder / name).mkdir()
    CONFIGURATION.parent.mkdir(exist_ok=True)
    CONFIGURATION.write_text(
        SLURM_CONF.format(mark=MARK, host=socket.gethostname(), folder=folder, cpus=os.cpu_count())
    )
    started = []
    try:
        if subprocess.run(["munge", "-n"], capture_output=True, check=False).returncode != 0:
            started.append(start_munged())
        for daemon in ("slurmctld", "slurmd"):
            started.append(start([daemon, "-D"]))
        wait_for_node()
        yield folder
    finally:
        for process in reversed(started):
            process.send_signal(signal.SIGTERM)
        for process in started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
        CONFIGURATION.unlink()


def start(command):
    program = shutil.which(command[0], path=WITH_SBIN)
    return subprocess.Popen([program, *command[1:]], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def start_munged():
    Path("/run/munge").mkdir(exist_ok=True)
    shutil.chown("/run/munge", "munge")
    return start(["runuser", "-u", "munge", "--", shutil.which("munged", path=WITH_SBIN), "--foreground"])


def wait_for_node():
    until = time.monotonic() + 60
    while time.monotonic() < until:
        done = subprocess.run(["sinfo", "-h", "-o", "%t"], capture_output=True, text=True, check=False)
        if done.stdout.strip() == "idle":
            return
        time.sleep(1)
    pytest.skip(f"SLURM does not start here, it has no idle node: {done.stdout}{done.stderr}")


@pytest.fixture(scope="module")
def env(workspace, dataset):
    workspace.shrink_plans(dataset, features_2d=(4, 8, 16))
    trainers = workspace.root / "trainers"
    trainers.mkdir()
    (trainers / "slow_trainer.py").write_text(TRAINERS)
    env = workspace.environment()
    env["PYTHONPATH"] = os.environ.get("PYTHONPATH", "")
    return env | {"nnUNet_extTrainer": os.pathsep.join((str(trainers), env["nnUNet_extTrainer"]))}


def test_a_training_that_the_time_limit_ends_goes_on_in_the_next_try(slurm, workspace, dataset, env):
    file = workspace.root / "cluster.yaml"
    folders = {f"nnUNet_{part}": str(getattr(workspace, part)) for part in ("raw", "preprocessed", "results")}
    content = {
        "dataset": dataset,
        "configuration": "2d",
        "trainers": [TRAINER],
        "folds": [0],
        "device": "cpu",
        **folders,
    }
    file.write_text(yaml.safe_dump(content))
    resources = [f"{job}:mem_mb=1500" for job in ("preprocess", "train", "validate")]
    printed = workspace.run(
        *("nnunet-dtc", "study", file, "--profile", "slurm", "--", "--jobs", 1, "--latency-wait", 10),
        *("--set-threads", "train=1", "--set-resources", "train:runtime=1", *resources),
        *("--slurm-no-account", "--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", 3),
        *("--seconds-between-status-checks", 5),
        env=env,
        timeout_s=PATIENCE_S,
    )
    fold = workspace.fold_folder(dataset, "2d", 0, TRAINER)
    logs = sorted(fold.glob("training_log_*.txt"), key=lambda log: log.stat().st_mtime)
    epochs = [[int(n) for n in re.findall(r": Epoch (\d+) *$", log.read_text(), re.MULTILINE)] for log in logs]
    epochs = [found for found in epochs if found]
    assert len(epochs) > 1, printed  # the time limit has ended the first try
    assert epochs[0][0] == 0
    for before, after in itertools.pairwise(epochs):
        assert 0 < after[0] <= before[-1] + 1
    assert epochs[-1][-1] == 8
    assert len(workspace.read_checkpoint(fold / "checkpoint_final.pth")["logging"]["train_losses"]) == 9
    assert "1 training: 1 finished" in printed
