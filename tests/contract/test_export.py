"""``torch.export`` and ``torch.jit.trace``: what is deployed runs the blocks that were left in the host."""

import pytest
import torch
from hosts import EVERY_HOST, FAMILIES, SAMPLE, batch, batches, make_optimizer, same, stir, train
from torch import nn
from torch.utils import _pytree

import inpaint_distill

NAMES = [name for name in SAMPLE if name not in FAMILIES or not FAMILIES[name].noisy]
CONFIG = {"warmup": 0, "balance": "none", "completion": True}


class Called(nn.Module):
    """A host as its training loop calls it."""

    def __init__(self, toy, host):
        super().__init__()
        self.toy, self.host = [toy], host

    def forward(self, image, mask):
        return tuple(_pytree.tree_leaves(self.toy[0].call(self.host, image, mask)))


@pytest.fixture(params=NAMES)
def called(request):
    """A host whose blocks rewrite the hole, as a user has it after training."""
    toy = EVERY_HOST[request.param]
    host = toy.build()
    optimizer = make_optimizer(host)
    distiller = inpaint_distill.attach(host, optimizer, config=CONFIG, **toy.given)
    train(toy, host, optimizer, batches(1, **toy.images), distiller)
    distiller.detach()
    called = Called(toy, host.eval())
    with torch.no_grad():
        before = called(*batch(7, **toy.images))
        stir(host)
        assert not same(called(*batch(7, **toy.images)), before)
    return called


@pytest.mark.filterwarnings("ignore:The tensor attributes self.host.enc")  # of spectral norm's old hook
def test_an_exported_host_runs_its_blocks_for_any_number_of_images(called):
    images = called.toy[0].images
    sizes = {0: torch.export.Dim("images", min=2, max=64)}
    exported = torch.export.export(called, batch(7, **images), dynamic_shapes=(sizes, sizes)).module()
    for given in (batch(7, **images), batch(8, **{**images, "count": 5})):
        with torch.no_grad():
            expected = called(*given)
            assert same(exported(*given), expected)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:`torch.jit.trace:DeprecationWarning")
def test_a_traced_host_runs_its_blocks(called):
    given = batch(7, **called.toy[0].images)
    with torch.no_grad():
        expected = called(*given)
        assert same(torch.jit.trace(called, given, check_trace=False)(*given), expected)
