"""Patches of MLPs and blocks resume a recorded pass, and are what a loop from the start gives."""

import pytest
import torch
from transformers import BertForSequenceClassification

from bertology import activation_patching, dissect, dissect_mlps, tap
from bertology.metrics import logit_difference
from bertology.tap import branches
from helpers.patching import two
from helpers.pruning import seq2seq
from helpers.zoo import BY_NAME, V4
from sweep.shrink import Tiny

EQUAL = {"rtol": 1e-12, "atol": 1e-12}
METRIC = logit_difference(1, 0)
each_part = pytest.mark.parametrize("parts", ["mlps", "blocks"])
# Positions that run at once: one copy, two or three, and all.
each_size = pytest.mark.parametrize("positions", [1, 48, 10_000])


def opened(model, parts, call, how):
    """A tap that calls `call((stack, layer), x)`."""
    if parts == "mlps":
        return tap(model, "mlp", **{how: lambda site, x: call((site.stack, site.row), x)})
    return tap(model, "block", **{how: lambda stack, layer, x: call((stack, layer), x)})


def loop(model, parts, clean, corrupted, metric, places=None):
    """[place, example]: the metric, by a pass from the start for each place, with what is there in the clean run."""
    theirs = {}
    with torch.no_grad(), opened(model, parts, lambda at, x: theirs.update({at: x.clone()}), "read"):
        model(**clean)
    found = []
    for place in theirs:

        def put_in(at, x, place=place):
            some = slice(None) if places is None else places
            return x.clone().index_copy(1, torch.arange(x.shape[1])[some], theirs[place][:, some]) if at == place else x

        with torch.no_grad(), opened(model, parts, put_in, "edit"):
            found.append(metric(model(**corrupted), corrupted))
    return torch.stack(found).double()


def of_outputs(outputs, inputs):
    """[batch]: a number of whatever a model returns."""
    found = next(x for x in outputs.values() if isinstance(x, torch.Tensor) and x.is_floating_point() and x.dim())
    return found.flatten(1).double().sin().sum(1)


@pytest.fixture
def ways(monkeypatch, positions):
    """{row: how the passes of that layer started}, with so many positions at once."""
    found, run = {}, branches.Branches._run
    monkeypatch.setattr(branches, "POSITIONS_ON_CPU", positions)

    def noting(self, record, batch, row, gates, way):
        found[row] = way.start, len(gates)
        return run(self, record, batch, row, gates, way)

    monkeypatch.setattr(branches.Branches, "_run", noting)
    return found


# oracle: the loop over parts
@each_part
@each_size
@pytest.mark.parametrize("kind", ["classifier", "lm"])
def test_the_zoo_resumes_and_equals_the_loop(family, parts, kind, positions, ways):
    model, both = family.build(kind), two()
    found = activation_patching(model, *both, metric=of_outputs, parts=parts)
    torch.testing.assert_close(found.patched, loop(model, parts, *both, of_outputs), **EQUAL)
    if positions == 1:
        resumed = {row: way for row, (way, _) in ways.items()}
        assert resumed == ({0: "copies", 1: "block"} if parts == "mlps" else {0: "copies", 1: "block", 2: "block"})
    elif positions == 10_000:
        assert ways == {0: ("copies", 2 if parts == "mlps" else 3)}


@each_part
@each_size
def test_by_token(parts, positions, ways):
    model, both = BY_NAME["gpt2"].build("lm"), two((5, 5))
    found = activation_patching(model, *both, metric=of_outputs, parts=parts, by_token=True)
    ends = found.corrupted.mean(), found.clean.mean()
    for token in range(5):
        expected = loop(model, parts, *both, of_outputs, [token]).mean(1)
        torch.testing.assert_close(found.token_effect[:, token], (expected - ends[0]) / (ends[1] - ends[0]), **EQUAL)


@each_part
@pytest.mark.parametrize("positions", [1, 60])
@pytest.mark.parametrize("side", ["left", "right"])
def test_several_batches_with_padding_on_either_side(parts, side, positions, ways):
    model = BY_NAME["gpt2"].build("lm")
    pairs = [two((6, 4, 5), side), two((5, 5), side), two((4, 6), side)]
    for batch in (batch for pair in pairs for batch in pair):
        batch["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp_min(0)
    clean, corrupted = zip(*pairs, strict=True)
    metric = logit_difference(9, 8, position=-1)
    found = activation_patching(model, list(clean), list(corrupted), metric=metric, parts=parts)
    alone = [activation_patching(model, *pair, metric=metric, parts=parts).patched for pair in pairs]
    torch.testing.assert_close(found.patched, torch.cat(alone, 1), **EQUAL)

    def last(outputs, inputs):
        places = torch.arange(1, inputs["attention_mask"].shape[1] + 1)
        at = (inputs["attention_mask"] * places).argmax(1)
        logits = outputs.logits[torch.arange(len(at)), at]
        return logits[:, 9] - logits[:, 8]

    expected = [loop(model, parts, *pair, last) for pair in pairs]
    torch.testing.assert_close(found.patched, torch.cat(expected, 1), **EQUAL)


@each_part
@each_size
@pytest.mark.parametrize("name", ["bart", "t5"])
def test_encoder_decoders(parts, name, positions, ways):
    model, (clean, corrupted) = seq2seq(name), two()
    decoded = torch.tensor([[4, 5, 6], [7, 8, 9], [8, 9, 3]])
    clean, corrupted = ({**batch, "decoder_input_ids": decoded} for batch in (clean, corrupted))
    found = activation_patching(model, clean, corrupted, metric=of_outputs, parts=parts)
    torch.testing.assert_close(found.patched, loop(model, parts, clean, corrupted, of_outputs), **EQUAL)
    starts = [way for way, _ in ways.values()]
    assert positions > 1 or starts.count("block") == len(starts) - 1 > 2


@each_part
@pytest.mark.parametrize("positions", [1])
@pytest.mark.skipif(V4, reason="these are the architectures of transformers 5")
@pytest.mark.parametrize("model_type", ["longformer", "xlnet", "deberta-v2", "zamba2", "modernbert", "opt", "falcon"])
def test_odd_models_equal_the_loop(parts, model_type, positions, ways):
    tiny = Tiny(model_type)
    other = {**tiny.batch, "input_ids": tiny.batch["input_ids"].flip(1)}
    found = activation_patching(tiny.model, other, tiny.batch, metric=of_outputs, parts=parts)
    names = found.labels
    rows = loop(tiny.model, parts, other, tiny.batch, of_outputs)
    if parts == "mlps":
        rows = rows[: len(dissect_mlps(tiny.model).sites)]
    assert len(names) == len(rows)
    torch.testing.assert_close(found.patched, rows, rtol=1e-4, atol=1e-5)


@each_part
@pytest.mark.parametrize("positions", [1, 48])
def test_what_goes_by_an_attribute_is_not_lost(parts, positions, ways):
    """Block 1 stores a state on the model, and block 2 adds a part of it."""
    model, both = BY_NAME["bert"].build(), two()
    first, second = dissect(model).stacks[0].blocks
    first.output.dense.register_forward_hook(lambda m, args, x: setattr(model, "left", x))
    second.output.LayerNorm.register_forward_hook(lambda m, args, x: x + 0.5 * model.left.flip(1))
    found = activation_patching(model, *both, metric=of_outputs, parts=parts)
    torch.testing.assert_close(found.patched, loop(model, parts, *both, of_outputs), **EQUAL)
    starts = {row: way for row, (way, _) in ways.items()}
    assert starts.get(1) != "block"


@each_part
@pytest.mark.parametrize("positions", [48])
def test_examples_that_see_each_other_run_alone(parts, positions, ways):
    """Copies of a batch would change what its examples have in common."""
    model, both = BY_NAME["bert"].build(), two()
    model.bert.encoder.layer[1].output.dense.register_forward_hook(lambda m, args, x: x + x.mean(0))
    found = activation_patching(model, *both, metric=of_outputs, parts=parts)
    torch.testing.assert_close(found.patched, loop(model, parts, *both, of_outputs), **EQUAL)


@each_part
@pytest.mark.parametrize("by_token", [False, True])
@pytest.mark.parametrize("positions", [48, 10_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_copies_that_see_each_other_a_little_run_alone(parts, by_token, positions, dtype, ways):
    """Early layers change what a model of small weights returns by little more than rounding."""
    torch.manual_seed(0)
    model = BertForSequenceClassification(BY_NAME["bert"].config()).to(dtype).eval()
    model.bert.pooler.register_forward_hook(lambda m, args, x: x + x.mean(0))
    both, rounding = two((5, 5)), {"rtol": 1e-3, "atol": 1e-3}
    found = activation_patching(model, *both, metric=of_outputs, parts=parts, by_token=by_token)
    ends = found.corrupted.mean(), found.clean.mean()
    for token in range(5) if by_token else [None]:
        expected = loop(model, parts, *both, of_outputs, None if token is None else [token]).mean(1)
        values = found.effect if token is None else found.token_effect[:, token]
        torch.testing.assert_close(values, (expected - ends[0]) / (ends[1] - ends[0]), **rounding)


@each_part
@pytest.mark.parametrize("positions", [10_000])
def test_first_examples_that_are_the_same_in_both_runs_prove_nothing(parts, positions, ways):
    model, (clean, corrupted) = BY_NAME["bert"].build(), two((5, 5, 5))
    model.bert.pooler.register_forward_hook(lambda m, args, x: x + x.mean(0))
    corrupted["input_ids"][:2] = clean["input_ids"][:2]
    found = activation_patching(model, clean, corrupted, metric=of_outputs, parts=parts)
    torch.testing.assert_close(found.patched, loop(model, parts, clean, corrupted, of_outputs), **EQUAL)
