"""What tests of encoding and of stores share."""

import json
import zlib

import torch

from helpers.zoo import BY_NAME

EXACT = {"dtype": torch.float32}


def bert(**settings):
    return BY_NAME["bert"].build(**settings)


def never(*_, **__):
    raise AssertionError("the model was run")


def rewritten(folder, change):
    """A changed meta.json whose checksum fits."""
    file = folder / "meta.json"
    about = json.loads(file.read_text())["about"]
    change(about)
    check = zlib.crc32(json.dumps(about, sort_keys=True).encode())
    file.write_text(json.dumps({"about": about, "check": check}))
