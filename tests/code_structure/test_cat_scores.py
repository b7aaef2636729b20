import dataclasses

import pytest
import torch
import transformers

from bertology import PatternsAccumulator, accumulate, dissect, prune_heads
from bertology.code_structure import (
    CatComparison,
    LeafTypes,
    align_code,
    cat_scores,
    leaf_types,
    parse_code,
    published_types,
    read_code,
)
from bertology.code_structure.cat_scores import KINDS, CatAccumulator
from bertology.code_structure.leaf_types import TypesAccumulator
from bertology.errors import DataError
from bertology.results.result import Result
from helpers.code_snippets import CODE, snippets
from helpers.trees import wordpiece_tokenizer
from helpers.zoo import BY_NAME, batch
from laws.laws import Broken, check_leaves_model_alone, raising_at, same, snapshot
from oracles import cat_scores as twin

COUNTS = ("matched", "either", "head_matched", "head_either")
CAUSAL_BERT = dataclasses.replace(BY_NAME["bert"], lm=transformers.BertLMHeadModel)


def aligned(size=2, some=slice(None)):
    return align_code(wordpiece_tokenizer(), snippets()[some], batch_size=size)


def built(name, attention=None):
    """BERT, GPT-2, and BERT made a decoder, whose layers are still called an encoder."""
    if name == "causal bert":
        # Transformers 4 makes no float64 mask for the sdpa of such a model.
        return CAUSAL_BERT.build("lm", attention=attention or "eager", is_decoder=True)
    return BY_NAME[name].build(attention=attention)


def check_counts(found, maps, types, spoil=0, **options):
    """`maps` are the twin's [layer][row] of each snippet, `types` the types of each layer."""
    for example, (one, layers) in enumerate(sorted(maps, key=lambda pair: pair[0].number)):
        for layer, rows in enumerate(layers):
            for row, weights in enumerate(rows):
                expected = twin.counts(one, weights, types[layer], **options)
                at = (slice(None), layer, example) if row == 0 else (slice(None), layer, row - 1, example)
                matched, either = (getattr(found, name) for name in (COUNTS[:2] if row == 0 else COUNTS[2:]))
                counts = torch.stack([matched[at], either[at]], -1).tolist()
                assert [tuple(x) for x in counts] == [(m, e + spoil) for m, e in expected]


def equal(one, other):
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in COUNTS) and one.types == other.types


# The slow twin.


@pytest.mark.parametrize("name", ["bert", "gpt2", "causal bert"])
@pytest.mark.parametrize("types", ["all", "frequent", "published", ("identifier", "(", ")", "=")])
@pytest.mark.parametrize("upgraded", [True, False])
def test_equals_loops_over_the_maps(name, types, upgraded):
    batches, causal = aligned(), name != "bert"
    found = cat_scores(built(name), batches, types=types, top=3, upgraded=upgraded, seed=5)
    maps = list(twin.rows_of(built(name, "eager"), batches))
    expected = [
        None if types == "all" else
        twin.frequent([(one, layers[row][0]) for one, layers in maps], causal, 3) if types == "frequent" else
        published_types("python") if types == "published" else types
        for row in range(2)
    ]  # fmt: skip
    assert found.types == tuple(expected)
    assert found.kinds == KINDS == twin.KINDS
    assert found.names == ("f0", "f1", "f2", "f3", "f4")
    options = {"causal": causal, "upgraded": upgraded, "seed": 5}
    check_counts(found, maps, expected, **options)
    # Of few leaves hardly any is near another: there not every slip shows.
    slips = ({"spoil": 1}, {"causal": not causal}, {"seed": 6}, {"q": 0.4})
    for wrong in slips if types == "all" else slips[:1]:
        with pytest.raises(AssertionError):
            check_counts(found, maps, expected, **{**options, **wrong})


TYPES = ("identifier", "(", ")", "=")


@pytest.mark.parametrize("name", ["bert", "gpt2"])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_positions_among_the_leaves_that_count(name, elsewhere):
    """Both null models, with means over the map itself or over other snippets, which here are shorter and longer."""
    batches, others = aligned(some=slice(0, 3)), aligned(some=slice(2, 5))
    more = {"means_from": others} if elsewhere else {}
    both = cat_scores(built(name), batches, types=TYPES, offsets="both", **more)
    suffix = ", other snippets" if elsewhere else ""
    assert both.kinds == (*KINDS[:2], f"positional{suffix}", f"positional, kept leaves{suffix}")
    maps = list(twin.rows_of(built(name, "eager"), batches))
    of_others = list(twin.rows_of(built(name, "eager"), others))
    for offsets, places in (("snippet", [0, 1, 2]), ("kept", [0, 1, 3])):
        one = cat_scores(built(name), batches, types=TYPES, offsets=offsets, **more)
        assert one.kinds == tuple(both.kinds[place] for place in places)
        assert all(torch.equal(getattr(one, count), getattr(both, count)[places]) for count in COUNTS)
        for wrong in (False, True):
            good = 0
            for example, (code, layers) in enumerate(sorted(maps, key=lambda pair: pair[0].number)):
                for layer, rows in enumerate(layers):
                    for row, weights in enumerate(rows):
                        some = [(other, every[layer][row]) for other, every in of_others] if elsewhere else ()
                        expected = twin.counts(
                            code, weights, TYPES, causal=name != "bert", others=some,
                            kept_offsets=(offsets == "kept") != wrong,
                        )  # fmt: skip
                        at = (slice(None), layer, *([] if row == 0 else [row - 1]), example)
                        counts = (one.matched, one.either) if row == 0 else (one.head_matched, one.head_either)
                        good += expected == [tuple(x) for x in torch.stack([x[at] for x in counts], -1).tolist()]
            assert (good == 3 * 2 * 5) is not wrong


def test_nothing_is_chosen_on_the_snippets_that_are_scored():
    batches, others, model = aligned(some=slice(0, 3)), aligned(some=slice(2, 5)), built("bert")
    found = cat_scores(model, batches, top=2, means_from=others)
    of_others, of_these = (leaf_types(model, some) for some in (others, batches))
    assert found.types == tuple(of_others.frequent(row, top=2) for row in range(2))
    assert found.types != tuple(of_these.frequent(row, top=2) for row in range(2))
    assert found.names == ("f0", "f1", "f2")


def test_all_leaves_have_one_positional_null_model():
    found = cat_scores(built("bert"), aligned(), types="all", offsets="both")
    assert all(torch.equal(getattr(found, count)[2], getattr(found, count)[3]) for count in COUNTS)


def test_offsets_are_checked_before_the_model_runs():
    model = built("bert")
    model.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    with pytest.raises(DataError, match="offsets must be 'snippet', 'kept' or 'both', got 'leaves'"):
        cat_scores(model, aligned(), offsets="leaves")


@pytest.mark.parametrize("name", ["bert", "gpt2", "causal bert"])
def test_another_quantile(name):
    """And one at which more than leaves with themselves are near for a decoder, so that edges matter."""
    batches, options = aligned(), {"causal": name != "bert", "q": 0.6}
    found = cat_scores(built(name), batches, types="all", quantile=0.6)
    maps = list(twin.rows_of(built(name, "eager"), batches))
    check_counts(found, maps, [None, None], **options)
    with pytest.raises(AssertionError):
        check_counts(found, maps, [None, None], upgraded=False, **options)
    assert found.quantile == 0.6


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_types_equal_loops_over_the_maps(name):
    batches = aligned()
    found = leaf_types(built(name), batches)
    maps = list(twin.rows_of(built(name, "eager"), batches))
    assert found.types == tuple(sorted({kind for tree in snippets() for kind in tree.types}))
    assert found.snippets.tolist() == [5, 5]
    for row in range(2):
        some = [(one, layers[row][0]) for one, layers in maps]
        high, total, once = twin.type_counts(some, name == "gpt2")
        assert found.high[row].tolist() == [high[kind] for kind in found.types]
        assert found.total[row].tolist() == [total[kind] for kind in found.types]
        assert found.once[row] == once
        assert found.frequent(row, top=4) == twin.frequent(some, name == "gpt2", 4)
        assert twin.type_counts(some, name != "gpt2") != (high, total, once)


def test_what_a_decoder_cannot_see_does_not_count():
    """A decoder's map filled above the diagonal would score otherwise; and a single leaf has no score."""
    found = cat_scores(built("gpt2"), aligned(), types="all")
    leaves = [len(tree) for tree in snippets()]
    assert all(bool((found.either[..., i] <= n * (n + 1) / 2).all()) for i, n in enumerate(leaves))
    assert found.either[..., 3].eq(0).all()
    assert found.scores.used.tolist() == [4, 4]
    assert found.scores.skipped.tolist() == [1, 1]


# Laws.


@pytest.mark.parametrize("types", ["all", "frequent"])
def test_batches_and_padding_do_not_matter(family, types):
    model = family.build()
    whole = cat_scores(model, aligned(5), types=types, top=4)
    assert equal(whole, cat_scores(model, aligned(1), types=types, top=4))
    assert equal(whole, cat_scores(model, list(reversed(list(aligned(2)))), types=types, top=4))
    one, other = (leaf_types(model, aligned(size)) for size in (1, 5))
    assert torch.equal(one.high, other.high)


def test_another_snippet_in_the_batch_changes_nothing():
    model = built("bert")
    whole, some = (cat_scores(model, aligned(5, rows), types="all") for rows in (slice(None), slice(3)))
    for name in COUNTS:
        assert torch.equal(getattr(whole, name)[..., :3], getattr(some, name))
    alone = cat_scores(model, aligned(5).batches[0], types="all")  # one batch by itself
    assert equal(alone, whole)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_attention_implementations_agree(name):
    eager, sdpa = (cat_scores(BY_NAME[name].build(attention=kind), aligned()) for kind in ("eager", "sdpa"))
    assert equal(eager, sdpa)


def test_the_model_comes_back_though_code_is_refused():
    """Nothing stays on it when what is measured raises, in the midst of a pass."""
    model = built("bert")
    before = snapshot(model)
    with pytest.raises(DataError, match="quantile, the share"):
        cat_scores(model, aligned(), types="all", quantile=2)
    assert all(same(before[key], x) for key, x in snapshot(model).items())
    with pytest.raises(Broken), raising_at(dissect(model).sites[1].projection):
        cat_scores(model, aligned())
    assert all(same(before[key], x) for key, x in snapshot(model).items())


def test_random_weights_leave_the_model_alone():
    check_leaves_model_alone(built("bert"), lambda m: cat_scores(m, aligned(), types="all", random_weights=True))
    one, again, other = (cat_scores(built("bert"), aligned(), random_weights=True, seed=s) for s in (0, 0, 1))
    assert one.kinds == (*KINDS, "random weights")
    assert equal(one, again)
    assert not torch.equal(one.head_matched[3], other.head_matched[3])
    assert torch.equal(one.matched[0], other.matched[0])
    assert one.beyond("random weights").gain.shape == (2,)
    with pytest.raises(DataError, match="this comparison already has scores named 'shuffled'"):
        one.joined(one, "shuffled")
    with pytest.raises(DataError, match="the two comparisons must have the same types"):
        one.joined(cat_scores(built("bert"), aligned(), types="all"), "other")


# Sums.


def test_one_pass_with_other_measures_and_merging():
    model, batches = built("bert"), aligned(3)
    whole = cat_scores(model, batches, types="all")
    found, _, types = accumulate(
        model, batches, CatAccumulator(sorted(batches.examples, key=lambda one: one.number)), PatternsAccumulator(),
        TypesAccumulator([kind for tree in snippets() for kind in tree.types]),
    )  # fmt: skip
    assert equal(found, whole)
    assert torch.equal(types.high, leaf_types(model, batches).high)
    every = sorted(batches.examples, key=lambda one: one.number)
    for make in (lambda: CatAccumulator(every), lambda: TypesAccumulator(types.types)):
        halves = [make(), make()]
        for half, one in zip(halves, batches, strict=True):
            accumulate(model, one, half)
        merged = halves[0].merge(halves[1].state()).compute()
        if isinstance(merged, CatComparison):
            assert equal(merged, whole)
        else:
            assert all(
                torch.equal(getattr(merged, n), getattr(types, n)) for n in ("high", "total", "once", "snippets")
            )


def test_checkpoints(tmp_path, monkeypatch):
    monkeypatch.setattr("bertology.streaming.checkpoint.EVERY_SECONDS", 0.0)
    model, batches, file = built("bert"), aligned(), tmp_path / "sums"
    every = sorted(batches.examples, key=lambda one: one.number)

    def cut_off():
        yield from list(batches)[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        accumulate(model, cut_off(), CatAccumulator(every), checkpoint=file)
    for other in (CatAccumulator(every, quantile=0.5), CatAccumulator(every, types=[["("], ["("]])):
        with pytest.raises(DataError, match="is of another model or other measures"):
            accumulate(model, batches, other, checkpoint=file)
    (found,) = accumulate(model, batches, CatAccumulator(every), checkpoint=file)
    assert equal(found, cat_scores(model, batches, types="all"))


def test_results_are_kept(tmp_path):
    model, batches = built("bert"), aligned()
    found = cat_scores(model, batches, top=3)
    found.save(tmp_path / "cat")
    again = Result.load(tmp_path / "cat")
    assert isinstance(again, CatComparison)
    assert equal(found, again)
    assert str(again) == str(found)
    assert torch.equal(again.scores.head_macro, found.scores.head_macro)
    types = leaf_types(model, batches)
    types.save(tmp_path / "types")
    assert str(LeafTypes.load(tmp_path / "types")) == str(types)
    assert "CAT-scores of 5 snippets; chance is about 1/7" in str(found)


# Layers and heads that are not there.


def test_pruned_heads():
    model, whole = built("bert"), built("bert", "eager")
    prune_heads(model, {0: [1], 1: [0, 3]})
    batches = aligned()
    found = cat_scores(model, batches, types="all")
    gone = torch.tensor([[False, True, False, False], [True, False, False, True]])
    assert torch.equal(found.scores.head_macro.isnan(), gone)
    assert torch.equal(found.scores.head_used == 0, gone)
    assert not found.scores.macro.isnan().any()
    assert str(found.scores)
    # The first layer's maps are those of the whole model: its other heads, and their mean.
    for one, layers in twin.rows_of(whole, batches):
        left = [layers[0][row] for row in (1, 3, 4)]
        expected = [twin.counts(one, weights, None) for weights in (sum(left) / 3, *left)]
        rows = [found.matched[:, 0, one.number], *found.head_matched[:, 0, [0, 2, 3], one.number].T]
        assert [row.tolist() for row in rows] == [[m for m, _ in kinds] for kinds in expected]


def test_a_layer_without_heads_has_no_score():
    model = built("bert")
    prune_heads(model, {0: range(4)})
    for types in ("all", "frequent"):
        found = cat_scores(model, aligned(), types=types)
        assert found.scores.used.tolist() == [0, 4]
        assert found.scores.macro.isnan().tolist() == [True, False]
        assert "| 0 |" not in str(found)
    assert leaf_types(model, aligned()).snippets.tolist() == [0, 5]
    prune_heads(model, {1: range(4)})
    with pytest.raises(DataError, match="no layer attends from the text's tokens to themselves"):
        cat_scores(model, aligned())


@pytest.mark.parametrize("name", ["T5", "Bart"])
@pytest.mark.parametrize("types", ["all", "frequent"])
def test_encoder_decoders_show_their_encoder(name, types):
    """BART's decoder, given nothing, reads the text shifted by one token: its tokens are not the code's."""
    small = {"vocab_size": 40, "d_model": 16, "pad_token_id": 0}
    config = (
        transformers.T5Config(**small, d_kv=4, d_ff=24, num_layers=2, num_heads=4)
        if name == "T5"
        else transformers.BartConfig(**small, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
                                     decoder_attention_heads=4, encoder_ffn_dim=24, decoder_ffn_dim=24)
    )  # fmt: skip
    batches = aligned()
    given = [{**one, "decoder_input_ids": one["input_ids"]} for one in batches] if name == "T5" else batches
    model = getattr(transformers, f"{name}Model")(config).eval()
    found = cat_scores(model, given, types=types, random_weights=True)
    assert found.labels == ("encoder.0", "encoder.1", "decoder.0", "decoder.1", "cross.0", "cross.1")
    assert found.scores.used.tolist() == [4, 4, 0, 0, 0, 0]
    assert found.scores.head_macro.isnan().all(1).tolist() == [False] * 2 + [True] * 4
    assert found.types[2:] == (None,) * 4
    assert "decoder" not in str(found)
    encoder = found.stack("encoder")
    assert encoder.labels == ("encoder.0", "encoder.1")
    assert encoder.types == found.types[:2]
    assert torch.equal(encoder.scores.head_macro, found.scores.head_macro[:2])
    with pytest.raises(DataError, match="no stack 'tower' in this result"):
        found.stack("tower")
    read = leaf_types(model, given)
    assert read.snippets.tolist() == [5, 5, 0, 0, 0, 0]
    assert "decoder" not in str(read)


# Errors.


def test_batches_are_checked():
    model = built("bert")
    for measure in (cat_scores, leaf_types):
        with pytest.raises(DataError, match=r"make them with bertology.code_structure.align_code"):
            measure(model, batch())
        with pytest.raises(DataError, match="goes over the batches several times: pass a list or a DataLoader"):
            measure(model, iter(aligned()))
        with pytest.raises(DataError, match="wanted batches of one call of align_code, got 2 snippets with 1 number"):
            measure(model, [*aligned(1, slice(1)), *aligned(1, slice(1))])
        with pytest.raises(DataError, match="wanted batches of one call of align_code, got 0 snippets"):
            measure(model, [])
    long = align_code(wordpiece_tokenizer(), [parse_code("cat = " + "cat + " * 20 + "cat", "python")], max_length=99)
    with pytest.raises(DataError, match="a text has 45 tokens, the model takes 32"):
        cat_scores(model, long, types="all")
    few = CatAccumulator(aligned(1, slice(1)).examples)
    with pytest.raises(DataError, match="snippet number [1-4] is not among the 1 snippet "):
        accumulate(model, aligned(), few)


def test_types_are_checked():
    model, batches = built("bert"), aligned()
    both = align_code(wordpiece_tokenizer(), [*snippets(), parse_code("the = cat", "go", broken="keep")])
    for types in ("frequent", "published"):
        with pytest.raises(DataError, match="those of one language, got code in go, python: measure each language sep"):
            cat_scores(model, both, types=types)
    assert len(cat_scores(model, both, types="all").names) == 6
    with pytest.raises(DataError, match="'frequent', 'published', 'all' or a list of types, got 'identifier'"):
        cat_scores(model, batches, types="identifier")
    for types in (["Identifier"], []):
        with pytest.raises(DataError, match=r"no leaf of the code is of the types \[.*\]: its own are such as \("):
            cat_scores(model, batches, types=types)
    with pytest.raises(DataError, match="types must have one list per layer, 2, got 1"):
        accumulate(model, batches, CatAccumulator(batches.examples, types=[["("]]))
    with pytest.raises(DataError, match="top must be the number of types to keep"):
        cat_scores(model, batches, top=0)
    with pytest.raises(DataError, match="kind must be one of attention, shuffled, positional, got 'random'"):
        cat_scores(model, batches, types="all").of("random")


def test_snippets_that_were_left_out_are_counted():
    long = parse_code(CODE[0] + "\n" + CODE[2] * 3, "python")
    batches = align_code(wordpiece_tokenizer(), [long, *snippets()], batch_size=2)
    found = cat_scores(built("bert"), batches, types="all")
    assert found.skipped == 1
    assert "5 snippets, 1 skipped" in str(found)
    assert found.names == ("f0", "f1", "f2", "f3", "f4")


# Real code, and a model that was trained.


@pytest.mark.shared
@pytest.mark.slow
def test_of_real_code(shared, minilm):
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    model = transformers.AutoModel.from_pretrained(minilm, attn_implementation="eager").eval()
    trees = [tree for tree in read_code(shared / "code" / "python.jsonl") if 15 <= len(tree) <= 120][:20]
    batches = align_code(tokenizer, trees)
    found = cat_scores(model, batches, types="all")
    scores = found.scores
    assert scores.used.tolist() == [20] * 6
    assert ((scores.macro > 0.08) & (scores.macro < 0.6)).all()
    assert scores.macro.max() > 0.25  # beyond chance: neighbours are near
    assert ((scores.head_macro > 0.01) & (scores.head_macro < 0.9)).all()
    assert (found.of("shuffled").macro < 1 / 7 + 0.01).all()
    assert (found.of("positional").macro > found.of("shuffled").macro).all()
    shortest = align_code(tokenizer, sorted(trees, key=len)[:2])
    some = cat_scores(model, shortest, types="all")
    # The mean over heads and two heads, of two layers.
    maps = [(one, [layers[row][:3] for row in (0, 5)]) for one, layers in twin.rows_of(model, shortest)]
    rows = [some.matched[:, [0, 5]], some.either[:, [0, 5]], some.head_matched[:, [0, 5]], some.head_either[:, [0, 5]]]
    picked = dataclasses.replace(some, **dict(zip(COUNTS, rows, strict=True)))
    check_counts(picked, maps, [None, None])
    maps[0][1][0][1] = maps[0][1][0][1].T  # one head's map turned
    with pytest.raises(AssertionError):
        check_counts(picked, maps, [None, None])
