"""The look-ahead on hosts: when it runs, on which batches, what it trains, and what it leaves as it was."""

import copy
import gc
import itertools
import warnings
import weakref

import pytest
import torch
from hosts import ZOO, ToyHost, batch, batches, footprint, make_optimizer, reconstruct, same, state_of, train
from hosts.base import Plain, Up, block
from torch import nn
from torch.func import functional_call

import inpaint_distill
from inpaint_distill import adapters
from inpaint_distill.errors import LookaheadWarning
from inpaint_distill.lookahead.finite_difference import finite_difference
from inpaint_distill.lookahead.host_problem import Batch
from inpaint_distill.lookahead.unroll import unroll
from inpaint_distill.state import read_state

FIXED = {"warmup": 0, "balance": "none", "ema_decay": 0.9}
ENGINES = ["finite_difference", "unroll"]
PLAIN = ZOO["separate"]


class Attention(nn.Module):
    """Self-attention over the pixels of a map, by a plain softmax."""

    def __init__(self, width):
        super().__init__()
        self.query, self.key = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)

    def forward(self, x):
        rows = torch.softmax(self.query(x).flatten(2).mT @ self.key(x).flatten(2), -1)
        return x + (x.flatten(2) @ rows.mT).view_as(x)


class Attending(nn.Module):
    """A host with attention at its bottleneck."""

    def __init__(self, width=16):
        super().__init__()
        self.enc0, self.enc1, self.enc2 = block(4, 8), block(8, 12, 2), block(12, width, 2)
        self.attention, self.up = Attention(width), Up(width)

    def forward(self, image, mask):
        return self.up(self.attention(self.enc2(self.enc1(self.enc0(torch.cat([image, mask], 1))))))


class Family(ToyHost):
    """A reference implementation, called through its adapter."""

    def call(self, host, image, mask):
        return adapters.get(self.trait).call(host, image, mask)


ATTENTION = ToyHost("attention at the bottleneck", Attending, "separate")
GATED = Family("gated-conv", lambda: adapters.get("gated-conv").build(width=4).train())
HOSTS = [pytest.param(ZOO[name], id=name) for name in ("separate", "batch_norm", "partial_conv", "tokens", "noisy")]
HOSTS += [pytest.param(ATTENTION, id="attention"), pytest.param(GATED, id="gated-conv")]
STATEFUL = [
    "in_place",
    "batch_norm",
    "hook_spectral_norm",
    "data_spectral_norm",
    "cached_tensor",
    "private_cache",
    "noisy",
]


def start(toy, engine="finite_difference", every=2, optimizer=torch.optim.AdamW, config=FIXED, **more):
    """Build a host with its optimizer and attach."""
    host = toy.build()
    optimizer = make_optimizer(host, optimizer, lr=1e-3)
    lookahead = {"engine": engine, "every": every}
    return host, optimizer, inpaint_distill.attach(host, optimizer, config={**config, "lookahead": lookahead}, **more)


def meta_of(distiller):
    """Copy the meta-networks' parameters."""
    return {name: parameter.detach().clone() for name, parameter in distiller._lookahead.meta.items()}


def watch_looks(distiller, before=lambda: None, after=lambda: None):
    """Call something before and after each look-ahead, and collect its batches; the host must have run once."""
    lookahead, seen = distiller._lookahead, []
    look = lookahead.look

    def watched(make):
        before()
        look(lambda first, second: seen.append((first, second)) or make(first, second))
        after()

    lookahead.look = watched
    return seen


def pose(toy, host, distiller, seeds=(1, 2)):
    """Pose the look-ahead's problem on two batches."""
    kept = []
    for seed in seeds:
        image, mask = batch(seed)
        toy.call(host, image, mask)
        call = distiller._forwards.last.call
        distiller.loss(image, mask)
        kept.append(Batch.copy(call, image, mask))
    with distiller.paused():
        return distiller._problem(*kept)


def flat(gradient):
    return torch.cat([gradient[name].double().flatten() for name in sorted(gradient)])


def cosine(first, second):
    return torch.cosine_similarity(flat(first), flat(second), dim=0)


# -- what trains the meta-networks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("toy", HOSTS)
def test_the_users_backward_and_the_companion_leave_the_meta_networks_alone(toy):
    host, optimizer, distiller = start(toy, every=1000)
    train(toy, host, optimizer, batches(1), distiller)
    meta, first = distiller._lookahead.meta, meta_of(distiller)
    assert {name.split(".")[1] for name in meta} == {"gamma", "rho", "phi"} | (
        {"t"} if toy in (ATTENTION, GATED) else set()
    )
    trained = {id(parameter) for parameter in distiller._companion.parameters}
    for image, mask in batches(2, 1):
        (reconstruct(toy, host, image, mask) + distiller.loss(image, mask)).backward()
        assert all(parameter.grad is None for parameter in meta.values())
        optimizer.step()
    assert not any(parameter.requires_grad or id(parameter) in trained for parameter in meta.values())
    assert same(meta_of(distiller), first)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("every", "expected"), [(1, [2, 3, 4, 5, 6, 7]), (2, [2, 4, 6]), (3, [3, 6]), (8, [])])
def test_only_the_look_ahead_changes_them_every_k_steps_once_there_are_two_batches(engine, every, expected):
    host, optimizer, distiller = start(ATTENTION, engine, every)
    train(ATTENTION, host, optimizer, batches(1), distiller)
    looks, last = [], meta_of(distiller)
    for step, data in enumerate(batches(6, 1), 2):
        train(ATTENTION, host, optimizer, [data], distiller)
        now = meta_of(distiller)
        if not same(now, last):
            looks.append(step)
            assert all(not torch.equal(now[name], last[name]) for name in now), "every meta-network learns"
        last = now
    assert looks == expected
    assert ("inpainting after look-ahead" in distiller.log) == bool(expected)


def test_off_has_no_meta_networks():
    host, optimizer, distiller = start(ATTENTION, "off")
    train(ATTENTION, host, optimizer, batches(3), distiller)
    assert not distiller._lookahead.meta
    assert "inpainting after look-ahead" not in distiller.log
    assert not distiller.channel_weights


def test_without_an_optimizer_the_users_step_looks_ahead():
    runs = []
    for given in (True, False):
        host = PLAIN.build()
        optimizer = make_optimizer(host)
        config = {**FIXED, "lookahead": {"every": 2}}
        distiller = inpaint_distill.attach(host, optimizer if given else None, config=config)
        for image, mask in batches(5):
            loss = reconstruct(PLAIN, host, image, mask) + distiller.loss(image, mask)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if not given:
                distiller.step()
        runs.append(meta_of(distiller))
    assert any(value.any() for name, value in runs[0].items() if "rho" in name)
    assert same(runs[0], runs[1])


def test_a_step_that_the_scaler_skips_and_a_paused_one_do_not_count():
    host, optimizer, distiller = start(PLAIN)
    train(PLAIN, host, optimizer, batches(1), distiller)
    looks = watch_looks(distiller)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for factor, image_mask in ((float("inf"), batch(1)), (1.0, batch(2))):
        assert not looks
        loss = reconstruct(PLAIN, host, *image_mask) + distiller.loss(*image_mask)
        optimizer.zero_grad()
        scaler.scale(loss * factor).backward()
        scaler.step(optimizer)
        scaler.update()
    assert len(looks) == 1
    with distiller.paused():
        train(PLAIN, host, optimizer, batches(4))
    assert len(looks) == 1


# -- on which batches --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 2, 3])
def test_the_batches_are_the_step_befores_and_this_steps_also_where_the_loader_reuses_its_memory(every):
    host, optimizer, distiller = start(PLAIN, every=every)
    image, mask = (tensor.clone() for tensor in batch(0))
    train(PLAIN, host, optimizer, [(image, mask)], distiller)
    looks = watch_looks(distiller)
    for seed in range(1, 6):
        for memory, fresh in zip((image, mask), batch(seed), strict=True):
            memory.copy_(fresh)
        train(PLAIN, host, optimizer, [(image, mask)], distiller)
    steps = [step for step in range(2, 7) if step % every == 0]
    assert len(looks) == len(steps)
    for step, (first, second) in zip(steps, looks, strict=True):
        for seed, kept in ((step - 2, first), (step - 1, second)):
            image_then, mask_then = batch(seed)
            assert torch.equal(kept.image, image_then)
            assert torch.equal(kept.mask, mask_then)
            assert torch.equal(kept.call.args[0], image_then * (1 - mask_then))


def test_under_gradient_accumulation_batch_a_is_of_the_step_before():
    host, optimizer, distiller = start(PLAIN)
    train(PLAIN, host, optimizer, batches(1), distiller)
    looks = watch_looks(distiller)
    for part in batches(2, 1):
        (0.5 * (reconstruct(PLAIN, host, *part) + distiller.loss(*part))).backward()
    optimizer.step()
    ((first, second),) = looks
    assert torch.equal(first.image, batch(0)[0])
    assert torch.equal(second.image, batch(2)[0])


def test_batches_are_copied_only_where_a_look_ahead_needs_them_and_freed_after_it():
    host, optimizer, distiller = start(PLAIN, every=4)
    counts = []
    for data in batches(9):
        train(PLAIN, host, optimizer, [data], distiller)
        counts.append(len(distiller._lookahead._batches))
    assert counts == [0, 0, 1, 0, 0, 0, 1, 0, 0]


def test_batches_of_different_sizes_are_no_surprise():
    host, optimizer, distiller = start(ATTENTION, every=1)
    data = [batch(0, size=32), batch(1, count=1, size=48), batch(2, size=32)]
    train(ATTENTION, host, optimizer, data, distiller)
    assert torch.isfinite(distiller.log["inpainting after look-ahead"])


# -- what it leaves as it was ------------------------------------------------------------------------------------------


def everything(host, optimizer):
    """Copy all that a look-ahead must not move, attributes and version counters included."""
    state = state_of(host, optimizer)
    grads = {name: None if p.grad is None else p.grad.clone() for name, p in host.named_parameters()}
    versions = [p._version for p in host.parameters()]
    attributes = {
        f"{name}.{key}": value.detach().clone() if isinstance(value, torch.Tensor) else copy.copy(value)
        for name, part in host.named_modules()
        for key, value in vars(part).items()
        if isinstance(value, (torch.Tensor, int, bool))
    }
    modes = [(p.requires_grad, p.is_leaf) for p in host.parameters()]
    return [state, grads, versions, attributes, modes]


EVERY_HOST = {**ZOO, "attention": ATTENTION, "gated-conv": GATED}
EACH = [(name, "finite_difference") for name in EVERY_HOST]
EACH += [(name, "unroll") for name in (*STATEFUL, "separate", "attention", "gated-conv")]


@pytest.mark.parametrize(("name", "engine"), EACH)
def test_afterwards_nothing_of_the_host_has_changed(name, engine):
    toy = EVERY_HOST[name]
    host, optimizer, distiller = start(toy, engine)
    train(toy, host, optimizer, batches(1), distiller)
    notes = []
    looks = watch_looks(distiller, *[lambda: notes.append((everything(host, optimizer), footprint(host)))] * 2)
    train(toy, host, optimizer, batches(1, 1), distiller)
    assert len(looks) == 1
    (before, trace), (after, trace_after) = notes
    assert same(before, after)
    assert trace == trace_after


@pytest.mark.parametrize("name", ["separate", "batch_norm", "hook_spectral_norm", "noisy", "data_spectral_norm"])
def test_a_look_ahead_changes_the_hosts_training_through_the_next_loss_alone(name):
    runs = []
    for every in (2, 1000):
        torch.manual_seed(3)
        host, optimizer, distiller = start(ZOO[name], every=every)
        train(ZOO[name], host, optimizer, batches(2), distiller)
        image, mask = batch(5)
        own = reconstruct(ZOO[name], host, image, mask)
        runs.append([state_of(host, optimizer), own, distiller.loss(image, mask)])
    assert same(runs[0][:2], runs[1][:2])
    assert not torch.equal(runs[0][2], runs[1][2])


def test_no_graph_outlives_it():
    host, optimizer, distiller = start(PLAIN, "unroll", every=1)
    train(PLAIN, host, optimizer, batches(2), distiller)
    kept = []
    handle = host.enc1.register_forward_hook(lambda module, args, output: kept.append(weakref.ref(output)))
    train(PLAIN, host, optimizer, batches(2, 2), distiller)
    handle.remove()
    gc.collect()
    assert kept
    assert all(reference() is None for reference in kept)
    assert not any(value.requires_grad for value in (*distiller.log.values(), *distiller.channel_weights.values()))


def test_a_half_precision_call_under_autocast_can_be_repeated():
    host, optimizer, distiller = start(PLAIN)
    for image, mask in batches(2):
        with torch.autocast("cpu", torch.bfloat16):
            restored = host((image * (1 - mask)).bfloat16(), mask.bfloat16())
            loss = (restored - image).abs().mean() + distiller.loss(image, mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.isfinite(distiller.log["inpainting after look-ahead"])


# -- the engines on hosts ----------------------------------------------------------------------------------------------


def shaken(distiller):
    """Move the meta-networks off their start, where some derivatives vanish."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in distiller._lookahead.meta.values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


SMOOTH = ["shared_activation", "hook_spectral_norm", "tokens", "nhwc"]


@pytest.mark.parametrize(
    "toy", [*(pytest.param(ZOO[name], id=name) for name in SMOOTH), pytest.param(GATED, id="gated")]
)
def test_the_engines_agree(toy):
    host, optimizer, distiller = start(toy)
    train(toy, host, optimizer, batches(1), distiller)
    shaken(distiller)
    problem = pose(toy, host, distiller)
    theta, meta = problem.theta(), problem.meta()
    near, gradient = finite_difference(problem, theta, meta, lr=0.1)
    exact_value, exact = unroll(problem, theta, meta, lr=0.1)
    torch.testing.assert_close(near, exact_value)
    assert cosine(gradient, exact) > 0.999
    assert 0.98 < flat(gradient).norm() / flat(exact).norm() < 1.02


@pytest.mark.parametrize("name", ["separate", "aliases"])
def test_a_look_ahead_moves_a_weight_wherever_it_is_used(name):
    toy = ZOO[name]
    host, _, distiller = start(toy)
    problem = pose(toy, host, distiller)
    moved = copy.deepcopy(host)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.mul_(0.5)
    theta = {key: each.detach() * 0.5 if key.startswith("host.") else each for key, each in problem.theta().items()}
    image, mask = problem.second.image, problem.second.mask
    assert torch.equal(problem._forward(theta, problem.second), toy.call(moved, image, mask))
    assert all(parameter.requires_grad for parameter in host.parameters())


class Smooth(Plain):
    """Three smooth stages, to be written out by hand."""

    def __init__(self):
        super().__init__(4, lambda i, o, s=1: nn.Sequential(nn.Conv2d(i, o, 3, s, 1), nn.ELU()))


@pytest.mark.parametrize("steps", [1, 2])
def test_the_engines_agree_with_double_precision_written_out_by_hand(steps):
    toy = ToyHost("smooth", Smooth, "separate")
    host, optimizer, distiller = start(toy)
    train(toy, host, optimizer, batches(1), distiller)
    shaken(distiller)
    problem = pose(toy, host, distiller)
    expected_value, expected = by_hand(host, distiller, problem, steps, 0.1)
    found = [unroll(problem, problem.theta(), problem.meta(), lr=0.1, steps=steps)]
    if steps == 1:
        found.append(finite_difference(problem, problem.theta(), problem.meta(), lr=0.1))
    for value, gradient in found:
        torch.testing.assert_close(value.double(), expected_value, rtol=1e-5, atol=1e-6)
        assert cosine(gradient, expected) > 0.9999
        assert 0.99 < flat(gradient).norm() / flat(expected).norm() < 1.01


def by_hand(host, distiller, problem, steps, lr):
    """Differentiate through SGD steps on the terms, in float64, without functional_call, taps or replay."""
    host, terms = copy.deepcopy(host).double(), copy.deepcopy(distiller._terms).double()
    teacher = copy.deepcopy(distiller._teacher.module).double()
    factors = distiller._composer.factors()

    def features(model, parameters, image, mask):
        x, found = torch.cat([image, mask], 1), []
        for name in ("enc0", "enc1", "enc2"):
            own = {key[len(name) + 1 :]: p for key, p in parameters.items() if key.startswith(f"{name}.")}
            x = functional_call(getattr(model, name), own, (x,))
            found.append(x)
        return found

    first, second = ((each.image.double(), each.mask.double()) for each in (problem.first, problem.second))
    target = features(teacher, dict(teacher.named_parameters()), first[0], torch.zeros_like(first[1]))
    theta = {name: p.detach().requires_grad_() for name, p in host.named_parameters()}
    own = {name: p.detach().requires_grad_() for name, p in terms.named_parameters()}
    names = list(distiller._lookahead.meta)
    inner = {name: p for name, p in own.items() if name not in names}
    meta = {name: own[name] for name in names}
    for _ in range(steps):
        seen = features(host, theta, first[0] * (1 - first[1]), first[1])
        parts = {**inner, **meta}
        loss = 0
        for name, term in terms.items():
            mine = {key[len(name) + 1 :]: p for key, p in parts.items() if key.startswith(f"{name}.")}
            loss = loss + (factors[name] * functional_call(term, mine, (seen, target, first[1]))).sum()
        moved = [key for key in theta if key.startswith("enc")]
        gradients = torch.autograd.grad(loss, [*(theta[k] for k in moved), *inner.values()], create_graph=True)
        theta |= {key: theta[key] - lr * g for key, g in zip(moved, gradients, strict=False)}
        inner = {key: p - lr * g for (key, p), g in zip(inner.items(), gradients[len(moved) :], strict=True)}
    image, mask = second
    error = (functional_call(host, theta, (image * (1 - mask), mask)) - image).abs()
    weight = (1 + 5 * mask).expand_as(error)
    value = (weight * error).sum() / weight.sum()
    return value.detach(), dict(zip(names, torch.autograd.grad(value, list(meta.values())), strict=True))


@pytest.mark.parametrize("engine", ENGINES)
def test_it_lowers_the_inpainting_loss_after_the_step_that_it_is_about(engine):
    config = {**FIXED, "cross": {"weight": 1.0}, "self": {"weight": 0.05}}
    host, optimizer, distiller = start(PLAIN, config=config)
    train(PLAIN, host, optimizer, batches(1), distiller)
    problem = pose(PLAIN, host, distiller)
    run = {"finite_difference": finite_difference, "unroll": unroll}[engine]
    meta = {name: parameter.detach().clone() for name, parameter in problem.meta().items()}
    values = []
    for _ in range(10):
        value, gradient = run(problem, problem.theta(), meta, lr=0.01)
        values.append(value)
        size = flat(gradient).norm()
        meta = {name: each - 0.01 * gradient[name] / size for name, each in meta.items()}
    assert all(later < sooner for sooner, later in itertools.pairwise(values))


# -- where it cannot ---------------------------------------------------------------------------------------------------


class Once(torch.autograd.Function):
    """An operation without a second derivative."""

    @staticmethod
    def forward(ctx, value):
        return value * 2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return gradient * 2


class Deformed(nn.Module):
    """torchvision's deformable convolution with offsets of zero: a box filter."""

    def forward(self, x):
        import torchvision

        offset = x.new_zeros(len(x), 18, *x.shape[2:])
        weight = torch.eye(x.shape[1], dtype=x.dtype)[:, :, None, None].expand(-1, -1, 3, 3) / 9
        return torchvision.ops.deform_conv2d(x, offset, weight, padding=1)


class Doubling(nn.Module):
    def forward(self, x):
        return Once.apply(x)


def no_second_derivative(layer):
    def stage(inputs, outputs, stride=1):
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.ELU(), layer())

    return ToyHost("no second derivative", lambda: Plain(4, stage), "separate")


@pytest.mark.parametrize("layer", [Deformed, Doubling])
def test_an_operation_without_second_derivative_makes_unroll_warn_once_and_go_on(layer):
    toy = no_second_derivative(layer)
    results = []
    for engine in ENGINES:
        host, optimizer, distiller = start(toy, engine)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            train(toy, host, optimizer, batches(6), distiller)
        told = [str(each.message) for each in caught if each.category is LookaheadWarning]
        assert len(told) == (engine == "unroll")
        assert all("finite_difference" in text and "second derivative" in text for text in told)
        results.append(meta_of(distiller))
    assert same(results[0], results[1])


class Halved(Plain):
    """Puts out nothing of the image's size."""

    def forward(self, *planes):
        return super().forward(*planes)[..., ::2, ::2]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_host_whose_output_holds_no_image_warns_once_and_trains_on_with_the_start(engine):
    toy = ToyHost("halved", Halved, "separate")
    host, optimizer, distiller = start(toy, engine, every=1)
    first = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for image, mask in batches(4):
            loss = toy.call(host, image, mask).abs().mean() + distiller.loss(image, mask)
            first = first or meta_of(distiller)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    (told,) = [str(each.message) for each in caught if each.category is LookaheadWarning]
    assert "restored image" in told
    assert "(2, 3, 16, 16)" in told
    assert "inpainting_loss" in told
    assert same(meta_of(distiller), first)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_loss_of_the_users_takes_the_output_the_image_and_the_mask(engine):
    toy = ToyHost("halved", Halved, "separate")
    seen = []

    def inpainting(output, image, mask):
        seen.append((output.shape, image, mask))
        return (output - image[..., ::2, ::2]).square().mean()

    host, optimizer, distiller = start(toy, engine, inpainting_loss=inpainting)
    for image, mask in batches(2):
        loss = toy.call(host, image, mask).abs().mean() + distiller.loss(image, mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ((shape, image, mask),) = seen
    assert shape == (2, 3, 16, 16)
    assert same([image, mask], list(batch(1)))
    assert any(value.any() for name, value in meta_of(distiller).items() if "rho" in name)
    assert distiller.log["inpainting after look-ahead"] > 0


def test_an_inpainting_loss_that_overflows_moves_nothing_to_nan():
    def inpainting(output, image, mask):
        return (output - image).abs().mean() * float("inf")

    host, optimizer, distiller = start(PLAIN, inpainting_loss=inpainting)
    train(PLAIN, host, optimizer, batches(4), distiller)
    assert all(value.isfinite().all() for value in meta_of(distiller).values())


# -- save and load -----------------------------------------------------------------------------------------------------


def everything_of(host, optimizer, distiller):
    """Copy all that a resumed run has to repeat."""
    parts = [distiller._terms.state_dict(), *distiller._lookahead.state(), *distiller._companion.state()]
    return copy.deepcopy([state_of(host, optimizer), *({key: each[key] for key in sorted(each)} for each in parts)])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("at", [1, 2, 3, 4])
@pytest.mark.parametrize("toy", [ATTENTION, ZOO["batch_norm"], ZOO["keywords"]], ids=["attention", "norm", "kwargs"])
def test_a_resumed_run_equals_an_uninterrupted_one_at_whichever_step_it_was_saved(tmp_path, toy, engine, at):
    torch.manual_seed(4)
    host, optimizer, distiller = start(toy, engine, every=3)
    train(toy, host, optimizer, batches(at), distiller)
    saved = copy.deepcopy((host.state_dict(), optimizer.state_dict(), torch.get_rng_state()))
    distiller.save(tmp_path / "state")
    train(toy, host, optimizer, batches(7 - at, at), distiller)
    through = everything_of(host, optimizer, distiller)
    torch.manual_seed(99)
    host, optimizer, distiller = start(toy, engine, every=3)
    host.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    distiller.load(tmp_path / "state")
    torch.set_rng_state(saved[2])
    train(toy, host, optimizer, batches(7 - at, at), distiller)
    assert any(value.any() for name, value in meta_of(distiller).items() if "rho" in name)
    assert same(through, everything_of(host, optimizer, distiller))


def test_a_state_saved_again_before_it_was_used_holds_the_same(tmp_path):
    host, optimizer, distiller = start(PLAIN, every=3)
    train(PLAIN, host, optimizer, batches(2), distiller)
    distiller.save(tmp_path / "first")
    image, mask = batch()
    host, optimizer, distiller = start(PLAIN, every=3, image=image, mask=mask)
    distiller.load(tmp_path / "first")
    distiller.save(tmp_path / "second")
    # By content: safetensors writes the keys of its header in no fixed order.
    (first, values), (second, others) = read_state(tmp_path / "first"), read_state(tmp_path / "second")
    assert same(first, second)
    assert values == others


def test_that_it_gave_up_or_fell_back_is_remembered(tmp_path):
    toy = no_second_derivative(Doubling)
    host, optimizer, distiller = start(toy, "unroll")
    with pytest.warns(LookaheadWarning):
        train(toy, host, optimizer, batches(2), distiller)
    distiller.save(tmp_path / "state")
    host, optimizer, distiller = start(toy, "unroll")
    distiller.load(tmp_path / "state")
    train(toy, host, optimizer, batches(4), distiller)  # a second warning would be an error here
