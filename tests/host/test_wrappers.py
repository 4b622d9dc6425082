"""A host trains alike bare and inside DataParallel, DDP, torch.compile and checkpoint wrappers, and is given back."""

from collections import OrderedDict

import pytest
import torch
from hosts import ZOO, batch, batches, footprint, make_optimizer, same, train
from hosts.base import Down, Up
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

import inpaint_distill
from inpaint_distill import adapters
from inpaint_distill.errors import PlanError
from inpaint_distill.host.adapter import Adapter, Variant
from inpaint_distill.host.conventions import Convention
from inpaint_distill.host.wrappers import name_inside, plain_name, unwrap
from inpaint_distill.networks.meta import meta_parameters

TOY = ZOO["concatenated"]
CONFIG = {"warmup": 0, "balance": "none", "lookahead": {"every": 2}}
STAGES = ["enc0", "enc1", "enc2"]


@pytest.fixture(autouse=True)
def _uncompiled():
    """Forget compiled graphs: dynamo shares them among the instances of a class, whatever hooks these have."""
    torch.compiler.reset()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Form a process group of one."""
    meet = tmp_path_factory.mktemp("gloo") / "meet"
    torch.distributed.init_process_group("gloo", init_method=f"file://{meet}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def compiled(host):
    return torch.compile(host, backend="eager")


def distributed(host):
    return nn.parallel.DistributedDataParallel(host)


WRAPPERS = {
    "DataParallel": nn.DataParallel,
    "DistributedDataParallel": distributed,
    "compile": compiled,
    "compile of DistributedDataParallel": lambda host: compiled(distributed(host)),
    "DistributedDataParallel of compile": lambda host: distributed(compiled(host)),
}


def run(wrap, steps=3, **arguments):
    """Train a wrapped host; return what came of it, and what was to be seen of the distiller."""
    host = TOY.build()
    called = wrap(host)
    optimizer = make_optimizer(called)
    distiller = inpaint_distill.attach(called, optimizer, config=CONFIG, **arguments)
    torch.manual_seed(3)
    losses = train(TOY, called, optimizer, batches(steps), distiller)
    teacher = distiller._teacher.state()[0]
    terms = dict(distiller._terms.state_dict())
    plan = distiller.plan
    distiller.detach()
    return plan, (losses, dict(host.state_dict()), teacher, terms, torch.get_rng_state())


@pytest.fixture(scope="module")
def bare():
    return run(lambda host: host)


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_wrapped_host_is_planned_and_trains_as_the_bare_one_bit_for_bit(alone, bare, wrap):
    plan, found = run(wrap)
    assert [stage.label for stage in plan.stages] == STAGES
    assert plan == bare[0]
    assert same(found, bare[1])


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_what_was_attached_to_is_given_back_without_a_hook(alone, wrap):
    called = wrap(TOY.build())
    optimizer = make_optimizer(called)
    before = hooks(called)
    distiller = inpaint_distill.attach(called, optimizer, config=CONFIG)
    train(TOY, called, optimizer, batches(2), distiller)
    assert hooks(called) != before
    assert distiller.detach() is called
    assert hooks(called) == before
    assert not optimizer._optimizer_step_post_hooks


def hooks(called):
    """Count every kind of hook on every module of a tree."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {name: [len(vars(part)[kind]) for kind in kinds] for name, part in called.named_modules()}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_a_wrapped_host_can_be_planned_from_an_image_and_its_stages_named(alone, wrap):
    called = wrap(TOY.build())
    image, mask = batch()
    before = hooks(called)
    plan = inpaint_distill.plan(called, image, mask, stages=["enc?"])
    assert [stage.label for stage in plan.stages] == STAGES
    assert plan.host == "Plain"
    assert hooks(called) == before
    distiller = inpaint_distill.attach(called, image=image, mask=mask, stages=["enc?"], config=CONFIG)
    TOY.call(called, image, mask)
    assert distiller.loss(image, mask) > 0
    assert distiller.detach() is called
    assert hooks(called) == before


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_stages_may_be_named_as_the_wrapped_module_lists_them(alone, wrap):
    called = wrap(TOY.build())
    image, mask = batch()
    listed = [name for name, _ in called.named_modules() if name.endswith(("enc0", "enc2"))]
    assert not {"enc0", "enc2"} & {*listed}
    plan = inpaint_distill.plan(called, image, mask, stages=listed)
    assert [stage.label for stage in plan.stages] == ["enc0", "enc2"]
    distiller = inpaint_distill.attach(called, image=image, mask=mask, stages=listed, config=CONFIG)
    assert distiller.plan.stages == plan.stages


@pytest.mark.parametrize(
    ("wrap", "name", "inside"),
    [
        (compiled, "_orig_mod.enc0", "enc0"),
        (nn.DataParallel, "module.enc0", "enc0"),
        (lambda host: compiled(nn.DataParallel(host)), "_orig_mod.module.enc0.0", "enc0.0"),
        (lambda host: nn.DataParallel(compiled(host)), "module._orig_mod.enc0", "enc0"),
        (lambda host: nn.DataParallel(compiled(host)), "_orig_mod.enc0", "_orig_mod.enc0"),  # not its beginning
        (compiled, "enc0", "enc0"),
        (compiled, Down, Down),
        (lambda host: host, "module.enc0", "module.enc0"),
    ],
)
def test_a_name_that_a_wrapper_lists_is_that_of_the_part_inside(wrap, name, inside):
    assert name_inside(wrap(TOY.build()), name) == inside


def test_a_part_that_is_called_as_a_wrapper_calls_its_own_keeps_its_name():
    called = nn.DataParallel(nn.Sequential(OrderedDict(module=TOY.build())))
    assert name_inside(called, "module.enc0") == "module.enc0"
    assert name_inside(called, "module.module.enc0") == "module.enc0"


def test_the_host_inside_may_be_called_too():
    host = TOY.build()
    called = nn.DataParallel(host)
    distiller = inpaint_distill.attach(host, make_optimizer(called), config=CONFIG)
    image, mask = batch()
    TOY.call(called, image, mask)
    assert distiller.loss(image, mask) > 0
    assert distiller.detach() is host


@pytest.mark.parametrize("option", ["completion", "fusion"])
def test_blocks_are_to_be_injected_before_ddp_lists_the_parameters(alone, option):
    host = distributed(TOY.build())
    before = footprint(host)
    image, mask = batch()
    with pytest.raises(PlanError, match=r"DistributedDataParallel(.|\n)*attach before wrapping"):
        inpaint_distill.attach(host, make_optimizer(host), image=image, mask=mask, config={option: True})
    if option == "completion":
        with pytest.raises(PlanError, match="attach before wrapping"):
            inpaint_distill.attach(host, make_optimizer(host), completion=True)
    assert footprint(host) == before


def test_ddp_inside_another_wrapper_is_seen_before_blocks_are_injected(alone):
    host = distributed(TOY.build())
    with pytest.raises(PlanError, match="attach before wrapping"):
        inpaint_distill.attach(torch.compile(host, backend="eager"), make_optimizer(host), completion=True)


# -- wrappers around parts of a host -----------------------------------------------------------------------------------


def checkpointed(*names, **options):
    host = TOY.build()
    for name in names or STAGES:
        setattr(host, name, checkpoint_wrapper(getattr(host, name), **options))
    return host


def run_checkpointed(names, stages=None, **config):
    host = checkpointed(*names) if names else TOY.build()
    optimizer = make_optimizer(host)
    before = footprint(host)
    distiller = inpaint_distill.attach(host, optimizer, stages=stages, config=CONFIG | config)
    torch.manual_seed(3)
    losses = train(TOY, host, optimizer, batches(3), distiller)
    assert [plain_name(stage.name) for stage in distiller.plan.stages] == STAGES
    trained = {plain_name(name): value for name, value in host.state_dict().items()}
    assert distiller.detach() is host
    assert footprint(host) == before
    return losses, trained, torch.get_rng_state()


@pytest.mark.parametrize("names", [("enc1",), ("enc0", "enc1", "enc2")], ids=["one", "all"])
@pytest.mark.parametrize("stages", [None, STAGES], ids=["found", "named"])
def test_a_host_with_checkpointed_stages_trains_as_one_without(names, stages):
    off = {"lookahead": {"engine": "off"}}
    assert same(run_checkpointed(names, stages, **off), run_checkpointed((), **off))


class MultiHead(Down):
    """Attends by torch's own layer, which the taps read again."""

    def __init__(self):
        super().__init__(4)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.up = Up()

    def forward(self, x):
        feature = super().forward(x)
        tokens = feature.flatten(2).mT
        return self.up(feature + self.attention(tokens, tokens, tokens)[0].mT.unflatten(2, feature.shape[2:]))


@pytest.mark.parametrize("engine", ["finite_difference", "unroll"])
def test_a_look_ahead_goes_through_tapped_multihead_attention(engine):
    host = MultiHead()
    optimizer = make_optimizer(host)
    distiller = inpaint_distill.attach(host, optimizer, config=CONFIG | {"lookahead": {"engine": engine, "every": 2}})
    train(TOY, host, optimizer, batches(1), distiller)
    assert [site.name for site in distiller.plan.attention] == ["attention"]
    start = {name: value.clone() for name, value in meta_parameters(distiller._terms)}
    train(TOY, host, optimizer, batches(1, 1), distiller)
    assert "inpainting after look-ahead" in distiller.log
    assert not same(dict(meta_parameters(distiller._terms)), start)


@pytest.mark.parametrize(
    "target",
    ["enc[01]", "enc1", type(TOY.build().enc1)],
    ids=["glob", "name", "class"],
)
def test_a_checkpointed_stage_is_tapped_once_whichever_way_it_is_named(target):
    host = checkpointed("enc1")
    image, mask = batch()
    plan = inpaint_distill.plan(host, image, mask, stages=[target])
    names = [plain_name(stage.name) for stage in plan.stages if stage.name.startswith("enc")]
    assert names.count("enc1") == 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("enc.0", "enc.0"),
        ("_orig_mod.enc.0", "enc.0"),
        ("enc._checkpoint_wrapped_module.0", "enc.0"),
        ("_fsdp_wrapped_module.enc.0._fsdp_wrapped_module._checkpoint_wrapped_module.weight", "enc.0.weight"),
        ("_orig_mod", ""),
        ("enc_orig_mod.0", "enc_orig_mod.0"),
        ("", ""),
    ],
)
def test_a_name_is_read_without_its_wrappers(name, expected):
    assert plain_name(name) == expected


def test_unwrapping_ends_at_the_module_that_was_written():
    host = TOY.build()
    assert unwrap(host) is host
    assert unwrap(nn.DataParallel(host)) is host
    assert unwrap(compiled(nn.DataParallel(compiled(host)))) is host
    kept = checkpoint_wrapper(host)  # runs the host in its own way
    assert unwrap(nn.DataParallel(kept)) is kept


# -- knowing a family behind a wrapper ---------------------------------------------------------------------------------


class Family(Adapter):
    """Knows the zoo's plain network."""

    name = "plain"
    variants = (Variant(source="tests", kind="Plain", has=("enc0", "up"), convention=Convention("image+hole")),)


class Sharded:
    """Stands for ``FSDPModule``, which ``fully_shard`` puts before the class of the host."""


def fully_shard(host):
    """Do what FSDP2 does to a module's class."""
    kind = type(host)
    host.__class__ = type(f"FSDP{kind.__name__}", (Sharded, kind), {})
    return host


KNOWN = {**WRAPPERS, "fully_shard": fully_shard, "DDP of fully_shard": lambda host: distributed(fully_shard(host))}


@pytest.mark.parametrize("wrap", KNOWN.values(), ids=KNOWN)
def test_a_family_is_recognised_behind_every_wrapper(alone, wrap):
    family = Family()
    assert family.matches(wrap(TOY.build()))
    assert not family.matches(wrap(ZOO["masks_itself"].build().up))


def test_a_class_that_fully_shard_changed_is_known_by_its_bases_and_its_modules():
    (variant,) = Family.variants
    host = fully_shard(TOY.build())
    assert type(host).__name__ == "FSDPPlain"
    assert variant.matches(host)
    assert not variant.matches(fully_shard(nn.Conv2d(1, 1, 1)))
    del host.up
    assert not variant.matches(host)
    image, mask = batch()
    host = fully_shard(TOY.build())
    plan = inpaint_distill.plan(host, image, mask, adapter=Family())
    assert [stage.label for stage in plan.stages] == STAGES
    assert plan.call == "adapter 'plain'"


# -- copies on several devices -----------------------------------------------------------------------------------------


def on_two_devices(host):
    wrapped = nn.DataParallel(host)
    wrapped.device_ids = [0, 1]  # which this machine need not have: it is not run
    return wrapped


def test_a_host_that_is_replicated_is_refused():
    for host in (on_two_devices(TOY.build()), nn.ModuleDict({"generator": on_two_devices(TOY.build())})):
        with pytest.raises(PlanError, match="DataParallel, which runs copies"):
            inpaint_distill.attach(host)


def test_a_host_that_is_replicated_after_attach_is_refused_as_it_runs():
    host = TOY.build()
    distiller = inpaint_distill.attach(host, make_optimizer(host))
    replica = host._replicate_for_data_parallel()
    with pytest.raises(PlanError, match="DataParallel, which runs copies"):
        TOY.call(replica, *batch())
    assert distiller.plan is None
    assert not host._forward_pre_hooks, "the distiller is taken off"


def test_a_host_that_is_replicated_in_mid_training_is_refused_and_keeps_what_its_block_has_learned():
    host = TOY.build()
    optimizer = make_optimizer(host)
    distiller = inpaint_distill.attach(host, optimizer, completion=True)
    image, mask = batch()
    (TOY.call(host, image, mask).mean() + distiller.loss(image, mask)).backward()
    optimizer.step()
    before = {name: value.clone() for name, value in host.state_dict().items()}
    with pytest.raises(PlanError, match="DataParallel, which runs copies"):
        TOY.call(host._replicate_for_data_parallel(), image, mask)
    torch.testing.assert_close(dict(host.state_dict()), before, rtol=0, atol=0)
    TOY.call(host, image, mask)  # itself it goes on
    assert distiller.loss(image, mask) > 0
    distiller.detach()
    with pytest.raises(PlanError, match="DataParallel, which runs copies"), torch.no_grad():
        TOY.call(host._replicate_for_data_parallel(), image, mask)


def test_an_adapter_of_ours_is_found_behind_a_wrapper(alone):
    host = adapters.get("partial-conv").build(width=8, levels=3)
    for wrap in WRAPPERS.values():
        assert adapters.find(wrap(host)).name == "partial-conv"
