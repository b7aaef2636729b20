"""What can be learnt of syntax from all heads at once?

`probes` trains and scores, on what `evidence` takes from the model; `vectors` are what words are by themselves,
`control` is the model without its training, and `trees` turns scores into heads.
"""
