"""The README's table of errors quotes messages that the sources have."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("nnunet_dtc", "architectures", "trainers")
OF_OTHERS = {
    "Could not find requested nnunet trainer nnUNetTrainerDTC": "nnU-Net",
    "operator torchvision::nms does not exist": "torchvision",
    "Key decoder.transpconvs.0.base.weight is missing in the pretrained model weights": "nnU-Net",
    'Missing key(s) in state_dict: "decoder.transpconvs.0.base.weight"': "torch",
    "CUDA out of memory": "torch",
}


def quoted_messages():
    """The first code span of each row of the table, without the head."""
    section = (ROOT / "README.md").read_text().partition("\n## Errors that you may see\n")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    return [re.match(r"\| `([^`]+)`", row).group(1) for row in rows]


def strings_of_the_sources():
    """Every string but docstrings, its parts put together; what an f-string fills in is "..."."""
    for folder in FOLDERS:
        for file in sorted((ROOT / folder).rglob("*.py")):
            tree = ast.parse(file.read_text())
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
