"""Pruning and saving models in wrappers, and models whose weights are not in memory."""

import copy

import pytest
import tokenizers
import torch
import torch.nn.utils.prune as torch_prune
import transformers
from torch import nn

from bertology import (
    ablated,
    attention_entropy,
    compare_efficiency,
    dissect,
    gated,
    head_ablation,
    head_importance,
    hidden_states,
    load_pruned,
    prune_heads,
    pruning_curve,
    save_pruned,
)
from bertology.errors import BertologyError, DataError, PruningError, UnknownAnatomy
from helpers.zoo import BY_NAME, batch

INPUTS = {name: x for name, x in batch().items() if name != "labels"}


def gpt2():
    return BY_NAME["gpt2"].build()


class Pair(nn.Module):
    """Two models, and a layer of its own."""

    def __init__(self, one, other):
        super().__init__()
        self.one, self.other, self.mix = one, other, nn.Linear(4, 2)

    def forward(self, **inputs):
        both = [self.one(**inputs).logits, self.other(**inputs).logits]
        return self.mix(torch.cat(both, dim=-1).float())


def outputs(model):
    with torch.no_grad():
        out = model(**INPUTS)
    return out if isinstance(out, torch.Tensor) else out.logits


def gate_off(model, places):
    anatomy = dissect(model)
    gates = torch.ones(anatomy.layers, anatomy.heads)
    for row, head in places:
        gates[row, head] = 0
    return gates


def test_each_model_in_a_wrapper_is_written_by_itself(tmp_path):
    torch.manual_seed(0)
    pair = Pair(BY_NAME["bert"].build(), BY_NAME["distilbert"].build()).eval()
    places = [(0, 1), (3, 2)]
    with gated(pair, gate_off(pair, places)):
        wanted = outputs(pair)
    prune_heads(pair, places)
    torch.testing.assert_close(outputs(pair), wanted)
    assert pair.one.config.pruned_heads == {0: [1]}
    assert pair.other.config.pruned_heads == {1: [2]}
    with pytest.raises(DataError, match=r"one \(BertFor.*other \(DistilBertFor.*load_pruned"):
        save_pruned(pair, tmp_path / "pair")
    assert not (tmp_path / "pair").exists()
    for name in ("one", "other"):
        save_pruned(getattr(pair, name), tmp_path / name)
        setattr(pair, name, load_pruned(tmp_path / name).double().eval())
    torch.testing.assert_close(outputs(pair), wanted, rtol=1e-4, atol=1e-5)


def test_models_that_share_a_config_are_refused_before_anything_is_changed():
    one = BY_NAME["bert"].build()
    other = type(one)(one.config).to(one.dtype).eval()
    pair = Pair(one, other).eval()
    wanted = outputs(pair)
    with pytest.raises(PruningError, match="share one config"):
        prune_heads(pair, [(0, 1)])
    assert torch.equal(outputs(pair), wanted)
    assert not getattr(one.config, "pruned_heads", None)


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda model: torch.compile(model, backend="eager")])
def test_a_wrapper_that_only_runs_a_model_is_measured_pruned_and_saved(wrap, tmp_path):
    model = gpt2()
    plain, wrapped = copy.deepcopy(model), wrap(model)
    scores = head_importance(plain, batch()).scores
    torch.testing.assert_close(head_importance(wrapped, batch()).scores, scores)
    prune_heads(wrapped, {0: [2]})
    prune_heads(plain, {0: [2]})
    save_pruned(wrapped, tmp_path)
    loaded = load_pruned(tmp_path).to(plain.dtype).eval()
    torch.testing.assert_close(outputs(loaded), outputs(plain), rtol=1e-4, atol=1e-5)


def sentence_transformer(tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    parts = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    model = transformers.BertModel(
        transformers.BertConfig(vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    )
    model.eval().save_pretrained(tmp_path / "whole")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[PAD]": 0, "[UNK]": 1, "a": 5, "b": 6}, "[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(tmp_path / "whole")
    words = parts.Transformer(str(tmp_path / "whole"))
    return sentence_transformers.SentenceTransformer(modules=[words, parts.Pooling(32)], device="cpu")


def test_a_sentence_transformer_is_pruned_saved_by_its_model_and_put_together_again(tmp_path):
    whole = sentence_transformer(tmp_path)
    prune_heads(whole, {0: [1], 1: [3]})
    wanted = whole.encode(["a b", "b"])
    with pytest.raises(DataError, match=r"\(BertModel\).*load_pruned"):
        save_pruned(whole, tmp_path / "no")
    inner = next(module for module in whole.modules() if isinstance(module, transformers.PreTrainedModel))
    save_pruned(inner, tmp_path / "pruned")
    path = next(name for name, module in whole.named_modules() if module is inner)
    owner, _, name = path.rpartition(".")
    setattr(whole.get_submodule(owner), name, load_pruned(tmp_path / "pruned").eval())
    torch.testing.assert_close(torch.as_tensor(whole.encode(["a b", "b"])), torch.as_tensor(wanted))


def test_a_sentence_transformer_is_measured(tmp_path):
    """Its forward pass takes all arguments as one mapping."""
    whole = sentence_transformer(tmp_path)
    inner = next(module for module in whole.modules() if isinstance(module, transformers.PreTrainedModel))
    inputs = {"input_ids": torch.tensor([[5, 6, 5], [6, 5, 0]]), "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}

    def loss(outputs, batch):
        return outputs["sentence_embedding"][:, :9].square().sum(-1)

    torch.testing.assert_close(attention_entropy(whole, inputs).mean, attention_entropy(inner, inputs).mean)
    torch.testing.assert_close(hidden_states(whole, inputs).values, hidden_states(inner, inputs).values)
    found = head_ablation(whole, inputs, metric="inverse_loss", loss=loss)
    with ablated(whole, [(1, 2)]), torch.no_grad():
        torch.testing.assert_close(found.losses[1, 2].float(), loss(whole(dict(inputs)), inputs))
    gates = torch.ones(2, 4, requires_grad=True)
    signed = 0
    for example in range(2):
        with gated(whole, gates):
            value = loss(whole({name: x[example : example + 1] for name, x in inputs.items()}), inputs).sum()
        signed += torch.autograd.grad(value, gates)[0] / 2
    torch.testing.assert_close(head_importance(whole, inputs, loss=loss).signed.float(), signed, rtol=1e-4, atol=1e-6)
    before = copy.deepcopy(whole)
    prune_heads(whole, {0: [1]})
    assert compare_efficiency(before, whole, inputs, batch_sizes=(1,), rounds=1, seconds=0).flops.diff(dim=0) < 0


class PassesOn(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, *input, **options):
        return self.model(*input, **options)


class TakesOneOrNone(PassesOn):
    def forward(self, input=None, **options):
        return self.model(**options) if input is None else self.model(input, **options)


@pytest.mark.parametrize("kind", [PassesOn, TakesOneOrNone])
def test_a_wrapper_whose_first_argument_is_called_input_gets_its_arguments_by_name(kind):
    model = BY_NAME["bert"].build()
    scores = head_importance(kind(model), batch()).scores
    torch.testing.assert_close(scores, head_importance(model, batch()).scores)


def offloaded(model, tmp_path, how):
    accelerate = pytest.importorskip("accelerate")
    if how == "cpu":
        return accelerate.cpu_offload(model, execution_device="cpu")
    if how == "disk":
        return accelerate.disk_offload(model, str(tmp_path / "disk"), execution_device="cpu")
    model = model.to("cpu")
    parts = {name: "cpu" for name, _ in model.transformer.named_children()} | {"score": "cpu"}
    parts = {f"transformer.{name}" if name != "score" else name: device for name, device in parts.items()}
    parts["transformer.ln_f"] = "disk"
    return accelerate.dispatch_model(model, parts, offload_dir=str(tmp_path / "some"))


@pytest.mark.parametrize("how", ["cpu", "disk", "some"])
def test_weights_elsewhere_are_refused_before_anything_is_touched(how, tmp_path):
    model = offloaded(gpt2(), tmp_path, how)
    wanted = outputs(model)
    for call, error in (
        (lambda: prune_heads(model, {0: [1]}), PruningError),
        (lambda: save_pruned(model, tmp_path / "saved"), DataError),
        (lambda: pruning_curve(model, batch(), metric="accuracy", by="magnitude"), UnknownAnatomy),
    ):
        with pytest.raises(error, match=r"not in memory .*Load the whole model"):
            call()
    assert not (tmp_path / "saved").exists()
    assert torch.equal(outputs(model), wanted)
    assert not getattr(model.config, "pruned_heads", None)


@pytest.mark.parametrize("kind", ["parametrized", "weight norm", "masked"])
def test_weights_that_are_computed_from_others_are_refused(kind):
    model = BY_NAME["bert"].build()
    query = model.bert.encoder.layer[0].attention.self.query
    if kind == "parametrized":
        nn.utils.parametrizations.weight_norm(query)
    elif kind == "weight norm":
        with pytest.warns(FutureWarning):
            nn.utils.weight_norm(query)
    else:
        torch_prune.random_unstructured(query, "weight", amount=0.5)
    wanted = outputs(model)
    with pytest.raises(PruningError, match="is computed from others .*remove the parametrization"):
        prune_heads(model, {0: [1]})
    assert torch.equal(outputs(model), wanted)


def test_saving_to_nothing_or_from_a_model_of_ones_own_is_refused(tmp_path):
    with pytest.raises(BertologyError, match="path"):
        save_pruned(gpt2(), None)
    with pytest.raises(DataError, match="in which there is none"):
        save_pruned(nn.Linear(2, 2), tmp_path / "linear")
