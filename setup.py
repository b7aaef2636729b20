"""What the package says of its public address: links and pictures of its description, and its URLs.

The address is one setting, `[tool.bertology] repository` in pyproject.toml, such as "https://github.com/owner/bertology".
While it is empty, links stay relative, and the package names no URL. The rest of the package is in pyproject.toml.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent
BRANCH = "main"
# `](target)` of Markdown and `src="target"` of HTML; targets with a scheme, or within the page, are left alone.
TARGET = re.compile(r"""(?P<before>\]\(|\b(?:src|href)=")(?P<target>(?![a-z]+:|\#|/)[^)"\s]+)""")
CODE = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)
PICTURES = (".png", ".svg", ".gif", ".jpg")


def address() -> str:
    """The public address of the repository, without a slash at the end; empty if it has none."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return str(settings["tool"]["bertology"]["repository"]).rstrip("/")


def urls(repository: str) -> dict[str, str]:
    """What `[project.urls]` would hold."""
    if not repository:
        return {}
    return {
        "Repository": repository,
        "Documentation": f"{repository}/blob/{BRANCH}/docs/index.md",
        "Changelog": f"{repository}/blob/{BRANCH}/CHANGELOG.md",
        "Issues": f"{repository}/issues",
    }


def description(readme: str, repository: str) -> str:
    """README for a package index, where relative links point nowhere: they become absolute if there is an address."""
    if not repository:
        return readme

    def absolute(found: re.Match[str]) -> str:
        kind = "raw" if found["target"].lower().endswith(PICTURES) else "blob"
        return f"{found['before']}{repository}/{kind}/{BRANCH}/{found['target']}"

    parts = CODE.split(readme)
    return "".join(part if place % 2 else TARGET.sub(absolute, part) for place, part in enumerate(parts))


if __name__ == "__main__":
    from setuptools import setup

    setup(
        long_description=description((ROOT / "README.md").read_text(encoding="utf-8"), address()),
        long_description_content_type="text/markdown",
        project_urls=urls(address()),
    )
