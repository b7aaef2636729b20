"""Equal numbers of heads and neurons in all layers, and ordinary checkpoints that transformers loads by itself."""

import itertools
import json

import pytest
import torch
import transformers

from bertology import dissect, dissect_mlps, prune_heads, prune_neurons, save_plain
from bertology.errors import DataError, PruningError, ShapeError
from helpers.pruning import logits, seq2seq
from helpers.zoo import BY_NAME, LLAMA, V4, batch


def plain_llama():
    return BY_NAME["llama"].build("lm", head_dim=4)


def kept(model):
    return [list(site.kept) for site in dissect(model).sites]


# oracle: the least sum of scores among all sets with equal numbers in all layers
def test_the_best_set_of_heads_of_all():
    scores = torch.rand(2, 4, generator=torch.Generator().manual_seed(5))
    model = BY_NAME["bert"].build()
    named = [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0)]  # five: two of each layer
    pruned = prune_heads(model, named, uniform=True, scores=scores)
    best = min(
        sum(scores[0, list(one)].tolist()) + sum(scores[1, list(other)].tolist())
        for one, other in itertools.product(itertools.combinations(range(4), 2), repeat=2)
    )
    assert sum(scores[h.layer, h.head].item() for h in pruned.heads) == pytest.approx(best)
    assert [len(some) for some in kept(model)] == [2, 2]


def test_those_that_are_named_go_first():
    model = BY_NAME["gpt2"].build()
    prune_heads(model, {0: [1, 3], 1: [2, 3]}, uniform=True)
    assert kept(model) == [[0, 2], [0, 1]]
    prune_neurons(model, {0: range(30), 1: [63]}, uniform=True)
    assert [len(site.kept) for site in dissect_mlps(model).sites] == [49, 49]
    assert 63 not in dissect_mlps(model).sites[1].kept


def test_groups_that_share_a_key():
    model = plain_llama()
    scores = torch.tensor([[0.0, 9, 0, 9], [1, 1, 2, 2]])
    prune_heads(model, {0: [0, 2], 1: [0, 1]}, uniform=True, scores=scores)
    assert kept(model) == [[1, 3], [1, 3]]  # one of each group: 0 + 0 + 1 + 2, whole groups: 9 + 2
    model = plain_llama()
    prune_heads(model, {0: [0, 1, 2], 1: [0, 1, 2]}, uniform=True)  # three of each layer cannot go
    assert [len(some) for some in kept(model)] == [2, 2]


def load(path, kind):
    """What transformers alone makes of a folder."""
    model, told = kind.from_pretrained(path, output_loading_info=True, dtype=torch.float64)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    return model.eval()


def test_llama_without_heads_and_neurons_is_an_ordinary_llama(tmp_path):
    model, inputs = plain_llama(), batch(labels=False)
    prune_heads(model, {0: [0, 1], 1: [2, 3]})
    prune_neurons(model, {0: range(8), 1: range(4, 12)})
    expected = logits(model, inputs)
    save_plain(model, tmp_path)
    said = json.loads((tmp_path / "config.json").read_text())
    assert not {"pruned_heads", "pruned_neurons"} & said.keys()
    sizes = ("num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size")
    assert [said[name] for name in sizes] == [2, 1, 4, 16]
    again = load(tmp_path, transformers.LlamaForCausalLM)
    torch.testing.assert_close(logits(again, inputs), expected, rtol=0, atol=1e-6)
    assert sum(p.numel() for p in again.parameters()) == sum(p.numel() for p in model.parameters())
    ids = inputs["input_ids"][:1]
    options = {"max_new_tokens": 5, "do_sample": False}
    assert torch.equal(again.generate(ids, **options), model.generate(ids, **options))
    other = plain_llama()
    assert not torch.allclose(logits(other, inputs), expected)


@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2", "distilbert", "electra", "albert"])
def test_neurons_of_nearly_all(name, tmp_path):
    family, inputs = BY_NAME[name], batch(labels=False)
    model = family.build()
    prune_neurons(model, {0: range(5), 1: range(5)})
    expected = logits(model, inputs)
    save_plain(model, tmp_path)
    again = load(tmp_path, family.classifier)
    torch.testing.assert_close(logits(again, inputs), expected, rtol=0, atol=1e-12)
    assert dissect_mlps(again).neurons == (59 if name == "gpt2" else 19)


def test_an_encoder_and_a_decoder_by_themselves(tmp_path):
    model, ids = seq2seq("bart"), torch.randint(3, 40, (2, 5))
    prune_neurons(model, {0: range(5), 1: range(5), 2: [1], 3: [2]})
    with torch.no_grad():
        expected = model(input_ids=ids, decoder_input_ids=ids).logits
        save_plain(model, tmp_path)
        again = load(tmp_path, transformers.BartForConditionalGeneration)
        torch.testing.assert_close(again(input_ids=ids, decoder_input_ids=ids).logits, expected, rtol=0, atol=1e-12)
    assert (again.config.encoder_ffn_dim, again.config.decoder_ffn_dim) == (19, 23)


def image_and_text(**text):
    """A model of images and text whose config has one config for each."""
    text = {**LLAMA, "head_dim": 4, **text}
    image = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 8,
        "patch_size": 4,
    }
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**text), vision_config=transformers.CLIPVisionConfig(**image),
        image_token_index=39, vision_feature_layer=-1,
    )  # fmt: skip
    torch.manual_seed(2)
    ids = torch.randint(3, 39, (2, 9))
    ids[:, 1:5] = 39
    inputs = {"input_ids": ids, "pixel_values": torch.randn(2, 3, 8, 8, dtype=torch.float64)}
    return transformers.LlavaForConditionalGeneration(config).double().eval(), inputs


def test_numbers_in_nested_configs(tmp_path):
    model, inputs = image_and_text(num_hidden_layers=3)
    text = [site.row for site in dissect(model).sites if site.stack == "decoder"]
    prune_heads(model, {row: [2, 3] for row in text})
    sizes = {site.row: 5 if site.stack == "decoder" else 9 for site in dissect_mlps(model).sites}
    prune_neurons(model, {row: range(many) for row, many in sizes.items()})
    expected = logits(model, inputs)
    save_plain(model, tmp_path, inputs=inputs)
    again = load(tmp_path, transformers.LlavaForConditionalGeneration)
    torch.testing.assert_close(logits(again, inputs), expected, rtol=0, atol=1e-6)
    said = again.config.text_config
    assert [said.num_attention_heads, said.num_key_value_heads, said.head_dim, said.intermediate_size] == [2, 1, 4, 19]
    assert [again.config.vision_config.intermediate_size, again.config.vision_config.num_attention_heads] == [15, 4]
    assert model.config.text_config.num_attention_heads == 4, "the model's own config has changed"


@pytest.mark.skipif(V4, reason="CLIP of transformers 4 takes the width of its heads from the hidden states")
def test_a_stack_that_no_input_reaches_is_compared_too(tmp_path):
    model, inputs = image_and_text()
    images = [site.row for site in dissect(model).sites if site.stack == "encoder"]
    prune_heads(model, {row: [0, 1] for row in images})
    with pytest.raises(PruningError, match=r"vision_tower.* is \[8, 16\], and by its config it would be \[16, 16\]"):
        save_plain(model, tmp_path, inputs={"input_ids": inputs["input_ids"].clamp_max(38)})


@pytest.mark.parametrize("kind", ["Qwen2", "Granite"])
def test_a_head_width_that_the_config_has_not_by_default(kind, tmp_path):
    config = getattr(transformers, f"{kind}Config")(**LLAMA)
    torch.manual_seed(0)
    model, inputs = getattr(transformers, f"{kind}ForCausalLM")(config).double().eval(), batch(labels=False)
    prune_heads(model, {0: [0, 2], 1: [1, 3]})
    expected = logits(model, inputs)
    if not V4 or kind == "Granite":
        save_plain(model, tmp_path)
        again = load(tmp_path, type(model))
        torch.testing.assert_close(logits(again, inputs), expected, rtol=0, atol=1e-6)
        assert again.config.head_dim == 4


REFUSED = {
    "bert": (lambda m: prune_heads(m, {0: [1], 1: [2]}), "BertConfig.*(refuses|would be)"),
    "gpt2": (lambda m: prune_heads(m, {0: [1, 2], 1: [2, 3]}), "by its config it would be"),
    "gpt": (lambda m: prune_neurons(m, {0: [1], 1: [2]}), "no setting for (the number of neurons|what was pruned)"),
    "roberta": (lambda m: prune_neurons(m, {0: [1]}), "layer encoder.0 has 23 neurons and layer encoder.1 has 24"),
    "distilbert": (lambda m: prune_neurons(m, {0: range(24), 1: range(24)}), "have lost all neurons"),
    "llama": (lambda m: prune_heads(m, {0: [0, 1]}), "layer decoder.0 has 2 heads and layer decoder.1 has 4"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_ordinary_checkpoint_can_hold(name, tmp_path):
    cut, told = REFUSED[name]
    model = BY_NAME[name].build()
    cut(model)
    with pytest.raises(PruningError, match=f"no ordinary checkpoint can hold this model, save_pruned.*: .*{told}"):
        save_plain(model, tmp_path / "plain")
    assert not (tmp_path / "plain").exists()


def test_mistakes(tmp_path):
    model = BY_NAME["bert"].build()
    with pytest.raises(PruningError, match="no head can go from each of 2 layers: name at least 2 heads"):
        prune_heads(model, [(0, 1)], uniform=True)
    with pytest.raises(ShapeError, match=r"scores must be \[layer, head\] = \[2, 4\]"):
        prune_heads(model, [(0, 1), (1, 1)], uniform=True, scores=torch.ones(2, 5))
    prune_heads(model, [(0, 1)])
    with pytest.raises(PruningError, match="equal numbers of heads, got"):
        prune_heads(model, [(0, 2), (1, 1)], uniform=True)
    with pytest.raises(DataError, match="writes a model of transformers, got Linear"):
        save_plain(torch.nn.Linear(2, 2), tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is a file"):
        save_plain(model, tmp_path / "file")
    with pytest.raises(DataError, match="file/below cannot be written .*: name a file in a folder that exists"):
        save_plain(BY_NAME["bert"].build(), tmp_path / "file" / "below")


@pytest.mark.skipif(V4, reason="transformers 4.57 exports fewer models; the weights are the same")
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_a_pruned_model_is_exported(name):
    model, inputs = BY_NAME[name].build(), batch((7, 7), labels=False)
    prune_heads(model, {0: [0, 1], 1: [2, 3]})
    prune_neurons(model, {0: [1, 2], 1: [3]})
    given = {**inputs, **({"use_cache": False} if name == "llama" else {})}
    program = torch.export.export(model, (), given)
    torch.testing.assert_close(program.module()(**given).logits, logits(model, inputs))
