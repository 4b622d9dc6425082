"""Attention transfer on hosts: its value against the dense formula, who trains t, and teachers of other layouts."""

import pytest
import torch
from hosts import ToyHost, batch, batches, make_optimizer, reconstruct, train
from hosts.base import Up, block
from torch import nn
from torch.nn import functional as F

import inpaint_distill
from inpaint_distill import AttentionConfig, AttentionSite, ModuleTeacher, adapters
from inpaint_distill.errors import PlanError
from inpaint_distill.host.attention import AttentionMap
from inpaint_distill.losses.attention_transfer import AttentionTransfer
from inpaint_distill.networks.meta import TokenWeights

FIXED = {"warmup": 0, "balance": "none", "ema_decay": 0.9}
DISTANCES = ["l2", "l1", "kl"]


class Attention(nn.Module):
    """Self-attention over the pixels of a map by a plain softmax; ``rows`` is what it used last."""

    def __init__(self, width, heads=2):
        super().__init__()
        self.heads = heads
        self.query, self.key = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)

    def forward(self, x):
        q, k, v = (each.flatten(2).unflatten(1, (self.heads, -1)).mT for each in (self.query(x), self.key(x), x))
        self.rows = torch.softmax(q @ k.mT, -1)
        return x + (self.rows @ v).mT.flatten(1, 2).view_as(x)


class Windowed(Attention):
    """The same in windows of 4 x 4."""

    window_size = (4, 4)

    def forward(self, x):
        images, channels, height, width = x.shape
        cut = x.view(images, channels, height // 4, 4, width // 4, 4).permute(0, 2, 4, 1, 3, 5)
        out = super().forward(cut.reshape(-1, channels, 4, 4))
        back = out.view(images, height // 4, width // 4, channels, 4, 4).permute(0, 3, 1, 4, 2, 5)
        return back.reshape(x.shape)


class Host(nn.Module):
    def __init__(self, width=16, kind=Attention, inputs=4, stride=2):
        super().__init__()
        self.enc0, self.enc1, self.enc2 = block(inputs, 8), block(8, 12, 2), block(12, width, stride)
        self.mix, self.up = kind(width), Up(width)

    def forward(self, *planes):
        x = self.enc2(self.enc1(self.enc0(torch.cat(planes, 1))))
        return self.up(self.mix(x))


class Family(ToyHost):
    """A reference implementation, called through its adapter."""

    def call(self, host, image, mask):
        return adapters.get(self.trait).call(host, image, mask)


HOSTS = {
    "global": ToyHost("attention", Host, "separate"),
    "windowed": ToyHost("windowed", lambda: Host(kind=Windowed), "separate"),
    "gated-conv": Family("gated-conv", lambda: adapters.get("gated-conv").build(width=4).train()),
    "contextual-attention": Family(
        "contextual-attention", lambda: adapters.get("contextual-attention").build(width=4).train()
    ),
}


def start(toy, distance="l2", lookahead="off", **more):
    """Build a host and attach with attention transfer alone."""
    host = toy.build()
    optimizer = make_optimizer(host)
    term = {"weight": 1.0, "distance": distance}
    only = {"cross": {"weight": 0.0}, "self": {"weight": 0.0}, "attention": term}
    config = {**FIXED, **only, "lookahead": {"engine": lookahead, "every": 2}}
    return host, optimizer, inpaint_distill.attach(host, optimizer, config=config, **more)


def dense(own, other, distance):
    """Compute one distance per row (B, heads, Nq) in float64, over the keys that the student weighs at all."""
    own, other = own.double(), other.double()
    seen = own > 1e-20
    other = torch.where(seen, other, 0)
    other = other / other.sum(-1, keepdim=True).clamp_min(1e-30)
    if distance == "l2":
        return (own - other).square().sum(-1)
    if distance == "l1":
        return (own - other).abs().sum(-1)
    logs = (other.clamp_min(1e-30) / own.clamp_min(1e-30)).log()
    return torch.where(other > 0, other * logs, 0).sum(-1)


def rows_of(seen):
    """Return the dense rows that were tapped."""
    if seen.rows is not None:
        return seen.rows
    logits = seen.scale * seen.query @ seen.key.mT
    return (logits if seen.bias is None else logits + seen.bias).softmax(-1)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("name", ["global", "windowed", "gated-conv"])
def test_its_value_is_the_dense_formula_over_the_hole_rows(name, distance):
    toy = HOSTS[name]
    host, optimizer, distiller = start(toy, distance)
    train(toy, host, optimizer, batches(3), distiller)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():  # the average lags far behind: rows that are alike but for float32's rounding are no test
        for parameter in host.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter += 1.5 * parameter.std(unbiased=False) * noise
    image, mask = batch(7)
    kept = []
    term = distiller._terms["attention"]
    handle = term.register_forward_pre_hook(lambda module, args: kept.append(args))
    toy.call(host, image, mask)
    loss = distiller.loss(image, mask)
    handle.remove()
    ((student, teacher, hole, *_),) = kept
    (site,) = term.sites
    own, other = rows_of(student[0]).detach(), rows_of(teacher[0]).detach()
    torch.testing.assert_close(own.sum(-1), torch.ones_like(own.sum(-1)))
    count = own.shape[2]
    grid = site.grid(count, own.shape[0], len(image), (32, 32))
    inside = site.tokens(F.adaptive_max_pool2d(hole, grid), count, own.shape[0], (32, 32))[..., 0] > 0
    values = dense(own, other, distance).mean(1)
    expected = 0.5 * values[inside].sum() / inside.sum()
    assert expected > {"l1": 1e-2, "l2": 1e-5, "kl": 1e-4}[distance]
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("name", ["global", "windowed"])
def test_what_is_tapped_is_what_the_host_used(name):
    toy = HOSTS[name]
    host, _, distiller = start(toy)
    image, mask = batch(7)
    toy.call(host, image, mask)
    used = host.mix.rows.detach().clone()
    (seen,) = distiller._watch.take((32, 32)).attention
    assert torch.equal(rows_of(seen).view_as(used), used)


@pytest.mark.parametrize("name", HOSTS)
def test_it_pulls_the_hosts_rows_to_the_teachers(name):
    toy = HOSTS[name]
    host, _, distiller = start(toy)
    image, mask = batch(7)
    toy.call(host, image, mask)
    distiller.loss(image, mask)
    with torch.no_grad():
        for parameter in distiller._teacher.module.parameters():
            parameter.mul_(1.3)
    optimizer, values = torch.optim.SGD(host.parameters(), 1e-2), []
    for _ in range(8):
        toy.call(host, image, mask)
        loss = distiller.loss(image, mask)
        values.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(host.parameters(), 1.0)
        optimizer.step()
    assert values[0] > 0
    assert min(values[1:]) < values[0]


@pytest.mark.parametrize("engine", ["finite_difference", "unroll"])
@pytest.mark.parametrize("name", ["global", "gated-conv"])
def test_t_is_moved_by_the_look_ahead_alone(name, engine):
    toy = HOSTS[name]
    host, optimizer, distiller = start(toy, lookahead=engine)
    image, mask = batch(0)
    loss = reconstruct(toy, host, image, mask) + distiller.loss(image, mask)
    loss.backward()
    (t,) = distiller._terms["attention"].t
    assert all(parameter.grad is None and not parameter.any() for parameter in t.parameters())
    optimizer.step()
    assert not any(parameter.any() for parameter in t.parameters())
    train(toy, host, optimizer, batches(1, 1), distiller)
    assert all(parameter.any() for parameter in t.parameters())


def test_t_weighs_the_rows():
    site = AttentionSite(name="mix", kind="softmax", heads=1, queries=16, keys=16, channels=5)
    term = AttentionTransfer(AttentionConfig(weight=1.0), [site], [site], meta=("t",))
    generator = torch.Generator().manual_seed(0)
    own, other = (torch.randn(2, 1, 16, 16, generator=generator).softmax(-1) for _ in range(2))
    entering = torch.randn(2, 16, 5, generator=generator)
    student, teacher = AttentionMap(rows=own), AttentionMap(rows=other, entering=entering)
    mask = batch(0)[1]
    hole = F.adaptive_max_pool2d(mask, (4, 4)).flatten(1) > 0
    (half,) = term([student], [teacher], mask)
    torch.testing.assert_close(half, 0.5 * dense(own, other, "l2").mean(1)[hole].mean().float())
    (network,) = term.t
    assert isinstance(network, TokenWeights)
    with torch.no_grad():
        network.linear.weight.normal_(generator=generator)
    expected = (network(entering) * dense(own, other, "l2").mean(1).float())[hole].mean()
    torch.testing.assert_close(term([student], [teacher], mask).sum(), expected)
    assert not torch.equal(half, expected)


class Reads(nn.Module):
    """A network of another width, token count or kind of attention that takes the image alone."""

    def __init__(self, **options):
        super().__init__()
        self.net = Host(inputs=3, **options)

    def forward(self, image):
        return self.net(image)


TEACHERS = {
    "same": {},
    "more tokens": {"stride": 1},
    "wider": {"width": 24},
    "wider with more tokens": {"width": 24, "stride": 1},
    "windowed": {"kind": lambda width: Attention(width, heads=4)},
}


@pytest.mark.parametrize("engine", ["finite_difference", "unroll"])
@pytest.mark.parametrize("name", TEACHERS)
def test_a_module_teacher_may_have_another_layout(name, engine):
    toy = HOSTS["global"]
    teacher = ModuleTeacher(Reads(**TEACHERS[name]), attention=["net.mix"])
    host, optimizer, distiller = start(toy, lookahead=engine, teacher=teacher)
    losses = train(toy, host, optimizer, batches(3), distiller)
    assert distiller.log["attention"] > 0
    assert all(torch.isfinite(loss) for loss in losses)
    assert host.mix.query.weight.grad.any()


def test_attention_of_a_teacher_that_names_none_is_refused_where_the_user_named_the_hosts():
    image, mask = batch()
    with pytest.raises(PlanError, match="no attention that is named"):
        start(HOSTS["global"], teacher=ModuleTeacher(Reads()), attention=["mix"], image=image, mask=mask)


def test_as_many_layers_have_to_be_named_on_both_sides():
    image, mask = batch()
    twice = nn.Sequential(Reads(), Reads())
    teacher = ModuleTeacher(twice, stages=["0.net.enc0", "0.net.enc1"], attention=["0.net.mix", "1.net.mix"])
    with pytest.raises(PlanError, match="1 attention layer"):
        start(HOSTS["global"], teacher=teacher, image=image, mask=mask)


def test_every_mask_counts_for_its_own_sample():
    toy = HOSTS["global"]
    values = []
    for indices in ([0, 1], [0], [1]):
        host, _, distiller = start(toy)
        image, mask = (each[indices] for each in batch(5))
        toy.call(host, image, mask)
        distiller.loss(image, mask)
        with torch.no_grad():
            for parameter in distiller._teacher.module.parameters():
                parameter.mul_(1.2)
        toy.call(host, image, mask)
        rows = F.adaptive_max_pool2d(mask, (8, 8)).sum()
        values.append(rows * distiller.loss(image, mask).detach())
    torch.testing.assert_close(values[0], values[1] + values[2], rtol=1e-3, atol=1e-6)


def test_an_empty_list_of_layers_makes_no_term():
    toy = HOSTS["global"]
    for attention, expected in ((None, ["cross", "self", "attention"]), ([], ["cross", "self"])):
        host = toy.build()
        distiller = inpaint_distill.attach(host, config=FIXED, attention=attention)
        toy.call(host, *batch())
        assert list(distiller._terms) == expected


# -- t on another grid, and layers that differ -------------------------------------------------------------------------


def site(tokens, channels=5, **more):
    return AttentionSite(name="mix", kind="softmax", queries=tokens, keys=tokens, channels=channels, **more)


def some_rows(batch, queries, keys, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 1, queries, keys, generator=generator, dtype=torch.float64).softmax(-1)


def with_t(own, other):
    """Build the term with a t that is off its start."""
    term = AttentionTransfer(AttentionConfig(weight=1.0), [own], [other], meta=("t",))
    with torch.no_grad():
        term.t[0].linear.weight.copy_(torch.linspace(-1, 1, 5)[None])
    return term


@pytest.mark.parametrize("teacher_grid", [(2, 4), (8, 16)])
def test_a_t_of_other_tokens_is_interpolated_and_rows_are_laid_out_on_the_images_grids(teacher_grid):
    """The image is 32 x 64, so that neither grid is a square."""
    own_grid, count = (4, 8), teacher_grid[0] * teacher_grid[1]
    own, other = some_rows(2, 32, 32), some_rows(2, count, count, seed=1)
    entering = torch.randn(2, count, 5)
    mask = torch.zeros(2, 1, 32, 64)
    mask[0, :, 3:17, 5:40] = 1
    mask[1, :, 20:31, 30:60] = 1
    term = with_t(site(32), site(count))
    found = term([AttentionMap(rows=own)], [AttentionMap(rows=other, entering=entering)], mask)
    on_grid = term.t[0](entering).unflatten(1, teacher_grid)[:, None]
    weights = F.interpolate(on_grid, own_grid, mode="bilinear", align_corners=False).flatten(1)
    rows = F.interpolate(other[:, 0].mT.unflatten(2, teacher_grid), own_grid, mode="bilinear", align_corners=False)
    rows = rows.flatten(2).mT.unflatten(2, teacher_grid)  # (B, Nq, rows and columns of the teacher's keys)
    rows = rows.repeat_interleave(2, 2).repeat_interleave(2, 3) / 4 if count < 32 else F.avg_pool2d(rows, 2) * 4
    distances = (own[:, 0] - rows.flatten(2)).square().sum(-1)
    inside = F.adaptive_max_pool2d(mask, own_grid).flatten(1) > 0
    wanted = (weights * distances)[inside].mean()
    torch.testing.assert_close(found.sum().double(), wanted.double(), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("entering", "channels"), [(None, 5), (torch.randn(2, 7, 5), 5), (torch.randn(2, 16, 5), 0)])
def test_where_the_entering_feature_cannot_be_read_every_row_weighs_one_half(entering, channels):
    own, other = some_rows(2, 16, 16), some_rows(2, 16, 16, seed=1)
    mask = batch(0)[1]
    term = AttentionTransfer(AttentionConfig(weight=1.0), [site(16)], [site(16, channels)], meta=("t",))
    assert isinstance(term.t[0], TokenWeights if channels else nn.Identity)
    found = term([AttentionMap(rows=own)], [AttentionMap(rows=other, entering=entering)], mask)
    inside = F.adaptive_max_pool2d(mask, (4, 4)).flatten(1) > 0
    wanted = 0.5 * (own[:, 0] - other[:, 0]).square().sum(-1)[inside].mean()
    torch.testing.assert_close(found.sum().double(), wanted)


def test_t_takes_no_gradient_from_what_enters_and_accepts_half_precision():
    entering = torch.randn(2, 16, 5, dtype=torch.float16, requires_grad=True)
    term = with_t(site(16), site(16))
    own = some_rows(2, 16, 16).requires_grad_()
    value = term([AttentionMap(rows=own)], [AttentionMap(rows=some_rows(2, 16, 16, 1), entering=entering)], batch(0)[1])
    value.sum().backward()
    assert entering.grad is None
    assert own.grad.any()


def test_every_layer_has_its_own_value_and_its_own_t():
    sites = [site(16), site(64)]
    term = AttentionTransfer(AttentionConfig(weight=1.0, distance="l1"), sites, sites, meta=("t",))
    own = [AttentionMap(rows=some_rows(2, count, count)) for count in (16, 64)]
    other = [AttentionMap(rows=some_rows(2, count, count, 1), entering=torch.randn(2, count, 5)) for count in (16, 64)]
    with torch.no_grad():
        term.t[1].linear.bias.fill_(1.0)
    mask = batch(0)[1]
    found = term(own, other, mask)
    for value, grid, weight, a, b in zip(
        found, ((4, 4), (8, 8)), (0.5, torch.sigmoid(torch.tensor(1.0).double())), own, other, strict=True
    ):
        inside = F.adaptive_max_pool2d(mask, grid).flatten(1) > 0
        wanted = weight * (a.rows[:, 0] - b.rows[:, 0]).abs().sum(-1)[inside].mean()
        torch.testing.assert_close(value.double(), wanted, rtol=1e-6, atol=0)
    assert len(AttentionTransfer(AttentionConfig(), sites, sites).t) == 0
