"""Work that is killed at any point resumes, and comes to the same to the last bit.

`helpers/kills.py` kills all kinds of work, as often as one likes.
"""

import multiprocessing

import pytest

from helpers.kills import killed

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("forkserver" not in multiprocessing.get_all_start_methods(), reason="it forks"),
]


@pytest.mark.parametrize("name", ["stream", "captures", "gates", "pruned"])
def test_killed_work_comes_to_the_same(name):
    assert killed([name], kills=2, seed=0)[name].startswith("the same after 2 kills")
