"""The engines against each other, against autograd by hand, and against torchopt."""

import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from inpaint_distill.lookahead.finite_difference import finite_difference
from inpaint_distill.lookahead.unroll import lacks_double_backward, unroll


class Toy:
    """A smooth two-layer student, a teacher's feature reshaped and weighted by meta-networks, and an outer loss."""

    def __init__(self, seed=0, dtype=torch.float64, width=6, batch=5):
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape):
            return torch.randn(*shape, generator=generator, dtype=dtype)

        self.encoder = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh()).to(dtype)
        self.head = nn.Linear(width, 3).to(dtype)
        self.parameters = {f"encoder.{k}": v for k, v in self.encoder.named_parameters()}
        self.parameters |= {f"head.{k}": v for k, v in self.head.named_parameters()}
        for parameter in self.parameters.values():
            parameter.data = draw(*parameter.shape) * 0.5
        self.meta = {"gamma": torch.eye(width, dtype=dtype) + 0.1 * draw(width, width), "rho": 0.3 * draw(width)}
        self.first, self.second, self.target = draw(batch, 4), draw(batch, 4), draw(batch, 3)
        self.teacher = draw(batch, width)

    def _part(self, theta, prefix):
        return {key[len(prefix) :]: value for key, value in theta.items() if key.startswith(prefix)}

    def distillation(self, theta, meta, anchor=None):
        feature = functional_call(self.encoder, self._part(theta, "encoder."), (self.first,))
        fixed = feature.detach() if anchor is None else anchor
        weight = torch.softmax(meta["rho"], 0)
        # The second part looks at the student's own feature, detached, as self-distillation does.
        loss = (weight * (feature - self.teacher @ meta["gamma"]).square()).sum(1).mean()
        return loss + (weight * (feature.roll(1, 1) - fixed).square()).sum(1).mean(), fixed

    def inpainting(self, theta):
        feature = functional_call(self.encoder, self._part(theta, "encoder."), (self.second,))
        return (functional_call(self.head, self._part(theta, "head."), (feature,)) - self.target).square().mean()


def flat(gradient):
    return torch.cat([gradient[name].double().flatten() for name in sorted(gradient)])


def cosine(first, second):
    return torch.cosine_similarity(flat(first), flat(second), dim=0)


def by_hand(toy, lr):
    """One step, written out with autograd, in the toy's own precision."""
    theta = {k: v.detach().clone().requires_grad_() for k, v in toy.parameters.items()}
    meta = {k: v.detach().clone().requires_grad_() for k, v in toy.meta.items()}
    loss, _ = toy.distillation(theta, meta)
    inner = {k: v for k, v in theta.items() if k.startswith("encoder.")}
    gradients = torch.autograd.grad(loss, list(inner.values()), create_graph=True)
    moved = {**theta, **{k: v - lr * g for (k, v), g in zip(inner.items(), gradients, strict=True)}}
    objective = toy.inpainting(moved)
    found = torch.autograd.grad(objective, list(meta.values()))
    return objective.detach(), dict(zip(meta, found, strict=True))


@pytest.mark.parametrize("seed", range(3))
def test_unroll_is_autograd_by_hand(seed):
    toy = Toy(seed)
    objective, gradient = unroll(toy, toy.parameters, toy.meta, lr=0.1)
    expected_objective, expected = by_hand(toy, 0.1)
    torch.testing.assert_close(objective, expected_objective)
    for name in expected:
        torch.testing.assert_close(gradient[name], expected[name])


@given(st.integers(0, 10_000), st.sampled_from([1e-3, 0.03, 0.3]))
def test_finite_difference_agrees_with_unroll_in_double_precision(seed, lr):
    toy = Toy(seed)
    objective, gradient = finite_difference(toy, toy.parameters, toy.meta, lr=lr)
    exact_objective, exact = unroll(toy, toy.parameters, toy.meta, lr=lr)
    torch.testing.assert_close(objective, exact_objective)
    assert cosine(gradient, exact) > 0.999
    assert 0.95 < flat(gradient).norm() / flat(exact).norm() < 1.05


@given(st.integers(0, 10_000))
def test_finite_difference_in_single_precision_agrees_with_double_precision(seed):
    single, double = Toy(seed, torch.float32, width=12, batch=16), Toy(seed, torch.float32, width=12, batch=16)
    for own in (double.encoder, double.head):
        own.double()
    double.parameters = {key: value.double() for key, value in double.parameters.items()}
    double.meta = {key: value.double() for key, value in double.meta.items()}
    for name in ("first", "second", "target", "teacher"):
        setattr(double, name, getattr(double, name).double())
    _, gradient = finite_difference(single, single.parameters, single.meta, lr=0.1)
    _, exact = unroll(double, double.parameters, double.meta, lr=0.1)
    assert cosine(gradient, exact) > 0.999


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_unroll_agrees_with_torchopt(steps):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torchopt = pytest.importorskip("torchopt")
    toy = Toy(7)
    meta = {k: v.detach().clone().requires_grad_() for k, v in toy.meta.items()}

    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.head = toy.encoder, toy.head

    inner = Inner()
    optimizer = torchopt.MetaSGD(inner, lr=0.1)
    feature = inner.encoder
    for _ in range(steps):
        weight = torch.softmax(meta["rho"], 0)
        seen = feature(toy.first)
        loss = (weight * (seen - toy.teacher @ meta["gamma"]).square()).sum(1).mean()
        loss = loss + (weight * (seen.roll(1, 1) - seen.detach()).square()).sum(1).mean()
        optimizer.step(loss)
    objective = (inner.head(inner.encoder(toy.second)) - toy.target).square().mean()
    expected = dict(zip(meta, torch.autograd.grad(objective, list(meta.values())), strict=True))
    own = Toy(7)
    value, gradient = unroll(own, own.parameters, own.meta, lr=0.1, steps=steps)
    torch.testing.assert_close(value, objective.detach())
    for name in expected:
        torch.testing.assert_close(gradient[name], expected[name])


@pytest.mark.parametrize("engine", [finite_difference, unroll])
def test_engines_leave_theta_and_meta_as_they_were(engine):
    toy = Toy(1)
    before = {k: v.detach().clone() for k, v in {**toy.parameters, **toy.meta}.items()}
    engine(toy, toy.parameters, toy.meta, lr=0.1)
    for name, tensor in {**toy.parameters, **toy.meta}.items():
        assert torch.equal(tensor, before[name])
        assert tensor.grad is None


@pytest.mark.parametrize("engine", [finite_difference, unroll])
def test_a_descent_along_the_gradient_lowers_the_loss_after_the_look_ahead(engine):
    toy = Toy(2)
    first = None
    for _ in range(30):
        objective, gradient = engine(toy, toy.parameters, toy.meta, lr=0.5)
        first = objective if first is None else first
        toy.meta = {name: value - 2.0 * gradient[name] for name, value in toy.meta.items()}
    assert objective < first - 1e-3


def test_a_meta_network_that_nothing_depends_on_gets_a_zero_gradient():
    for engine in (finite_difference, unroll):
        toy = Toy(3)
        meta = {**toy.meta, "unused": torch.ones(2, dtype=torch.float64)}
        _, gradient = engine(toy, toy.parameters, meta, lr=0.1)
        assert torch.equal(gradient["unused"], torch.zeros(2, dtype=torch.float64))


def test_an_operation_without_second_derivative_is_recognised():
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value):
            return value * 2

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, gradient):
            return gradient * 2

    class Blocked(Toy):
        def distillation(self, theta, meta, anchor=None):
            loss, fixed = super().distillation({k: Once.apply(v) for k, v in theta.items()}, meta, anchor)
            return loss, fixed

    toy = Blocked(4)
    with pytest.raises(RuntimeError) as caught:
        unroll(toy, toy.parameters, toy.meta, lr=0.1)
    assert lacks_double_backward(caught.value)
    assert not lacks_double_backward(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    finite_difference(toy, toy.parameters, toy.meta, lr=0.1)


def test_deformable_convolution_of_torchvision_is_recognised():
    import torchvision

    feature = torch.randn(1, 2, 4, 4, requires_grad=True)
    offset = torch.zeros(1, 18, 4, 4, requires_grad=True)
    value = torchvision.ops.deform_conv2d(feature, offset, torch.randn(2, 2, 3, 3), padding=1)
    (gradient,) = torch.autograd.grad(value.square().sum(), feature, create_graph=True)
    with pytest.raises(RuntimeError) as caught:
        gradient.square().sum().backward()
    assert lacks_double_backward(caught.value)


# -- finite differences, by what is asked of the problem ---------------------------------------------------------------


class Asked:
    """A problem in one encoder weight and one of the head, which notes at which theta the distillation is asked for."""

    def __init__(self, length, slope=1.0):
        self.theta = {"encoder": torch.full((4,), length / 2, dtype=torch.float64), "head": torch.ones(3).double()}
        self.slope = slope
        self.seen = []

    def distillation(self, theta, meta, anchor=None):
        self.seen.append((theta, anchor))
        return (meta["rho"] * theta["encoder"].pow(3)).sum() + theta["encoder"].sum() * 0.1, "the first"

    def inpainting(self, theta):
        direction = torch.tensor([1.0, 2.0, 2.0, 4.0], dtype=torch.float64)
        return self.slope * (theta["encoder"] * direction).sum() + (theta["head"] * 7).sum()


@pytest.mark.parametrize(("length", "displaced"), [(1e-3, 1e-3), (1.0, 1e-3), (60.0, 1e-3), (200.0, 3e-3), (1e4, 0.15)])
@pytest.mark.parametrize("slope", [1.0, 1e-6, 1e6])
def test_theta_is_displaced_by_a_fixed_length_or_a_fixed_part_of_its_own_whatever_the_gradient(
    length, displaced, slope
):
    problem = Asked(length, slope)
    meta = {"rho": torch.tensor(0.5, dtype=torch.float64)}
    _, gradient = finite_difference(problem, problem.theta, meta, lr=1e-9)
    (start, none), (ahead, first), (behind, second) = problem.seen
    assert (none, first, second) == (None, "the first", "the first")
    for moved, sign in ((ahead, 1), (behind, -1)):
        step = (moved["encoder"] - start["encoder"]).detach()
        assert float(step.norm()) == pytest.approx(displaced, rel=1e-4)
        assert torch.equal(step.sign(), torch.full_like(step, sign))
        assert torch.equal(moved["head"], start["head"]), "the distillation loss does not depend on it"
    direction = slope * torch.tensor([1.0, 2.0, 2.0, 4.0], dtype=torch.float64)
    e = displaced / float(direction.norm())
    # The difference of a cubic: its derivative, and a third order that shows the displacement.
    expected = -1e-9 * (3 * (length / 2) ** 2 * direction + e**2 * direction**3).sum()
    torch.testing.assert_close(gradient["rho"], expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("zero", [0.0, None])
def test_where_the_inpainting_loss_does_not_depend_on_what_is_distilled_the_gradient_is_zero(zero):
    class Apart(Asked):
        def inpainting(self, theta):
            value = theta["head"].square().sum()
            return value if zero is None else value + zero * theta["encoder"].sum()

    problem = Apart(1.0)
    meta = {"rho": torch.tensor(0.5).double(), "gamma": torch.ones(2, 3)}
    objective, gradient = finite_difference(problem, problem.theta, meta, lr=0.1)
    assert float(objective) == 3.0
    assert not objective.requires_grad
    assert list(gradient) == ["rho", "gamma"]
    for name, value in meta.items():
        assert gradient[name].dtype == value.dtype
        assert torch.equal(gradient[name], torch.zeros_like(value))
    assert len(problem.seen) == (1 if zero is None else 3), "nothing is computed for a gradient that is not there"


@pytest.mark.parametrize("engine", [finite_difference, unroll])
def test_a_distillation_loss_without_meta_networks_in_it_gives_them_zeros(engine):
    class Without(Asked):
        def distillation(self, theta, meta, anchor=None):
            return theta["encoder"].square().sum(), None

    problem = Without(2.0)
    meta = {"rho": torch.tensor(0.5).double()}
    objective, gradient = engine(problem, problem.theta, meta, lr=0.25)
    # One step of gradient descent on the sum of squares halves the encoder's ones; the head stays.
    assert float(objective) == pytest.approx(0.5 * 9 + 3 * 7)
    assert torch.equal(gradient["rho"], torch.zeros((), dtype=torch.float64))


@pytest.mark.parametrize(("steps", "left"), [(1, 0.5), (2, 0.25), (3, 0.125)])
def test_unroll_takes_as_many_steps_as_asked_and_leaves_what_the_loss_does_not_reach(steps, left):
    class Squares(Asked):
        def distillation(self, theta, meta, anchor=None):
            return meta["rho"] * theta["encoder"].square().sum(), None

    problem = Squares(2.0)
    meta = {"rho": torch.tensor(1.0).double()}
    objective, gradient = unroll(problem, problem.theta, meta, lr=0.25, steps=steps)
    assert float(objective) == pytest.approx(left * 9 + 3 * 7)
    # d/drho of 9 * (1 - rho / 2) ** steps at rho = 1
    assert float(gradient["rho"]) == pytest.approx(-9 * steps * 0.5**steps)
    assert not objective.requires_grad
