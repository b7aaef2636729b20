"""How far does attention follow the structure of code?

CAT-probing (Chen et al. 2022), and more.

    snippets = read_code("python.jsonl")
    batches = align_code(tokenizer, snippets)
    leaf_distances(snippets[0])

`snippets` reads code, `trees` parses it with tree-sitter and measures distances between leaves, and `align` finds the
leaf of each token. `leaf_maps` turns attention between tokens into attention between leaves. `masks` counts the pairs
of leaves with high attention that are near in the tree, also for null models; `leaf_types` keeps leaves of some types;
`cat_scores` and `cat_results` compute the scores of all snippets. `relations` finds related leaves: blocks, arguments,
brackets, variables and their definitions; `relation_heads` finds the heads that attend to them. `one_snippet` reads
the attention in a single piece of code. `figures` draws the results, `snippet_figures` a single piece of code, and
`tree_figures` trees and frequent types. `definitions` finds the variable that a name means.
"""

from .align import AlignedCode, CodeBatches, align_code
from .cat_results import CatComparison, CatGain, CatScores, cat_mean, scores_of
from .cat_scores import cat_scores, leaf_types
from .figures import cat_over_layers, relation_maps
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
from .snippet_figures import attention_and_distance, code_arcs
from .snippets import Snippets, read_code
from .tree_figures import frequent_types, syntax_tree
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
    "frequent_types",
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
    "syntax_tree",
    "token_map",
    "visible",
]
