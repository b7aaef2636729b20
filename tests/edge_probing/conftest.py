"""Fixtures that the tests of this folder share."""

import json

import pytest


@pytest.fixture(scope="module")
def figures(shared):
    return json.loads((shared / "figures.json").read_text())
