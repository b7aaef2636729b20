"""Which tasks are there, and where do their targets come from?

`targets` says what a target and a record are, `records` what a task is; `jsonl` reads and writes them, `makers`,
`column_makers`, `coref_makers` and `relation_makers` make them of treebanks and other files; `counted` says which
labels count, `splitting` how a task is cut in two, and `controls` takes the sense out of labels.
"""
