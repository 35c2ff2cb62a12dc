import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import nnunet_dtc
from nnunet_dtc.cli import app
from nnunet_dtc.plugin import doctor
from nnunet_dtc.trainers import names


def run(*arguments):
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "400"})


def test_the_console_script_is_installed():
    script = Path(sys.executable).with_name("nnunet-dtc")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == nnunet_dtc.__version__


def test_help_lists_the_commands():
    text = run("--help").output
    for command in (
        "register", "unregister", "env", "doctor", "trainers", "warm-start", "prepare", "evaluate", "compare",
        "coordinates", "complexity",
    ):  # fmt: skip
        assert command in text


def test_trainers_lists_the_grammar_with_every_part():
    text = run("trainers").output
    assert names.GRAMMAR in text
    for part, meaning, example in names.PARTS:
        assert sum(part in line and meaning in line and example in line for line in text.splitlines()) == 1


def test_wrong_usage_fails():
    assert run("no-such-command").exit_code == 2
    assert run("warm-start").exit_code == 2


def test_doctor_when_all_is_well_and_when_not(monkeypatch):
    from nnunet_dtc.plugin import registration

    monkeypatch.setenv(registration.EXT_VARIABLE, str(registration.ext_trainer_folder()))
    done = run("doctor")
    assert done.exit_code == 0, done.output
    assert "nnU-Net's search: finds nnUNetTrainerDTC, nnUNetTrainerDTC_RF2.5 in a fresh process" in done.output
    assert f"registered: by {registration.EXT_VARIABLE}" in done.output

    monkeypatch.setenv(registration.EXT_VARIABLE, "")
    monkeypatch.setattr(registration, "registered_file", lambda: None)
    assert ("registered", "wrong") in {(finding.subject, finding.state) for finding in doctor.examine_registration()}


@pytest.mark.parametrize(("fails", "state", "seen"), [(False, "ok", "MPS"), (True, "wrong", "Unsupported Border")])
def test_doctor_tries_the_operator_on_a_mac(monkeypatch, fails, state, seen):
    """The device is the CPU here, and the error is that of torch before 2.13."""
    import torch

    import nnunet_dtc

    class Block(nnunet_dtc.DTC2d):
        def to(self, device):
            return self

        def forward(self, x):
            if fails:
                raise RuntimeError("MPS: Unsupported Border padding mode")
            return super().forward(x)

    real = torch.zeros
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch, "zeros", lambda *size, device=None, **more: real(*size, **more))
    monkeypatch.setattr(nnunet_dtc, "DTC2d", Block)
    monkeypatch.setattr(nnunet_dtc.DTC3d, "to", lambda self, device: self)
    found = doctor.examine_device()
    assert found.state == state
    assert seen in found.seen


def test_doctor_names_a_version_that_does_not_fit(monkeypatch):
    versions = {"nnunetv2": "2.6.1", "torch": "2.9.1+cu128"}
    real = doctor.importlib.metadata.version
    monkeypatch.setattr(doctor.importlib.metadata, "version", lambda name: versions.get(name) or real(name))
    findings = {finding.subject: finding for finding in doctor.examine_versions()}
    assert findings["nnunetv2"].state == findings["torch"].state == "wrong"
    assert "2.6.1, needed is" in findings["nnunetv2"].seen
    assert findings["nnunetv2"].advice.startswith("pip install 'nnunetv2")
    assert findings["dynamic-network-architectures"].state == "ok"


def test_doctor_without_an_installed_package(monkeypatch):
    def missing(name):
        raise doctor.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.importlib.metadata, "version", missing)
    found = list(doctor.examine_versions())[-1]
    assert (found.subject, found.state) == ("nnunet-dtc", "wrong")
    assert "pip install" in found.advice


def test_doctor_says_what_scans_on_a_gpu(monkeypatch):
    import torch

    from nnunet_dtc.architectures import selective_scan

    def findings():
        return [(found.state, found.seen, found.advice) for found in doctor.examine_selective_scan()]

    missing = 'mamba_ssm is not installed: pip install "nnunet-dtc[mamba]"'
    reasons = {"mamba_ssm": missing, "triton": "it computes wrongly"}
    monkeypatch.setattr(selective_scan, "why_not", reasons.get)
    monkeypatch.delenv(selective_scan.BACKEND_VARIABLE, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert findings() == []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    advice = f"for a kernel: mamba-ssm's kernel: {missing}; Triton: it computes wrongly"
    assert findings() == [("note", "on cuda: PyTorch, which is slow", advice)]
    reasons["triton"] = None
    assert findings() == [("ok", "on cuda: Triton", "")]
    monkeypatch.setenv(selective_scan.BACKEND_VARIABLE, "mamba_ssm")
    [(state, seen, advice)] = findings()
    assert state == "wrong"
    assert missing in seen
    assert advice == "unset NNUNET_DTC_SELECTIVE_SCAN, or choose another"
    reasons["mamba_ssm"] = None
    assert findings() == [("ok", "on cuda: mamba-ssm's kernel, forced by NNUNET_DTC_SELECTIVE_SCAN", "")]
    monkeypatch.setenv(selective_scan.BACKEND_VARIABLE, "torch")
    assert findings() == [("ok", "on cuda: PyTorch, forced by NNUNET_DTC_SELECTIVE_SCAN", "")]
    monkeypatch.setenv(selective_scan.BACKEND_VARIABLE, "auto")
    assert findings() == [("ok", "on cuda: mamba-ssm's kernel", "")]
    monkeypatch.setenv(selective_scan.BACKEND_VARIABLE, "fast")
    [(state, seen, _)] = findings()
    assert state == "wrong"
    assert "one of auto, torch, triton, mamba_ssm, got NNUNET_DTC_SELECTIVE_SCAN='fast'" in seen


def test_doctor_with_a_file_that_cannot_be_read(monkeypatch, tmp_path):
    from nnunet_dtc.plugin import registration

    monkeypatch.setattr(registration, "nnunet_trainer_folder", lambda: tmp_path)
    (tmp_path / registration.FILE_NAME).mkdir()
    (found,) = doctor.examine_registration()
    assert (found.subject, found.state) == ("registered", "wrong")
    assert found.seen.startswith(f"cannot read {tmp_path / registration.FILE_NAME}")
    assert "nnunet-dtc env" in found.advice


def test_prepare_says_what_simpleitk_cannot_do(monkeypatch, tmp_path):
    def broken(*arguments, **options):
        raise RuntimeError("sitk::ERROR: no space left")

    monkeypatch.setattr("SimpleITK.WriteImage", broken)
    done = run("prepare", "phantom", "--raw", str(tmp_path))
    assert done.exit_code == 1
    assert "Error: cannot write" in done.output
    assert "no space left" in done.output
    assert not list(tmp_path.iterdir())


def test_prepare_phantom(tmp_path, monkeypatch):
    monkeypatch.delenv("nnUNet_raw", raising=False)
    assert "nnUNet_raw is not set" in run("prepare", "phantom").output
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    done = run("prepare", "phantom", "-d", "21", "--cases", "5", "--test-cases", "1")
    assert done.exit_code == 0, done.output
    assert "Dataset021_Phantom (5 training and 1 held-out cases)" in done.output
    assert len(list((tmp_path / "Dataset021_Phantom" / "imagesTr").iterdir())) == 5
    again = run("prepare", "phantom", "-d", "21", "--cases", "5")
    assert again.exit_code == 1
    assert "no data set with id 21 yet" in again.output
    few = run("prepare", "phantom", "-d", "22", "--cases", "3")
    assert few.exit_code == 1
    assert "got 3" in few.output
    assert [folder.name for folder in tmp_path.iterdir()] == ["Dataset021_Phantom"]
