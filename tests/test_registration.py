"""nnU-Net's own finder, in fresh processes from another folder, with a copy of nnU-Net that the tests may change."""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

import nnunetv2
import pytest
from fresh_python import FreshPython

from nnunet_dtc.plugin import registration
from nnunet_dtc.plugin.registration import RegistrationError

OURS = [
    "nnUNetTrainerDTC",
    "nnUNetTrainerDTC_RF10",
    "nnUNetTrainerDTC_RF2.5",
    "nnUNetTrainerDTC_RFinf",
    "nnUNetTrainerDTC_RF10_250epochs",
    "nnUNetTrainer_7epochs",
    "nnUNetTrainerUNetLinearDTC_RF10_paper2d",
    "nnUNetTrainerSwinUNETRV2DTC_RF4",
]
NNUNETS = ["nnUNetTrainer", "nnUNetTrainer_5epochs", "nnUNetTrainerDA5"]

FIND = """
import json, sys
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find
answers = {}
for name in sys.argv[1:]:
    try:
        found = find(name)
        answers[name] = [found.__module__, found.__name__, find(name) is found]
    except Exception as error:
        answers[name] = [type(error).__name__, str(error)]
print("ANSWERS", json.dumps(answers))
"""

SPY = """
import os, sys
import nnunetv2

class Spy:
    def find_spec(self, name, path=None, target=None):
        shadowed = nnunetv2.__path__[0] in map(os.path.abspath, sys.path)
        print("IMPORTED", name, "shadowed" if shadowed else "clean")

sys.meta_path.insert(0, Spy())
"""

MYLAB = """
from nnunet_dtc.trainers import nnUNetTrainerDTC_RF10

class nnUNetTrainerDTC_mylab(nnUNetTrainerDTC_RF10):
    pass
"""

FOREIGN = """
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

class nnUNetTrainerDTC_RF4(nnUNetTrainer):
    pass

class nnUNetTrainerDTC_RFnet(nnUNetTrainer):
    pass
"""

REEXPORTING = """
from lab.trainers import (
    Special as nnUNetTrainer_300epochs,
)
nnUNetTrainer_noweight = nnUNetTrainer_300epochs
"""

# names of ours that this module does not have when nnU-Net has imported it
MENTIONING = """
import typing
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nnunet_dtc.trainers import nnUNetTrainerDTC
if typing.TYPE_CHECKING:
    from nnunet_dtc.trainers import nnUNetTrainerDTC_RF10

nnUNetTrainerDTC_RFinf: "nnUNetTrainerDTC"


def compare(trainer: "nnUNetTrainerDTC"):
    from nnunet_dtc.trainers import nnUNetTrainer_7epochs
    nnUNetTrainerDTC_RF1 = trainer
    return nnUNetTrainerDTC_RF1, [0 for nnUNetTrainerDTC_RF2_5 in ()]


class Experiment:
    nnUNetTrainerDTC_RF4 = None


TRAINERS = [nnUNetTrainerDTC_noweight for nnUNetTrainerDTC_noweight in ()]
"""

# and names that it has, deeper in the module
BINDING = """
import contextlib, typing
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

try:
    from a_lab_that_is_not_there import nnUNetTrainerDTC
except ImportError:
    class nnUNetTrainerDTC(nnUNetTrainer):
        pass
if not hasattr(nnUNetTrainer, "there_is_no_such_thing"):
    nnUNetTrainerDTC_RF10: type = nnUNetTrainer
if typing.TYPE_CHECKING:
    from nnunet_dtc.trainers import nnUNetTrainerDTC_RF8
else:
    nnUNetTrainerDTC_RF8 = nnUNetTrainer
for nnUNetTrainerDTC_RF4 in (nnUNetTrainer,):
    with contextlib.nullcontext(nnUNetTrainer) as nnUNetTrainerDTC_RF1:
        nnUNetTrainer_7epochs, [nnUNetTrainerDTC_RFinf] = nnUNetTrainer, [nnUNetTrainer]
while True:
    try:
        pass
    finally:
        nnUNetTrainerDTC_noweight = nnUNetTrainer
    break
"""
BOUND = [
    "nnUNetTrainerDTC", "nnUNetTrainerDTC_RF10", "nnUNetTrainerDTC_RF4", "nnUNetTrainerDTC_RF1",
    "nnUNetTrainerDTC_RF8", "nnUNetTrainer_7epochs", "nnUNetTrainerDTC_RFinf", "nnUNetTrainerDTC_noweight",
]  # fmt: skip


# imports a package of the lab that has the name of one of nnU-Net's
LABS_PACKAGE = """
from evaluation.lab import nnUNetTrainer

class nnUNetTrainerLab(nnUNetTrainer):
    pass
"""

FACTORY = """
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

def __getattr__(name):
    if name in ("nnUNetTrainerMade", "nnUNetTrainerMade_rep2"):
        return type(name, (nnUNetTrainer,), {"__module__": __name__})
    raise AttributeError(name)
"""


@pytest.fixture
def site(tmp_path):
    """A folder with a copy of nnU-Net and its bytecode, for PYTHONPATH."""
    site = tmp_path / "site"
    ours = shutil.ignore_patterns(f"{Path(registration.FILE_NAME).stem}.*")
    shutil.copytree(Path(nnunetv2.__path__[0]), site / "nnunetv2", ignore=ours)
    return site


@pytest.fixture
def registered(site):
    """The trainer folder of this copy, with the file that `nnunet-dtc register` writes."""
    folder = site / "nnunetv2" / "training" / "nnUNetTrainer"
    shutil.copy(registration.ext_trainer_folder() / registration.FILE_NAME, folder)
    return folder


@pytest.fixture(scope="module")
def fresh_python():
    fresh = FreshPython()
    yield fresh
    fresh.close()


@pytest.fixture
def python(fresh_python, site, tmp_path):
    """Run Python in a fresh process from another folder, with the copy of nnU-Net."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def run(*arguments, ext_trainer="", before=()):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("nnUNet_")}
        environment["PYTHONPATH"] = os.pathsep.join(map(str, [*before, site]))
        if ext_trainer:
            environment[registration.EXT_VARIABLE] = str(ext_trainer)
        return fresh_python.run(list(arguments), elsewhere, environment)

    return run


def find(python, *names, **options):
    done = python("-c", FIND, *names, **options)
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("ANSWERS "))
    return json.loads(line.removeprefix("ANSWERS ")), done


def files(folder):
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*"))


def assert_ours(answers, names=OURS):
    for name in names:
        module, found, same = answers[name]
        assert module.startswith("nnunet_dtc.trainers")
        assert found == name
        assert same is True


def assert_nnunets(answers):
    for name in NNUNETS:
        module, found, same = answers[name]
        assert module.startswith("nnunetv2.training.nnUNetTrainer.")
        assert found == name
        assert same is True


def test_register_find_unregister(site, python, tmp_path):
    folder = site / "nnunetv2" / "training" / "nnUNetTrainer"
    users = tmp_path / "users"
    users.mkdir()
    (users / "mylab.py").write_text(MYLAB)

    python("-c", "import nnunetv2.training.nnUNetTrainer.nnUNetTrainer")
    before = [file for file in files(folder) if "__pycache__" not in file]
    done = python("-c", "import os; os.umask(0o077); from nnunet_dtc.cli import main; main()", "register")
    assert done.returncode == 0, done.stderr
    assert str(folder / registration.FILE_NAME) in done.stdout
    modes = {os.stat(folder / name).st_mode for name in (registration.FILE_NAME, "nnUNetTrainer.py")}
    assert len(modes) == 1  # for all who may read nnU-Net's files
    assert python("-m", "nnunet_dtc", "register").returncode == 0  # safe to repeat

    answers, done = find(python, *OURS, *NNUNETS, "nnUNetTrainerDTC_mylab", ext_trainer=users)
    assert_ours(answers)
    assert_nnunets(answers)
    assert answers["nnUNetTrainerDTC_mylab"][:2] == ["mylab", "nnUNetTrainerDTC_mylab"]
    assert "Hint" not in done.stderr  # somebody defines it

    answers, done = find(
        python, "nnUNetTrainerDTC_typo", "nnUNetTrainerDTC_RFx", "nnUNetTrainerDTC_RF02", "nnUNetTrainerX"
    )
    assert answers["nnUNetTrainerDTC_typo"][0] == "RuntimeError"  # nnU-Net's own "Could not find"
    assert done.stderr.count("Hint: nnUNetTrainerDTC_typo: _typo is no suffix") == 1
    assert answers["nnUNetTrainerDTC_RFx"][0] == "TrainerNameError"
    assert "use nnUNetTrainerDTC" in answers["nnUNetTrainerDTC_RF02"][1]
    assert answers["nnUNetTrainerX"][0] == "RuntimeError"

    done = python("-m", "nnunet_dtc", "unregister")
    assert done.returncode == 0, done.stderr
    assert [file for file in files(folder) if "__pycache__" not in file] == before
    assert not [file for file in files(folder) if "nnunet_dtc" in file]
    answers, _ = find(python, *OURS, *NNUNETS)
    assert_nnunets(answers)
    assert {answers[name][0] for name in OURS} == {"RuntimeError"}


def test_by_the_environment_variable_alone(site, python, tmp_path):
    before = [file for file in files(site) if "__pycache__" not in file]
    line = python("-m", "nnunet_dtc", "env", ext_trainer=tmp_path).stdout.strip()
    assert line.startswith(f"export nnUNet_extTrainer={tmp_path}{os.pathsep}")  # what it held is kept
    value = line.partition("=")[2]
    assert python("-m", "nnunet_dtc", "env", ext_trainer=value).stdout.strip() == line
    answers, _ = find(python, *OURS, *NNUNETS, ext_trainer=value)
    assert_ours(answers)
    assert_nnunets(answers)
    assert [file for file in files(site) if "__pycache__" not in file] == before


def test_what_others_define_stays_theirs(registered, python):
    """Flat files are searched before packages: the foreign file is passed after ours."""
    (registered / "variants" / "foreign.py").write_text(FOREIGN)
    answers, _ = find(python, "nnUNetTrainerDTC_RF4", "nnUNetTrainerDTC_RFnet", "nnUNetTrainerDTC_RF10")
    assert answers["nnUNetTrainerDTC_RF4"][0].endswith("variants.foreign")
    assert answers["nnUNetTrainerDTC_RFnet"][0].endswith("variants.foreign")
    assert_ours(answers, ["nnUNetTrainerDTC_RF10"])


def test_what_others_only_import_or_assign_stays_theirs(registered, python, tmp_path):
    """A flat file that re-exports a lab's trainers, as ours does."""
    users, packages = tmp_path / "users", tmp_path / "packages" / "lab"
    users.mkdir()
    packages.mkdir(parents=True)
    (users / "ours.py").write_text(REEXPORTING)
    (packages / "__init__.py").touch()
    (packages / "trainers.py").write_text(FOREIGN.replace("nnUNetTrainerDTC_RF4", "Special"))
    names = ["nnUNetTrainer_300epochs", "nnUNetTrainer_noweight"]
    answers, _ = find(python, *names, ext_trainer=users, before=[packages.parent])
    assert [answers[name][:2] for name in names] == [["lab.trainers", "Special"]] * 2


@pytest.mark.parametrize("where", ["trainer folder", "ext_trainer"])
def test_what_others_mention_stays_ours(registered, python, tmp_path, where):
    """For type checkers, inside of a function or of a class: nnU-Net finds no such name in a module."""
    users = tmp_path / "users"
    users.mkdir()
    ((registered / "variants" if where == "trainer folder" else users) / "helpers.py").write_text(MENTIONING)
    answers, _ = find(python, *BOUND, ext_trainer=users)
    assert_ours(answers, BOUND)


def test_what_others_bind_deeper_in_a_module_stays_theirs(registered, python):
    (registered / "variants" / "foreign.py").write_text(BINDING)
    answers, _ = find(python, *BOUND, "nnUNetTrainerDTC_RF2.5")
    assert answers["nnUNetTrainerDTC"][0].endswith("variants.foreign")
    assert [answers[name][1] for name in BOUND] == ["nnUNetTrainerDTC", *["nnUNetTrainer"] * (len(BOUND) - 1)]
    assert_ours(answers, ["nnUNetTrainerDTC_RF2.5"])


@pytest.mark.parametrize("how", ["registered", "by the environment"])
def test_repetitions_of_trainers_of_others(how, site, python, tmp_path, request):
    users = tmp_path / "users"
    users.mkdir()
    (users / "mylab.py").write_text(MYLAB)
    (users / "zoo.py").write_text(FACTORY)
    (users / "other.py").write_text(LABS_PACKAGE + "\nclass OtherTrainer(nnUNetTrainer):\n    pass\n")
    labs = tmp_path / "labs"
    (labs / "evaluation").mkdir(parents=True)
    (labs / "evaluation" / "__init__.py").touch()
    (labs / "evaluation" / "lab.py").write_text(
        "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer\n"
    )
    paths = [users]
    if how == "registered":
        request.getfixturevalue("registered")
    else:
        paths.append(registration.ext_trainer_folder())
    repetitions = [
        "nnUNetTrainerDA5_rep2", "nnUNetTrainerDTC_mylab_rep13", "nnUNetTrainerNoMirroring_rep2",
        "nnUNetTrainerMade_rep3", "nnUNetTrainerLab_rep2",
    ]  # fmt: skip
    own = ["nnUNetTrainerMade_rep2"]
    nobodys = [
        "nnUNetTrainerNobody_rep2", "nnUNetTrainerDTC_typo_rep2", "nnUNetTrainerDA5_rep1", "nnUNetTrainerDA5_rep02",
        "nnUNetTrainerDA5_rep2_rep3", "nnUNetTrainerDA5_rep", "OtherTrainer_rep2",
    ]  # fmt: skip
    where = {"ext_trainer": os.pathsep.join(map(str, paths)), "before": [labs]}
    answers, done = find(python, *repetitions, *own, **where)
    assert_ours(answers, repetitions)
    assert "Hint" not in done.stderr
    assert answers["nnUNetTrainerMade_rep2"][:2] == ["zoo", "nnUNetTrainerMade_rep2"]  # its module makes it itself
    answers, done = find(python, *nobodys, **where)
    assert {name: answers[name][0] for name in nobodys} == dict.fromkeys(nobodys, "RuntimeError")
    assert done.stderr.count("Hint: nnUNetTrainerDTC_typo_rep2: _typo is no suffix") == done.stderr.count("Hint:") == 1


@pytest.mark.parametrize("how", ["raise ImportError('broken on purpose')", "import utilities_that_are_not_there"])
def test_a_broken_installation_of_ours_does_no_harm(registered, python, tmp_path, how):
    broken = tmp_path / "broken"
    (broken / "nnunet_dtc").mkdir(parents=True)
    (broken / "nnunet_dtc" / "__init__.py").write_text(how)
    answers, done = find(python, *NNUNETS, "nnUNetTrainerDTC", before=[broken])
    assert_nnunets(answers)
    assert answers["nnUNetTrainerDTC"][0] == "RuntimeError"
    assert "nnunet-dtc is registered with nnU-Net, but cannot be imported" in done.stderr


def test_extras_that_are_missing_or_broken_do_no_harm(registered, python, tmp_path):
    """The search imports neither MONAI nor mamba-ssm; here it would fail with them."""
    for extra in ("monai", "mamba_ssm", "numba"):
        (tmp_path / "broken" / extra).mkdir(parents=True)
        (tmp_path / "broken" / extra / "__init__.py").write_text("raise ImportError('broken on purpose')")
    names = ["nnUNetTrainerUNETR", "nnUNetTrainerSegMambaDTC_RF4"]
    answers, done = find(python, *names, *NNUNETS, before=[tmp_path / "broken"])
    assert_ours(answers, names)
    assert_nnunets(answers)
    assert "broken on purpose" not in done.stderr


def test_all_of_ours_is_imported_while_nnunets_folder_is_off_the_path(registered, python):
    """nnU-Net's search puts it first on sys.path, where its `utilities` would be taken for somebody else's."""
    done = python("-c", SPY + FIND, "nnUNetTrainerUNetFADEDTC_paper2d", "nnUNetTrainerSegMambaDTC")
    assert done.returncode == 0, done.stderr
    imported = dict(line.split()[1:] for line in done.stdout.splitlines() if line.startswith("IMPORTED "))
    assert imported["nnunetv2.training.nnUNetTrainer.nnunet_dtc_trainers"] == "shadowed"  # the search's doing
    ours = {name: how for name, how in imported.items() if name.partition(".")[0] == "nnunet_dtc"}
    assert {"nnunet_dtc.architectures.segmamba", "nnunet_dtc.trainers.paper2d"} <= set(ours)
    assert set(ours.values()) == {"clean"}


def test_the_file_that_nnunet_sees_imports_only_the_standard_library():
    text = (registration.ext_trainer_folder() / registration.FILE_NAME).read_text()
    top = [line for line in text.splitlines() if line.startswith(("import ", "from "))]
    assert {line.split()[1] for line in top} <= sys.stdlib_module_names
    assert [file.name for file in registration.ext_trainer_folder().glob("*.py")] == [registration.FILE_NAME]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    folder = tmp_path / "nnUNetTrainer"
    folder.mkdir()
    monkeypatch.setattr(registration, "nnunet_trainer_folder", lambda: folder)
    return folder


def test_a_file_of_that_name_that_is_not_ours_is_left_alone(folder):
    file = folder / registration.FILE_NAME
    file.write_text("class nnUNetTrainerSomething: pass\n")
    for action in (registration.register, registration.unregister):
        with pytest.raises(RegistrationError, match="is not a file of nnunet-dtc"):
            action()
    assert file.read_text() == "class nnUNetTrainerSomething: pass\n"
    assert registration.registered_file() is None


def test_a_file_of_that_name_that_cannot_be_read(folder):
    (folder / registration.FILE_NAME).mkdir()  # for root, too
    for action in (registration.unregister, registration.registered_file):
        with pytest.raises(RegistrationError, match=r"cannot read .*\(Is a directory\)"):
            action()


def test_an_older_file_of_ours_is_brought_up_to_date(folder):
    file = folder / registration.FILE_NAME
    file.write_text(registration.MARK + " of an older version\n")
    assert registration.register() == file
    assert file.read_bytes() == (registration.ext_trainer_folder() / registration.FILE_NAME).read_bytes()
    assert registration.unregister() == file
    assert registration.unregister() is None


@pytest.mark.parametrize("mode", [0o555, 0o000])
def test_an_unwritable_nnunet(monkeypatch, mode):
    with tempfile.TemporaryDirectory() as parent:  # everybody may look into it, unlike tmp_path
        Path(parent).chmod(0o755)
        folder = Path(parent) / "nnUNetTrainer"
        folder.mkdir(mode=mode)
        monkeypatch.setattr(registration, "nnunet_trainer_folder", lambda: folder)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)  # root may write everywhere
        try:
            with pytest.raises(RegistrationError, match=r"cannot write into .*\(Permission denied\).*nnunet-dtc env"):
                registration.register()
        finally:
            if root:
                os.seteuid(0)
        folder.chmod(0o755)
        assert list(folder.iterdir()) == []


def test_without_nnunet(monkeypatch):
    monkeypatch.setattr(registration.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RegistrationError, match="nnU-Net is not installed"):
        registration.register()
