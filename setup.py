"""The description for package indexes; everything else is in pyproject.toml.

It is the README without what an index cannot show: pictures and links that are relative to the repository.
"""

import re
from pathlib import Path

from setuptools import setup

ELSEWHERE = r"(?:[a-z]+:|#)"  # with a scheme, or within the page


def description(readme: str) -> str:
    """The README with the text of relative links, and the alternative text of relative pictures, in their place."""
    readme = re.sub(rf"!\[([^\]]*)\]\((?!{ELSEWHERE})[^)]*\)", r"*Picture: \1.*", readme)
    return re.sub(rf"\[([^\]]*)\]\((?!{ELSEWHERE})[^)]*\)", r"\1", readme)


setup(
    long_description=description((Path(__file__).parent / "README.md").read_text(encoding="utf-8")),
    long_description_content_type="text/markdown",
)
