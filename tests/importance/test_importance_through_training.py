import copy
import weakref

import pytest
import torch
from scipy import stats
from transformers import AutoModelForSequenceClassification

from bertology import Result, head_importance, importance_through_training, load_pruned, prune_heads, save_pruned
from bertology.errors import DataError
from helpers.small_models import small_t5
from helpers.zoo import BY_NAME, V4, batch

# oracle: the importance of each checkpoint alone, which has oracles of its own, and the rank correlation of scipy.
FIELDS = ("scores", "signed", "fisher", "stderr")


def test_is_the_importance_of_each_checkpoint():
    models = {step: BY_NAME["bert"].build(seed=step) for step in (0, 500, 1000)}
    series = importance_through_training(models.items(), [batch(), batch(seed=3)])
    assert series.steps.tolist() == [0, 500, 1000]
    for place, (step, model) in enumerate(models.items()):
        alone = head_importance(model, [batch(), batch(seed=3)])
        for name in FIELDS:
            assert torch.equal(getattr(series, name)[place], getattr(alone, name))
            assert torch.equal(getattr(series.at(step), name), getattr(alone, name))
    assert series.examples == 6
    by_token = importance_through_training(models.items(), batch(), granularity="token")
    assert torch.equal(by_token.scores[0], head_importance(models[0], batch(), granularity="token").scores)
    assert by_token.at(0).granularity == "token"


def test_correlation_equals_scipys():
    series = importance_through_training(((i, BY_NAME["gpt2"].build(seed=i)) for i in range(4)), batch())
    raw = [scores.flatten() for scores in series.scores]
    scaled = [(scores / scores.norm(dim=-1, keepdim=True)).flatten() for scores in series.scores]
    for found, each in ((series.correlation(None), raw), (series.correlation(), scaled)):
        expected = [[stats.spearmanr(a, b).statistic for b in each] for a in each]
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
        assert not torch.allclose(found, found.T.flip(0))  # a spoiled order of checkpoints
    assert not torch.equal(series.correlation(None), series.correlation())


def test_a_model_that_is_being_trained():
    model, inputs, kept = BY_NAME["bert"].build().train(), batch(), []

    def training():
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        for step in range(3):
            yield step, model
            assert model.training
            kept.append(copy.deepcopy(model))
            model(**inputs).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    series = importance_through_training(training(), inputs)
    for scores, was in zip(series.scores, kept, strict=True):
        assert torch.equal(scores, head_importance(was, inputs).scores)
    assert not torch.equal(series.scores[0], series.scores[2])


def test_folders_are_loaded_one_at_a_time(tmp_path):
    for step in (1, 2, 3):
        BY_NAME["bert"].build(seed=step).save_pretrained(tmp_path / f"checkpoint-{step}")
    alive = []

    def load(folder):
        assert [ref() for ref in alive if ref() is not None] == []
        model = BY_NAME["bert"].classifier.from_pretrained(folder, dtype=torch.float64)
        alive.append(weakref.ref(model))
        return model

    pairs = [(step, tmp_path / f"checkpoint-{step}") for step in (1, 2, 3)]
    series = importance_through_training(pairs, batch(), load=load)
    assert len(alive) == 3
    expected = head_importance(BY_NAME["bert"].build(seed=2), batch()).scores
    torch.testing.assert_close(series.scores[1], expected)
    default = importance_through_training(pairs, batch())
    plain = importance_through_training(pairs, batch(), load=AutoModelForSequenceClassification.from_pretrained)
    torch.testing.assert_close(default.scores, plain.scores, rtol=0, atol=0)
    if not V4:  # which loads everything in float32, whose rounding is the processor's
        torch.testing.assert_close(default.scores, series.scores, rtol=1e-6, atol=1e-6)


def test_three_stacks_pruned_heads_and_the_file(tmp_path):
    inputs = {**batch(), "labels": torch.tensor([[4, 5, 6, 1], [7, 1, -100, -100], [8, 9, 1, -100]])}
    model = small_t5()
    prune_heads(model, {4: [1]})
    series = importance_through_training([(1, model), (2, model)], inputs)
    cross = series.stack("cross")
    assert cross.labels == ("cross.0", "cross.1")
    assert torch.equal(cross.scores.nan_to_num(-1), series.scores[:, 4:].nan_to_num(-1))
    assert cross.scores.isnan().sum() == 2
    torch.testing.assert_close(series.correlation(), torch.ones(2, 2, dtype=torch.float64))
    series.save(tmp_path / "series")
    again = Result.load(tmp_path / "series")
    assert torch.equal(again.fisher.nan_to_num(-1), series.fisher.nan_to_num(-1))
    assert (again.steps.tolist(), again.labels) == ([1, 2], series.labels)


def test_errors(tmp_path):
    model, inputs = BY_NAME["bert"].build(), batch()

    def fails(pairs, message, given=inputs, error=DataError):
        with pytest.raises(error, match=message):
            importance_through_training(pairs, given)

    fails([], "no checkpoints: wanted pairs of a step and a model or folder")
    fails([model], r"checkpoints are pairs \(step, model\) or \(step, folder\), got BertForSequenceClassification")
    fails([("last", model)], "with a whole number as step, got 'last'")
    fails([(1, model), (1, model)], "step 1 comes twice among the checkpoints")
    fails([(1, 7)], "a checkpoint is a model or a folder, got int; other kinds want load=")
    fails([(1, model)], "goes over the batches several times: pass a list or a DataLoader", iter([inputs]))
    deeper, smaller = BY_NAME["bert"].build(num_hidden_layers=3), BY_NAME["bert"].build()
    prune_heads(smaller, {0: [1]})
    fails(
        [(1, model), (2, deeper)],
        r"the checkpoint of step 2 is of another architecture: it has \[layer, head\] = \[3, 4\] in the layers 0, 1, 2; "
        r"the first has \[2, 4\] in 0, 1",
    )
    fails(
        [(1, model), (2, smaller)], "the checkpoint of step 2 has 7 heads left, or others than the first, which has 8"
    )
    with pytest.raises(DataError, match="step 3 is not in this series: it has 1"):
        importance_through_training([(1, model)], inputs).at(3)


@pytest.mark.filterwarnings("ignore")  # those of transformers, of weights that it does not find
def test_folders_without_the_weights_of_a_classifier(tmp_path):
    inputs, classifier = batch(), BY_NAME["bert"].build()
    classifier.bert.save_pretrained(tmp_path / "body")
    (tmp_path / "empty").mkdir()
    prune_heads(classifier, {0: [1]})
    save_pruned(classifier, tmp_path / "pruned")
    loads_others = "load=f loads other models, such as load=bertology.load_pruned"
    refused = {
        "body": "lacks weights of a sequence classifier, such as classifier.bias, which would be random",
        "empty": r"cannot be loaded as a sequence classifier \(\w+: ",
    }
    if not V4:  # which prunes BERT as it loads it
        refused["pruned"] = r"cannot be loaded as a sequence classifier \(RuntimeError"
    for name, words in refused.items():
        with pytest.raises(DataError, match=f"{words}.*: {loads_others}"):
            importance_through_training([(0, tmp_path / name)], inputs)
    found = importance_through_training([(0, tmp_path / "pruned")], inputs, load=load_pruned)
    torch.testing.assert_close(found.scores[0], head_importance(classifier, inputs).scores, equal_nan=True)


@pytest.mark.filterwarnings("ignore")  # peft's own, and those of transformers of the model below it
@pytest.mark.parametrize("task", ["SEQ_CLS", None])
def test_folders_of_adapters_are_complete_if_they_hold_the_classifier(task, tmp_path):
    import peft

    inputs, base = batch(), BY_NAME["bert"].build().float()
    base.bert.save_pretrained(tmp_path / "base")
    base.name_or_path = base.config._name_or_path = str(tmp_path / "base")
    config = peft.LoraConfig(task_type=task, r=2, target_modules=["query", "value"], init_lora_weights=False)
    adapted = peft.get_peft_model(base, config).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    if task is None:
        with pytest.raises(DataError, match="lacks weights of a sequence classifier, such as classifier.bias"):
            importance_through_training([(0, tmp_path / "adapter")], inputs)
    else:
        found = importance_through_training([(0, tmp_path / "adapter")], inputs)
        torch.testing.assert_close(found.scores[0], head_importance(adapted, inputs).scores)
