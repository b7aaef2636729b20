"""Which tests run, and in which order: by marks and by parameters, not by a list."""

import pytest

from helpers.selection import is_wanted, slow_first
from helpers.zoo import BY_NAME


class Item:
    """As much of a test as is looked at."""

    def __init__(self, *marks, parameters=None, path=None):
        self.marks, self.path, self.nodeid = marks, path, str(id(self))
        if parameters is not None:
            self.callspec = type("CallSpec", (), {"id": parameters})

    def get_closest_marker(self, name):
        return name if name in self.marks else None


def test_what_makes_no_model_runs_once():
    assert is_wanted(Item("any_transformers"), True, None)
    assert not is_wanted(Item("any_transformers"), False, None)
    assert is_wanted(Item("slow"), False, None)


@pytest.mark.parametrize(
    ("parameters", "wanted"),
    [("bert", True), ("heads-gpt2", True), ("gpt", False), ("heads-distilbert", False), ("3", True), (None, True)],
)
def test_families_are_chosen_by_whole_names(parameters, wanted):
    assert is_wanted(Item(parameters=parameters), True, ["bert", "gpt2"]) == wanted
    assert is_wanted(Item(parameters=parameters), True, None)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_each_worker_starts_with_slow_tests(workers):
    items = [Item(*["slow"] * (n % 4 == 0)) for n in range(24)]
    ordered = slow_first(items, workers)
    assert sorted(map(id, ordered)) == sorted(map(id, items))
    share = 24 // workers
    for start in range(0, 24, share):
        slow = ["slow" in item.marks for item in ordered[start : start + share]]
        assert slow == sorted(slow, reverse=True)
        assert sum(slow) == 6 // workers


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_file_is_not_parted_where_its_tests_share_what_takes_long(workers):
    items = [Item("slow", "one_worker", path=f"file {n % 2}") for n in range(10)]
    items += [Item(*["slow"] * (n % 4 == 0)) for n in range(50)]
    ordered = slow_first(items, workers)
    assert sorted(map(id, ordered)) == sorted(map(id, items))
    share = 60 // workers
    for path in ("file 0", "file 1"):
        places = [place for place, item in enumerate(ordered) if item.path == path]
        assert places == list(range(places[0], places[0] + 5))
        assert places[0] // share == places[-1] // share


@pytest.mark.any_transformers
def test_who_is_marked_cannot_make_a_model():
    with pytest.raises(AssertionError, match="is marked any_transformers, and makes a BertForSequenceClassification"):
        BY_NAME["bert"].build()
