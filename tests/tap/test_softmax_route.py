"""Attention read in blocks, on texts of any shape, padded in any way, with any number of heads, in any precision."""

from __future__ import annotations

import inspect
from contextlib import ExitStack
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bertology import attention_entropy, attention_maps, dissect, tap
from helpers.random_texts import (
    EXACT,
    HOLES,
    IN_FLOAT32,
    TOLERANCES,
    WHOLE,
    any_rows,
    dtypes,
    exactness,
    few,
    heads_of,
    logits,
    model_of,
    names,
    texts,
)
from helpers.zoo import BY_NAME
from oracles import heads as oracles


def read(model: Any, inputs: dict[str, Tensor], *places: str, rows: int | None = None) -> list[dict[int, list[Any]]]:
    """For each place, {layer: [(rows, x), ...]}: the blocks of one pass, in their order."""
    found: list[dict[int, list[Any]]] = [{} for _ in places]
    with ExitStack() as taps:
        for place, blocks in zip(places, found, strict=True):
            note = lambda site, x, rows, to=blocks: to.setdefault(site.row, []).append((rows, x.detach()))  # noqa: E731
            taps.enter_context(tap(dissect(model), place, read=note, rows=rows))
        logits(model, inputs)
    return found


# (a) The measure: any block size, and the slow twin.


@pytest.mark.filterwarnings("ignore:padding before the text changes:UserWarning")
@few
@given(names, heads_of, texts(), st.integers(1, 10))
def test_entropy_does_not_depend_on_the_blocks_and_equals_the_slow_twin(name, heads, inputs, rows):
    model = model_of(name, heads)
    maps = attention_maps(model, inputs)
    expected = oracles.entropy(maps.values, inputs["attention_mask"])
    for found in (attention_entropy(model, inputs, rows=rows), attention_entropy(model, inputs)):
        torch.testing.assert_close(found.mean, expected, **exactness(name))
        assert found.queries.tolist() == [int(inputs["attention_mask"].sum())] * 2


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_the_twin_can_fail(name):
    model = model_of(name)
    maps = attention_maps(model, HOLES).values
    found = attention_entropy(model, HOLES, rows=2).mean
    torch.testing.assert_close(found, oracles.entropy(maps, HOLES["attention_mask"]), **exactness(name))
    for spoiled in (
        oracles.entropy(maps, torch.ones_like(HOLES["attention_mask"])),  # padding is a query
        oracles.entropy(maps.roll(1, dims=3), HOLES["attention_mask"]),  # the blocks are one row late
        oracles.entropy(maps.flip(2), HOLES["attention_mask"]),  # the heads are in another order
    ):
        with pytest.raises(AssertionError):
            torch.testing.assert_close(found, spoiled, **exactness(name))


# (b) Blocks: they tile the queries, and make up the map.


def check_tiles(blocks: list[tuple[slice, Tensor]], queries: int, rows: int | None) -> None:
    """Blocks of `rows` query rows, the last one as long as is left, cover every query once, in order."""
    size = rows or queries
    wanted = [(start, min(start + size, queries)) for start in range(0, queries, size)]
    assert [(where.start, where.stop) for where, _ in blocks] == wanted
    for where, x in blocks:
        assert x.shape[2] == where.stop - where.start


def check_rows(maps: Tensor, mask: Tensor, tolerance: float) -> None:
    """Every real query spends 1, and nothing at all on padding. `maps` are [layer, batch, head, query, key]."""
    by_query = maps.double().permute(0, 2, 1, 3, 4)[:, :, mask]  # [layer, head, real query, key]
    torch.testing.assert_close(by_query.sum(-1), torch.ones_like(by_query[..., 0]), rtol=0, atol=tolerance)
    padded = ~mask[:, None, :].expand(-1, mask.shape[1], -1)[mask]
    assert (by_query[..., padded] == 0).all(), "a real query looks at padding"
    assert (by_query >= 0).all()


def read_from(
    model: Any, inputs: dict[str, Tensor], rows: int | None, states: dict[int, Tensor] | None = None
) -> tuple[dict[int, list[Any]], dict[int, Tensor]]:
    """The blocks of each layer, and what each layer was given, which `states` can replace.

    A block of rows is multiplied in another order than a whole map, so that its weights are rounded differently, and
    the next layer would be given something else.
    """
    found: dict[int, list[Any]] = {}
    given: dict[int, Tensor] = {}

    def edit(stack: str, layer: int, x: Tensor) -> Tensor:
        given[layer] = x
        return x if states is None else states[layer]

    anatomy = dissect(model)
    with (
        tap(anatomy, "attention", read=lambda site, x, at: found.setdefault(site.row, []).append((at, x)), rows=rows),
        tap(anatomy, "block", edit=edit),
    ):
        logits(model, inputs)
    return found, given


def rounding(model: Any, inputs: dict[str, Tensor]) -> float:
    """How far two computations of one layer's weights, from the same input, may be apart.

    A score q·k of `dim` products, with its scale, is off by up to (dim + 1) u |q| |k| scale in each of them, where u is
    half a step of the type (Higham 2002, §3.1), so that two of them are apart by up to twice that, e. A weight w then
    changes by up to w (1 - w) 2 e, which is e / 2 at most. The softmax itself rounds each weight by (keys + 4) u.
    """
    norms: dict[int, dict[str, float]] = {}
    anatomy, hooks = dissect(model), []
    for site in anatomy.sites:
        for part, module in (("query", site.query), ("key", site.key)):

            def note(_: Any, __: Any, x: Tensor, row: int = site.row, part: str = part, dim: int = site.dim) -> None:
                largest = float(x.unflatten(-1, (-1, dim)).norm(dim=-1).max())
                norms.setdefault(row, {})[part] = max(largest, norms.get(row, {}).get(part, 0.0))

            hooks.append(module.register_forward_hook(note))
    logits(model, inputs)
    for hook in hooks:
        hook.remove()
    dim, half_step = anatomy.sites[0].dim, torch.finfo(next(model.parameters()).dtype).eps / 2
    largest = max(layer["query"] * layer["key"] for layer in norms.values()) * dim**-0.5
    return ((dim + 1) * largest + 2 * (inputs["attention_mask"].shape[1] + 4)) * half_step


# DistilBERT of transformers 4 takes no positions.
@pytest.mark.filterwarnings("ignore:padding before the text changes:UserWarning")
@few
@given(names, heads_of, texts(), any_rows, dtypes)
def test_blocks_tile_the_queries_and_make_up_the_map(name, heads, inputs, rows, dtype):
    model, mask = model_of(name, heads, dtype), inputs["attention_mask"].bool()
    inputs = positioned(name, model, inputs)
    mask = inputs["attention_mask"].bool()
    whole, states = read_from(model, inputs, None)
    found, _ = read_from(model, inputs, rows, states)
    for blocks in found.values():
        check_tiles(blocks, mask.shape[1], None if name in WHOLE else rows)
    maps, expected = (
        torch.stack([torch.cat([x for _, x in some[row]], dim=2) for row in sorted(some)]) for some in (found, whole)
    )
    assert maps.shape == (2, len(mask), heads, mask.shape[1], mask.shape[1])
    close = TOLERANCES[dtype]["sums"] if dtype in TOLERANCES else IN_FLOAT32["atol"] if name == "llama" else 1e-12
    torch.testing.assert_close(
        maps, expected, rtol=0, atol=rounding(model, inputs) if dtype == torch.float32 else close
    )
    check_rows(maps, mask, close)
    captured = attention_maps(model, inputs).values
    by_query = (x.permute(0, 2, 1, 3, 4)[:, :, mask] for x in (captured, expected))
    torch.testing.assert_close(*by_query, rtol=0, atol=close)


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_rounding_is_small(name):
    """The bound of float32 is far below what a wrong row, or a scale that is off by 1e-4, changes."""
    model = model_of(name, 4, torch.float32)
    inputs = positioned(name, model, HOLES)
    bound, (whole, _) = rounding(model, inputs), read_from(model, inputs, None)
    maps = torch.stack([torch.cat([x for _, x in whole[row]], dim=2) for row in sorted(whole)])
    assert bound < 1e-5
    assert (maps - maps.roll(1, 3)).abs().max() > 100 * bound
    assert (maps - (maps.log() * 1.0001).softmax(-1)).abs().max() > bound


def test_blocks_that_do_not_tile_are_noticed():
    whole = attention_maps(model_of("bert"), HOLES).values[0]
    blocks = [(slice(start, start + 2), whole[:, :, start : start + 2]) for start in range(0, 7, 2)]
    blocks[-1] = (slice(6, 7), blocks[-1][1])
    check_tiles(blocks, 7, 2)
    for spoiled in (blocks[:-1], [*blocks, blocks[-1]], blocks[::-1], [blocks[1], *blocks[1:]]):
        with pytest.raises(AssertionError):
            check_tiles(spoiled, 7, 2)


def test_maps_that_look_at_padding_are_noticed():
    maps, mask = attention_maps(model_of("bert"), HOLES).values, HOLES["attention_mask"].bool()
    check_rows(maps, mask, 1e-12)
    unmasked = attention_maps(model_of("bert"), {"input_ids": HOLES["input_ids"]} | {"attention_mask": mask | True})
    for spoiled in (unmasked.values, maps * 1.001, maps.roll(1, dims=-1)):
        with pytest.raises(AssertionError):
            check_rows(spoiled, mask, 1e-12)


# (c) The place "entropy" is the entropy of the place "attention".


def plain_entropy(weights: Tensor) -> Tensor:
    """[..., query]: -Σ p ln p, where p is not 0."""
    p = weights.to(torch.promote_types(weights.dtype, torch.float32))
    return -torch.where(p > 0, p * p.clamp_min(torch.finfo(p.dtype).tiny).log(), 0).sum(-1)


@few
@given(names, heads_of, texts(), any_rows, dtypes)
def test_entropies_are_those_of_the_maps(name, heads, inputs, rows, dtype):
    maps, entropies = read(model_of(name, heads, dtype), inputs, "attention", "entropy", rows=rows)
    close = EXACT if dtype == torch.float64 and name != "llama" else IN_FLOAT32
    assert maps.keys() == entropies.keys() == {0, 1}
    for row in maps:
        for (where, weights), (same, found) in zip(maps[row], entropies[row], strict=True):
            assert where == same
            torch.testing.assert_close(found, plain_entropy(weights).to(found.dtype), **close)
            with pytest.raises(AssertionError):
                torch.testing.assert_close(found, plain_entropy(weights).to(found.dtype) + 1e-4, **close)


# (d) Padding is as if it were not there.


def positioned(name: str, model: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """With the positions that the tokens have when each text stands alone.

    RoBERTa counts real tokens by itself. DistilBERT of transformers 4 takes no positions: there the text comes first.
    """
    mask = inputs["attention_mask"]
    if name == "roberta":
        return inputs
    if "position_ids" in inspect.signature(model.forward).parameters:
        return inputs | {"position_ids": (mask.cumsum(-1) - 1).clamp_min(0)}
    order = mask.sort(dim=1, descending=True, stable=True)[1]
    return {key: x.gather(1, order) for key, x in inputs.items()}


def each_alone(inputs: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Each text by itself, without padding."""
    alone = []
    for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"].bool(), strict=True):
        alone.append({"input_ids": ids[mask][None], "attention_mask": torch.ones(1, int(mask.sum()), dtype=torch.long)})
    return alone


@few
@given(names, heads_of, texts(), any_rows)
def test_padding_changes_nothing(name, heads, inputs, rows):
    model = model_of(name, heads)
    padded = attention_entropy(model, positioned(name, model, inputs), rows=rows)
    alone = attention_entropy(model, each_alone(inputs), rows=rows)
    torch.testing.assert_close(padded.mean, alone.mean, **exactness(name))
    assert torch.equal(padded.queries, alone.queries)


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_padding_that_counts_is_noticed(name):
    model = model_of(name)
    alone = attention_entropy(model, each_alone(HOLES)).mean
    right = positioned(name, model, HOLES)
    torch.testing.assert_close(attention_entropy(model, right).mean, alone, **exactness(name))
    everywhere = right | {"attention_mask": torch.ones_like(right["attention_mask"])}
    with pytest.raises(AssertionError):
        torch.testing.assert_close(attention_entropy(model, everywhere).mean, alone, **exactness(name))
    if "position_ids" in right:
        # Without positions, a text behind a hole is too far to the right: they are made for padding at the ends alone.
        found = attention_entropy(model, HOLES).mean
        with pytest.raises(AssertionError):
            torch.testing.assert_close(found, alone, **exactness(name))


def test_queries_that_see_no_key_do_not_reach_the_tokens_after_them():
    """Falcon gives scaled dot product attention a mask of True and False, which hides all keys from padding."""
    config = transformers.FalconConfig(
        vocab_size=60, hidden_size=32, num_attention_heads=4, num_hidden_layers=3, new_decoder_architecture=True,
        num_kv_heads=2, alibi=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.FalconForCausalLM(config).eval()
    alone = {"input_ids": torch.tensor([[5, 9, 31, 8]])}
    padded = {
        "input_ids": torch.tensor([[7, 6, 4, 12, 11, 3], [0, 0, 5, 9, 31, 8]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]]),
    }
    expected = attention_maps(model, alone).values[:, 0]
    torch.testing.assert_close(attention_maps(model, padded).values[:, 1, :, 2:, 2:], expected)
    both = [{name: x[:1] for name, x in padded.items()}, alone]
    torch.testing.assert_close(attention_entropy(model, padded).mean, attention_entropy(model, both).mean)
