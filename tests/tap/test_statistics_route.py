"""Statistics of attention rows without a map, against the maps themselves."""

# oracle: the map, which `torch.softmax` makes of all scores
from __future__ import annotations

import math

import pytest
import torch
import transformers

import bertology as b
from bertology import dissect, tap
from bertology.tap import fused_attention as fused
from bertology.tap import statistics_route as route
from bertology.tap import tiled_attention as tiles
from bertology.tap.fused_attention import attend_fused, is_fine_in_half
from bertology.tap.plain_inputs import Plain
from bertology.tap.row_statistics import RowStatistics, Wanted, of_map
from bertology.tap.tiled_attention import attend_in_tiles
from helpers.zoo import BY_NAME, batch

LOWEST = torch.finfo(torch.float32).min
V4 = transformers.__version__.startswith("4.")
WAYS = {"tiles": attend_in_tiles, "kernels": attend_fused}
ALL = Wanted(entropy=True, largest=True, distance=True)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Texts of a few tokens have several tiles, and go without a map."""
    monkeypatch.setattr(tiles, "TILE_QUERIES", 6)
    monkeypatch.setattr(tiles, "TILE_KEYS", 12)
    monkeypatch.setattr(fused, "SCORE_BYTES", 4000)
    monkeypatch.setattr(route, "SHORTEST", {"cpu": 1})


def inputs(dtype=torch.float64, *, queries=31, keys=31, groups=2, width=5, large=2.0):
    torch.manual_seed(0)
    query = torch.randn(2, 4, queries, 8, dtype=dtype) * large
    key, value = (torch.randn(2, 4 // groups, keys, many, dtype=dtype) for many in (8, width))
    return query, key, value


def mask_of(kind: str, queries: int, keys: int, dtype=torch.float64) -> torch.Tensor | None:
    if kind in ("none", "causal"):
        return None
    mask = torch.zeros(2, 1, queries, keys, dtype=dtype)
    if kind == "left":
        mask[0, ..., :13] = LOWEST
    if kind in ("right", "keys", "infinite"):
        mask[1, ..., 17:] = -math.inf if kind == "infinite" else LOWEST
    if kind == "causal and left":
        mask = torch.full((2, 1, queries, keys), LOWEST, dtype=dtype).triu(1)
        mask[0, ..., :7] = LOWEST  # the first queries see no key
    return mask[:, :, :1] if kind == "keys" else mask


def truth(plain: Plain, wanted: Wanted):
    heads = plain.query.shape[1]
    key, value = (x.repeat_interleave(heads // x.shape[1], 1) for x in (plain.key, plain.value))
    scores = plain.scale * plain.query @ key.mT
    if plain.mask is not None:
        scores = scores + plain.mask
    if plain.causal:
        scores = scores + torch.full(scores.shape[2:], -math.inf).triu(1)
    weights = scores.softmax(-1)
    return (weights @ value).transpose(1, 2), of_map(weights, slice(0, weights.shape[2]), wanted)


def differences(plain: Plain, way: str, wanted: Wanted = ALL) -> dict[str, float]:
    columns = torch.randint(0, 2, (2, plain.key.shape[2], 11), generator=torch.Generator().manual_seed(1)).bool()
    wanted = wanted._replace(columns=columns)
    found = WAYS[way](plain, wanted)
    assert found is not None
    (output, ours), (right, theirs) = found, truth(plain, wanted)
    assert ours.shape == theirs.shape
    some = (torch.arange(plain.query.shape[2]) - 1).clamp(0, plain.key.shape[2] - 1)[None]
    pairs = {name: (getattr(ours, name), getattr(theirs, name)) for name in ("entropy", "largest", "distance", "sums")}
    pairs |= {"output": (output, right), "at": (ours.at(some), theirs.at(some))}
    return {name: float((a - b).abs().max()) for name, (a, b) in pairs.items()}


KINDS = ("none", "causal", "left", "right", "keys", "infinite", "causal and left")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_equal_to_the_map(way, kind):
    query, key, value = inputs()
    plain = Plain(query, key, value, mask_of(kind, 31, 31), kind == "causal", 0.3)
    assert max(differences(plain, way).values()) < 1e-10


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "shape", [{"queries": 5, "keys": 40}, {"queries": 1}, {"groups": 4}, {"groups": 1, "width": 9}]
)
def test_equal_to_the_map_in_other_shapes(way, shape):
    plain = Plain(*inputs(**shape), None, False, 0.3)
    assert max(differences(plain, way).values()) < 1e-10


@pytest.mark.parametrize("way", WAYS)
def test_in_float32(way):
    """Entropies to 2e-5 nats, with scores up to about 100; distances to 1e-5 of the length of the text."""
    query, key, value = inputs(torch.float32, large=4.0)
    apart = differences(Plain(query, key, value, mask_of("left", 31, 31, torch.float32), False, 1.0), way)
    assert apart.pop("distance") < 31 * 1e-5
    assert max(apart.values()) < 4e-5


def test_a_bias_is_left_to_tiles_and_blocks():
    query, key, value = inputs()
    plain = Plain(query, key, value, torch.rand(1, 4, 31, 31, dtype=torch.float64), False, 1.0)
    assert max(differences(plain, "tiles").values()) < 1e-10
    assert attend_fused(plain, ALL) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_taken_if_it_is_as_exact_as_eager_attention(dtype):
    query, key, value = (x.to(dtype) for x in inputs(queries=64, keys=64))
    plain = Plain(query, key, value, None, False, 0.25)

    def weigh(some):
        return (0.25 * some.query @ some.key.repeat_interleave(2, 1).mT).float().softmax(-1).to(dtype)

    assert attend_fused(plain, ALL) is None  # distances
    assert is_fine_in_half(plain, weigh)
    found = attend_fused(plain, Wanted(entropy=True))
    scores = 0.25 * query.float() @ key.float().repeat_interleave(2, 1).mT
    exact = torch.special.entr(scores.softmax(-1)).sum(-1)
    theirs = torch.special.entr(weigh(plain).float()).sum(-1)
    assert (found[1].entropy - exact).abs().mean() < 1.5 * (theirs - exact).abs().mean() + 1e-3
    assert (found[1].entropy.mean() - exact.mean()).abs() < 1e-3
    # Keys that share a large vector, which changes no weight: the mean key is computed without it.
    shifted = plain._replace(key=plain.key + 64)
    assert attend_fused(shifted, Wanted(entropy=True))[1].entropy.isfinite().all()


def test_half_precision_that_is_too_coarse_is_refused(monkeypatch):
    query, key, value = (x.bfloat16() for x in inputs())
    plain = Plain(query, key, value, None, False, 0.25)
    monkeypatch.setattr(fused, "_mean_score", lambda plain: plain.query.float().sum(-1))
    scores = 0.25 * query.float() @ key.float().repeat_interleave(2, 1).mT
    assert not is_fine_in_half(plain, lambda some: scores[:1, :, -8:].softmax(-1))


def test_a_device_without_such_a_kernel():
    query, key, value = (x.to("meta") for x in inputs())
    assert attend_fused(Plain(query, key, value, None, False, 1.0), Wanted(entropy=True)) is None


def lengths(name):
    """Padded on the right; on the left where the family pads there."""
    given = batch((17, 20, 9))
    if name in ("llama", "gpt2"):
        given = {key: x.flip(1) if x.dim() > 1 else x for key, x in given.items()}
    return given


MEASURES = {
    "entropy": lambda model, given: b.attention_entropy(model, given, average="example"),
    "patterns": lambda model, given: b.attention_patterns(model, given, tokens={"low": list(range(12))}),
    "both": lambda model, given: b.accumulate(model, given, b.PatternsAccumulator(), b.EntropyAccumulator())[0],
}


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("padded", [False, True])
def test_measures_do_not_change(name, measure, padded, monkeypatch):
    model = BY_NAME[name].build()
    given = lengths(name) if padded else batch((20, 20))
    if name == "bert":
        b.prune_heads(model, {0: [1]})
    # Its softmax in float32 is not plain in a float64 model.
    model = model.float() if name == "llama" else model
    tolerance = 1e-10 if next(model.parameters()).dtype == torch.float64 else 1e-5
    calls = []
    monkeypatch.setattr(route, "attend_in_tiles", lambda *args: calls.append(args) or attend_in_tiles(*args))
    without = MEASURES[measure](model, given)
    # In transformers 4 BERT is not on the attention interface, and GPT-2's function cuts its mask by itself.
    assert len(calls) == (0 if V4 and name in ("bert", "gpt2") else 2)
    monkeypatch.setattr(route, "SHORTEST", {})
    by_maps = MEASURES[measure](model, given)
    for field, value in vars(by_maps).items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            torch.testing.assert_close(getattr(without, field), value, atol=tolerance * 20, rtol=0, equal_nan=True)
    # The kernels of a GPU, proved with those of the CPU.
    monkeypatch.setattr(route, "SHORTEST", {"cpu": 1})
    monkeypatch.setattr(route, "attend_in_tiles", attend_fused)
    by_kernels = MEASURES[measure](model, given)
    for field, value in vars(by_maps).items():
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            torch.testing.assert_close(getattr(by_kernels, field), value, atol=tolerance * 20, rtol=0, equal_nan=True)


def test_what_needs_the_map_keeps_it(monkeypatch):
    monkeypatch.setattr(route, "attend_in_tiles", None)
    model, given = BY_NAME["llama"].build().float(), batch((20, 20))
    b.accumulate(model, given, b.EntropyAccumulator(), b.DistancesAccumulator())


def test_the_model_itself_is_not_run_twice_and_loses_nothing():
    model, given = BY_NAME["llama"].build().float(), batch((20, 20), labels=False)
    right, calls, seen = model(**given).logits, [], []
    handle = model.get_input_embeddings().register_forward_hook(lambda *args: calls.append(1))
    with torch.no_grad(), tap(dissect(model), "statistics", read=lambda site, x, rows: seen.append((x, rows))):
        ours = model(**given).logits
    handle.remove()
    assert len(calls) == 1
    torch.testing.assert_close(ours, right, atol=1e-5, rtol=1e-5)
    assert all(isinstance(x, RowStatistics) and rows == slice(0, 20) for x, rows in seen)
    assert seen[0][0].sums is None


def test_cross_attention():
    config = transformers.BartConfig(
        vocab_size=40, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
        decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=32,
    )  # fmt: skip
    model, given = transformers.BartModel(config).double().eval(), lengths("bart")
    given.pop("labels")
    given["decoder_input_ids"] = given["input_ids"][:, :13]
    without = b.attention_patterns(model, given, tokens={"low": list(range(12))})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(route, "SHORTEST", {})
        by_maps = b.attention_patterns(model, given, tokens={"low": list(range(12))})
    assert without.labels == ("encoder.0", "decoder.0", "cross.0")
    for field in ("confidence", "distance", "first", "previous", "to"):
        torch.testing.assert_close(getattr(without, field), getattr(by_maps, field), atol=1e-10, rtol=0, equal_nan=True)
