"""How do probes learn a task, those of all layers at once?

`probes` and `pooling` are the probes, `together` trains them, with `drawing` for all that is random, `optimizing` for
steps and patience and `resuming` for a file to go on from; `counting` and `scores` say how well they do.
"""
