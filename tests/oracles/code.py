"""Slow twins of the code measures: trees and distances by networkx, and tokens followed character by character."""

from __future__ import annotations

import importlib
import itertools
import unicodedata
from typing import Any

import networkx

OUTSIDE, SPECIAL = -3, -1


def raw_leaves_and_graph(code: str, language: str, upgraded: bool = True) -> tuple[list[Any], networkx.Graph]:
    """Chen et al. (2022): the leaves of tree-sitter's tree, and the graph of the (upgraded) tree, node by node."""
    import tree_sitter

    grammar = tree_sitter.Language(importlib.import_module(f"tree_sitter_{language}").language())
    tree = tree_sitter.Parser(grammar).parse(code.encode())
    graph, leaves = networkx.Graph(), []

    def walk(node: Any) -> None:
        graph.add_node(node.id)
        for child in node.children:
            if "comment" in child.type:
                continue
            graph.add_edge(node.id, child.id)
            walk(child)
        if not node.children and node.text:
            leaves.append(node)

    walk(tree.root_node)
    if upgraded:
        for left, right in itertools.pairwise(leaves):
            graph.add_edge(left.id, right.id)
        for i, left in enumerate(leaves):
            for right in leaves[i + 1 :]:
                if left.type == right.type == "identifier" and left.text == right.text:
                    graph.add_edge(left.id, right.id)
                    break  # only the next occurrence
    return leaves, graph


def distances(code: str, language: str, upgraded: bool = True) -> list[list[int]]:
    """The length of the shortest path between any two leaves."""
    leaves, graph = raw_leaves_and_graph(code, language, upgraded)
    rows = []
    for left in leaves:
        lengths = networkx.single_source_shortest_path_length(graph, left.id)
        rows.append([lengths[right.id] for right in leaves])
    return rows


def leaf_of_character(spans: Any, place: int) -> int:
    for leaf, (start, end) in enumerate(spans):
        if start <= place < end:
            return leaf
    return OUTSIDE


def leaves_of_tokens(tokenizer: Any, tree: Any, kind: str) -> tuple[list[int], int]:
    """The leaf of each token, and how many tokens have characters of several, without the tokenizer's offsets."""
    ids = tokenizer(tree.code)["input_ids"]
    tokens = tokenizer.convert_ids_to_tokens(ids)
    special = set(tokenizer.all_special_tokens) - {tokenizer.unk_token}
    spelt = characters_by_bytes if kind == "bytes" else characters_by_wordpieces
    found, several = [], 0
    for token, characters in zip(tokens, spelt(tree.code, tokens, special), strict=True):
        inked = [place for place in characters if not tree.code[place].isspace()]
        leaves = [leaf for leaf in (leaf_of_character(tree.spans, place) for place in inked) if leaf != OUTSIDE]
        found.append(SPECIAL if token in special else leaves[0] if leaves else OUTSIDE)
        several += len(set(leaves)) > 1
    return found, several


def characters_by_bytes(code: str, tokens: list[str], special: set[str]) -> list[list[int]]:
    """Which characters each token of a byte-level tokenizer has: together its tokens are the bytes of the text."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    byte_of = {chr(byte): byte for byte in plain}
    byte_of |= {chr(256 + n): byte for n, byte in enumerate(b for b in range(256) if b not in plain)}
    owner = [place for place, character in enumerate(code) for _ in character.encode()]
    found, at = [], 0
    for token in tokens:
        many = 0 if token in special else len(token)
        assert bytes(byte_of[c] for c in token[:many]) == code.encode()[at : at + many]
        found.append(owner[at : at + many])
        at += many
    assert at == len(owner)
    return found


def characters_by_wordpieces(code: str, tokens: list[str], special: set[str]) -> list[list[int]]:
    """Which characters each token of BERT's uncased tokenizer has: it lower-cases and takes accents away."""
    letters = []  # what each character becomes, one by one
    for place, character in enumerate(code):
        if character.isspace() or unicodedata.category(character).startswith("C"):
            continue
        for letter in unicodedata.normalize("NFD", character):
            if unicodedata.category(letter) != "Mn":
                letters += [(low, place) for low in letter.lower() if unicodedata.category(low) != "Mn"]
    found, at = [], 0
    for token in tokens:
        if token in special:
            found.append([])
            continue
        piece = token.removeprefix("##")
        many = word_length(letters, at) if token == "[UNK]" else len(piece)
        if token != "[UNK]":
            assert "".join(letter for letter, _ in letters[at : at + many]) == piece
        found.append([place for _, place in letters[at : at + many]])
        at += many
    assert at == len(letters)
    return found


def word_length(letters: list[tuple[str, int]], at: int) -> int:
    """How many letters a word has: up to a blank or a sign, or one sign, or one ideograph."""

    def alone(letter: str) -> bool:
        is_sign = letter.isascii() and letter.isprintable() and not letter.isalnum()
        return is_sign or unicodedata.category(letter).startswith("P") or "\u4e00" <= letter <= "\u9fff"

    many = 1
    while (
        not alone(letters[at][0])
        and at + many < len(letters)
        and letters[at + many][1] - letters[at + many - 1][1] <= 1
        and not alone(letters[at + many][0])
    ):
        many += 1
    return many
