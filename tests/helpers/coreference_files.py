"""What tests of readers of coreference share."""


def lines_of(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def spans(document):
    return [(" ".join(document.words[m.start : m.end]), m.cluster) for m in document.mentions]
