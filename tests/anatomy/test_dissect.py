import pytest
import torch
import transformers

from bertology import Head, Names, Neuron, attention_entropy, check_anatomy, dissect, head_importance, register_names
from bertology.anatomy.names import NAMES
from bertology.errors import HeadError, UnknownAnatomy
from helpers.zoo import BY_NAME, V4, batch
from sweep.shrink import build, class_of, tiny_config


def test_finds_every_layer_and_head(family):
    for kind in ("classifier", "lm"):
        anatomy = dissect(family.build(kind))
        assert (anatomy.layers, anatomy.heads, anatomy.labels) == (2, 4, ("0", "1"))
        assert anatomy.present.all()
        assert [site.dim for site in anatomy.sites] == [4, 4]
        assert {site.stack for site in anatomy.sites} == {"decoder" if family.causal else "encoder"}
        assert len(anatomy.stacks[0].blocks) == 2
        assert anatomy.resolve([]) == []


def test_wrappers_and_parts_do_not_matter():
    model = BY_NAME["bert"].build()
    wrapped = torch.nn.Sequential(model)
    for whole in (model, model.bert, model.bert.encoder, wrapped):
        assert [site.projection for site in dissect(whole).sites] == [site.projection for site in dissect(model).sites]


def test_head_widths_that_are_not_hidden_over_heads():
    config = BY_NAME["llama"].config()
    config.head_dim = 6
    anatomy = dissect(transformers.LlamaForCausalLM(config))
    assert {(site.dim, site.width) for site in anatomy.sites} == {(6, 4)}


class GatedProjection(torch.nn.Module):
    """An output projection that holds a gate before the layer that takes the heads."""

    def __init__(self, hidden, width):
        super().__init__()
        self.gate_proj = torch.nn.Linear(hidden, width)
        self.linear = torch.nn.Linear(width, hidden)


@pytest.fixture
def own_names():
    """Names that are registered in the test are gone after it."""
    kept = list(NAMES)
    yield
    NAMES[:] = kept


@pytest.mark.usefixtures("own_names")
def test_the_width_of_a_gated_projection_is_never_that_of_its_gate():
    config = BY_NAME["llama"].config()
    config.head_dim = 6
    model = transformers.LlamaModel(config)
    for layer in model.layers:
        layer.self_attn.o_proj = GatedProjection(16, 24)
    with pytest.raises(UnknownAnatomy, match="GatedProjection holds gate_proj, linear, and which .* register_names"):
        dissect(model)
    register_names(Names("q_proj", "k_proj", "v_proj", "o_proj.linear"))
    sites = dissect(model).sites
    assert {(site.dim, site.width) for site in sites} == {(6, 4)}
    assert [site.projection for site in sites] == [layer.self_attn.o_proj.linear for layer in model.layers]


def test_a_wrapper_around_one_layer_or_a_sequence_has_the_width_of_its_input():
    config = BY_NAME["llama"].config()
    config.head_dim = 6
    model = transformers.LlamaModel(config)
    first, second = (layer.self_attn for layer in model.layers)
    first.o_proj = torch.nn.ModuleDict({"drop": torch.nn.Dropout(), "inner": first.o_proj})
    second.o_proj = torch.nn.Sequential(torch.nn.Dropout(), second.o_proj, torch.nn.Linear(16, 16))
    assert {(site.dim, site.width) for site in dissect(model).sites} == {(6, 4)}
    first.o_proj = torch.nn.Dropout()
    with pytest.raises(UnknownAnatomy, match="Dropout holds no layer at all"):
        dissect(model)


@pytest.mark.skipif(not hasattr(transformers, "Inkling2ForCausalLM"), reason="no Inkling2 in this transformers")
@pytest.mark.parametrize("layers", [["hybrid", "hybrid"], ["hybrid_sliding", "hybrid"]])
def test_inkling2_with_heads_that_are_not_as_wide_as_its_states(layers):
    sizes = {"head_dim": 6, "swa_head_dim": 10, "layer_types": layers, "hidden_size": 32}
    model = build(class_of("inkling2_text"), tiny_config("inkling2_text", **sizes), None)
    sites = dissect(model).sites
    assert [(site.dim, site.width) for site in sites] == [(6 if kind == "hybrid" else 10, 4) for kind in layers]
    check_anatomy(model, {"input_ids": torch.tensor([[5, 6, 7, 8]])})


@pytest.mark.parametrize(
    ("model_type", "order"), [("dory", [0, 1, 2, 1, 2, 3]), ("inkling2_loop_text", [0, 1, 1, 1, 2])]
)
def test_layers_that_run_in_a_loop_have_a_row_for_each_pass(model_type, order):
    if model_type not in transformers.CONFIG_MAPPING:
        pytest.skip(f"no {model_type} in this transformers")
    model = build(class_of(model_type), tiny_config(model_type), None)
    seen = []
    for layer in model.model.layers:
        layer.self_attn.register_forward_hook(lambda module, args, output: seen.append(module))
    model(torch.tensor([[5, 6, 7]]))
    sites = dissect(model).sites
    assert [site.attention for site in sites] == seen == [model.model.layers[i].self_attn for i in order]
    assert [site.layer for site in sites] == list(range(len(order)))
    assert [site.call for site in sites] == [order[:i].count(layer) for i, layer in enumerate(order)]


def test_albert_groups_in_the_order_in_which_they_run():
    config = BY_NAME["albert"].config()
    config.num_hidden_layers, config.num_hidden_groups, config.inner_group_num = 5, 2, 2
    model = transformers.AlbertModel(config)
    seen = []
    for name, module in model.named_modules():
        if name.endswith(".attention"):
            module.register_forward_hook(lambda m, a, o: seen.append(m))
    model(torch.tensor([[5, 6]]))
    sites = dissect(model).sites
    assert [site.attention for site in sites] == seen
    assert [site.layer for site in sites] == list(range(10))
    assert [site.call for site in sites] == [0, 0, 1, 1, 2, 2, 0, 0, 1, 1]


def test_three_kinds_of_site_in_an_encoder_decoder():
    config = transformers.T5Config(
        vocab_size=40, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_decoder_layers=1, num_heads=4
    )
    anatomy = dissect(transformers.T5ForConditionalGeneration(config))
    assert anatomy.labels == ("encoder.0", "encoder.1", "decoder.0", "cross.0")
    assert anatomy.resolve([Head(0, 3, "cross"), Head(1, 2, "encoder"), (0, 0)]) == [(0, 0), (1, 2), (3, 3)]
    with pytest.raises(HeadError, match="head L0H3 is in several stacks; say which: its layers are encoder.0"):
        anatomy.resolve([Head(0, 3)])


def test_a_bert_with_cross_attention_is_a_decoder():
    config = BY_NAME["bert"].config()
    config.is_decoder = config.add_cross_attention = True
    model = transformers.BertLMHeadModel(config).eval()
    assert dissect(model).labels == ("decoder.0", "decoder.1", "cross.0", "cross.1")
    inputs = batch(labels=False)
    inputs["labels"] = inputs["input_ids"]
    with_encoder = attention_entropy(model, {**inputs, "encoder_hidden_states": torch.randn(3, 6, 16)})
    if not V4:  # whose BERT cannot show its maps without an encoder
        alone = attention_entropy(model, inputs)
        assert alone.mean.isnan().tolist() == [[False] * 4] * 2 + [[True] * 4] * 2
    assert not with_encoder.mean.isnan().any()
    scores = head_importance(model, inputs).scores
    assert (scores[:2] > 0).all()
    assert (scores[2:] == 0).all()


def test_heads_print_and_sort():
    assert [str(h) for h in sorted([Head(1, 0), Head(0, 11)])] == ["L0H11", "L1H0"]
    assert [str(Head(2, 3, stack)) for stack in ("encoder", "decoder", "cross")] == ["EL2H3", "DL2H3", "XL2H3"]


def test_a_model_without_attention():
    config = transformers.MambaConfig(vocab_size=20, hidden_size=16, num_hidden_layers=2)
    with pytest.raises(
        UnknownAnatomy, match="no attention heads found in MambaModel. A model without attention .* register_names"
    ):
        dissect(transformers.MambaModel(config))


def test_no_model_at_all():
    with pytest.raises(UnknownAnatomy, match=r"wanted a model, such as AutoModel.from_pretrained returns, got str"):
        dissect("bert-base-uncased")


def test_a_norm_between_heads_and_projection():
    if not hasattr(transformers, "BitNetConfig"):
        pytest.skip("no BitNet in this transformers")
    config = transformers.BitNetConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, intermediate_size=16,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = transformers.BitNetModel(config)
    assert [site.place for site in dissect(model).sites] == [layer.self_attn.attn_sub_norm for layer in model.layers]
    # One whose place is not known is not passed over.
    model.layers[1].self_attn.strange_norm = model.layers[1].self_attn.attn_sub_norm
    del model.layers[1].self_attn.attn_sub_norm
    with pytest.raises(
        UnknownAnatomy, match=r"layers.1.self_attn has strange_norm, a norm that may stand between .* register_names"
    ):
        dissect(model)


def test_sizes_that_do_not_fit():
    model = BY_NAME["bert"].build()
    model.bert.encoder.layer[0].attention.self.attention_head_size = 5
    with pytest.raises(
        UnknownAnatomy, match=r"self returns 16 elements for each token, .* heads of width 5 and 4 heads"
    ):
        dissect(model)
    # 8 divides 16, but not into 4 heads.
    model.bert.encoder.layer[0].attention.self.attention_head_size = 8
    with pytest.raises(UnknownAnatomy, match="which do not fit the heads of width 8 and 4 heads that it names"):
        dissect(model)
    model.bert.encoder.layer[0].attention.self.attention_head_size = 4
    dissect(model).sites[0].record.pruned_heads = {0, 1, 7}
    with pytest.raises(UnknownAnatomy, match=r"has 4 heads, but of 7 heads \[0, 1, 7\] are said to be pruned"):
        dissect(model)


def test_two_encoders_at_once():
    both = torch.nn.ModuleDict({"a": BY_NAME["bert"].build(), "b": BY_NAME["bert"].build()})
    anatomy = dissect(both)
    assert anatomy.labels == ("a.0", "a.1", "b.0", "b.1")
    assert str(Head(1, 2, "b")) == "b.L1H2"
    assert anatomy.resolve([Head(1, 2, "b")]) == [(3, 2)]


def test_reprs_make_the_part():
    for part in (Head(5, 3), Head(0, 1, "cross"), Neuron(5, 3), Neuron(0, 1, "decoder")):
        assert eval(repr(part)) == part
    assert repr([Head(5, 3), Neuron(0, 1, "decoder")]) == "[Head(5, 3), Neuron(0, 1, 'decoder')]"
