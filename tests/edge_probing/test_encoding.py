import copy
import dataclasses
import itertools

import pytest
import torch
import transformers as t

import bertology as b
from bertology.edge_probing.controls import control_tasks
from bertology.edge_probing.encoding import accepted, encode, lexical_vectors, longest_text, text_tower
from bertology.edge_probing.tasks import EdgeTask, Record, Target
from bertology.errors import DataError, UnknownAnatomy
from bertology.syntax import align
from helpers.edge_encoding import EXACT, bert, never
from helpers.edges import NOUNS, PAIRS, record, tokenizer_for
from helpers.trees import byte_tokenizer, wordpiece_tokenizer
from helpers.zoo import BY_NAME, LLAMA, PAD, VOCAB
from laws.laws import check_leaves_model_alone
from oracles import encoding as oracles


def spans_of(target):
    return [target.span1] if target.span2 is None else [target.span1, target.span2]


def loops(model, tokenizer, task, **options):
    """[(record, target, [side][token] of [layer, hidden])]: one text at a time, one token at a time."""
    found = []
    for one in task.records:
        batch = next(iter(align(tokenizer, [one])))
        given = {name: batch[name] for name in ("input_ids", "attention_mask")}
        states = b.hidden_states(model, given).values[:, 0]
        word_of = batch["annotations"][0].word_of
        for target in one.targets:
            parts = oracles.vectors(states, word_of, spans_of(target))
            found.append((one, target, [parts[span] for span in spans_of(target)]))
    return found


def check_equal(store, expected, tolerance=1e-6, layers=slice(None)):
    """Each target's vectors, token by token, and its labels."""
    batch = store.batch(range(store.records)).check()
    assert batch.count == store.targets == len(expected)
    for number, (_, target, sides) in enumerate(expected):
        for side, tokens in enumerate(sides):
            rows = batch.tokens[side][batch.targets[side] == number]
            assert len(rows) == len(tokens)
            close = {"atol": tolerance, "rtol": tolerance}
            torch.testing.assert_close(batch.vectors[rows][:, layers], torch.stack(tokens)[:, layers].float(), **close)
        assert {store.labels[i] for i in batch.gold[number].nonzero()} == set(target.labels)


@pytest.mark.parametrize("task", [NOUNS, PAIRS], ids=["one span", "two spans"])
@pytest.mark.parametrize("kind", ["classifier", "lm"])
def test_equals_hidden_states_of_each_token(family, kind, task, tmp_path):
    model, tokenizer = family.build(kind), tokenizer_for(family)
    store = encode(model, tokenizer, task, tmp_path / "store", lexical="embeddings", batch_size=2, **EXACT)
    assert (store.layers, store.hidden, store.sides, store.records) == (3, 16, task.sides, len(task))
    assert (store.labels, store.counted, store.name, store.lost) == (task.labels, task.counted, task.name, {})
    expected = loops(model, tokenizer, task)
    check_equal(store, expected)
    expected[0][2][0][0][1, 3] += 1e-3
    with pytest.raises(AssertionError):
        check_equal(store, expected)


def test_layer_0_is_the_word_by_itself(family, tmp_path):
    """METHODS A4.1: LayerNorm(word_embedding(id)); the layers above are as ever."""
    model, tokenizer = family.build(), tokenizer_for(family)
    store = encode(model, tokenizer, NOUNS, tmp_path / "store", **EXACT)
    assert store.lexical == "word"
    expected = loops(model, tokenizer, NOUNS)
    check_equal(store, expected, layers=slice(1, None))
    for one, target, sides in expected:
        ids = tokenizer(" ".join(one.words))["input_ids"]
        word_of = next(iter(align(tokenizer, [one])))["annotations"][0].word_of
        tokens = [ids[place] for place in range(*oracles.project(word_of, *target.span1))]
        for vectors, token in zip(sides[0], tokens, strict=True):
            vectors[0] = oracles.lexical(family.name, model.base_model, token)
    check_equal(store, expected)
    expected[0][2][0][0][0, 3] += 1e-3
    with pytest.raises(AssertionError):
        check_equal(store, expected)


def test_lexical_vectors_equal_the_formula_of_each_family(family):
    model = family.build().base_model
    ids = torch.arange(3, VOCAB)
    expected = torch.stack([oracles.lexical(family.name, model, int(i)) for i in ids]).detach()
    for width in (2, 5, 30):
        torch.testing.assert_close(lexical_vectors(model, ids, width=width), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(lexical_vectors(model, ids[:1]), expected[:1], rtol=1e-9, atol=1e-9)


def test_lexical_vectors_take_what_is_done_to_the_row():
    """Gemma and BART multiply the word's row before anything else sees it."""
    ids = torch.tensor([5, 9])
    small = {**LLAMA, "head_dim": 4}
    gemma = t.GemmaModel(t.GemmaConfig(**small)).double().eval()
    torch.testing.assert_close(lexical_vectors(gemma, ids), gemma.get_input_embeddings().weight[ids] * 4)
    encoder = tiny_bart(scale_embedding=True).get_encoder()
    row = encoder.embed_tokens.weight[ids] if hasattr(encoder.embed_tokens, "embed_scale") else None
    expected = encoder.layernorm_embedding(encoder.embed_tokens(ids) if row is None else row * 4)
    torch.testing.assert_close(lexical_vectors(encoder, ids), expected)


def test_layer_0_that_hangs_on_more_than_the_word_is_refused(tmp_path):
    bands = t.XGLMConfig(vocab_size=VOCAB, d_model=16, ffn_dim=24, num_layers=2, attention_heads=4)
    model, tokenizer = t.XGLMModel(bands).eval(), wordpiece_tokenizer()
    with pytest.raises(
        UnknownAnatomy, match="layer 0 of XGLMModel gives one token different vectors at different positions"
    ):
        encode(model, tokenizer, NOUNS, tmp_path / "store")
    assert not (tmp_path / "store").exists()
    assert encode(model, tokenizer, NOUNS, tmp_path / "store", lexical="embeddings").layers == 3


def test_models_without_a_table_of_words_are_refused(monkeypatch, tmp_path):
    model = bert()
    monkeypatch.setattr(type(model.base_model), "get_input_embeddings", lambda self: None)
    with pytest.raises(UnknownAnatomy, match="BertModel has no table of token embeddings.*lexical='embeddings'"):
        encode(model, wordpiece_tokenizer(), NOUNS, tmp_path / "store")


def test_a_wrong_table_of_words_is_found_out(monkeypatch, tmp_path):
    model = bert()
    monkeypatch.setattr(
        type(model.base_model), "get_input_embeddings", lambda self: self.embeddings.token_type_embeddings
    )
    with pytest.raises(UnknownAnatomy, match="layer 0 of BertModel does not depend on the tokens of the text"):
        encode(model, wordpiece_tokenizer(), NOUNS, tmp_path / "store")


@pytest.mark.parametrize("lexical", ["word", "embeddings"])
def test_batches_and_padding_do_not_matter(family, lexical, tmp_path):
    model, tokenizer = family.build(), tokenizer_for(family)
    stores = [
        encode(model, tokenizer, NOUNS, tmp_path / str(size), lexical=lexical, batch_size=size, **EXACT)
        for size in (1, 2, 5)
    ]
    first, *others = [store.batch(range(5)) for store in stores]
    for other in others:
        torch.testing.assert_close(first.vectors, other.vectors, atol=1e-6, rtol=0)
        assert all(torch.equal(x, y) for x, y in zip(first.tokens, other.tokens, strict=True))


def test_records_and_targets_keep_their_order(tmp_path):
    store = encode(bert(), wordpiece_tokenizer(), NOUNS, tmp_path / "store", batch_size=2)
    assert store.target_record.tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 3, 4, 4, 4]
    records, targets = store.source
    assert records.tolist() == store.target_record.tolist()
    assert targets.tolist() == [0, 1, 2, 0, 1, 0, 1, 2, 0, 0, 1, 2]
    labels = [[store.labels[i] for i in row.nonzero()] for row in store.gold(range(12))]
    assert labels == [list(target.labels) for one in NOUNS for target in one.targets]
    # cat, purr ##ed, the; star ##s purr ##ed; the und ##er mat star ##s; cat; the mat sat: each token once.
    assert store.tokens == 4 + 4 + 6 + 1 + 3


def test_float16_rounds_and_float32_does_not(tmp_path):
    model, tokenizer = bert().float(), wordpiece_tokenizer()
    half = encode(model, tokenizer, NOUNS, tmp_path / "half")
    full = encode(model, tokenizer, NOUNS, tmp_path / "full", **EXACT)
    x, y = (store.batch(range(5)).vectors for store in (half, full))
    assert torch.equal(x, y.half().float())
    assert not torch.equal(x, y)
    assert ((x - y).abs() <= 0.0005 * y.abs() + 1e-7).all()
    assert half.batch(range(5), dtype=torch.float64).vectors.dtype == torch.float64


def test_lost_targets_are_counted(tmp_path, monkeypatch):
    odd = Record(("cat", "\u200b"), (Target((0, 1), ("NN",)), Target((1, 2), ("XX",))), "odd")
    long = record(" ".join(["cat"] * 40), ("NN", 0, 1), ("NN", 1, 2), ("NP", 0, 40), name="long")
    bare = Record(("mat",), (), "bare")
    mixed = dataclasses.replace(NOUNS, records=(long, NOUNS.records[0], bare, odd, NOUNS.records[3]))
    model, tokenizer = bert(), wordpiece_tokenizer()
    store = encode(model, tokenizer, mixed, tmp_path / "store", **EXACT)
    assert store.lost == {"longer than 32 tokens": 3, "a word has no token": 2}
    assert (store.records, store.targets) == (2, 4)
    assert store.source[0].tolist() == [1, 1, 1, 4]
    assert str(store) == (
        "nouns: 2 records, 4 targets of 4 labels, 5 tokens at 3 layers of 16 (0.0 MB); "
        "3 targets lost: longer than 32 tokens; 2 targets lost: a word has no token"
    )
    kept = dataclasses.replace(NOUNS, records=(NOUNS.records[0], NOUNS.records[3]))
    check_equal(store, loops_with_words(model, tokenizer, kept))
    short = encode(model, tokenizer, NOUNS, tmp_path / "short", max_length=5)
    assert short.lost == {"longer than 5 tokens": 8}
    with pytest.raises(DataError, match="no.*texts can be used: longer than 2 tokens"):
        encode(model, tokenizer, NOUNS, tmp_path / "none", max_length=2)


def loops_with_words(model, tokenizer, task):
    expected = loops(model, tokenizer, task)
    for one, target, sides in expected:
        batch = next(iter(align(tokenizer, [one])))
        for side, span in enumerate(spans_of(target)):
            first, _ = oracles.project(batch["annotations"][0].word_of, *span)
            for place, vectors in enumerate(sides[side], first):
                token = int(batch["input_ids"][0, place])
                vectors[0] = oracles.lexical("bert", model.base_model, token)
    return expected


def test_a_record_may_lose_some_of_its_targets(tmp_path, monkeypatch):
    """Special tokens inside a text, as some tokenizers set them: what spans them is lost, the rest is not."""
    from bertology.edge_probing import encoding

    def aligned(*given, **options):
        found = align(*given, **options)
        for batch in found:
            batch["annotations"] = [
                dataclasses.replace(one, word_of=(-1, 0, -1, 1, *one.word_of[4:])) if one.source.number == 0 else one
                for one in batch["annotations"]
            ]
        return found

    monkeypatch.setattr(encoding, "align", aligned)
    task = EdgeTask.of(
        "some",
        [
            record("cat sat mat", ("A", 0, 1), ("B", 0, 2), ("C", 1, 2), name="first"),
            record("cat mat", ("B", 0, 2), name="second"),
        ],
    )
    broken = dataclasses.replace(task, records=(dataclasses.replace(task.records[0]), task.records[1]))
    store = encode(bert(), wordpiece_tokenizer(), broken, tmp_path / "store")
    assert store.lost == {"a span's tokens are not consecutive": 1}
    assert [[store.labels[i] for i in row.nonzero()] for row in store.gold(range(3))] == [["A"], ["C"], ["B"]]
    assert store.source[1].tolist() == [0, 2, 0]
    assert [len(x) for x in store.batch([0]).tokens] == [2]


def test_no_target_at_all(tmp_path, monkeypatch):
    from bertology.edge_probing import token_spans as projecting

    monkeypatch.setattr(projecting, "_in_edges", lambda *_: (None, "a word has no token"))
    with pytest.raises(DataError, match="no target of task 'nouns' can be mapped to tokens: a word has no token"):
        encode(bert(), wordpiece_tokenizer(), NOUNS, tmp_path / "store")


def test_how_long_a_text_may_be():
    """RoBERTa counts positions from behind the number that stands for padding."""
    free = byte_tokenizer()
    assert longest_text(bert(), wordpiece_tokenizer(), None) == 32
    assert longest_text(bert(), free, None) == 32
    assert longest_text(BY_NAME["roberta"].build(), free, None) == 32 - PAD - 1
    assert longest_text(bert(max_position_embeddings=20), wordpiece_tokenizer(), None) == 20
    assert longest_text(tiny_t5(), wordpiece_tokenizer(), 100) == 100
    assert longest_text(bert(), wordpiece_tokenizer(), 7) == 7
    with pytest.raises(DataError, match="max_length is 33, but the model takes 32 tokens: pass 32 or less, or None"):
        longest_text(bert(), wordpiece_tokenizer(), 33)
    for wrong in (0, True, 3.0):
        with pytest.raises(DataError, match="max_length must be a number of tokens, 1 or more, got"):
            longest_text(bert(), wordpiece_tokenizer(), wrong)


def test_a_text_as_long_as_roberta_takes(tmp_path):
    task = EdgeTask.of("long", [record(" ".join(["cat"] * many), ("NN", 0, many)) for many in (28, 29, 30)])
    store = encode(BY_NAME["roberta"].build(), wordpiece_tokenizer(), task, tmp_path / "store")
    assert (store.records, store.lost) == (2, {"longer than 31 tokens": 1})


# Which part of a model is run, and on what


def tiny_t5():
    return t.T5ForConditionalGeneration(
        t.T5Config(vocab_size=VOCAB, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4, decoder_start_token_id=0)
    ).eval()


def tiny_bart(**settings):
    config = t.BartConfig(
        vocab_size=VOCAB, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=32, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=2, **settings,
    )  # fmt: skip
    return t.BartForConditionalGeneration(config).eval()


@pytest.mark.parametrize("model", [tiny_t5, tiny_bart])
def test_of_an_encoder_decoder_the_encoder_is_run(model, tmp_path):
    model, tokenizer = model(), wordpiece_tokenizer()
    store = encode(model, tokenizer, NOUNS, tmp_path / "store", lexical="embeddings", **EXACT)
    expected = []
    for one in NOUNS:
        batch = next(iter(align(tokenizer, [one])))
        given = {name: batch[name] for name in ("input_ids", "attention_mask")}
        states = (
            b.hidden_states(model, {**given, "decoder_input_ids": batch["input_ids"]}).stack("encoder").values[:, 0]
        )
        for target in one.targets:
            parts = oracles.vectors(states, batch["annotations"][0].word_of, [target.span1])
            expected.append((one, target, [parts[target.span1]]))
    check_equal(store, expected)
    assert encode(model, tokenizer, NOUNS, tmp_path / "words").layers == 3


def test_t5_without_decoder(tmp_path):
    whole = tiny_t5()
    alone = t.T5EncoderModel(copy.deepcopy(whole.config)).eval()
    alone.load_state_dict(whole.state_dict(), strict=False)
    stores = [encode(m, wordpiece_tokenizer(), NOUNS, tmp_path / m.__class__.__name__) for m in (whole, alone)]
    x, y = (store.batch(range(5)).vectors for store in stores)
    assert torch.equal(x, y)


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")  # inside transformers 4
def test_a_text_in_several_stacks_is_refused(tmp_path):
    config = t.FunnelConfig(
        vocab_size=VOCAB, d_model=16, d_head=4, n_head=4, d_inner=24, block_sizes=[1, 1], num_decoder_layers=1
    )
    with pytest.raises(
        UnknownAnatomy, match="the text runs through the stacks 'encoder', 'decoder' of FunnelModel: wanted one"
    ):
        encode(t.FunnelModel(config).eval(), wordpiece_tokenizer(), NOUNS, tmp_path / "store", lexical="embeddings")


@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")  # inside transformers 4
def test_layers_that_pool_tokens_are_refused(tmp_path):
    config = t.FunnelConfig(vocab_size=VOCAB, d_model=16, d_head=4, n_head=4, d_inner=24, block_sizes=[1, 1])
    model = t.FunnelBaseModel(config).eval()
    with pytest.raises(
        DataError, match="layer 2 does not have a finite hidden state for every token: .*layers that pool tokens"
    ):
        encode(model, wordpiece_tokenizer(), NOUNS, tmp_path / "store", lexical="embeddings", batch_size=1)


def test_task_heads_are_not_run(monkeypatch, tmp_path):
    model = BY_NAME["bert"].build("lm")
    assert text_tower(model) is model.bert
    monkeypatch.setattr(model, "forward", never)
    encode(model, wordpiece_tokenizer(), NOUNS, tmp_path / "store")


def test_arguments_that_a_model_does_not_take():
    given = {"input_ids": torch.tensor([[5]]), "attention_mask": torch.tensor([[1]]), "annotations": [None]}
    zeros, ones = ({**given, "token_type_ids": torch.full((1, 1), which)} for which in (0, 1))
    assert list(accepted(bert().bert, ones)) == ["input_ids", "attention_mask", "token_type_ids"]
    assert list(accepted(BY_NAME["gpt2"].build().transformer, zeros)) == ["input_ids", "attention_mask"]

    class Plain(torch.nn.Module):
        def forward(self, input_ids):
            return input_ids

    assert list(accepted(Plain(), ones)) == ["input_ids"]


def test_segments_change_nothing_in_gpt2(tmp_path):
    """A tokenizer may name a segment, 0, which GPT-2 would look up among its words."""
    model = BY_NAME["gpt2"].build()
    with_segments = byte_tokenizer(model_input_names=["input_ids", "token_type_ids", "attention_mask"])
    assert "token_type_ids" in with_segments("cat")
    store = encode(model, with_segments, NOUNS, tmp_path / "store", lexical="embeddings", **EXACT)
    check_equal(store, loops(model, byte_tokenizer(), NOUNS))


# Arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lexical": "words"}, "lexical must be 'word' or 'embeddings', got 'words'"),
        (
            {"dtype": torch.bfloat16},
            "dtype must be torch.float16 or torch.float32, got torch.bfloat16",
        ),
        ({"batch_size": 0}, "batch_size must be 1 or more, got 0"),
    ],
)
def test_arguments_that_cannot_be_used(options, message, tmp_path):
    with pytest.raises(DataError, match=message):
        encode(bert(), wordpiece_tokenizer(), NOUNS, tmp_path / "store", **options)
    assert not (tmp_path / "store").exists()


def test_a_slow_tokenizer_is_refused(tmp_path):
    with pytest.raises(DataError, match="is a slow tokenizer"):
        encode(bert(), object(), NOUNS, tmp_path / "store")


def test_the_tokenizer_of_another_model_is_refused(tmp_path):
    with pytest.raises(
        DataError, match="the tokenizer returns token id 1[0-9], but BertModel has 10 tokens: pass the model's own"
    ):
        encode(bert(vocab_size=10), wordpiece_tokenizer(), NOUNS, tmp_path / "store")


def test_numbers_that_float16_cannot_hold(tmp_path):
    model = bert()
    with torch.no_grad():
        model.bert.encoder.layer[0].output.LayerNorm.weight.fill_(1e5)
    with pytest.raises(
        DataError, match=r"layer 1 has hidden states up to \d.*, but the limit of float16 is 65504: pass dtype"
    ):
        encode(model, wordpiece_tokenizer(), NOUNS, tmp_path / "half")
    store = encode(model, wordpiece_tokenizer(), NOUNS, tmp_path / "full", **EXACT)
    assert store.batch(range(5)).vectors.abs().max() > 65504


def test_nan_is_no_hidden_state(tmp_path):
    model = bert()
    with torch.no_grad():
        model.bert.encoder.layer[1].output.LayerNorm.weight.fill_(torch.nan)
    with pytest.raises(
        DataError, match="layer 2 does not have a finite hidden state for every token: look for NaN or overflow"
    ):
        encode(model, wordpiece_tokenizer(), NOUNS, tmp_path / "store")


@pytest.mark.parametrize("lexical", ["word", "embeddings"])
def test_leaves_the_model_alone(family, lexical, tmp_path):
    names = itertools.count()
    run = {"tokenizer": tokenizer_for(family), "task": NOUNS, "lexical": lexical, "batch_size": 2}
    check_leaves_model_alone(family.build(), lambda m: encode(m, path=tmp_path / str(next(names)), **run))
    model = family.build()
    for broken in (b.dissect(model).stacks[0].blocks[-1], b.dissect(model).sites[-1].projection):
        check_leaves_model_alone(model, lambda m: encode(m, path=tmp_path / str(next(names)), **run), broken)


def test_progress_is_shown_when_asked_for(tmp_path, capsys):
    model, tokenizer = bert(), wordpiece_tokenizer()
    encode(model, tokenizer, NOUNS, tmp_path / "quiet")
    assert capsys.readouterr().err == ""
    encode(model, tokenizer, NOUNS, tmp_path / "loud", batch_size=2, progress="nouns")
    assert "nouns" in capsys.readouterr().err


def test_probes_learn_from_stores(tmp_path):
    """Which word it is tells the label, and layer 0 is the word: every probe learns it by heart."""
    from bertology.edge_probing import Training, probe_layers

    stores = [encode(bert(), wordpiece_tokenizer(), NOUNS, tmp_path / name) for name in ("train", "dev")]
    settings = Training(lr=0.01, validate_every=40, max_validations=3, batch_size=2)
    scores = probe_layers(*stores, settings=settings)
    assert scores.f1.shape == (1, 3)
    assert (scores.f1 > 0.9).all()


@pytest.mark.shared
def test_real_relations(minilm, shared, tmp_path):
    """Targets as whole pieces of real text: the words that the vectors stand for are those of the spans."""
    from bertology.edge_probing.jsonl import read_edges

    task = read_edges(shared / "edges" / "semeval-train.jsonl", counted="relations")[:40]
    model, tokenizer = t.AutoModel.from_pretrained(minilm), t.AutoTokenizer.from_pretrained(minilm)
    store = encode(model, tokenizer, task, tmp_path / "store", **EXACT)
    assert (store.layers, store.hidden, store.targets, store.lost) == (7, 384, 40, {})
    batch = store.batch(range(40))
    table = model.embeddings
    words = table.LayerNorm(table.word_embeddings.weight).detach()
    for number, one in enumerate(task):
        for side, span in enumerate(spans_of(one.targets[0])):
            rows = batch.vectors[batch.tokens[side][batch.targets[side] == number], 0]
            ids = tokenizer(" ".join(one.words[slice(*span)]), add_special_tokens=False)["input_ids"]
            torch.testing.assert_close(rows, words[ids])
    check_equal(store, loops(model.eval(), tokenizer, task), tolerance=1e-4, layers=slice(1, None))


def test_raw_text_is_read_as_it_is_written(tmp_path):
    """The vectors are those of the text itself; joined by blanks, "thecat" has other tokens."""
    spans = ((0, 3), (3, 6), (7, 13))
    targets = tuple(Target((n, n + 1), (label,)) for n, label in enumerate(("DT", "NN", "VB")))
    task = EdgeTask.of("tags", [Record(("the", "cat", "purred"), targets, "one", text="thecat purred", spans=spans)])
    model, tokenizer = BY_NAME["gpt2"].build(), tokenizer_for(BY_NAME["gpt2"])
    raw = encode(model, tokenizer, task, tmp_path / "raw", raw_text=True, **EXACT)
    ids = tokenizer("thecat purred", return_tensors="pt")["input_ids"]
    states = b.hidden_states(model, {"input_ids": ids}).values[:, 0]
    assert torch.equal(raw.batch([0]).vectors[:, 1:], states.transpose(0, 1)[:, 1:].float())
    plain = encode(model, tokenizer, task, tmp_path / "plain", **EXACT)
    assert not torch.equal(plain.batch([0]).vectors, raw.batch([0]).vectors)
    for raw_text, folder in ((False, "raw"), (True, "plain")):
        with pytest.raises(DataError, match="What differs: .*raw_text"):
            encode(model, tokenizer, task, tmp_path / folder, raw_text=raw_text, **EXACT)
    other = EdgeTask.of("tags", [dataclasses.replace(task[0], text="the catpurred", spans=((0, 3), (4, 7), (7, 13)))])
    with pytest.raises(DataError, match="What differs: the data"):
        encode(model, tokenizer, other, tmp_path / "raw", raw_text=True, **EXACT)
    # Control tasks keep the text.
    (control,) = control_tasks(task)
    same = encode(model, tokenizer, control, tmp_path / "control", raw_text=True, **EXACT)
    assert raw.with_labels(control).digest() == same.digest()


def test_tasks_without_text_are_refused_as_raw_text(tmp_path):
    with pytest.raises(DataError, match="use raw_text=False, which joins the words by blanks"):
        encode(bert(), wordpiece_tokenizer(), NOUNS, tmp_path / "store", raw_text=True)
