import pytest
import torch
import transformers

from bertology import accumulate, block_ablation, dissect, dissect_mlps, mlp_ablation, neuron_activations, score
from bertology.errors import DataError, UnknownAnatomy
from bertology.importance.part_ablation import ExampleLossAccumulator, PartAccumulator, left_out, parts_of
from bertology.metrics import GenerationMetric
from helpers.ablation import EQUAL, losses, several
from helpers.generation import bart, texts
from helpers.pruning import seq2seq
from helpers.towers import llava, qwen2_vl, texts_with_image
from helpers.zoo import BY_NAME, LLAMA, V4, batch, each_alone
from sweep.shrink import Tiny

BOTH = {"mlp": mlp_ablation, "block": block_ablation}
NAME = "past_key_values" if V4 else "cache"
each_part = pytest.mark.parametrize("part", BOTH)


def losses_without(model, inputs, module):
    """Oracle: the loss of each example, where a hook of ours returns zeros for this module."""

    def zeros(module, args, out):
        return out * 0 if isinstance(out, torch.Tensor) else (out[0] * 0, *out[1:])

    hook = module.register_forward_hook(zeros) if module is not None else None
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


def check(part, model, batches, metric="inverse_loss", loss=None):
    """Compare with the loop: all batches without one part after the other, from their start."""
    found = BOTH[part](model, batches, metric=metric, loss=loss)
    parts, base = parts_of(dissect(model), part), losses(model, batches, loss)
    assert found.base == pytest.approx(score(model, batches, metric=metric, loss=loss).value, rel=1e-12)
    for row in range(parts.layers):
        with left_out(parts, row):
            expected = losses(model, batches, loss)
            value = score(model, batches, metric=metric, loss=loss).value
        torch.testing.assert_close(found.loss_change[row], (expected - base).mean(), **EQUAL)
        torch.testing.assert_close(found.loss_stderr[row], (expected - base).std() / len(base) ** 0.5, **EQUAL)
        assert found.change[row].item() == pytest.approx(value - found.base, abs=1e-12)
    return found


def starts(part, model, batches, metric="inverse_loss"):
    """Where the pass of each variant starts."""
    accumulator = PartAccumulator(part, metric)
    accumulate(model, batches, accumulator)
    return {row: way.start for (row, _), way in sorted(accumulator._branches._ways.items())}


# oracle: the loop over parts
@each_part
@pytest.mark.parametrize("kind", ["classifier", "lm"])
def test_the_zoo_resumes_and_equals_the_loop(family, part, kind):
    model, batches = family.build(kind), several(kind=kind)
    check(part, model, batches, "accuracy" if kind == "classifier" else "inverse_loss")
    assert starts(part, model, batches) == {0: "block", 1: "block"}


@each_part
def test_padding_on_the_left(part):
    check(part, BY_NAME["gpt2"].build("lm"), several(side="left", kind="lm"))


@each_part
@pytest.mark.parametrize("name", ["bart", "t5"])
def test_encoder_decoders_resume_and_equal_the_loop(part, name):
    labels = torch.tensor([[4, 5, 6, 1], [7, 1, -100, -100], [8, 9, 1, -100]])
    model, inputs = seq2seq(name), {**batch(labels=False), "labels": labels}
    check(part, model, [inputs, inputs])
    assert starts(part, model, inputs) == dict.fromkeys(range(4), "block")


@each_part
def test_blocks_before_a_part_do_not_run(part):
    model, batches, runs = BY_NAME["gpt2"].build(), several(), []
    BOTH[part](model, batches[:1], metric="accuracy")
    hooks = [block.ln_1.register_forward_hook(lambda *_, row=row: runs.append(row))
             for row, block in enumerate(model.transformer.h)]  # fmt: skip
    accumulator = PartAccumulator(part, "accuracy")
    accumulate(model, batches, accumulator)
    for hook in hooks:
        hook.remove()
    counts = runs.count(0), runs.count(1)
    # The base pass of three batches, the two passes of the proof and the one after it, and those of another proof for the
    # last batch, which has no padding, and is its own first example; for an MLP, the passes of its own block.
    whole, own = 3 + (2 + 1) + (1 + 1), 3 + 1 + 1  # own: for each batch, and in the proofs
    assert counts == ((whole + own, whole + 2 * own) if part == "mlp" else (whole, whole + own))
    assert not [m for m in model.modules() if "forward" in vars(m)]


@each_part
def test_what_goes_by_an_attribute_is_not_lost(part):
    """Block 1 stores a state on the model, and block 2 adds a part of it."""
    model, batches = BY_NAME["bert"].build(), several()
    first, second = dissect(model).stacks[0].blocks
    first.output.dense.register_forward_hook(lambda m, args, x: setattr(model, "left", x))
    second.output.LayerNorm.register_forward_hook(lambda m, args, x: x + 0.5 * model.left.flip(1))
    # Block 1 must run wherever block 2 does.
    assert starts(part, model, batches) == ({0: "block", 1: "alone"} if part == "mlp" else {0: "alone", 1: "block"})
    check(part, model, batches, "accuracy")


@each_part
def test_a_mask_that_the_first_block_leaves_is_that_of_the_batch(part):
    """The proof runs on the first example, which has no padding: its mask would be spread over all."""
    model, batches, left = BY_NAME["bert"].build(), [batch((7, 4, 5))], {}
    first, second = dissect(model).stacks[0].blocks

    def keep(module, args, kwargs):
        left["mask"] = kwargs["attention_mask"] if "attention_mask" in kwargs else args[1]

    def take(module, args, kwargs):
        return args[:1], {**kwargs, "attention_mask": left["mask"]}

    first.attention.register_forward_pre_hook(keep, with_kwargs=True)
    second.attention.register_forward_pre_hook(take, with_kwargs=True)
    assert starts(part, model, batches)[0] == "block"
    check(part, model, batches)


@each_part
def test_examples_whose_loss_is_always_the_same_prove_nothing(part):
    """The loss of the first example is 0, whatever the model does; block 2 adds what block 1 stored."""

    def loss(outputs, inputs):
        each = torch.nn.functional.cross_entropy(outputs.logits, inputs["labels"], reduction="none")
        return each * (inputs["attention_mask"].sum(1) < 7)

    model, batches = BY_NAME["bert"].build(), several()
    first, second = dissect(model).stacks[0].blocks
    first.output.dense.register_forward_hook(lambda m, args, x: setattr(model, "left", x))
    second.output.LayerNorm.register_forward_hook(lambda m, args, x: x + 0.5 * model.left.flip(1))
    check(part, model, batches, loss=loss)


def shares_under(feature):
    """A BERT whose block 2 takes and adds what block 1 stored, where `feature(arguments)` is true."""
    model, given = BY_NAME["bert"].build(), {}
    first, second = dissect(model).stacks[0].blocks
    model.register_forward_pre_hook(lambda m, args, kwargs: given.update(on=feature(kwargs)), with_kwargs=True)
    first.output.dense.register_forward_hook(lambda m, args, x: given.update(left=x))
    second.output.LayerNorm.register_forward_hook(
        lambda m, args, x: x + 0.5 * given.pop("left", x * 0) if given["on"] else x
    )
    return model


@each_part
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_state_that_goes_by_an_attribute_in_some_batches_alone(part, padded, turned):
    """The first batch proves nothing of those that have padding, or have none."""
    model = shares_under(lambda given: bool((given["attention_mask"] == 0).any()) == padded)
    batches = [batch((5, 5), seed=4), batch((7, 7, 4, 5)), batch((6, 6), seed=6), batch((6, 4), seed=7)]
    batches = batches[::-1] if turned else batches
    check(part, model, batches, "accuracy")


@each_part
@pytest.mark.parametrize("turned", [False, True])
def test_state_that_goes_by_an_attribute_where_there_is_another_argument(part, turned):
    model = shares_under(lambda given: given.get("token_type_ids") is not None)
    plain = batch((5, 5), seed=4)
    batches = [plain, {**batch((5, 5)), "token_type_ids": torch.ones_like(plain["input_ids"])}]
    batches = batches[::-1] if turned else batches
    check(part, model, batches, "accuracy")


@each_part
def test_states_that_are_changed_in_place_later(part):
    """What the last block was given is no longer there when the pass is over: copies are."""
    model, batches, given = BY_NAME["bert"].build(), several(), []
    model.bert.encoder.layer[1].register_forward_pre_hook(lambda m, args: given.append(args[0]))

    def spoil(module, args, output):
        while given:
            given.pop().mul_(3)

    model.classifier.register_forward_hook(spoil)
    assert starts(part, model, batches) == {0: "block", 1: "block"}
    check(part, model, batches, "accuracy")


@each_part
def test_states_that_only_some_batches_change_in_place(part):
    """What Qwen3-VL adds to a block's output in place where there are images: the proof is of a text without."""
    model, batches = BY_NAME["bert"].build(), several()
    batches = [batches[2], *batches[:2]]  # one text alone, and then several

    def add(module, args):
        if len(args[0]) > 1:
            args[0].add_(0.5)

    model.bert.encoder.layer[1].register_forward_pre_hook(add)
    assert starts(part, model, batches) == {0: "block", 1: "block"}
    check(part, model, batches)


# oracle: the model without the block
def test_a_block_that_changes_its_input_in_place():
    """What is passed on is what the block was given, not what it made of it."""
    model, inputs = BY_NAME["bert"].build(), batch()
    blocks = model.bert.encoder.layer
    for block in blocks:
        block.attention.register_forward_pre_hook(lambda m, args: (args[0].mul_(0.5),))
    found, base = block_ablation(model, inputs, metric="accuracy"), losses(model, inputs)
    for row, block in enumerate(list(blocks)):
        del blocks[row]
        torch.testing.assert_close(found.loss_change[row], (losses(model, inputs) - base).mean(), **EQUAL)
        blocks.insert(row, block)


@each_part
@pytest.mark.skipif(V4, reason="these are the architectures of transformers 5")
@pytest.mark.parametrize("model_type", ["longformer", "xlnet", "deberta-v2", "reformer", "zamba2", "modernbert"])
def test_odd_models_equal_the_loop(part, model_type):
    def loss(outputs, inputs):
        found = next(x for x in outputs.values() if isinstance(x, torch.Tensor) and x.is_floating_point() and x.dim())
        return found.flatten(1).double().sin().sum(1)

    tiny = Tiny(model_type)
    found, parts = (
        BOTH[part](tiny.model, tiny.batch, metric="inverse_loss", loss=loss),
        parts_of(dissect(tiny.model), part),
    )
    base = losses(tiny.model, tiny.batch, loss)
    for row in range(parts.layers):
        with left_out(parts, row):
            expected = losses(tiny.model, tiny.batch, loss) - base
        torch.testing.assert_close(found.loss_change[row], expected.mean(), **EQUAL)


@each_part
def test_a_batch_with_a_cache_runs_from_its_start(part):
    model, inputs = BY_NAME["gpt2"].build("lm"), batch(labels=False)
    with torch.no_grad():
        cache = model(**inputs, use_cache=True).past_key_values
    mask = torch.cat([inputs["attention_mask"]] * 2, 1)
    later = {"input_ids": inputs["input_ids"], "attention_mask": mask, "labels": inputs["input_ids"]}
    with_cache = {**later, NAME: cache}
    found = BOTH[part](model, [with_cache, {**inputs, "labels": inputs["input_ids"]}], metric="inverse_loss")
    assert cache.get_seq_length() == 7
    alone = [BOTH[part](model, one, metric="inverse_loss").loss_change
             for one in (with_cache, {**inputs, "labels": inputs["input_ids"]})]  # fmt: skip
    torch.testing.assert_close(found.loss_change, sum(alone) / 2, **EQUAL)
    assert (alone[0] != alone[1]).all()


@each_part
def test_merged_is_measured_at_once(part):
    model, batches = BY_NAME["bert"].build(), several()

    def sums(data):
        accumulator = PartAccumulator(part, "accuracy")
        accumulate(model, data, accumulator)
        return accumulator

    whole, some = sums(batches).compute(), [sums(batches[:1]), sums(batches[1:])]
    empty = PartAccumulator(part, "accuracy").zero(dissect(model))
    merged = empty.merge(empty.state()).merge(some[0].state()).merge(some[1].state()).compute()
    for name, value in vars(whole).items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(getattr(merged, name), value)


@each_part
def test_batches_that_can_be_read_once(part):
    model = BY_NAME["bert"].build()
    found = BOTH[part](model, iter(several()), metric="accuracy")
    assert found == BOTH[part](model, several(), metric="accuracy")


def length(generated, references):
    return sum(map(sum, generated)) / sum(map(len, references))


# oracle: generating without the part
@each_part
def test_what_is_generated_without_a_part(part):
    model, metric = bart(), GenerationMetric(length, max_new_tokens=5)
    found, parts = BOTH[part](model, texts(), metric=metric), parts_of(dissect(model), part)
    for row in range(parts.layers):
        with left_out(parts, row):
            value = score(model, texts(), metric=metric).value
            expected = losses(model, texts())
        assert found.change[row].item() == pytest.approx(value - found.base)
        torch.testing.assert_close(found.loss_change[row], (expected - losses(model, texts())).mean())
    assert (found.change != 0).any()
    with pytest.raises(DataError, match="goes over the batches several times"):
        BOTH[part](model, iter(texts()), metric=metric)


def test_an_mlp_that_returns_more_than_states():
    config = transformers.IBertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
                                      intermediate_size=24)  # fmt: skip
    model = transformers.IBertForSequenceClassification(config).eval()
    found, whole = mlp_ablation(model, batch(), metric="accuracy"), losses_without(model, batch(), None)
    for row, mlp in enumerate(dissect_mlps(model).sites):
        alone = losses_without(model, batch(), mlp.projection) - whole
        torch.testing.assert_close(found.loss_change[row], alone.mean(), atol=1e-5, rtol=0)


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


def test_what_ran_up_to_now_does_not_tell_processes_apart():
    assert len({ExampleLossAccumulator(None, ran).described() for ran in ({0}, {1}, set())}) == 1
