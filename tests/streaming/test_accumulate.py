import multiprocessing
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch.utils.data import DataLoader, IterableDataset

from bertology import (
    Accumulator,
    DistancesAccumulator,
    EntropyAccumulator,
    GradientsAccumulator,
    ImportanceAccumulator,
    PatternsAccumulator,
    RepeatsAccumulator,
    Result,
    ScoreAccumulator,
    accumulate,
    attention_entropy,
    dissect,
    head_importance,
    score,
    stat,
)
from bertology.errors import DataError
from bertology.streaming.checkpoint import Checkpoint
from helpers.processes import one_process
from helpers.zoo import BY_NAME, batch, each_alone

KINDS = [
    ImportanceAccumulator,
    lambda: ImportanceAccumulator(granularity="token"),
    EntropyAccumulator,
    lambda: ScoreAccumulator("accuracy"),
    lambda: EntropyAccumulator(average="example"),
    lambda: PatternsAccumulator(tokens={"low": list(range(12))}, average="example"),
    lambda: GradientsAccumulator({"low": list(range(12))}),
    RepeatsAccumulator,
    lambda: DistancesAccumulator(0.01),
]


def tensors(result):
    return {name: x for name, x in vars(result).items() if isinstance(x, torch.Tensor | float | int)}


def check_same(a, b):
    for name, x in tensors(a).items():
        torch.testing.assert_close(x, tensors(b)[name])


@settings(max_examples=10)
@given(st.integers(0, 5), st.sampled_from(range(len(KINDS))))
def test_merging_any_split_is_the_whole(cut, kind):
    model, examples = BY_NAME["bert"].build(), each_alone(batch((7, 4, 5, 2, 6)))
    parts = []
    for some in (examples[:cut], examples[cut:]):
        part = KINDS[kind]().zero(dissect(model))
        for one in some:
            with torch.set_grad_enabled(part.needs_gradient), part.watch(one):
                part.update(one, model(**one))
        parts.append(part)
    (whole,) = accumulate(model, examples, KINDS[kind]())
    merged = parts[0].merge(parts[1].state())
    check_same(merged.compute(), whole)


class Stream(IterableDataset):
    def __init__(self, batch):
        self.batch = batch

    def __iter__(self):
        return ({name: x[i] for name, x in self.batch.items()} for i in range(len(self.batch["input_ids"])))


def test_a_loader_of_a_stream_without_a_length():
    model, whole = BY_NAME["bert"].build(), batch((5, 5, 5))
    loader = DataLoader(Stream(whole), batch_size=2)
    check_same(head_importance(model, loader), head_importance(model, whole))
    check_same(attention_entropy(model, loader, progress="stream"), attention_entropy(model, whole))


def test_several_measures_in_one_pass_are_each_alone():
    model, batches = BY_NAME["gpt2"].build(), [batch(), batch((3, 6))]
    together = accumulate(
        model,
        batches,
        ImportanceAccumulator(),
        ImportanceAccumulator(granularity="token"),
        EntropyAccumulator(),
        ScoreAccumulator("accuracy"),
    )
    apart = (
        head_importance(model, batches),
        head_importance(model, batches, granularity="token"),
        attention_entropy(model, batches),
        score(model, batches, metric="accuracy"),
    )
    for a, b in zip(together, apart, strict=True):
        check_same(a, b)


def test_an_accumulator_of_ones_own():
    @dataclass(frozen=True, eq=False, repr=False)
    class Tokens(Result):
        count: int
        labels: tuple[str, ...] = ()

    class CountTokens(Accumulator):
        total = stat("", torch.int64)

        def update(self, batch, outputs):
            self.total += batch["attention_mask"].sum()

        def compute(self):
            return Tokens(int(self.total))

    (tokens,) = accumulate(BY_NAME["bert"].build(), [batch(), batch()], CountTokens())
    assert tokens.count == 32


def test_progress_is_shown(capsys):
    attention_entropy(BY_NAME["bert"].build(), [batch()], progress="entropy of it all")
    assert "entropy of it all: 100%" in capsys.readouterr().err
    attention_entropy(BY_NAME["bert"].build(), [batch()], progress=True)
    assert capsys.readouterr().err.strip().startswith("0%")
    for none in (None, False):
        attention_entropy(BY_NAME["bert"].build(), [batch()], progress=none)
        assert capsys.readouterr().err == ""
    with pytest.raises(DataError, match="progress must be True, False or the title of a progress bar, got 3"):
        attention_entropy(BY_NAME["bert"].build(), [batch()], progress=3)


def cut_off(batches, after):
    for number, one in enumerate(batches):
        if number == after:
            raise KeyboardInterrupt
        yield one


@pytest.mark.parametrize("kind", KINDS)
def test_a_pass_that_was_cut_off_goes_on(tmp_path, monkeypatch, kind):
    monkeypatch.setattr("bertology.streaming.checkpoint.EVERY_SECONDS", 0)
    model, batches, file = BY_NAME["bert"].build(), each_alone(batch((7, 4, 5, 2))), tmp_path / "sums"
    with pytest.raises(KeyboardInterrupt):
        accumulate(model, cut_off(batches, 3), kind(), checkpoint=file)
    assert file.is_file()
    runs = []
    model.register_forward_hook(lambda *_: runs.append(1))
    (result,) = accumulate(model, batches, kind(), checkpoint=file)
    assert len(runs) == 1
    check_same(result, accumulate(model, batches, kind())[0])
    assert not file.exists()


def test_a_checkpoint_of_something_else_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("bertology.streaming.checkpoint.EVERY_SECONDS", 0)
    model, batches, file = BY_NAME["bert"].build(), each_alone(batch((7, 4, 5, 2))), tmp_path / "sums"
    with pytest.raises(KeyboardInterrupt):
        accumulate(model, cut_off(batches, 3), EntropyAccumulator(), checkpoint=file)
    with pytest.raises(DataError, match="is of other data"):
        accumulate(model, each_alone(batch((7, 4, 5, 2), seed=9)), EntropyAccumulator(), checkpoint=file)
    with pytest.raises(DataError, match="is of another model or other measures"):
        accumulate(BY_NAME["bert"].build(seed=1), batches, EntropyAccumulator(), checkpoint=file)
    with pytest.raises(DataError, match="is of another model or other measures"):
        accumulate(model, batches, ImportanceAccumulator(), checkpoint=file)
    with pytest.raises(DataError, match="holds 3 batches, the data has only 2"):
        accumulate(model, batches[:2], EntropyAccumulator(), checkpoint=file)
    save_file({"0.total": torch.ones(2, 4)}, file, metadata={"start": "x", "batches": "3", "digest": "y"})
    with pytest.raises(
        DataError, match="other measures, or was written by another version of bertology: remove it or name another"
    ):
        accumulate(model, batches, EntropyAccumulator(), checkpoint=file)  # as earlier versions wrote them
    file.write_bytes(b"nothing")
    with pytest.raises(DataError, match="cannot be read .*: remove it or name another"):
        accumulate(model, batches, EntropyAccumulator(), checkpoint=file)
    with pytest.raises(DataError, match="checkpoint must be a file in a folder that exists"):
        accumulate(model, batches, EntropyAccumulator(), checkpoint=tmp_path / "no" / "where")


def test_a_checkpoint_of_other_settings_is_refused(tmp_path, monkeypatch):
    class Scaled(EntropyAccumulator):
        def __init__(self, scale):
            super().__init__()
            self.scale = scale

        def settings(self):
            return f"{super().settings()}{self.scale}"

    monkeypatch.setattr("bertology.streaming.checkpoint.EVERY_SECONDS", 0)
    model, batches, file = BY_NAME["bert"].build(), [batch(), batch((3, 6))], tmp_path / "sums"
    assert EntropyAccumulator().settings() == "query"
    with pytest.raises(KeyboardInterrupt):
        accumulate(model, cut_off(batches, 1), Scaled(1), checkpoint=file)
    with pytest.raises(DataError, match="is of another model or other measures"):
        accumulate(model, batches, Scaled(2), checkpoint=file)
    accumulate(model, batches, Scaled(1), checkpoint=file)
    assert not file.exists()


def interrupted(model, batches, file, *accumulators, monkeypatch):
    monkeypatch.setattr("bertology.streaming.checkpoint.EVERY_SECONDS", 0)
    with pytest.raises(KeyboardInterrupt):
        accumulate(model, cut_off(batches, 2), *accumulators, checkpoint=file)


def test_a_checkpoint_with_one_changed_element_or_number_is_refused(tmp_path, monkeypatch):
    model, batches, file = BY_NAME["gpt2"].build(), each_alone(batch((7, 4, 5))), tmp_path / "sums"
    interrupted(model, batches, file, ImportanceAccumulator(), monkeypatch=monkeypatch)
    with safe_open(file, "pt") as opened:
        about, sums = opened.metadata(), {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118
    changed = sums["0.absolute"].clone()
    changed[1, 2] *= 1 + 1e-12
    numbers = about["numbers"].replace('"batches": 2', '"batches": 1')
    assert numbers != about["numbers"]
    for tensors, told in [
        (sums | {"0.absolute": changed}, about),
        (sums | {"0.examples": sums["0.examples"] + 1}, about),
        ({name: x for name, x in sums.items() if name != "0.signed"}, about),
        (sums, about | {"numbers": numbers}),
        (sums, {name: x for name, x in about.items() if name != "content"}),
    ]:
        save_file(tensors, file, metadata=told)
        with pytest.raises(DataError, match=f"{file} is damaged: it does not hold what was written: remove it"):
            accumulate(model, batches, ImportanceAccumulator(), checkpoint=file)
    save_file(sums, file, metadata=about)
    (result,) = accumulate(model, batches, ImportanceAccumulator(), checkpoint=file)
    check_same(result, head_importance(model, batches))


def test_a_checkpoint_of_a_model_that_was_changed_by_hand_is_refused(tmp_path, monkeypatch):
    model, batches, file = BY_NAME["gpt2"].build(), each_alone(batch((7, 4, 5))), tmp_path / "sums"
    interrupted(model, batches, file, EntropyAccumulator(), monkeypatch=monkeypatch)
    weight = model.transformer.h[1].attn.c_proj.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight[-4:] = 0  # the last head
    with pytest.raises(DataError, match="is of another model or other measures"):
        accumulate(model, batches, EntropyAccumulator(), checkpoint=file)
    with torch.no_grad():
        weight.copy_(kept)
    model.config.scale_attn_by_inverse_layer_idx = True
    with pytest.raises(DataError, match="is of another model or other measures"):
        accumulate(model, batches, EntropyAccumulator(), checkpoint=file)
    model.config.scale_attn_by_inverse_layer_idx = False
    accumulate(model, batches, EntropyAccumulator(), checkpoint=file)


def test_a_checkpoint_of_another_loss_is_refused(tmp_path, monkeypatch):
    def loss(factor):
        return lambda outputs, batch: factor * outputs.logits.square().sum(1)

    model, batches, file = BY_NAME["bert"].build(), each_alone(batch((7, 4, 5))), tmp_path / "sums"
    interrupted(model, batches, file, ImportanceAccumulator(loss=loss(2)), monkeypatch=monkeypatch)
    with pytest.raises(DataError, match="is of another model or other measures"):
        accumulate(model, batches, ImportanceAccumulator(loss=loss(3)), checkpoint=file)
    (result,) = accumulate(model, batches, ImportanceAccumulator(loss=loss(2)), checkpoint=file)
    check_same(result, head_importance(model, batches, loss=loss(2)))
    with file.with_name("other").open("w") as opened:
        own = ImportanceAccumulator(loss=lambda outputs, batch: opened and outputs.logits.sum(1))
    with pytest.raises(DataError, match="cannot be told from others"):
        accumulate(model, batches, own, checkpoint=file)


def test_an_accumulator_is_taken_once():
    model, one = BY_NAME["bert"].build(), EntropyAccumulator()
    with pytest.raises(DataError, match="one EntropyAccumulator is passed twice"):
        accumulate(model, batch(), one, ImportanceAccumulator(), one)
    with pytest.raises(DataError, match=r"takes accumulators, got .*: call it, EntropyAccumulator\(\)"):
        accumulate(model, batch(), EntropyAccumulator)
    with pytest.raises(DataError, match="takes accumulators, got 'entropy'"):
        accumulate(model, batch(), "entropy")


class Work:
    def tensors(self):
        return {"x": torch.ones(2)}

    def numbers(self):
        return {"step": 3}


def test_checkpoints_are_written_now_and_then(tmp_path):
    saved = Checkpoint(tmp_path / "sums", "of this work", otherwise="other work")
    saved.keep(Work())
    assert not (tmp_path / "sums").exists()
    saved.write(Work())
    assert (tmp_path / "sums").exists()


@pytest.mark.slow
def test_processes_share_the_data(tmp_path):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = [context.Process(target=one_process, args=(rank, 2, str(tmp_path), queue)) for rank in range(2)]
    for worker in workers:
        worker.start()
    found = [queue.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join(timeout=60)
    model, examples = BY_NAME["bert"].build(), each_alone(batch((7, 4, 5, 2)))
    expected = head_importance(model, examples)
    for _, scores, count, accuracy in found:
        torch.testing.assert_close(torch.tensor(scores, dtype=torch.float64), expected.scores)
        assert (count, accuracy) == (4, score(model, examples, metric="accuracy").value)
