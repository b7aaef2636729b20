import copy
import math
from dataclasses import fields, replace

import pytest
import torch
import transformers
from hypothesis import given

from bertology import prune_heads
from bertology.errors import DataError, ShapeError
from bertology.measures.random_weights import randomized
from bertology.results.files import write_file
from bertology.results.result import Result
from bertology.syntax import AlignedBatches, align, read_conllu
from bertology.syntax.attention_probe import (
    AttentionProbe,
    DistanceProbe,
    ProbeResult,
    attention_probe,
    distance_probe,
    distances,
    fit,
    parse,
    sentence_loss,
    with_root,
)
from bertology.syntax.picks import picks
from bertology.syntax.probe_inputs import MapReader, Seen, StaticVectors, embedding_vectors
from bertology.syntax.probe_scores import WEIGHTS, count_right, heads_of, left_branching
from helpers.syntax_probes import close, spoiled
from helpers.trees import CATS, batches_for, heads, sentence, wordpiece_tokenizer
from helpers.zoo import BY_NAME
from oracles import syntax_probes as oracles


def some_maps(count=3, words=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, words + 2, words + 2, generator=generator).softmax(-1)


def random_probe(maps=3, dim=0, seed=0):
    probe = AttentionProbe(maps, dim)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in probe.parameters():
            parameter.normal_(generator=generator)
    return probe


# The formulas


def test_scores_equal_loops_over_the_formula():
    probe, maps = random_probe(), some_maps()
    (u, w), ends = probe.weights.detach().chunk(2), probe.ends.tolist()
    found, expected = probe(maps, None), oracles.attention_scores(maps, w, u, *ends)
    close(found, expected)
    spoiled(found, expected)
    assert found.shape == (4, 5)
    with pytest.raises(AssertionError):  # the directions are not the same
        close(found, oracles.attention_scores(maps, u, w, *ends))


def of_vectors(probe, maps, vectors, **options):
    u, w = torch.cat([probe.of_candidate, probe.of_dependent], dim=1).detach().chunk(2)
    u_bias, w_bias = probe.weights.detach().chunk(2)
    return oracles.vector_scores(maps, vectors, w, u, w_bias, u_bias, *probe.ends.tolist(), **options)


def test_scores_with_vectors_equal_loops_over_the_formula():
    probe, maps, vectors = random_probe(dim=2), some_maps(), torch.randn(4, 2)
    found, expected = probe(maps, vectors), of_vectors(probe, maps, vectors)
    close(found, expected)
    spoiled(found, expected)


def test_a_candidate_is_paired_with_its_own_vector():
    """Slip C4.2: the paper's code appends ROOT's vector behind the words', though ROOT is column 0."""
    probe, maps = AttentionProbe(1, 1), torch.ones(1, 5, 5)
    with torch.no_grad():
        probe.of_candidate[0] = 1  # the score is the candidate's vector
    vectors = torch.tensor([[1.0], [2.0], [3.0]])
    found = probe(maps, vectors)
    assert found.tolist() == [[0, 1, 2, 3]] * 3
    assert torch.equal(with_root(vectors)[0], torch.zeros(1))
    slip = of_vectors(probe, maps, vectors, next_one=True)
    assert slip[:, 1:3].tolist() == [[2, 3]] * 3
    with pytest.raises(AssertionError):
        close(found, slip)


def test_a_word_counts_as_dependent_too_and_at_root():
    """ROOT's vector is 0, the dependent's stays: in the paper's code both are."""
    probe, maps = AttentionProbe(1, 1), torch.ones(1, 4, 4)
    with torch.no_grad():
        probe.of_dependent[0] = 1
    assert probe(maps, torch.tensor([[1.0], [2.0]])).tolist() == [[2, 1, 1], [4, 2, 2]]  # r_s + r_e = 2 at ROOT


def test_root_is_the_first_column_and_stands_for_the_ends():
    probe, maps = AttentionProbe(1), torch.zeros(1, 4, 4)
    maps[0, 1, 0], maps[0, 2, 3], maps[0, 0, 2] = 0.5, 0.25, 0.125
    with torch.no_grad():
        probe.ends.copy_(torch.tensor([2.0, 3.0]))
    from_dependent, from_head = probe.features(maps)
    assert from_dependent[:, 0].tolist() == [1.0, 0.75]  # word 1 to the start, word 2 to the end
    assert from_head[:, 0].tolist() == [0.0, 0.25]  # the start to word 2
    assert from_dependent[:, 1:].sum() == 0


@given(heads(least=2))
def test_one_perfect_head_is_enough(found):
    """METHODS C5: with w = 1 on one perfect head, the probe picks what that head picks."""
    maps = some_maps(words=len(found)) * 0.1
    for word, head in enumerate(found, 1):
        maps[1, word, head or -1] += 1  # to the end of the text for ROOT
    maps[1].diagonal().add_(5)  # what a word gives to itself does not matter
    probe = AttentionProbe(3)
    for direction, some in ((0, maps), (1, maps.mT)):
        with torch.no_grad():
            probe.weights.zero_()[3 * direction + 1] = 1
        picked = heads_of(probe(some, None), "greedy")
        assert picked == found
        alone = picks(some[None, 1:2, 1:-1, 1:-1].clone())[direction, 0, 0].tolist()
        assert all(alone[word] == head - 1 for word, head in enumerate(found) if head)


def test_distances_and_vectors_equal_loops():
    probe, vectors = DistanceProbe(3, torch.Generator().manual_seed(0)), torch.randn(4, 3)
    with torch.no_grad():
        probe.bias.normal_()
        found = probe(None, vectors)
        expected = oracles.distance_scores(vectors, probe.inner, probe.bias, probe.outer[0])
    close(found, expected)
    spoiled(found, expected)
    assert distances(3)[0, 0].tolist() == [0] * 7 + [1]
    assert distances(3).sum((0, 1))[-1] == 3
    assert probe.inner.shape == (256, 14)


def test_the_loss_leaves_a_word_itself_out():
    scores, gold = torch.randn(4, 5, dtype=torch.float64), (2, 0, 2, 3)
    assert sentence_loss(scores, gold).item() == pytest.approx(oracles.sentence_loss(scores, gold))
    changed = scores.clone()
    changed[torch.arange(4), torch.arange(1, 5)] += 9  # each as its own head
    assert sentence_loss(changed, gold).item() == pytest.approx(oracles.sentence_loss(scores, gold))
    assert sentence_loss(torch.randn(1, 2), (0,)).item() == 0  # of one word, ROOT is sure
    changed[0, 0] += 1
    assert sentence_loss(changed, gold).item() != pytest.approx(oracles.sentence_loss(scores, gold))


def test_without_special_tokens_root_scores_nothing():
    model, batches = BY_NAME["gpt2"].build(), batches_for(BY_NAME["gpt2"])
    maps = MapReader(model, batches.batches[0], "mean")(batches.batches[0])[0]
    assert random_probe(8)(maps, None)[:, 0].abs().max() == 0
    assert random_probe(8, dim=3)(maps, torch.randn(maps.shape[1] - 2, 3))[:, 0].abs().max() == 0
    assert 0 <= attention_probe(model, batches, batches).uas <= 1


def test_nothing_of_the_model_changes():
    model = BY_NAME["bert"].build(attention="sdpa").train()
    frozen = next(model.parameters()).requires_grad_(False)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    batches = align(wordpiece_tokenizer(), CATS)
    for vectors in (None, "embeddings"):
        attention_probe(model, batches, batches, vectors=vectors, epochs=2)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [p.requires_grad for p in model.parameters()].count(False) == 1
    assert not frozen.requires_grad
    assert all(module.training for module in model.modules())
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_may_be_off_around_it(mode):
    model, batches = BY_NAME["bert"].build(), align(wordpiece_tokenizer(), CATS)
    expected = attention_probe(model, batches, batches, vectors="embeddings")
    with mode():
        found = attention_probe(model, batches, batches, vectors="embeddings")
        distance_probe(batches, batches, vectors=StaticVectors(["cat"], torch.ones(1, 2)))
    assert torch.equal(found.losses, expected.losses)


# Training


def synthetic(count, good, seed, direction=0):
    """Batches without a model, and what is seen of them: one of 6 maps knows the trees, in one direction."""
    generator = torch.Generator().manual_seed(seed)
    seen = {}
    for number in range(count):
        words = int(torch.randint(2, 9, (1,), generator=generator))
        order = torch.randperm(words, generator=generator).tolist()
        found = [0] * words
        for place, word in enumerate(order[1:], 1):
            found[word] = order[int(torch.randint(place, (1,), generator=generator))] + 1
        maps = (3 * torch.randn(6, words + 2, words + 2, generator=generator)).softmax(-1)
        maps[good] *= 0.3  # the others are as sharp, and know nothing
        for word, head in enumerate(found, 1):
            maps[good, word, head or -1] += 1
        maps[good] /= maps[good].sum(-1, keepdim=True)
        one = sentence("w " * words, found, name=str(number))
        seen[one.name] = Seen(one, maps if direction == 0 else maps.mT, None)
    batches = tuple({"number": list(seen)[i : i + 8]} for i in range(0, count, 8))
    return AlignedBatches(batches, ()), lambda batch: [seen[name] for name in batch["number"]]


@pytest.mark.parametrize("direction", [0, 1])
@pytest.mark.parametrize("decode", ["greedy", "one-root tree"])
def test_a_head_that_knows_the_trees_is_found(direction, decode):
    probe = AttentionProbe(6)
    train, see = synthetic(200, 4, 1, direction)
    generator = torch.Generator().manual_seed(0)
    losses = fit(probe, train, see, epochs=1, lr=0.01, generator=generator, progress=None)
    assert len(losses) == 200
    assert probe.weights.argmax() == 6 * direction + 4
    test, look = synthetic(100, 4, 2, direction)
    found = [(seen.sentence, picked) for seen, picked in parse(probe, test, look, decode)]
    right = sum(count_right(*one) for one in found) / sum(len(s.words) for s, _ in found)
    assert right > 0.95
    other, blind = synthetic(100, 5, 2, direction)
    found = [(seen.sentence, picked) for seen, picked in parse(probe, other, blind, decode)]
    assert sum(count_right(*one) for one in found) / sum(len(s.words) for s, _ in found) < 0.6


def test_previous_words_are_found_in_a_real_model(minilm):
    """all-MiniLM-L6-v2's head 0-2 attends to the token before: on chains, the probe finds it by itself."""
    from transformers import AutoModel, AutoTokenizer

    generator = torch.Generator().manual_seed(0)
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "dogs", "under", "stars", "sing", "to", "us", "all", "night"]
    chains = []
    for number in range(120):
        many = int(torch.randint(3, 12, (1,), generator=generator))
        some = [words[i] for i in torch.randint(len(words), (many,), generator=generator).tolist()]
        chains.append(sentence(" ".join(some), left_branching(many), name=str(number)))
    tokenizer, model = AutoTokenizer.from_pretrained(minilm), AutoModel.from_pretrained(minilm)
    found = attention_probe(model, align(tokenizer, chains[:80]), align(tokenizer, chains[80:]), lr=0.01)
    assert found.uas > 0.95
    assert divmod(int(found.from_dependent.argmax()), 12) == (0, 2)
    assert found.baselines["left-branching"] == 1
    assert found.baselines["right-branching"] == 0


def test_the_seed_decides_and_each_epoch_sees_all():
    model, batches = BY_NAME["bert"].build(), align(wordpiece_tokenizer(), CATS * 3, batch_size=3)
    one, again, other = (attention_probe(model, batches, batches, epochs=2, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.losses, again.losses)
    assert torch.equal(one.from_head, again.from_head)
    assert not torch.equal(one.losses, other.losses)
    assert len(one.losses) == 2 * 12
    vectors = embedding_vectors(model)
    one, again, other = (distance_probe(batches, batches, vectors=vectors, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.losses, again.losses)
    assert not torch.equal(one.losses, other.losses)


def test_before_training_all_are_alike():
    """The first loss is that of guessing: Σ ln n over a sentence of n words, which has n - 1 others and ROOT."""
    model, batches = BY_NAME["bert"].build(), align(wordpiece_tokenizer(), CATS[:1])
    found = attention_probe(model, batches, batches)
    assert found.losses.tolist() == pytest.approx([6 * math.log(6)], rel=1e-6)
    step = torch.tensor(0.002, dtype=torch.float64)  # of Adam, the first is as long as lr
    assert torch.allclose(found.from_head.abs().max(), step, rtol=1e-3)


def test_the_offset_is_chosen_on_the_training_sentences():
    chain = [sentence("the cat sat on", [2, 3, 4, 0])]
    other = [sentence("the cat sat on", [0, 1, 2, 3])]
    model = BY_NAME["bert"].build()
    found = attention_probe(model, *(align(wordpiece_tokenizer(), some) for some in (chain, other)))
    assert found.baselines == {"right-branching": 0, "left-branching": 1, "offset +1": 0}


def test_a_sentence_of_one_word_and_one_of_punctuation():
    some = [CATS[0], CATS[3], sentence("and and", [0, 1], "punct punct")]
    model, batches = BY_NAME["bert"].build(), align(wordpiece_tokenizer(), some)
    for decode in ("greedy", "tree", "one-root tree"):
        found = attention_probe(model, batches, batches, decode=decode, vectors="embeddings")
        assert sorted(found.words.tolist()) == [0, 1, 6]
        assert found.right[found.words == 1].item() == 1  # ROOT is all that is left
        assert found.decode == decode
    with pytest.raises(DataError, match=r"every word of the test sentences has an ignored relation, \('punct',\)"):
        attention_probe(model, batches, align(wordpiece_tokenizer(), some[2:]))


def test_pruned_heads_are_no_features():
    model, batches = BY_NAME["bert"].build(), align(wordpiece_tokenizer(), CATS)
    prune_heads(model, {0: [1, 2], 1: [0]})
    found = attention_probe(model, batches, batches, vectors="embeddings")
    gone = torch.tensor([[False, True, True, False], [True, False, False, False]])
    for weights in (found.from_dependent, found.from_head, *(x[..., 0] for x in found.vector_weights.values())):
        assert torch.equal(weights.isnan(), gone)
    assert {name: x.shape for name, x in found.vector_weights.items()} == dict.fromkeys(WEIGHTS, (2, 4, 32))


def test_encoder_decoders_show_their_encoder():
    config = transformers.T5Config(vocab_size=40, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4)
    model, made = transformers.T5ForConditionalGeneration(config), align(wordpiece_tokenizer(), CATS)
    batches = tuple(
        {name: x for name, x in one.items() if name != "token_type_ids"} | {"decoder_input_ids": one["input_ids"]}
        for one in made
    )
    batches = AlignedBatches(batches, ())
    found = attention_probe(model, batches, batches)
    assert not found.from_head[:2].isnan().any()
    assert found.from_head[2:].isnan().all()  # though the decoder sees as many tokens here
    encoder = found.stack("encoder")
    assert encoder.from_head.shape == (2, 4)
    assert {name: x.shape for name, x in encoder.vector_weights.items()} == dict.fromkeys(WEIGHTS, (2, 4, 0))
    assert not encoder.from_head.isnan().any()


def test_weights_are_those_of_their_heads():
    """A probe that is rebuilt from the result scores as the trained one did."""
    model, batches = BY_NAME["bert"].build(), align(wordpiece_tokenizer(), CATS)
    found = attention_probe(model, batches, batches, vectors="embeddings", epochs=5)
    reader, vectors = MapReader(model, batches.batches[0], "mean"), embedding_vectors(model)
    u, w = found.from_dependent.flatten(), found.from_head.flatten()
    U, W = (found.vector_weights[name].flatten(0, 1) for name in ("from_dependent", "from_head"))

    def hits(W, U):
        counts = []
        for batch in batches:
            for maps, v, one in zip(reader(batch), vectors.of(batch), batch["annotations"], strict=True):
                scores = oracles.vector_scores(maps, v, W, U, w, u, found.root_start, found.root_end)
                counts.append(count_right(one.source, heads_of(scores, "greedy")))
        return counts

    assert hits(W, U) == found.right_with_punct.tolist()
    assert hits(U, W) != found.right_with_punct.tolist()


def test_files_of_before_have_the_same_weights(tmp_path):
    """They held one tensor [layer, head, direction, dim], with u before w along the direction."""
    model, batches = BY_NAME["bert"].build(), align(wordpiece_tokenizer(), CATS)
    found = attention_probe(model, batches, batches, vectors="embeddings", epochs=2)
    values = {f.name: getattr(found, f.name) for f in fields(found)}
    values["vector_weights"] = torch.stack([found.vector_weights[name] for name in ("from_dependent", "from_head")], 2)
    write_file(tmp_path / "before", "ProbeResult", values)
    loaded = ProbeResult.load(tmp_path / "before")
    for name, table in found.vector_weights.items():
        assert torch.equal(loaded.vector_weights[name], table)
    write_file(tmp_path / "broken", "ProbeResult", values | {"vector_weights": values["vector_weights"][..., :1, :]})
    with pytest.raises(DataError, match="damaged"):
        ProbeResult.load(tmp_path / "broken")


def test_results_are_kept_and_shown(tmp_path):
    model, batches = BY_NAME["bert"].build(), align(wordpiece_tokenizer(), [*CATS, sentence("cat " * 40, [0] * 40)])
    kinds = [
        attention_probe(model, batches, batches),
        attention_probe(model, batches, batches, vectors="embeddings", decode="tree"),
        distance_probe(batches, batches, vectors=StaticVectors(["cat"], torch.ones(1, 2))),
    ]
    for number, result in enumerate(kinds):
        result.save(tmp_path / "probe")
        loaded = Result.load(tmp_path / "probe")
        assert isinstance(loaded, ProbeResult)
        assert str(loaded) == str(result)
        assert loaded.baselines == result.baselines
        assert list(loaded.vector_weights) == list(WEIGHTS)
        for name, table in result.vector_weights.items():
            assert torch.equal(loaded.vector_weights[name].nan_to_num(), table.nan_to_num())
        assert f"| {['attention', 'attention and vectors', 'distances and vectors'][number]} | " in str(result)
    assert kinds[0].plot().axes[0].get_title().startswith("Probe of attention: from_dependent\n")
    assert "tested on 4 sentences of 14 words, 12 of them without a vector; 2 sentences skipped" in str(kinds[2])
    assert "trained in 4 steps, tested on 4 sentences of 14 words; 2 sentences skipped" in str(kinds[0])
    assert "| right-branching | 64.3 |" in str(kinds[0])
    assert "greedy heads of 14 words without punct, " in str(kinds[0])
    assert math.isnan(kinds[2].root_end)


class Crooked:
    dim = 2

    def __init__(self, width, value=1.0):
        self.width, self.value = width, value

    def of(self, batch):
        return [torch.full((len(one.source.words), self.width), self.value) for one in batch["annotations"]]


def test_errors():
    model, batches = BY_NAME["bert"].build(), align(wordpiece_tokenizer(), CATS)
    empty, known = AlignedBatches((), ()), StaticVectors(["cat"], torch.ones(1, 2))
    for train, test, name in ((empty, batches, "train"), (batches, empty, "test")):
        with pytest.raises(DataError, match=f"{name} has no sentences"):
            attention_probe(model, train, test)
        with pytest.raises(DataError, match=f"{name} has no sentences"):
            distance_probe(train, test, vectors=known)
    with pytest.raises(
        DataError, match=r"train must be the batches of bertology.syntax.align for a treebank, got list"
    ):
        attention_probe(model, list(batches), batches)
    for wrong, message in (
        ({"vectors": "glove"}, "vectors must be 'embeddings', StaticVectors or None, got 'glove'"),
        ({"decode": "best"}, "decode must be one of 'greedy', 'tree', 'one-root tree', got 'best'"),
        ({"ignore": "punct"}, r"ignore must be a sequence of relations, such as \('punct',\), got 'punct'"),
        ({"epochs": 0}, "epochs, the number of .*, must be 1 or more, got 0"),
        ({"lr": 0.0}, "lr, the learning rate, must be more than 0, got 0.0"),
        (
            {"vectors": StaticVectors(["dog"], torch.ones(1, 2))},
            "none of the 14 words of the test sentences has a vector",
        ),
        ({"vectors": Crooked(2, math.nan)}, "the loss of sentence .* is nan: look for NaN"),
    ):
        with pytest.raises(DataError, match=message):
            attention_probe(model, batches, batches, **wrong)
    with pytest.raises(
        ShapeError, match=r"the vectors of sentence '.*' must be \[word, dim\] = \[\d, 2\], got \[\d, 3\]"
    ):
        attention_probe(model, batches, batches, vectors=Crooked(3))


# A real model


def read_by_the_formula(found, model, test):
    """How many words get the right head by Σ_k (W_k · (v_i ⊕ v_j) + w_k) α_ij + (U_k · (v_i ⊕ v_j) + u_k) α_ji."""
    reader, vectors = MapReader(model, test.batches[0], "mean"), embedding_vectors(model)
    layers, heads = torch.tensor(reader.places).T
    right = 0
    for batch in test:
        for maps, v, one in zip(reader(batch), vectors.of(batch), batch["annotations"], strict=True):
            v = torch.cat([v.new_zeros(1, v.shape[1]), v]).double()  # ROOT first
            scores = 0
            for name, alpha in (("from_head", maps.mT), ("from_dependent", maps)):  # [map, j, i]
                of_i, of_j = found.vector_weights[name][layers, heads].chunk(2, dim=1)
                weights = (of_i @ v.T)[:, None] + (of_j @ v[1:].T)[:, :, None]
                weights = weights + getattr(found, name)[layers, heads][:, None, None]
                root = found.root_start * alpha[:, 1:-1, :1] + found.root_end * alpha[:, 1:-1, -1:]
                scores = scores + (weights * torch.cat([root, alpha[:, 1:-1, 1:-1]], dim=2)).sum(0)
            right += count_right(one.source, heads_of(scores, "greedy"), ("punct",))
    return right


@pytest.mark.shared
@pytest.mark.slow
def test_attention_knows_more_than_its_control(minilm, shared):
    """The order of Clark et al. (2019), Table 3: random weights < distances and vectors < attention and vectors."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(minilm), AutoModel.from_pretrained(minilm)
    train = align(tokenizer, read_conllu(shared / "ud" / "en_ewt-ud-train-slice.conllu")[:120])
    test = align(tokenizer, read_conllu(shared / "ud" / "en_ewt-ud-dev.conllu")[:80])
    both = attention_probe(model, train, test, vectors="embeddings")
    alone = attention_probe(model, train, test)
    control = attention_probe(randomized(model), train, test, vectors="embeddings")
    distance = distance_probe(train, test, vectors=embedding_vectors(model))
    assert control.uas < control.baselines["right-branching"] < alone.uas < both.uas
    assert control.uas < distance.uas < both.uas
    assert both.words.sum() == distance.words.sum() < both.words_with_punct.sum()
    assert both.baselines == distance.baselines
    # Read as the formula says, the saved weights score as the trained probe did; read the other way, much lower.
    assert read_by_the_formula(both, model, test) == both.right.sum()
    turned = dict(zip(WEIGHTS, reversed(both.vector_weights.values()), strict=True))
    assert read_by_the_formula(replace(both, vector_weights=turned), model, test) < 0.9 * both.right.sum()
