"""The divergences of all pairs of heads, piece by piece: by NumPy and by torch, in float32 and in half precision."""

from importlib.util import find_spec, module_from_spec
from threading import active_count

import numpy as np
import pytest
import torch

from bertology import attention_maps
from bertology.measures import divergences
from bertology.measures.divergences import distances, weights_in_pieces
from bertology.measures.head_distances import head_distances
from helpers.zoo import BY_NAME, batch
from oracles import head_distances as oracles

EXACT = {"atol": 1e-9, "rtol": 0.0}
FLOAT32 = {"atol": 1e-6, "rtol": 0.0}


@pytest.fixture(params=["numpy", "torch"])
def kernel(request, monkeypatch):
    monkeypatch.setattr(divergences, "NUMPY", request.param == "numpy")
    return divergences


def same(found, expected, **tolerance):
    torch.testing.assert_close(found, expected, equal_nan=True, **(tolerance or EXACT))


def hard_maps(heads, texts, tokens, seed=0):
    """[text, head, query, key], float64: random rows of all kinds, some of one key, some of all alike, some with zeros."""
    generator = torch.Generator().manual_seed(seed)
    maps = (9 * torch.randn(texts, heads, tokens, tokens, generator=generator, dtype=torch.float64)).softmax(-1)
    kind = torch.randint(0, 5, (texts, heads, tokens, 1), generator=generator)
    keys = torch.randint(0, tokens, (texts, heads, tokens), generator=generator)
    maps = torch.where(kind == 0, torch.nn.functional.one_hot(keys, tokens).double(), maps)
    maps = torch.where(kind == 1, torch.full_like(maps, 1 / tokens), maps)
    sparse = maps.where(maps > 1 / tokens, 0)
    return torch.where(kind == 2, sparse / sparse.sum(-1, keepdim=True).clamp_min(1e-30), maps)


@pytest.mark.parametrize("smoothing", [0.0, 0.001])
def test_float32_is_right_to_a_millionth(kernel, smoothing):
    maps = hard_maps(10, 2, 40)
    wide = [text.numpy() for text in maps]
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = torch.from_numpy(oracles.by_pairs(wide, smoothing or 1e-12)) / 80
    real = torch.ones(2, 40, dtype=torch.bool)
    narrow = [maps[:, :4].float(), maps[:, 4:].float()]
    total = torch.zeros(10, 10, dtype=torch.float64)
    found = distances(weights_in_pieces(narrow, real, real, smoothing=smoothing), total) / 80
    same(found, expected, **FLOAT32)
    expected[3, 4] += 2e-6
    with pytest.raises(AssertionError):
        same(found, expected, **FLOAT32)


@pytest.mark.parametrize("size", [1, 5, 28, 53, 54])
def test_any_size_of_pieces_gives_the_same(kernel, monkeypatch, size):
    model, inputs = BY_NAME["gpt2"].build(), batch()
    expected = head_distances(model, inputs, smoothing=0.01)
    monkeypatch.setattr(kernel, "CACHE_BYTES", 1)
    monkeypatch.setattr(kernel, "GROUP", size)
    same(head_distances(model, inputs, smoothing=0.01).js, expected.js)
    maps = attention_maps(model, inputs)
    pieces = [piece.shape[1] for piece in weights_in_pieces(list(maps.values), maps.mask, maps.mask)]
    assert pieces == [size] * (53 // size) + [53 % size] * (53 % size > 0)


def test_what_a_decoder_cannot_see_is_left_out():
    maps = attention_maps(BY_NAME["gpt2"].build(), batch())
    pieces = list(weights_in_pieces(list(maps.values), maps.mask, maps.mask, smoothing=0.1))
    assert sum(piece.shape[1] for piece in pieces) == sum(n * (n + 1) // 2 for n in (7, 4, 5))


def test_half_precision_is_widened(kernel):
    model = BY_NAME["bert"].build("lm").to(torch.bfloat16)
    inputs = batch(labels=False)
    maps = attention_maps(model, inputs)
    same(head_distances(model, inputs).js, oracles.head_distances(maps.values, maps.mask) / 16, **FLOAT32)


def test_numpy_and_torch_are_equal_in_float64(monkeypatch):
    maps, real = [hard_maps(6, 3, 40)], torch.ones(3, 40, dtype=torch.bool)
    found = []
    for kind in (False, True):
        monkeypatch.setattr(divergences, "NUMPY", kind)
        found.append(distances(weights_in_pieces(maps, real, real), torch.zeros(6, 6, dtype=torch.float64)))
    same(*found, atol=1e-12, rtol=1e-12)
    assert found[0].max() > 1


def test_nan_is_of_its_heads_alone(kernel):
    maps, real = hard_maps(4, 1, 30), torch.ones(1, 30, dtype=torch.bool)
    maps[0, 2, 5, 7] = float("nan")
    found = distances(weights_in_pieces([maps], real, real), torch.zeros(4, 4, dtype=torch.float64))
    assert found.isnan().tolist() == [[2 in (one, other) for other in range(4)] for one in range(4)]


@pytest.mark.parametrize("capability", ["AVX512", "AVX2", "DEFAULT"])
def test_numpy_is_taken_only_where_its_logarithm_is_faster(monkeypatch, capability):
    """With AVX2 alone NumPy takes a third more than torch for a logarithm in float32, and more in float64."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    spec = find_spec("bertology.measures.divergences")
    again = module_from_spec(spec)
    spec.loader.exec_module(again)
    assert again.NUMPY is (capability == "AVX512")


@pytest.mark.parametrize("threads", [1, 3, 5])
def test_the_number_of_threads_changes_nothing(kernel, monkeypatch, threads):
    """Pieces are added in their order, in whatever thread they are compared; an exception leaves no thread behind."""
    maps, real = [hard_maps(6, 3, 40).float()], torch.ones(3, 40, dtype=torch.bool)
    monkeypatch.setattr(divergences, "CACHE_BYTES", 1)

    def found(pieces):
        return distances(pieces, torch.zeros(6, 6, dtype=torch.float64))

    pieces = list(weights_in_pieces(maps, real, real))
    expected = found(pieces)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert torch.equal(found(iter(pieces)), expected)

    def cut_off():
        yield from pieces[:2]
        raise KeyboardInterrupt

    before = active_count()
    with pytest.raises(KeyboardInterrupt):
        found(cut_off())
    assert active_count() == before
    assert not found(iter(())).any()
