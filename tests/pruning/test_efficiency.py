import copy

import pytest
import torch

from bertology import Result, compare_efficiency, prune_heads
from bertology.errors import DataError
from bertology.pruning.efficiency import activation_bytes, count_flops, weight_bytes
from helpers.zoo import BY_NAME, batch

# Nothing here is timed: a clock of the test's own stands where time is looked at.


def pair(name="bert", heads=((0, 1), (0, 2), (1, 0))):
    before = BY_NAME[name].build()
    after = copy.deepcopy(before)
    prune_heads(after, heads)
    return before, after


@pytest.fixture
def clock(monkeypatch):
    """Time goes by only while a model runs: 2 s for the first one, 1 s for the second, by the call's number."""

    class Clock:
        now, ran = 0.0, ()

        def watch(self, model, name, took):
            def ran(*_):
                self.now += took
                self.ran = (*self.ran, name)

            return model.register_forward_hook(ran)

    clock = Clock()
    monkeypatch.setattr("bertology.pruning.efficiency.time.perf_counter", lambda: clock.now)
    return clock


def test_models_run_in_turn_and_one_pass_counts_as_one(clock):
    before, after = pair()
    clock.watch(before, "before", 2.0), clock.watch(after, "after", 1.0)
    found = compare_efficiency(before, after, batch(), batch_sizes=(1, 4), rounds=3, seconds=0)
    # At each batch size both are counted, measured and warmed up, the first is timed once to see how long it takes.
    one_size = ("before",) * 3 + ("after",) * 3 + ("before",) + ("before", "after") * 3
    assert clock.ran == one_size * 2
    assert found.examples_per_second[0].tolist() == [[0.5] * 3, [2.0] * 3]
    assert found.examples_per_second[1].tolist() == [[1.0] * 3, [4.0] * 3]
    assert found.speedup().tolist() == [1.0, 1.0]
    assert found.spread().abs().max() == 0


def test_short_passes_are_repeated_equally_often(clock):
    before, after = pair()
    clock.watch(before, "before", 2.0), clock.watch(after, "after", 1.0)
    found = compare_efficiency(before, after, batch(), batch_sizes=(2,), rounds=2, seconds=5)
    assert clock.ran[7:] == (("before",) * 3 + ("after",) * 3) * 2
    assert found.examples_per_second.flatten().tolist() == [1.0, 1.0, 2.0, 2.0]


def test_counts():
    before, after = pair()
    found = compare_efficiency(before, after, batch(), batch_sizes=(1, 6), rounds=1, seconds=0)
    gone = 3 * (3 * 16 * 4 + 3 * 4 + 4 * 16)  # of three heads
    assert (found.parameters[0] - found.parameters[1]).item() == gone
    assert found.attention_parameters.tolist() == [2 * 4 * (16 * 16 + 16), 2 * 4 * (16 * 16 + 16) - gone]
    assert (found.weights[0] - found.weights[1]).item() == 8 * gone
    assert (found.activations[1] <= found.activations[0]).all()
    assert (found.activations[:, 1] > found.activations[:, 0]).all()
    assert found.tokens.tolist() == [7, 2 * (7 + 4 + 5)]
    per_second = found.examples_per_second[0, 1, 0] * 2 * (7 + 4 + 5) / 6
    torch.testing.assert_close(found.tokens_per_second()[0, 1, 0], per_second)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_operations_equal_the_formula(implementation):
    model = BY_NAME["bert"].build(attention=implementation)
    inputs = batch(labels=False)
    tokens, hidden, wide, heads = 7, 16, 24, 8

    def formula(heads):
        attention = heads * (4 * 2 * tokens * hidden * 4 + 2 * 2 * tokens * tokens * 4)
        return attention + 2 * 2 * 2 * tokens * hidden * wide + 2 * hidden * hidden + 2 * hidden * 2

    assert count_flops(model, inputs) == 3 * formula(heads)
    prune_heads(model, {0: [1, 2], 1: [0]})
    assert count_flops(model, inputs) == 3 * formula(heads - 3)


class Chain(torch.nn.Module):
    """Makes tensors of known sizes."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1000))
        self.register_buffer("twin", self.weight.detach())

    def forward(self, input_ids):
        x = self.weight.view(10, 100) * 2  # 4000 bytes; the view is the weight's own
        y = x + 1  # 8000
        del x  # 4000
        z = torch.cat([y, y])  # 12000
        del y
        return z.sum() + 0 * input_ids.sum()


def test_living_tensors_are_counted():
    assert weight_bytes(Chain()) == 4000
    found = activation_bytes(Chain(), {"input_ids": torch.ones(2, 3, dtype=torch.long)})
    assert found == 12000


def test_tables_and_files(tmp_path):
    before, after = pair()
    found = compare_efficiency(before, after, batch(), batch_sizes=(1, 4), rounds=2, seconds=0)
    found.save(tmp_path / "cost")
    again = Result.load(tmp_path / "cost")
    assert again.batch_sizes == (1, 4)
    rates = torch.tensor([[[17.0, 16.7, 17.3], [67.3, 66.0, 68.6]], [[17.3, 16.7, 17.9], [69.1, 67.8, 70.4]]])
    object.__setattr__(again, "examples_per_second", rates)
    assert again.table().splitlines() == [
        "batch size           1           4",
        "before      17.0 ± 0.3  67.3 ± 1.3",
        "after       17.3 ± 0.6  69.1 ± 1.3",
        "               (+1.8%)     (+2.7%)",
    ]
    told = str(again)
    assert told.startswith(
        f"parameters: {found.parameters[0].item():,} before, {found.parameters[1].item():,} after (-"
    )
    assert "examples per second, 3 rounds, on cpu, " in told


def test_inputs_by_size_and_models_left_alone():
    before, after = pair("gpt2")
    before.train()
    asked = []

    def inputs(size):
        asked.append(size)
        return batch((5,) * size)

    found = compare_efficiency(before, after, inputs, batch_sizes=(3, 2), rounds=1, seconds=0)
    assert asked == [3, 2]
    assert found.tokens.tolist() == [15, 10]
    assert before.training
    assert not after.training
    assert found.flops[0, 0] == found.flops[0, 1]


def test_compiled_models_are_counted_uncompiled():
    before, after = (torch.compile(model, backend="eager") for model in pair())
    found = compare_efficiency(before, after, batch(), batch_sizes=(3,), rounds=1, seconds=0)
    assert found.flops[0, 0] == count_flops(before._orig_mod, batch(labels=False)) // 3


def test_errors():
    before, after = pair()
    with pytest.raises(DataError, match="before and after are one model: prune_heads works in place, so keep copy"):
        compare_efficiency(before, before, batch())
    with pytest.raises(DataError, match="batch_sizes are whole numbers from 1 up, got 0"):
        compare_efficiency(before, after, batch(), batch_sizes=(0,))
    with pytest.raises(DataError, match="rounds are whole numbers from 1 up, got 0"):
        compare_efficiency(before, after, batch(), rounds=0)
    with pytest.raises(DataError, match="batch_sizes is empty"):
        compare_efficiency(before, after, batch(), batch_sizes=())
    with pytest.raises(DataError, match=r"inputs\(4\) must return 4 examples, got 3"):
        compare_efficiency(before, after, lambda size: batch(), batch_sizes=(4,))
    with pytest.raises(DataError, match="the models are on different devices, cpu and meta"):
        compare_efficiency(before, copy.deepcopy(after).to("meta"), batch())


@pytest.mark.filterwarnings("ignore:.*quantiz")
def test_quantized_models_are_refused():
    model, inputs = BY_NAME["bert"].build().float(), batch()
    packed = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    with pytest.raises(DataError, match=r"layer.0.attention.self.query of Bert.* is quantized .*before they are"):
        compare_efficiency(model, packed, inputs, batch_sizes=(1,), rounds=1, seconds=0)
