"""The two losses of a look-ahead on a host, and what they are functions of, against plain forwards."""

import dataclasses

import pytest
import torch
from hosts import ZOO, batch, batches, make_optimizer, train
from torch import nn

import inpaint_distill
from inpaint_distill.errors import ReplayError
from inpaint_distill.host.call import HostCall
from inpaint_distill.host.outputs import in_output_range
from inpaint_distill.lookahead.host_problem import Batch, _places, hole_weighted_l1

TOY = ZOO["separate"]


# -- the losses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masks", [1, 2])
def test_a_pixel_of_the_hole_weighs_six_times_a_known_one_in_every_restored_image(masks):
    image, mask = batch()
    mask = mask[:masks]
    outputs = [image + 0.3 * torch.randn_like(image), {"coarse": image * 0.5}]
    for each in (outputs[0], outputs[1]["coarse"]):
        each.requires_grad_()
    found = hole_weighted_l1(outputs, image, mask)
    weight = torch.where(mask > 0, 6.0, 1.0).double().expand_as(image)
    each = [(weight * (o.double() - image).abs()).sum() / weight.sum() for o in (outputs[0], outputs[1]["coarse"])]
    torch.testing.assert_close(found.double(), (each[0] + each[1]) / 2)


def test_images_and_masks_of_half_precision_are_compared_in_single():
    image, mask = batch()
    restored = (image * 0.5).half().requires_grad_()
    found = hole_weighted_l1(restored, image.half(), mask.bool())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, hole_weighted_l1(restored.float(), image.half().float(), mask))


# -- the problem on a host ---------------------------------------------------------------------------------------------


def posed(engine="finite_difference"):
    host = TOY.build()
    config = {"warmup": 0, "balance": "none", "lookahead": {"engine": engine, "every": 100}}
    distiller = inpaint_distill.attach(host, make_optimizer(host), config=config)
    kept = []
    for seed in (1, 2):
        image, mask = batch(seed)
        TOY.call(host, image, mask)
        kept.append(Batch.copy(distiller._forwards.last.call, image, mask))
        distiller.loss(image, mask)
    with distiller.paused():
        return host, distiller, distiller._problem(*kept)


def test_theta_is_what_the_host_and_the_terms_train_and_meta_are_the_meta_networks():
    host, distiller, problem = posed()
    theta, meta = problem.theta(), problem.meta()
    trained = {f"host.{name}" for name, each in host.named_parameters() if each.requires_grad}
    own = {f"terms.{name}" for name, each in distiller._terms.named_parameters() if each.requires_grad}
    assert own
    assert set(theta) == trained | own
    assert set(meta) == {name for name, each in distiller._terms.named_parameters() if not each.requires_grad}
    assert all(theta[f"host.{name}"] is each for name, each in host.named_parameters())


def test_a_frozen_parameter_of_the_host_is_not_looked_ahead_with():
    host, _, problem = posed()
    host.enc0[0].bias.requires_grad_(False)
    assert "host.enc0.0.bias" not in problem.theta()
    assert "host.enc0.0.weight" in problem.theta()


def test_the_distillation_on_batch_a_is_the_weighted_terms_of_a_plain_forward():
    host, distiller, problem = posed()
    image, mask = batch(1)
    loss, anchor = problem.distillation(problem.theta(), problem.meta())
    x, features = torch.cat([image * (1 - mask), mask], 1), []
    for stage in (host.enc0, host.enc1, host.enc2):
        x = stage(x)
        features.append(x)
    terms = distiller._terms.each
    wanted = sum(
        problem.factors[name] * term(features, problem.teacher.features, mask).sum() for name, term in terms.items()
    )
    torch.testing.assert_close(loss, wanted)
    assert loss.requires_grad
    assert not any(each.requires_grad for each in anchor.features)
    for own, other in zip(anchor.features, features, strict=True):
        torch.testing.assert_close(own, other.detach())


def test_what_is_detached_of_the_student_is_taken_from_the_anchor():
    _, _, problem = posed()
    theta, meta = problem.theta(), problem.meta()
    loss, anchor = problem.distillation(theta, meta)
    again, same = problem.distillation(theta, meta, anchor)
    assert same is anchor
    torch.testing.assert_close(again, loss)
    anchor.features[2] = anchor.features[2] + 1
    other, _ = problem.distillation(theta, meta, anchor)
    assert not torch.isclose(other, loss)


class Normalises(nn.Module):
    """Takes 0..255 and gives its image back in -1..1."""

    def __init__(self):
        super().__init__()
        self.inner = ZOO["separate"].build()

    def forward(self, image, mask):
        return self.inner((image / 127.5 - 1) * (1 - mask), mask).tanh()


def test_a_host_that_gives_back_another_range_than_it_takes_is_measured_in_that():
    host = Normalises()
    optimizer = make_optimizer(host)
    config = {"warmup": 0, "lookahead": {"every": 2}}
    distiller = inpaint_distill.attach(host, optimizer, config=config)
    for image, mask in batches(3):
        own = (host((image + 1) * 127.5, mask) - image).abs().mean()
        optimizer.zero_grad()
        (own + distiller.loss(image, mask)).backward()
        optimizer.step()
    assert 0 < distiller.log["inpainting after look-ahead"] < 2 * own


@pytest.mark.parametrize(
    ("scale", "output", "expected"),
    [
        (127.5, lambda given, taken: given + 0.1, "given"),
        (127.5, lambda given, taken: taken + 10, "taken"),
        (0.5, lambda given, taken: given + 0.01, "given"),
        (0.5, lambda given, taken: taken + 0.01, "taken"),
        (0.5, lambda given, taken: 0 * given, "taken"),
    ],
)
def test_the_range_of_the_outputs_is_that_of_the_input_unless_they_are_far_closer_to_the_image_given(
    scale, output, expected
):
    given = batch()[0]
    taken = (given + 1) * scale
    found = in_output_range([output(given, taken)] * 2, taken, given)
    assert torch.equal(found, {"given": given, "taken": taken}[expected])


def test_the_inpainting_loss_on_batch_b_is_that_of_a_plain_forward():
    host, _, problem = posed()
    image, mask = batch(2)
    found = problem.inpainting(problem.theta())
    torch.testing.assert_close(found, hole_weighted_l1(host(image * (1 - mask), mask), image, mask))
    assert found.requires_grad


def test_a_look_ahead_before_the_host_has_run_is_refused():
    distiller = inpaint_distill.attach(TOY.build())
    kept = Batch.copy(HostCall((torch.ones(1),)), torch.ones(1), torch.ones(1))
    with pytest.raises(ReplayError, match="has not run yet"):
        distiller._problem(kept, kept)


def test_the_objective_is_logged_without_a_graph():
    host = TOY.build()
    optimizer = make_optimizer(host)
    config = {"warmup": 0, "balance": "none", "lookahead": {"every": 2}}
    distiller = inpaint_distill.attach(host, optimizer, config=config)
    train(TOY, host, optimizer, batches(2), distiller)
    assert not distiller.log["inpainting after look-ahead"].requires_grad
    assert distiller.log["inpainting after look-ahead"] > 0


def test_one_mask_for_all_images_is_the_hole_of_each():
    _, _, problem = posed()
    theta, meta = problem.theta(), problem.meta()
    one = problem.first.mask[:1]
    values = []
    for mask in (one, one.expand(2, -1, -1, -1)):
        problem.first = dataclasses.replace(problem.first, mask=mask)
        values.append(problem.distillation(theta, meta)[0])
    torch.testing.assert_close(values[0], values[1])


def test_after_a_forward_the_host_holds_its_own_weights_and_no_taps():
    host, _, problem = posed()
    before = dict(host.named_parameters())
    hooks = [len(part._forward_hooks) for part in host.modules()]
    theta = {name: each.detach() * 0.5 for name, each in problem.theta().items()}
    problem.distillation(theta, problem.meta())
    problem.inpainting({name: each.requires_grad_() for name, each in theta.items()})
    assert all(each is before[name] for name, each in host.named_parameters())
    assert [len(part._forward_hooks) for part in host.modules()] == hooks


class Tied(nn.Module):
    """One weight under two names in one module and a third in another, and a frozen one."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2, 2)
        self.weight = self.again = self.inner.weight
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)


def test_a_shared_weight_has_a_place_under_each_of_its_names_and_a_frozen_one_has_none():
    assert _places(Tied()) == {
        "host.weight": "host.weight",
        "host.again": "host.weight",
        "host.inner.weight": "host.weight",
        "host.inner.bias": "host.inner.bias",
    }
