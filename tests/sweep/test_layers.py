"""Blocks, patching, the lens and plain checkpoints, in architectures of several kinds.

`coverage.py` runs these checks on all architectures when it writes the table.
"""

import pytest

from bertology.errors import BertologyError, PruningError
from helpers.zoo import V4
from sweep.parts import SAMPLED
from sweep.shrink import Tiny, covered_types

pytestmark = pytest.mark.filterwarnings("ignore")  # the models' own code warns of this and that
# A kind of its own each: norms behind blocks, fused projections, relative positions, an encoder and a decoder, latent
# keys, blocks that run again with other states between them, pooled tokens, blocks of which some have no attention.
HOLDS = ["gpt_neox", "deberta-v2", "gemma2", "mt5", "deepseek_v3", "dory", "funnel", "jamba"]
# Not those that no config can say, and what is no dense MLP.
REFUSED = {
    "dropped blocks": ["dory"],
    "plain heads": ["gpt_neox", "deberta-v2", "mt5", "dory"],
    "plain neurons": ["jamba", "dory"],
}
if V4:
    REFUSED["plain heads"].append("jamba")


@pytest.fixture(scope="module", params=[name for name in HOLDS if name in covered_types()])
def tiny(request):
    return Tiny(request.param)


@pytest.mark.parametrize("name", SAMPLED)
def test_it_holds_or_is_refused(tiny, name):
    before = {key: x.clone() for key, x in tiny.model.state_dict().items()}
    if tiny.model_type in REFUSED.get(name, ()):
        with pytest.raises(BertologyError):
            SAMPLED[name](tiny)
    else:
        SAMPLED[name](tiny)
    assert all((x == before[key]).all() for key, x in tiny.model.state_dict().items())


# A head over the maps of all layers; several passes of one block.
@pytest.mark.parametrize("model_type", ["esm", "albert"])
def test_what_no_shorter_config_can_say(model_type):
    with pytest.raises(PruningError):
        SAMPLED["dropped blocks"](Tiny(model_type))
