from functools import cache

import pytest
import torch
import transformers

from bertology import (
    AttentionMaps,
    Captures,
    attention_maps,
    capture,
    gated,
    head_outputs,
    hidden_states,
    prune_heads,
)
from bertology.errors import DataError, LossError, UnknownAnatomy, how_many
from bertology.measures.example_maps import example_maps
from helpers.generation import bart, texts
from helpers.trees import wordpiece_tokenizer
from helpers.zoo import BY_NAME, SMALL, batch, each_alone

# oracle: the single functions, each with a pass of its own; slices of them; and the same texts one at a time.
ALL = {"hidden": True, "maps": True, "heads": True}
SINGLE = {"hidden": hidden_states, "maps": attention_maps, "heads": head_outputs}


@cache
def built(name):
    return BY_NAME[name].build(attention="eager")


def same(found, expected):
    for kind, one in expected.items():
        assert getattr(found, kind) == one, kind


def test_equals_the_single_functions(family, tmp_path):
    model, inputs = family.build(attention="eager"), batch()
    expected = {kind: measure(model, inputs) for kind, measure in SINGLE.items()}
    same(capture(model, inputs, **ALL), expected)
    saved = capture(model, inputs, **ALL, save=tmp_path / "captures")
    same(saved, expected)
    saved.check()
    with pytest.raises(AssertionError):
        same(saved, {"maps": attention_maps(model, batch((7, 5, 3)))})


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_other_attention_differs_by_rounding_alone(attention):
    # Not Llama, whose own eager attention takes its softmax in float32.
    model, inputs = BY_NAME["gpt2"].build(attention=attention), batch()
    found = capture(model, inputs, **ALL)
    for kind, measure in SINGLE.items():
        mine, expected = getattr(found, kind), measure(model, inputs)
        rows = [x.values.movedim(3, 2) if kind == "maps" else x.values for x in (mine, expected)]
        torch.testing.assert_close(rows[0][:, mine.mask], rows[1][:, mine.mask], rtol=0, atol=1e-12)


def test_layers_are_those_of_the_labels():
    model, inputs = built("gpt2"), batch()
    found, whole = capture(model, inputs, **ALL, layers=[1]), capture(model, inputs, **ALL)
    for kind in ALL:
        mine, all_of_them = getattr(found, kind), getattr(whole, kind)
        assert mine.labels == ("1",)
        assert torch.equal(mine.values, all_of_them.values[1:2])
    last = capture(model, inputs, hidden=True, layers=[0, "2"]).hidden
    assert last.labels == ("0", "2")
    assert torch.equal(last.values, whole.hidden.values[[0, 2]])  # the last one after the final norm, as by default
    raw = capture(model, inputs, hidden=True, layers=[2], tie_last_hidden_states=False).hidden
    assert torch.equal(raw.values[0], hidden_states(model, inputs, tie_last_hidden_states=False).values[2])


def test_layers_of_several_stacks():
    model, inputs = bart(), texts()[0]
    found, whole = capture(model, inputs, **ALL, layers=["decoder.1", "cross.0"]), capture(model, inputs, **ALL)
    assert found.maps.labels == ("decoder.1", "cross.0")
    assert torch.equal(found.maps.stacks["cross"], whole.maps.stacks["cross"][:1])
    assert torch.equal(found.heads.stacks["decoder"], whole.heads.stacks["decoder"][1:])


def test_positions_are_the_same_tokens_on_either_side_of_padding():
    model = BY_NAME["llama"].build()  # whose eager attention computes NaN behind padding in float64
    right, left = batch((7, 4, 5)), batch((7, 4, 5), side="left")
    wanted = [0, 2, -1]
    alone = [capture(model, one, **ALL, positions=wanted) for one in each_alone(right)]
    for inputs in (right, left):
        found, whole = capture(model, inputs, **ALL, positions=wanted), capture(model, inputs, **ALL)
        for row, one in enumerate(alone):
            real = whole.hidden.mask[row].nonzero().flatten()[wanted]
            for kind, axis in (("hidden", 1), ("heads", 1), ("maps", 2)):
                mine = getattr(found, kind)
                assert mine.mask.all()
                expected = getattr(whole, kind).values[:, row].index_select(axis, real)
                assert torch.equal(mine.values[:, row], expected)
                if kind != "maps":
                    torch.testing.assert_close(mine.values[:, row], getattr(one, kind).values[:, 0])
            keys = whole.hidden.mask[row]
            torch.testing.assert_close(found.maps.values[:, row][..., keys], one.maps.values[:, 0])


def test_a_token_that_a_text_does_not_have_is_nan():
    found = capture(built("bert"), batch((7, 3)), **ALL, positions=[5, -6]).hidden
    assert found.mask.tolist() == [[True, True], [False, False]]
    assert found.values[:, 1].isnan().all()
    assert not found.values[:, 0].isnan().any()


def test_types_and_devices(tmp_path):
    model, inputs = built("bert"), batch()
    whole = capture(model, inputs, **ALL, loss="auto")
    for where in ({}, {"save": tmp_path / "halves"}):
        half = capture(model, inputs, **ALL, loss="auto", dtype=torch.bfloat16, device="cpu", **where)
        for kind in ALL:
            assert torch.equal(getattr(half, kind).values, getattr(whole, kind).values.to(torch.bfloat16))
        assert torch.equal(half.heads.gradients, whole.heads.gradients.to(torch.bfloat16))
    with pytest.raises(DataError, match="float16 is 65504"), gated(model, torch.full((2, 4), 1e6)):
        capture(model, inputs, hidden=True, heads=True, dtype=torch.float16, tie_last_hidden_states=False)


def test_pruned_heads_and_layers(tmp_path):
    model, inputs = BY_NAME["bert"].build(attention="eager"), batch()
    prune_heads(model, {0: [1], 1: [0, 1, 2, 3]})
    expected = {kind: measure(model, inputs) for kind, measure in SINGLE.items()}
    same(capture(model, inputs, **ALL), expected)
    same(capture(model, inputs, **ALL, save=tmp_path / "captures"), expected)
    with pytest.raises(DataError, match="pruned"):
        capture(model, inputs, maps=True, layers=[1])


def test_texts(tmp_path):
    tokenizer = wordpiece_tokenizer()
    model = transformers.BertModel(transformers.BertConfig(**SMALL | {"vocab_size": len(tokenizer)}))
    texts = ["the cat sat", "the cat"]
    whole = capture(model, texts, tokenizer=tokenizer, maps=True, hidden=True)
    assert whole.maps.tokens == attention_maps(model, texts, tokenizer=tokenizer).tokens
    chosen = {"maps": True, "positions": [-1, 0, 1, 2, 3]}  # as many as there are keys
    some = capture(model, texts, tokenizer=tokenizer, **chosen)
    assert some.maps.tokens == whole.maps.tokens
    shown = example_maps(some.maps, 1, None, words=False)
    assert (shown.queries, shown.keys) == (["[SEP]", "[CLS]", "the", "cat", "[SEP]"], ["[CLS]", "the", "cat", "[SEP]"])
    torch.testing.assert_close(shown.maps[0, 0, 0], whole.maps.values[0, 1, 0, 3, :4])
    assert capture(model, texts, tokenizer=tokenizer, **chosen, save=tmp_path / "some").maps == some.maps
    some.maps.save(tmp_path / "maps.safetensors")
    assert AttentionMaps.load(tmp_path / "maps.safetensors") == some.maps
    saved = capture(model, texts, tokenizer=tokenizer, maps=True, save=tmp_path / "captures")
    assert saved.maps.tokens == whole.maps.tokens
    assert torch.equal(saved.maps.values, whole.maps.values)


def test_a_stream_is_written_batch_by_batch(tmp_path):
    model, folder = built("gpt2"), tmp_path / "captures"
    batches = [batch((7, 5)), batch((3,)), batch((6, 2, 2))]
    saved = capture(model, (one for one in batches), **ALL, save=folder, positions=[0, 3], dtype=torch.float32)
    assert len(saved) == 3
    assert repr(saved) == "Captures(3 batches)"
    for found, one in zip(saved, batches, strict=True):
        longest = one["attention_mask"].sum(1).max()
        expected = capture(model, one, hidden=True, dtype=torch.float32, positions=[0]).hidden
        assert torch.equal(found.hidden.values[:, :, :1], expected.values)
        assert found.hidden.mask[:, 1].any() == (longest > 3)
    again = Captures.open(folder)
    assert again[1:][0].maps == saved[1].maps
    with pytest.raises(DataError, match=r"captures of 3 batches: take one, such as captures\[0\].hidden"):
        _ = saved.hidden
    with pytest.raises(IndexError):
        saved[3]


class Stop(Exception):
    pass


@pytest.mark.parametrize("done", [0, 1, 2])
def test_an_interrupted_pass_resumes(tmp_path, done):
    model, folder, batches = built("bert"), tmp_path / "captures", [batch((7, 5)), batch((3,)), batch((6, 2))]
    whole = capture(model, batches, **ALL, save=tmp_path / "whole")
    runs = []
    handle = model.register_forward_pre_hook(lambda *_: runs.append(1))
    late = model.base_model.encoder.layer[1].register_forward_pre_hook(stop_after(done))
    try:
        with pytest.raises(Stop):
            capture(model, batches, **ALL, save=folder)
        late.remove()
        if done:
            with pytest.raises(DataError, match=f"interrupted, with {how_many(done, 'batch')} done"):
                Captures.open(folder)
        runs.clear()
        resumed = capture(model, batches, **ALL, save=folder)
        assert len(runs) == 3 - done
        runs.clear()
        capture(model, batches, **ALL, save=folder)
        assert not runs
    finally:
        handle.remove()
        late.remove()
    resumed.check()
    for mine, expected in zip(resumed, whole, strict=True):
        same(mine, {kind: getattr(expected, kind) for kind in ALL})
    sizes = [{path.name: path.stat().st_size for path in one.iterdir()} for one in (folder, tmp_path / "whole")]
    assert sizes[0] == sizes[1]


def stop_after(many):
    calls = []

    def hook(*_):
        calls.append(1)
        if len(calls) > many:
            raise Stop

    return hook


def test_a_folder_is_of_one_model_setting_and_data(tmp_path):
    model, folder = built("bert"), tmp_path / "captures"
    capture(model, [batch(), batch((3,))], hidden=True, save=folder)
    for wrong, words in (
        (lambda: capture(model, [batch(), batch((3,))], maps=True, save=folder), "of other settings"),
        (lambda: capture(BY_NAME["bert"].build(seed=1), batch(), hidden=True, save=folder), "of another model"),
        (lambda: capture(model, [batch(), batch((4,))], hidden=True, save=folder), "other data"),
        (lambda: capture(model, [batch()], hidden=True, save=folder), "2 batches, the data has only 1"),
        (lambda: capture(model, [batch(), batch((3,)), batch()], hidden=True, save=folder), "other data"),
    ):
        with pytest.raises(DataError, match=words):
            wrong()
    assert len(capture(model, [batch(), batch((3,))], hidden=True, save=folder)) == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "nothing is asked for"),
        (
            {"heads": True, "layers": [2]},
            "layer 2 is out of range: the head outputs of this model have the layers 0 to 1",
        ),
        ({"hidden": True, "layers": [-1]}, "layer -1 is out of range: the hidden states .* 0 to 2"),
        ({"hidden": True, "layers": []}, "layers is empty"),
        ({"hidden": True, "layers": 1}, "layers"),
        ({"hidden": True, "layers": [True]}, "layers"),
        ({"maps": True, "positions": [7]}, "position 7 is out of range: the longest text has 7 tokens"),
        ({"maps": True, "positions": [0.5]}, "positions"),
        ({"maps": True, "positions": []}, "positions"),
        ({"maps": True, "loss": "auto"}, "pass heads=True"),
        ({"heads": True, "loss": "mine"}, "loss must be"),
        ({"hidden": True, "dtype": torch.int64}, "dtype must be"),
        ({"hidden": True, "device": "moon"}, "device must be"),
    ],
)
def test_arguments_that_cannot_be_used(options, words, tmp_path):
    for save in ({}, {"save": tmp_path / "captures"}):
        if "positions" in options and save:
            continue  # of a stream, no text needs to be so long
        with pytest.raises(DataError, match=words):
            capture(built("bert"), batch(), **options, **save)
    assert not (tmp_path / "captures").exists()


def test_a_loss_needs_labels_and_a_folder_must_be_its_own(tmp_path):
    inputs = {name: x for name, x in batch().items() if name != "labels"}
    with pytest.raises(LossError, match="needs labels"):
        capture(built("bert"), inputs, heads=True, loss="auto")
    (tmp_path / "a.txt").write_text("mine")
    with pytest.raises(DataError, match=r"holds other files \(a.txt\)"):
        capture(built("bert"), inputs, hidden=True, save=tmp_path)
    with pytest.raises(DataError, match="no attention maps were captured"):
        _ = capture(built("bert"), inputs, hidden=True).maps
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


class Twice(torch.nn.Module):
    """One encoder that two texts share."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder, self.config = encoder, encoder.config

    def forward(self, input_ids, attention_mask=None):
        return self.encoder(input_ids), self.encoder(input_ids.flip(1))


def test_a_stack_that_runs_twice(tmp_path):
    model, inputs = Twice(built("bert").base_model), {"input_ids": batch((7,))["input_ids"]}
    some = {"hidden": hidden_states(model, inputs), "maps": attention_maps(model, inputs)}
    assert "encoder (run 2)" in some["maps"].stacks
    same(capture(model, inputs, hidden=True, maps=True), some)
    same(capture(model, inputs, hidden=True, maps=True, save=tmp_path / "captures"), some)
    with pytest.raises(DataError, match="several times"):
        capture(model, inputs, hidden=True, positions=[0])
    with pytest.raises(UnknownAnatomy, match="several times"):
        capture(model, inputs, heads=True)


def test_printing_names_the_axes(tmp_path):
    model, inputs = BY_NAME["bert"].build(), batch((3, 6))
    found = capture(model, inputs, hidden=True, maps=True)
    hidden, maps = str(found).split("\n\n")
    assert (hidden, maps) == (str(found.hidden), str(found.maps))
    assert "stacks [layer, batch, token, hidden]: {encoder: [3, 2, 6, 16]}" in hidden
    assert "stacks [layer, batch, head, query, key]: {encoder: [2, 2, 4, 6, 6]}" in maps
    assert str(capture(model, [inputs, inputs], hidden=True, save=tmp_path / "two")) == "Captures(2 batches)"
