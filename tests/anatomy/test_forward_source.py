"""What breaks when transformers writes its classes otherwise: one test for each inside that is read."""

from __future__ import annotations

import functools
import inspect
import pickle

import pytest
import torch
import transformers
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers.models.llama import modeling_llama
from transformers.models.phi3.modeling_phi3 import Phi3Attention
from transformers.models.t5.modeling_t5 import T5Attention

from bertology import attention_entropy, mlp_ablation
from bertology.anatomy.forward_source import (
    acts_on_record,
    asks_config,
    children_of,
    eager_function,
    is_transformers_4,
    may_pack,
    names_in,
    ties_last,
    weights_of,
)
from bertology.anatomy.modules import each_module
from bertology.errors import DataError
from helpers.zoo import BY_NAME, LLAMA, V4, batch


def attention_of(name: str) -> nn.Module:
    model = BY_NAME[name].build()
    return next(module for module in model.modules() if type(module).__name__.endswith("Attention"))


def test_the_version_opens_with_its_major_number():
    major = transformers.__version__.partition(".")[0]
    assert major.isdigit(), "the tables of names for transformers 4 are chosen by the first part of the version"
    assert is_transformers_4() == (major == "4") == V4


def test_attention_that_reads_its_pruned_heads_is_found():
    class Reads(nn.Module):
        def forward(self, x):
            return x[..., len(self.pruned_heads) :]

    attention = T5Attention(transformers.T5Config(d_model=16, d_kv=4, num_heads=4))
    assert acts_on_record(Reads())
    assert acts_on_record(attention) == V4, "prune_heads writes the record where T5 cuts its own position bias by it"
    assert not acts_on_record(nn.Linear(1, 1))


def test_attention_that_reads_the_config_is_found():
    class OfItself(nn.Module):
        def forward(self, x):
            return x.view(self.own_heads)

    config = transformers.Phi3Config(**LLAMA)
    assert asks_config(Phi3Attention(config, layer_idx=0)), (
        "prune_heads gives a layer its own count of heads only where the attention is seen to read it from the config"
    )
    other = OfItself()
    other.config = config
    assert not asks_config(other)


def test_the_eager_function_of_attention_on_the_interface_is_found():
    assert eager_function(attention_of("llama")) is modeling_llama.eager_attention_forward, (
        "transformers names its eager function or the table of attention functions otherwise: every model would be "
        "taken for one off the attention interface, whose softmax is watched, which fused kernels do not have"
    )


def test_attention_off_the_interface_has_no_eager_function():
    assert eager_function(attention_of("gpt")) is None
    assert eager_function(nn.MultiheadAttention(4, 1)) is None


@pytest.mark.parametrize("ties", [True, False])
def test_the_choice_of_the_last_hidden_state_is_read_from_the_decorator(ties):
    torch.manual_seed(0)
    if ties:
        model, inputs = BY_NAME["llama"].build("lm").model, batch(labels=False)
    else:
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
        model = transformers.ViTMSNModel(transformers.ViTMSNConfig(**sizes, image_size=16, patch_size=8)).eval()
        inputs = {"pixel_values": torch.randn(1, 3, 16, 16)}
        model.layernorm.weight.data.normal_()
    with torch.no_grad():
        outputs = model(**inputs, output_hidden_states=True)
    assert torch.equal(outputs.hidden_states[-1], outputs.last_hidden_state) == ties
    assert ties_last(model) == ties, (
        "the decorator that collects hidden states keeps `tie_last_hidden_states` elsewhere: hidden_states() would "
        "return another last layer than transformers does"
    )


def test_names_are_read_below_decorators():
    def method(self, x):
        return self.pruned_heads + len(x)

    @functools.wraps(method)
    def wrapper(*args):
        return method(*args)

    for one in (method, wrapper):
        assert set(names_in(one)) == {"pruned_heads", "len"}, "Python keeps the names that a function reads elsewhere"
    assert names_in("no method") == names_in(len) == ()


def test_models_that_keep_packed_texts_apart_are_found(family):
    model, ids = family.build(), torch.randint(5, 40, (1, 7), generator=torch.Generator().manual_seed(0))
    taken = inspect.signature(model.forward).parameters
    if not {"position_ids", "use_cache"} <= taken.keys():
        pytest.skip("takes no positions, or no cache")
    packed = {"input_ids": ids, "position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2]])}
    with torch.no_grad():
        one, other = (model(**packed, use_cache=cached)[0] for cached in (True, False))
    assert may_pack(model) or torch.allclose(one, other, atol=1e-5), (
        "transformers makes causal masks by functions of other names: texts in one row would see each other in some "
        "measures, and not in others"
    )


ODD_SIZES = {
    "OPT": {"hidden_size": 16, "ffn_dim": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "word_embed_proj_dim": 16},
    "GPTJ": {"n_embd": 16, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "bos_token_id": 1, "eos_token_id": 2},
    "GPTNeo": {"hidden_size": 16, "num_layers": 2, "num_heads": 4, "attention_types": [[["global"], 2]],
               "bos_token_id": 1, "eos_token_id": 2},
}  # fmt: skip


@pytest.mark.parametrize("kind", ODD_SIZES)
def test_only_models_that_keep_packed_texts_apart_are_asked_for_a_pass_without_a_cache(kind):
    """In transformers 4 these never do; OPT of transformers 5, which makes its mask without the positions that it has,
    is asked without need. oracle: the model with a cache and without one"""
    config = getattr(transformers, f"{kind}Config")(vocab_size=40, max_position_embeddings=32, **ODD_SIZES[kind])
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    ids = torch.randint(5, 40, (1, 7), generator=torch.Generator().manual_seed(0))
    packed = {"input_ids": ids, "position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2]])}
    with torch.no_grad():
        one, other = (model(**packed, use_cache=cached)[0] for cached in (True, False))
    apart = not torch.allclose(one, other, atol=1e-5)
    asked = may_pack(model)
    assert asked == (apart or (kind == "OPT" and not is_transformers_4()))
    if asked:
        with pytest.raises(DataError, match="Pass use_cache=False in the batch, which keeps them apart"):
            attention_entropy(model, packed)
    assert attention_entropy(model, {**packed, "use_cache": False} if asked else packed).queries.tolist() == [7, 7]


@pytest.mark.parametrize(("name", "packs"), [("bert", False), ("roberta", False), ("gpt2", True), ("llama", True)])
def test_encoders_make_no_mask_of_positions(name, packs):
    assert may_pack(BY_NAME[name].build()) == packs


def test_causal_masks_in_functions_inside_a_method_are_found():
    model = transformers.Llama4TextModel(
        transformers.Llama4TextConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, intermediate_size=8, intermediate_size_mlp=8, num_local_experts=1, head_dim=4)
    )  # fmt: skip
    assert may_pack(model)


def test_children_and_weights_are_those_of_the_public_walks(family):
    for module in family.build().modules():
        assert list(children_of(module)) == list(module.children()), (
            "modules keep their children elsewhere: dissect would find no attention"
        )
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        assert [id(x) for x in weights_of([vars(module)])] == [id(x) for _, x in own], (
            "modules keep their weights elsewhere: weights made in inference mode would not be seen"
        )
    parts = nn.Sequential(nn.Linear(2, 2))
    assert list(children_of(parts)) == [parts[0]]
    empty = nn.Module()
    empty.register_module("gone", None)
    assert not list(children_of(empty))


def shift(module, args, output):
    return output + 0.01 * output.detach().sign()


def test_hooks_of_a_model_that_was_unpickled_keep_their_numbers(monkeypatch):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    for layer in model:
        layer.register_forward_hook(shift)
    loaded, last = pickle.loads(pickle.dumps(model)), RemovableHandle.next_id
    monkeypatch.setattr(RemovableHandle, "next_id", 0)  # as in a new process
    each_module(loaded)
    assert RemovableHandle.next_id == last


def test_hooks_of_a_model_that_was_unpickled_stay(monkeypatch):
    model, inputs = BY_NAME["bert"].build(), batch()
    monkeypatch.setattr(RemovableHandle, "next_id", 0)
    for _ in range(100):
        model.bert.encoder.layer[0].output.dense.register_forward_hook(shift)
    loaded = pickle.loads(pickle.dumps(model))
    with torch.no_grad():
        wanted = loaded(**inputs).logits
    monkeypatch.setattr(RemovableHandle, "next_id", 0)
    mlp_ablation(loaded, inputs, metric="accuracy")
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, wanted)
