"""Adversarial loops: of several forwards the right one is used, none is stale, and none is kept."""

import gc
import weakref
from contextlib import contextmanager

import pytest
import torch
from hosts import EVERY_HOST, SAMPLE, ZOO, batch, batches, make_optimizer, reconstruct, same, state_of
from torch import nn
from torch.utils._pytree import tree_leaves

import inpaint_distill
from inpaint_distill.errors import CaptureError
from inpaint_distill.losses.balance import EAGER_STEPS

QUICK = {"warmup": 0, "ema_decay": 0.9}
FIXED = {**QUICK, "balance": "none"}
PLAIN = ZOO["separate"]
ORDERS = ("before", "between", "after")
SAMPLED = [pytest.param(EVERY_HOST[name], id=name) for name in SAMPLE]


class Game:
    """A generator with distillation, its discriminator, and what happens in a step of theirs."""

    def __init__(self, toy, way="detached", adapter=None, **config):
        torch.manual_seed(1)
        self.toy, self.way = toy, way
        self.host = toy.build()
        self.optimizer = make_optimizer(self.host)
        self.critic = nn.Conv2d(3, 1, 4, 4)
        self.critics_optimizer = make_optimizer(self.critic)
        config = {**QUICK, **config}
        self.distiller = inpaint_distill.attach(self.host, self.optimizer, adapter=adapter, config=config)
        image, mask = batch(99, size=toy.size)
        self.run(image, mask)  # plans, and copies the teacher
        self.distiller.loss(image, mask)

    def run(self, image, mask):
        return self.toy.select(self.toy.call(self.host, image, mask))

    def sample(self, image, mask):
        """Draw what the discriminator is shown, in one of the ways of public training loops."""
        if self.way == "detached":
            return self.run(image, mask).detach()
        context = {
            "no_grad": torch.no_grad,
            "inference_mode": torch.inference_mode,
            "paused": self.distiller.paused,
            "frozen": self.frozen,
        }
        with context[self.way]():
            return self.run(image, mask).detach().clone()

    @contextmanager
    def frozen(self):
        """Leave the generator alone for a phase, as StyleGAN's loop does."""
        trained = [parameter for parameter in self.host.parameters() if parameter.requires_grad]
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
        for parameter in trained:
            parameter.requires_grad_(True)

    def train_critic(self, image, fake):
        loss = self.critic(fake.clone()).mean() - self.critic(image).mean()
        self.critics_optimizer.zero_grad()
        loss.backward()
        self.critics_optimizer.step()

    def own_loss(self, image, restored):
        return (restored - image).abs().mean() - 0.01 * self.critic(restored).mean()

    def follow(self, loss):
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def step(self, order, image, mask):
        """Do one step of each network, the discriminator's before, inside or after the generator's."""
        if order == "before":
            self.train_critic(image, self.sample(image, mask))
        restored = self.run(image, mask)
        if order == "between":
            self.train_critic(image, self.sample(image, mask))
        self.follow(self.own_loss(image, restored) + self.distiller.loss(image, mask))
        if order == "after":
            self.train_critic(image, self.sample(image, mask))

    def state(self):
        return state_of(self.host, self.optimizer), state_of(self.critic), self.distiller._composer.state()


# -- the right forward -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("toy", SAMPLED)
def test_how_the_discriminators_sample_is_drawn_does_not_change_the_training(toy):
    states = []
    for way in ("paused", "detached", "frozen"):
        game = Game(toy, way)
        for order, (image, mask) in zip(ORDERS, batches(3, size=toy.size), strict=True):
            game.step(order, image, mask)
        assert game.distiller.log["loss"] > 0
        states.append(game.state())
    assert same(states[1], states[0])
    assert same(states[2], states[0])


@pytest.mark.parametrize("toy", [pytest.param(PLAIN, id="separate"), *SAMPLED])
def test_sampling_without_a_graph_does_not_change_the_training(toy):
    states = []
    for way in ("paused", "no_grad", "inference_mode"):
        game = Game(toy, way)
        for order, (image, mask) in zip(ORDERS, batches(3, **toy.images), strict=True):
            game.step(order, image, mask)
        states.append(game.state())
    assert same(states[1], states[0])
    assert same(states[2], states[0])


@pytest.mark.parametrize("toy", SAMPLED)
def test_of_two_forwards_in_use_each_loss_takes_that_of_its_image_and_mask(toy):
    first, second = batches(2, size=toy.size)
    other_mask = (first[0], second[1])  # the same image
    for other in (second, other_mask):
        values = []
        for both in (False, True):
            game = Game(toy, **FIXED)
            kept = [game.run(*first)]
            if both:
                kept.append(game.run(*other))
            values.append(game.distiller.loss(*first))
        assert torch.equal(*values)
        assert game.distiller.loss(*other) > 0, "each forward serves once, the later one too"
        with pytest.raises(CaptureError, match="has not run"):
            game.distiller.loss(*other)
        del kept


@pytest.mark.parametrize("toy", SAMPLED)
def test_two_forwards_of_other_batches_are_never_mixed_with_this_one(toy):
    game = Game(toy)
    first, second, third = batches(3, size=toy.size)
    game.step("after", *first)
    kept = [game.run(*first), game.run(*second)]
    with pytest.raises(CaptureError, match="none is of this image and mask"):
        game.distiller.loss(*third)
    del kept


class Silent(inpaint_distill.Adapter):
    """Makes the teacher's call itself, so that the host's own is not read."""

    name = "silent"
    replayable = False

    def outputs(self, module, image, hole):
        return module(image * (1 - hole), hole)


def test_forwards_that_cannot_be_told_apart_are_refused():
    image, mask = batch()
    game = Game(PLAIN, adapter=Silent())
    kept = [game.run(image, mask), game.run(image, mask)]
    with pytest.raises(CaptureError, match="does not tell"):
        game.distiller.loss(image, mask)
    del kept
    game.run(image, mask)
    game.distiller.loss(image, mask)


def test_a_loss_made_from_another_forward_than_the_one_compared_is_refused():
    """Two forwards of one batch look alike; the gradient tells which one the user's loss is made from."""
    game = Game(PLAIN)

    def step(image, mask):
        restored = game.run(image, mask)
        fake = game.run(image, mask)  # kept, and detached where it is used
        game.train_critic(image, fake.detach())
        game.follow(game.own_loss(image, restored) + game.distiller.loss(image, mask))

    for image, mask in batches(EAGER_STEPS):
        step(image, mask)
    with pytest.raises(CaptureError, match="another forward"):
        step(image, mask)


# -- between the steps -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("toy", SAMPLED)
def test_validation_in_eval_mode_between_two_steps_does_not_change_the_training(toy):
    states = []
    for validates in (False, True):
        game = Game(toy)
        for graph, (image, mask) in zip((False, True), batches(2, size=toy.size), strict=True):
            if validates:
                game.host.eval()
                buffers = {name: buffer.clone() for name, buffer in game.host.named_buffers()}
                with torch.random.fork_rng(devices=[]), torch.set_grad_enabled(graph):
                    game.run(*batch(9, count=3, size=toy.size))
                with torch.no_grad():  # some hosts move them in eval mode too
                    for name, buffer in game.host.named_buffers():
                        buffer.copy_(buffers[name])
                game.host.train()
            game.step("after", image, mask)
        states.append(game.state())
    assert same(*states)


@pytest.mark.parametrize("toy", [EVERY_HOST[name] for name in ("separate_known", "batch_norm", "gated-conv")])
def test_several_generator_steps_to_one_of_the_discriminator_see_each_its_own_forward(toy):
    states = []
    for way in ("paused", "detached"):
        game = Game(toy, way)
        for number, (image, mask) in enumerate(batches(4, size=toy.size)):
            game.step("after" if number % 2 else "none", image, mask)
        states.append(game.state())
    assert same(*states)


# -- nothing stale -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("toy", SAMPLED)
def test_a_forward_from_before_an_optimizer_step_is_stale(toy):
    game = Game(toy)
    image, mask = batch(size=toy.size)
    game.step("after", image, mask)
    kept = game.run(image, mask)
    game.follow(game.own_loss(image, kept))
    with pytest.raises(CaptureError, match="has not run"):
        game.distiller.loss(image, mask)


def test_after_a_forward_that_was_interrupted_the_one_before_it_serves():
    game = Game(PLAIN, **FIXED)
    image, mask = batch()
    restored = game.run(image, mask)
    handle = game.host.enc2.register_forward_hook(_fail)
    with pytest.raises(ZeroDivisionError):
        game.run(*batch(1))
    handle.remove()
    loss = game.distiller.loss(image, mask)
    assert loss > 0
    game.follow(game.own_loss(image, restored) + loss)


def _fail(module, args, output):
    raise ZeroDivisionError


# -- no leak -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("toy", "order"),
    [
        *(pytest.param(PLAIN, order, id=f"separate-{order}") for order in ORDERS),
        *(pytest.param(EVERY_HOST[name], "between", id=name) for name in SAMPLE),
    ],
)
def test_no_feature_of_a_step_outlives_the_next(toy, order):
    game = Game(toy)
    seen = []
    deepest = game.host.get_submodule(game.distiller.plan.stages[-1].name)
    handle = deepest.register_forward_hook(lambda module, args, output: seen.extend(references(output)))
    for image, mask in batches(2, **toy.images):
        game.step(order, image, mask)
    earlier = list(seen)
    game.step(order, *batch(2, **toy.images))
    gc.collect()
    assert len(earlier) >= 4
    assert all(reference() is None for reference in earlier)
    handle.remove()
    game.distiller.detach()
    gc.collect()
    assert all(reference() is None for reference in seen)


def references(output):
    """Refer weakly to every tensor of an output."""
    return [weakref.ref(each) for each in tree_leaves(output) if isinstance(each, torch.Tensor)]


def test_forwards_with_a_graph_that_nobody_uses_do_not_pile_up():
    game = Game(PLAIN)
    game.step("after", *batch())
    seen = []
    handle = game.host.enc1.register_forward_hook(lambda module, args, output: seen.append(weakref.ref(output)))
    for image, mask in batches(5, count=3):
        game.run(image, mask)
    handle.remove()
    gc.collect()
    assert [reference() is None for reference in seen] == [True] * 4 + [False]
    game.distiller.detach()
    assert seen[-1]() is None


def test_forwards_in_use_pile_up_to_two():
    game = Game(PLAIN)
    game.step("after", *batch())
    seen, kept = [], []
    handle = game.host.enc1.register_forward_hook(lambda module, args, output: seen.append(weakref.ref(output)))
    for image, mask in batches(4):
        kept.append(game.run(image, mask))
    assert len(game.distiller._forwards.candidates()) == 2
    handle.remove()


def test_the_hosts_loss_keeps_its_forward_in_use_where_its_output_is_gone():
    game = Game(PLAIN, **FIXED)
    first, second = batches(2)
    own = reconstruct(PLAIN, game.host, *first)
    game.run(*second)
    assert len(game.distiller._forwards.candidates()) == 1
    loss = game.distiller.loss(*first)
    game.follow(own + loss)
    assert game.distiller.log["cross"] > 0
