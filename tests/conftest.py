"""What tests share: the families of the zoo, the small real BERT and the real data, where they are."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from zoo import FAMILIES, Family

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(params=FAMILIES, ids=lambda family: family.name)
def family(request: pytest.FixtureRequest) -> Family:
    return request.param


@pytest.fixture(autouse=True)
def _still() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"needs the real data in {SHARED}, which is not there")
    return SHARED


@pytest.fixture(scope="session")
def minilm() -> Path:
    from bertology.demo import minilm_path
    from bertology.errors import MissingExtra

    try:
        return minilm_path()
    except MissingExtra as error:
        pytest.skip(str(error))
