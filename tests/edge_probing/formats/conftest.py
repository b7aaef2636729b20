"""Fixtures that the tests of this folder share."""

import pytest


@pytest.fixture
def write(tmp_path):
    def write(text, name="some"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return write
