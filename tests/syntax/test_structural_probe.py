import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from bertology import hidden_states
from bertology.errors import DataError
from bertology.measures.random_weights import randomized
from bertology.results.result import Result
from bertology.syntax import StructuralProbe, align, read_conllu, structural_probe
from bertology.syntax.structural_probe import (
    Words,
    _scored,
    about_median,
    sentence_loss,
    spanning_tree,
    squared_distances,
    tree_distances,
    words_of,
)
from helpers.trees import CATS, arguments, batches_for, heads, sentence, wordpiece_tokenizer
from helpers.zoo import BY_NAME
from oracles import syntax_probes as oracles


def planted(found):
    """[word, hidden]: vectors whose squared distances are those of the tree: a one for each arc on the way to the root."""
    rows = torch.zeros(len(found), len(found))
    for word in range(len(found)):
        at = word + 1
        while found[at - 1]:
            rows[word, at - 1] = 1
            at = found[at - 1]
    return rows


@given(heads())
def test_distances_in_trees(found):
    expected = [[oracles.path_length(found, i, j) for j in range(len(found))] for i in range(len(found))]
    assert tree_distances(found).tolist() == expected


def test_words_without_a_common_root_meet_at_root():
    assert tree_distances([0, 1, 0]).tolist() == [[0, 1, 2], [1, 0, 3], [2, 3, 0]]


@pytest.mark.parametrize("odd", [None, 0, 3])
def test_a_large_constant_dimension_leaves_the_distances(odd):
    """Also beside a word that is like no other. oracle: the differences of words themselves, in float64"""
    drawn = torch.Generator().manual_seed(0)
    vectors, b = torch.randn(1, 6, 8, generator=drawn), torch.randn(1, 5, 8, generator=drawn)
    vectors[:, :, 0] = 3e4
    if odd is not None:
        vectors[:, odd, 1] = 1e5
    pairs = (vectors[0, :, None] - vectors[0, None]).double() @ b[0].double().T
    found = squared_distances(about_median(vectors), b)[0].double()
    others = [word for word in range(6) if word != odd]
    torch.testing.assert_close(
        found[others][:, others], pairs.square().sum(-1)[others][:, others], rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(found, pairs.square().sum(-1), rtol=1e-4, atol=1e-4)


@given(heads())
def test_a_projection_that_knows_the_tree_finds_it(found):
    words = Words(sentence(" ".join("w" * len(found)), found), planted(found)[None])
    identity = torch.eye(len(found))[None]
    assert sentence_loss(words, identity).item() == pytest.approx(0, abs=1e-5)
    right, arcs, _, correlation, many = _scored(words, identity, ())
    assert right.item() == arcs == len(found) - 1
    assert many == len(found)
    if many > 1:
        assert correlation.item() == pytest.approx(1)


@given(st.integers(2, 7), st.integers(0, 1000))
def test_spanning_trees_are_minimal(many, seed):
    distances = torch.rand(many, many, generator=torch.Generator().manual_seed(seed))
    distances = (distances + distances.T).tolist()
    assert spanning_tree(torch.tensor(distances)) == oracles.kruskal(distances)


def test_equals_loops_over_the_formula():
    generator = torch.Generator().manual_seed(3)
    some = sentence("the cat sat on a mat", [2, 3, 0, 6, 6, 3], "det nsubj root punct det obl")
    vectors, b = torch.randn(2, 6, 5, generator=generator), torch.randn(2, 4, 5, generator=generator)
    expected = [oracles.structural_loss(b[layer], vectors[layer], some.heads) for layer in range(2)]
    assert sentence_loss(Words(some, vectors), b).tolist() == pytest.approx(expected, rel=1e-4)
    spoiled = (2, 3, 0, 6, 6, 2)
    assert expected[0] != pytest.approx(oracles.structural_loss(b[0], vectors[0], spoiled), rel=1e-4)
    right, arcs, adjacent, correlation, _ = _scored(Words(some, vectors), b, ("punct",))
    counted = [0, 1, 2, 4, 5]  # without the fourth word
    assert (arcs, adjacent) == (4, 3)  # the-cat, cat-sat, a-mat, sat-mat; sat and mat are no neighbours
    from scipy.stats import spearmanr

    for layer in range(2):
        d = [[oracles.squared_distance(b[layer], x, y) for y in vectors[layer]] for x in vectors[layer]]
        tree = {(counted[i], counted[j]) for i, j in oracles.kruskal([[d[i][j] for j in counted] for i in counted])}
        assert right[layer] == len(tree & {(0, 1), (1, 2), (4, 5), (2, 5)})
        rho = [spearmanr(d[i], [oracles.path_length(some.heads, i, j) for j in range(6)])[0] for i in range(6)]
        assert correlation[layer].item() == pytest.approx(sum(rho) / 6)
    torch.testing.assert_close(
        squared_distances(vectors, b)[0],
        torch.tensor([[oracles.squared_distance(b[0], x, y) for y in vectors[0]] for x in vectors[0]]),
        rtol=1e-4,
        atol=1e-4,
    )


def test_reads_hidden_states_of_every_family(family):
    model, batches = family.build(), batches_for(family, batch_size=2)
    found = structural_probe(model, batches, batches, epochs=1, rank=3)
    batch = batches.batches[0]
    states = hidden_states(model, arguments(batch, family))
    states = states.stack("encoder") if "encoder" in states.stacks and len(states.stacks) > 1 else states
    assert found.labels == states.labels
    assert found.projection.shape == (len(states.values), 3, states.values.shape[-1])
    assert (found.losses[:, 0] > 0).all()


def test_vectors_of_words_are_about_their_median():
    batches = align(wordpiece_tokenizer(), CATS)
    for words in words_of(BY_NAME["bert"].build(), batches.batches[0]):
        assert not words.vectors.median(1).values.any()
        assert words.vectors.any() == (words.vectors.shape[1] > 1)


def test_it_learns(tmp_path):
    model, batches = BY_NAME["bert"].build(), align(wordpiece_tokenizer(), CATS)
    one, longer = (structural_probe(model, batches, batches, epochs=epochs, lr=0.01) for epochs in (1, 60))
    assert (longer.losses[:, -1] < 0.7 * longer.losses[:, 0]).all()
    assert longer.uuas.max() > one.uuas.max()
    for off in (torch.no_grad, torch.inference_mode):
        with off():
            again = structural_probe(model, batches, batches, epochs=1, lr=0.01)
        assert torch.equal(again.projection, one.projection)
    longer.save(tmp_path / "probe")
    loaded = Result.load(tmp_path / "probe")
    assert isinstance(loaded, StructuralProbe)
    assert str(loaded) == str(longer)
    assert "| each word with the next | " in str(longer)
    assert f"{int(longer.arcs.sum())} arcs without punct of 4 sentences" in str(longer)


def test_the_model_runs_once_on_what_is_kept(monkeypatch):
    model, batches = BY_NAME["bert"].build(), align(wordpiece_tokenizer(), CATS, batch_size=1)
    runs = []
    model.register_forward_hook(lambda *_: runs.append(1))

    def probe(kept_bytes):
        monkeypatch.setitem(sentence_loss.__globals__, "KEPT_BYTES", kept_bytes)
        runs.clear()
        return structural_probe(model, batches, batches, epochs=3, rank=2), len(runs)

    (none, many), (whole, few), (some, between) = probe(0), probe(2**30), probe(1000)
    once = 1 + len(batches)  # the layers' sizes, and the test sentences
    assert (many, few) == (once + 3 * len(batches), once + len(batches))
    assert few < between < many
    for other in (whole, some):
        assert torch.equal(other.projection, none.projection)


def test_errors():
    model, batches = BY_NAME["bert"].build(), align(wordpiece_tokenizer(), CATS)
    alone = align(wordpiece_tokenizer(), [sentence("cat", [0]), sentence("cat sat", [0, 1], "root punct")])
    with pytest.raises(DataError, match=r"no arc between two words without an ignored relation, \('punct',\)"):
        structural_probe(model, batches, alone)
    assert structural_probe(model, batches, alone, ignore=(), epochs=1).arcs.sum() == 1
    with pytest.raises(DataError, match="rank, the number of rows of the projection, must be 1 or more, got 0"):
        structural_probe(model, batches, batches, rank=0)
    with pytest.raises(DataError, match="train must be the batches of bertology.syntax.align"):
        structural_probe(model, list(batches), batches)


@pytest.mark.shared
@pytest.mark.slow
def test_trained_layers_know_more_than_random_ones(minilm, shared):
    tokenizer, model = (
        transformers.AutoTokenizer.from_pretrained(minilm),
        transformers.AutoModel.from_pretrained(minilm),
    )
    train = align(tokenizer, read_conllu(shared / "ud" / "en_ewt-ud-train-slice.conllu")[:240])
    test = align(tokenizer, read_conllu(shared / "ud" / "en_ewt-ud-dev.conllu")[:80])
    found, control = (structural_probe(m, train, test, rank=32, epochs=16) for m in (model, randomized(model)))
    assert found.uuas[2:5].max() > max(found.uuas[0], control.uuas.max(), found.adjacent) + 0.03
    assert found.spearman[2:5].max() > control.spearman.max()
