"""The wheel and the sdist, built from the files in git, contain the whole package and work."""

import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {"nnunet_dtc": "nnunet_dtc", "nnunet_dtc/architectures": "architectures", "nnunet_dtc/trainers": "trainers"}


def sources():
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [file for file in listed.stdout.split("\0") if file and (ROOT / file).is_file()]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist, and the wheel built from it."""
    checkout, dist = tmp_path_factory.mktemp("checkout"), tmp_path_factory.mktemp("dist")
    for file in sources():
        (checkout / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / file, checkout / file)
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", dist, checkout],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return next(dist.glob("*.tar.gz")), next(dist.glob("*.whl"))


def modules():
    """Yield every file of the three source folders with its place in the package."""
    for package, folder in FOLDERS.items():
        for file in sources():
            if file.startswith(f"{folder}/") and file.endswith((".py", "py.typed", ".jinja", "Snakefile", ".yaml")):
                yield file, f"{package}/{file.removeprefix(f'{folder}/')}"


def test_the_wheel_holds_every_module_under_one_name(built):
    names = set(zipfile.ZipFile(built[1]).namelist())
    for _, module in modules():
        assert module in names
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"nnunet_dtc"}


def test_the_sdist_holds_every_source_file(built):
    with tarfile.open(built[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for file, _ in modules():
        assert file in names
    assert {"LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "pyproject.toml", "setup.py"} <= names
    assert not [name for name in names if name.startswith("tests/")]  # without their helpers they would only fail


def metadata(built):
    wheel = zipfile.ZipFile(built[1])
    (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    return email.message_from_string(wheel.read(name).decode())


def test_the_description_leads_nowhere_in_the_repository(built):
    """A package index shows the description without the files to which the README refers."""
    found = metadata(built)
    text = found.get_payload()
    targets = re.findall(r"\]\(([^)]+)\)", text)
    assert "https://arxiv.org/abs/2601.17939" in targets
    assert not [target for target in targets if not target.startswith("https://")]
    assert "src=" not in text
    assert "href=" not in text
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert found["Description-Content-Type"] == "text/markdown"
    assert re.findall(r"^#.*", text, re.MULTILINE) == re.findall(r"^#.*", readme, re.MULTILINE)
    assert "*Picture: The DTC block:" in text


def test_the_metadata_name_authors_and_versions(built):
    found = metadata(built)
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"authors:\n  - name: {found['Author']}\n" in citation
    versions = [found[1] for found in map(re.compile(r".* :: (3\.\d+)$").match, found.get_all("Classifier")) if found]
    assert versions == ["3.10", "3.11", "3.12", "3.13"]
    assert found["Requires-Python"] == f">={versions[0]}"
    (paper,) = re.findall(r"^  url: (\S+)", citation, re.MULTILINE)
    assert f"Paper, {paper}" in found.get_all("Project-URL")


def test_the_wheel_works(built, tmp_path):
    """Unpacked elsewhere, without the checkout on the path: operator, networks, trainers and the file for nnU-Net."""
    zipfile.ZipFile(built[1]).extractall(tmp_path)
    code = """
import nnunet_dtc, nnunet_dtc.architectures, nnunet_dtc.trainers, pathlib, sys
from nnunet_dtc.plugin.registration import ext_trainer_folder, FILE_NAME
assert "nnunetv2" not in sys.modules
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find
import os
os.environ["nnUNet_extTrainer"] = str(ext_trainer_folder())
found = find("nnUNetTrainerDTC_RF2.5")
for thing in (nnunet_dtc, nnunet_dtc.architectures, nnunet_dtc.trainers):
    print(pathlib.Path(thing.__file__).parent)
print(ext_trainer_folder(), found.__name__)
"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith(str(tmp_path))]
    package = tmp_path / "nnunet_dtc"
    assert lines == [
        str(package),
        str(package / "architectures"),
        str(package / "trainers"),
        f"{package / 'plugin' / 'ext_trainer'} nnUNetTrainerDTC_RF2.5",
    ]
