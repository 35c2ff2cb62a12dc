"""The bootstrap of the README's two commands: its own logic, without an installation."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def run():
    spec = importlib.util.spec_from_file_location("run", ROOT / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("arguments", "status"), [([], 2), (["nonsense"], 2), (["--help"], 0)])
def test_usage(arguments, status):
    done = subprocess.run([sys.executable, ROOT / "run.py", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert "python3 run.py demo" in done.stdout


def test_it_imports_only_the_standard_library():
    lines = (ROOT / "run.py").read_text().splitlines()
    imported = {line.split()[1].split(".")[0] for line in lines if line.startswith(("import ", "from "))}
    assert imported <= {*sys.stdlib_module_names, "__future__"}


def test_a_half_made_environment_is_made_anew(run, tmp_path, monkeypatch):
    """As an interruption while pip is put in leaves it: there is a python, and it has no pip."""
    monkeypatch.setattr(run, "ENVIRONMENT", tmp_path / ".venv")
    monkeypatch.setattr(run, "PYTHON", tmp_path / ".venv" / "bin" / "python")
    run.venv.create(run.ENVIRONMENT, with_pip=False)
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


def test_a_failed_installation_is_not_taken_for_done(run, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "ENVIRONMENT", tmp_path / ".venv")
    monkeypatch.setattr(run, "PYTHON", Path(sys.executable))
    (tmp_path / ".venv").mkdir()
    monkeypatch.setattr(run, "run", lambda *command: 1 if "install" in command else 0)
    with pytest.raises(SystemExit, match="installation failed"):
        run.install("[test]")
    assert not list((tmp_path / ".venv").iterdir())
