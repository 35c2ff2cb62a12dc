"""pyproject.toml declares what the package imports, and heavy modules are imported only when they are needed."""

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

import nnunet_dtc

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

ROOT = Path(__file__).parents[1]
FOLDERS = ("nnunet_dtc", "architectures", "trainers")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
IMPORTED_AS = {"Pillow": "PIL", "pyyaml": "yaml"}  # distributions whose module has another name
WITH_TORCH = {"triton"}  # torch's builds for CUDA bring the one version that fits them; all others do without


def requirements(extra=None):
    """The requirements of the base installation or of an extra."""
    texts = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
    return [Requirement(text) for text in texts]


def modules_of(extra=None):
    """The modules that the base installation or an extra declares."""
    names = [requirement.name for requirement in requirements(extra)]
    return {IMPORTED_AS.get(name, name.replace("-", "_")) for name in names}


def imported():
    """Map each module to the files that import it, by a statement or by a name in a string."""
    found = {}
    for folder in FOLDERS:
        for file in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                names = []
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom):
                    assert node.level == 0, f"{file} has a relative import"
                    names = [node.module]
                elif isinstance(node, ast.Constant) and re.fullmatch(r"mamba_ssm(\.\w+)+", str(node.value)):
                    names = [node.value]  # for importlib
                for name in names:
                    found.setdefault(name.partition(".")[0], set()).add(str(file.relative_to(ROOT)))
    return {module: files for module, files in found.items() if module not in {*sys.stdlib_module_names, "nnunet_dtc"}}


def test_every_import_is_declared_and_every_declaration_imported():
    files = imported()
    of_extras = modules_of("cpu") | modules_of("mamba") | modules_of("monai")
    assert set(PROJECT["optional-dependencies"]) == {"cpu", "mamba", "monai", "onnx", "study", "test"}
    assert not modules_of("onnx") & set(files)  # for torch's exporters and whoever runs what they write
    assert set(files) - WITH_TORCH - of_extras == modules_of()
    # an extra's modules are imported by few files, which other files import only where they can be
    assert {module: files[module] for module in of_extras} == {
        "numba": {"nnunet_dtc/ops/backends/cpu_kernels.py"},
        "llvmlite": {"nnunet_dtc/ops/backends/cpu_kernels.py"},
        "monai": {"architectures/monai_networks.py"},
        "mamba_ssm": {"architectures/scan/mamba_ssm.py"},
    }


def test_every_declaration_has_a_lowest_version():
    for extra in (None, *PROJECT["optional-dependencies"]):
        for requirement in requirements(extra):
            if requirement.name not in ("nnunet-dtc", "mamba-ssm"):  # mamba-ssm is built by users, and not tried here
                assert ">=" in str(requirement.specifier), str(requirement)


def test_no_base_dependency_asks_for_a_newer_torch_or_numpy():
    """The newest release of each, which pip installs, must accept the lowest torch and numpy; MONAI's does not."""
    lowest = {"torch": "2.6.0", "numpy": "1.26.0"}
    for name, version in lowest.items():
        (ours,) = [requirement for requirement in requirements() if requirement.name == name]
        assert f">={version.removesuffix('.0')}" in str(ours.specifier)
    for requirement in requirements():
        if requirement.name in (*lowest, "scipy", "pandas", "matplotlib"):  # built for numpy; nnU-Net has these
            continue
        for text in importlib.metadata.requires(requirement.name) or []:
            theirs = Requirement(text)
            if theirs.name in lowest and (theirs.marker is None or theirs.marker.evaluate({"extra": ""})):
                assert theirs.specifier.contains(lowest[theirs.name]), f"{requirement.name}: {text}"


def run(code, *, without=(), **environment):
    """Run Python code in a new process in which some modules cannot be imported."""
    block = "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in without)
    return subprocess.run(
        [sys.executable, "-c", block + code],
        capture_output=True, text=True, check=False, env={**os.environ, **environment},
    )  # fmt: skip


HEAVY = ("torch", "numpy", "scipy", "pandas", "matplotlib", "SimpleITK", "nibabel", "nnunetv2", "monai", "numba")
COMMANDS = ("register", "unregister", "env", "doctor", "warm-start", "evaluate", "compare", "coordinates", "complexity")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["trainers"],
        ["prepare", "--help"],
        ["prepare", "btcv", "--help"],
        ["study", "run", "--help"],
    ]
    + [[command, "--help"] for command in COMMANDS],
    ids=" ".join,
)
def test_the_command_line_answers_without_torch(arguments):
    """Commands that only print text import no module that takes seconds."""
    done = run(f"""
sys.argv = ["nnunet-dtc", *{arguments}]
from nnunet_dtc.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print("LOADED", [name for name in {HEAVY} if name in sys.modules])
""")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "LOADED []"
    assert len(done.stdout.splitlines()) > 1


def test_public_names_load_when_they_are_used():
    done = run("""
import nnunet_dtc
assert set(nnunet_dtc.__all__) <= set(dir(nnunet_dtc))
assert "torch" not in sys.modules
from nnunet_dtc import *
assert "torch" in sys.modules and "nnunetv2" not in sys.modules
for name in nnunet_dtc.__all__:
    assert globals()[name] is getattr(nnunet_dtc, name) is vars(nnunet_dtc)[name], name
""")
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match="module 'nnunet_dtc' has no attribute 'DTC4d'"):
        _ = nnunet_dtc.DTC4d


def test_type_checkers_see_the_names_where_they_are():
    """The imports for type checkers are complete and name the modules that define the names."""
    tree = ast.parse(Path(nnunet_dtc.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert set(seen) == set(nnunet_dtc.__all__) - {"__version__"}
    for name, module in seen.items():
        assert getattr(nnunet_dtc, name).__module__ == module


ARGUMENTS = "Tensor? base, Tensor value, Tensor coords, SymInt[] stride, float receptive_field, str offset, str weight"
BACKWARD = (
    "Tensor grad, Tensor value, Tensor coords, SymInt[] stride, float receptive_field, str offset, str weight, "
    "bool wants_value, bool wants_coords"
)


@pytest.mark.parametrize("backend", ["reference", "numba", "triton"])
def test_schemas_of_the_operators(backend):
    """Saved programs name the operators with these arguments, so they must not change between releases of torch."""
    import nnunet_dtc.ops.backends  # noqa: F401 (defines them)

    operators = torch.ops.nnunet_dtc
    name = f"upsample_{backend}"
    assert str(getattr(operators, name).default._schema) == f"nnunet_dtc::{name}({ARGUMENTS}) -> Tensor"
    backward = getattr(operators, f"{name}_backward").default._schema
    assert str(backward) == f"nnunet_dtc::{name}_backward({BACKWARD}) -> (Tensor, Tensor)"


def test_a_saved_program_needs_the_import_that_the_docstring_names(tmp_path):
    block = nnunet_dtc.DTC2d(3, 4, stride=(1, 2)).eval()
    x = torch.randn(2, 3, 5, 7)
    torch.export.save(torch.export.export(block, (x,)), tmp_path / "program.pt2")
    torch.save((x, block(x).detach()), tmp_path / "expected.pt")
    load = f"""
import torch
program = torch.export.load({str(tmp_path / "program.pt2")!r})
x, expected = torch.load({str(tmp_path / "expected.pt")!r})
torch.testing.assert_close(program.module()(x), expected)
"""
    done = run(f"import nnunet_dtc.ops.backends\n{load}")
    assert done.returncode == 0, done.stderr
    assert "import nnunet_dtc.ops.backends" in nnunet_dtc.__doc__.replace("``", "")
    assert run(load).returncode != 0  # without the import it fails


def test_the_base_works_without_the_extras():
    """Operator, metrics, networks, and the search for trainers, also for those whose network needs MONAI."""
    done = run(
        """
import torch
from nnunet_dtc import DTC3d
from nnunet_dtc.architectures import build_network
from nnunet_dtc.study.evaluation.surface_elements import element_areas
from nnunet_dtc.trainers import trainer_class

DTC3d(2, 3, stride=(1, 2, 2))(torch.randn(1, 2, 3, 4, 5)).sum().backward()
assert element_areas((1.0, 2.0, 3.0)).shape == (256,)
assert trainer_class("nnUNetTrainerUNETRDTC_RF4").__name__ == "nnUNetTrainerUNETRDTC_RF4"
assert build_network("NnMamba", 1, 2, (32, 32), {"width": 4, "blocks": 2})(torch.randn(2, 1, 32, 32)).shape[1] == 2
""",
        without=("monai", "numba", "llvmlite", "mamba_ssm", "triton"),
    )
    assert done.returncode == 0, done.stderr
