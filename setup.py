"""What a package index shows of this project; all the rest of the build is in pyproject.toml.

README's links and pictures are relative, so that they work in any clone. An index cannot follow those, and the
repository does not know its own address. So a release is built with it:

    RESILIENT_SCAN_REPOSITORY=https://host.example/owner/resilient_scan uv build

Without that, the description has no pictures, and the links that could not be followed are plain text.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from setuptools import setup

PAGES = {
    "Documentation": "docs/index.md",
    "Changelog": "CHANGELOG.md",
    "Security": "SECURITY.md",
}


def description(readme: str, repository: str) -> str:
    """Return README as an index can show it.

    Args:
        readme: Markdown.
        repository: the address of the repository, or an empty text.
    """
    text = re.sub(r"^<!--.*?-->\n", "", readme, flags=re.MULTILINE)
    relative = r"\((?!\w+:|#)([^)\s]+)\)"
    if repository:
        text = re.sub(rf"(!\[[^\]]*\]){relative}", rf"\1({repository}/raw/HEAD/\2)", text)
        return re.sub(rf"(?<!!)(\[[^\]]*\]){relative}", rf"\1({repository}/blob/HEAD/\2)", text)
    text = re.sub(rf"!\[[^\]]*\]{relative}\n*", "", text)
    return re.sub(rf"\[([^\]]*)\]{relative}", r"\1", text)


def urls(repository: str) -> dict[str, str]:
    """Return `project.urls`, which are empty if the address of the repository is not given."""
    if not repository:
        return {}
    return {"Source": repository, **{name: f"{repository}/blob/HEAD/{page}" for name, page in PAGES.items()}}


if __name__ == "__main__":
    home = os.environ.get("RESILIENT_SCAN_REPOSITORY", "").rstrip("/")
    setup(
        long_description=description(Path(__file__).with_name("README.md").read_text("utf-8"), home),
        long_description_content_type="text/markdown",
        project_urls=urls(home),
    )
