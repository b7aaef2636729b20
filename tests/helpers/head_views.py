"""Views of heads that tests share."""

from html.parser import HTMLParser

import torch

from bertology.syntax.head_view import HeadView

WORDS = ("The", "archaeologist", "dug", "up", "<b>bones</b>", "&", "$5", ".")
HEADS = (2, 3, 0, 3, 3, 7, 5, 3)
RELATIONS = ("det", "nsubj", "root", "compound:prt", "obj", "cc", "conj", "punct")


def view(direction="from dependent", special=False):
    """By hand: heads of words 0, 1 and 4 are picked, and all words attend a little to all."""
    weights = torch.full((8, 8), 0.05, dtype=torch.float64)
    for query, key, weight in ((0, 1, 0.65), (1, 2, 0.4), (4, 2, 0.2), (2, 3, 0.5), (5, 5, 0.6), (7, 0, 0.3)):
        weights[query, key] = weight
    if direction == "from head":
        weights = weights.T.clone()
    words, heads, relations, marked = WORDS, HEADS, RELATIONS, ()
    if special:
        whole = torch.full((10, 10), 0.5, dtype=torch.float64)
        whole[1:9, 1:9] = weights
        weights, words, marked = whole, ("[CLS]", *WORDS, "[SEP]"), (0, 9)
    return HeadView(weights, words, heads, relations, marked, "L4H2", direction)


class Tags(HTMLParser):
    """Checks that all elements are closed, in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.found = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        self.ids += [value for name, value in attributes if name == "id"]
        self.found.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
