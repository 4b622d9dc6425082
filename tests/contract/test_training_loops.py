"""Training loops as people write them: precision, layout, accumulation, clipping, optimizers, schedules."""

import copy

import pytest
import timm.optim
import torch
from hosts import EVERY_HOST, SAMPLE, ZOO, batch, batches, footprint, make_optimizer, reconstruct, same, state_of, train
from torch import nn
from torch.optim import lr_scheduler

import inpaint_distill
from inpaint_distill.errors import OptimizerError, OptimizerWarning

QUICK = {"warmup": 0, "ema_decay": 0.9}
FIXED = {**QUICK, "balance": "none"}
PLAIN = ZOO["separate"]
SAMPLED = [pytest.param(EVERY_HOST[name], id=name) for name in SAMPLE]


def start(toy=PLAIN, kind=torch.optim.AdamW, lr=1e-3, config=QUICK, **settings):
    """Build a host, its optimizer and its distiller."""
    torch.manual_seed(1)
    host = toy.build()
    optimizer = make_optimizer(host, kind, lr=lr, **settings)
    return host, optimizer, inpaint_distill.attach(host, optimizer, config=config)


def added(distiller):
    """Copy the weights that distillation has added and trains."""
    return copy.deepcopy(distiller._terms.state_dict())


# -- mixed precision ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("toy", SAMPLED)
def test_every_host_trains_under_autocast_with_its_terms_in_float32(toy, dtype):
    host, optimizer, distiller = start(toy)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=dtype == torch.float16)
    before = None
    for image, mask in batches(3, size=toy.size):
        with torch.autocast("cpu", dtype):
            own, loss = reconstruct(toy, host, image, mask), distiller.loss(image, mask)
        assert loss.dtype == torch.float32
        assert loss.isfinite()
        before = added(distiller)
        optimizer.zero_grad()
        scaler.scale(own + loss).backward()
        scaler.step(optimizer)
        scaler.update()
    assert distiller.log["loss"] > 0
    assert distiller._step >= 2, "the scaler skipped all"
    assert not same(added(distiller), before)
    assert all(p.isfinite().all() for p in [*host.parameters(), *distiller._terms.parameters()])


@pytest.fixture
def double():
    """Make float64 torch's default type."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["separate", "root_attention"])
def test_whatever_the_default_type_is_the_terms_are_in_float32(name, dtype, double):
    host = ZOO[name].build().to(dtype)
    optimizer = make_optimizer(host)
    config = {**QUICK, "lookahead": {"every": 2}, "completion": True, "fusion": True}
    distiller = inpaint_distill.attach(host, optimizer, config=config)
    data = [(image.to(dtype), mask.to(dtype)) for image, mask in batches(3)]
    assert all(loss.isfinite() for loss in train(ZOO[name], host, optimizer, data, distiller))
    assert distiller.log["cross"].dtype == torch.float32
    assert distiller.log["loss"] > 0
    assert {each.dtype for each in distiller._terms.parameters()} == {torch.float32}
    assert {each.dtype for each in host.parameters()} == {dtype}


@pytest.mark.parametrize("where", ["around everything", "around the host alone"])
def test_autocast_may_or_may_not_be_around_the_loss(where):
    host, optimizer, distiller = start()
    for image, mask in batches(3):
        with torch.autocast("cpu", torch.bfloat16):
            loss = reconstruct(PLAIN, host, image, mask)
            if where == "around everything":
                more = distiller.loss(image, mask)
        if where != "around everything":
            more = distiller.loss(image, mask)
        assert more.dtype == torch.float32
        optimizer.zero_grad()
        (loss + more).backward()
        optimizer.step()
        assert torch.isfinite(more)


@pytest.mark.parametrize("balance", ["none", "gradient_norm"])
@pytest.mark.parametrize(("kind", "lr"), [(torch.optim.SGD, 1e-3), (torch.optim.AdamW, 1e-3)])
def test_loss_scaling_leaves_the_training_as_it_was(kind, lr, balance):
    runs = []
    for scale in (None, 1024.0):
        host, optimizer, distiller = start(kind=kind, lr=lr, config={**QUICK, "balance": balance})
        scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
        for image, mask in batches(4):
            scaled_step(scaler, host, optimizer, distiller, image, mask)
        runs.append([*host.parameters(), *distiller._terms.parameters()])
    for plain, scaled in zip(*runs, strict=True):
        torch.testing.assert_close(scaled, plain, rtol=1e-3, atol=1e-5)


def scaled_step(scaler, host, optimizer, distiller, image, mask, factor=1.0, toy=PLAIN):
    loss = reconstruct(toy, host, image, mask) + distiller.loss(image, mask)
    optimizer.zero_grad()
    scaler.scale(loss * factor).backward()
    scaler.step(optimizer)
    scaler.update()


OVERFLOWS = [(torch.optim.AdamW, float("inf")), (torch.optim.SGD, float("inf"))]
OVERFLOWS += [(kind, factor) for kind in (torch.optim.SGD, torch.optim.AdamW) for factor in (float("nan"), 2.0**115)]


@pytest.mark.parametrize(
    ("toy", "kind", "factor"),
    [
        *(pytest.param(PLAIN, *each, id=f"separate-{each[0].__name__}-{each[1]}") for each in OVERFLOWS),
        *(pytest.param(EVERY_HOST[name], *OVERFLOWS[0], id=name) for name in SAMPLE),
    ],
)
def test_a_step_that_the_scaler_skips_is_as_if_it_had_not_been(toy, kind, factor):
    """But for what the host's own forward moves: batch statistics, random numbers."""
    runs = []
    for skips in (False, True):
        host, optimizer, distiller = start(toy, kind, config=FIXED)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
        first, second, *others = batches(4, **toy.images)
        scaled_step(scaler, host, optimizer, distiller, *first, toy=toy)
        if skips:
            scaled_step(scaler, host, optimizer, distiller, *second, factor, toy)
            assert scaler.get_scale() == 2.0**15
            assert distiller._step == 1
        else:
            with distiller.paused():
                toy.call(host, *second)
        for image, mask in others:
            scaled_step(scaler, host, optimizer, distiller, image, mask, toy=toy)
        runs.append([host.state_dict(), added(distiller), distiller._teacher.module.state_dict()])
    for plain, skipped in zip(*runs, strict=True):
        torch.testing.assert_close(skipped, plain, rtol=1e-5, atol=1e-7)


def test_a_fused_optimizer_which_skips_by_itself_stays_finite():
    host, optimizer, distiller = start(fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    scaled_step(scaler, host, optimizer, distiller, *batch(0))
    before = copy.deepcopy(host.state_dict())
    scaled_step(scaler, host, optimizer, distiller, *batch(1), float("inf"))
    assert same(host.state_dict(), before)
    scaled_step(scaler, host, optimizer, distiller, *batch(2))
    assert all(p.isfinite().all() for p in [*host.parameters(), *distiller._terms.parameters()])


# -- layout ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("toy", SAMPLED)
def test_channels_last_gives_the_same_loss_and_gradients(toy):
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        host, _, distiller = start(toy, config=FIXED)
        host.to(memory_format=layout)
        image, mask = (each.to(memory_format=layout) for each in batch(count=3, size=toy.size))
        own = reconstruct(toy, host, image, mask)
        loss = distiller.loss(image, mask)
        (own + loss).backward()
        found.append((loss, [p.grad for p in host.parameters() if p.grad is not None]))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-4, atol=1e-6)
    scale = max(float(plain.abs().max()) for plain in found[0][1])  # a bias before batch normalisation has rounding
    for other, plain in zip(found[1][1], found[0][1], strict=True):
        torch.testing.assert_close(other, plain, rtol=1e-2, atol=1e-3 * float(plain.abs().max()) + 1e-5 * scale)


# -- accumulation and clipping -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("toy", SAMPLED)
def test_the_gradients_of_micro_batches_add_up_to_those_of_the_sum_of_their_losses(toy):
    found = []
    for at_once in (False, True):
        host, _, distiller = start(toy, config=FIXED)
        losses = []
        for image, mask in batches(3, size=toy.size):
            loss = reconstruct(toy, host, image, mask) + distiller.loss(image, mask)
            losses.append(loss)
            if not at_once:
                loss.backward()
        if at_once:
            torch.stack(losses).sum().backward()
        found.append([p.grad for p in [*host.parameters(), *distiller._terms.trained()] if p.grad is not None])
    for together, apart in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(apart, together, rtol=1e-3, atol=1e-5 * float(together.abs().max()) + 1e-8)


def test_the_parts_of_a_batch_give_the_gradients_of_the_whole():
    settings = {"normalize": "none"}
    gradients = []
    for parts in (1, 2):
        host, _, distiller = start(config={**FIXED, "cross": settings, "self": settings})
        image, mask = batch(count=4)
        mask = mask[:1].expand(4, -1, -1, -1)  # equal holes, so that the mean over the batch is the mean of the parts
        for some, holes in zip(image.chunk(parts), mask.chunk(parts), strict=True):
            ((reconstruct(PLAIN, host, some, holes) + distiller.loss(some, holes)) / parts).backward()
        gradients.append([p.grad.clone() for p in host.parameters()])
    for whole, summed in zip(*gradients, strict=True):
        torch.testing.assert_close(summed, whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("parts", [1, 3])
def test_the_added_networks_step_along_the_mean_of_the_micro_batches_however_they_are_scaled(parts):
    runs = []
    for scale in (1.0, 0.25):
        host, optimizer, distiller = start(kind=torch.optim.SGD, lr=0.1, config=FIXED)
        for image, mask in batches(parts):
            ((reconstruct(PLAIN, host, image, mask) + distiller.loss(image, mask)) * scale).backward()
        optimizer.step()
        runs.append(added(distiller))
    torch.testing.assert_close(runs[0], runs[1])


@pytest.mark.parametrize("as_zeros", [False, True])
def test_a_backward_that_is_thrown_away_leaves_nothing_to_the_added_networks(as_zeros):
    runs = []
    for thrown in (False, True):
        host, optimizer, distiller = start(kind=torch.optim.SGD, lr=0.1, config=FIXED)
        for number, (image, mask) in enumerate(batches(3)):
            if number != 1 or thrown:
                (reconstruct(PLAIN, host, image, mask) + distiller.loss(image, mask)).backward()
            if number != 1:
                optimizer.step()
            optimizer.zero_grad(set_to_none=not as_zeros)
        runs.append([host.state_dict(), added(distiller)])
    torch.testing.assert_close(*runs)


@pytest.mark.parametrize("completion", [False, True])
@pytest.mark.parametrize("toy", SAMPLED)
def test_clipping_the_hosts_gradients_reaches_what_is_in_the_host_and_nothing_else(toy, completion):
    host, optimizer, distiller = start(toy, config={**FIXED, "completion": completion})
    train(toy, host, optimizer, batches(1, **toy.images), distiller)
    image, mask = batch(1, **toy.images)
    loss = reconstruct(toy, host, image, mask) + distiller.loss(image, mask)
    optimizer.zero_grad()
    loss.backward()
    before = [p.grad.clone() for p in distiller._terms.trained()]
    norm = torch.stack([p.grad.norm() for p in host.parameters() if p.grad is not None]).norm()
    torch.testing.assert_close(nn.utils.clip_grad_norm_(host.parameters(), 1e-3), norm)
    assert same([p.grad for p in distiller._terms.trained()], before)
    own = {id(p) for p in host.parameters()}
    assert not any(id(p) in own for p in distiller._terms.parameters())
    optimizer.step()
    assert all(p.isfinite().all() for p in host.parameters())


# -- several optimizers, groups, schedules -----------------------------------------------------------------------------


def shares(host, count):
    """Split a host's parameters, as it lists them, into as many shares: its encoder is in the first ones, mostly."""
    own = [p for p in host.parameters() if p.requires_grad]
    return [own[len(own) * number // count : len(own) * (number + 1) // count] for number in range(count)]


def two_optimizers(inner, outer):
    """Make an optimizer for each of two lists of parameters, of different classes."""
    return torch.optim.AdamW(inner, lr=1e-3), torch.optim.SGD(outer, lr=1e-2)


@pytest.mark.parametrize("toy", SAMPLED)
def test_of_several_optimizers_one_is_given_or_the_distiller_is_stepped_by_hand(toy):
    states = []
    for given in (True, False):
        torch.manual_seed(1)
        host = toy.build()
        first, second = two_optimizers(*shares(host, 2))
        distiller = inpaint_distill.attach(host, first if given else None, config=QUICK)
        for image, mask in batches(3, **toy.images):
            loss = reconstruct(toy, host, image, mask) + distiller.loss(image, mask)
            for optimizer in (second, first):
                optimizer.zero_grad()
            loss.backward()
            for optimizer in (second, first):
                optimizer.step()
            if not given:
                distiller.step()
        assert distiller._step == 3
        states.append((state_of(host), added(distiller)))
    assert same(*states)


def test_the_decoders_optimizer_may_be_the_one_that_is_given():
    host = PLAIN.build()
    inner = [p for name, p in host.named_parameters() if name.startswith("enc")]
    encoders, decoders = two_optimizers(inner, host.up.parameters())
    distiller = inpaint_distill.attach(host, decoders, config=QUICK)
    for image, mask in batches(3):
        loss = reconstruct(PLAIN, host, image, mask) + distiller.loss(image, mask)
        for optimizer in (encoders, decoders):
            optimizer.zero_grad()
        loss.backward()
        encoders.step()
        decoders.step()
    assert distiller._step == 3
    assert type(distiller._companion.inner) is torch.optim.SGD


def grouped(host):
    """Give each quarter of a host a group and a learning rate of its own."""
    rates = (1e-4, 2e-4, 4e-4, 8e-4)
    return torch.optim.AdamW([{"params": share, "lr": lr} for share, lr in zip(shares(host, 4), rates, strict=True)])


SCHEDULES = {
    "a list of lambdas": lambda each: lr_scheduler.LambdaLR(each, [lambda n, k=k: 1 / (n + k) for k in range(1, 5)]),
    "a list of peaks": lambda each: lr_scheduler.OneCycleLR(each, [1e-3, 2e-3, 3e-3, 4e-3], total_steps=9),
    "a list of bases": lambda each: lr_scheduler.CyclicLR(each, [1e-4] * 4, [1e-3] * 4, 2, cycle_momentum=False),
    "one after the other": lambda each: lr_scheduler.SequentialLR(
        each, [lr_scheduler.ConstantLR(each, 0.5, 2), lr_scheduler.ExponentialLR(each, 0.9)], [2]
    ),
    "by the loss": lambda each: lr_scheduler.ReduceLROnPlateau(each, patience=0, min_lr=[0, 1e-5, 1e-6, 1e-7]),
}


@pytest.mark.parametrize(
    ("toy", "schedule", "completion"),
    [
        *(
            pytest.param(PLAIN, schedule, completion, id=f"separate-{schedule}-{completion}")
            for schedule in SCHEDULES
            for completion in (False, True)
        ),
        *(pytest.param(EVERY_HOST[name], "a list of lambdas", True, id=name) for name in SAMPLE),
    ],
)
def test_parameter_groups_and_the_schedules_that_count_them_stay_as_they_are(toy, schedule, completion):
    rates = []
    for attached in (False, True):
        host = toy.build()
        optimizer = grouped(host)
        scheduler = SCHEDULES[schedule](optimizer)
        distiller = None
        if attached:
            distiller = inpaint_distill.attach(host, optimizer, completion=completion, config=QUICK)
        for image, mask in batches(4, **toy.images):
            train(toy, host, optimizer, [(image, mask)], distiller)
            scheduler.step(*([1.0] if schedule == "by the loss" else []))
            rates.append([group["lr"] for group in optimizer.param_groups])
        SCHEDULES[schedule](optimizer)  # made after the attaching, it counts as many
    assert rates[:4] == rates[4:]
    assert all(len(each) == 4 for each in rates)
    grouped_ones = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped_ones) == sorted(id(p) for p in host.parameters()), "blocks are in a group, and once"
    train(toy, host, optimizer, batches(1, 4, **toy.images), distiller)
    assert distiller._companion.inner.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"], "it follows the first"


# -- every class of optimizer ------------------------------------------------------------------------------------------


class Averaging(torch.optim.Optimizer):
    """As schedule-free optimizers are: an average of the weights, two modes, no step in the wrong one."""

    def __init__(self, params, lr=1e-3, momentum=0.9):
        super().__init__(params, {"lr": lr, "momentum": momentum, "train_mode": False})

    def train(self):
        for group in self.param_groups:
            group["train_mode"] = True

    def step(self, closure=None):
        for group in self.param_groups:
            assert group["train_mode"], "step in eval mode"
            for p in group["params"]:
                if p.grad is not None:
                    average = self.state[p].setdefault("z", p.detach().clone())
                    average.sub_(p.grad, alpha=group["lr"])
                    p.data.lerp_(average, 1 - group["momentum"])


class Foreign(torch.optim.SGD):
    """Of another package: its arguments are not its defaults."""

    def __init__(self, params, *, rate, lr=None):
        super().__init__(params, lr=rate)


OPTIMIZERS = {
    "SGD": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "SGD, foreach": (torch.optim.SGD, {"foreach": True}),
    "Adam": (torch.optim.Adam, {"betas": (0.5, 0.9)}),
    "Adam, amsgrad": (torch.optim.Adam, {"amsgrad": True}),
    "AdamW": (torch.optim.AdamW, {"betas": (0.5, 0.9), "weight_decay": 0.0}),
    "AdamW, foreach": (torch.optim.AdamW, {"foreach": True}),
    "AdamW, fused": (torch.optim.AdamW, {"fused": True}),
    "AdamW, lr as a tensor": (torch.optim.AdamW, {"lr": torch.tensor(1e-3), "foreach": False}),
    "RMSprop": (torch.optim.RMSprop, {"alpha": 0.8}),
    "Adagrad": (torch.optim.Adagrad, {"lr_decay": 0.01}),
    "Adadelta": (torch.optim.Adadelta, {"rho": 0.8}),
    "Adamax": (torch.optim.Adamax, {}),
    "NAdam": (torch.optim.NAdam, {}),
    "RAdam": (torch.optim.RAdam, {}),
    "Rprop": (torch.optim.Rprop, {}),
    "ASGD": (torch.optim.ASGD, {}),
    "schedule-free": (Averaging, {}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_added_networks_are_trained_by_an_optimizer_of_the_users_class_and_settings(name):
    kind, settings = OPTIMIZERS[name]
    host, optimizer, distiller = start(kind=kind, config=FIXED, **{"lr": 1e-3, **settings})
    if kind is Averaging:
        optimizer.train()
    train(PLAIN, host, optimizer, batches(1), distiller)
    before = added(distiller)
    losses = train(PLAIN, host, optimizer, batches(3, 1), distiller)
    inner = distiller._companion.inner
    assert type(inner) is kind
    assert {key: inner.defaults[key] for key in settings if key != "lr"} == {
        key: value for key, value in settings.items() if key != "lr"
    }
    assert all(loss.isfinite() for loss in losses)
    assert not same(added(distiller), before)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_keeps_its_groups_and_the_keys_of_its_state(name):
    kind, settings = OPTIMIZERS[name]
    states = []
    for attached in (False, True):
        host = PLAIN.build()
        optimizer = make_optimizer(host, kind, **{"lr": 1e-3, **settings})
        if kind is Averaging:
            optimizer.train()
        distiller = inpaint_distill.attach(host, optimizer, config=QUICK) if attached else None
        train(PLAIN, host, optimizer, batches(2), distiller)
        states.append(optimizer.state_dict())
    bare, ours = states
    assert bare["param_groups"] == ours["param_groups"]
    assert {k: list(v) for k, v in bare["state"].items()} == {k: list(v) for k, v in ours["state"].items()}


def test_an_optimizer_of_arguments_of_its_own_has_adamw_beside_it():
    host = PLAIN.build()
    optimizer = Foreign(host.parameters(), rate=1e-3)
    distiller = inpaint_distill.attach(host, optimizer, config=QUICK)
    losses = train(PLAIN, host, optimizer, batches(3), distiller)
    assert type(distiller._companion.inner) is torch.optim.AdamW
    assert all(loss.isfinite() for loss in losses)


@pytest.mark.parametrize("completion", [False, True])
def test_an_optimizer_around_another_has_adamw_beside_it(completion):
    host = PLAIN.build()
    optimizer = timm.optim.Lookahead(make_optimizer(host))
    distiller = inpaint_distill.attach(host, optimizer, completion=completion, config=QUICK)
    losses = train(PLAIN, host, optimizer, batches(3), distiller)
    assert distiller._step == 3
    assert type(distiller._companion.inner) is torch.optim.AdamW
    assert all(loss.isfinite() for loss in losses)


def test_the_added_networks_minimise_their_loss_also_where_the_optimizer_maximises_the_negative():
    runs = []
    for sign in (1, -1):
        host, optimizer, distiller = start(kind=torch.optim.SGD, lr=0.1, config=FIXED, maximize=sign < 0)
        for image, mask in batches(3):
            loss = reconstruct(PLAIN, host, image, mask) + distiller.loss(image, mask)
            optimizer.zero_grad()
            (sign * loss).backward()
            optimizer.step()
        runs.append([host.state_dict(), added(distiller)])
    torch.testing.assert_close(*runs)


def with_matrices():
    """Build a host with a matrix at its end, and an optimizer that takes nothing else."""
    torch.manual_seed(1)
    host = PLAIN.build()
    host.up.add_module("mix", nn.Linear(32, 32, bias=False))
    host.up.out.register_forward_hook(lambda module, args, output: host.up.mix(output))
    return host, torch.optim.Muon(host.up.mix.parameters(), lr=1e-3)


needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon came with torch 2.9")


@needs_muon
@pytest.mark.parametrize("planned", [False, True])
def test_an_optimizer_for_matrices_alone_is_refused_where_it_would_have_to_train_a_block(planned):
    host, matrices = with_matrices()
    before, groups = footprint(host), matrices.state_dict()
    image, mask = batch()
    given = {"image": image, "mask": mask} if planned else {}

    def begin():
        distiller = inpaint_distill.attach(host, matrices, completion=True, **given)
        PLAIN.call(host, image, mask)
        return distiller

    with pytest.raises(OptimizerError, match=r"Muon, which(.|\n)*convolutions"):
        begin()
    assert footprint(host) == before
    assert matrices.state_dict() == groups


@needs_muon
def test_an_optimizer_for_matrices_alone_has_adamw_beside_it():
    host, matrices = with_matrices()
    distiller = inpaint_distill.attach(host, matrices, config=QUICK)
    losses = train(PLAIN, host, matrices, batches(3), distiller)
    assert type(distiller._companion.inner) is torch.optim.AdamW
    assert all(loss.isfinite() for loss in losses)


def test_lbfgs_calls_host_and_loss_in_its_closure_as_often_as_it_likes():
    host, optimizer, distiller = start(kind=torch.optim.LBFGS, lr=0.1, config=FIXED, max_iter=4, max_eval=6)
    calls, losses = [], []
    for image, mask in batches(3):

        def closure(image=image, mask=mask):
            calls.append(1)
            loss = reconstruct(PLAIN, host, image, mask) + distiller.loss(image, mask)
            optimizer.zero_grad()
            loss.backward()
            return loss

        losses.append(optimizer.step(closure))
    assert len(calls) > 3
    assert distiller._step == 3
    assert type(distiller._companion.inner) is torch.optim.AdamW
    assert all(loss.isfinite() for loss in losses)
    assert all(p.isfinite().all() for p in [*host.parameters(), *distiller._terms.parameters()])


def test_the_added_networks_follow_a_learning_rate_schedule():
    host, optimizer, distiller = start()
    scheduler = lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=6)
    train(PLAIN, host, optimizer, batches(5), distiller, scheduler)
    assert distiller._companion.inner.param_groups[0]["lr"] != 1e-3


@pytest.mark.parametrize("given", [False, True])
def test_an_optimizer_that_never_steps_is_named_once(given):
    """As that of a sharpness-aware optimizer which steps another inside, or one that was replaced after attach()."""
    host = PLAIN.build()
    optimizer, other = make_optimizer(host), make_optimizer(host, torch.optim.SGD)
    distiller = inpaint_distill.attach(host, optimizer if given else None, lookahead="off", config=FIXED)
    data = batches(2, size=16)
    train(PLAIN, host, other, data * 127 + data[:1], distiller)
    with pytest.warns(OptimizerWarning) as caught:
        train(PLAIN, host, other, data * 130, distiller)
    (told,) = (str(each.message) for each in caught)
    assert ("AdamW.step()" in told) == given
    assert "call distiller.step()" in told if given else "give that optimizer to attach()" in told


def test_as_many_backwards_as_one_accumulates_are_no_reason_to_warn():
    host, optimizer, distiller = start(config={**FIXED, "lookahead": {"engine": "off"}})
    image, mask = batch(size=16)
    for _ in range(3):
        for _ in range(128):
            ((reconstruct(PLAIN, host, image, mask) + distiller.loss(image, mask)) / 128).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert distiller._step == 3
