"""What breaks when torch or transformers change what is private to them: one test for each name."""

from __future__ import annotations

import sys
import types
from contextlib import ExitStack, contextmanager
from functools import partial

import pytest
import torch
import torch.utils.checkpoint
import transformers
from torch import nn
from torch.overrides import TorchFunctionMode

from bertology.tap.private_api import (
    ATTENTION_SETTING,
    Hook,
    code_parts,
    current_modes,
    edit_output,
    function_parts,
    fused_attention,
    globals_read,
    has_own_hooks,
    has_pre_hooks,
    hook_behind_own,
    library_versions,
    may_be_compiled,
    module_states,
    push_mode,
    replace_entry,
    replace_forward,
    running_modules,
    set_hooks,
    wrap_checkpoints,
)
from helpers.zoo import BY_NAME, batch


def test_the_setting_chooses_the_attention_function():
    model = BY_NAME["llama"].build(attention="eager")
    assert hasattr(model.config, ATTENTION_SETTING), (
        f"configs of transformers {transformers.__version__} have no {ATTENTION_SETTING}: attention maps, entropies "
        "and gradients cannot be read from models on the attention interface"
    )
    seen = []
    transformers.modeling_utils.AttentionInterface.register("asked", lambda *args, **kwargs: seen.append(args))
    setattr(model.config, ATTENTION_SETTING, "asked")
    with pytest.raises(TypeError):  # what it returned is no attention
        model(**batch())
    assert seen, f"modules no longer look up their attention function by {ATTENTION_SETTING} when they run"
    setattr(model.config, ATTENTION_SETTING, "eager")
    model(**batch())


class Doubling(nn.Module):
    def forward(self, x, *, times=2):
        if times < 0:
            raise ValueError(times)
        return x * times


HOOKS = [
    {"before": True}, {"before": True, "with_kwargs": True}, {"before": True, "prepend": True}, {}, {"prepend": True},
    {"with_kwargs": True}, {"always_call": True}, {"always_call": True, "with_kwargs": True, "prepend": True},
]  # fmt: skip


@pytest.mark.parametrize("how", HOOKS)
def test_hooks_that_are_set_are_called_and_removed_as_those_of_torch(how):
    def calls(set_it):
        module, seen = Doubling(), []
        register = module.register_forward_pre_hook if how.get("before") else module.register_forward_hook
        register(lambda *given: seen.append(("other", given[1:])))
        before = {name: dict(held) for name, held in vars(module).items() if "hook" in name and isinstance(held, dict)}
        with ExitStack() as undo:
            set_it(module, lambda *given: seen.append(("own", given[1:])), undo)
            for times in (3, -1):
                with pytest.raises(ValueError, match="-1") if times < 0 else ExitStack():
                    module(2, times=times)
        many = len(seen)
        module(2)
        left = {name: dict(held) for name, held in vars(module).items() if name in before}
        return seen[:many], len(seen) - many, left == before

    def by_torch(module, hook, undo):
        options = {name: value for name, value in how.items() if name != "before"}
        register = module.register_forward_pre_hook if how.get("before") else module.register_forward_hook
        undo.callback(register(hook, **options).remove)

    ours = calls(lambda module, hook, undo: set_hooks([Hook([module], hook, **how)], undo))
    assert ours == calls(by_torch), "modules keep their hooks elsewhere: nothing would be read, or hooks would stay"
    assert any(who == "own" for who, _ in ours[0])
    assert ours[1:] == (1, True)


def test_hooks_get_numbers_of_their_own():
    """A hook that torch sets later must not take the place of one of ours, nor be removed with it."""
    module, seen = Doubling(), []
    with ExitStack() as undo:
        set_hooks([Hook([module], lambda *_: seen.append("ours"))], undo)
        module.register_forward_hook(lambda *_: seen.append("other"))
        module(1)
    module(1)
    assert seen == ["ours", "other", "other"]


class Seeing(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_modes_see_torch_functions_until_they_leave_in_any_order(order):
    modes, undo = [Seeing() for _ in range(3)], [ExitStack() for _ in range(3)]
    for mode, stack in zip(modes, undo, strict=True):
        push_mode(mode, stack)
    for gone, number in enumerate(order, start=1):
        torch.softmax(torch.ones(2), -1)
        assert all(torch.softmax in mode.seen for mode in modes if mode not in [modes[n] for n in order[: gone - 1]]), (
            "a mode on torch's private stack no longer sees torch's functions: the softmax of models off the attention "
            "interface and XLNet's products cannot be watched"
        )
        undo[number].close()
        for mode in modes:
            mode.seen.clear()
    torch.softmax(torch.ones(2), -1)
    assert not any(mode.seen for mode in modes), "a mode stayed on torch's stack after its tap was closed"


def test_a_mode_that_another_removed_is_left_alone():
    undo = ExitStack()
    mode = Seeing()
    push_mode(mode, undo)
    torch.overrides._pop_mode()
    undo.close()
    assert torch.overrides._get_current_function_mode_stack() == []


def test_compiling_imports_the_compiler():
    torch.compile(nn.Linear(1, 1), backend="eager")
    assert may_be_compiled(), (
        "torch's compiler is imported by another name than torch._dynamo: graphs that were compiled before a tap was "
        "opened would not be switched off, and would go past its hooks"
    )


def test_a_replaced_forward_runs_and_is_put_back():
    layer, x = nn.Linear(2, 2), torch.ones(1, 2)
    before = layer(x)
    with ExitStack() as outer:
        replace_forward(layer, lambda x: x + 1, outer)
        with ExitStack() as inner:
            replace_forward(layer, lambda x: x + 2, inner)
            assert torch.equal(layer(x), x + 2), (
                "calling a module no longer calls the `forward` of the instance: ablations could not resume a pass"
            )
        assert torch.equal(layer(x), x + 1)
    assert torch.equal(layer(x), before)
    assert "forward" not in vars(layer)


def test_edits_of_an_output_come_before_hooks_and_end_in_any_order():
    layer, x, seen = nn.Linear(2, 2), torch.ones(1, 2), []
    before = layer(x)
    hook = layer.register_forward_hook(lambda module, args, output: seen.append(output))
    first, second = ExitStack(), ExitStack()
    edit_output(layer, lambda module, args, output: output + args[0], first)
    edit_output(layer, lambda module, args, output: output * 2, second)
    edit_output(layer, lambda module, args, output: None, second)
    assert torch.equal(layer(x), before * 2 + x), "the newest edit comes first"
    assert torch.equal(seen[-1], before * 2 + x)
    first.close()
    assert torch.equal(layer(x), before * 2)
    second.close()
    hook.remove()
    assert torch.equal(layer(x), before)
    assert "forward" not in vars(layer)


def test_a_hook_behind_own_hooks_comes_before_those_of_transformers():
    layer, order = nn.Linear(2, 2), []

    def named(name, module):
        def hook(layer, args, output):
            order.append(name)

        hook.__module__ = module
        return hook

    layer.register_forward_hook(named("recorder", "transformers.utils.output_capturing"))
    assert not has_own_hooks(layer)
    first = hook_behind_own(layer, named("first", "bertology.tap"))
    layer.register_forward_hook(partial(named("own", "my_study")))
    layer.register_forward_hook(named("reader", "bertology.tap"))
    assert has_own_hooks(layer)
    newest = hook_behind_own(layer, named("newest", "bertology.tap"))
    layer(torch.ones(1, 2))
    assert order == ["first", "recorder", "own", "newest", "reader"]
    order.clear()
    first.remove()
    newest.remove()
    layer(torch.ones(1, 2))
    assert order == ["recorder", "own", "reader"]


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_gives_its_function_to_the_wrappers(reentrant):
    runs = []

    def both(function):
        return lambda *args: (runs.append("one of both"), function(*args))[1]

    def second(function):
        return lambda *args: (runs.append("second"), function(*args))[1]

    @contextmanager
    def first():
        runs.append("first")
        yield

    x = torch.ones(2, requires_grad=True)
    with ExitStack() as undo:
        wrap_checkpoints(both, second, first, undo)
        y = torch.utils.checkpoint.checkpoint(torch.exp, x, use_reentrant=reentrant)
    y.sum().backward()
    assert runs == (["one of both", "one of both"] if reentrant else ["first", "second"]), (
        "torch's checkpoints look up their two variants elsewhere: gates and edits are left out of parts that run again"
    )
    runs.clear()
    torch.utils.checkpoint.checkpoint(torch.exp, x, use_reentrant=reentrant).sum().backward()
    assert not runs


def test_gradient_checkpointing_that_someone_else_replaced_is_wrapped_too(monkeypatch):
    """What is in its place need not be hashable, and comes back."""
    first, runs = torch.utils.checkpoint.CheckpointFunction, []
    theirs = types.SimpleNamespace(apply=lambda *args: (runs.append("theirs"), first.apply(*args))[1])
    monkeypatch.setattr(torch.utils.checkpoint, "CheckpointFunction", theirs)

    def both(function):
        return lambda *args: (runs.append("one of both"), function(*args))[1]

    x = torch.ones(2, requires_grad=True)
    for _ in range(2):
        with ExitStack() as undo:
            wrap_checkpoints(both, both, ExitStack, undo)
            torch.utils.checkpoint.checkpoint(torch.exp, x, use_reentrant=True)
        assert torch.utils.checkpoint.CheckpointFunction is theirs
    assert runs == ["theirs", "one of both"] * 2


def test_the_modules_that_are_running_are_known():
    seen = []

    class Inner(nn.Module):
        def forward(self, x):
            seen.extend(running_modules())
            return x

    inner = Inner()
    outer = nn.Sequential(inner, nn.Identity())
    outer(torch.ones(1))
    why = "frames no longer hold `self`: a lost gradient is not ascribed to its module"
    assert list(dict.fromkeys(seen)) == [inner, outer], why
    assert not list(running_modules())


def test_the_modes_that_see_a_call_are_known():
    mode = Seeing()
    with ExitStack() as undo:
        push_mode(mode, undo)
        assert current_modes()[-1] is mode
    assert mode not in current_modes()


LIMIT = 3


def test_the_parts_of_a_function_are_all_that_it_computes_with():
    def made(held, *, given=1):
        def inner(x, option=given):
            return [y + held + LIMIT for y in x if y < later]

        parts = function_parts(inner)
        later = 2
        return inner, parts

    inner, early = made(5)
    parts = function_parts(inner)
    assert early[1:] == ((1,), None, 5), "a cell that is not filled is no longer left out"
    assert parts[1:] == ((1,), None, 5, 2), "defaults and closures of functions are no longer found"
    assert globals_read(inner) == {"LIMIT"}, "the instructions that read globals have other names"
    one, other, same = (code_parts(f.__code__) for f in (lambda x: x + 1, lambda x: x + 2, lambda y: y))
    assert one != other
    assert one[0] == other[0]
    assert same[0] != one[0]
    assert code_parts((lambda x: x + 1).__code__) == one, "code differs by where it stands"


def test_versions_are_those_of_the_packages():
    assert library_versions() == (torch.__version__, transformers.__version__)


@pytest.mark.parametrize("local", [False, True])
def test_a_function_of_the_interface_is_replaced_and_put_back(local):
    def first():
        pass

    def second():
        pass

    interface = transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS
    if local:
        interface["replaced"] = first
    else:
        transformers.modeling_utils.AttentionInterface.register("replaced", first)
    why = "the attention interface is no longer a mapping: maps of a custom attention function cannot be read"
    with ExitStack() as undo:
        replace_entry(interface, "replaced", second, undo)
        assert interface["replaced"] is second, why
    assert interface["replaced"] is first, why
    if local:
        del interface["replaced"]
    else:
        assert "replaced" not in interface._local_mapping, why


def test_hooks_on_inputs_are_seen():
    module = torch.nn.Linear(2, 2)
    assert not has_pre_hooks(module)
    hook = module.register_forward_pre_hook(lambda *_: None, with_kwargs=False)
    assert has_pre_hooks(module)
    hook.remove()
    assert not has_pre_hooks(module)


def test_the_state_of_a_module_changes_with_its_attributes_hooks_and_checkpointing():
    model = BY_NAME["bert"].build()
    layer = model.bert.encoder.layer[0]
    assert hasattr(layer, "gradient_checkpointing"), "transformers' switch has another name"
    states = [module_states([vars(layer)])]
    for change in (
        lambda: layer.register_forward_hook(lambda *_: None),
        lambda: layer.register_forward_pre_hook(lambda *_: None),
        lambda: setattr(layer, "forward", layer.forward),
        lambda: setattr(layer, "gradient_checkpointing", True),
        lambda: setattr(layer, "gradient_checkpointing", False),
    ):
        change()
        states.append(module_states([vars(layer)]))
        assert states[-1] != states[-2], "a part that loses gradients would not be seen after a first pass without it"


def test_fused_kernels_return_the_logarithm_of_the_sum():
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, heads, 5, width) for heads, width in ((4, 8), (2, 8), (2, 3)))
    output, top = fused_attention(query, key, value, None, True, 0.3)
    scores = 0.3 * query @ key.repeat_interleave(2, 1).mT + torch.full((5, 5), -torch.inf).triu(1)
    torch.testing.assert_close(top, scores.logsumexp(-1), msg="torch's kernel for the CPU no longer gives ln Σ exp")
    torch.testing.assert_close(output, scores.softmax(-1) @ value.repeat_interleave(2, 1))
    on_gpu = {
        "_scaled_dot_product_flash_attention": ["query", "key", "value", "dropout_p", "is_causal", "return_debug_mask"],
        "_scaled_dot_product_efficient_attention": [
            "query", "key", "value", "attn_bias", "compute_log_sumexp", "dropout_p", "is_causal",
        ],
    }  # fmt: skip
    for name, wanted in on_gpu.items():
        schema = getattr(torch.ops.aten, name).default._schema
        assert [one.name for one in schema.arguments] == [*wanted, "scale"], f"{name} takes other arguments"
        assert [one.name.replace("_", "") for one in schema.returns[:2]] == ["output", "logsumexp"]


def test_kernels_of_a_gpu_are_called_as_they_are_declared(monkeypatch):
    """On tensors without numbers, which torch checks against the kernels' shapes."""
    from bertology.tap import private_api

    monkeypatch.setattr(private_api, "_device_of", lambda x: "cuda")
    for masked, flash in ((False, True), (False, False), (True, True)):
        monkeypatch.setattr(private_api, "can_use_flash_attention", lambda given, can=flash: can)
        monkeypatch.setattr(private_api, "can_use_efficient_attention", lambda given: True)
        query, key, value = (torch.empty(2, heads, 37, 12, device="meta") for heads in (4, 2, 2))
        mask = torch.empty(2, 1, 37, 37, device="meta") if masked else None
        output, top = fused_attention(query, key, value, mask, not masked, 0.3)
        assert output.shape == (2, 4, 37, 12)
        assert top.shape == (2, 4, 37)


@pytest.mark.parametrize("before", [False, True])
def test_an_interrupt_directly_after_a_hook_was_set_leaves_none(monkeypatch, before):
    def interrupted(hooks, number, hook):
        hooks[number] = hook
        raise KeyboardInterrupt

    layer, seen = nn.Linear(1, 1), []
    monkeypatch.setattr(sys.modules["bertology.tap.private_api"], "set_hook", interrupted)
    with pytest.raises(KeyboardInterrupt), ExitStack() as undo:
        set_hooks([Hook([layer], lambda *_: seen.append(1), before=before)], undo)
    layer(torch.ones(1))
    assert not seen


@pytest.mark.parametrize("before", [False, True])
def test_a_module_that_can_take_no_hook_leaves_none_on_others(before):
    layer, broken, seen = nn.Linear(1, 1), nn.Linear(1, 1), []
    vars(broken)["_forward_pre_hooks" if before else "_forward_hooks"] = ()
    with pytest.raises(TypeError, match="does not support item assignment"), ExitStack() as undo:
        set_hooks([Hook([broken, layer][::-1], lambda *_: seen.append(1), before=before)], undo)
    layer(torch.ones(1))
    assert not seen
