"""Sums of a model under other edits are other sums: a file that resumes, a shard or a process with them is refused."""

import pytest
import torch

import bertology as b
from bertology.errors import DataError
from bertology.streaming.identity import edits_identity
from bertology.tap import tap
from helpers.zoo import BY_NAME, batch, each_alone

TEXTS = each_alone(batch((7, 4, 5, 2)))


def edited(site, x):
    return 2 * x


def cut(query, key, tokens):
    return key == query - 1


def gates(value):
    return torch.tensor([[value, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]])


EDITS = {
    "gates": lambda model: b.gated(model, gates(0.5)),
    "ablated": lambda model: b.ablated(model, ["L0H1"]),
    "mean": lambda model: b.ablated(model, ["L0H1"], replace="mean"),
    "a tensor": lambda model: b.ablated(model, ["L0H1"], replace=torch.ones(2, 4, 4)),
    "cuts": lambda model: b.masked_attention(model, {"L0H1": cut}),
    "own": lambda model: tap(model, "heads", edit=edited),
    "neurons": lambda model: b.gated(model, neurons=torch.zeros(2, 24)),
}


def test_each_edit_has_its_identity_while_it_is_open():
    model = BY_NAME["bert"].build()
    found = []
    for make in (*EDITS.values(), lambda model: b.gated(model, gates(0.25))):
        with make(model):
            found.append(tuple(edits_identity(model)))
            assert edits_identity(torch.nn.Sequential(model)) == list(found[-1])  # also from what wraps it
            assert edits_identity(BY_NAME["bert"].build()) == []
            with make(model):
                assert len(edits_identity(model)) == 2
        assert edits_identity(model) == []
        with make(model):
            model(**{name: x for name, x in TEXTS[0].items() if name != "labels"})
            assert tuple(edits_identity(model)) == found[-1]
    assert len(set(found)) == len(found)
    with pytest.raises(ZeroDivisionError), b.gated(model, gates(0.5)):
        1 / 0  # noqa: B018
    assert edits_identity(model) == []


def interrupted(model, file):
    def failing():
        yield from TEXTS[:3]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        b.accumulate(model, failing(), b.MeansAccumulator(), checkpoint=file)


@pytest.mark.parametrize("name", EDITS)
def test_a_checkpoint_under_another_edit_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.setattr("bertology.streaming.checkpoint.EVERY_SECONDS", 0)
    model, file = BY_NAME["bert"].build(), tmp_path / "file"
    interrupted(model, file)
    with EDITS[name](model):
        with pytest.raises(DataError, match="is of another model or other measures"):
            b.accumulate(model, TEXTS, b.MeansAccumulator(), checkpoint=file)
        file.unlink()
        interrupted(model, file)
        (found,) = b.accumulate(model, TEXTS, b.MeansAccumulator(), checkpoint=file)
        assert found.allclose(b.head_means(model, TEXTS), atol=1e-12)


def test_shards_under_other_edits_are_refused(tmp_path):
    model = BY_NAME["bert"].build()

    def measured(number):
        return b.accumulate(model, TEXTS[number::2], b.MeansAccumulator(), shard=(number, 2), save=tmp_path)

    with b.gated(model, gates(0.5)):
        measured(0)
    with pytest.raises(DataError, match="has other edits, such as gates, than this run"):
        measured(0)
    measured(1)
    with pytest.raises(DataError, match="has other edits, such as gates, than 00000-of-00002"):
        b.merge_shards(tmp_path)
    (tmp_path / "00001-of-00002.safetensors").unlink()
    with b.gated(model, gates(0.5)):
        measured(1)
        wanted = b.head_means(model, TEXTS)
    assert b.merge_shards(tmp_path, model=model)[0].allclose(wanted, atol=1e-12)


def test_captures_under_other_edits_are_refused(tmp_path):
    model = BY_NAME["bert"].build()
    with b.gated(model, gates(0.5)):
        b.capture(model, TEXTS[0], heads=True, save=tmp_path / "captures")
    with pytest.raises(DataError, match="another model"):
        b.capture(model, TEXTS[0], heads=True, save=tmp_path / "captures")
