"""Progress bars: True, False, None or a title, everywhere."""

import inspect

import pytest

from bertology.errors import DataError
from bertology.streaming.progress import progress_bar, titled
from helpers.public import public_functions

pytestmark = pytest.mark.any_transformers

SHOWN = {
    name: function for _, name, function in public_functions() if "progress" in inspect.signature(function).parameters
}


@pytest.mark.parametrize("name", SHOWN)
def test_every_function_takes_a_bar_or_its_title(name):
    parameter = inspect.signature(SHOWN[name]).parameters["progress"]
    assert parameter.annotation == "Progress"
    assert parameter.default is None
    assert "the title of a progress bar; no bar" not in SHOWN[name].__doc__


@pytest.mark.parametrize(("progress", "shown"), [(True, "2/2"), ("of it", "of it: 100%"), (False, ""), (None, "")])
def test_a_bar_is_shown_where_it_is_wanted(capsys, progress, shown):
    assert list(progress_bar(progress, [1, 2])) == [1, 2]
    with progress_bar(progress, total=2) as bar:
        bar.update()
    told = capsys.readouterr().err
    assert shown in told
    assert bool(told) == bool(shown)


@pytest.mark.parametrize("progress", [1, 0, b"title", ["title"], 2.5])
def test_nothing_else_is_a_title(progress):
    with pytest.raises(DataError, match="progress must be True, False or the title of a progress bar, got"):
        progress_bar(progress, [])


def test_parts_of_the_work_have_titles_of_their_own():
    assert [titled(x, "part") for x in ("whole", True, False, None)] == ["whole, part", True, False, None]
