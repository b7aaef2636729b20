"""How far does attention follow the structure of code?

CAT-probing (Chen et al. 2022), and past it.

    snippets = read_code("python.jsonl")
    batches = align_code(tokenizer, snippets)
    leaf_distances(snippets[0])

`snippets` reads code, `trees` parses it by the `grammars` of tree-sitter, `distances` says how far apart the leaves of
a tree are, and `aligning` which leaf each token is part of. `leaf_maps` makes attention of tokens that of leaves,
`masks` counts where it is high and the leaves are near, `filtering` keeps the leaves of some types, `scores` says what
the counts of all snippets come to, and `nulls` what attention scores that knows nothing of structure. `relations` looks
at what belongs together: blocks, arguments, brackets, variables and their definitions; `relating` finds the heads
that attend to it. `one_snippet` looks at a single piece of code, which `drawing` draws, and `pictures` draws what was
found over the layers.
"""

from .align import AlignedCode, CodeBatches, align_code
from .cat_results import CatComparison, CatGain, CatScores, cat_mean, scores_of
from .cat_scores import cat_scores, leaf_types
from .figures import attention_and_distance, cat_over_layers, code_arcs, relation_maps
from .leaf_maps import LeafMaps, token_map, visible
from .leaf_types import LeafTypes, TypeCounts, leaves_of, published_types, rank_sum, restricted
from .masks import (
    CatCounts,
    HighAttention,
    OffsetMeans,
    attention_mask,
    cat_counts,
    distance_mask,
    overlap,
    positional,
    shuffled,
)
from .one_snippet import LeafAttention, leaf_attention
from .relation_heads import RelatedHead, RelationHeads, relation_heads
from .relations import RelationSums, related, relation_scores
from .snippets import Snippets, read_code
from .trees import CodeTree, graph_edges, leaf_distances, parse_code

__all__ = [
    "AlignedCode",
    "CatComparison",
    "CatCounts",
    "CatGain",
    "CatScores",
    "CodeBatches",
    "CodeTree",
    "HighAttention",
    "LeafAttention",
    "LeafMaps",
    "LeafTypes",
    "OffsetMeans",
    "RelatedHead",
    "RelationHeads",
    "RelationSums",
    "Snippets",
    "TypeCounts",
    "align_code",
    "attention_and_distance",
    "attention_mask",
    "cat_counts",
    "cat_mean",
    "cat_over_layers",
    "cat_scores",
    "code_arcs",
    "distance_mask",
    "graph_edges",
    "leaf_attention",
    "leaf_distances",
    "leaf_types",
    "leaves_of",
    "overlap",
    "parse_code",
    "positional",
    "published_types",
    "rank_sum",
    "read_code",
    "related",
    "relation_heads",
    "relation_maps",
    "relation_scores",
    "restricted",
    "scores_of",
    "shuffled",
    "token_map",
    "visible",
]
