"""What tests of the formats of edge probing share."""

import re


def edges(task):
    """Each record's targets as tuples of spans and labels."""
    return [[(*t.span1, *(t.span2 or ()), *t.labels) for t in record.targets] for record in task]


def tags_in(scheme, spans):
    """[word]: the tags of these labelled spans, one after another, O for none."""
    tags, before = [], None
    for label, start, end in spans:
        many = end - start
        if label == "O":
            tags += ["*" if scheme == "brackets" else "O"] * many
        elif scheme == "IOB2":
            tags += [f"B-{label}"] + [f"I-{label}"] * (many - 1)
        elif scheme == "IOB1":
            tags += [f"{'B' if before == label else 'I'}-{label}"] + [f"I-{label}"] * (many - 1)
        elif scheme == "BIOES":
            tags += [f"S-{label}"] if many == 1 else [f"B-{label}", *[f"I-{label}"] * (many - 2), f"E-{label}"]
        else:
            tags += [f"({label})"] if many == 1 else [f"({label}*", *["*"] * (many - 2), "*)"]
        before = label
    return tags


def bracketed(text):
    """Phrases and tags of each tree, read sign by sign: an independent reader of brackets without traces."""
    trees, opened, words = [], [], 0
    for sign in re.findall(r"[()]|[^\s()]+", text):
        if sign == "(":
            if not opened:
                trees.append(([], []))
                words = 0
            opened.append([None, words, True])
        elif sign == ")":
            label, start, is_word = opened.pop()
            (trees[-1][1] if is_word else trees[-1][0]).append((start, words, label))
            if opened:
                opened[-1][2] = False
        elif opened[-1][0] is None:
            opened[-1][0] = sign if sign[0] == "-" else re.split("[-=|]", sign)[0]
        else:
            words += 1
    return trees
