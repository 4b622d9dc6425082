"""The toy zoo: one small host per trait of public inpainting models, and the loop that trains them in tests."""

from hosts.families import EVERY_HOST, FAMILIES, SAMPLE
from hosts.loop import (
    batch,
    batches,
    footprint,
    make_optimizer,
    outputs,
    reconstruct,
    same,
    state_of,
    stir,
    train,
)
from hosts.zoo import ZOO, ZOO_NAMES, ToyHost

__all__ = [
    "EVERY_HOST",
    "FAMILIES",
    "SAMPLE",
    "ZOO",
    "ZOO_NAMES",
    "ToyHost",
    "batch",
    "batches",
    "footprint",
    "make_optimizer",
    "outputs",
    "reconstruct",
    "same",
    "state_of",
    "stir",
    "train",
]
