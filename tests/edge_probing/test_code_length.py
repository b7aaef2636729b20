"""The online code of the probes of all layers: who sees what before which block, and how many bits come out."""

import dataclasses
import itertools
import math

import pytest
import torch

from bertology.edge_probing import code_length as coding
from bertology.edge_probing.code_length import CODING, code_lengths
from bertology.edge_probing.encoding import encode
from bertology.edge_probing.optimizer import Training
from bertology.edge_probing.probe_layers import cumulative_probes
from bertology.edge_probing.random_draws import CODE, generator
from bertology.edge_probing.train import train_probes
from bertology.errors import DataError
from helpers.edge_sources import InMemory, at_one_layer, random_labels, random_source
from helpers.edges import NOUNS
from helpers.trees import wordpiece_tokenizer
from helpers.zoo import BY_NAME

QUICK = Training(lr=3e-3, batch_size=8, validate_every=5, max_validations=4, width=6, choose_by="loss")
SYNTHETIC = Training(
    lr=3e-3, batch_size=16, validate_every=10, max_validations=20, width=16, patience_stop=5, choose_by="loss"
)
PORTIONS = (0.1, 0.2, 0.5, 1.0)


def shuffle(records, order=0):
    return torch.randperm(records, generator=generator(order, CODE)).tolist()


def in_order(source, order):
    """The records in another order, as data of their own."""
    cut = {name: tuple(getattr(source, name)[i] for i in order) for name in ("vectors", "spans", "truths")}
    return dataclasses.replace(source, **cut)


def in_memory(store):
    """What a store holds, record by record."""
    vectors, spans, truths = [], [], []
    for record in range(store.records):
        one = store.batch(range(record, record + 1))
        rows = [[one.tokens[s][one.targets[s] == t] for s in range(store.sides)] for t in range(one.count)]
        spans.append(tuple(tuple((int(x[0]), int(x[-1]) + 1) for x in sides) for sides in rows))
        vectors.append(one.vectors)
        truths.append(one.gold)
    return InMemory(tuple(vectors), tuple(spans), tuple(truths), store.labels, store.counted)


def by_loops(train, dev, settings, ends, layer, seed=0):
    """[block], bits (Voita and Titov 2020): Σ over targets and labels of -log₂ of the probability of the truth,
    by one probe that is trained by itself on all records before the block."""
    order = shuffle(train.records, settings.order)
    blocks = [sum(len(train.spans[record]) * len(train.labels) for record in order[: ends[0]])]
    for start, end in itertools.pairwise(ends):
        before = in_order(train, order[:start])
        alone = cumulative_probes(train, (seed,), settings).select([layer])
        probe = train_probes(before, dev, alone, settings).probes
        bits = 0.0
        for record in order[start:end]:
            batch = train.batch([record])
            logits = probe(batch)[0].tolist()
            for target in range(batch.count):
                for label in range(len(train.labels)):
                    p = 1 / (1 + math.exp(-logits[target][label]))
                    bits -= math.log2(p if batch.gold[target, label] == 1 else 1 - p)
        blocks.append(bits)
    return blocks


def check_code(found, train, dev, settings, ends, seed=0):
    assert found.ends.tolist() == ends
    assert found.labels == tuple(map(str, range(train.layers)))
    assert found.bits.shape == (len(ends), train.layers)
    for layer in range(train.layers):
        expected = by_loops(train, dev, settings, ends, layer, seed)
        assert found.bits[:, layer].tolist() == pytest.approx(expected, rel=2e-5)


@pytest.mark.parametrize("by", ["loss", "f1"])
@pytest.mark.parametrize("sides", [1, 2])
def test_equals_loops(by, sides):
    train, dev = random_source(20, sides=sides), random_source(9, sides=sides, seed=1)
    settings = dataclasses.replace(QUICK, choose_by=by, order=3)
    found = code_lengths(train, dev, seed=2, settings=settings, portions=PORTIONS)
    check_code(found, train, dev, settings, [2, 4, 10, 20], seed=2)
    assert found.uniform.sum() == len(train.target_record) * 4
    for spoiled in (
        (train, dev, settings, [2, 4, 10, 20]),  # another seed
        (train, dev, dataclasses.replace(settings, order=4), [2, 4, 10, 20], 2),
        (train, random_labels(dev), settings, [2, 4, 10, 20], 2),
        (random_labels(train), dev, settings, [2, 4, 10, 20], 2),
        (train, dev, dataclasses.replace(settings, choose_by="f1" if by == "loss" else "loss"), [2, 4, 10, 20], 2),
    ):
        with pytest.raises(AssertionError):
            check_code(found, *spoiled)


def test_a_store_is_coded_as_what_it_holds(tmp_path):
    """Blocks of 1, 2 and 2 records, all smaller than a batch, in an order that is not the store's."""
    stores = [
        encode(BY_NAME["bert"].build(), wordpiece_tokenizer(), task, tmp_path / name, dtype=torch.float32)
        for name, task in (("train", NOUNS), ("dev", NOUNS[1:4]))
    ]
    settings = dataclasses.replace(QUICK, order=1)
    assert shuffle(5, 1) != list(range(5))
    portions = (0.2, 0.6, 1)
    found = code_lengths(*stores, settings=settings, portions=portions)
    check_code(found, *map(in_memory, stores), settings, [1, 3, 5])


class Spy:
    """A source that tells which records are looked at."""

    def __init__(self, source, name, log):
        self._source, self._name, self._log = source, name, log

    def __getattr__(self, name):
        return getattr(self._source, name)

    def batch(self, records):
        self._log.append((self._name, [int(record) for record in records]))
        return self._source.batch(records)


def test_nothing_sees_the_block_that_is_sent_next(monkeypatch):
    log = []

    def spied(train, *rest, **options):
        log.append(("training", train.records))
        trained = train_probes(train, *rest, **options)
        log.append(("trained", train.records))
        return trained

    monkeypatch.setattr(coding, "train_probes", spied)
    train, dev = random_source(30), random_source(6, seed=1)
    code_lengths(Spy(train, "train", log), Spy(dev, "dev", log), settings=QUICK, portions=PORTIONS)
    order, ends = shuffle(30), [3, 6, 15, 30]
    place = {record: at for at, record in enumerate(order)}
    marks = [at for at, (what, _) in enumerate(log) if what in ("training", "trained")]
    assert [log[at] for at in marks] == [(what, end) for end in ends[:-1] for what in ("training", "trained")]

    def looked_at(start, stop):
        return [place[record] for what, records in log[start:stop] if what == "train" for record in records]

    assert max(looked_at(0, marks[0])) == 0  # the check of the data looks at the first block
    for (begun, done), sent, (start, end) in zip(
        zip(marks[::2], marks[1::2], strict=True), [*marks[2::2], len(log)], itertools.pairwise(ends), strict=True
    ):
        assert set(looked_at(begun, done)) == set(range(start))
        assert looked_at(done, sent) == list(range(start, end))
        assert all(what != "dev" for what, _ in log[done + 1 : sent])


@pytest.mark.parametrize("block", [1, 2, 3])
def test_a_block_changes_no_code_before_its_own(block):
    train, dev = random_source(30), random_source(6, seed=1)
    ends = [3, 6, 15, 30]
    changed = set(shuffle(30)[ends[block - 1] : ends[block]])
    truths = tuple(1 - x if record in changed else x for record, x in enumerate(train.truths))
    one, other = (
        code_lengths(some, dev, settings=QUICK, portions=PORTIONS).bits
        for some in (train, dataclasses.replace(train, truths=truths))
    )
    assert torch.equal(one[:block], other[:block])
    assert (one[block:] != other[block:]).all()


def test_the_code_is_short_from_the_layer_on_where_the_answer_is():
    train, dev = at_one_layer(2, records=200), at_one_layer(2, seed=1, records=100)
    found = code_lengths(train, dev, settings=SYNTHETIC)
    assert found.ends.tolist() == [1, 3, 6, 12, 25, 50, 100, 200]
    assert (found.compression[:2] < 1.05).all(), found
    assert (found.compression[2:] > 1.3).all(), found
    assert found.online.argmin() == 2


def test_labels_of_others_are_not_compressed():
    train, dev = (random_labels(at_one_layer(1, records=many, seed=many)) for many in (100, 50))
    found = code_lengths(train, dev, settings=SYNTHETIC, portions=(0.25, 0.5, 1))
    assert ((found.compression > 0.85) & (found.compression < 1.05)).all(), found


def test_the_order_and_the_seed_are_those_that_are_asked_for():
    train, dev, before = random_source(12), random_source(6, seed=1), torch.get_rng_state()

    def bits(seed=0, **settings):
        changed = dataclasses.replace(QUICK, **settings)
        return code_lengths(train, dev, seed=seed, settings=changed, portions=PORTIONS).bits

    first = bits()
    assert torch.equal(bits(), first)
    assert not torch.equal(bits(seed=1)[1:], first[1:])
    assert not torch.equal(bits(order=1), first)
    with torch.inference_mode():
        assert torch.equal(bits(), first)
    assert torch.equal(torch.get_rng_state(), before)


def test_by_default_the_loss_decides():
    assert Training(choose_by="loss") == CODING
    assert code_lengths.__kwdefaults__["settings"] is CODING


def test_a_probe_that_never_says_yes_has_a_code_too():
    """F1 is 0 at each validation, so that the first one's weights are kept."""
    train, dev = random_source(10), random_source(6, seed=1)
    rare = [some.with_truths(torch.cat(some.truths) * torch.tensor([1.0, 0, 0, 0])) for some in (train, dev)]
    settings = dataclasses.replace(QUICK, lr=1e-4, choose_by="f1")
    found = code_lengths(*rare, settings=settings, portions=PORTIONS)
    assert found.bits.isfinite().all()
    assert (found.bits > 0).all()


def test_progress_is_shown_when_asked_for(capsys):
    code_lengths(random_source(8), random_source(3, seed=1), settings=QUICK, portions=(0.5, 1), progress="POS")
    assert "POS: 100%" in capsys.readouterr().err
    code_lengths(random_source(8), random_source(3, seed=1), settings=QUICK, portions=(0.5, 1))
    assert not capsys.readouterr().err


class NoRecords(Spy):
    records, target_record = 0, torch.zeros(0, dtype=torch.int64)


def test_data_that_make_no_code():
    train, dev = random_source(12), random_source(6, seed=1)
    with pytest.raises(DataError, match="1 record in 1 block at portions .*: wanted two or more"):
        code_lengths(train.first(1), dev, settings=QUICK)
    with pytest.raises(DataError, match="dev must be other records than train: the probes must not see the labels"):
        code_lengths(train, train, settings=QUICK)
    for other, said in (
        (random_source(labels=3), "one task and one model, but labels differ"),
        (random_source(layers=2), "layers differ: 3 and 2"),
    ):
        with pytest.raises(DataError, match=said):
            code_lengths(train, other, settings=QUICK)
    with pytest.raises(DataError, match="train has no records"):
        code_lengths(NoRecords(train, "", []), dev, settings=QUICK)
    with pytest.raises(DataError, match="portions must be shares that ascend to 1"):
        code_lengths(train, dev, settings=QUICK, portions=(0.5, 0.9))
    with pytest.raises(DataError, match="a seed must be 0 or more, got -1"):
        code_lengths(train, dev, seed=-1, settings=QUICK)


@pytest.mark.shared
def test_parts_of_speech_of_a_real_model(minilm, shared, tmp_path):
    from transformers import AutoModel, AutoTokenizer

    from bertology.edge_probing.formats.treebanks import pos_edges

    model, tokenizer = AutoModel.from_pretrained(minilm), AutoTokenizer.from_pretrained(minilm)
    task = pos_edges(shared / "ud" / "en_ewt-ud-dev.conllu")
    train, dev = (
        encode(model, tokenizer, some, tmp_path / name) for name, some in (("a", task[:100]), ("b", task[100:140]))
    )
    settings = Training(lr=3e-3, validate_every=20, max_validations=3, width=32, choose_by="loss")
    found = code_lengths(train, dev, settings=settings, portions=(0.1, 0.4, 1))
    assert found.uniform.sum() == train.targets * len(train.labels)
    # Labels that are drawn as often as here, one decision each, by a receiver that knows how often.
    share = train.gold(range(train.targets)).double().mean(0)
    surprise = -(share * share.log2() + (1 - share) * (1 - share).log2()).nan_to_num().sum() * train.targets
    assert (found.online < surprise).all(), (found, surprise)
    assert (found.online[1:] < found.online[0]).all(), found
