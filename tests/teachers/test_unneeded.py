"""What a teacher does not run because its features do not depend on it."""

import copy

import pytest
import torch
from hosts import ZOO, ZOO_NAMES, batch, batches, make_optimizer, same, train
from torch import nn

import inpaint_distill
from inpaint_distill import Config, FrozenTeacher, OnlineTeacher, adapters
from inpaint_distill.teachers import base
from inpaint_distill.teachers.unneeded import leave_out, put_back


class Coarse(nn.Sequential):
    """A network that counts its runs."""

    def __init__(self):
        super().__init__(nn.Conv2d(4, 3, 3, 1, 1))
        self.runs = 0

    def forward(self, x):
        self.runs += 1
        return super().forward(x)


class TwoStages(nn.Module):
    """Paste a coarse image into the hole, in one of several ways, and encode it."""

    def __init__(self, way="hole"):
        super().__init__()
        self.coarse = Coarse()
        self.encoder = nn.ModuleList([nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 16, 3, 2, 1)])
        self.gate = nn.Conv2d(3, 3, 1)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)
        self.register_buffer("fade", torch.zeros(()))
        self.way = way

    def forward(self, x):
        image, hole = x[:, :3], x[:, 3:]
        coarse = self.coarse(x)
        if self.way == "hole":
            image = image * (1 - hole) + coarse * hole
        elif self.way == "image":
            image = image + coarse
        elif self.way == "zero weight":
            image = image + self.gate(coarse)
        elif self.way == "zero buffer":
            image = image + self.fade * coarse
        elif self.way == "dead":
            image = (coarse - 1e4).relu()
        for layer in self.encoder:
            image = layer(image).relu()
        return image


class Overwrites(Coarse):
    """Change what it is given."""

    def forward(self, x):
        x[:, :3] += 1
        return super().forward(x)


def complete(count=2):
    image = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(count))
    return torch.cat([image, torch.zeros(count, 1, 16, 16)], dim=1)


def views(host, x):
    """Return both encoder features."""
    seen = []
    handles = [layer.register_forward_hook(lambda m, a, out: seen.append(out)) for layer in host.encoder]
    with torch.no_grad():
        host(x.clone())
    for handle in handles:
        handle.remove()
    return seen


def left_out(host, x=None):
    return leave_out(host, ["encoder.0", "encoder.1"], lambda module: views(module, complete() if x is None else x))


def test_a_coarse_network_is_not_run_where_the_hole_is_empty():
    torch.manual_seed(0)
    host = TwoStages()
    keys, before = list(host.state_dict()), views(host, complete())
    assert left_out(host) == ["coarse"]
    host.coarse.runs = 0
    first, second, third = (views(host, complete()) for _ in range(3))
    assert host.coarse.runs == 1  # to see what it returns
    for found in (first, second, third):
        assert all(map(torch.equal, found, before))
    views(host, complete(3))
    views(host, complete(3))
    assert host.coarse.runs == 2  # a batch of another size
    assert list(host.state_dict()) == keys
    put_back(host, ["coarse"])
    views(host, complete())
    assert host.coarse.runs == 3


def test_it_is_run_where_the_hole_is_not_empty():
    x = complete()
    x[:, 3:, 4:8] = 1
    assert left_out(TwoStages(), x) == []


@pytest.mark.parametrize("way", ["image", "zero weight", "zero buffer"])
def test_what_a_feature_depends_on_is_run_also_where_its_weight_is_zero_for_now(way):
    host = TwoStages(way)
    assert left_out(host) == []
    assert host.coarse.forward.__func__ is Coarse.forward


def test_what_changes_its_input_is_run():
    host = TwoStages()
    host.coarse = Overwrites()
    assert left_out(host) == []


def test_a_dead_feature_tells_nothing():
    assert left_out(TwoStages("dead")) == []


def test_what_returns_no_tensors_is_run():
    class Dictionary(Coarse):
        def forward(self, x):
            return {"flag": 1.0, "image": super().forward(x)}

    host = TwoStages("nothing")
    assert left_out(copy.deepcopy(host)) == ["coarse"]
    host.coarse = Dictionary()
    assert left_out(host) == []


@pytest.mark.parametrize("teacher", ["ema", "frozen", "online"])
def test_a_two_stage_host_is_distilled_bit_for_bit_as_with_its_whole_teacher(teacher, monkeypatch):
    def trained():
        torch.manual_seed(0)
        family = adapters.families()["gated-conv"]
        host = family.build(width=8)
        optimizer = torch.optim.Adam(host.parameters(), 1e-3)
        image, mask = batch(1)
        kind = FrozenTeacher(image, steps=2) if teacher == "frozen" else teacher
        distiller = inpaint_distill.attach(host, optimizer, teacher=kind, config=Config(warmup=0))
        losses = []
        for step in range(3):
            image, mask = batch(step)
            call = family.convention(host).pack(image, mask)
            loss = sum((out - image).abs().mean() for out in family.convention(host).unpack(call.run(host)))
            loss = loss + distiller.loss(image, mask)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(distiller.log["loss"])
        own = distiller._teacher
        skipped = list(own.left_out)
        distiller.detach()
        assert list(own.left_out) == []
        return skipped, losses, host.state_dict()

    skipped, losses, weights = trained()
    monkeypatch.setattr(base, "leave_out", lambda *args: [])
    none, expected, whole = trained()
    assert (skipped, none) == (["coarse"], [])
    assert all(map(torch.equal, losses, expected))
    assert same(weights, whole)


@pytest.mark.parametrize("teacher", ["ema", "online"])
@pytest.mark.parametrize("name", ZOO_NAMES)
def test_every_host_of_the_zoo_is_distilled_as_with_its_whole_teacher(name, teacher, monkeypatch):
    def trained():
        toy = ZOO[name]
        torch.manual_seed(0)
        host = toy.build()
        optimizer = make_optimizer(host)
        distiller = inpaint_distill.attach(host, optimizer, config=Config(warmup=0, teacher=teacher))
        train(toy, host, optimizer, batches(2), distiller)
        return distiller.detach().state_dict()

    found = trained()
    monkeypatch.setattr(base, "leave_out", lambda *args: [])
    assert same(found, trained())


class CoarseAndFine(TwoStages):
    """Decode the features, and hand out the coarse image too, or mix it into the fine one."""

    def __init__(self, *, mixes=False):
        super().__init__()
        self.decoder = nn.Sequential(nn.Upsample(scale_factor=4), nn.Conv2d(16, 3, 3, 1, 1))
        nn.init.zeros_(self.decoder[1].weight)
        self.mixes = mixes

    def forward(self, x):
        coarse, fine = self.coarse(x), self.decoder(super().forward(x))
        return coarse, fine + coarse if self.mixes else fine


def online(host):
    """Train an online teacher for four steps; return it and the names of what has moved."""
    teacher = OnlineTeacher(lr=1e-2)
    optimizer = torch.optim.Adam(host.parameters(), 1e-3)
    with inpaint_distill.attach(host, optimizer, teacher=teacher, stages=["encoder.*"], lookahead="off") as distiller:
        before = copy.deepcopy(dict(host.state_dict()))
        for step in range(4):
            image, mask = batch(step)
            distilled = sum(each.mean() for each in host(torch.cat([image * (1 - mask), mask], 1)))
            (distilled + distiller.loss(image, mask)).backward()
        skipped = list(teacher.left_out)
    after = teacher.module.state_dict()
    return skipped, {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


def test_an_online_teacher_trains_what_makes_an_image_of_its_features_and_no_more():
    """Also where the last layer of that starts at zero."""
    skipped, moved = online(CoarseAndFine())
    assert "coarse" in skipped
    assert "decoder" not in skipped
    assert moved == {"encoder", "decoder"}


def test_an_online_teacher_trains_what_else_its_image_depends_on():
    skipped, moved = online(CoarseAndFine(mixes=True))
    assert "coarse" not in skipped
    assert moved == {"coarse", "encoder", "decoder"}
