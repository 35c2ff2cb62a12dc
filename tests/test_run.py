"""The bootstrap of the README's two commands, and of CI's lowest versions: their own logic, without an installation."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def script(file):
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run():
    return script(ROOT / "run.py")


@pytest.fixture
def lowest():
    return script(ROOT / ".ci" / "lowest.py")


@pytest.mark.parametrize(("arguments", "status"), [([], 2), (["nonsense"], 2), (["--help"], 0)])
def test_usage(arguments, status):
    done = subprocess.run([sys.executable, ROOT / "run.py", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert "python3 run.py demo" in done.stdout


@pytest.mark.parametrize(
    ("version", "platform", "message"),
    [((3, 10, 4), "linux", "needs Python 3.11"), ((3, 12, 1), "win32", "needs Linux or macOS")],
)
def test_the_demo_is_refused_before_anything_is_installed(run, monkeypatch, capsys, version, platform, message):
    monkeypatch.setattr(run.sys, "version_info", version)
    monkeypatch.setattr(run.sys, "platform", platform)
    monkeypatch.setattr(run, "install", lambda extra: pytest.fail("something was installed"))
    assert run.main(["demo"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("file", ["run.py", ".ci/lowest.py"])
def test_it_imports_only_the_standard_library(file):
    lines = (ROOT / file).read_text().splitlines()
    imported = {line.split()[1].split(".")[0] for line in lines if line.startswith(("import ", "from "))}
    assert imported <= {*sys.stdlib_module_names, "__future__"}


def test_a_half_made_environment_is_made_anew(run, tmp_path, monkeypatch):
    """As an interruption while pip is put in leaves it: there is a python, and it has no pip."""
    monkeypatch.setattr(run, "ENVIRONMENT", tmp_path / ".venv")
    monkeypatch.setattr(run, "PYTHON", tmp_path / ".venv" / "bin" / "python")
    run.venv.create(run.ENVIRONMENT, with_pip=False)
    (run.ENVIRONMENT / run.MARK).touch()
    asked = []
    real = run.run

    def only_look(*command):  # everything but the installation itself
        asked.append(command)
        return 0 if "install" in command else real(*command)

    monkeypatch.setattr(run, "run", only_look)
    run.install("")
    assert real(run.PYTHON, "-m", "pip", "--version") == 0
    assert any("install" in command for command in asked)
    before = len(asked)
    run.install("")  # done already
    assert len(asked) == before


def test_an_environment_of_somebody_else_is_left_alone(run, tmp_path, monkeypatch):
    """Such as one of uv, which has no pip."""
    monkeypatch.setattr(run, "ENVIRONMENT", tmp_path / ".venv")
    monkeypatch.setattr(run, "PYTHON", tmp_path / ".venv" / "bin" / "python")
    run.venv.create(run.ENVIRONMENT, with_pip=False)
    before = sorted(run.ENVIRONMENT.rglob("*"))
    with pytest.raises(SystemExit, match="move it away"):
        run.install("")
    assert sorted(run.ENVIRONMENT.rglob("*")) == before


def test_a_clone_that_was_moved_is_installed_again(run, tmp_path, monkeypatch):
    """Its packages are found by the path of the clone."""
    monkeypatch.setattr(run, "ENVIRONMENT", tmp_path)
    monkeypatch.setattr(run, "PYTHON", Path(sys.executable))
    installed = []
    monkeypatch.setattr(run, "run", lambda *command: installed.append(command) or 0)
    run.install("[test]")
    run.install("[test]")
    assert len(installed) == 1
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    monkeypatch.setattr(run, "ROOT", tmp_path / "elsewhere")
    run.install("[test]")
    assert len(installed) == 2


def test_a_failed_installation_is_not_taken_for_done(run, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "ENVIRONMENT", tmp_path / ".venv")
    monkeypatch.setattr(run, "PYTHON", Path(sys.executable))
    (tmp_path / ".venv").mkdir()
    monkeypatch.setattr(run, "run", lambda *command: 1 if "install" in command else 0)
    with pytest.raises(SystemExit, match="installation failed"):
        run.install("[test]")
    assert not list((tmp_path / ".venv").iterdir())


def test_the_lowest_versions_are_tried_with_the_oldest_python(lowest, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))  # no pyenv
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(lowest.sys, "version_info", type("Version", (), {"minor": 13}))
    assert lowest.oldest_python() == sys.executable
    assert "there is no older Python than the running" in capsys.readouterr().out
    for minor, said in ((10, "nothing: a shim without its Python"), (11, "(3, 11)"), (12, "(3, 12)")):
        python = tmp_path / f"python3.{minor}"
        python.write_text(f"#!/bin/sh\necho '{said}'\n")
        python.chmod(0o755)
    assert lowest.oldest_python() == str(tmp_path / "python3.11")


def test_tests_that_fail_with_the_lowest_versions_fail(lowest, tmp_path, monkeypatch):
    """Whatever fails, the environment or the tests, is the status; a half-made environment is not taken for done."""
    monkeypatch.setattr(lowest, "ENVIRONMENT", tmp_path / "environment")
    lowest.ENVIRONMENT.mkdir()
    false = tmp_path / "uv"
    false.write_text("#!/bin/sh\nexit 7\n")
    false.chmod(0o755)
    monkeypatch.setattr(lowest, "UV", false)
    with pytest.raises(SystemExit) as end:
        lowest.main([])
    assert end.value.code == 7
    assert not list(lowest.ENVIRONMENT.iterdir())


def test_the_tests_with_the_lowest_versions_are_there(lowest):
    assert all((ROOT / test).is_file() for test in lowest.TESTS)
