"""What tests share: the families of the zoo, the small real BERT, the real data; which tests run, and in which order."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
import transformers
from hypothesis import settings

gc.disable()  # until all tests are imported and collected, which stay
settings.register_profile("untimed", deadline=None)  # how long a test takes depends on what else runs
settings.load_profile("untimed")
pytest.register_assert_rewrite("helpers", "laws")

from helpers.selection import is_wanted, slow_first  # noqa: E402
from helpers.shared_models import SharedModels  # noqa: E402
from helpers.zoo import FAMILIES, V4, Family  # noqa: E402

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(params=FAMILIES, ids=lambda family: family.name)
def family(request: pytest.FixtureRequest) -> Family:
    return request.param


@pytest.fixture(autouse=True)
def _still() -> None:
    torch.default_generator.manual_seed(0)  # `torch.manual_seed` takes a millisecond for devices that are not there


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


@pytest.fixture(scope="session")
def shallow_minilm(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first two blocks of MiniLM, with its weights: for scripts that do many passes."""
    folder = tmp_path_factory.mktemp("shallow")
    transformers.AutoModel.from_pretrained(minilm, num_hidden_layers=2).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(minilm).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def smollm() -> Path:
    from bertology.demo import smollm_path
    from bertology.errors import MissingExtra

    try:
        return smollm_path()
    except MissingExtra as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def shared_model() -> Iterator[SharedModels]:
    """`shared_model(load, ...)` is `load(...).eval()`, once a session; the session fails where a test has changed it."""
    share = SharedModels()
    yield share
    share.check()


# Which tests run.


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="run the tests marked any_transformers on transformers 4 too")
    parser.addoption("--families", metavar="A,B", help="of the tests that name a family of models, run those of these")


def refuse(self: object, *_: object, **__: object) -> None:
    raise AssertionError(f"this test is marked any_transformers, and makes a {type(self).__name__}")


@pytest.fixture(autouse=True)
def _needs_no_transformers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hold a test that is marked any_transformers to it."""
    if request.node.get_closest_marker("any_transformers"):
        for kind in (transformers.PreTrainedModel, transformers.PreTrainedTokenizerBase):
            monkeypatch.setattr(kind, "__init__", refuse)


# Where and in which order they run.


@pytest.hookimpl(trylast=True)  # after pytest-randomly's shuffle
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    families = config.getoption("--families")
    everything = config.getoption("--all") or not V4
    wanted = [item for item in items if is_wanted(item, everything, families and families.split(","))]
    config.hook.pytest_deselected(items=list(set(items) - set(wanted)))
    items[:] = slow_first(wanted, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1)))


def pytest_collection_finish() -> None:
    """Look for garbage again, but not in the modules and tests, of which there are a million objects."""
    gc.freeze()
    gc.set_threshold(2000)
    gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """`-n auto`: a worker a core, eight at most, as each takes about a gigabyte."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 8)


def pytest_configure(config: pytest.Config) -> None:
    if getattr(config.option, "numprocesses", None):
        gc.enable()  # this process collects no tests
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the workers, which start after this
