"""A pass is taken up half-way only where that is proved; everywhere else it runs whole, with the same result."""

from dataclasses import replace

import pytest
import torch

from bertology import accumulate, dissect, gated
from bertology.importance.ablation import one_off
from bertology.importance.many_gates import VariantAccumulator
from bertology.tap import recorded, uncached
from helpers.ablation import check, several
from helpers.pruning import seq2seq
from helpers.zoo import BY_NAME, V4, batch
from oracles.heads import projections, scaled
from sweep.shrink import Tiny


def ways(model, batches, metric="inverse_loss"):
    accumulator = VariantAccumulator(one_off, metric)
    accumulate(model, batches, accumulator)
    return {row: way.start for (row, _), way in sorted(accumulator._branches._ways.items())}


@pytest.mark.parametrize("kind", ["classifier", "lm"])
def test_the_zoo_is_proved(family, kind):
    # ALBERT's attention norms its output itself, and is entered at its block.
    way = "block" if family.name == "albert" else "projection"
    assert ways(family.build(kind), several(kind=kind)) == {0: way, 1: way}


def test_encoder_decoders_are_proved():
    labels = torch.tensor([[4, 5, 6, 1], [7, 1, -100, -100], [8, 9, 1, -100]])
    inputs = {**batch(labels=False), "labels": labels}
    assert set(ways(seq2seq("bart"), inputs).values()) == {"projection"}
    assert ways(seq2seq("t5"), inputs)[5] == "projection"


def handing_by_attribute(model):
    """Block 1 stores its output on a module, and block 2 adds a part of it, without passing it as an argument."""
    first, second = dissect(model).stacks[0].blocks
    model.left = None

    def leave(module, args, output):
        model.left = output[0] if isinstance(output, tuple) else output

    def take(module, args, output):
        whole = isinstance(output, torch.Tensor)
        new = (output if whole else output[0]) + 0.5 * model.left.flip(1)
        return new if whole else (new, *output[1:])

    # Inside the blocks' own forward passes, where a block that is skipped does not get to it.
    last = [m for m in first.modules() if isinstance(m, torch.nn.LayerNorm)][-1]
    last.register_forward_hook(leave)
    [m for m in second.modules() if isinstance(m, torch.nn.LayerNorm)][-1].register_forward_hook(take)
    return model


def test_what_goes_by_an_attribute_is_not_lost():
    model, batches = handing_by_attribute(BY_NAME["bert"].build()), several()
    assert ways(model, batches) == {0: "projection", 1: "copies"}
    check(model, batches, metric="accuracy")


def test_what_goes_by_an_attribute_and_comes_before_all_heads_is_not_lost():
    """No gate changes it, but each batch has another one."""
    model, batches = BY_NAME["bert"].build(), several()
    first, second = dissect(model).stacks[0].blocks
    first.attention.self.value.register_forward_hook(lambda m, args, x: setattr(model, "left", x[0, 0, 0]))
    second.output.register_forward_hook(lambda m, args, x: x * model.left)
    assert ways(model, batches) == {0: "block", 1: "copies"}
    check(model, batches, metric="accuracy")


def test_what_is_left_of_the_same_shape_is_not_taken_for_ones_own():
    """One number is left behind, of the first row: it fits any copies, but is right only if they are equal up to there."""
    model, batches = BY_NAME["bert"].build(), several()
    first, second = dissect(model).stacks[0].blocks
    first.output.register_forward_hook(lambda m, args, output: setattr(model, "left", output[0, 0, 0]))
    second.output.register_forward_hook(lambda m, args, output: output * model.left)
    assert ways(model, batches) == {0: "alone", 1: "copies"}
    check(model, batches, metric="accuracy")


def test_a_model_whose_examples_are_not_alone():
    """Every example sees the mean of its batch: copies of a batch with other gates would see each other."""
    model, batches = BY_NAME["bert"].build(), several()
    model.bert.embeddings.register_forward_hook(lambda m, args, x: x + x.mean(0, keepdim=True))
    dissect(model).stacks[0].blocks[1].register_forward_hook(
        lambda m, args, x: x + x.mean(0) if isinstance(x, torch.Tensor) else (x[0] + x[0].mean(0), *x[1:])
    )
    assert ways(model, batches) == {0: "alone", 1: "alone"}
    check(model, batches, metric="accuracy")


def test_arguments_that_cannot_be_copied():
    """Positions of one row are for all rows, in a batch of one example too."""
    model = BY_NAME["bert"].build()
    made = [{**one, "position_ids": torch.arange(one["input_ids"].shape[1])[None]} for one in several()]
    check(model, made, metric="accuracy")


def test_a_block_in_a_block():
    """What is around a changed head must run, though it was called before it."""

    class Around(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, *args, **kwargs):
            return self.inner(*args, **kwargs)

    model, batches = BY_NAME["bert"].build(), several()
    anatomy = dissect(model)
    stack = anatomy.stacks[0]
    around = model.bert.encoder.layer[1] = Around(stack.blocks[1])
    nested = replace(anatomy, stacks=(stack, replace(stack, name="outer", blocks=(around,))))
    inputs = {name: x for name, x in batches[0].items() if name != "labels"}
    with torch.no_grad(), recorded(nested, 3) as record:
        model(**inputs)
    assert [call.around for call in record.blocks] == [None, None, 1]
    assert [site.row for site in record.sites_from(1)] == [1]
    weight, heads, axis = projections(model)[1]
    layer = anatomy.sites[1]
    with scaled(weight, axis, heads, 2, 0), torch.no_grad():
        expected = model(**inputs).logits
        for projected in (layer.projection(record.attentions[1].heads), None):
            runs = []
            hook = around.register_forward_hook(lambda *_, runs=runs: runs.append(1))
            with record.resumed(1, 1, projected):
                torch.testing.assert_close(model(**inputs).logits, expected)
            hook.remove()
            assert runs == [1]
    with torch.no_grad():
        assert not torch.allclose(model(**inputs).logits, expected)


def test_in_gates_that_others_set():
    model, gates = BY_NAME["gpt2"].build(), torch.tensor([[1, 0.5, 1, 1], [0.2, 1, 1, 0.7]])
    with gated(model, gates):
        check(model, several(), metric="accuracy")


def test_blocks_that_are_skipped_do_not_run():
    model, inputs = BY_NAME["gpt2"].build(), {k: v for k, v in batch().items() if k != "labels"}
    anatomy, runs = dissect(model), []
    with torch.no_grad(), uncached(model), recorded(anatomy, 3) as record:
        expected = model(**inputs).logits
    skipped = (model.transformer.h[0].mlp, model.transformer.h[1].attn.c_attn)
    hooks = [module.register_forward_hook(lambda *_: runs.append(1)) for module in skipped]
    with torch.no_grad(), uncached(model), record.resumed(1, 2, record.attentions[1].projected.repeat(2, 1, 1)):
        again = model(**{k: torch.cat([v, v]) for k, v in inputs.items()}).logits
    torch.testing.assert_close(again, torch.cat([expected, expected]))
    assert runs == []
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, expected)
    assert len(runs) == 2
    for hook in hooks:
        hook.remove()
    assert not [m for m in model.modules() if "forward" in vars(m)]
    assert model.config.use_cache is True


@pytest.mark.skipif(V4, reason="these are the architectures of transformers 5")
@pytest.mark.parametrize("model_type", ["longformer", "xlnet", "deberta-v2", "mixtral", "perceiver", "reformer"])
def test_odd_models_equal_the_loop(model_type):
    def loss(outputs, inputs):
        found = next(x for x in outputs.values() if isinstance(x, torch.Tensor) and x.is_floating_point() and x.dim())
        return found.flatten(1).double().sin().sum(1)

    tiny = Tiny(model_type)
    check(tiny.model, tiny.batch, loss=loss)
