"""The command `bertology`: measures of a model on a file of texts, as tables, files and a page with pictures."""
