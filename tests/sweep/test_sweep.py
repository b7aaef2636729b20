"""Every text architecture that the installed transformers can build, against the oracles of `checks`."""

import pytest
import transformers

import bertology
from bertology.errors import BertologyError, UnknownAnatomy
from helpers.zoo import V4
from sweep import shrink
from sweep.checks import CHECKS
from sweep.coverage import COLUMNS, outcomes, types_that_ran
from sweep.shrink import (
    NO_HEADS,
    NOT_BUILT,
    CannotRunError,
    Tiny,
    build,
    class_of,
    covered_types,
    text_types,
    tiny_config,
)

# The models' own code warns of this and that.
pytestmark = pytest.mark.filterwarnings("ignore")
# What is refused with a clear error, or cannot be shown on a CPU; anything else must hold.
REFUSED = {
    "attention maps": {"diffllama", "jetmoe", "mra", "pegasus_x", "reformer", "yoso"},
    "entropy": {"diffllama", "jetmoe", "mra", "pegasus_x", "reformer", "yoso"},
    "proof": {
        "jetmoe", "led", "lilt", "longformer", "longt5", "mra", "nystromformer", "pegasus_x", "prophetnet",
        "reformer", "yoso",
    },
    "gates": {"jetmoe", "mra"},
    "hidden states": {"jetmoe"},
    "ablation": {"jetmoe", "mra"},
    "importance": {"hrm_text", "jetmoe", "mra", "reformer", "yoso"},
    "pruning": {
        "convbert", "dory", "fsmt", "jetmoe", "led", "lilt", "longformer", "pegasus_x", "prophetnet", "reformer",
        "trocr", "zaya",
    },
    # Mixtures of experts; a norm over all neurons; convolutions in groups; an adapter for each call.
    "neurons": {
        "aria_text", "bitnet", "cohere2_moe", "deepseek_v4", "dory", "dots1", "flex_olmo", "gpt_oss", "granitemoe",
        "granitemoe_swa", "granitemoeshared", "hunyuan_v1_moe", "inkling2_loop_text", "inkling2_text",
        "inkling_text", "jetmoe", "kolibri1", "lara_mini", "llama4", "llama4_text", "mellum", "minimax",
        "minimax_m2", "minimax_m3_vl_text", "mistral4", "mixtral", "nemotron_h", "olmoe", "openai_privacy_filter",
        "phimoe", "qwen2_moe", "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_moe", "qwen3_next", "qwen4_exp",
        "qwen4_exp_text", "solar_open", "squeezebert", "zamba2", "zaya",
    },
}  # fmt: skip


if V4:
    REFUSED["pruning"] |= {"clip_text_model", "xlm-prophetnet"}
    REFUSED["proof"] |= {"xlm-prophetnet"}
    # It writes keys to a buffer without their gradient.
    REFUSED["importance"] |= {"recurrent_gemma"}


@pytest.mark.parametrize("model_type", covered_types())
def test_every_primitive_holds_or_is_refused(model_type):
    try:
        tiny = Tiny(model_type)
    except CannotRunError as error:
        if model_type in types_that_ran():
            raise
        pytest.skip(str(error))
    for name, check in CHECKS.items():
        if model_type not in REFUSED[name]:
            check(tiny)
        elif model_type != "mra":  # whose attention is computed on CUDA alone, and is 0 elsewhere
            before = {key: value.clone() for key, value in tiny.model.state_dict().items()}
            with pytest.raises(BertologyError):
                check(tiny)
            assert all((value == before[key]).all() for key, value in tiny.model.state_dict().items())


def forward_that_raises(*args, **kwargs):
    raise TypeError("no such mask\nand more")


@pytest.mark.parametrize("where", ["config", "class", "forward"])
def test_a_type_that_transformers_cannot_run_becomes_a_row(monkeypatch, where):
    if where == "config":
        monkeypatch.setitem(shrink.SPECIAL, "bert", {"num_attention_heads": 5})
    elif where == "class":
        monkeypatch.setattr(shrink, "build", forward_that_raises)
    else:
        monkeypatch.setattr(transformers.BertLMHeadModel, "forward", forward_that_raises)
        monkeypatch.setattr(transformers.BertForMaskedLM, "forward", forward_that_raises)
    told = r"ValueError: .*\(5\)" if where == "config" else "TypeError: no such mask$"
    with pytest.raises(CannotRunError, match=f"^transformers itself cannot run its tiny model: {told}"):
        Tiny("bert")
    found = outcomes("bert")
    assert found.keys() == COLUMNS.keys()
    (only,) = set(found.values())
    assert only.startswith("transformers itself cannot run its tiny model: ")
    assert {"bert", "t5", "llama"} <= types_that_ran()
    assert "type" not in types_that_ran()


@pytest.mark.parametrize("model_type", [name for name in NO_HEADS if name in text_types()])
def test_models_without_heads_are_refused(model_type):
    if model_type in ("mamba2", "xlstm"):
        pytest.skip("cannot be built small")
    with pytest.raises(UnknownAnatomy, match="no attention heads found"):
        bertology.dissect(build(class_of(model_type), tiny_config(model_type), None))


def test_the_shares_that_are_claimed():
    types = set(covered_types())
    assert len(types) > 100
    for name, refused in REFUSED.items():
        share = 1 - len(refused & types) / len(types)
        least = {"pruning": 0.93 if V4 else 0.95, "proof": 0.92 if V4 else 0.95, "neurons": 0.83}
        least = least.get(name, 0.96 if V4 else 0.97)
        assert share >= least, f"{name}: {share:.1%}"
    assert not set(NOT_BUILT) & types
