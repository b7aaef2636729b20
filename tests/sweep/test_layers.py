"""Blocks dropped for good, in architectures of several kinds; `checks.layers` runs on any other in the same way."""

import pytest

from bertology.errors import PruningError
from sweep.checks import layers
from sweep.shrink import Tiny

pytestmark = pytest.mark.filterwarnings("ignore")  # the models' own code warns of this and that
HOLDS = ["gpt_neox", "opt", "deberta-v2", "gemma2", "falcon", "mt5", "modernbert", "jamba"]


@pytest.mark.parametrize("model_type", HOLDS)
def test_a_shorter_model(model_type):
    layers(Tiny(model_type))


# A head over the maps of all layers; settings that check themselves; several passes of one block.
@pytest.mark.parametrize("model_type", ["esm", "longformer", "albert"])
def test_what_no_shorter_config_can_say(model_type):
    tiny = Tiny(model_type)
    before = {name: x.clone() for name, x in tiny.model.state_dict().items()}
    with pytest.raises(PruningError):
        layers(tiny)
    assert all((x == before[name]).all() for name, x in tiny.model.state_dict().items())
