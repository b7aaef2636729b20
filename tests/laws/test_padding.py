"""Padding never counts: a batch gives what its texts give alone, whichever side is padded, or a warning says so."""

from __future__ import annotations

import sys
import warnings
from dataclasses import fields
from typing import Any

import pytest
import torch
import transformers as t
from torch import Tensor

import bertology as b
from bertology.data.batches import without_labels
from bertology.data.losses import example_losses, find_loss
from bertology.data.positions import with_positions
from bertology.measures.rollout import AttentionRollout
from bertology.metrics import logit_difference
from bertology.results.axes import axes_of
from helpers.public import public_functions, required
from helpers.zoo import BY_NAME, FAMILIES, PAD, SMALL, V4, WIDE, batch, each_alone
from laws.taps import EVERY, TWO_STACKS

OF_BATCHES = {"model", "batches"}
# Measures of batches that need more than these two; the others are found.
MEASURES = {
    "attention_patterns of classes": lambda m, x: b.attention_patterns(m, x, tokens={"low": [3, 4, 5, 6]}),
    "attention_gradients": lambda m, x: b.attention_gradients(m, x, tokens={"low": list(range(3, 20))}),
    "head_importance by token": lambda m, x: b.head_importance(m, x, granularity="token"),
    "head_ablation": lambda m, x: b.head_ablation(m, x, metric="inverse_loss"),
    "head_ablation by the mean": lambda m, x: b.head_ablation(m, x, metric="accuracy", replace="mean"),
    "sole_head_ablation": lambda m, x: b.sole_head_ablation(m, x, metric="inverse_loss"),
    "pruning_curve": lambda m, x: b.pruning_curve(m, x, metric="inverse_loss", amount=3),
    "score": lambda m, x: b.score(m, x, metric="accuracy"),
    "score by the loss": lambda m, x: b.score(m, x, metric="inverse_loss"),
    "importance_through_training": lambda m, x: b.importance_through_training([(1, m)], x),
    "accumulate": lambda m, x: b.accumulate(m, x, b.ImportanceAccumulator(), b.EntropyAccumulator())[0],
    "edge_ablation": lambda m, x: b.edge_ablation(m, x, tokens={"low": list(range(3, 20))}, by_layer=True),
    "faithfulness": lambda m, x: b.faithfulness(m, x, ["L0H1", "L1H2"], metric="inverse_loss", random_sets=2),
    "mlp_ablation": lambda m, x: b.mlp_ablation(m, x, metric="inverse_loss"),
    "block_ablation": lambda m, x: b.block_ablation(m, x, metric="inverse_loss"),
    "neuron_curve": lambda m, x: b.neuron_curve(m, x, metric="inverse_loss", amount=0.5, kinds="both"),
}
# What they give depends on which texts are in one batch: each step of a training takes one batch, and a null model
# shuffles the tokens of each batch.
BY_BATCH = {
    "fit_gates": lambda m, x: b.fit_gates(m, x, steps=4),
    "fit_gates, soft": lambda m, x: b.fit_gates(m, x, steps=2, method="soft"),
    "layer_similarity": lambda m, x: b.layer_similarity(m, x),
}
MEASURES |= {
    name: function
    for _, name, function in public_functions([b])
    if required(function) == OF_BATCHES and name not in BY_BATCH
}


def largest_logits(outputs: Any, batch: Any) -> Tensor:
    """[batch]: the sum over the real tokens."""
    return (outputs.logits.amax(-1) * batch["attention_mask"]).sum(1)


EVERYTHING = {"hidden": True, "maps": True, "heads": True}
CAPTURES = {
    "hidden_states": lambda m, x: b.hidden_states(m, x),
    "attention_maps": lambda m, x: b.attention_maps(m, x),
    "attention_maps by norms": lambda m, x: b.attention_maps(m, x, weighting="norm"),
    "head_outputs": lambda m, x: b.head_outputs(m, x, loss="auto"),
    "capture of hidden states": lambda m, x: b.capture(m, x, **EVERYTHING).hidden,
    "capture of maps": lambda m, x: b.capture(m, x, **EVERYTHING).maps,
    "capture of heads": lambda m, x: b.capture(m, x, **EVERYTHING, loss="auto").heads,
    "attention_rollout": lambda m, x: b.attention_rollout(m, x),
    "attention_rollout by norms": lambda m, x: b.attention_rollout(m, x, weighting="norm"),
    "attention_rollout by blocks": lambda m, x: b.attention_rollout(m, x, weighting="block"),
    "attention_relevance": lambda m, x: b.attention_relevance(m, x, of=largest_logits),
    "neuron_activations": lambda m, x: b.neuron_activations(m, x),
}
# They give numbers for each text.
OF_TEXTS = {
    "logit_lens": lambda m, x: b.logit_lens(m, x),
    "head_attribution": lambda m, x: b.head_attribution(m, x),
}
# They generate: `test_prompts_that_are_generated_from`.
GENERATE = {"capture_generation"}
# They change the model, time it, or look at their inputs in another way.
OTHERS = {"prune_heads", "save_pruned", "load_pruned", "compare_efficiency", "check_anatomy", "shard_batches"}


def test_every_measure_of_batches_is_here():
    """This test fails where a new function was not added."""
    tested = [*MEASURES, *BY_BATCH, *CAPTURES, *OF_TEXTS, *GENERATE]
    there = {name.split(" ")[0].strip(",") for name in tested} | OTHERS
    takes = {name for _, name, f in public_functions([b]) if {"batches", "inputs"} & set(required(f))}
    assert takes - there == set()


# DistilBERT of transformers 4 takes no positions.
TAKES_POSITIONS = [name for name in BY_NAME if not (V4 and name == "distilbert")]


@pytest.mark.skipif(not V4, reason="DistilBERT takes positions in transformers 5")
def test_a_model_that_takes_no_positions_says_so():
    model = BY_NAME["distilbert"].build("lm")
    for measure in (b.attention_entropy, b.attention_maps):
        with pytest.warns(UserWarning, match="padding before the text changes the hidden states of DistilBert"):
            measure(model, texts("left"))


def texts(side: str, *, causal: bool = True) -> dict[str, Tensor]:
    """Three texts with labels for each of their tokens; some of padding have labels, too."""
    given = batch((7, 4, 5), labels=False, side=side)
    given["labels"] = given["input_ids"].clone()
    given["labels"][1] = given["labels"][1].masked_fill(given["attention_mask"][1] == 0, -100)
    return given


def same(found: Any, expected: Any) -> None:
    """Whether two results are equal up to rounding; what counts texts by their batches is not compared."""
    for field in fields(expected):
        x, y = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(y, Tensor) and y.is_floating_point():
            torch.testing.assert_close(x.double(), y.double(), rtol=1e-5, atol=1e-6, equal_nan=True)
        elif isinstance(y, Tensor):
            assert torch.equal(x, y), field.name
        elif isinstance(y, float):
            assert x == pytest.approx(y, rel=1e-6), field.name


def check(model: Any, measure: Any, left: Any, right: Any, alone: Any) -> None:
    expected = measure(model, alone)
    same(measure(model, right), expected)
    same(measure(model, [left]), expected)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("name", TAKES_POSITIONS)
def test_left_is_right_is_alone(name, measure):
    model = BY_NAME[name].build("lm")
    check(model, MEASURES[measure], texts("left"), texts("right"), each_alone(texts("right")))


def each_row(many: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """The texts of a batch one by one, with their padding."""
    return [{name: x[row : row + 1] for name, x in many.items()} for row in range(len(many["input_ids"]))]


@pytest.mark.parametrize("measure", BY_BATCH)
@pytest.mark.parametrize("name", TAKES_POSITIONS)
def test_left_is_right_is_alone_in_the_same_batches(name, measure):
    model, run = BY_NAME[name].build("lm"), BY_BATCH[measure]
    expected = run(model, each_alone(texts("right")))
    for side in ("left", "right"):
        same(run(model, each_row(texts(side))), expected)
    same(run(model, texts("left")), run(model, texts("right")))


@pytest.mark.parametrize("name", [family.name for family in FAMILIES if family.causal])
@pytest.mark.parametrize("measure", ["head_importance", "score", "head_ablation"])
def test_of_texts_with_one_label_each(name, measure):
    """A causal classifier reads the last token, which it finds on either side."""
    model = BY_NAME[name].build()
    check(model, MEASURES[measure], batch(side="left"), batch(), each_alone(batch()))


@pytest.mark.parametrize("name", [name for name in TAKES_POSITIONS if not BY_NAME[name].causal])
def test_a_classifier_that_reads_the_first_position_says_so(name):
    model = BY_NAME[name].build()
    check(model, MEASURES["head_importance"], batch(), batch(), each_alone(batch()))
    for measure in ("head_importance", "score", "head_ablation", "attention_gradients"):
        with pytest.warns(
            UserWarning, match=r"padding changes what .*Classification computes for example 1 of a batch"
        ):
            MEASURES[measure](model, batch(side="left"))
    # Its maps do not depend on what is read of the last layer.
    check(model, MEASURES["attention_entropy"], batch(side="left"), batch(), each_alone(batch()))


def of_label(outputs, batch):
    """A custom loss: minus the logit of the label."""
    return -outputs.logits.gather(1, batch["labels"][:, None])[:, 0]


def others(inputs):
    """Texts of the same lengths and padding."""
    ids = inputs["input_ids"]
    return {**inputs, "input_ids": ids.where(inputs["attention_mask"] == 0, (ids + 1) % 30 + 5)}


WITH_LOSS = {
    "head_importance": lambda model, x: b.head_importance(model, x, loss=of_label),
    "head_ablation": lambda model, x: b.head_ablation(model, x, metric="accuracy", loss=of_label),
    "head_outputs": lambda model, x: b.head_outputs(model, x, loss=of_label),
    "fit_gates": lambda model, x: b.fit_gates(model, x, loss=of_label, steps=1, seeds=[0]),
    "activation_patching": lambda model, x: b.activation_patching(model, x, others(x), metric=logit_difference(1, 0)),
}


@pytest.mark.parametrize("measure", WITH_LOSS)
def test_a_custom_loss_of_a_classifier_that_reads_padding(measure):
    """The last token of a text is found by `config.pad_token_id`: of other padding, that is the last position.

    oracle: the logits of the texts alone, and with their padding
    """
    run, inputs = WITH_LOSS[measure], batch()
    for name in ("gpt2", "llama"):
        model = BY_NAME[name].build()
        run(model, inputs)
        model.config.pad_token_id = 3
        padded = model(**without_labels(model, inputs)).logits
        alone = torch.cat([model(**without_labels(model, one)).logits for one in each_alone(inputs)])
        assert not torch.allclose(padded, alone)
        with pytest.warns(UserWarning, match=r"by config.pad_token_id, 3, and padding has other token ids here: set"):
            run(model, inputs)
    bert = BY_NAME["bert"].build()
    bert.config.pad_token_id = 3
    run(bert, inputs)  # the classifier reads the first position
    with pytest.warns(UserWarning, match=r"changes what BertForSequenceClassification computes for example 1"):
        run(bert, batch(side="left"))


@pytest.mark.parametrize("capture", CAPTURES)
@pytest.mark.parametrize("name", TAKES_POSITIONS)
def test_captures_of_tokens(name, capture):
    model = BY_NAME[name].build("lm")
    left, right = (CAPTURES[capture](model, texts(side)) for side in ("left", "right"))
    for row, one in enumerate(each_alone(texts("right"))):
        alone = CAPTURES[capture](model, one)
        for padded in (left, right):
            assert_of_tokens(padded, alone, row)


def assert_of_tokens(padded: Any, alone: Any, row: int, names: tuple[str, ...] = ("values", "gradients")) -> None:
    kept = padded.mask[row].nonzero().flatten()
    for name in names:
        if not hasattr(alone, name):
            continue
        some = getattr(padded, name)[:, row]
        if isinstance(alone, b.AttentionMaps):
            some = some[:, :, kept][..., kept]
        else:
            some = some[:, kept][..., kept] if isinstance(alone, AttentionRollout) else some[:, kept]
        torch.testing.assert_close(some, getattr(alone, name)[:, 0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("measure", OF_TEXTS)
@pytest.mark.parametrize("name", TAKES_POSITIONS)
def test_numbers_of_each_text(name, measure):
    model, run = BY_NAME[name].build("lm"), OF_TEXTS[measure]
    padded = [run(model, texts(side)) for side in ("left", "right")]
    for row, one in enumerate(each_alone(texts("right"))):
        alone = run(model, one)
        for found in padded:
            assert_of_text(found, alone, row)


def assert_of_text(padded: Any, alone: Any, row: int) -> None:
    """Whether all tensors with an axis `batch` are those of the text alone, at its real tokens."""
    for name, axes in axes_of(type(alone)).items():
        x, y = getattr(padded, name), getattr(alone, name)
        if not isinstance(y, Tensor) or "batch" not in axes.names:
            continue
        place = axes.names.index("batch")
        x, y = x.select(place, row), y.select(place, 0)
        if "token" in axes.names:
            x = x[..., padded.mask[row]]
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5, equal_nan=True, msg=lambda told, name=name: name + told)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_prompts_that_are_generated_from(name):
    """Whichever side of the prompts is padded, each goes on as it does alone."""
    model = BY_NAME[name].build("lm")
    options = {**EVERYTHING, "max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False, "pad_token_id": PAD}
    padded = [b.capture_generation(model, without_labels(model, texts(side)), **options) for side in ("left", "right")]
    for row, one in enumerate(each_alone(texts("right"))):
        alone = b.capture_generation(model, without_labels(model, one), **options)
        for found in padded:
            assert found.generated[row].tolist() == alone.generated[0].tolist()
            for kind in EVERYTHING:
                assert_of_tokens(getattr(found, kind), getattr(alone, kind), row, ("values",))


def targets(side: str) -> dict[str, Tensor]:
    labels = torch.tensor([[4, 5, 6, 7], [7, 9, -100, -100], [8, 9, 5, -100]])
    return {**batch(labels=False, side=side), "labels": labels}


def test_a_target_that_is_padded_on_the_left_says_so():
    """The decoder reads padding tokens where labels are ignored before the text."""
    model, given = EVERY["t5"].build("lm"), targets("right")
    given["labels"] = torch.tensor([[4, 5, 6, 7], [-100, -100, 7, 9], [-100, 8, 9, 5]])
    with pytest.warns(UserWarning, match="padding (before|changes)"):
        b.head_importance(model, given)


def each_target() -> list[dict[str, Tensor]]:
    labels = targets("right")["labels"]
    alone = each_alone(batch(labels=False))
    return [{**one, "labels": labels[i : i + 1, : int((labels[i] != -100).sum())]} for i, one in enumerate(alone)]


@pytest.mark.parametrize("measure", ["attention_entropy", "head_importance", "head_ablation", "score by the loss"])
@pytest.mark.parametrize("name", [family.name for family in TWO_STACKS])
def test_of_encoder_decoders(name, measure):
    model, run = EVERY[name].build("lm"), MEASURES[measure]
    if name == "t5":  # its positions are relative
        check(model, run, targets("left"), targets("right"), each_target())
        return
    same(run(model, targets("right")), run(model, each_target()))
    with pytest.warns(UserWarning, match=r"padding (before the text changes the hidden states of|changes what) Bart"):
        run(model, targets("left"))


def untrained(kind: str) -> Any:
    """A classifier as transformers makes it: its heads hardly change its loss."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    more = {"segment_means_seq_len": 8, "num_landmarks": 8} if kind == "Nystromformer" else {}
    config = getattr(t, kind + "Config")(**sizes, intermediate_size=48, max_position_embeddings=64, **more)
    return getattr(t, kind + "ForSequenceClassification")(config).eval()


@pytest.mark.parametrize("measure", ["head_importance", "attention_entropy", "head_outputs"])
@pytest.mark.parametrize("kind", ["Nystromformer", "ConvBert"])
def test_a_model_that_counts_padding_at_the_end_says_so(kind, measure):
    """A loss alone does not tell: padding changes it by less than what is allowed for rounding."""
    model, inputs = untrained(kind), batch((16, 8))
    with pytest.warns(UserWarning, match=f"padding changes the hidden states of {kind}ForSequenceClassification"):
        found = getattr(b, measure)(model, inputs)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        if measure == "head_importance":
            alone = b.head_importance(model, each_alone(inputs))
            assert (found.scores - alone.scores).abs().max() > 1e-4 * alone.scores.max()
        getattr(b, measure)(model, batch((8, 8)))
        getattr(b, measure)(untrained("Bert"), inputs)
    assert told == []


@pytest.mark.parametrize("name", ["gpt2", "bert", "roberta"])
def test_the_law_can_fail(name, monkeypatch):
    """Without positions from the mask, texts that are padded on the left are other texts."""
    model = BY_NAME[name].build("lm")
    monkeypatch.setattr("bertology.data.batches.with_positions", lambda model, batch: batch)
    expected = MEASURES["attention_entropy"](model, texts("right"))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = MEASURES["attention_entropy"](model, texts("left"))
    if name == "roberta":  # it reads its positions off the padding tokens
        assert told == []
        same(found, expected)
        return
    assert "padding before the text changes the hidden states" in str(told[0].message)
    with pytest.raises(AssertionError):
        same(found, expected)


def test_padding_between_tokens_is_passed_over():
    """Each token is predicted from the one before it, however many positions lie between them."""
    model = BY_NAME["gpt2"].build("lm")
    text, mask = torch.tensor([[5, PAD, 6, 7, PAD, PAD, 8]]), torch.tensor([[1, 0, 1, 1, 0, 0, 1]])
    # Only padding before or after a text is taken for padding: positions are derived for these alone.
    assert "position_ids" not in with_positions(model, {"input_ids": text, "attention_mask": mask})
    holes = {"input_ids": text, "attention_mask": mask, "labels": text}
    holes["position_ids"] = torch.tensor([[0, 0, 1, 2, 0, 0, 3]])
    whole = torch.tensor([[5, 6, 7, 8]])
    same(b.head_importance(model, holes), b.head_importance(model, {"input_ids": whole, "labels": whole}))
    loss = find_loss(model)
    with torch.no_grad():
        found = example_losses(loss, model(**without_labels(model, holes)), holes)
        assert found.item() == pytest.approx(model(input_ids=whole, labels=whole).loss.item(), rel=1e-6)


def test_positions_of_the_user_are_kept():
    model, left = BY_NAME["gpt2"].build("lm"), texts("left")
    own = left | {"position_ids": torch.arange(7).expand(3, -1).contiguous()}
    with pytest.raises(AssertionError):
        same(b.attention_entropy(model, own), b.attention_entropy(model, left))


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_wrappers_with_keyword_arguments(name):
    class Wrapper(torch.nn.Module):
        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, **inputs: Any) -> Any:
            return self.inner(**inputs)

    inner = BY_NAME[name].build("lm")
    same(b.head_importance(Wrapper(inner), texts("left")), b.head_importance(inner, texts("right")))


def test_a_nystromformer_whose_positions_begin_at_two():
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = t.NystromformerConfig(**sizes, intermediate_size=24, max_position_embeddings=32, segment_means_seq_len=8)
    given = with_positions(t.NystromformerForMaskedLM(config), texts("left"))
    assert given["position_ids"][1].tolist() == [2, 2, 2, 2, 3, 4, 5]
    assert with_positions(BY_NAME["roberta"].build("lm"), texts("left"))["position_ids"][1].tolist() == [
        1,
        1,
        1,
        1,
        2,
        3,
        4,
    ]


def test_results_that_depend_on_other_examples_are_not_put_down_to_padding():
    class InBatch(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(1)
            small = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4}
            self.encoder = t.BertModel(t.BertConfig(**small, intermediate_size=24))

        def forward(self, input_ids, attention_mask):
            x = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state[:, 0]
            return {"logits": x @ x.T}

    inputs = {"input_ids": torch.randint(5, 40, (3, 6)), "attention_mask": torch.ones(3, 6, dtype=torch.int64)}
    inputs["attention_mask"][1, 4:] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        b.score(InBatch().eval(), inputs | {"labels": torch.arange(3)}, metric="accuracy")


PASSES_OF_THE_CHECK = 2


class Passes:
    """How often a model runs for one capture; the hook that counts stays, as hooks that change are noticed."""

    def __init__(self, model):
        self._ran = []
        model.register_forward_pre_hook(lambda *_: self._ran.append(1))

    def __call__(self, model, inputs):
        self._ran.clear()
        b.hidden_states(model, inputs)
        return len(self._ran)


def drop_position_embeddings(model, inputs):
    model.transformer.wpe.weight.data = torch.zeros_like(model.transformer.wpe.weight)


def train_a_weight(model, inputs):
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.weight.add_(0.1)


def change_a_setting(model, inputs):
    model.config.layer_norm_epsilon = 1e-3


def replace_a_module(model, inputs):
    model.transformer.h[0].mlp = torch.nn.Identity()


def pad_with_another_token(model, inputs):
    inputs["input_ids"][inputs["attention_mask"] == 0] = 5


def lengthen(model, inputs):
    inputs.update({name: torch.cat([x[:, :1], x], 1) for name, x in inputs.items()})


def set_a_hook(model, inputs):
    model.transformer.wte.register_forward_hook(lambda *_: None)


def replace_a_forward(model, inputs):
    model.transformer.wte.forward = model.transformer.wte.forward


CHANGES = [
    set_a_hook,
    replace_a_forward,
    drop_position_embeddings,
    train_a_weight,
    change_a_setting,
    replace_a_module,
    pad_with_another_token,
    lengthen,
]


@pytest.mark.parametrize("change", CHANGES)
def test_padding_is_checked_once_for_a_model_that_is_as_it_was(change):
    model, inputs = BY_NAME["gpt2"].build("lm"), batch((7, 4, 5), labels=False, side="left")
    passes = Passes(model)
    assert passes(model, inputs) == 1 + PASSES_OF_THE_CHECK
    assert passes(model, inputs) == 1
    change(model, inputs)
    assert passes(model, inputs) == 1 + PASSES_OF_THE_CHECK


def test_padding_of_the_decoder_is_checked_besides_that_of_the_encoder():
    small = SMALL | {"intermediate_size": 24, "max_position_embeddings": 32}
    decoder = t.BertConfig(**small, is_decoder=True, add_cross_attention=True)
    config = t.EncoderDecoderConfig.from_encoder_decoder_configs(t.RobertaConfig(**small), decoder)
    model, inputs = t.EncoderDecoderModel(config).eval(), batch((7, 4), labels=False, side="left")
    whole = inputs | {f"decoder_{name}": x for name, x in batch((5, 5), labels=False).items()}
    padded = inputs | {f"decoder_{name}": x for name, x in batch((5, 3), labels=False, side="left").items()}
    b.hidden_states(model, whole)
    with pytest.warns(UserWarning, match="padding before the text changes the hidden states of EncoderDecoder"):
        b.hidden_states(model, padded)


def test_settings_that_are_tensors_are_no_trouble():
    model, inputs = BY_NAME["gpt2"].build("lm"), batch((7, 4, 5), labels=False, side="left")
    for _ in range(2):
        model.config.class_weights = torch.ones(2)
        b.hidden_states(model, inputs)


def test_padding_that_counts_is_told_each_time(monkeypatch):
    monkeypatch.setattr("bertology.data.batches.with_positions", lambda model, batch: batch)
    model, inputs = BY_NAME["gpt2"].build("lm"), batch((7, 4, 5), labels=False, side="left")
    for _ in range(2):
        with pytest.warns(UserWarning, match="padding before the text changes the hidden states"):
            b.hidden_states(model, inputs)


def test_weights_whose_changes_are_not_counted_are_checked_each_time():
    with torch.inference_mode():
        model, inputs = BY_NAME["gpt2"].build("lm"), batch((7, 4, 5), labels=False, side="left")
    passes = Passes(model)
    assert [passes(model, inputs) for _ in range(2)] == [1 + PASSES_OF_THE_CHECK] * 2


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_rounding_of_many_layers_is_not_taken_for_padding_that_counts(seed):
    """With large random weights, much of what a deep model in half precision computes is rounding."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 40, "num_attention_heads": 4}
    config = t.LlamaConfig(**sizes, vocab_size=40, initializer_range=0.2)
    model = t.LlamaForCausalLM(config).to(torch.bfloat16).eval()
    inputs = batch((17, 24), labels=False, side="left")
    padded, alone = (b.head_outputs(model, x).values[:, 0, -17:] for x in (inputs, each_alone(inputs)[0]))
    assert (padded - alone).abs().max() > 0.05 * alone.abs().max()


def test_padding_that_counts_is_told_in_half_precision(monkeypatch):
    monkeypatch.setattr("bertology.data.batches.with_positions", lambda model, batch: batch)
    model = BY_NAME["gpt2"].build("lm", n_layer=24).to(torch.bfloat16)
    with pytest.warns(UserWarning, match="padding before the text changes the hidden states"):
        b.head_outputs(model, batch((7, 4, 5), labels=False, side="left"))


@pytest.mark.filterwarnings("ignore:.*labels")
@pytest.mark.parametrize("kind", ["longformer", "led"])
def test_padding_that_a_model_adds_to_a_whole_text_does_not_count(kind):
    """The model pads each text to whole windows: 5 tokens to 8, also where the batch has no padding at all."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "attention_window": [4, 4], "pad_token_id": 1}
    if kind == "led":
        of_stacks = {"layers": 2, "attention_heads": 4, "ffn_dim": 24}
        both = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in of_stacks.items()}
        places = {"max_encoder_position_embeddings": 40, "max_decoder_position_embeddings": 40}
        model = t.LEDModel(t.LEDConfig(**sizes, **both, **places, d_model=16)).get_encoder().eval()
    else:
        config = t.LongformerConfig(**SMALL | WIDE | sizes | {"max_position_embeddings": 48})
        model = t.LongformerModel(config).eval()
    of_maps = (b.attention_entropy, b.attention_patterns, b.repeat_scores, b.head_distances)
    check_added_padding(model, torch.tensor([[5, 6, 7, 5, 6]]), 3, (*of_maps, *OF_STATES))


def test_padding_that_a_model_adds_is_no_padding_that_counts():
    """Texts that are padded on the left to whole windows: without that padding, the model pads each by itself."""
    config = t.LongformerConfig(**SMALL | WIDE | {"attention_window": [4, 4], "max_position_embeddings": 48})
    b.hidden_states(t.LongformerModel(config).eval(), batch((8, 6, 3), labels=False, side="left"))  # warns of nothing


OF_STATES = (b.head_means, b.block_influence, b.contextuality, b.layer_similarity)


@pytest.mark.parametrize("kind", ["big_bird", "bigbird_pegasus", "reformer"])
def test_padding_that_a_model_adds_for_its_blocks_does_not_count(kind):
    """Their maps cannot be read where they pad, but their hidden states and heads can."""
    torch.manual_seed(0)
    blocks = {"block_size": 2, "num_random_blocks": 1, "attention_type": "block_sparse", "pad_token_id": 1}
    if kind == "big_bird":
        model = t.BigBirdModel(t.BigBirdConfig(**SMALL | WIDE | blocks | {"max_position_embeddings": 48}))
    elif kind == "bigbird_pegasus":
        config = t.BigBirdPegasusConfig(
            vocab_size=40, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
            encoder_ffn_dim=24, decoder_attention_heads=4, decoder_ffn_dim=24, max_position_embeddings=48, **blocks,
        )  # fmt: skip
        model = t.BigBirdPegasusModel(config).get_encoder()
    else:
        config = t.ReformerConfig(
            vocab_size=40, hidden_size=32, num_attention_heads=2, attention_head_size=16, feed_forward_size=32,
            attn_layers=["local", "local"], local_attn_chunk_length=4, axial_pos_embds=False, pad_token_id=1,
        )  # fmt: skip
        model = t.ReformerModel(config)
    check_added_padding(model.eval(), torch.randint(2, 40, (1, 31)), 1, OF_STATES)


def check_added_padding(model, tokens, many, measures):
    """Check that so much padding at the end, which the model would add itself, changes nothing."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and "embed" not in name:
                weight.normal_(0, 0.4)
    bare = {"input_ids": tokens}
    padded = {
        "input_ids": torch.nn.functional.pad(tokens, (0, many), value=1),
        "attention_mask": torch.nn.functional.pad(torch.ones_like(tokens), (0, many)),
    }
    for measure in measures:
        one, other = measure(model, bare), measure(model, padded)
        for field in fields(one):
            x, y = getattr(one, field.name), getattr(other, field.name)
            if isinstance(x, Tensor):
                torch.testing.assert_close(x, y, atol=1e-5, rtol=0, equal_nan=True)


def cpmant():
    """A model that puts prompts of its own, 3 positions, in front of each text; it takes padding on the left alone."""
    torch.manual_seed(0)
    config = t.CpmAntConfig(
        vocab_size=40, hidden_size=16, num_attention_heads=4, dim_head=4, dim_ff=24, num_hidden_layers=2,
        prompt_length=3, position_bias_num_buckets=8, position_bias_max_distance=16, segment_types=8,
    )  # fmt: skip
    model = t.CpmAntForCausalLM(config).double().eval()
    with torch.no_grad():
        for weight in model.parameters():  # some are not initialized
            weight.normal_(0, 0.3)
    return model


def test_prompts_that_a_model_adds_are_no_tokens_of_the_text():
    """oracle: the hidden states without the prompts, which transformers gives, and the maps' rows behind them"""
    model, inputs = cpmant(), {"input_ids": torch.tensor([[5, 6, 7, 5, 6], [5, 9, 7, 9, 8]])}
    with torch.no_grad():
        states = model(**inputs, output_hidden_states=True).hidden_states
    found = b.contextuality(model, inputs, tokens={"five": [5], "others": [6, 7, 8, 9]})
    assert (found.tokens, found.occurrences.tolist()) == (10, [3, 7])
    flat = torch.nn.functional.normalize(states[0].flatten(0, 1), dim=-1)
    expected = ((flat @ flat.T).sum() - 10) / 90
    torch.testing.assert_close(found.anisotropy[0], expected)
    assert b.layer_similarity(model, inputs).examples == 10
    rows = b.attention_maps(model, inputs).values[:, :, :, 3:]
    assert rows.shape[3:] == (5, 8)
    torch.testing.assert_close(
        b.attention_entropy(model, inputs).mean, torch.special.entr(rows).sum(-1).mean((1, 3)), check_dtype=False
    )
    outputs = b.head_outputs(model, inputs).values[:, :, -5:]
    torch.testing.assert_close(b.head_means(model, inputs).values, outputs.mean((1, 2)), check_dtype=False)
    heads = b.repeat_scores(model, inputs)
    # "5 6" and "9" come again: the second mention attends to what followed the first.
    induction = torch.stack([rows[:, 0, :, 3, 3 + 1], rows[:, 0, :, 4, 3 + 2], rows[:, 1, :, 3, 3 + 2]]).mean(0)
    torch.testing.assert_close(heads.induction, induction, check_dtype=False)


def test_padding_behind_prompts():
    """Texts that are padded on the left, where the model takes it, have the measures of texts without padding."""
    model = cpmant()
    alone = [{"input_ids": torch.tensor([ids])} for ids in ([5, 6, 7, 5, 6], [5, 9, 9])]
    ids = torch.tensor([[5, 6, 7, 5, 6], [0, 0, 5, 9, 9]])
    padded = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    measures = (b.attention_entropy, b.attention_patterns, b.repeat_scores, b.head_means, b.block_influence)
    for measure in (*measures, b.contextuality):
        one, other = measure(model, alone), measure(model, padded)
        for field in fields(one):
            x, y = getattr(one, field.name), getattr(other, field.name)
            # The padding lies between the prompt and the text, and so changes how far one is from the other.
            if isinstance(x, Tensor) and field.name not in ("previous", "distance"):
                torch.testing.assert_close(x, y, equal_nan=True)
    right = {name: x.flip(1) for name, x in padded.items()}
    with pytest.warns(UserWarning, match="padding changes the hidden states of CpmAntForCausalLM"):
        b.head_means(model, right)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft's own
@pytest.mark.parametrize("size", [None, 600])
def test_learned_prompts_are_no_tokens_of_the_text(size, monkeypatch):
    """oracle: the plain model on the embeddings of the prompts and of each text alone"""
    peft = pytest.importorskip("peft", exc_type=ImportError)
    if size is not None:
        monkeypatch.setattr(sys.modules["bertology.tap.interface_route"], "BLOCK_BYTES", size)
    plain = BY_NAME["gpt2"].build("lm")
    model = peft.get_peft_model(
        BY_NAME["gpt2"].build("lm"), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    )
    model = model.double().eval()
    prompt = model.prompt_encoder["default"].embedding.weight.detach()[None]
    inputs, entropies, outputs, states = batch((7, 4, 5), labels=False), [], [], []
    for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"].bool(), strict=True):
        embeds = torch.cat([prompt, plain.get_input_embeddings()(ids[mask][None])], 1).detach()
        entropies.append(torch.special.entr(b.attention_maps(plain, {"inputs_embeds": embeds}).values).sum(-1))
        outputs.append(b.head_outputs(plain, {"inputs_embeds": embeds}).values)
        states.append(b.hidden_states(plain, {"inputs_embeds": embeds}, tie_last_hidden_states=False).values)
    entropy, means = b.attention_entropy(model, inputs), b.head_means(model, inputs)
    assert entropy.queries.tolist() == means.tokens.tolist() == [16, 16]
    torch.testing.assert_close(entropy.mean, torch.cat([x[:, 0, :, 3:] for x in entropies], 2).mean(2))
    torch.testing.assert_close(means.values, torch.cat([x[:, 0, 3:] for x in outputs], 1).mean(1))
    found = b.contextuality(model, inputs, tokens={"all": list(range(40))})
    flat = torch.nn.functional.normalize(torch.cat([x[:, 0, 3:] for x in states], 1), dim=-1)
    torch.testing.assert_close(found.self_similarity[:, 0], ((flat @ flat.mT).sum((1, 2)) - 16) / (16 * 15))
    with model.disable_adapter():
        torch.testing.assert_close(b.head_means(model, inputs).values, b.head_means(plain, inputs).values)
    assert b.head_means(model, inputs).tokens.tolist() == [16, 16]
    for kept in (inputs, {"input_ids": inputs["input_ids"]}):
        wrapped = b.head_means(torch.nn.DataParallel(model), kept)
        assert wrapped.tokens.tolist() == b.head_means(model, kept).tokens.tolist()
        torch.testing.assert_close(wrapped.values, b.head_means(model, kept).values)


def test_padding_that_makes_nan_is_told():
    """BLOOM in float64 adds the lowest number of its type twice, so that padded texts have NaN where they are real."""
    torch.manual_seed(0)
    model = t.BloomForCausalLM(t.BloomConfig(vocab_size=40, hidden_size=16, n_layer=2, n_head=4)).double().eval()
    inputs = batch((7, 4, 5), labels=False, side="left")
    assert model(**inputs).logits[1, -1].isnan().all()
    for measure in (b.hidden_states, b.head_means, b.block_influence):
        with pytest.warns(UserWarning, match="padding before the text changes the hidden states of Bloom"):
            measure(model, inputs)
    model.float()
    for measure in (b.hidden_states, b.head_means, b.block_influence):
        measure(model, inputs)
