"""An anatomy that is kept is never stale: whatever changes in a model, `dissect` says what it would say the first time."""

import copy
import gc
import pickle
import weakref
from dataclasses import fields
from unittest import mock

import pytest
import torch
from torch import nn

from bertology import (
    Names,
    attention_entropy,
    attention_maps,
    dissect,
    gated,
    head_importance,
    hidden_states,
    prune_heads,
    register_names,
)  # fmt: skip
from bertology.anatomy.dissect import _dissected
from bertology.anatomy.modules import each_module, each_weight
from bertology.anatomy.names import NAMES
from bertology.errors import UnknownAnatomy
from bertology.tap import tap
from helpers.zoo import BY_NAME, batch


def parts(anatomy):
    """All that an anatomy says."""
    return [[getattr(one, field.name) for field in fields(one)] for one in (*anatomy.sites, *anatomy.stacks)] + [
        anatomy.model, dict(anatomy.unmeasured), anatomy.labels,
    ]  # fmt: skip


def check(model):
    for _ in range(2):
        assert parts(dissect(model)) == parts(_dissected(model))


def test_it_is_what_was_found(family):
    for kind in ("classifier", "lm"):
        check(family.build(kind))


def test_modules_and_weights_are_those_of_torch(family):
    model = family.build()
    assert each_module(model) == list(model.modules())
    assert {id(x) for x in each_weight(model.modules())} == {id(x) for x in (*model.parameters(), *model.buffers())}


def prune(model):
    prune_heads(model, {0: [1], 1: [0, 2]})


def prune_as_transformers_did(model):
    attention = model.bert.encoder.layer[1].attention
    attention.pruned_heads = {3}
    inner = attention.self
    inner.num_attention_heads, inner.all_head_size = 3, 3 * inner.attention_head_size
    for name in ("query", "key", "value"):
        setattr(inner, name, nn.Linear(inner.query.in_features, 3 * inner.attention_head_size))
    attention.output.dense = nn.Linear(3 * inner.attention_head_size, attention.output.dense.out_features)


def swap_a_block(model):
    model.bert.encoder.layer[0] = copy.deepcopy(model.bert.encoder.layer[0])


def swap_a_projection(model):
    old = model.bert.encoder.layer[1].attention.output.dense
    model.bert.encoder.layer[1].attention.output.dense = nn.Linear(old.in_features, old.out_features)


def drop_a_block(model):
    del model.bert.encoder.layer[1]


def add_a_block(model):
    model.bert.encoder.layer.append(copy.deepcopy(model.bert.encoder.layer[0]))


def share_a_block(model):
    model.bert.encoder.layer[1] = model.bert.encoder.layer[0]


def turn_the_blocks_around(model):
    model.bert.encoder.layer = nn.ModuleList(reversed(model.bert.encoder.layer))


def wrap_a_projection(model):
    output = model.bert.encoder.layer[0].attention.output
    output.dense = nn.Sequential(output.dense)


def read_other_heads(model):
    for block in model.bert.encoder.layer:
        block.attention.self.num_attention_heads, block.attention.self.attention_head_size = 2, 8


def swap_queries_and_keys(model):
    """The same modules, of the same types, under each other's names."""
    attention = model.bert.encoder.layer[0].attention.self
    attention.query, attention.key = attention.key, attention.query


CHANGES = [
    swap_queries_and_keys, prune, prune_as_transformers_did, swap_a_block, swap_a_projection, drop_a_block, add_a_block, share_a_block,
    turn_the_blocks_around, wrap_a_projection, read_other_heads,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_it_is_never_stale(change):
    model = BY_NAME["bert"].build()
    before = parts(dissect(model))
    change(model)
    assert parts(dissect(model)) != before, "the change matters"
    check(model)


@pytest.mark.parametrize("change", [swap_a_block, swap_queries_and_keys, drop_a_block])
def test_a_change_that_is_taken_back_is_seen_both_times(change):
    model = BY_NAME["bert"].build()
    before, blocks = parts(dissect(model)), list(model.bert.encoder.layer)
    query, key = blocks[0].attention.self.query, blocks[0].attention.self.key
    change(model)
    assert parts(dissect(model)) != before
    model.bert.encoder.layer = nn.ModuleList(blocks)
    blocks[0].attention.self.query, blocks[0].attention.self.key = query, key
    assert parts(dissect(model)) == before
    check(model)


def with_configs(model):
    return [module for module in model.modules() if "config" in vars(module)]


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_a_config_that_is_replaced_between_calls_is_the_one_that_is_switched(name):
    """Were the old one switched, no map would be read; were it the new one alone, it would not be switched back."""
    model = BY_NAME[name].build()
    expected, old = attention_maps(model, batch()).values, model.config
    new = copy.deepcopy(old)
    for module in with_configs(model):
        module.config = new
    before = copy.deepcopy(vars(new))
    assert torch.equal(attention_maps(model, batch()).values, expected)
    assert dissect(model).modules.configs == [new]
    assert dissect(model).modules.configs[0] is new
    assert vars(new) == before


def test_configs_that_modules_get_or_lose_between_calls_are_seen():
    model = BY_NAME["gpt2"].build()
    model.eval()
    dissect(model)
    first = model.transformer.h[0].ln_1
    first.config = copy.deepcopy(model.config)
    assert [first.config] == [one for one in dissect(model).modules.configs if one is not model.config]
    assert first in dissect(model).modules.with_config
    del first.config
    assert dissect(model).modules.with_config == with_configs(model)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_an_attention_implementation_that_is_set_between_calls_is_used(attention):
    model = BY_NAME["gpt2"].build()
    hidden_states(model, batch())
    model.set_attn_implementation(attention)
    same = copy.deepcopy(model)
    assert torch.equal(hidden_states(model, batch()).values, hidden_states(same, batch()).values)
    assert torch.equal(attention_maps(model, batch()).values, attention_maps(same, batch()).values)
    assert model.config._attn_implementation == attention


def test_a_wrapper_and_what_is_in_it_have_their_own():
    model = BY_NAME["gpt2"].build()
    for whole in (model, nn.Sequential(model), model.transformer, nn.DataParallel(model), model):
        check(whole)


def test_names_that_are_registered_later_are_seen():
    class Attention(nn.Module):
        num_heads, head_dim = 4, 8

        def __init__(self):
            super().__init__()
            self.one, self.two, self.three, self.four = (nn.Linear(32, 32) for _ in range(4))

    model, before = nn.ModuleList([Attention(), Attention()]), list(NAMES)
    with pytest.raises(UnknownAnatomy):
        dissect(model)
    try:
        register_names(Names("one", "two", "three", "four"))
        check(model)
        NAMES[:] = [Names("two", "one", "three", "four"), *before]
        check(model)
    finally:
        NAMES[:] = before
    with pytest.raises(UnknownAnatomy):
        dissect(model)


def test_it_is_searched_once():
    model = BY_NAME["bert"].build()
    with mock.patch("bertology.anatomy.kept.Anatomy", side_effect=AssertionError("was kept")):
        dissect(model)  # the first time it is found
        with pytest.raises(AssertionError, match="was kept"):
            dissect(model)


def test_a_model_that_is_trained_between_measures_is_not_searched_again():
    model = BY_NAME["gpt2"].build()
    dissect(model)
    model.train()
    with mock.patch("bertology.anatomy.dissect.find_attentions", side_effect=AssertionError("was searched")):
        assert dissect(model).layers == 2


def say_it_in_other_words(model):
    """An attribute of another type, in the place of one of the same value."""
    model.transformer.h[1].attn.num_heads = float(model.transformer.h[1].attn.num_heads)


def leave_out_an_attribute(model):
    attention = model.transformer.h[1].attn
    del attention.num_heads
    attention.heads = 4


def change_the_record_in_place(model):
    model.transformer.h[0].attn.pruned_heads.add(2)


def change_the_config(model):
    model.config.n_head = 2


@pytest.mark.parametrize(
    "change", [say_it_in_other_words, leave_out_an_attribute, change_the_record_in_place, change_the_config]
)
def test_what_modules_and_configs_say_is_compared(change):
    model = BY_NAME["gpt2"].build()
    model.transformer.h[0].attn.pruned_heads = set()
    dissect(model)
    change(model)
    searched = mock.patch("bertology.anatomy.dissect.find_attentions", side_effect=AssertionError("was searched"))
    with searched, pytest.raises(AssertionError, match="was searched"):
        dissect(model)


@pytest.mark.parametrize("change", [swap_a_block, prune, wrap_a_projection])
def test_stacks_hold_the_modules_that_are_there_now(change):
    model = BY_NAME["bert"].build()
    dissect(model)
    change(model)
    for _ in range(2):
        anatomy = dissect(model)
        assert list(anatomy.modules) == list(model.modules())
        for stack in anatomy.stacks:
            assert anatomy.parts_of_stacks[stack.module] == set(stack.module.modules())


def test_a_tap_on_an_anatomy_that_is_out_of_date_is_refused():
    model = BY_NAME["bert"].build()
    old = dissect(model)
    swap_a_projection(model)
    with pytest.raises(UnknownAnatomy, match="dissect it again"), tap(old, "heads", read=print):
        pass
    with gated(model, torch.ones(2, 4)), pytest.raises(UnknownAnatomy, match="again"), tap(old, "heads", read=print):
        pass


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_it_keeps_no_model_and_no_part_of_one_in_memory(name):
    model = BY_NAME[name].build("lm")
    dissect(model)
    old = next(module for module in model.modules() if isinstance(module, nn.Linear))
    path = next(path for path, module in model.named_modules() if module is old)
    model.set_submodule(path, nn.Linear(old.in_features, old.out_features, bias=False).double())
    gone = weakref.ref(old)
    del old
    gc.collect()
    assert gone() is None
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_a_model_is_freed_at_once_and_not_when_cycles_are_collected(name):
    model = BY_NAME[name].build()
    gc.collect()
    gc.disable()
    try:
        head_importance(model, batch())
        attention_entropy(model, batch())
        with gated(model, torch.ones(2, 4)):
            pass
        assert each_module(model)
        assert each_weight(each_module(model))
        gone = weakref.ref(model)
        del model
        assert gone() is None
    finally:
        gc.enable()


def test_measures_between_changes_are_those_of_a_new_model():
    """Heads are cut, a block is taken out and put back, and gates are open meanwhile."""
    model = BY_NAME["bert"].build()
    second, same = model.bert.encoder.layer[1], lambda: copy.deepcopy(model)

    def check_measures():
        torch.testing.assert_close(
            head_importance(model, batch()).scores, head_importance(same(), batch()).scores, equal_nan=True
        )
        torch.testing.assert_close(
            attention_entropy(model, batch()).mean, attention_entropy(same(), batch()).mean, equal_nan=True
        )

    check_measures()
    prune_heads(model, {0: [2]})
    check_measures()
    del model.bert.encoder.layer[1]
    check_measures()
    model.bert.encoder.layer.append(second)
    with gated(model, torch.full((2, 4), 0.5)):
        assert dissect(model).layers == 2
    check_measures()


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("compiled", [torch.jit.script, lambda part: torch.jit.trace(part, torch.randn(2, 5, 8))])
def test_a_part_in_torchscript_is_as_any_other_except_for_gradients(compiled):
    model = BY_NAME["gpt2"].build("lm")
    for block in model.transformer.h:
        block.mlp.act = nn.Sequential(nn.GELU(), nn.Identity())
    scripted = copy.deepcopy(model)
    for block in scripted.transformer.h:
        block.mlp.act = compiled(block.mlp.act)
    check(scripted)
    texts = {"input_ids": batch()["input_ids"], "labels": batch()["input_ids"]}
    torch.testing.assert_close(hidden_states(scripted, texts).values, hidden_states(model, texts).values)
    for _ in range(2):
        with pytest.raises(UnknownAnatomy, match="part of this GPT2LMHeadModel is in TorchScript"):
            head_importance(scripted, texts)


class Holds(nn.Module):
    def __init__(self, model, config):
        super().__init__()
        self.model, self.config = model, config

    def forward(self, input_ids):
        return self.model(input_ids)


@pytest.mark.filterwarnings("ignore")  # torch's, while it traces
def test_heads_in_torchscript_are_refused():
    model, ids = BY_NAME["bert"].build().bert, batch()["input_ids"]
    whole = torch.jit.trace(model, ids, strict=False)
    for traced, part in ((whole, "the model"), (Holds(whole, model.config), "model")):
        with pytest.raises(UnknownAnatomy, match=f"^{part} is in TorchScript, where no heads can be read"):
            dissect(traced)
    attention = model.encoder.layer[1].attention
    attention.output = torch.jit.trace(attention.output, (torch.randn(2, 3, 16).double(),) * 2)
    with pytest.raises(UnknownAnatomy, match=r"layer\.1\.attention\.output is in TorchScript"):
        dissect(model)


def test_a_copy_of_a_model_has_modules_of_its_own():
    model = BY_NAME["bert"].build()
    dissect(model)
    other = copy.deepcopy(model)
    check(other)
    assert not {site.attention for site in dissect(other).sites} & {site.attention for site in dissect(model).sites}


def test_an_anatomy_is_pickled_and_copied():
    anatomy = dissect(BY_NAME["bert"].build())
    for other in (pickle.loads(pickle.dumps(anatomy)), copy.deepcopy(anatomy)):
        assert other.model is not anatomy.model
        assert {site.attention for site in other.sites} <= {*other.model.modules()}
        assert parts(other) == parts(dissect(other.model))


def test_a_part_that_a_projection_gets_between_calls_runs_in_eval_mode_and_gets_its_mode_back():
    """A module without parts gets one, as parametrizations and adapters do it."""
    model, given = BY_NAME["bert"].build(), batch()
    expected = hidden_states(model, given).values
    dense = model.bert.encoder.layer[1].attention.output.dense
    dense.dropped = nn.Dropout(0.9).train()
    undo = dense.register_forward_hook(lambda module, args, output: module.dropped(output))
    torch.testing.assert_close(hidden_states(model, given).values, expected, rtol=0, atol=0)
    assert dense.dropped.training
    assert dense.dropped in each_module(model)
    undo.remove()
    del dense.dropped
    assert each_module(model) == list(model.modules())


def louder_by_class(dense):
    """Another class in place of its own, which is how parametrizations are made."""
    kind = type(dense)
    dense.__class__ = type("Louder", (kind,), {"forward": lambda self, x: 2 * kind.forward(self, x)})


def louder_by_forward(dense):
    own = dense.forward
    dense.forward = lambda x: own(x) * 2


def louder_by_hook(dense):
    dense.register_forward_hook(lambda module, args, output: output * 2)


@pytest.mark.parametrize("change", [louder_by_class, louder_by_forward, louder_by_hook])
def test_a_projection_that_computes_something_else_between_calls_is_read_as_it_is(change):
    model, new, given = BY_NAME["gpt"].build(), BY_NAME["gpt"].build(), batch()
    new.load_state_dict(model.state_dict())
    before = hidden_states(model, given).values
    projections = [one.transformer.h[0].mlp.c_proj for one in (model, new)]
    for dense in projections:
        change(dense)
    found = hidden_states(model, given).values
    assert not torch.equal(found, before)
    assert torch.equal(found, hidden_states(new, given).values)


def test_attributes_that_modules_or_classes_get_between_calls_are_seen():
    class Marked(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(2, 2), Marked(2, 2))
    assert each_module(model).with_attribute("mark") == []
    model[0].mark = None
    assert each_module(model).with_attribute("mark") == [model[0]]
    Marked.mark = 1
    assert each_module(model).with_attribute("mark") == [model[0], model[1]]
    del model[0].mark, Marked.mark
    assert each_module(model).with_attribute("mark") == []
