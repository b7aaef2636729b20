"""What a model loses without a head is what the loop over heads says, for any model and however it is batched."""

from contextlib import nullcontext

import pytest
import torch
import transformers as t

from bertology import (
    HeadAblation,
    Result,
    ablated,
    accumulate,
    dissect,
    head_ablation,
    head_means,
    prune_heads,
)
from bertology.errors import DataError, HeadError, LossError, ShapeError
from bertology.importance.ablation import one_off
from bertology.importance.many_gates import VariantAccumulator
from bertology.tap import branches
from helpers.ablation import EQUAL, bert, check, losses, several
from helpers.pruning import seq2seq
from helpers.small_models import VIT
from helpers.zoo import BY_NAME, FAMILIES, VOCAB, batch, each_alone
from laws.laws import Broken, check_leaves_model_alone, raising_at, snapshot
from oracles.heads import projections, scaled


# DistilBERT of transformers 4 takes no positions.
@pytest.mark.filterwarnings("ignore:padding (before|changes):UserWarning")
def test_equals_the_loop(family):
    found = check(family.build(), several(), metric="accuracy")
    assert found.loss_change.abs().min() > 1e-6
    check(family.build("lm"), several("left", "lm"))


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.name != "albert"], ids=lambda f: f.name)
def test_equals_output_weights_of_zero(family):
    model, inputs = family.build(), several()
    found = head_ablation(model, inputs, metric="accuracy").losses
    for layer, (weight, heads, axis) in enumerate(projections(model)):
        for head in range(heads):
            with scaled(weight, axis, heads, head, 0):
                torch.testing.assert_close(found[layer, head], losses(model, inputs), rtol=1e-6, atol=1e-6)
                assert not torch.allclose(found[layer, head - 1], losses(model, inputs), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_encoder_decoders(name):
    labels = torch.tensor([[4, 5, 6, 1], [7, 1, -100, -100], [8, 9, 1, -100]])
    inputs = [{**batch(labels=False), "labels": labels}, {**batch((3, 6), labels=False), "labels": labels[:2]}]
    found = check(seq2seq(name), inputs)
    assert list(found.change.shape) == [6, 4]
    assert (found.stack("cross").loss_change.abs() > 0).all()


def test_other_tasks():
    one = batch()
    words = {**one, "labels": (one["input_ids"] % 3).masked_fill(one["attention_mask"] == 0, -100)}
    check(bert("TokenClassification", num_labels=3), [words, words], metric="accuracy")
    numbers = {**one, "labels": torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)}
    check(bert("SequenceClassification", num_labels=1), numbers, metric="pearson_spearman")
    ids = torch.randint(3, VOCAB, (3, 4, 5))
    choices = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor([3, 0, 1])}
    check(bert("MultipleChoice"), choices, metric="accuracy")
    places = {"start_positions": torch.tensor([1, 0, 2]), "end_positions": torch.tensor([6, 3, 2])}
    check(bert("QuestionAnswering"), {**batch(labels=False), **places})


def test_images():
    torch.manual_seed(0)
    model = t.ViTForImageClassification(t.ViTConfig(**VIT)).double().eval()
    images = {"pixel_values": torch.randn(3, 3, 8, 8, dtype=torch.float64), "labels": torch.tensor([0, 2, 1])}
    check(model, images, metric="accuracy")


def test_a_loss_of_ones_own_and_a_metric_of_ones_own():
    def margin(outputs, inputs):
        return outputs.logits.logsumexp(-1) - outputs.logits.gather(1, inputs["labels"][:, None])[:, 0] / 2

    def mean_logit(logits, labels):
        return logits.gather(1, labels[:, None]).mean().item()

    model = BY_NAME["gpt2"].build()
    check(model, several(), loss=margin)
    found = check(model, several(), metric=mean_logit)
    assert found.metric == "mean_logit"


def test_pruned_models(family):
    model = family.build()
    prune_heads(model, {0: [2, 3], 1: [2, 3]} if family.name in ("albert", "llama") else {0: [1, 2], 1: range(4)})
    check(model, several(), metric="accuracy")


@pytest.mark.parametrize("positions", [1, 30, 10**6])
def test_how_many_go_at_once_changes_nothing(monkeypatch, positions):
    monkeypatch.setattr(branches, "POSITIONS_ON_CPU", positions)
    check(BY_NAME["bert"].build(), several(), metric="accuracy")


def test_batches_change_nothing():
    model, texts = BY_NAME["bert"].build(), batch((7, 4, 5, 2))
    whole = head_ablation(model, texts, metric="accuracy")
    alone = head_ablation(model, each_alone(texts), metric="accuracy")
    torch.testing.assert_close(alone.losses, whole.losses)
    torch.testing.assert_close(alone.change, whole.change)
    assert torch.equal(alone.example_of, whole.example_of)


@pytest.mark.parametrize("kind", ["classifier", "lm"])
def test_merged_is_measured_at_once(kind):
    model, batches = BY_NAME["bert"].build(kind), several(kind=kind)
    metric = "accuracy" if kind == "classifier" else "inverse_loss"

    def sums(data):
        accumulator = VariantAccumulator(one_off, metric)
        accumulate(model, data, accumulator)
        return accumulator

    whole, parts = sums(batches).compute(), [sums(batches[:1]), sums(batches[1:])]
    empty = VariantAccumulator(one_off, metric).zero(dissect(model))
    merged = empty.merge(empty.state()).merge(parts[0].state()).merge(parts[1].state()).compute()
    for name, value in vars(whole).items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(getattr(merged, name), value)


def test_a_head_without_output_weights_changes_nothing():
    model = BY_NAME["bert"].build()
    weight, heads, axis = projections(model)[1]
    with scaled(weight, axis, heads, 2, 0):
        found = head_ablation(model, several(), metric="inverse_loss")
    assert found.loss_change[1, 2].abs() < 1e-14
    assert (found.loss_change.abs() < 1e-14).sum() == 1


def relaid(model, order):
    """Lay the heads of the last layer of a BERT in another order, or twice."""
    layer = model.bert.encoder.layer[1].attention
    with torch.no_grad():
        for linear in (layer.self.query, layer.self.key, layer.self.value):
            linear.weight.copy_(linear.weight.unflatten(0, (4, 4))[order].flatten(0, 1))
            linear.bias.copy_(linear.bias.unflatten(0, (4, 4))[order].flatten())
        out = layer.output.dense.weight
        out.copy_(out.unflatten(1, (4, 4))[:, order].flatten(1))
    return model


def test_equal_heads_lose_as_much_and_heads_take_their_loss_along():
    twice = head_ablation(relaid(BY_NAME["bert"].build(), [0, 1, 1, 3]), several(), metric="accuracy").losses[1]
    torch.testing.assert_close(twice[1], twice[2], **EQUAL)
    assert not torch.allclose(twice[0], twice[1])
    before = head_ablation(BY_NAME["bert"].build(), several(), metric="accuracy")
    after = head_ablation(relaid(BY_NAME["bert"].build(), [2, 0, 3, 1]), several(), metric="accuracy")
    torch.testing.assert_close(after.losses[1], before.losses[1, [2, 0, 3, 1]], **EQUAL)
    torch.testing.assert_close(after.losses[0], before.losses[0], **EQUAL)


@pytest.mark.parametrize("replace", ["mean", "resample", "given"])
@pytest.mark.parametrize("name", ["bert", "llama", "albert"])
def test_other_replacements_equal_ablated(name, replace):
    # The classifiers of BERT and ALBERT read the first position, which is padding here.
    told = nullcontext() if name == "llama" else pytest.warns(UserWarning, match="padding changes what .* computes")
    with told:
        check_replacement(BY_NAME[name].build(), several("left"), replace)


def check_replacement(model, batches, replace):
    values = head_means(model, several()).values if replace == "given" else replace
    found = head_ablation(model, batches, metric="accuracy", replace=values, seed=3)
    assert found.replace == replace
    inside = head_means(model, batches).values if replace == "mean" else values
    zero = head_ablation(model, batches, metric="accuracy")
    for row, head in dissect(model).present.nonzero().tolist():
        with ablated(model, [(row, head)], replace=inside, seed=3):
            torch.testing.assert_close(found.losses[row, head], losses(model, batches), **EQUAL)
    assert not torch.allclose(found.losses, zero.losses)
    other = head_ablation(model, batches, metric="accuracy", replace=values, seed=4)
    assert torch.equal(other.losses, found.losses) == (replace != "resample")


def test_resampled_of_encoder_decoders():
    labels = torch.tensor([[4, 5, 6, 1], [7, 1, -100, -100], [8, 9, 1, -100]])
    model, inputs = seq2seq("bart"), {**batch(labels=False), "labels": labels}
    found = head_ablation(model, inputs, metric="inverse_loss", replace="resample")
    # The decoder is given its tokens, and which of them are real.
    given = {**inputs, "decoder_attention_mask": (labels != -100).long()}
    for row in range(6):
        with ablated(model, [(row, 1)], replace="resample"):
            torch.testing.assert_close(found.losses[row, 1], losses(model, [given]), **EQUAL)


@pytest.mark.parametrize("replace", ["zero", "mean"])
def test_leaves_the_model_alone(family, replace):
    def measure(model):
        head_ablation(model, [batch(), batch((3, 6))], metric="accuracy", replace=replace)

    check_leaves_model_alone(family.build(), measure)


@pytest.mark.parametrize("call", [0, 1, 5, 9])
@pytest.mark.parametrize("place", ["block", "projection", "attention", "head"])
def test_leaves_the_model_alone_when_it_raises(place, call):
    model = BY_NAME["bert"].build()
    anatomy = dissect(model)
    module = {
        "block": anatomy.stacks[0].blocks[-1],
        "projection": anatomy.sites[-1].projection,
        "attention": anatomy.sites[-1].attention,
        "head": model.classifier,
    }[place]
    before = snapshot(model)
    with raising_at(module, call):
        forward = vars(module)["forward"]
        try:
            head_ablation(model, several(), metric="accuracy")
        except Broken:
            pass
        else:
            assert call, "nothing was raised"
        assert [m for m in model.modules() if "forward" in vars(m)] == [module]
        assert vars(module)["forward"] is forward
    after = snapshot(model)
    for key in ("hooks", "configs", "training", "rng", "attention functions", "classes"):
        assert str(before[key]) == str(after[key])
    check(model, several(), metric="accuracy")


def test_a_pass_that_was_cut_off_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("bertology.streaming.checkpoint.EVERY_SECONDS", 0)
    model, batches, file = BY_NAME["bert"].build(), several(), tmp_path / "sums"

    def cut_off():
        yield from batches[:2]
        raise KeyboardInterrupt

    def run(data, metric="accuracy", model=model, **options):
        return head_ablation(model, data, metric=metric, checkpoint=file, **{"replace": "resample", **options})

    with pytest.raises(KeyboardInterrupt):
        run(cut_off())
    for other in ({"replace": "zero"}, {"metric": "f1"}, {"seed": 1}, {"replace": torch.zeros(2, 4, 4)},
                  {"loss": lambda outputs, inputs: outputs.logits[:, 0]}):  # fmt: skip
        with pytest.raises(DataError, match="is of another model or other measures"):
            run(batches, **other)
    found = run(batches)
    whole = head_ablation(model, batches, metric="accuracy", replace="resample")
    assert torch.equal(found.losses, whole.losses)
    assert torch.equal(found.change, whole.change)
    assert torch.equal(found.example_of, whole.example_of)
    assert not file.exists()


def test_tensors_of_replacements_are_told_apart():
    values = torch.arange(32.0).reshape(2, 4, 4)
    anatomy = dissect(BY_NAME["bert"].build())
    one, other = (VariantAccumulator(one_off, "accuracy", None, x).zero(anatomy) for x in (values, values.flip(0)))
    assert one.settings() != other.settings()


def test_comes_back_from_a_file_and_prints(tmp_path):
    found = head_ablation(BY_NAME["bert"].build(), several(), metric="accuracy")
    found.save(tmp_path / "r")
    again = Result.load(tmp_path / "r")
    assert isinstance(again, HeadAblation)
    assert torch.equal(again.losses, found.losses)
    assert str(again) == str(found)
    assert (
        found.plot().axes[0].get_title()
        == f"Head ablation: change\nBertForSequenceClassification, {found.examples} examples"
    )


def test_correlation_of_two_data_sets():
    model = BY_NAME["bert"].build()
    one, other = (head_ablation(model, data, metric="inverse_loss") for data in (several(), batch(seed=8)))
    x, y = (r.loss_change.flatten() - r.loss_change.mean() for r in (one, other))
    expected = (x @ y / (x.norm() * y.norm())).item()
    assert one.correlation(other, of="loss") == pytest.approx(expected)
    assert one.correlation(one) == pytest.approx(1)
    short = head_ablation(BY_NAME["bert"].build(num_hidden_layers=1), several(), metric="inverse_loss")
    with pytest.raises(DataError, match=r"wanted two ablations of one model, got \[2, 4\], \[1, 4\]"):
        one.correlation(short)
    same = head_ablation(model, several(), metric=lambda logits, labels: 1.0)
    with pytest.raises(DataError, match="no correlation: all 8 heads have the same effect on one of the data sets"):
        same.correlation(one)


def test_errors():
    model, inputs = BY_NAME["bert"].build(), batch()
    with pytest.raises(DataError, match="no metric is called 'bleu'"):
        head_ablation(model, inputs, metric="bleu", replace="mean")
    with pytest.raises(HeadError, match="replace must be 'zero', 'mean', 'resample' or a tensor .* got 'median'"):
        head_ablation(model, inputs, metric="accuracy", replace="median")
    with pytest.raises(ShapeError, match=r"replace must be \[layer, head, dim\] = \[2, 4, 4\], got \[2, 4\]"):
        head_ablation(model, inputs, metric="accuracy", replace=torch.zeros(2, 4))
    with pytest.raises(DataError, match="replace='mean' goes over the batches several times"):
        head_ablation(model, iter([inputs]), metric="accuracy", replace="mean")
    with pytest.raises(LossError, match="no loss is known for BertModel"):
        head_ablation(model.bert, inputs, metric="accuracy")
    with pytest.raises(LossError, match="needs labels in every batch"):
        head_ablation(model, batch(labels=False), metric="accuracy")
    with pytest.raises(DataError, match="the metric <lambda> is NaN over 3 examples"):
        head_ablation(model, inputs, metric=lambda logits, labels: float("nan"))
    prune_heads(model, {0: range(4), 1: range(4)})
    with pytest.raises(DataError, match="there is no head to ablate: all heads of this model were pruned"):
        head_ablation(model, inputs, metric="accuracy")


def test_the_oracle_can_fail(monkeypatch):
    monkeypatch.setattr("bertology.importance.ablation.one_off", lambda anatomy: one_off(anatomy).flip(-1))
    with pytest.raises(AssertionError):
        check(BY_NAME["bert"].build(), several())
