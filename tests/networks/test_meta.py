"""The meta-networks: where they start, and who can move them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from inpaint_distill.networks.meta import ChannelWeights, FeatureTransform, MetaNetwork, TokenWeights, meta_parameters

SIZES = st.tuples(st.integers(1, 3), st.integers(2, 9), st.integers(1, 6), st.integers(1, 6))


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(SIZES, st.floats(1e-3, 1e3))
def test_gamma_starts_at_the_identity(size, scale):
    feature = scale * draw(*size)
    assert torch.equal(FeatureTransform(size[1])(feature), feature)


@given(SIZES, st.integers(1, 12), st.floats(1e-3, 1e3))
def test_rho_and_phi_start_uniform(size, weighted, scale):
    weights = ChannelWeights(size[1], weighted)(scale * draw(*size))
    assert torch.equal(weights, torch.full((size[0], weighted), 1 / weighted))


@given(st.integers(1, 3), st.integers(1, 20), st.integers(2, 9), st.floats(1e-3, 1e3))
def test_t_starts_at_one_half(batch, tokens, channels, scale):
    assert torch.equal(TokenWeights(channels)(scale * draw(batch, tokens, channels)), torch.full((batch, tokens), 0.5))


def moved(network):
    """Move a meta-network off its start, as a look-ahead would."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(generator=generator)
    return network


@given(SIZES)
def test_channel_weights_are_a_distribution_for_each_sample_alone(size):
    network, feature = moved(ChannelWeights(size[1], 5)), draw(*size)
    weights = network(feature)
    assert (weights > 0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(size[0]))
    for index in range(size[0]):
        torch.testing.assert_close(network(feature[index : index + 1]), weights[index : index + 1])


@given(st.integers(1, 3), st.integers(1, 20), st.integers(2, 9))
def test_token_weights_lie_between_0_and_1_and_look_at_one_token_each(batch, tokens, channels):
    network, entering = moved(TokenWeights(channels)), draw(batch, tokens, channels)
    weights = network(entering)
    assert ((weights > 0) & (weights < 1)).all()
    order = torch.randperm(tokens, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(network(entering[:, order]), weights[:, order])


@pytest.mark.parametrize("factor", [1e-2, 1e2])
def test_weights_do_not_depend_on_the_scale_of_the_hosts_activations(factor):
    feature, tokens = draw(2, 8, 5, 5) + 1, draw(2, 25, 8) + 1
    rho, t = moved(ChannelWeights(8, 8)), moved(TokenWeights(8))
    torch.testing.assert_close(rho(factor * feature), rho(feature), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(t(factor * tokens), t(tokens), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("network", "shape"),
    [(FeatureTransform(4), (2, 4, 5, 5)), (ChannelWeights(4, 6), (2, 4, 5, 5)), (TokenWeights(4), (2, 9, 4))],
    ids=["gamma", "rho and phi", "t"],
)
def test_no_backward_reaches_them_but_one_through_copies(network, shape):
    feature = draw(*shape).requires_grad_()
    network(feature).square().sum().backward()
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in network.parameters())
    copies = {name: parameter.detach().clone().requires_grad_() for name, parameter in network.named_parameters()}
    value = (functional_call(network, copies, (feature.detach(),)) * draw(1, seed=3)).square()
    weights = torch.linspace(0.5, 2.0, value.numel()).view_as(value)
    gradients = torch.autograd.grad((weights * value).sum(), list(copies.values()))
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


def test_the_parameters_of_every_meta_network_are_listed_with_their_names_and_no_others():
    class Term(nn.Module):
        def __init__(self):
            super().__init__()
            self.projection = nn.Conv2d(2, 2, 1)
            self.rho = nn.ModuleList([ChannelWeights(2, 2), ChannelWeights(2, 2)])

    term = Term()
    found = dict(meta_parameters(nn.ModuleDict({"cross": term})))
    assert list(found) == [f"cross.rho.{level}.linear.{kind}" for level in (0, 1) for kind in ("weight", "bias")]
    assert all(found[name] is term.get_parameter(name.removeprefix("cross.")) for name in found)
    assert term.projection.weight.requires_grad
    assert all(isinstance(each, MetaNetwork) for each in term.rho)
