import pytest
import torch
import transformers

from bertology import block_ablation, dissect_mlps, mlp_ablation, neuron_activations
from bertology.errors import DataError, UnknownAnatomy
from helpers.towers import llava, qwen2_vl, texts_with_image
from helpers.zoo import BY_NAME, LLAMA, batch, each_alone


def losses_without(model, inputs, module):
    """Oracle: the loss of each example, where a hook of ours returns zeros for this module."""
    hook = module.register_forward_hook(lambda m, args, out: out * 0) if module is not None else None
    with torch.no_grad():
        losses = [model(**example).loss.item() for example in each_alone(inputs)]
    if hook is not None:
        hook.remove()
    return torch.tensor(losses, dtype=torch.float64)


# oracle: a hook that returns zeros in the place of the MLP
@pytest.mark.parametrize(
    ("name", "path"), [("bert", "bert.encoder.layer.{}.output.dense"), ("gpt2", "transformer.h.{}.mlp")]
)
def test_without_each_mlp(name, path):
    model, inputs = BY_NAME[name].build(), batch()
    found = mlp_ablation(model, inputs, metric="inverse_loss")
    whole = losses_without(model, inputs, None)
    for row in range(2):
        apart = losses_without(model, inputs, model.get_submodule(path.format(row))) - whole
        assert found.loss_change[row].item() == pytest.approx(apart.mean().item(), rel=1e-9)
        assert found.loss_stderr[row].item() == pytest.approx(apart.std().item() / 3**0.5, rel=1e-9)
        expected = 1 / (whole + apart).mean() - 1 / whole.mean()
        assert found.change[row].item() == pytest.approx(expected.item(), rel=1e-9)
    assert (found.base_loss, found.part, found.examples) == (pytest.approx(whole.mean().item()), "mlp", 3)


# oracle: a forward that returns its input in the place of the block's
@pytest.mark.parametrize("layer", [-1, -2])
def test_blocks_whose_states_the_model_goes_on_with(layer):
    """LLaVA reads the hidden states that transformers notes in its image tower."""
    image = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4}
    tower = transformers.SiglipVisionConfig(**image, image_size=8, patch_size=4)
    options = {"vision_feature_layer": layer, "vision_feature_select_strategy": "full"}
    model = llava(transformers.LlamaConfig(**LLAMA), tower, 1, **options)
    inputs = texts_with_image(1)
    inputs["labels"] = torch.where(inputs["input_ids"] == 39, -100, inputs["input_ids"])
    found = block_ablation(model, inputs, metric="inverse_loss")
    with torch.no_grad():
        whole = model(**inputs).loss.item()
        for row in range(3):
            block = next(one for path, one in model.named_modules() if path.endswith(f"encoder.layers.{row}"))
            first = block.forward
            block.forward = lambda x, *args, **kwargs: x
            apart = model(**inputs).loss.item() - whole
            block.forward = first
            assert found.loss_change[row].item() == pytest.approx(apart, rel=1e-4)  # Llama's loss is float32
            assert (apart == 0) == (row == 2 and layer == -2)


@pytest.mark.parametrize("ablation", [mlp_ablation, block_ablation])
def test_parts_of_a_tower_that_does_not_run_are_nan(ablation, tmp_path):
    """0 would say that the text can do without the image tower."""
    model, ids = qwen2_vl(), torch.randint(3, 40, (2, 6))
    found = ablation(model, {"input_ids": ids, "labels": ids}, metric="inverse_loss")
    tower = torch.tensor([label.startswith("encoder") for label in found.labels])
    assert tower.any()
    assert not tower.all()
    for field in (found.change, found.loss_change, found.loss_stderr):
        assert torch.equal(field.isnan(), tower)
    found.save(tmp_path / "a")
    assert type(found).load(tmp_path / "a") == found


def test_it_is_gone_over_several_times():
    with pytest.raises(DataError, match="goes over the batches several times"):
        mlp_ablation(BY_NAME["bert"].build(), (batch() for _ in range(2)), metric="accuracy")


def test_one_example_has_no_standard_error(tmp_path):
    found = mlp_ablation(BY_NAME["bert"].build(), batch((5,)), metric="accuracy")
    assert found.loss_stderr.isinf().all()
    found.save(tmp_path / "a")
    assert type(found).load(tmp_path / "a") == found


def test_an_mlp_that_runs_on_two_kinds_of_tokens_is_ablated_on_both():
    config = transformers.PegasusXConfig(
        vocab_size=40, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, num_global_tokens=2,
        decoder_attention_heads=4, encoder_ffn_dim=24, decoder_ffn_dim=24, block_size=4, max_position_embeddings=32,
    )  # fmt: skip
    model, ids = transformers.PegasusXForConditionalGeneration(config).eval(), torch.randint(3, 40, (3, 8))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0, 0.3)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids[:, :4]}
    found = mlp_ablation(model, inputs, metric="inverse_loss")
    apart = [losses_without(model, inputs, mlp.projection) for mlp in dissect_mlps(model).sites]
    whole = losses_without(model, inputs, None)
    torch.testing.assert_close(
        found.loss_change, torch.stack([x.mean() - whole.mean() for x in apart]), atol=1e-5, rtol=0
    )
    assert found.loss_change[0].abs() > 1e-4
    with pytest.raises(UnknownAnatomy, match="the neurons of encoder.0 can be edited .*, but not read"):
        neuron_activations(model, {name: x for name, x in inputs.items() if name != "labels"})
