"""No type of transformers has attention that is neither measured nor named: text, images, sounds and all of them."""

import pytest
import torch
import transformers
from torch import nn

from bertology import dissect
from bertology.errors import UnknownAnatomy
from helpers.zoo import V4
from sweep.every_type import CannotBuildError, attention_paths, attentions_of, every_type, on_meta

pytestmark = pytest.mark.filterwarnings("ignore")  # the models' own code warns of this and that
TYPES = every_type()
PARTS = 8


@pytest.mark.parametrize("part", range(PARTS))
def test_all_attention_is_measured_or_named(part):
    transformers.logging.set_verbosity_error()
    silent, built = {}, 0
    for model_type in TYPES[part::PARTS]:
        try:
            model = on_meta(model_type)
        except CannotBuildError:
            continue
        built += 1
        found = attentions_of(model)
        if found.omitted:
            silent[model_type] = found.omitted[:3]
        assert all(found.unmeasured.values()), f"{model_type}: reasons are missing"
    assert not silent
    assert built > 0.7 * len(TYPES) / PARTS


def test_most_types_are_built():
    assert len(TYPES) > (400 if V4 else 600)


class Strange(nn.Module):
    """Attention with parts that no one knows."""

    def __init__(self):
        super().__init__()
        self.my_query, self.my_key, self.my_value, self.mix = (nn.Linear(16, 16) for _ in range(4))


def test_an_omission_is_seen(monkeypatch):
    def made():
        with torch.device("meta"):
            model = transformers.BertModel(transformers.BertConfig(num_hidden_layers=2))
            model.strange = Strange()
        return model

    model = made()
    assert attention_paths(dict(model.named_modules()))[-1] == "strange"
    found = attentions_of(model)
    assert found.omitted == []
    assert found.unmeasured["strange"].startswith("Strange holds my_query, my_key, my_value, mix")
    monkeypatch.setattr("bertology.anatomy.dissect.find_unmeasured", lambda modules, measured: {})
    assert attentions_of(made()).omitted == ["strange"]


def test_a_model_of_strange_attention_alone_is_refused_by_name():
    with pytest.raises(UnknownAnatomy, match=r"blocks.0 and 1 more like it \(Strange holds my_query"):
        dissect(nn.ModuleDict({"blocks": nn.ModuleList([Strange(), Strange()])}))
