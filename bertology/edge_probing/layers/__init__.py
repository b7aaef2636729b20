"""What do the probes of all layers tell?

`equations` are the paper's, `statistics` takes them together for one task, `orders` compares tasks and `pictures` draws
them; `trajectories` follows single decisions through the layers, and `code_length` counts bits in place of scores.
"""
