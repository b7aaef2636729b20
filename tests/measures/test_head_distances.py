import math
import sys

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from bertology import (
    EntropyAccumulator,
    Head,
    PatternsAccumulator,
    Result,
    accumulate,
    attention_entropy,
    attention_maps,
    dissect,
    prune_heads,
)
from bertology.errors import DataError, HeadError, MissingExtra
from bertology.measures.divergences import distances, weights_in_pieces
from bertology.measures.head_distances import DistancesAccumulator, HeadDistances, head_distances
from helpers.zoo import BY_NAME, batch, each_alone
from laws.laws import check_leaves_model_alone
from oracles import head_distances as oracles

EXACT = {"atol": 1e-9, "rtol": 0.0}
FLOAT32 = {"atol": 1e-6, "rtol": 0.0}


def same(found, expected, **tolerance):
    torch.testing.assert_close(found, expected, equal_nan=True, **(tolerance or EXACT))


def of_rows(*rows, smoothing=0.0):
    """[head, head]: the distances of heads whose only query attends as these rows say."""
    maps = torch.stack([torch.as_tensor(row, dtype=torch.float64) for row in rows])[None, :, None]
    real = torch.ones(1, maps.shape[3], dtype=torch.bool)
    pieces = weights_in_pieces([maps], real[:, :1], real, smoothing=smoothing)
    return distances(pieces, torch.zeros(len(rows), len(rows), dtype=torch.float64))


def one_hot(key, keys):
    return torch.eye(keys, dtype=torch.float64)[key]


def uniform(keys):
    return torch.full((keys,), 1 / keys, dtype=torch.float64)


def made(js, heads_per_layer=None, labels=None):
    """A result with these distances."""
    labels = labels or ("0",)
    per_layer = heads_per_layer or len(js)
    return HeadDistances(torch.as_tensor(js).double(), torch.ones(len(labels)).long(), per_layer, labels)


# What the numbers are


@pytest.mark.parametrize("smoothing", [0.0, 0.001, 0.3])
def test_equals_loops_over_the_maps(family, smoothing):
    model, inputs = family.build(), batch()
    maps = attention_maps(model, inputs)
    expected = oracles.head_distances(maps.values, maps.mask, smoothing)
    summed = head_distances(model, inputs, smoothing=smoothing, reduce="sum")
    mean = head_distances(model, inputs, smoothing=smoothing)
    same(summed.js, expected)
    same(mean.js, expected / 16)
    assert summed.queries.tolist() == mean.queries.tolist() == [16, 16]
    expected[0, 1] += 1e-6
    with pytest.raises(AssertionError):
        same(summed.js, expected)


@pytest.mark.parametrize(("keys", "expected"), [(5, 0.42281), (128, 0.67027)])
def test_one_key_against_all_alike(keys, expected):
    found = of_rows(one_hot(2, keys), uniform(keys))[0, 1].item()
    n = keys
    closed = (math.log(2 * n / (n + 1)) + math.log(2 / (n + 1)) / n + (n - 1) / n * math.log(2)) / 2
    assert found == pytest.approx(closed, abs=1e-12)
    assert found == pytest.approx(expected, abs=5e-6)


def test_no_key_in_common():
    rows = one_hot(0, 5), one_hot(3, 5)
    assert of_rows(*rows)[0, 1].item() == pytest.approx(math.log(2), abs=1e-12)
    assert of_rows(*rows, smoothing=0.001)[0, 1].item() == pytest.approx(0.69083, abs=5e-6)


def distributions(keys=4):
    weights = st.lists(st.floats(0, 1) | st.just(0.0), min_size=keys, max_size=keys).filter(lambda w: sum(w) > 1e-3)
    return weights.map(lambda w: torch.tensor(w, dtype=torch.float64) / sum(w))


@settings(max_examples=150)
@given(distributions(), distributions(), distributions(), st.sampled_from([0.0, 0.001, 0.5]))
def test_a_bounded_symmetric_distance_whose_root_is_a_metric(p, q, r, smoothing):
    js = of_rows(p, q, r, smoothing=smoothing)
    assert torch.equal(js, js.T)
    assert torch.equal(js.diagonal(), torch.zeros(3, dtype=torch.float64))
    assert js.min() > -1e-12
    assert js.max() <= math.log(2) + 1e-12
    # Pinsker: JS is at least an eighth of the squared sum of all differences.
    assert js[0, 1] >= ((1 - smoothing) * (p - q).abs().sum()) ** 2 / 8 - 1e-12
    root = js.clamp_min(0).sqrt()
    assert root[0, 2] <= root[0, 1] + root[1, 2] + 1e-6
    slow = oracles.jensen_shannon(*(((1 - smoothing) * x + smoothing / 4).tolist() for x in (p, q)))
    assert js[0, 1].item() == pytest.approx(slow, abs=1e-12)


def test_heads_that_attend_alike_have_no_distance():
    model = BY_NAME["bert"].build()
    with torch.no_grad():
        for site in dissect(model).sites[:1]:
            for linear in (site.query, site.key):
                linear.weight[4:8], linear.bias[4:8] = linear.weight[:4].clone(), linear.bias[:4].clone()
    found = head_distances(model, batch())
    assert found.between((0, 0), (0, 1)) == 0
    others = found.js[~torch.eye(8, dtype=torch.bool)]
    assert int((others > 1e-4).sum()) == 56 - 2


def test_the_order_of_heads_is_the_order_of_rows():
    model, inputs, order = BY_NAME["bert"].build(), batch(), [2, 0, 3, 1]
    before = head_distances(model, inputs).js
    numbers = torch.arange(16).view(4, 4)[order].flatten()
    with torch.no_grad():
        site = dissect(model).sites[1]
        for linear in (site.query, site.key):
            linear.weight.copy_(linear.weight[numbers]), linear.bias.copy_(linear.bias[numbers])
    rows = [0, 1, 2, 3, *(4 + head for head in order)]
    same(head_distances(model, inputs).js, before[rows][:, rows])


# What does not count


def test_batches_and_padding_do_not_matter(family):
    model, inputs = family.build(), batch()
    for smoothing in (0.0, 0.2):
        alone = head_distances(model, each_alone(inputs), smoothing=smoothing)
        same(head_distances(model, inputs, smoothing=smoothing).js, alone.js, **FLOAT32)
        assert alone.queries.tolist() == [16, 16]


def test_left_padding():
    model = BY_NAME["llama"].build()
    left, right = (head_distances(model, batch(side=side), smoothing=0.2) for side in ("left", "right"))
    same(left.js, right.js, **FLOAT32)


def test_blocks_of_rows_are_put_together(monkeypatch):
    from bertology.tap import interface_route as interface

    model, inputs = BY_NAME["bert"].build(), batch((17, 20, 9))
    whole = head_distances(model, inputs)
    monkeypatch.setattr(interface, "BLOCK_BYTES", 3 * 4 * 20 * 8 * 9)
    same(head_distances(model, inputs).js, whole.js)


def test_a_head_that_is_not_a_number_is_named():
    model = BY_NAME["bert"].build()
    with torch.no_grad():
        dissect(model).sites[1].query.bias[4] = float("nan")
    with pytest.raises(DataError, match="head distance is nan for 1 head, the first at layer 1, head 1"):
        head_distances(model, batch())


# Heads that have no distance


def two_stacks():
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=40, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    model = transformers.T5ForConditionalGeneration(config).double().eval()
    ids = torch.tensor([[5, 6, 7, 8, 9], [9, 8, 7, 6, 5], [4, 4, 3, 0, 0]])
    return model, {**batch((7, 4, 5), labels=False), "decoder_input_ids": ids}


def test_no_distance_between_stacks():
    model, inputs = two_stacks()
    found = head_distances(model, inputs, smoothing=0.1)
    labels = ("encoder.0", "encoder.1", "decoder.0", "cross.0", "decoder.1", "cross.1")
    assert sorted(found.labels) == sorted(labels)
    stacks = [found.labels[row // 4].partition(".")[0] for row in range(24)]
    alike = torch.tensor([[a == b for b in stacks] for a in stacks])
    assert torch.equal(found.js.isnan(), ~alike)
    maps = attention_maps(model, inputs)
    for name in ("encoder", "decoder"):
        cut = found.stack(name)
        expected = oracles.head_distances(maps.stacks[name], maps.masks[name], 0.1) / maps.masks[name].sum()
        same(cut.js, expected, **FLOAT32)  # T5 of transformers 4 takes its softmax in float32
        assert cut.labels == (f"{name}.0", f"{name}.1")
        assert cut.embed().shape == (8, 2)
    assert found.between(Head(0, 1, "cross"), Head(1, 2, "cross")) == found.stack("cross").between((0, 1), (1, 2))
    with pytest.raises(DataError, match=r"heads EL0H0 and DL0H0 do not attend .*: take .stack\('encoder'\) or"):
        found.embed()
    with pytest.raises(DataError, match="no stack 'tower' in this result"):
        found.stack("tower")


def test_keys_of_another_text_are_spread_over_the_real_ones():
    """In cross attention, smoothing spreads over the keys that any real query attends to: the source's real tokens."""
    model, inputs = two_stacks()
    found = head_distances(model, inputs, smoothing=0.3).stack("cross")
    maps = attention_maps(model, inputs).stacks["cross"]
    expected = torch.zeros(8, 8, dtype=torch.float64)
    for example, keys in enumerate((7, 4, 5)):
        some = maps[:, example, :, :, :keys].flatten(0, 1)
        assert maps[:, example, :, :, keys:].abs().max() == 0 if keys < 7 else True
        expected += torch.from_numpy(oracles.by_pairs([some.numpy()], 0.3))
    same(found.js, expected / 15, **FLOAT32)
    expected[0, 1] += 1e-4
    with pytest.raises(AssertionError):
        same(found.js, expected / 15, **FLOAT32)


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")
def test_no_distance_where_layers_pool_tokens():
    torch.manual_seed(0)
    config = transformers.FunnelConfig(
        vocab_size=40, block_sizes=[1, 1], num_decoder_layers=1, d_model=16, n_head=4, d_head=4, d_inner=24
    )
    model = transformers.FunnelModel(config).eval()
    found = head_distances(model, {"input_ids": torch.randint(3, 40, (2, 8))})
    layers = len(found.labels)
    known = ~found.js.view(layers, 4, layers, 4)[:, 0, :, 1].isnan()
    assert known.diagonal().all()
    assert not known.all()
    with pytest.raises(DataError, match="do not attend between the same tokens and have no distance$"):
        found.clusters(2)


def test_layers_that_are_compared_now_and_then_have_no_distance():
    model, inputs = BY_NAME["bert"].build(), batch()
    sums = DistancesAccumulator().zero(dissect(model))
    for _ in range(2):
        with sums.watch(inputs):
            model(**inputs)
    whole = sums.compute().js
    assert not whole.isnan().any()
    sums.compared[0, 1] -= 1
    sums.compared[1, 0] -= 1
    found = sums.compute().js
    assert found[:4, 4:].isnan().all()
    same(found[:4, :4], whole[:4, :4])


def test_pruned_heads_have_no_distance():
    model, inputs = BY_NAME["bert"].build(), batch()
    prune_heads(model, {0: [1], 1: [0, 3]})
    found = head_distances(model, inputs)
    gone = torch.tensor([False, True, False, False, True, False, False, True])
    assert torch.equal(found.js.isnan(), gone[:, None] | gone)
    maps = attention_maps(model, inputs)
    expected = oracles.head_distances(maps.values.nan_to_num(), maps.mask) / 16
    same(found.js[~gone][:, ~gone], expected[~gone][:, ~gone])
    assert torch.equal(found.embed().isnan().any(1), gone)
    assert torch.equal(found.clusters(2).flatten() == -1, gone)
    assert str(found).startswith("HeadDistances: 5 heads")
    assert math.isnan(found.between((0, 1), (0, 2)))


# Over a data set


def test_merging_two_halves_is_the_whole():
    model, examples = BY_NAME["bert"].build(), each_alone(batch((7, 4, 5, 2, 6)))
    parts = []
    for some in (examples[:2], examples[2:]):
        part = DistancesAccumulator(0.01).zero(dissect(model))
        for one in some:
            with part.watch(one):
                part.update(one, model(**one))
        parts.append(part)
    merged = parts[0].merge(parts[1].state()).compute()
    whole = head_distances(model, examples, smoothing=0.01)
    same(merged.js, whole.js)
    assert torch.equal(merged.queries, whole.queries)


def test_a_pass_that_was_cut_off_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("bertology.streaming.checkpoint.EVERY_SECONDS", 0)
    model, batches, file = BY_NAME["bert"].build(), each_alone(batch((7, 4, 5, 2))), tmp_path / "sums"

    def cut_off():
        yield from batches[:3]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        accumulate(model, cut_off(), DistancesAccumulator(0.01), checkpoint=file)
    with pytest.raises(DataError, match="is of another model or other measures"):
        accumulate(model, batches, DistancesAccumulator(0.02), checkpoint=file)
    (found,) = accumulate(model, batches, DistancesAccumulator(0.01), checkpoint=file)
    same(found.js, head_distances(model, batches, smoothing=0.01).js)


def test_in_one_pass_with_others(family):
    model, inputs = family.build(), batch()
    found, _, entropy = accumulate(model, inputs, DistancesAccumulator(), PatternsAccumulator(), EntropyAccumulator())
    same(found.js, head_distances(model, inputs).js)
    same(entropy.mean, attention_entropy(model, inputs).mean)


def test_leaves_the_model_alone(family):
    check_leaves_model_alone(family.build(), lambda m: head_distances(m, batch()))
    model = family.build()
    check_leaves_model_alone(model, lambda m: head_distances(m, batch()), dissect(model).sites[1].attention)


@pytest.mark.parametrize(("options", "message"), [
    ({"smoothing": 1.0}, r"smoothing must be from 0 to less than 1, got 1\.0"),
    ({"smoothing": -0.1}, "smoothing must be from 0 to less than 1, got -0.1"),
    ({"reduce": "median"}, "reduce must be 'mean' or 'sum', got 'median'"),
])  # fmt: skip
def test_options_that_make_no_sense(options, message):
    with pytest.raises(DataError, match=message):
        head_distances(BY_NAME["bert"].build(), batch(), **options)


# The result


def test_heads_by_name_and_by_number():
    found = head_distances(BY_NAME["bert"].build(), batch())
    assert [str(head) for head in found.heads] == [f"L{layer}H{head}" for layer in (0, 1) for head in range(4)]
    for row, head in enumerate(found.heads):
        assert found.between(head, (0, 2)) == found.js[row, 2].item() == found.between((0, 2), head)
    with pytest.raises(HeadError, match="head L2H0 is not in this result: its layers are 0, 1"):
        found.between(Head(2, 0), (0, 0))
    with pytest.raises(HeadError, match="head 4 of layer 0 is out of range: this result has 2 layers of 4 heads"):
        found.between((0, 4), (0, 0))
    both = made(np.zeros((4, 4)), 2, ("encoder.0", "decoder.0"))
    with pytest.raises(HeadError, match="head L0H1 is in several stacks; say which"):
        both.between(Head(0, 1), (0, 0))


def test_saved_and_loaded(tmp_path):
    found = head_distances(BY_NAME["bert"].build(), batch(), smoothing=0.01, reduce="sum")
    found.save(tmp_path / "distances.safetensors")
    loaded = Result.load(tmp_path / "distances.safetensors")
    assert isinstance(loaded, HeadDistances)
    assert torch.equal(loaded.js, found.js)
    assert (loaded.heads_per_layer, loaded.labels, loaded.reduce, loaded.smoothing) == (4, ("0", "1"), "sum", 0.01)
    assert str(loaded) == str(found)


def test_printed_by_layer():
    js = torch.tensor([[0, 0.1, 0.2, 0.4], [0.1, 0, 0.2, 0.4], [0.2, 0.2, 0, 0.5], [0.4, 0.4, 0.5, 0]])
    lines = str(made(js, 2, ("0", "1"))).splitlines()
    assert lines[0] == "HeadDistances: 4 heads, Jensen-Shannon divergence in nats, mean over query tokens"
    assert [line.split() for line in lines[2:]] == [["0", "0.1", "0.3", "1"], ["1", "0.5", "0.3", "1"]]
    assert "smoothing 0.001" in str(head_distances(BY_NAME["bert"].build(), batch(), smoothing=0.001))


def test_points_in_a_plane_are_found_again():
    points = torch.rand(9, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    js = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    found = made(js).embed(2)
    same(torch.cdist(found, found), js, atol=1e-4, rtol=0.0)
    assert torch.equal(found, made(js).embed(2))
    assert not torch.equal(found, made(js).embed(2, seed=1))
    line = made(js).embed(1)
    assert line.shape == (9, 1)
    with pytest.raises(AssertionError):
        same(torch.cdist(line, line), js, atol=1e-2, rtol=0.0)


def test_two_obvious_groups():
    group = torch.tensor([1, 0, 1, 0, 0, 1])
    js = torch.where(group[:, None] == group, 0.1, 0.6).fill_diagonal_(0)
    for linkage in ("average", "complete", "single"):
        # Numbered by their first heads.
        assert made(js, 3, ("0", "1")).clusters(2, linkage=linkage).tolist() == [[0, 1, 0], [1, 1, 0]]
    assert made(js, 3, ("0", "1")).clusters(1).tolist() == [[0, 0, 0], [0, 0, 0]]
    assert made(js, 3, ("0", "1")).clusters(6).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert made([[0.0]]).clusters(1).tolist() == [[0]]


def test_chains_hold_together_by_single_linkage_only():
    places = torch.tensor([0.0, 1, 2, 3, 4, 5.5])
    chain = made((places[:, None] - places).abs())
    assert chain.clusters(2, linkage="single").tolist() == [[0, 0, 0, 0, 0, 1]]
    assert chain.clusters(2, linkage="complete").tolist() == [[0, 0, 0, 0, 1, 1]]


@pytest.mark.parametrize(("ask", "message"), [
    (lambda r: r.clusters(0), "k must be from 1 to 3, the number of heads, got 0"),
    (lambda r: r.clusters(4), "k must be from 1 to 3, the number of heads, got 4"),
    (lambda r: r.clusters(2, linkage="ward"), "linkage must be 'average', 'complete' or 'single', got 'ward'"),
    (lambda r: r.embed(0), "dims must be from 1 to 2, one less than the 3 heads, got 0"),
    (lambda r: r.embed(3), "dims must be from 1 to 2, one less than the 3 heads, got 3"),
    (lambda r: made([[math.nan]]).embed(1), "no head is left in this result"),
])  # fmt: skip
def test_points_and_clusters_that_cannot_be(ask, message):
    with pytest.raises(DataError, match=message):
        ask(made([[0, 0.1, 0.2], [0.1, 0, 0.3], [0.2, 0.3, 0]]))


def test_without_the_extra(monkeypatch):
    found = made([[0, 0.1, 0.2], [0.1, 0, 0.3], [0.2, 0.3, 0]])
    for module, ask in (("sklearn.manifold", found.embed), ("sklearn.cluster", lambda: found.clusters(2))):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(MissingExtra, match=r"pip install 'bertology\[syntax\]'"):
            ask()


# On real text


@pytest.mark.slow
def test_a_real_model_in_float32(minilm):
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    texts = ["Birds warble.", "The pillow looks splendid, but it has given me a stiff neck."]
    inputs = dict(tokenizer(texts, padding=True, return_tensors="pt"))
    model = transformers.AutoModel.from_pretrained(minilm).eval()
    found = head_distances(model, inputs, smoothing=0.001)
    maps, lengths = attention_maps(model, inputs).values, inputs["attention_mask"].sum(1).tolist()
    cropped = [maps[:, i, :, :n, :n].flatten(0, 1).double().numpy() for i, n in enumerate(lengths)]
    same(found.js, torch.from_numpy(oracles.by_pairs(cropped)) / sum(lengths), **FLOAT32)
    assert found.clusters(4).unique().tolist() == [0, 1, 2, 3]
    assert found.embed().shape == (72, 2)
