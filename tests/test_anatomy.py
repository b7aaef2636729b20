import pytest
import torch
import transformers
from zoo import BY_NAME, V4, batch

from bertology import Head, attention_entropy, dissect, head_importance
from bertology.errors import HeadError, UnknownAnatomy


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
    with pytest.raises(UnknownAnatomy, match=r"self puts out 16 numbers a token, .* heads of width 5 and 4 heads"):
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
