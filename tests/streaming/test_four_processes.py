"""Four processes with a share of the data each, for every measure: the results of one process with all of it."""

import pytest

from bertology import accumulate
from helpers.every_measure import NAMES, measure
from helpers.four_processes import SIZE, each_of_four, of_batches
from helpers.processes import in_processes
from helpers.shares import plain
from helpers.wrapped_models import Doubled, difference

pytestmark = [pytest.mark.slow, pytest.mark.one_worker]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """{rank: {"accumulators": results, "functions": what was found}}."""
    return in_processes(each_of_four, SIZE, str(tmp_path_factory.mktemp("four")))


@pytest.mark.parametrize("name", NAMES)
def test_shares_of_two_and_of_four_come_to_the_same_as_the_whole(found, name):
    make, model, batches = measure(name)
    wanted = plain(accumulate(model, batches, make())[0])
    for rank in range(SIZE):
        for came in found[rank]["accumulators"][name]:
            assert difference(came, wanted) == ""


def test_every_function_comes_to_the_same(found, tmp_path):
    for rank in range(SIZE):
        came = found[rank]["functions"]
        assert {name: told for name, told in came.items() if told != "same"} == {}
        assert sorted(came) == of_batches(Doubled(tmp_path))
