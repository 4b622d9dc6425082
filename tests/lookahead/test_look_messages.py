"""The whole text of every error and warning of the look-ahead."""

import pytest
import torch
from hosts import ZOO, batch, batches, make_optimizer, reconstruct, train
from hosts.base import Plain
from torch import nn
from torch.utils.checkpoint import checkpoint

import inpaint_distill
from inpaint_distill import LookaheadConfig
from inpaint_distill.errors import ConfigError, LookaheadWarning, ReplayError
from inpaint_distill.host.call import HostCall
from inpaint_distill.lookahead.host_problem import _Call, hole_weighted_l1, recomputed
from inpaint_distill.lookahead.lookahead import Lookahead
from inpaint_distill.lookahead.unroll import lacks_double_backward

TOY = ZOO["separate"]
FIXED = {"warmup": 0, "balance": "none"}
RECOMPUTED = (
    "a forward that keeps what its backward needs",
    "stages that run again in backward, by gradient checkpointing",
    "train without it",
)
STAYS = (
    "the meta-networks stay at their start: {} is needed to look ahead, but there are {}. "
    "To train them, {}; or choose lookahead='off'"
)


def parts(error):
    return error.asked, error.found, error.fix


def start(host, engine="finite_difference", **more):
    optimizer = make_optimizer(host)
    config = {**FIXED, "lookahead": {"engine": engine, "every": 2}}
    return optimizer, inpaint_distill.attach(host, optimizer, config=config, **more)


class Checkpointed(Plain):
    """Runs its deepest stage again in backward."""

    def __init__(self, reentrant):
        super().__init__()
        self.reentrant = reentrant

    def forward(self, *planes):
        x = self.enc1(self.enc0(torch.cat(planes, 1)))
        return self.up(checkpoint(self.enc2, x, use_reentrant=self.reentrant))


def test_checkpointing_within_a_look_ahead_is_refused_and_another_error_is_handed_on():
    host = _Call(Checkpointed(reentrant=False))
    image, mask = batch()
    with pytest.raises(ReplayError) as caught:
        host(HostCall((image, mask)))
    assert parts(caught.value) == parts(recomputed()) == RECOMPUTED
    assert caught.value.__suppress_context__
    with pytest.raises(RuntimeError, match=r"expected input\[2, 3, 32, 32\] to have 4 channels"):
        host(HostCall((image,)))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_host_with_checkpointing_keeps_its_meta_networks_and_is_told_once_why(reentrant):
    torch.manual_seed(0)
    host = Checkpointed(reentrant)
    optimizer, distiller = start(host)
    with pytest.warns(LookaheadWarning) as caught:
        train(TOY, host, optimizer, batches(4), distiller)
    (told,) = (str(each.message) for each in caught if each.category is LookaheadWarning)
    assert told == STAYS.format(*RECOMPUTED)
    assert distiller._lookahead.active is False
    assert not distiller._lookahead._batches


def test_an_output_without_an_image_is_told_with_what_there_is():
    image, mask = batch()
    with pytest.raises(ReplayError) as caught:
        hole_weighted_l1([image[..., ::2].requires_grad_(), image], image, mask)
    assert parts(caught.value) == (
        "the restored image among the host's outputs",
        "outputs of shape [(2, 3, 32, 16), (2, 3, 32, 32)], none of them (2, 3, 32, 32) with a gradient",
        "give attach(inpainting_loss=...) a function of the host's output, the image and the mask",
    )


LOSSES = {
    "(2,) tensor": lambda output, image, mask: (output - image).abs().mean((1, 2, 3)),
    "() tensor without a gradient": lambda output, image, mask: (output - image).abs().mean().detach(),
    "(2, 3, 32, 32) tensor without a gradient": lambda output, image, mask: image,
    "float": lambda output, image, mask: float((output - image).abs().mean().detach()),
    "NoneType": lambda output, image, mask: None,
}


@pytest.mark.parametrize("found", LOSSES)
def test_an_inpainting_loss_has_to_be_one_number_with_a_gradient(found):
    host = TOY.build()
    optimizer, distiller = start(host, inpainting_loss=LOSSES[found])
    with pytest.raises(ConfigError) as caught:
        train(TOY, host, optimizer, batches(2), distiller)
    assert parts(caught.value) == (
        "one number from inpainting_loss(output, image, mask)",
        f"a {found}",
        "return one number that depends on the output: `(error * mask).mean()`",
    )


class Once(torch.autograd.Function):
    """An operation without a second derivative."""

    @staticmethod
    def forward(ctx, value):
        return value * 2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return gradient * 2


class Doubling(nn.Module):
    def forward(self, x):
        return Once.apply(x)


def test_that_unroll_is_not_possible_is_told_with_the_reason_and_what_is_done_instead():
    torch.manual_seed(0)
    host = Plain(4, lambda i, o, s=1: nn.Sequential(nn.Conv2d(i, o, 3, s, 1), nn.ELU(), Doubling()))
    optimizer, distiller = start(host, "unroll")
    with pytest.warns(LookaheadWarning) as caught:
        train(TOY, host, optimizer, batches(4), distiller)
    (told,) = (str(each.message) for each in caught if each.category is LookaheadWarning)
    assert told == (
        "the look-ahead cannot unroll this host: an operation of its encoder is marked once_differentiable. "
        "It goes on with engine='finite_difference', which needs no second derivative"
    )
    assert distiller._lookahead.state()[1]["unrolls"] is False


@pytest.mark.parametrize("engine", ["finite_difference", "unroll"])
def test_another_error_within_a_look_ahead_is_the_users_to_see(engine):
    def fails(output, image, mask):
        raise RuntimeError("out of memory")

    host = TOY.build()
    optimizer, distiller = start(host, engine, inpainting_loss=fails)
    with pytest.raises(RuntimeError, match=r"^out of memory$"):
        train(TOY, host, optimizer, batches(2), distiller)


@pytest.mark.parametrize(
    "text",
    [
        "derivative for aten::grid_sampler is not implemented",
        "double backward of deform_conv2d not supported",
        "trying to differentiate twice a function that was marked with @once_differentiable",
        "an operation of its encoder is marked once_differentiable",
        "double backwards on deform_conv2d not supported",
        "cudnn RNN backwards is not supported",
    ],
)
def test_the_ways_torch_says_that_there_is_no_second_derivative_are_known(text):
    assert lacks_double_backward(RuntimeError(text))


def test_giving_up_says_what_is_needed_what_there_is_and_what_to_do():
    lookahead = Lookahead(LookaheadConfig(), {"rho": nn.Parameter(torch.zeros(2), requires_grad=False)})
    assert lookahead.active is True
    with pytest.warns(LookaheadWarning) as caught:
        lookahead.give_up(ReplayError("this", "those", "do that"))
    assert str(caught[0].message) == STAYS.format("this", "those", "do that")
    assert lookahead.active is False


def test_a_state_with_unknown_tensors_names_the_first():
    lookahead = Lookahead(LookaheadConfig(), {})
    values = {"active": False, "unrolls": False, "last": -1}
    with pytest.raises(KeyError) as caught:
        lookahead.load({"batches/0/image": torch.ones(1), "other/1": torch.ones(1)}, values)
    assert caught.value.args == ("other/1",)


def test_a_loss_that_is_computed_while_a_look_ahead_is_off_takes_any_inpainting_loss():
    host = TOY.build()
    optimizer, distiller = start(host, "off", inpainting_loss=LOSSES["float"])
    train(TOY, host, optimizer, batches(2), distiller)
    image, mask = batch()
    assert reconstruct(TOY, host, image, mask).isfinite()
    assert isinstance(distiller.loss(image, mask), torch.Tensor)
