"""Sums of shards in files: added up they are those of one pass, and files that do not belong together are refused."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

import bertology as b
from bertology import syntax
from bertology.data.batches import ANNOTATIONS
from bertology.errors import BertologyError, DataError
from bertology.results.files import read_tensors, write_tensors
from helpers.every_measure import CODE, KINDS, NAMES, TEXTS, length, measure
from helpers.zoo import BY_NAME, batch, each_alone


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("many", [1, 2, 7])
def test_shards_come_to_one_pass_for_every_measure(name, many, tmp_path):
    make, model, batches = measure(name)
    (wanted,) = b.accumulate(model, batches, make())
    for number in reversed(range(many)):
        share = list(b.shard_batches(batches, (number, many)))
        found = b.accumulate(model, share, make(), shard=(number, many), save=tmp_path)
        assert len(found) == (1 if share else 0)
    for model_too in (None, model):
        (merged,) = b.merge_shards(tmp_path, make(), model=model_too)
        assert type(merged) is type(wanted)
        assert merged.model_name == wanted.model_name
        assert merged.allclose(wanted, atol=1e-12)


def groups():
    """[names of measures that can share a pass], with one model and the same batches."""
    found = {}
    for name in NAMES:
        _, model, batches = measure(name)
        alone = name if name.startswith("_") else ""  # that of `integrated_importance` runs the model itself
        found.setdefault((alone, type(model).__name__, str(batches)), []).append(name)
    return list(found.values())


def test_64_shards_come_to_one_pass_for_every_measure(tmp_path):
    """Of texts there are more batches than shards, of trees and code fewer: most shards have nothing."""
    taken = []
    for names in groups():
        made, (_, model, batches) = [measure(name)[0] for name in names], measure(names[0])
        batches = each_alone(batch([2 + number % 3 for number in range(66)])) if batches is TEXTS else list(batches)
        wanted = b.accumulate(model, batches, *(make() for make in made))
        folder = tmp_path / names[0]
        for number in range(64):
            share = b.shard_batches(batches, (number, 64))
            b.accumulate(model, share, *(make() for make in made), shard=(number, 64), save=folder)
        for name, one, merged in zip(names, wanted, b.merge_shards(folder, *(make() for make in made)), strict=True):
            assert merged.allclose(one, atol=1e-12), name
            assert merged.n_examples == one.n_examples
        taken += names
    assert sorted(taken) == NAMES


def test_the_order_does_not_matter_to_the_last_bit(tmp_path):
    model, found = BY_NAME["gpt2"].build(), []
    for order in ([0, 1, 2], [2, 0, 1]):
        folder = tmp_path / str(order)
        for number in order:
            share = b.shard_batches(TEXTS, (number, 3))
            b.accumulate(
                model, share, b.EntropyAccumulator(), b.ImportanceAccumulator(), shard=(number, 3), save=folder
            )
        found.append(b.merge_shards(folder))
    for one, other in zip(*found, strict=True):
        assert one == other


def measured(folder, shards=2, model=None, make=b.EntropyAccumulator, batches=TEXTS):
    model = model or BY_NAME["bert"].build()
    for number in range(shards):
        b.accumulate(model, b.shard_batches(batches, (number, shards)), make(), shard=(number, shards), save=folder)
    return model


def test_measures_are_made_from_the_files(tmp_path):
    model = BY_NAME["bert"].build()
    every = [b.EntropyAccumulator(), b.PatternsAccumulator(tokens={"low": [3, 4]})]
    wanted = b.accumulate(model, TEXTS, *every)
    b.accumulate(model, TEXTS, *every, shard=(0, 1), save=tmp_path)
    for merged, one in zip(b.merge_shards(tmp_path), wanted, strict=True):
        assert merged.allclose(one, atol=1e-12)


def test_a_measure_with_a_function_must_be_passed_again(tmp_path):
    make = lambda: b.ScoreAccumulator(length)  # noqa: E731
    model = measured(tmp_path, make=make)
    with pytest.raises(DataError, match=r"arguments that a file cannot hold.*merge_shards\(folder, ScoreAccumulator"):
        b.merge_shards(tmp_path)
    assert b.merge_shards(tmp_path, make())[0].value == b.score(model, TEXTS, metric=length).value


def test_a_shard_that_is_there_is_not_measured_again(tmp_path):
    model = measured(tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    (first,) = b.merge_shards(tmp_path)
    calls = []
    hook = model.register_forward_hook(lambda *_: calls.append(1))
    (found,) = b.accumulate(model, b.shard_batches(TEXTS, (1, 2)), b.EntropyAccumulator(), shard=(1, 2), save=tmp_path)
    hook.remove()
    assert not calls
    assert found == b.attention_entropy(model, list(b.shard_batches(TEXTS, (1, 2))))
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    assert b.merge_shards(tmp_path)[0] == first


def test_batches_are_shared_and_none_comes_twice():
    for make in (list, iter):
        shares = [list(b.shard_batches(make(range(11)), (k, 4))) for k in range(4)]
        assert sorted(one for share in shares for one in share) == list(range(11))
    share = b.shard_batches([1, 2, 3], (0, 2))
    assert (list(share), list(share), len(share)) == ([1, 3], [1, 3], 2)
    with pytest.raises(TypeError, match="no length"):
        len(b.shard_batches(Endless(), (0, 2)))


class Endless:
    def __iter__(self):
        return iter(int, 1)


@pytest.mark.parametrize("shard", [(2, 2), (-1, 2), (0, 0), (0.0, 1), (True, 2), "01", 3, (1,), None])
def test_shards_that_are_none(shard, tmp_path):
    model = BY_NAME["bert"].build()
    with pytest.raises(DataError, match="shard"):
        b.accumulate(model, TEXTS, b.EntropyAccumulator(), shard=shard, save=tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(DataError, match="belong together"):
        b.accumulate(model, TEXTS, b.EntropyAccumulator(), shard=(0, 1))


def pruned():
    model = BY_NAME["bert"].build()
    b.prune_heads(model, {0: [1]})
    return model


def other_weights():
    model = BY_NAME["bert"].build()
    with torch.no_grad():
        model.bert.encoder.layer[1].output.dense.weight[-1, -1] += 1e-3
    return model


OTHER_RUNS = {
    "weights": (other_weights, b.EntropyAccumulator, "other model"),
    "pruned": (pruned, b.EntropyAccumulator, "other model"),
    "measure": (BY_NAME["bert"].build, b.MeansAccumulator, "other measures, settings or code"),
    "settings": (BY_NAME["bert"].build, lambda: b.PatternsAccumulator(tokens={"a": [3]}), "other measures, settings or code"),
}  # fmt: skip


@pytest.mark.parametrize("run", OTHER_RUNS)
def test_files_of_another_run_are_refused(run, tmp_path):
    build, make, message = OTHER_RUNS[run]
    first = (lambda: b.PatternsAccumulator(tokens={"a": [4]})) if run == "settings" else b.EntropyAccumulator
    measured(tmp_path, make=first)
    with pytest.raises(DataError, match=message):  # the same shard again
        b.accumulate(build(), b.shard_batches(TEXTS, (0, 2)), make(), shard=(0, 2), save=tmp_path)
    measured(tmp_path / "other", model=build(), make=make)
    os.replace(tmp_path / "other" / "00001-of-00002.safetensors", tmp_path / "00001-of-00002.safetensors")
    with pytest.raises(DataError, match=message):
        b.merge_shards(tmp_path)
    with pytest.raises(DataError, match=message):
        b.merge_shards(tmp_path, first())


def test_a_model_that_was_not_measured_is_refused(tmp_path):
    model = measured(tmp_path)
    assert b.merge_shards(tmp_path, model=model)
    with pytest.raises(DataError, match="other model than the model and the accumulators that were passed"):
        b.merge_shards(tmp_path, model=other_weights())
    with pytest.raises(DataError, match=r"other measures, settings or code \(such as that of another version of"):
        b.merge_shards(tmp_path, b.MeansAccumulator())


def test_a_shard_that_is_missing_or_of_another_number(tmp_path):
    with pytest.raises(DataError, match="no shards in"):
        b.merge_shards(tmp_path)
    measured(tmp_path, shards=4)
    (tmp_path / "00002-of-00004.safetensors").unlink()
    with pytest.raises(DataError, match="1 of 4 shards are missing: 2. Measure"):
        b.merge_shards(tmp_path)
    measured(tmp_path, shards=1)
    with pytest.raises(DataError, match="shards of 1 and of 4: they are of several runs"):
        b.merge_shards(tmp_path)


def test_the_same_data_twice_and_other_data(tmp_path):
    model = measured(tmp_path)
    with pytest.raises(DataError, match="is there already, of other data"):
        b.accumulate(model, b.shard_batches(TEXTS, (0, 2)), b.EntropyAccumulator(), shard=(1, 2), save=tmp_path)
    for number in range(2):
        b.accumulate(model, TEXTS, b.EntropyAccumulator(), shard=(number, 2), save=tmp_path / "twice")
    with pytest.raises(DataError, match="00000-of-00002.safetensors and 00001-of-00002.safetensors hold the same data"):
        b.merge_shards(tmp_path / "twice")


def test_damaged_and_foreign_files(tmp_path):
    measured(tmp_path)
    path = tmp_path / "00001-of-00002.safetensors"
    whole = path.read_bytes()
    for broken in (b"", b"no file of sums", whole[:-9], whole[:-1] + bytes([whole[-1] ^ 1])):
        path.write_bytes(broken)
        with pytest.raises(DataError, match=r"00001-of-00002.safetensors is (damaged|no file of sums)"):
            b.merge_shards(tmp_path)
    save_file({"x": torch.ones(2)}, str(path))
    with pytest.raises(DataError, match="damaged"):
        b.merge_shards(tmp_path)
    path.write_bytes(whole)
    about, tensors = read_tensors(path)
    tensors["0.queries"] += 1
    save_file(tensors, str(path), metadata=about)
    with pytest.raises(DataError, match="does not hold what was written"):
        b.merge_shards(tmp_path)


@pytest.mark.parametrize("said", ["{}", "[]", "3", '{"shard": [1, 2]}', None])
def test_a_file_that_does_not_say_what_it_is(said, tmp_path):
    measured(tmp_path)
    path = tmp_path / "00001-of-00002.safetensors"
    about, tensors = read_tensors(path)
    said = json.dumps(json.loads(about["sums"]) | {"shard": [2, 2]}) if said is None else said
    write_tensors(path, tensors, {"sums": said}, "content", said)
    with pytest.raises(DataError, match="does not say what it holds the sums of: measure this shard again"):
        b.merge_shards(tmp_path)


def test_an_error_leaves_no_file(tmp_path):
    model = BY_NAME["bert"].build()
    bad = {"input_ids": torch.tensor([[5, 10**6]])}
    with pytest.raises(BertologyError):
        b.accumulate(model, [TEXTS[0], bad], b.EntropyAccumulator(), shard=(0, 2), save=tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        b.accumulate(model, TEXTS, b.EntropyAccumulator(), shard=(0, 1), save=tmp_path / "file")


@pytest.mark.slow
def test_a_job_array_of_processes(tmp_path):
    """Each job is a process of its own, as on a cluster, where nothing but the folder is shared."""
    code = (
        "import sys, torch, bertology as b; sys.path.insert(0, sys.argv[3])\n"
        "from helpers.zoo import BY_NAME, batch, each_alone\n"
        "texts, k = each_alone(batch((7, 4, 5, 2, 6))), int(sys.argv[1])\n"
        "b.accumulate(BY_NAME['bert'].build(), b.shard_batches(texts, (k, 2)), b.ImportanceAccumulator(),"
        " shard=(k, 2), save=sys.argv[2])\n"
    )
    tests = os.path.dirname(os.path.dirname(__file__))
    jobs = [
        subprocess.Popen([sys.executable, "-c", code, str(number), str(tmp_path), tests])
        for number in (1, 0, 0)  # one was started twice
    ]
    assert [job.wait(timeout=300) for job in jobs] == [0, 0, 0]
    (merged,) = b.merge_shards(tmp_path)
    assert merged.allclose(b.head_importance(BY_NAME["bert"].build(), TEXTS), atol=1e-12)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"0000{k}-of-00002.safetensors" for k in range(2)]


def own(name, batches):
    """A measure whose names are those of its own part of the data."""
    if name == "DependencyAccumulator":
        found = {relation for batch in batches for one in batch[ANNOTATIONS] for relation in one.source.relations}
        return syntax.DependencyAccumulator(sorted(found))
    announced = [one for batch in batches for one in batch[ANNOTATIONS]]
    if name == "TypesAccumulator":
        return KINDS[name](sorted({leaf for one in announced for leaf in one.tree.types}))
    return KINDS[name](announced)


NAMED = ("DependencyAccumulator", "TypesAccumulator", "CatAccumulator", "RelationAccumulator", "PositionAccumulator")


@pytest.mark.parametrize("name", NAMED)
def test_names_of_each_shard_are_merged_by_name(name, tmp_path):
    make, model, batches = measure(name)
    (wanted,) = b.accumulate(model, batches, make())
    shares = [list(b.shard_batches(batches, (number, 3))) for number in range(3)]
    shares = [share for share in shares if share]
    assert len({str(own(name, share).names()) for share in shares}) > 1
    merged = []
    for order in (list(range(len(shares))), list(reversed(range(len(shares))))):
        folder = tmp_path / str(order)
        for number in order:
            b.accumulate(model, shares[number], own(name, shares[number]), shard=(number, len(shares)), save=folder)
        merged.append(b.merge_shards(folder, own(name, shares[0]))[0])
    assert merged[0] == merged[1]
    if name in ("CatAccumulator", "RelationAccumulator"):  # examples follow one another
        assert sorted(merged[0].names) == sorted(wanted.names)
        places = torch.tensor([merged[0].names.index(one) for one in wanted.names])
        for field, x in vars(wanted).items():
            if isinstance(x, torch.Tensor) and x.dim() and x.shape[-1] == len(wanted.names):
                torch.testing.assert_close(
                    getattr(merged[0], field).index_select(x.dim() - 1, places), x, equal_nan=True
                )
    else:
        assert merged[0].allclose(wanted, atol=1e-12)


def test_examples_that_may_be_of_several_shards_are_refused(tmp_path):
    model = BY_NAME["bert"].build()
    for number in (0, 1):
        kind = KINDS["RelationAccumulator"]([one for batch in CODE[number : number + 2] for one in batch[ANNOTATIONS]])
        b.accumulate(model, CODE[number : number + 1], kind, shard=(number, 2), save=tmp_path)
    with pytest.raises(DataError, match="is in several parts of the data, whose lists of examples differ"):
        b.merge_shards(tmp_path, KINDS["RelationAccumulator"]([]))
