"""What do heads know of syntax?

The measures of Clark et al. (2019), §4 and §5.

    treebank = read_conllu("en_ewt-ud-dev.conllu")
    print(dependency_heads(model, align(tokenizer, treebank)).table())

Treebanks, documents and the alignment of tokens with words come from `bertology.corpora`. `dependencies` counts how
often attention heads pick a word's syntactic head, `coreference` how often they pick an antecedent, and `best_heads`
tabulates the best heads. `attention_probe` learns from all heads at once, `structural_probe` from hidden states, and
`head_view` shows one head in one sentence.
"""

from ..corpora.conll_coreference import read_conll_coref
from ..corpora.documents import Document, Documents, Mention, pieces
from ..corpora.gap_winobias import by_gender, read_gap, read_winobias
from ..corpora.skips import Skip
from ..corpora.treebank import Sentence, Treebank, read_conllu, read_depparse, read_json
from ..corpora.words import Aligned, AlignedBatches, align, word_attention
from ..measures.random_weights import randomized
from .antecedents import AntecedentBaselines, antecedent_baselines
from .attention_probe import attention_probe, distance_probe
from .best_heads import CoreferenceTable, KindScore, RelationScore, RelationTable
from .coreference import CoreferenceAccumulator, CoreferenceHeads, coreference_heads
from .dependencies import DependencyAccumulator, DependencyHeads, dependency_heads
from .figures import head_arcs, head_columns
from .head_view import HeadView, show_head
from .probe_inputs import EmbeddingVectors, StaticVectors, embedding_vectors, read_vectors
from .probe_scores import ProbeResult, best_tree
from .structural_probe import StructuralProbe, structural_probe

__all__ = [
    "Aligned",
    "AlignedBatches",
    "AntecedentBaselines",
    "CoreferenceAccumulator",
    "CoreferenceHeads",
    "CoreferenceTable",
    "DependencyAccumulator",
    "DependencyHeads",
    "Document",
    "Documents",
    "EmbeddingVectors",
    "HeadView",
    "KindScore",
    "Mention",
    "ProbeResult",
    "RelationScore",
    "RelationTable",
    "Sentence",
    "Skip",
    "StaticVectors",
    "StructuralProbe",
    "Treebank",
    "align",
    "antecedent_baselines",
    "attention_probe",
    "best_tree",
    "by_gender",
    "coreference_heads",
    "dependency_heads",
    "distance_probe",
    "embedding_vectors",
    "head_arcs",
    "head_columns",
    "pieces",
    "randomized",
    "read_conll_coref",
    "read_conllu",
    "read_depparse",
    "read_gap",
    "read_json",
    "read_vectors",
    "read_winobias",
    "show_head",
    "structural_probe",
    "word_attention",
]
