"""The README and docs/: links lead somewhere, and the commands, trainers, messages and examples in them exist."""

import ast
import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import typer

from nnunet_dtc import cli
from nnunet_dtc.trainers import names

ROOT = Path(__file__).parents[1]
FOLDERS = ("nnunet_dtc", "architectures", "trainers")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
OF_OTHERS = {
    "Could not find requested nnunet trainer nnUNetTrainerDTC": "nnU-Net",
    "operator torchvision::nms does not exist": "torchvision",
    "Key decoder.transpconvs.0.base.weight is missing in the pretrained model weights": "nnU-Net",
    'Missing key(s) in state_dict: "decoder.transpconvs.0.base.weight"': "torch",
    "CUDA out of memory": "torch",
}
NOT_TRAINERS = {"nnUNetTrainerDTC_mylab", "nnUNetTrainerUNETRLinear"}  # an example of one's own; one that is refused

on_each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def text_of(page):
    return page.read_text(encoding="utf-8")


def quoted_messages():
    """The first code span of each row of the table, without the head."""
    section = text_of(ROOT / "README.md").partition("\n## Errors that you may see\n")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    return [re.match(r"\| `([^`]+)`", row).group(1) for row in rows]


def strings_of_the_sources():
    """Every string but docstrings, its parts put together; what an f-string fills in is "..."."""
    for folder in FOLDERS:
        for file in sorted((ROOT / folder).rglob("*.py")):
            tree = ast.parse(file.read_text(encoding="utf-8"))
            docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
            for node in ast.walk(tree):
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                    yield node.value
                if isinstance(node, ast.JoinedStr):
                    yield "".join(part.value if isinstance(part, ast.Constant) else "..." for part in node.values)


def test_our_messages_in_the_table_of_errors_are_those_of_the_sources():
    messages = quoted_messages()
    assert set(OF_OTHERS) < set(messages)
    strings = list(strings_of_the_sources())
    for message in messages:
        if message not in OF_OTHERS:
            assert any(message in string for string in strings), message


def anchors(page):
    """The names that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text_of(page), flags=re.M | re.S), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@on_each_page
def test_relative_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_file(), target
        assert file.is_relative_to(ROOT), target
        if anchor:
            assert anchor in anchors(file), target


def test_the_readme_links_to_each_page_of_the_docs():
    targets = set(re.findall(r"\]\(docs/(\w+\.md)", text_of(ROOT / "README.md")))
    assert targets == {page.name for page in PAGES if page.parent.name == "docs"}


def commands_of(text):
    """The arguments of each nnunet-dtc command in indented blocks and in code spans."""
    text = text.replace("\\\n", " ")
    blocks = re.findall(r"^ {4,}(nnunet-dtc .*)$", text, re.MULTILINE)
    spans = [span for span in re.findall(r"`(nnunet-dtc [^`]+)`", text) if span not in quoted_messages()]
    return [shlex.split(line, comments=True)[1:] for line in blocks + spans]


def check_command(arguments):
    """Refuse a subcommand or an option that the command line does not have."""
    command = typer.main.get_command(cli.app)
    while hasattr(command, "commands") and arguments and arguments[0] not in ("-h", "--help"):
        if arguments[0] in command.commands:
            command, arguments = command.commands[arguments[0]], arguments[1:]
        elif command.name == "study":  # "study STUDY.yaml" is "study run STUDY.yaml"
            command = command.commands["run"]
        else:
            raise AssertionError(f"{command.name} has no command {arguments[0]}")
    options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    given = arguments[: arguments.index("--")] if "--" in arguments else arguments
    used = [argument for argument in given if re.match("--?[a-zA-Z]", argument)]
    assert set(used) <= options | {"-h", "--help"}, (command.name, used)


@on_each_page
def test_commands_and_their_options_exist(page):
    for arguments in commands_of(text_of(page)):
        check_command(arguments)


@pytest.mark.parametrize("wrong", ["prepare btvc X", "evaluate P L --tolerances 1", "study --folder 1", "comparison"])
def test_the_check_of_commands_finds_errors(wrong):
    with pytest.raises(AssertionError):
        check_command(wrong.split())


def trainers_of_nnunet():
    (package,) = importlib.util.find_spec("nnunetv2").submodule_search_locations
    files = (Path(package) / "training" / "nnUNetTrainer").rglob("*.py")
    return {name for file in files for name in re.findall(r"^class (\w+)", text_of(file), re.MULTILINE)}


@on_each_page
def test_trainers_exist(page):
    found = re.findall(r"\bnnUNetTrainer\w*\b(?!\.\.\.)", text_of(page))
    ours_or_others = {name.partition("__")[0] for name in found} - NOT_TRAINERS
    others = {names.split_repetition(name)[0] for name in ours_or_others if names.parse(name) is None}
    assert others <= trainers_of_nnunet()


@pytest.mark.parametrize("page", [page for page in PAGES if "```python" in text_of(page)], ids=lambda page: page.name)
def test_python_examples_run(page):
    if page.name == "onnx.md":
        pytest.skip("test_onnx.py runs it on a trained model")
    namespace = {"__name__": "example"}
    for block in re.findall(r"^```python\n(.*?)^```$", text_of(page), re.MULTILINE | re.DOTALL):
        exec(compile(block, str(page), "exec"), namespace)
