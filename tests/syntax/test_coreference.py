from types import SimpleNamespace

import pytest
import torch

from bertology import EntropyAccumulator, Head, accumulate, attention_maps, dissect, prune_heads
from bertology.corpora.conll_coreference import read_conll_coref
from bertology.corpora.documents import KINDS, Document, Mention, pieces
from bertology.corpora.gap_winobias import by_gender, read_gap, read_winobias
from bertology.corpora.words import AlignedBatches, align
from bertology.errors import DataError
from bertology.syntax.antecedents import BASELINES, antecedent_baselines, questions
from bertology.syntax.coreference import (
    DIRECTIONS,
    CoreferenceAccumulator,
    CoreferenceHeads,
    _Questions,
    coreference_heads,
)
from helpers.coreference_documents import CAT, RANDOM
from helpers.trees import byte_tokenizer, wordpiece_tokenizer
from helpers.zoo import BY_NAME
from oracles import coreference as oracles

COUNTS = ("right", "right_with_baseline", "baseline_right", "mentions", "chance")


def arguments(one, family):
    names = {"input_ids", "attention_mask"} | ({"token_type_ids"} if family.name == "bert" else set())
    return {name: x for name, x in one.items() if name in names}


def batches_for(family, documents=RANDOM, **options):
    made = align(byte_tokenizer() if family.causal else wordpiece_tokenizer(), documents, max_length=32, **options)
    kept = tuple({**arguments(one, family), "annotations": one["annotations"]} for one in made)
    return type(made)(kept, made.skipped)


def bert_batches(documents=RANDOM, **options):
    return batches_for(BY_NAME["bert"], documents, **options)


def check(found, expected):
    for name in COUNTS:
        torch.testing.assert_close(getattr(found, name), expected[name], rtol=1e-12, atol=0, msg=name)


def slowly(family, model, batches, candidates="mentions", rows="mean"):
    pairs = []
    for one in batches:
        values = attention_maps(model, arguments(one, family)).values
        for example, aligned in enumerate(one["annotations"]):
            pairs.append((aligned.source, oracles.word_maps(values[:, example], aligned, rows)))
    return oracles.antecedent_counts(pairs, candidates)


def test_equals_loops_over_the_maps(family):
    model = family.build()
    batches = batches_for(family, batch_size=4)
    found, expected = coreference_heads(model, batches), slowly(family, model, batches)
    assert found.mentions.min() > 2
    check(found, expected)
    expected["right"][0, 0, 0, 0] += 1
    with pytest.raises(AssertionError):
        check(found, expected)


@pytest.mark.parametrize(("candidates", "rows"), [("words", "mean"), ("words", "first"), ("mentions", "max")])
def test_among_words_and_by_other_rows(candidates, rows):
    family = BY_NAME["bert"]
    model, batches = family.build(), bert_batches(RANDOM[:12])
    found = coreference_heads(model, batches, candidates=candidates, rows=rows)
    check(found, slowly(family, model, batches, candidates, rows))
    with pytest.raises(AssertionError):  # the twin tells settings apart
        check(found, slowly(family, model, batches))
    assert found.candidates == candidates


def test_another_cluster_is_another_answer():
    """The oracle on spoiled annotations fails."""
    family = BY_NAME["bert"]
    model, batches = family.build(), bert_batches()
    spoiled = [Document(d.words, (*d.mentions[:-1], Mention(0, 1, 0, 9, "proper")), d.name) for d in RANDOM]
    with pytest.raises(AssertionError):
        check(coreference_heads(model, bert_batches(spoiled)), slowly(family, model, batches))


@pytest.mark.parametrize("candidates", ["mentions", "words"])
def test_a_head_that_looks_at_an_antecedent_is_always_right(candidates):
    for document in RANDOM:
        many = len(document.words)
        for question in questions(document, candidates):
            for antecedent in question.antecedents:
                maps = torch.full((1, many, many), 0.1)
                maps[0, :, antecedent] = 0.5
                maps[0, range(many), range(many)] = 7  # what a word gives to itself does not matter
                numbers = [q.mention for q in questions(document, candidates)]
                hits = _Questions(document, candidates).hits(maps)
                assert hits[numbers.index(question.mention), 0, 0] == 1
                maps[0, question.mention.head, antecedent] = 0  # spoiled: anything else is looked at more
                wrong = question.places - question.antecedents
                if wrong and len(question.antecedents) == 1:
                    assert _Questions(document, candidates).hits(maps)[numbers.index(question.mention), 0, 0] == 0


def test_turning_the_maps_swaps_the_directions():
    torch.manual_seed(1)
    for document in RANDOM:
        asked = _Questions(document, "mentions")
        maps = torch.rand(3, len(document.words), len(document.words))
        hits = asked.hits(maps)
        assert torch.equal(asked.hits(maps.mT), hits.flip(1))
        assert hits.shape == (len(questions(document)), len(DIRECTIONS), 3)


def test_only_candidates_count():
    """Attention to words that head no mention, to the mention itself and to what is behind it changes nothing."""
    maps = torch.zeros(1, 13, 13)
    maps[0, 8, 1] = 0.1  # the cat -> the cat
    for place in (0, 2, 3, 4, 6, 7, 8, 9, 12):
        maps[0, 8, place] = 0.9
    first = _Questions(CAT, "mentions").hits(maps)[0, 0, 0]
    assert first == 1
    maps[0, 8, 5] = 0.2  # the mat is a candidate
    assert _Questions(CAT, "mentions").hits(maps)[0, 0, 0] == 0
    assert _Questions(CAT, "words").hits(maps)[0, 0, 0] == 0


def test_a_decoder_sees_no_attention_to_what_comes_later():
    model = BY_NAME["gpt2"].build()
    one_sided = [document for document in RANDOM if not document.both_sides]
    found = coreference_heads(model, batches_for(BY_NAME["gpt2"], one_sided))
    assert found.right[:, 0].sum() > 0
    assert found.right[:, 1].sum() == 0  # earlier mentions do not look ahead


def test_what_has_the_same_head_word_is_no_candidate():
    nested = Document(
        ("the", "cat", "on", "the", "mat", "purred"),
        (Mention(0, 2, 1, 1, "nominal"), Mention(0, 5, 1, 1, "nominal"), Mention(3, 5, 4, 2, "nominal")),
    )
    assert questions(nested) == []
    with pytest.raises(DataError, match="no mention has an antecedent in its document: there is nothing to score"):
        antecedent_baselines([nested])
    with pytest.raises(DataError, match="no mention has an antecedent in its document: there is nothing to score"):
        coreference_heads(BY_NAME["bert"].build(), bert_batches([nested]))


def test_merging_saving_and_other_measures_in_one_pass(tmp_path):
    model, batches = BY_NAME["bert"].build(), bert_batches(batch_size=8)
    whole = coreference_heads(model, batches)
    found, _ = accumulate(model, batches, CoreferenceAccumulator(), EntropyAccumulator())
    check(found, {name: getattr(whole, name) for name in COUNTS})
    parts = [CoreferenceAccumulator() for _ in batches]
    for part, one in zip(parts, batches, strict=True):
        part.zero(dissect(model))
        with part.watch(one), torch.no_grad():
            model(**arguments(one, BY_NAME["bert"]))
    for part in parts[1:]:
        parts[0].merge(part.state())
    check(parts[0].compute(), {name: getattr(whole, name) for name in COUNTS})
    whole.save(tmp_path / "found")
    assert str(CoreferenceHeads.load(tmp_path / "found")) == str(whole)
    assert CoreferenceAccumulator().settings() != CoreferenceAccumulator(candidates="words").settings()


def test_pruned_heads_are_left_out():
    model = BY_NAME["bert"].build()
    before = coreference_heads(model, bert_batches())
    prune_heads(model, {0: [1, 2]})
    found = coreference_heads(model, bert_batches())
    assert (found.right[:, :, 0, [1, 2]] == -1).all()
    assert found.accuracy[:, :, 0, [1, 2]].isnan().all()
    assert torch.equal(found.right[:, :, 0, [0, 3]], before.right[:, :, 0, [0, 3]])
    assert all(row.head not in (Head(0, 1), Head(0, 2)) for row in found.table())


def test_heads_chosen_elsewhere():
    model = BY_NAME["bert"].build()
    one, two = (coreference_heads(model, bert_batches(some)) for some in (RANDOM[:11], RANDOM[11:]))
    here, there = two.table(), two.table(choose_on=one)
    assert (here.elsewhere, there.elsewhere) == (False, True)
    assert "chosen elsewhere" in str(there)
    assert [row.kind for row in there] == ["all", *KINDS]
    for row in there:
        other = one.best(row.kind)
        assert (row.head, row.direction) == (other.head, other.direction)
        counts = two.right.sum(0) if row.kind == "all" else two.right[KINDS.index(row.kind)]
        rules = two.baseline_right.sum(0) if row.kind == "all" else two.baseline_right[KINDS.index(row.kind)]
        hits = counts[DIRECTIONS.index(row.direction), row.head.layer, row.head.head]
        assert row.accuracy == hits / row.mentions <= row.best_here == here[row.kind].accuracy
        assert list(row.baselines) == list(BASELINES)
        assert list(row.baselines.values()) == [n / row.mentions for n in rules.tolist()]
        best = BASELINES.index(row.baseline)
        assert row.gain == pytest.approx((hits.item() - rules[best].item()) / row.mentions)
        assert row.gain_interval[0] <= row.gain <= row.gain_interval[1]
        assert row.interval[0] <= row.accuracy <= row.interval[1]
    assert len(two.table(least=10**6)) == 0
    no_names = [document for document in RANDOM if all(m.kind != "proper" for m in document.mentions)]
    assert "proper" not in {row.kind for row in coreference_heads(model, bert_batches(no_names)).table()}
    with pytest.raises(DataError, match="no kind 'verb': this result has all, pronoun, proper, nominal"):
        two.best("verb")
    small = coreference_heads(BY_NAME["bert"].build(num_hidden_layers=1), bert_batches())
    with pytest.raises(DataError, match="choose_on has 1 layer of 4 heads, this result has 2 layers of 4"):
        two.table(choose_on=small)
    with pytest.raises(
        DataError, match="the candidates of choose_on are words, those of this result mentions: they must"
    ):
        two.table(choose_on=coreference_heads(model, bert_batches(), candidates="words"))


def test_the_gain_is_over_the_best_rule():
    """Of the cats' two questions the nearest mention is right at none, the same head word at one."""
    row = coreference_heads(BY_NAME["bert"].build(), bert_batches([CAT])).best("proper")
    assert row.baselines == {"nearest": 0, "head match": 1, "rules": 1}
    assert row.baseline == "head match"
    assert row.gain == row.accuracy - 1


def test_stacks():
    import transformers

    config = transformers.T5Config(vocab_size=40, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4)
    made = bert_batches([CAT])
    batches = AlignedBatches(
        tuple(
            {**{k: v for k, v in one.items() if k != "token_type_ids"}, "decoder_input_ids": torch.tensor([[5, 6]])}
            for one in made
        ),
        (),
    )
    found = coreference_heads(transformers.T5ForConditionalGeneration(config), batches)
    assert (found.right[:, :, :2] >= 0).all()
    assert (found.right[:, :, 2:] == -1).all()
    assert found.stack("encoder").right.shape == (3, 2, 2, 4)
    assert found.stack("encoder").right_with_baseline.shape == (3, 3, 2, 2, 4)
    with pytest.raises(DataError, match="no stack 'tower' in this result"):
        found.stack("tower")


def test_errors():
    model = BY_NAME["bert"].build()
    with pytest.raises(DataError, match="candidates must be 'mentions' or 'words', got 'all'"):
        coreference_heads(model, bert_batches(), candidates="all")
    words_only = align(wordpiece_tokenizer(), [SimpleNamespace(words=("cat",), name="no mentions")])
    with pytest.raises(DataError, match="wanted documents with mentions, got SimpleNamespace: read a file with coref"):
        coreference_heads(model, words_only)
    with pytest.raises(DataError, match="wanted documents with mentions, got SimpleNamespace"):
        antecedent_baselines(words_only)


@pytest.fixture(scope="module")
def real(minilm):
    from transformers import AutoModel, AutoTokenizer

    return AutoModel.from_pretrained(minilm), AutoTokenizer.from_pretrained(minilm)


@pytest.mark.shared
def test_minilm_knows_some_coreference(real, shared):
    model, tokenizer = real
    documents = read_conll_coref(
        shared / "coref" / "ontogum_open-train.conll", trees=shared / "constituency" / "gum_open-train.ptb"
    )
    first = pieces(tokenizer, documents, first_only=True, at="word")
    found = coreference_heads(model, align(tokenizer, first))
    assert found.mentions.sum() == 357
    pronouns = found.table()["pronoun"]
    assert (pronouns.head, pronouns.direction) == (Head(2, 4), "from mention")
    assert pronouns.accuracy == pytest.approx(0.86, abs=0.02)
    assert pronouns.baselines["rules"] == pytest.approx(0.74, abs=0.02)
    assert pronouns.gain_interval[0] > 0
    # All but the first mentions of a document stand behind its first piece, and a head chosen on it does well there.
    rest = pieces(tokenizer, documents[:6])
    later = coreference_heads(model, align(tokenizer, rest)).table(choose_on=found)["pronoun"]
    assert later.accuracy > 0.7 > later.baselines["nearest"]


@pytest.mark.shared
def test_minilm_takes_pronouns_for_the_stereotype(real, shared):
    """WinoBias: the head that is best at pronouns follows the stereotype, against the sentence."""
    model, tokenizer = real
    accuracy = {}
    for side in ("pro", "anti"):
        documents = read_winobias(shared / "coref" / f"{side}_stereotyped_type1.txt.dev")[:120]
        accuracy[side] = coreference_heads(model, align(tokenizer, documents)).accuracy[0, 0, 2, 4].item()
    assert accuracy["pro"] - accuracy["anti"] > 0.2
    gap = by_gender(read_gap(shared / "coref" / "gap-validation.tsv"))["feminine"][:64]
    row = coreference_heads(model, align(tokenizer, gap)).table()["pronoun"]
    assert row.chance == 0.5
    assert row.interval[0] > 0.5
