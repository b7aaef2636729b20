"""The public names: those of before are still there, and those that came later are in the changelog."""

import importlib
import re
from pathlib import Path

import pytest

import bertology
from helpers.public import SUITES

pytestmark = pytest.mark.any_transformers
HERE = Path(__file__).parent
# One name a line: the module that it is imported from, and the name.
BEFORE = [tuple(line.split()) for line in (HERE / "names_0.1.0.txt").read_text().splitlines()]


def without(names, found):
    """The names that cannot be imported."""
    return [f"from {module} import {name}" for module, name in names if not found(module, name)]


def is_there(module, name):
    return hasattr(importlib.import_module(module), name)


def test_the_names_of_before_are_still_there():
    assert len(BEFORE) > 230
    lost = without(BEFORE, is_there)
    assert lost == [], f"public names that could be imported before, and no longer can: {lost}"


def test_lost_names_are_found():
    assert without([("bertology", "attention"), BEFORE[0]], is_there) == ["from bertology import attention"]


def test_documented_modules_are_attributes_of_the_package():
    modules = {module.removeprefix("bertology.") for module, _ in BEFORE if module.count(".") == 1}
    # `bertology.tap` is the function; the demo is imported where it is wanted.
    for name in modules - {"tap", "demo", *(suite.__name__.removeprefix("bertology.") for suite in SUITES)}:
        assert getattr(bertology, name).__name__ == f"bertology.{name}"


def test_the_check_of_an_anatomy_is_a_function():
    assert "check_anatomy" in bertology.__all__
    assert not hasattr(bertology.Anatomy, "check")


def test_new_names_are_in_the_changelog():
    changelog = (HERE.parents[1] / "CHANGELOG.md").read_text()
    told = {word for quoted in re.findall(r"`([^`]+)`", changelog) for word in re.findall(r"\w+", quoted)}
    names = {(module.__name__, name) for module in SUITES for name in module.__all__}
    missing = sorted(".".join(name) for name in names - set(BEFORE) if name[1] not in told)
    assert missing == [], f"add a line on each under Unreleased in CHANGELOG.md: {missing}"
