"""A host that its own call does not explain, and the adapter that says how it is called."""

from hosts.conventions import MaskByMethod
from hosts.zoo import ToyHost
from inpaint_distill import Adapter

__all__ = ["ADAPTED", "AdaptedHost", "SetsMask"]


class SetsMask(Adapter):
    """Sets the mask before the forward, which takes the image alone."""

    name = "sets-mask"
    replayable = False

    def outputs(self, host, image, hole):
        host.set_mask(hole)
        return (host(image * (1 - hole)),)


class AdaptedHost(ToyHost):
    """Its author calls it as its adapter does."""

    adapter = SetsMask()

    def call(self, host, image, mask):
        return self.adapter.call(host, image, mask)


# Not in the zoo, whose rows are read without being told anything.
ADAPTED = {"set_mask": AdaptedHost("told the mask by a method of the root", MaskByMethod)}
