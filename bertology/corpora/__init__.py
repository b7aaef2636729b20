"""Annotated text: words, treebanks, documents with coreference, and readers of their file formats."""
