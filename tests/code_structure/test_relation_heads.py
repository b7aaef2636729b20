"""Which heads attend to what belongs together: sums over a model's maps, and what is made of them."""

import copy

import pytest
import torch

from bertology import Head, Result, accumulate, attention_maps, prune_heads
from bertology.code_structure import (
    CodeTree,
    RelationHeads,
    align_code,
    parse_code,
    read_code,
    related,
    relation_heads,
    visible,
)
from bertology.code_structure.relation_heads import RelationAccumulator
from bertology.code_structure.relations import RELATIONS
from bertology.errors import DataError
from helpers.zoo import BY_NAME
from oracles import cat as oracles

CODES = [
    "def f(the, cat):\n    for dog in cat:\n        the(dog, cat)\n        the[dog](the)",
    "cat = the(dog(cat), dog)\ndog = cat",
    "the = 1",
]


@pytest.fixture(scope="module")
def tokenizer():
    """One id a word or sign, below the zoo's 40; what it does not know is [UNK]."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "def", "f", "the", "cat", "for", "dog", "in", *"()[]:,=1"]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation(behavior="isolated")]
    )
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", model_max_length=64)


def build(name, **config):
    longer = "n_positions" if name == "gpt2" else "max_position_embeddings"
    return BY_NAME[name].build(**{longer: 64}, **config)


def batches_of(tokenizer, codes=CODES, **options):
    return align_code(tokenizer, [parse_code(code, "python", name=str(n)) for n, code in enumerate(codes)], **options)


def check(found, model, batches, causal, spoil=0.0):
    """METHODS D: each related pair beside the mean of unrelated ones at its offset, head by head over eager maps."""
    for batch in batches:
        maps = attention_maps(model, {name: x for name, x in batch.items() if name != "annotations"}).values
        for example, one in enumerate(batch["annotations"]):
            for layer in range(maps.shape[0]):
                for head in range(maps.shape[2]):
                    weights, kept = oracles.token_map(maps[layer, example, head], list(one.leaf_of), causal)
                    assert kept == list(range(len(one.tree)))
                    for number, relation in enumerate(found.relations):
                        expected = oracles.relation_sums(
                            torch.tensor(weights, dtype=torch.float64), related(one.tree, relation),
                            visible(len(kept)) if causal else None,
                        )  # fmt: skip
                        place = (number, layer, head, one.number)
                        assert found.related[place].item() == pytest.approx(expected[0] + spoil, abs=1e-9)
                        assert found.control[place].item() == pytest.approx(expected[1] + spoil, abs=1e-9)
                        counts = (found.pairs, found.unmatched)
                        assert tuple(int(x[number, layer, one.number]) for x in counts) == expected[2:]


@pytest.mark.parametrize(("name", "causal"), [("bert", False), ("gpt2", True)])
def test_equal_to_loops_over_eager_maps(tokenizer, name, causal):
    batches = batches_of(tokenizer, batch_size=2)
    found = relation_heads(build(name, attention="sdpa"), batches)
    assert found.related.shape == (4, 2, 4, 3)
    assert found.pairs.sum((1, 2)).gt(0).all()  # each relation is there
    check(found, build(name, attention="eager"), batches, causal)
    with pytest.raises(AssertionError):
        check(found, build(name, attention="eager"), batches, causal, spoil=1e-6)
    with pytest.raises(AssertionError):
        check(found, build(name, attention="eager", seed=1), batches, causal)


def test_the_control_relation_equals_loops(tokenizer):
    """It is not among the default relations, and no pair of it is a pair of definition and use."""
    batches, names = batches_of(tokenizer), ("definition to use", "same name, no definition")
    found = relation_heads(build("bert", attention="sdpa"), batches, relations=names)
    assert found.relations == names
    assert (found.pairs + found.unmatched)[:, 0].tolist() == [[7, 1, 0], [5, 5, 0]]
    check(found, build("bert", attention="eager"), batches, False)
    with pytest.raises(AssertionError):
        check(found, build("bert", attention="eager"), batches, False, spoil=1e-6)


def test_a_decoder_is_asked_for_what_it_sees(tokenizer):
    batches = batches_of(tokenizer)
    back, both = (relation_heads(build(name), batches) for name in ("gpt2", "bert"))
    brackets, uses = RELATIONS.index("matching brackets"), RELATIONS.index("definition to use")
    counted = back.pairs + back.unmatched
    assert torch.equal(2 * counted[brackets], (both.pairs + both.unmatched)[brackets])
    assert torch.equal(counted[uses, 0], torch.tensor([7, 1, 0]))
    assert torch.equal(counted[uses], (both.pairs + both.unmatched)[uses])  # definitions stand before their uses


def test_batches_and_padding_change_nothing(tokenizer):
    model = build("bert")
    together, alone = (relation_heads(model, batches_of(tokenizer, batch_size=size)) for size in (3, 1))
    for name in ("related", "control"):
        torch.testing.assert_close(getattr(together, name), getattr(alone, name), atol=1e-12, rtol=0)
    assert torch.equal(together.pairs, alone.pairs)
    assert torch.equal(together.unmatched, alone.unmatched)
    assert together.names == ("0", "1", "2")


def test_parts_of_the_data_merge(tokenizer):
    model, batches = build("bert"), batches_of(tokenizer, batch_size=1)
    whole = relation_heads(model, batches)
    snippets = sorted(batches.examples, key=lambda one: one.number)
    parts = []
    for some in (batches.batches[:1], batches.batches[1:]):
        counter = RelationAccumulator(snippets)
        accumulate(model, some, counter)
        parts.append(counter)
    merged = parts[0].merge(parts[1].state()).compute()
    for name in ("related", "control", "pairs", "unmatched"):
        assert torch.equal(getattr(merged, name), getattr(whole, name))
    with pytest.raises(DataError, match="snippet number 2 is not among the 1 snippet"):
        accumulate(model, batches, RelationAccumulator(snippets[:1]))


def test_pruned_heads_are_nan_and_others_stay(tokenizer):
    model, batches = build("bert"), batches_of(tokenizer, CODES * 4)
    cut = copy.deepcopy(model)
    prune_heads(cut, {0: [1]})
    whole, found = (relation_heads(one, batches) for one in (model, cut))
    assert found.gain[:, 0, 1].isnan().all()
    there = ~found.gain.isnan()
    assert there.sum() == 4 * 7
    torch.testing.assert_close(found.gain[:, 0][there[:, 0]], whole.gain[:, 0][there[:, 0]])
    low, high = found.interval(resamples=200)
    assert low.isnan().equal(~there)
    assert (low[there] <= high[there]).all()
    assert found.best("same block").head != Head(0, 1)


def made(more, pairs=None):
    """A result of one relation of 1 layer of 2 heads, of sums over as many snippets."""
    more = torch.tensor(more, dtype=torch.float64)[None, None]
    many = torch.ones(1, 1, more.shape[-1], dtype=torch.int64) if pairs is None else torch.tensor([[pairs]])
    names = tuple(map(str, range(more.shape[-1])))
    return RelationHeads(more + 0.25 * many, 0.25 * many[:, :, None].expand(more.shape).double(), many,
                         torch.zeros_like(many), ("same block",), names, ("0",))  # fmt: skip


def test_figures_of_all_pairs_together():
    found = made([[1.0, 0.5], [0.0, 0.25]], pairs=[4, 2])
    torch.testing.assert_close(found.gain[0, 0], torch.tensor([1.5 / 6, 0.25 / 6], dtype=torch.float64))
    torch.testing.assert_close(found.mean - found.expected, found.gain)
    torch.testing.assert_close(found.ratio[0, 0, 0].item(), (0.25 + 0.25) / 0.25)
    one = found.best("same block")
    assert (one.head, one.pairs, one.elsewhere) == (Head(0, 0), 6, False)
    assert (one.mean, one.expected, one.gain) == pytest.approx((0.5, 0.25, 0.25))


def test_intervals_hold_the_gain():
    torch.manual_seed(0)
    inside = 0
    for _ in range(60):
        sums = 0.1 + 0.3 * torch.randn(2, 40, dtype=torch.float64)
        low, high = made(sums.tolist()).interval(resamples=300)
        inside += int(((low < 0.1) & (high > 0.1)).sum())
    assert 0.87 < inside / 120 <= 1
    assert made([[0.5] * 5, [0.0] * 5]).interval()[0].flatten().tolist() == [0.5, 0.0]


def test_a_head_chosen_elsewhere():
    here, there = made([[1.0, 1.0], [0.0, 0.0]]), made([[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]])
    one = here.best("same block", choose_on=there)
    assert (one.head, one.gain, one.elsewhere) == (Head(0, 1), 0, True)
    assert one.interval == (0, 0)


def test_it_prints_saves_and_draws_stacks(tokenizer, tmp_path):
    found = relation_heads(build("bert"), batches_of(tokenizer, max_length=20))
    assert found.skipped == 1
    told = str(found).splitlines()
    assert told[0].split()[:3] == ["relation", "pairs", "head"]
    assert max(map(len, told)) <= 80
    assert told[1].split()[:3] == ["same", "block", "0"]  # the first snippet alone has one
    best = found.best("matching brackets")
    row = next(line for line in told if line.startswith("matching brackets"))
    assert row.split()[2:5] == [str(best.pairs), str(best.head), f"{best.mean:.3f}"]
    assert told[-1] == "attention to related leaves in 2 snippets, 1 skipped; heads chosen here"
    found.save(tmp_path / "a")
    again = Result.load(tmp_path / "a")
    assert torch.equal(again.related, found.related)
    assert (again.relations, again.names) == (found.relations, found.names)
    assert torch.equal(found.gain[:, 0, 0].isnan(), found.pairs.sum((1, 2)) == 0)
    with pytest.raises(DataError, match="no stack 'cross' in this result: it has encoder"):
        found.stack("cross")


def test_of_several_stacks_one():
    found = made([[1.0], [0.0]])
    both = [torch.cat([x, 2 * x], 1) for x in (found.related, found.control, found.pairs, found.unmatched)]
    several = RelationHeads(*both, found.relations, found.names, ("encoder.0", "decoder.0"))
    assert torch.equal(several.stack("encoder").related, found.related)
    assert several.stack("decoder").labels == ("decoder.0",)
    assert several.best("same block").head == Head(0, 0, "encoder")


def test_errors(tokenizer):
    model, batches = build("bert"), batches_of(tokenizer)
    with pytest.raises(DataError, match="make them with bertology.code_structure.align_code"):
        relation_heads(model, {"input_ids": torch.ones(1, 3, dtype=torch.int64)})
    with pytest.raises(DataError, match="relation must be one of 'same block'"):
        relation_heads(model, batches, relations=["same line"])
    with pytest.raises(DataError, match="iterator"):
        relation_heads(model, iter(batches))
    found = relation_heads(model, batches, relations=["same block"])
    with pytest.raises(DataError, match="no relation 'same call': this result has same block"):
        found.best("same call")
    with pytest.raises(DataError, match="has 1 layer of 2 heads, this result has 2 layers of 4: wanted the same model"):
        found.best("same block", choose_on=made([[1.0], [0.0]]))
    with pytest.raises(DataError, match="no pair of leaves of 'same block' was compared"):
        made([[0.0], [0.0]], pairs=[0]).best("same block")


def test_other_languages_are_refused_before_the_model_runs(tokenizer):
    tree = parse_code("the = 1", "python")
    parts = (tree.types, tree.spans, tree.leaf_nodes, tree.parents, tree.node_types, tree.node_spans)
    batches = align_code(tokenizer, [CodeTree(tree.code, "", "cobol", *parts)])
    model = build("bert")
    model.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    with pytest.raises(
        DataError, match="relations are known in python, java, javascript, go, typescript, .*, not in cobol"
    ):
        relation_heads(model, batches)


@pytest.mark.shared
def test_a_real_model_follows_variables(shared, minilm):
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(minilm), AutoModel.from_pretrained(minilm)
    trees = sorted(read_code(shared / "code" / "python.jsonl", broken="skip"), key=len)[20:44]
    halves = [relation_heads(model, align_code(tokenizer, trees[half::2])) for half in (0, 1)]
    one = halves[0].best("definition to use", choose_on=halves[1])
    assert one.gain > 0.1
    assert one.interval[0] > 0.05
