"""How many heads can be removed, and what is the smaller model?"""
