import itertools

import pytest

from bertology.edge_probing.random_draws import Order

pytestmark = pytest.mark.any_transformers

# The order of records


def test_an_epoch_has_each_record_once():
    order = Order(records=10, batch_size=4, seed=3)
    epochs = [[order.at(3 * epoch + turn).tolist() for turn in range(3)] for epoch in range(3)]
    for batches in epochs:
        assert [len(batch) for batch in batches] == [4, 4, 2]
        assert sorted(itertools.chain(*batches)) == list(range(10))
    assert epochs[0] != epochs[1]
    assert Order(10, 4, 3).at(4).tolist() == epochs[1][1]
    assert Order(10, 4, 4).at(0).tolist() != epochs[0][0]
