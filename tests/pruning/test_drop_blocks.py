import sys
import threading

import pytest
import torch
import transformers

from bertology import Result, block_ablation, drop_blocks, load_pruned, prune_heads, save_plain, save_pruned, tap
from bertology.anatomy.blocks import blocks_of
from bertology.anatomy.dissect import dissect
from bertology.errors import BertologyError, DataError, HeadError, PruningError, UnknownAnatomy
from bertology.tap.skipped import skipping
from helpers.pruning import logits, seq2seq
from helpers.towers import llava, texts_with_image
from helpers.zoo import BY_NAME, FAMILIES, LLAMA, SMALL, batch

steps = sys.modules["bertology.pruning.drop_blocks"]  # its name is that of the function, too
SETTINGS = {"gpt": "n_layer", "gpt2": "n_layer", "distilbert": "n_layers"}
DROPPABLE = [family for family in FAMILIES if family.name != "albert"]


def deeper(family, kind="classifier"):
    return family.build(kind, **{SETTINGS.get(family.name, "num_hidden_layers"): 4})


# oracle: the block's forward replaced by one that returns its input
@pytest.mark.parametrize("family", DROPPABLE, ids=lambda family: family.name)
def test_dropped_equals_skipped_and_loads_without_us(family, tmp_path):
    model, inputs = deeper(family), batch(labels=False)
    there = blocks_of(dissect(model))
    with skipping(there, {1, 2}):
        expected = logits(model, inputs)
    kept = {row: there.sites[row].place.forward for row in (1, 2)}
    whole = logits(model, inputs)
    for row in kept:
        first = there.sites[0].place
        returned = first(
            torch.zeros(1, 2, 16, dtype=torch.float64),
            **({"position_embeddings": ANGLES} if family.name == "llama" else {}),
        )
        there.sites[row].place.forward = (
            (lambda x, *a, **k: x) if isinstance(returned, torch.Tensor) else (lambda x, *a, **k: (x, *a[:0]))
        )
    torch.testing.assert_close(logits(model, inputs), expected, rtol=0, atol=1e-12)
    for row, forward in kept.items():
        there.sites[row].place.forward = forward
        del there.sites[row].place.__dict__["forward"]
    dropped = drop_blocks(model, [2, "1"])
    assert dropped.blocks == ("1", "2")
    assert dropped.parameters_after == sum(p.numel() for p in model.parameters()) < dropped.parameters_before
    torch.testing.assert_close(logits(model, inputs), expected, rtol=0, atol=1e-6 if family.name == "llama" else 1e-12)
    assert not torch.allclose(expected, whole)
    model.save_pretrained(tmp_path)
    again = family.classifier.from_pretrained(tmp_path, dtype=torch.float64).eval()
    torch.testing.assert_close(logits(again, inputs), logits(model, inputs), rtol=0, atol=1e-6)


ANGLES = (torch.ones(1, 2, 4), torch.zeros(1, 2, 4))


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_caches_are_numbered_anew(name):
    model, ids = deeper(BY_NAME[name], "lm"), torch.randint(3, 40, (2, 5))
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": 39, "pad_token_id": 0}
    options["attention_mask"] = torch.ones_like(ids)
    with skipping(blocks_of(dissect(model)), {0, 2}):
        expected = model.generate(ids, use_cache=False, **options)
    drop_blocks(model, [0, 2])
    assert torch.equal(model.generate(ids, use_cache=True, **options), expected)
    blocks = model.transformer.h if name == "gpt2" else model.model.layers
    attention = "attn" if name == "gpt2" else "self_attn"
    assert [getattr(block, attention).layer_idx for block in blocks] == [0, 1]


def test_settings_with_an_entry_for_each_block(tmp_path):
    kinds = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
    config = transformers.Qwen2Config(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, use_sliding_window=True, sliding_window=2, layer_types=kinds, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(1)
    model, inputs = transformers.Qwen2ForCausalLM(config).double().eval(), batch(labels=False)
    with skipping(blocks_of(dissect(model)), {0, 1}):
        expected = logits(model, inputs)
    drop_blocks(model, [0, 1])
    assert model.config.layer_types == kinds[2:]
    torch.testing.assert_close(logits(model, inputs), expected, rtol=0, atol=1e-6)
    prune_heads(model, {0: [0, 1]})
    save_pruned(model, tmp_path)
    again = load_pruned(tmp_path, dtype=torch.float64)
    torch.testing.assert_close(logits(again, inputs), logits(model, inputs), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["bart", "t5"])
def test_encoders_and_decoders(name, tmp_path):
    model, ids = seq2seq(name), torch.randint(3, 40, (2, 5))
    inputs = {"input_ids": ids, "decoder_input_ids": ids}
    with skipping(blocks_of(dissect(model)), {1, 3}), torch.no_grad():
        expected = model(**inputs).logits
    drop_blocks(model, ["encoder.1", "decoder.1"])
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, expected, rtol=0, atol=1e-12)
        model.save_pretrained(tmp_path)
        again = type(model).from_pretrained(tmp_path, dtype=torch.float64).eval()
        torch.testing.assert_close(again(**inputs).logits, expected, rtol=0, atol=1e-12)


def test_blocks_of_nested_configs(tmp_path):
    kinds = ["full_attention", "sliding_attention", "sliding_attention"]
    text = {
        **LLAMA, "num_hidden_layers": 3, "layer_types": kinds, "use_sliding_window": True, "sliding_window": 2,
    }  # fmt: skip
    image = {**SMALL, "intermediate_size": 24, "image_size": 8, "patch_size": 4}
    tower = transformers.CLIPVisionConfig(**image)
    model = llava(transformers.Qwen2Config(**text), tower, 4, vision_feature_layer=-1)
    inputs = texts_with_image(2)
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    there = blocks_of(dissect(model))
    gone = ["decoder.0", "encoder.1"]
    with skipping(there, {there.labels.index(one) for one in gone}):
        expected = logits(model, inputs)
        written = model.generate(**inputs, use_cache=False, **options)
    drop_blocks(model, gone, inputs=inputs)
    torch.testing.assert_close(logits(model, inputs), expected, rtol=0, atol=1e-6)
    assert torch.equal(model.generate(**inputs, **options), written), "the cache is of other layers"
    own = next(module.config for module in model.modules() if type(module).__name__ == "Qwen2Model")
    for said in (model.config.text_config, own):
        assert (said.num_hidden_layers, said.layer_types) == (2, kinds[1:])
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path, dtype=torch.float64).eval()
    torch.testing.assert_close(logits(again, inputs), expected, rtol=0, atol=1e-6)
    assert (again.config.vision_config.num_hidden_layers, again.config.text_config.num_hidden_layers) == (1, 2)


@pytest.mark.parametrize(("layer", "block"), [(-2, "encoder.2"), (1, "encoder.0")])
def test_states_of_a_tower_that_are_read_by_number(layer, block):
    """Without the block, LLaVA reads the states of another: text alone does not show it."""
    image = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4}
    tower = transformers.CLIPVisionConfig(**image, image_size=8, patch_size=4)
    model = llava(transformers.LlamaConfig(**LLAMA), tower, 1, vision_feature_layer=layer)
    for inputs, why in (
        (None, "so its removal cannot be checked"),
        (texts_with_image(2), "would compute something else"),
    ):
        with pytest.raises(PruningError, match=why):
            drop_blocks(model, [block], inputs=inputs)
        assert blocks_of(dissect(model)).layers == 5


def test_a_copy_of_the_config_in_one_stack():
    model, ids = seq2seq("t5"), torch.randint(3, 40, (2, 5))
    inputs = {"input_ids": ids, "decoder_input_ids": ids}
    drop_blocks(model, ["encoder.1"])
    # The decoder's copy calls its own number so, and its cache is made by it.
    assert [model.encoder.config.num_layers, model.decoder.config.num_layers] == [1, 2]
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs, use_cache=True).logits, model(**inputs, use_cache=False).logits)


def test_settings_of_the_encoder_alone(tmp_path):
    config = transformers.LEDConfig(
        vocab_size=40, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, attention_window=4,
        decoder_attention_heads=4, encoder_ffn_dim=24, decoder_ffn_dim=24, max_encoder_position_embeddings=32,
    )  # fmt: skip
    model = transformers.LEDForConditionalGeneration(config).eval()
    drop_blocks(model, ["decoder.1"])
    assert (model.config.attention_window, model.config.decoder_layers) == ([4, 4], 1)
    drop_blocks(model, ["encoder.0"])
    assert (model.config.attention_window, model.config.encoder_layers) == ([4], 1)


def test_a_config_that_checks_itself_refuses_with_the_reason():
    if not hasattr(transformers, "OlmoHybridConfig"):
        pytest.skip("transformers 4 has no such model")
    kinds = ["linear_attention", "full_attention"]
    config = transformers.OlmoHybridConfig(**{**LLAMA, "layer_types": kinds})
    model = transformers.OlmoHybridForCausalLM(config).double().eval()
    refused(model, [1], PruningError, "(?s)OlmoHybridConfig refuses .*at least one attention layer")


def refused(model, blocks, error, told):
    before, said = {name: x.clone() for name, x in model.state_dict().items()}, model.config.to_dict()
    with pytest.raises(error, match=told):
        drop_blocks(model, blocks)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert model.config.to_dict() == said


def test_what_cannot_be_dropped():
    refused(BY_NAME["albert"].build(), [0], PruningError, "runs in several layers, which share its weights")
    refused(seq2seq("t5"), ["encoder.0"], PruningError, "relative_attention_bias")
    refused(BY_NAME["bert"].build(), [0, 1], PruningError, "all 2 blocks of the encoder cannot be dropped")
    refused(BY_NAME["bert"].build(), [2], HeadError, "there is no block 2: the blocks are 0, 1")
    refused(BY_NAME["bert"].build(), ["decoder.0"], HeadError, "there is no block")
    refused(BY_NAME["bert"].build(), "1", DataError, "blocks must be an iterable")
    model = BY_NAME["bert"].build()
    prune_heads(model, {0: [1]})
    refused(model, [1], PruningError, "pruned before.*drop blocks first")
    with pytest.raises(PruningError, match="a model of transformers, got Linear"):
        drop_blocks(torch.nn.Linear(2, 2), [0])
    xlm = transformers.XLMModel(transformers.XLMConfig(vocab_size=40, emb_dim=16, n_layers=2, n_heads=4))
    refused(xlm, [0], UnknownAnatomy, "is a block: its layers are several lists")


def test_block_ablation_is_dropping(tmp_path):
    model, inputs = deeper(BY_NAME["bert"]), batch()
    found = block_ablation(model, inputs, metric="inverse_loss")
    whole = model(**inputs).loss.item()
    for row in (0, 3):
        other = deeper(BY_NAME["bert"])
        drop_blocks(other, [row])
        assert found.loss_change[row].item() == pytest.approx(other(**inputs).loss.item() - whole, rel=1e-9)
    assert (found.part, found.labels) == ("block", ("0", "1", "2", "3"))


def test_the_result_saves_and_prints(tmp_path):
    model = BY_NAME["bert"].build()
    dropped = drop_blocks(model, [1])
    assert str(dropped).startswith("1 block dropped, 5,442 parameters before, ")
    dropped.save(tmp_path / "d")
    assert Result.load(tmp_path / "d") == dropped
    assert drop_blocks(model, []).blocks == ()


class NumberedConfig(transformers.BertConfig):
    """The config of a model that counts its blocks when it is built."""

    model_type = "numbered_for_a_test"


class Numbered(transformers.BertForSequenceClassification):
    config_class = NumberedConfig

    def __init__(self, config):
        super().__init__(config)
        self.blocks = config.num_hidden_layers

    def forward(self, **given):
        outputs = super().forward(**given)
        outputs.logits = outputs.logits + self.blocks - len(self.bert.encoder.layer)
        return outputs


def test_what_is_known_elsewhere_is_seen_and_undone():
    torch.manual_seed(0)
    model = Numbered(NumberedConfig(**SMALL, intermediate_size=24)).double().eval()
    inputs = batch(labels=False)
    expected = logits(model, inputs)
    own = model.bert.encoder.layer[1].attention.self
    own.layer_idx = 1
    refused(model, [0], PruningError, r"blocks cannot be dropped: .*compute something else \(1 apart\)")
    assert own.layer_idx == 1
    assert torch.equal(logits(model, inputs), expected)
    assert len(model.bert.encoder.layer) == 2


@pytest.mark.parametrize(("name", "how"), [("bert", "config"), ("bert", "argument"), ("gpt2", "argument")])
def test_outputs_in_a_tuple(name, how):
    """oracle: the same blocks dropped from a model that returns its outputs by name"""
    model, plain, inputs = deeper(BY_NAME[name]), deeper(BY_NAME[name]), batch(labels=False)
    drop_blocks(plain, [1])
    model.config.return_dict = how != "config"
    drop_blocks(model, [1], inputs=inputs if how == "config" else {**inputs, "return_dict": False})
    assert model.config.return_dict == (how != "config")
    torch.testing.assert_close(model(**inputs, return_dict=True).logits, plain(**inputs).logits)


def test_the_random_state_stays_as_it_was():
    model = BY_NAME["bert"].build()
    before = torch.get_rng_state()
    drop_blocks(model, [0])
    assert torch.equal(torch.get_rng_state(), before)


def test_inputs_that_the_model_does_not_run_on():
    sizes = {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    config = transformers.WhisperConfig(
        vocab_size=60, d_model=16, encoder_ffn_dim=24, decoder_ffn_dim=24, num_mel_bins=8, max_source_positions=10,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=3, **sizes,
    )  # fmt: skip
    model = transformers.WhisperForConditionalGeneration(config).eval()
    with pytest.raises(DataError, match="pass inputs=, a batch that the model accepts"):
        drop_blocks(model, ["encoder.1"], inputs={"input_features": torch.randn(2, 8, 20)})


def test_errors_of_this_library_come_through_as_they_are(monkeypatch):
    model = BY_NAME["bert"].build()

    def refuse(**given):
        raise UnknownAnatomy("block 0 cannot be skipped")

    monkeypatch.setattr(model, "forward", refuse)
    with pytest.raises(UnknownAnatomy, match="^block 0 cannot be skipped$"):
        drop_blocks(model, [0])
    assert dissect(model).layers == 2


def test_a_model_in_training_is_proved_without_dropout():
    model = BY_NAME["bert"].build(hidden_dropout_prob=0.5, num_hidden_layers=3).train()
    drop_blocks(model, [1])
    assert len(model.bert.encoder.layer) == 2
    assert all(module.training for module in model.modules())


class CountingConfig(transformers.BertConfig):
    """A config with a number of blocks that it computes, and one that must be even."""

    model_type = "counting_for_a_test"

    @property
    def depth(self):
        return self.num_hidden_layers

    def __setattr__(self, name, value):
        if name == "num_hidden_layers" and value % 2:
            raise ValueError("blocks come in pairs")
        super().__setattr__(name, value)


def test_numbers_that_a_config_computes_or_refuses():
    class Counting(transformers.BertForSequenceClassification):
        config_class = CountingConfig

    model = Counting(CountingConfig(**{**SMALL, "num_hidden_layers": 4}, intermediate_size=24)).eval()
    refused(model, [1], PruningError, r"CountingConfig refuses it \(blocks come in pairs\)")
    drop_blocks(model, [1, 2])
    assert (model.config.depth, len(model.bert.encoder.layer)) == (2, 2)


def test_blocks_that_compute_by_their_place_are_refused():
    class Placed(transformers.BertForSequenceClassification):
        def __init__(self, config):
            super().__init__(config)
            for number, layer in enumerate(self.bert.encoder.layer):
                layer.output.LayerNorm.eps = 0.2 * (number + 1)  # a block that is built in another place has another

    model = Placed(transformers.BertConfig(**SMALL, intermediate_size=24)).eval()
    refused(model, [0], PruningError, "loaded by its config it would compute something else")
    drop_blocks(model, [1])  # the others stay where they were


def test_blocks_that_are_in_no_list_or_not_in_memory():
    model = BY_NAME["bert"].build()
    model.bert.encoder.layer = torch.nn.Sequential(*model.bert.encoder.layer)
    refused(model, [0], PruningError, r"block 0 \(bert.encoder.layer.0\) is in no list of blocks")
    model = BY_NAME["bert"].build()
    model.bert.encoder.layer[1].to("meta")  # as after offloading
    with pytest.raises(PruningError, match=r"blocks cannot be dropped: 16 weights are not in memory"):
        drop_blocks(model, [0])


def test_annotations_for_measures_are_not_for_the_model(tmp_path):
    model, inputs = BY_NAME["bert"].build(), batch(labels=False)
    inputs["annotations"] = ["a"] * len(inputs["input_ids"])
    drop_blocks(model, [1], inputs=inputs)
    save_plain(model, tmp_path, inputs=inputs)
    assert (tmp_path / "config.json").is_file()


def test_another_thread_that_begins_to_measure_the_model_keeps_its_blocks(monkeypatch):
    """It may begin just after what is left was proved, and before blocks are removed."""
    model, begun, ends, threads = deeper(BY_NAME["bert"]), threading.Event(), threading.Event(), []
    proved = steps._prove

    def measure():
        with tap(model, "heads", read=lambda site, x: None):
            begun.set()
            ends.wait(20)

    def then_measured(*args):
        wanted = proved(*args)
        threads.append(threading.Thread(target=measure))
        threads[0].start()
        assert begun.wait(20)
        return wanted

    monkeypatch.setattr(steps, "_prove", then_measured)
    monkeypatch.setattr(steps, "_drop", lambda *args: pytest.fail("blocks of a model in use were removed"))
    try:
        with pytest.raises(BertologyError, match="is measured or edited by another thread"):
            drop_blocks(model, [1])
    finally:
        ends.set()
        threads[0].join()
    assert blocks_of(dissect(model)).layers == 4


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_cache_is_filled_by_no_pass_that_skips_blocks(name):
    """It would have gaps; and by the pass that checks the model without them, which must have a cache that works."""
    model, caches = deeper(BY_NAME[name], "lm"), []
    with torch.no_grad():
        model(**model.dummy_inputs)
    model.register_forward_hook(lambda module, args, outputs: caches.append(outputs.past_key_values))
    drop_blocks(model, [1])
    skipped, left = caches
    assert skipped is None
    assert left.get_seq_length() == model.dummy_inputs["input_ids"].shape[1]
    assert model.config.use_cache


def test_stacks_of_one_config_lose_their_own_blocks(tmp_path):
    """Where the number of one stack becomes that which the other had, it is not taken for the other's."""
    config = transformers.BartConfig(
        vocab_size=40, d_model=16, encoder_layers=4, decoder_layers=3, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=32,
    )  # fmt: skip
    model = transformers.BartModel(config).eval()
    inputs = {"input_ids": torch.randint(3, 40, (2, 5))}
    dropped = drop_blocks(model, ["encoder.1", "decoder.0"], inputs=inputs)
    assert dropped.blocks == ("encoder.1", "decoder.0")
    assert (model.config.encoder_layers, model.config.decoder_layers) == (3, 2)
    assert [len(model.encoder.layers), len(model.decoder.layers)] == [3, 2]
    drop_blocks(model, ["encoder.2"], inputs=inputs)
    assert (model.config.encoder_layers, model.config.decoder_layers, model.config.num_hidden_layers) == (2, 2, 2)
    model.save_pretrained(tmp_path)
    again = transformers.BartModel.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(**inputs)[0], model(**inputs)[0])


def test_an_error_after_the_removal_puts_all_configs_back(monkeypatch):
    """Also a stack's own copy, of which T5's decoder makes its cache."""
    model, checked = seq2seq("t5"), []
    before = [config.to_dict() for config in (model.config, model.encoder.config, model.decoder.config)]
    weights = {name: x.clone() for name, x in model.state_dict().items()}
    same = steps.check_same

    def once(*args):
        checked.append(args)
        if len(checked) == 2:
            assert len(model.encoder.block) == 1
            raise PruningError("not this one")
        same(*args)

    monkeypatch.setattr(steps, "check_same", once)
    with pytest.raises(PruningError, match="not this one"):
        drop_blocks(model, ["encoder.1"])
    assert [config.to_dict() for config in (model.config, model.encoder.config, model.decoder.config)] == before
    assert all(torch.equal(x, weights[name]) for name, x in model.state_dict().items())
    assert model.state_dict().keys() == weights.keys()


def test_no_block_is_no_work():
    model = deeper(BY_NAME["bert"])
    prune_heads(model, {0: [1]})
    model.register_forward_pre_hook(lambda module, args: pytest.fail("there is nothing to check"))
    dropped = drop_blocks(model, [])
    assert (dropped.blocks, dropped.parameters_before) == ((), dropped.parameters_after)


def test_only_settings_for_each_block_and_numbers_of_blocks_change():
    """A list of another length is about something else, and so is a number that is not the block's."""
    model = deeper(BY_NAME["gpt2"])
    model.config.block_kinds, model.config.windows = ("a", "b", "c", "d"), ["e", "f", "g"]
    blocks = model.transformer.h
    blocks[3].mlp.layer_idx, blocks[2].mlp.layer_idx = 77, None
    drop_blocks(model, [1])
    assert model.config.block_kinds == ("a", "c", "d")
    assert model.config.windows == ["e", "f", "g"]
    assert [blocks[2].mlp.layer_idx, blocks[1].mlp.layer_idx, blocks[2].attn.layer_idx] == [77, None, 2]
