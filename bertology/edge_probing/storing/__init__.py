"""How do a model's vectors of the spans come to lie on disk, and back?

`tower` asks the model and `lexical` its embeddings, `projecting` finds the tokens of each span, `layout` says which
tokens are kept in which row, `folder` writes and reads them safely, `identity` tells models and tasks apart, and
`store` makes batches of it all.
"""
