"""What can be asked of the whole method and cannot be had: the error's class, what was asked and found, what to do."""

import warnings

import pytest
import torch
from hosts import ZOO, batch, batches, footprint, make_optimizer, train
from torch import nn

import inpaint_distill
from inpaint_distill import AttentionConfig, Config, InpaintDistillError, LookaheadConfig, ModuleTeacher
from inpaint_distill.errors import ConfigError, OptimizerError, PlanError, ReplayError
from inpaint_distill.losses.attention_distance import attention_distance
from inpaint_distill.networks.completion import CompletionBlock
from inpaint_distill.networks.fusion import GlobalLocalAttention

TOY = ZOO["separate"]
IMAGE, MASK = batch()


def says(error, *words):
    """Check the three parts of an error and that the words occur somewhere."""
    assert isinstance(error, InpaintDistillError)
    assert all(part.strip() for part in (error.asked, error.found, error.fix))
    missing = [word for word in words if word not in str(error)]
    assert not missing, f"{missing} not in:\n{error}"


# -- settings that contradict themselves -------------------------------------------------------------------------------

BAD_SETTINGS = {
    "k below 1": (lambda: LookaheadConfig(every=0), ("k = 0", "k >= 1")),
    "k that is no integer": (lambda: LookaheadConfig(every=2.5), ("every", "2.5", "int")),
    "T below 1": (lambda: LookaheadConfig(steps=0, engine="unroll"), ("T = 0", "T >= 1")),
    "T above 1 by differences": (lambda: LookaheadConfig(steps=2), ("T = 2", "one step", "unroll")),
    "engine": (lambda: LookaheadConfig(engine="exact"), ("exact", "finite_difference", "unroll", "off")),
    "eta of 0": (lambda: LookaheadConfig(lr=0.0), ("lr", "0.0", "> 0")),
    "eta that is nan": (lambda: LookaheadConfig(lr=float("nan")), ("lr", "nan", "> 0")),
    "meta learning rate": (lambda: LookaheadConfig(meta_lr=-1.0), ("meta_lr", "-1.0", "> 0")),
    "distance": (lambda: AttentionConfig(distance="l3"), ("distance", "l3", "l2, l1, kl")),
    "attention weight": (lambda: AttentionConfig(weight=-0.1), ("attention", "-0.1", ">= 0")),
    "unknown meta-network": (lambda: Config(meta=("gamma", "sigma")), ("sigma", "gamma, rho, phi, t")),
    "one word for a list": (lambda: Config(meta="gamma"), ("meta", "gamma")),
    "meta-networks that nothing trains": (
        lambda: Config(meta=("rho", "phi"), lookahead=LookaheadConfig(engine="off")),
        ("rho, phi", "off", "engine"),
    ),
    "levels without blocks": (lambda: Config(completion_levels=(1,)), ("completion_levels", "completion=True")),
    "adaptive without blocks": (lambda: Config(completion_adaptive=True), ("completion_adaptive", "completion=True")),
    "a start without blocks": (
        lambda: Config(completion_start="interpolation"),
        ("completion_start", "completion is off", "completion=True"),
    ),
    "a start after stages": (
        lambda: Config(completion=True, completion_levels=(0,), completion_start="interpolation"),
        ("completion_start", "after stages", "completion_levels"),
    ),
    "a start that does not exist": (lambda: Config(completion_start="zero"), ("zero", "identity, interpolation")),
    "completion that is a word": (lambda: Config(completion="yes"), ("completion", "'yes'", "bool")),
    "fusion that is a number": (lambda: Config(fusion=1), ("fusion", "1", "bool")),
    "block without channels": (lambda: CompletionBlock(0), ("completion block", "channels=0")),
    "block of even size": (lambda: CompletionBlock(4, kernel_size=2), ("kernel_size=2", "odd")),
    "block on a pixel": (lambda: CompletionBlock(4)(torch.ones(1, 4, 1, 1), torch.ones(1, 1, 8, 8)), ("1x1", "larger")),
    "fusion heads": (lambda: GlobalLocalAttention(6, heads=4), ("heads=4", "divide")),
    "fusion of even size": (lambda: GlobalLocalAttention(4, kernel_size=4), ("kernel_size=4", "odd")),
    "distance of rows": (lambda: attention_distance(None, None, MASK, distance="cosine"), ("cosine", "l2, l1, kl")),
}


@pytest.mark.parametrize(("make", "words"), BAD_SETTINGS.values(), ids=BAD_SETTINGS)
def test_a_setting_that_makes_no_sense(make, words):
    with pytest.raises(ConfigError) as caught:
        make()
    says(caught.value, *words)


# -- choices that this host cannot have --------------------------------------------------------------------------------


NOTHING = {"cross": {"weight": 0.0}, "self": {"weight": 0.0}, "attention": {"weight": 0.0}}
BAD_ARGUMENTS = {
    "t without attention": ({"config": {"meta": ("t",)}}, ConfigError, ("'t'", "no attention term", "fusion")),
    "rho without cross-distillation": (
        {"config": {"meta": ("rho",), "cross": {"weight": 0.0}}},
        ConfigError,
        ("'rho'", "no cross term", "leave 'rho' out"),
    ),
    "gamma without any term": ({"config": {"meta": ("gamma",), **NOTHING}}, ConfigError, ("'gamma'", "no cross term")),
    "phi without self-distillation": (
        {"config": {"meta": ("phi",), "self": {"weight": 0.0}}},
        ConfigError,
        ("'phi'", "no self term"),
    ),
    "attention of weight 0": (
        {"attention": ["enc2"], "config": {"attention": {"weight": 0.0}}},
        ConfigError,
        ("enc2", "weight 0", "weight > 0"),
    ),
    "attention as one name": ({"attention": "enc2"}, ConfigError, ("enc2", "list")),
    "attention that is none": ({"attention": ["enc2"]}, PlanError, ("enc2", "attention")),
    "attention of no such name": ({"attention": ["nothing"]}, PlanError, ("nothing",)),
    "an unknown engine": ({"lookahead": "exact"}, ConfigError, ("exact", "finite_difference, unroll, off")),
    "settings as an engine": ({"lookahead": LookaheadConfig()}, ConfigError, ("LookaheadConfig", "unroll")),
    "differences over two steps": (
        {"lookahead": "finite_difference", "config": {"lookahead": {"steps": 2, "engine": "unroll"}}},
        ConfigError,
        ("T = 2", "unroll"),
    ),
    "an engine that is off": (
        {"lookahead": "off", "config": {"meta": ("rho",)}},
        ConfigError,
        ("rho", "off"),
    ),
    "a level too deep": (
        {"completion": True, "config": {"completion": True, "completion_levels": (3,)}},
        PlanError,
        ("level 3", "3 stages", "from 0 to 2"),
    ),
    "a level below 0": (
        {"config": {"completion": True, "completion_levels": (-1,)}},
        PlanError,
        ("level -1", "3 stages"),
    ),
    "no level": ({"config": {"completion": True, "completion_levels": ()}}, InpaintDistillError, ("completion",)),
    "a loss that cannot be called": ({"inpainting_loss": "l1"}, ConfigError, ("inpainting_loss", "str", "function")),
    "another count of attention layers": (
        {"teacher": ModuleTeacher(ZOO["white_holes"].build()), "config": {"meta": ("t",)}},
        ConfigError,
        ("'t'",),
    ),
}


@pytest.mark.parametrize(("arguments", "kind", "words"), BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS)
def test_attach_refuses_what_it_cannot_do_and_installs_nothing(arguments, kind, words):
    host = TOY.build()
    optimizer = make_optimizer(host)
    before, random = footprint(host), torch.get_rng_state()
    with pytest.raises(kind) as caught:
        inpaint_distill.attach(host, optimizer, image=IMAGE, mask=MASK, **arguments)
    says(caught.value, *words)
    assert footprint(host) == before
    assert not optimizer._optimizer_step_post_hooks
    assert len(optimizer.param_groups[0]["params"]) == len(list(host.parameters()))
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("block", ["completion", "fusion"])
def test_blocks_that_nothing_trains(block):
    with pytest.raises((ConfigError, OptimizerError)) as caught:
        inpaint_distill.attach(TOY.build(), config={block: True})
    says(caught.value, "optimizer", "image and mask")


@pytest.mark.parametrize("block", ["completion", "fusion"])
def test_blocks_in_a_root_that_runs_its_children_in_turn(block):
    host = nn.Sequential(*(part for _, part in ZOO["concatenated"].build().named_children()))
    before = footprint(host)
    with pytest.raises(PlanError) as caught:
        inpaint_distill.attach(host, image=IMAGE, mask=MASK, config={block: True})
    says(caught.value, "Sequential", "module whose forward")
    assert footprint(host) == before


def test_blocks_of_a_host_that_is_not_told_the_hole_leave_again():
    toy = ZOO["white_holes"]
    host = toy.build()
    optimizer = make_optimizer(host)
    before = footprint(host)
    distiller = inpaint_distill.attach(host, optimizer, completion=True, config={"warmup": 0})
    toy.call(host, IMAGE, MASK)
    with pytest.raises(PlanError) as caught:
        distiller.loss(IMAGE, MASK)
    says(caught.value, "completion", "carries the mask", "completion=False")
    assert footprint(host) == before


# -- inpainting losses that teach nothing ------------------------------------------------------------------------------

BAD_LOSSES = {
    "of no scalar": (lambda output, image, mask: (output - image).abs(), ("inpainting_loss", "(2, 3, 32, 32)")),
    "without a gradient": (lambda output, image, mask: (output - image).abs().mean().detach(), ("gradient",)),
    "of no tensor": (lambda output, image, mask: float((output - image).detach().abs().mean()), ("float",)),
}


@pytest.mark.parametrize("engine", ["finite_difference", "unroll"])
@pytest.mark.parametrize(("loss", "words"), BAD_LOSSES.values(), ids=BAD_LOSSES)
def test_an_inpainting_loss_that_gives_no_gradient_is_named(loss, words, engine):
    host = TOY.build()
    optimizer = make_optimizer(host)
    config = {"warmup": 0, "balance": "none", "lookahead": {"engine": engine, "every": 1}}
    distiller = inpaint_distill.attach(host, optimizer, inpainting_loss=loss, config=config)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises((ConfigError, ReplayError)) as caught:
            train(TOY, host, optimizer, batches(2), distiller)
    says(caught.value, *words)
