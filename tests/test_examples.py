"""The examples in docstrings give the results that they show, and every public name has one."""

import doctest
import importlib
from pathlib import Path

import pytest

import nnunet_dtc
from nnunet_dtc import upsamplers

ROOT = Path(__file__).parents[1]
FOLDERS = {
    "nnunet_dtc": "nnunet_dtc",
    "architectures": "nnunet_dtc.architectures",
    "trainers": "nnunet_dtc.trainers",
}
OPTIONAL = {"monai", "mamba_ssm", "numba", "llvmlite", "triton", "snakemake"}


def modules_with_examples():
    for folder, package in FOLDERS.items():
        for file in sorted((ROOT / folder).rglob("*.py")):
            if ">>>" in file.read_text(encoding="utf-8"):
                parts = file.relative_to(ROOT / folder).with_suffix("").parts
                yield ".".join([package, *(part for part in parts if part != "__init__")])


@pytest.mark.parametrize("name", list(modules_with_examples()))
def test_examples(name, tmp_path, monkeypatch):
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name.partition(".")[0] not in OPTIONAL:
            raise
        pytest.skip(str(error))
    monkeypatch.chdir(tmp_path)  # for examples that write files
    result = doctest.testmod(module)
    assert result.attempted
    assert not result.failed


@pytest.mark.parametrize("package", [nnunet_dtc, upsamplers], ids=lambda package: package.__name__)
def test_every_public_function_and_class_has_an_example(package):
    public = {name: getattr(package, name) for name in package.__all__}
    without = [name for name, value in public.items() if callable(value) and ">>>" not in value.__doc__]
    assert not without
