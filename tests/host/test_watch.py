"""Where the gradient of a tapped tensor is watched: by the stage or the site that it belongs to."""

import torch
from hosts import EVERY_HOST, batch

import inpaint_distill
from inpaint_distill.host.watch import Watch


def test_places_are_named_by_the_stage_or_the_site_that_a_term_knows():
    toy = EVERY_HOST["mat"]
    host = toy.build()
    image, mask = batch(size=toy.size)
    distiller = inpaint_distill.attach(host)
    toy.call(host, image, mask)
    stages, sites = distiller.plan.stages, distiller.plan.attention
    distiller.detach()
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
