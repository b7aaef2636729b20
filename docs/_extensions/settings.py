"""What the site takes from pyproject.toml: the version, and the addresses of the repository and of the site."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class Settings:
    """Addresses are empty while there are none; then no link points there."""

    version: str
    repository: str
    """Without a slash at the end."""
    url: str
    """Of the site, with a slash at the end."""


def settings(root: Path) -> Settings:
    """Read them."""
    read = tomllib.loads((root / "pyproject.toml").read_text())
    ours = read["tool"].get("bertology", {})
    url = ours.get("site", "")
    return Settings(
        read["project"]["version"],
        ours.get("repository", "").rstrip("/"),
        url and url.rstrip("/") + "/",
    )
