"""Where the gradient of a tapped tensor is watched: by the stage or the site that it belongs to."""

import gc
from contextlib import nullcontext

import pytest
import torch
from hosts import EVERY_HOST, batch

import inpaint_distill
from inpaint_distill.host.watch import Watch


def planned(name):
    """Return a toy, its host with nothing on it, and the stages and attention that would be tapped."""
    toy = EVERY_HOST[name]
    host = toy.build()
    distiller = inpaint_distill.attach(host)
    toy.call(host, *batch(size=toy.size))
    distiller.detach()
    return toy, host, distiller.plan.stages, distiller.plan.attention


def test_places_are_named_by_the_stage_or_the_site_that_a_term_knows():
    toy, host, stages, sites = planned("mat")
    image, mask = batch(size=toy.size)
    assert len(sites) > 1
    watch = Watch(host, stages, sites)
    told = {}
    watch.begin(told.__setitem__)
    toy.call(host, image, mask)
    assert {place[:2] for place in told} == {
        *(("features", index) for index in range(len(stages))),
        *(("attention", index) for index in range(len(sites))),
    }
    edges = watch.take_edges()
    assert edges.keys() == told.keys()
    assert all(isinstance(tensor, torch.Tensor) and tensor.requires_grad for tensor in told.values())
    watch.remove()


@pytest.mark.parametrize("name", ["gated-conv", "contextual-attention", "mat"])
@pytest.mark.parametrize("ends", [True, False], ids=["after a forward", "in a forward"])
def test_hooks_go_with_a_watch_that_ctrl_c_kept_from_removing_them(name, ends):
    """Without waiting for the garbage collector: nothing of a watch that has run holds it in a circle."""
    toy, host, stages, sites = planned(name)
    image, mask = batch(size=toy.size)

    def forward():
        toy.call(host, image, mask)
        raise KeyboardInterrupt

    gc.disable()
    try:
        watch = Watch(host, stages, sites)
        with nullcontext() if ends else pytest.raises(KeyboardInterrupt):
            watch.run(forward, tuple(image.shape[2:]), stop=ends)
        assert any(part._forward_hooks for part in host.modules())
        del watch
        assert not any(part._forward_hooks or part._forward_pre_hooks for part in host.modules())
    finally:
        gc.enable()
