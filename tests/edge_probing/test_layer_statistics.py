import importlib
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bertology.edge_probing.layer_statistics import (
    LayerStatistics,
    centre_of_gravity,
    differential,
    expected_layer,
    kl_from_uniform_bits,
    kl_of_differential,
    layer_statistics,
    t_interval,
)
from bertology.errors import DataError, ShapeError
from bertology.results.result import Result
from helpers.edge_layers import PUBLISHED, published
from oracles import layer_statistics as oracles

pytestmark = pytest.mark.any_transformers

ENDS = {
    "POS": (88.5, 96.7), "Consts": (73.6, 87.0), "Deps": (85.6, 95.5), "Entities": (90.6, 96.1), "SRL": (81.3, 91.4),
    "Coref": (80.5, 91.9), "SPR": (77.7, 83.7), "Relations": (60.7, 84.2),
}  # fmt: skip


def check_published(found, task):
    numbers = (found.expected_layer, found.kl_of_differential, found.centre_of_gravity, found.kl_of_mix)
    for number, printed in zip(numbers, PUBLISHED[task], strict=False):
        assert abs(number - printed) <= 0.005, (task, number, printed)


@pytest.mark.shared
@pytest.mark.parametrize("task", PUBLISHED)
def test_the_published_figures_come_out(figures, task):
    found = published(figures)[task]
    check_published(found, task)
    assert [round(100 * found.f1[0, layer].item(), 1) for layer in (0, -1)] == list(ENDS[task])
    assert found.why == ("",)
    wrong = layer_statistics(found.f1.flip(1) * 0.01 + found.f1 * 0.99, found.mix)  # a grid a little off
    with pytest.raises(AssertionError):
        check_published(wrong, task)


@pytest.mark.shared
def test_the_authors_own_numbers_come_out(figures):
    """To all digits that the file has: its F1 are rounded to 4 digits, its weights are float32."""
    found, told = published(figures), figures["tenney_bert_large_fig1"]
    for task, (*_, mix) in PUBLISHED.items():
        assert (found[task].expected_layer, found[task].kl_of_differential) == pytest.approx(told[mix], abs=2e-4)
    for row in figures["tenney_bert_large_scalar_mix"]:
        weights = torch.tensor(row["w"], dtype=torch.float64)
        assert centre_of_gravity(weights).item() == pytest.approx(row["cog"], abs=1e-5)
        assert kl_from_uniform_bits(weights).item() == pytest.approx(row["K_s_bits"], abs=1e-5)


@pytest.mark.shared
def test_the_two_statistics_treat_negative_differences_differently(figures):
    """METHODS A4.6: Eq 4 takes them as they are, K(Δ) clips them. With the other's treatment, neither comes out."""
    f1 = published(figures)["SRL"].f1[0].tolist()
    clipped = [max(0.0, added) for added in oracles.differential(f1)]
    assert abs(sum(layer * x for layer, x in enumerate(clipped, 1)) / sum(clipped) - 6.54) > 0.1
    raw = oracles.differential(f1)
    assert min(raw) < 0
    assert abs(sum(x / sum(raw) * math.log2(abs(x) / sum(raw) * 24) for x in raw) - 1.31) > 0.1


# Against loops, and closed forms


def shares(least=2, most=25):
    return st.lists(st.integers(0, 10_000), min_size=least, max_size=most).map(lambda x: [n / 10_000 for n in x])


@given(shares())
def test_statistics_equal_loops(f1):
    found = layer_statistics(torch.tensor(f1, dtype=torch.float64), least_gain=1e-6)
    assert found.differential[0, 0].isnan()
    assert found.differential[0, 1:].tolist() == oracles.differential(f1)
    if f1[-1] > f1[0]:
        expected = oracles.expected_layer(f1)
        assert expected == pytest.approx(oracles.expected_layer_by_parts(f1))  # Abel's sum
        if 1 <= round(expected, 6) <= len(f1) - 1:
            assert found.expected_layer == pytest.approx(expected)
        else:
            assert math.isnan(found.expected_layer)
            assert found.why[0]
    else:
        assert math.isnan(found.expected_layer)
        assert found.why[0]
    if max(oracles.differential(f1)) > 0:
        assert found.kl_of_differential == pytest.approx(oracles.kl_of_differential(f1), abs=1e-9)
    else:
        assert math.isnan(found.kl_of_differential)


@given(st.lists(st.floats(-8, 8), min_size=1, max_size=25), st.floats(-5, 5))
def test_mixing_weights_equal_loops(logits, shift):
    weights = torch.tensor(logits, dtype=torch.float64).softmax(0)
    assert centre_of_gravity(weights).item() == pytest.approx(oracles.centre_of_gravity(weights.tolist()))
    assert kl_from_uniform_bits(weights).item() == pytest.approx(oracles.kl_from_uniform(weights.tolist()), abs=1e-9)
    # softmax(a + c) = softmax(a)
    shifted = (torch.tensor(logits, dtype=torch.float64) + shift).softmax(0)
    assert centre_of_gravity(shifted).item() == pytest.approx(centre_of_gravity(weights).item())


def test_a_spoiled_oracle_is_seen():
    f1 = [0.5, 0.6, 0.9, 0.8]
    wrong = [0.5, 0.61, 0.9, 0.8]
    assert expected_layer(torch.tensor(f1)).item() != pytest.approx(oracles.expected_layer(wrong), abs=1e-3)
    assert kl_of_differential(torch.tensor(f1)).item() == pytest.approx(oracles.kl_of_differential(f1))
    assert kl_of_differential(torch.tensor(f1)).item() != pytest.approx(oracles.kl_of_differential(wrong), abs=1e-3)
    # The denominator of Eq 2 has layer 0, that of Eq 4 has not.
    assert centre_of_gravity(torch.tensor([0.5, 0.25, 0.25])).item() == 0.75


@pytest.mark.parametrize("last", [1, 6, 12, 24])
def test_closed_forms(last):
    """METHODS A5."""
    even = torch.full((last + 1,), 1 / (last + 1), dtype=torch.float64)
    assert centre_of_gravity(even).item() == pytest.approx(last / 2)
    assert kl_from_uniform_bits(even).item() == pytest.approx(0, abs=1e-12)
    steady = torch.linspace(0.2, 0.9, last + 1, dtype=torch.float64)
    assert expected_layer(steady).item() == pytest.approx((last + 1) / 2)
    assert kl_of_differential(steady).item() == pytest.approx(0, abs=1e-12)
    for layer in range(last + 1):
        one = torch.zeros(last + 1)
        one[layer] = 1
        assert centre_of_gravity(one).item() == layer
        assert kl_from_uniform_bits(one).item() == pytest.approx(math.log2(last + 1))
        if layer:
            jump = torch.full((last + 1,), 0.3, dtype=torch.float64)
            jump[layer:] = 0.7
            found = layer_statistics(jump)
            assert found.expected_layer == pytest.approx(layer)
            assert found.kl_of_differential == pytest.approx(math.log2(last), abs=1e-9)
    assert math.log2(13) == pytest.approx(3.7004, abs=1e-4)
    assert math.log2(25) == pytest.approx(4.6439, abs=1e-4)


@given(shares(least=3), st.floats(0.1, 1), st.floats(0, 1))
def test_the_expected_layer_does_not_hang_on_the_scale_of_f1(f1, scale, place):
    values = torch.tensor(f1, dtype=torch.float64)
    moved = values * scale + place * (1 - scale)
    one, other = (expected_layer(x.clamp(0, 1), least_gain=1e-6) for x in (values, moved))
    if one.isnan():
        assert other.isnan() or round(other.item(), 6) in (1, len(f1) - 1)  # on the edge, by rounding
    else:
        assert other.item() == pytest.approx(one.item(), abs=1e-6)
        assert kl_of_differential(moved.clamp(0, 1)).item() == pytest.approx(
            kl_of_differential(values).item(), abs=1e-6
        )


def test_functions_take_any_leading_axes():
    f1, mix = torch.rand(2, 3, 7, dtype=torch.float64), torch.randn(2, 3, 7, dtype=torch.float64).softmax(-1)
    f1[..., 0], f1[..., -1] = 0, 1
    assert differential(f1).shape == (2, 3, 7)
    for function, values in (
        (expected_layer, f1), (kl_of_differential, f1), (centre_of_gravity, mix), (kl_from_uniform_bits, mix)
    ):  # fmt: skip
        found = function(values)
        assert found.shape == (2, 3)
        assert found[1, 2].item() == pytest.approx(function(values[1, 2]).item(), nan_ok=True)


# What is not defined


def why_of(f1, **options):
    found = layer_statistics(torch.tensor(f1, dtype=torch.float64), **options)
    assert math.isnan(found.expected_layer)
    assert f"expected layer undefined: {next(filter(None, found.why))}" in str(found)
    return found.why


def test_expected_layers_that_mean_nothing_are_flagged():
    assert why_of([0.5, 0.6, 0.505]) == ("F1 gains 0.0050 from layer 0 to 2, less than 0.01",)
    assert why_of([0.5, 0.6, 0.5]) == ("F1 gains 0.0000 from layer 0 to 2, less than 0.01",)
    assert why_of([0.5, 0.6, 0.4]) == ("F1 gains -0.1000 from layer 0 to 2, less than 0.01",)
    assert why_of([0.5, 0.5, 0.5]) == ("F1 gains 0.0000 from layer 0 to 2, less than 0.01",)
    assert why_of([0.5, 0.3, 0.53]) == ("it would be 8.7, outside of layers 1 to 2",)
    assert why_of([0.5, 0.8, 0.53]) == ("it would be -8.0, outside of layers 1 to 2",)
    assert expected_layer(torch.tensor([0.5, 0.3, 0.53])).isnan()
    assert expected_layer(torch.tensor([0.5, 0.6, 0.505])).isnan()
    assert expected_layer(torch.tensor([0.5, 0.6, 0.505]), least_gain=0.001).isnan()  # it would be -18
    assert expected_layer(torch.tensor([0.5, 0.5, 0.505]), least_gain=0.001).item() == pytest.approx(2)


def test_a_task_like_winograd_has_no_expected_layer():
    """METHODS A3: DPR gives layer 23.9 of 12."""
    grid = torch.full((13,), 0.56, dtype=torch.float64)
    grid[0], grid[12] = 0.57, 0.59
    assert oracles.expected_layer(grid.tolist()) == pytest.approx(17.5)
    assert layer_statistics(grid).why == ("it would be 17.5, outside of layers 1 to 12",)


@pytest.mark.shared
def test_all_published_tasks_but_none_are_flagged(figures):
    """DPR of BERT-large gains enough to pass, and keeps its 20.27 of 24: one run cannot tell that it is chance."""
    grids = figures["tenney_cumulative_dev_F1_percent"]
    found = {name: layer_statistics(torch.tensor(grid["bert-large"]) / 100) for name, grid in grids.items()}
    assert not any(math.isnan(one.expected_layer) for one in found.values())
    assert found["dpr-_micro_avg_"].expected_layer == pytest.approx(20.27, abs=0.005)


def test_seeds_tell_a_gain_from_chance():
    f1 = torch.tensor([[0.5, 0.5, 0.55], [0.5, 0.6, 0.62], [0.5, 0.5, 0.6]], dtype=torch.float64)
    sure = layer_statistics(f1)
    assert sure.why == ("", "", "")
    noisy = f1.clone()
    noisy[:, -1] = torch.tensor([0.60, 0.51, 0.515])
    gains = [0.10, 0.01, 0.015]
    mean = sum(gains) / 3
    error = math.sqrt(sum((gain - mean) ** 2 for gain in gains) / 2) / math.sqrt(3)
    assert mean < 2 * error
    told = f"F1 gains {mean:.4f} from layer 0 to 2 on average over 3 seeds, less than twice its standard error"
    found = layer_statistics(noisy)
    assert found.why == (f"{told} of {error:.4f}",) * 3
    assert found.expected_layers.isnan().all()
    assert not layer_statistics(noisy[:1]).expected_layers.isnan().any()


def test_one_undefined_seed_leaves_the_mean_undefined():
    f1 = torch.tensor([[0.5, 0.5, 0.55], [0.5, 0.54, 0.56], [0.5, 0.2, 0.55]], dtype=torch.float64)
    found = layer_statistics(f1)
    assert found.why == ("", "", "it would be 8.0 with seed 2, outside of layers 1 to 2")
    assert found.expected_layers[:2].isfinite().all()
    assert math.isnan(found.expected_layer)


def test_values_that_are_no_f1_or_no_weights():
    with pytest.raises(DataError, match=r"f1 must be from 0 to 1, got values from 50 to 90: divide percentages by"):
        layer_statistics(torch.tensor([50.0, 90.0]))
    with pytest.raises(DataError, match="f1 must be from 0 to 1, got values from nan to nan"):
        layer_statistics(torch.tensor([0.5, math.nan, 0.9]))
    f1 = torch.tensor([0.5, 0.7, 0.9])
    for least in (0.0, 1.0, math.nan):
        for function in (layer_statistics, expected_layer):
            with pytest.raises(DataError, match="least_gain must be a (gain of F1 between 0 and 1|number), got"):
                function(f1, least_gain=least)
    for mix in ([0.1, 0.2, 0.3], [1.2, -0.1, -0.1], [math.nan, 0.5, 0.5], [2.0, 2.0, 2.0]):
        with pytest.raises(
            DataError,
            match="mixing weights must be 0 or more and sum to 1, got sums from .*: pass them after the softmax",
        ):
            layer_statistics(f1, torch.tensor(mix))
    with pytest.raises(ShapeError, match=r"f1 must be \[\.\.\., layer\] with 2 layers or more, got \[1\]"):
        layer_statistics(torch.tensor([0.5]))
    with pytest.raises(ShapeError, match=r"f1 must be \[\.\.\., layer\] with 2 layers or more, got \[0, 3\]"):
        layer_statistics(torch.zeros(0, 3))
    with pytest.raises(ShapeError, match=r"f1 must be \[layer\] or \[seed, layer\], got \[1, 2, 3\]"):
        layer_statistics(torch.rand(1, 2, 3))
    with pytest.raises(ShapeError, match=r"mix must be \[seed, layer\] = \[1, 3\] as f1 is, got \[1, 2\]"):
        layer_statistics(f1, torch.tensor([0.5, 0.5]))
    with pytest.raises(ShapeError, match=r"mix must be \[seed, layer\] = \[2, 3\] as f1 is, got \[1, 3\]"):
        layer_statistics(torch.stack([f1, f1]), torch.full((3,), 1 / 3))


# Seeds, results, orders


def test_several_seeds_are_averaged_with_an_interval():
    f1 = torch.tensor([[0.5, 0.7, 0.9], [0.5, 0.6, 0.9], [0.4, 0.7, 0.9], [0.5, 0.8, 0.9]], dtype=torch.float64)
    mix = torch.rand(4, 3, dtype=torch.float64).softmax(1)
    found = layer_statistics(f1, mix)
    each = [layer_statistics(f1[seed], mix[seed]) for seed in range(4)]
    assert found.expected_layer == pytest.approx(sum(one.expected_layer for one in each) / 4)
    assert found.centre_of_gravity == pytest.approx(sum(one.centre_of_gravity for one in each) / 4)
    assert found.kl_of_mix == pytest.approx(sum(one.kl_of_mix for one in each) / 4)
    assert found.kl_of_differential == pytest.approx(sum(one.kl_of_differential for one in each) / 4)
    assert found.gain == pytest.approx(0.425)
    assert found.headroom == pytest.approx(0.1)
    low, high = found.interval("expected_layers")
    values = [one.expected_layer for one in each]
    mean = sum(values) / 4
    half = 3.182446 * math.sqrt(sum((x - mean) ** 2 for x in values) / 3) / 2  # t of 3 degrees of freedom, 97.5 %
    assert (low.item(), high.item()) == (pytest.approx(mean - half), pytest.approx(mean + half))
    assert found.interval("f1")[0].shape == (3,)
    narrow = found.interval("centres", 0.5)
    assert found.interval("centres")[0] < narrow[0] < narrow[1] < found.interval("centres")[1]
    assert "mean of 4 seeds with standard deviation" in str(found)
    assert f"expected layer {mean:.2f} ± " in str(found)
    assert f"centre of gravity {found.centre_of_gravity:.2f} ± " in str(found)
    with pytest.raises(DataError, match="field must be one of f1, mix, differential, .*, got 'why'"):
        found.interval("why")
    with pytest.raises(DataError, match=r"level must be the confidence level of the interval, .* got 95"):
        found.interval("f1", 95)


def test_intervals_hold_the_truth_as_often_as_they_say():
    draws = torch.randn(4, 4000, dtype=torch.float64)
    low, high = t_interval(draws, 0.9)
    assert ((low < 0) & (high > 0)).double().mean().item() == pytest.approx(0.9, abs=0.02)


def test_one_seed_has_no_interval():
    found = layer_statistics(torch.tensor([0.5, 0.7, 0.9]))
    low, high = found.interval("f1")
    assert low.isnan().all()
    assert high.isnan().all()
    assert low.shape == (3,)


def test_without_mixing_weights_nothing_is_said_of_them():
    found = layer_statistics(torch.tensor([0.5, 0.7, 0.9]))
    assert found.mix.isnan().all()
    assert math.isnan(found.centre_of_gravity)
    assert math.isnan(found.kl_of_mix)
    assert "gravity" not in str(found)


def test_statistics_are_saved_and_read(tmp_path):
    found = layer_statistics(torch.tensor([[0.5, 0.7, 0.9], [0.5, 0.5, 0.6]]), torch.full((2, 3), 1 / 3))
    found.save(tmp_path / "a.safetensors")
    read = Result.load(tmp_path / "a.safetensors")
    assert isinstance(read, LayerStatistics)
    for name, value in vars(found).items():
        if isinstance(value, torch.Tensor):
            assert value.dtype == torch.float64
            torch.testing.assert_close(getattr(read, name), value, equal_nan=True, rtol=0, atol=0)
        else:
            assert getattr(read, name) == value
    assert str(read) == str(found)


def test_the_agreed_functions_are_there():
    exported = importlib.import_module("bertology.edge_probing.layer_statistics").__all__
    assert exported == sorted(exported)
