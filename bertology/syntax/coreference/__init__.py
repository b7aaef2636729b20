"""Which heads follow coreference?

`documents` says what a mention is and cuts documents into pieces, `conll_reader` and `pronoun_readers` read them,
`phrases` finds the head of a mention, `antecedents` asks, and answers by rules, `counting` by attention heads.
"""
