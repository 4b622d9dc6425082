"""Gradient-norm balancing measures exactly what a separate backward of each loss gives."""

import pytest
import torch
from hosts import ZOO, batch, batches, make_optimizer, reconstruct, train

import inpaint_distill
from inpaint_distill import Config, TermConfig
from inpaint_distill.losses.balance import GradientNormBalancer
from inpaint_distill.losses.composer import Composer

HOSTS = ["separate", "batch_norm", "partial_conv", "recurrent", "in_place", "tokens"]


def attached(toy, **settings):
    host = toy.build()
    config = {"warmup": 0, "self": {"weight": 0.0}, "cross": {"weight": 1.0}, **settings}
    return host, inpaint_distill.attach(host, config=config)


def exact_ratios(name):
    """Return |gradient of the host's loss| / |gradient of the term's own level| at each tapped feature."""
    toy = ZOO[name]
    host, distiller = attached(toy, balance="none")
    image, mask = batch()
    own = reconstruct(toy, host, image, mask)
    taps = distiller._watch._features
    watched = {index: feature for index, (feature, _) in taps._kept.items()}
    features = [watched[index] for index in range(len(taps.stages))]
    levels = []
    distiller._terms["cross"].register_forward_hook(lambda module, args, output: levels.extend(output.unbind()))
    distiller.loss(image, mask)
    ratios = []
    for feature, level in zip(features, levels, strict=True):
        norms = (torch.autograd.grad(each, feature, retain_graph=True)[0].double().norm() for each in (own, level))
        ratios.append(next(norms) / next(norms))
    return torch.stack(ratios)


@pytest.mark.parametrize("name", [name for name in HOSTS if name != "in_place"])
def test_the_first_measurement_is_the_exact_ratio_of_the_gradient_norms_at_each_level(name):
    toy = ZOO[name]
    host, distiller = attached(toy, balance="gradient_norm")
    image, mask = batch()
    (reconstruct(toy, host, image, mask) + distiller.loss(image, mask)).backward()
    factor = distiller._composer.balancer.factors["cross"]
    torch.testing.assert_close(factor.double(), exact_ratios(name), rtol=1e-4, atol=0)


def test_a_level_that_the_hosts_gradient_hardly_reaches_is_hardly_distilled():
    """Whatever follows the sign of the gradient would otherwise follow the distillation alone there."""
    toy = ZOO["separate"]
    host, distiller = attached(toy, balance="gradient_norm", balance_every=1)
    with torch.no_grad():
        host.up.dec[0].weight.mul_(1e-6)
    image, mask = batch()
    for _ in range(3):
        own, added = reconstruct(toy, host, image, mask), distiller.loss(image, mask)
        (own + added).backward()
    deep = [p for name, p in host.named_parameters() if name.startswith("enc2")]
    own, added = reconstruct(toy, host, image, mask), distiller.loss(image, mask)
    norms = [
        torch.stack([g.norm() for g in torch.autograd.grad(each, deep, retain_graph=True)]).norm()
        for each in (own, added)
    ]
    assert 0 < norms[1] < 5 * norms[0]


@pytest.mark.parametrize("name", HOSTS)
def test_a_term_that_already_counts_is_taken_out_of_the_hosts_gradient(name):
    toy = ZOO[name]
    host, distiller = attached(toy, balance="gradient_norm", balance_every=1)
    image, mask = batch()
    state = {key: value.clone() for key, value in host.state_dict().items()}
    measured = []
    for _ in range(6):  # nothing moves, so every measurement has to be the first one again
        host.load_state_dict(state)
        (reconstruct(toy, host, image, mask) + distiller.loss(image, mask)).backward()
        measured.append(distiller._composer.balancer.factors["cross"].clone())
    assert distiller.log["factor/cross"] > 0
    torch.testing.assert_close(measured[-1], measured[0], rtol=1e-3, atol=0)


@pytest.mark.parametrize("scale", [1024.0, 2.0**-10])
def test_scaling_of_the_sum_does_not_change_the_measurement(scale):
    toy = ZOO["separate"]
    factors = []
    for factor in (1.0, scale):
        host, distiller = attached(toy, balance="gradient_norm", balance_every=1)
        for image, mask in batches(3):
            ((reconstruct(toy, host, image, mask) + distiller.loss(image, mask)) * factor).backward()
        factors.append(distiller._composer.balancer.factors["cross"])
    torch.testing.assert_close(factors[0], factors[1], rtol=1e-5, atol=0)


def test_gradients_that_were_accumulated_before_do_not_count():
    toy = ZOO["separate"]
    factors = []
    for before in (0, 3):
        host, distiller = attached(toy, balance="gradient_norm")
        for image, mask in batches(before, 20):
            with distiller.paused():
                reconstruct(toy, host, image, mask).backward()
        image, mask = batch()
        ((reconstruct(toy, host, image, mask) + distiller.loss(image, mask)) / 4).backward()
        factors.append(distiller._composer.balancer.factors["cross"])
    torch.testing.assert_close(factors[0], factors[1], rtol=1e-5, atol=0)


def test_a_backward_whose_gradients_are_thrown_away_does_not_count():
    """Such as that of a discriminator's loss of an output that is not detached."""
    toy = ZOO["separate"]
    factors = []
    for thrown in (False, True):
        host, distiller = attached(toy, balance="gradient_norm")
        image, mask = batch()
        own = reconstruct(toy, host, image, mask)
        if thrown:
            (own * 100).backward(retain_graph=True)
            host.zero_grad()
        (own + distiller.loss(image, mask)).backward()
        factors.append(distiller._composer.balancer.factors["cross"])
    torch.testing.assert_close(factors[0], factors[1], rtol=1e-5, atol=0)


def test_two_backwards_measure_what_one_does():
    toy = ZOO["separate"]
    factors = []
    for apart in (False, True):
        host, distiller = attached(toy, balance="gradient_norm", balance_every=1)
        for image, mask in batches(2):
            own, added = reconstruct(toy, host, image, mask), distiller.loss(image, mask)
            if apart:
                own.backward(retain_graph=True)
                added.backward()
            else:
                (own + added).backward()
        factors.append(distiller._composer.balancer.factors["cross"])
    torch.testing.assert_close(factors[0], factors[1], rtol=1e-3, atol=0)


def test_a_part_of_the_hosts_loss_whose_gradient_came_before_is_added_to_that_of_the_rest():
    toy = ZOO["separate"]
    factors = []
    for apart in (False, True):
        host, distiller = attached(toy, balance="gradient_norm", balance_every=1)
        for image, mask in batches(2):
            restored = toy.select(toy.call(host, image, mask))
            inside, outside = ((restored - image).abs() * part for part in (mask, 1 - mask))
            one, other, added = inside.mean(), outside.mean(), distiller.loss(image, mask)
            if apart:
                one.backward(retain_graph=True)
                (other + added).backward()
            else:
                (one + other + added).backward()
        factors.append(distiller._composer.balancer.factors["cross"])
    torch.testing.assert_close(factors[0], factors[1], rtol=1e-3, atol=0)


def test_measuring_does_not_change_the_training():
    toy = ZOO["separate"]
    states = []
    for every in (1, 1000):
        host = toy.build()
        optimizer = make_optimizer(host)
        config = Config(warmup=0, balance_every=every, self_=TermConfig(weight=0.0))
        distiller = inpaint_distill.attach(host, optimizer, config=config)
        train(toy, host, optimizer, batches(1), distiller)
        states.append([p.clone() for p in host.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


# -- the running factor ------------------------------------------------------------------------------------------------


def test_a_balancer_is_due_at_first_then_every_so_many_steps_and_until_it_has_measured():
    balancer = GradientNormBalancer(["cross", "self"], every=7)
    assert balancer.due(100)
    balancer.update("cross", torch.tensor(2.0))
    assert balancer.due(100)
    balancer.update("self", torch.tensor(2.0))
    assert all(balancer.due(step) for step in range(32))
    assert [step for step in range(32, 60) if balancer.due(step)] == [35, 42, 49, 56]


def test_a_small_first_ratio_counts_and_a_later_one_made_of_rounding_does_not():
    balancer = GradientNormBalancer(["cross"], every=1)
    balancer.update("cross", torch.tensor(1e-9))
    assert float(balancer.factor("cross")) == pytest.approx(1e-9)
    balancer = GradientNormBalancer(["cross"], every=1)
    for host in (1.0, 1e-16, 0.0):
        balancer.measured("cross", torch.tensor([host]), torch.tensor([1.0]))
        assert float(balancer.factor("cross")) == pytest.approx(1.0)


def test_the_factor_moves_geometrically_and_converges():
    balancer = GradientNormBalancer(["cross"], every=1)
    balancer.update("cross", torch.tensor(1.0))
    balancer.update("cross", torch.tensor(100.0))
    assert float(balancer.factors["cross"]) == pytest.approx(100**0.2, rel=1e-5)
    for _ in range(60):
        balancer.update("cross", torch.tensor(100.0))
    assert float(balancer.factors["cross"]) == pytest.approx(100, rel=1e-3)


def test_ctrl_c_in_the_midst_of_a_measurement_leaves_nothing_for_a_later_step():
    class Struck(torch.Tensor):
        def any(self):
            raise KeyboardInterrupt

    balancer = GradientNormBalancer(["cross"], 16)
    balancer.measured("cross", torch.tensor([4.0]), torch.tensor([1.0]))
    with pytest.raises(KeyboardInterrupt):
        balancer.measured("cross", torch.tensor([9.0]).as_subclass(Struck), torch.tensor([1.0]))
    balancer.settle()
    assert balancer.factor("cross") == 2


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0])
def test_a_measurement_without_meaning_does_not_move_the_factor_far(bad):
    balancer = GradientNormBalancer(["cross"], every=1)
    balancer.update("cross", torch.tensor(0.3))
    balancer.update("cross", torch.tensor(bad))
    factor = float(balancer.factors["cross"])
    assert factor == pytest.approx(0.3)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0])
def test_a_first_measurement_without_meaning_leaves_the_term_unmeasured_or_harmless(bad):
    balancer = GradientNormBalancer(["cross"], every=1)
    balancer.update("cross", torch.tensor(bad))
    factor = balancer.factors["cross"]
    assert factor is None or 0 <= float(factor) <= 1


# -- the composer ------------------------------------------------------------------------------------------------------


def terms(**values):
    return {name: torch.tensor([value], requires_grad=True) for name, value in values.items()}


def test_weights_schedule_and_names_make_the_sum():
    composer = Composer(Config(warmup=4, balance="none"), {"cross": 0.5, "self": 0.1})
    given = terms(cross=3.0, self=20.0)
    loss = composer.combine(given, 1, None)
    assert float(loss.detach()) == pytest.approx(0.5 * (0.5 * 3.0 + 0.1 * 20.0))
    loss.backward()
    assert float(given["cross"].grad) == pytest.approx(0.25)
    assert list(composer.log) == ["cross", "self", "factor/cross", "factor/self", "loss"]
    assert not any(value.requires_grad for value in composer.log.values())


def test_a_composer_is_active_only_where_something_counts():
    assert not Composer(Config(), {}).active(50)
    composer = Composer(Config(warmup=0, decay=(2, 4)), {"cross": 1.0})
    assert [composer.active(step) for step in range(6)] == [True, True, True, True, False, False]


def test_the_factors_are_saved_and_loaded():
    first, second = (Composer(Config(), {"cross": 1.0, "self": 1.0}) for _ in range(2))
    first.balancer.update("cross", torch.tensor(0.25))
    tensors, values = first.state()
    assert values == {}
    second.load(tensors, {})
    assert second.balancer.factors == {"cross": torch.tensor(0.25), "self": None}
