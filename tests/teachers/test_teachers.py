"""Teachers: what each kind computes, when it moves, what it costs and what it gives back."""

import copy
import gc
import inspect
from dataclasses import dataclass, replace

import pytest
import timm
import torch
from hosts import ZOO, ZOO_NAMES, batch, batches, footprint, make_optimizer, reconstruct, same, train
from hosts.base import Plain
from timm.utils.model_ema import ModelEmaV3
from torch import nn

import inpaint_distill
from inpaint_distill import EMATeacher, FrozenTeacher, ModuleTeacher, OnlineTeacher, Stage
from inpaint_distill.errors import ConfigError, PlanError
from inpaint_distill.host.call import HostCall
from inpaint_distill.host.explain import derive_recipe
from inpaint_distill.plan import Wanted, plan_call
from inpaint_distill.teachers.unneeded import _Shell

TOY = ZOO["separate"]


@dataclass
class Setting:
    """A teacher that has met its host, and all it is told at the first loss."""

    toy: object
    host: nn.Module
    teacher: object
    call: HostCall  # with the complete image and an empty hole
    image: torch.Tensor
    recipe: object
    stages: tuple

    def features(self):
        return self.teacher.views(self.call, self.image).features


def meet(teacher, toy=TOY, image_and_mask=None, prepare=True):
    host = toy.build()
    image, mask = image_and_mask or batch()
    seen = []
    handle = host.register_forward_pre_hook(lambda m, a, k: seen.append(HostCall.of(a, k).safe()), with_kwargs=True)
    with torch.no_grad():
        toy.call(toy.build(), image, mask)
        state = copy.deepcopy(host.state_dict())
        toy.call(host, image, mask)
        host.load_state_dict(state)
    handle.remove()
    plan = plan_call(host, seen[0], Wanted())
    teacher.bind(host)
    teacher.plan(plan.stages, plan.image_size)
    recipe = derive_recipe(host, seen[0], image, mask)
    call = recipe.apply(seen[0], image)
    if prepare:
        teacher.prepare(recipe, call, image)
    return Setting(toy, host, teacher, call, image, recipe, plan.stages)


def reconstruction_error(network, call, image):
    with torch.no_grad():
        return float((call.run(network) - image).abs().mean())


KINDS = {
    "ema": EMATeacher,
    "online": OnlineTeacher,
    "frozen": lambda: FrozenTeacher(batch(5, count=4)[0], steps=3),
    "module": lambda: ModuleTeacher(ZOO["white_holes"].build()),
}


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def test_features_come_one_for_each_stage_as_maps_without_gradient(kind):
    setting = meet(KINDS[kind]())
    features = setting.features()
    assert [f.shape[2] for f in features] == [32, 16, 8]
    assert not any(feature.requires_grad for feature in features)
    assert not torch.is_inference(features[0])


@pytest.mark.parametrize("name", ["noisy", "separate"])
def test_no_teacher_moves_the_random_state_or_the_host(kind, name):
    random = torch.get_rng_state()
    setting = meet(KINDS[kind](), ZOO[name], prepare=False)
    torch.set_rng_state(random)
    before, notes = copy.deepcopy(setting.host.state_dict()), footprint(setting.host)
    setting.teacher.prepare(setting.recipe, setting.call, setting.image)
    setting.features()
    setting.teacher.update(setting.host)
    setting.features()
    setting.teacher.release()
    assert torch.equal(torch.get_rng_state(), random)
    assert same(dict(setting.host.state_dict()), dict(before))
    assert footprint(setting.host) == notes


def test_a_teacher_says_in_one_line_what_it_is(kind):
    line = KINDS[kind]().describe()
    assert line.startswith(kind)
    assert "\n" not in line


@pytest.mark.parametrize("kind", ["ema", "frozen", "module"])
def test_the_forward_of_a_fixed_teacher_ends_at_its_last_tap(kind):
    setting = meet(KINDS[kind]())
    ran = []
    for name, module in setting.teacher.module.named_modules():
        module.register_forward_pre_hook(lambda module, args, name=name: ran.append(name))
    setting.features()
    assert ran == ["", "enc0", "enc0.0", "enc0.1", "enc1", "enc1.0", "enc1.1", "enc2", "enc2.0", "enc2.1"]


@pytest.mark.parametrize("name", [name for name in ZOO_NAMES if name != "noisy"])
def test_a_fresh_average_sees_what_the_host_in_eval_mode_would_see_of_the_complete_image(name):
    toy = ZOO[name]
    image, mask = batch()
    setting = meet(EMATeacher(), toy, (image, mask))
    setting.host.eval()
    host = toy.build()
    host.eval()
    distiller = inpaint_distill.attach(host)
    toy.call(host, image, torch.zeros_like(mask))
    expected = distiller._watch.take((32, 32)).features
    for found, wanted in zip(setting.features(), expected, strict=True):
        torch.testing.assert_close(found, wanted.detach(), rtol=1e-4, atol=1e-4 if name == "bytes" else 1e-5)


@pytest.mark.parametrize("kind", ["ema", "online", "frozen"])
def test_a_teacher_that_is_given_to_another_host_begins_anew(kind):
    def taught(teacher, seed):
        host = TOY.build(seed)
        optimizer = make_optimizer(host)
        with inpaint_distill.attach(host, optimizer, teacher=teacher) as distiller:
            train(TOY, host, optimizer, batches(2), distiller)
        return copy.deepcopy([teacher.state(), *(getattr(teacher, name, None) for name in ("errors", "quality"))])

    used = KINDS[kind]()
    taught(used, 1)
    assert same(taught(used, 2), taught(KINDS[kind](), 2))


# -- ema ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["separate", "batch_norm", "hook_spectral_norm"])
def test_the_average_equals_timms_run_by_hand(name):
    toy = ZOO[name]
    host, twin = toy.build(), toy.build()
    optimizer, other = make_optimizer(host), make_optimizer(twin)
    average = ModelEmaV3(copy.deepcopy(twin), decay=0.95, use_warmup=True)
    distiller = inpaint_distill.attach(host, optimizer, config={"ema_decay": 0.95})
    for step, (image, mask) in enumerate(batches(5), 1):
        train(toy, host, optimizer, [(image, mask)])  # its loss is left out: the average follows the steps
        train(toy, twin, other, [(image, mask)])
        average.update(twin, step=step)
    assert same(dict(distiller._teacher.module.state_dict()), dict(average.module.state_dict()))
    assert not same(dict(distiller._teacher.module.state_dict()), dict(host.state_dict()))


class Grid(Plain):
    """Adds its coordinates, which are a buffer as ``meshgrid`` gives it: one row of memory for all rows."""

    def __init__(self):
        super().__init__()
        ys, xs = torch.meshgrid(torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 32), indexing="ij")
        self.register_buffer("xs", xs)
        self.register_buffer("ys", ys)

    def forward(self, image, mask):
        return super().forward(image + self.xs * self.ys, mask)


@pytest.mark.parametrize("teacher", ["ema", "online"])
def test_a_host_with_expanded_buffers_is_trained_saved_and_resumed_with_a_copy_of_it(teacher, tmp_path):
    toy = replace(ZOO["separate"], make=Grid)
    host = toy.build()
    optimizer = make_optimizer(host)
    distiller = inpaint_distill.attach(host, optimizer, config={"teacher": teacher, "lookahead": {"every": 2}})
    train(toy, host, optimizer, batches(3), distiller)
    distiller.save(tmp_path / "distiller.safetensors")
    distiller.load(tmp_path / "distiller.safetensors")
    assert torch.equal(distiller._teacher.module.xs, host.xs)
    assert host.xs.stride() == (0, 1)
    assert all(loss.isfinite() for loss in train(toy, host, optimizer, batches(1, 3), distiller))


def test_the_averages_batch_normalisation_follows_the_hosts_and_moves_no_statistics():
    setting = meet(EMATeacher(), ZOO["batch_norm"])
    host, module = setting.host, setting.teacher.module
    before = {name: value.clone() for name, value in module.named_buffers() if "running" in name}
    reference = copy.deepcopy(host)
    kept = []
    reference.get_submodule(setting.stages[-1].name).register_forward_hook(lambda m, a, out: kept.append(out))
    for training in (False, True):  # the reference's own statistics move in the second
        host.train(training)
        reference.train(training)
        with torch.no_grad():
            setting.call.run(reference)
        torch.testing.assert_close(setting.features()[-1], kept.pop())
    after = dict(module.named_buffers())
    for name, value in before.items():
        assert torch.equal(value, after[name]), name


def test_the_first_step_copies_the_host():
    setting = meet(EMATeacher(0.999))
    with torch.no_grad():
        for parameter in setting.host.parameters():
            parameter.add_(1)
    setting.teacher.update(setting.host)
    assert same(dict(setting.teacher.module.state_dict()), dict(setting.host.state_dict()))


class Remade(nn.Module):
    """Registers a table of its image's size anew, which a state then has last, as hosts of windowed attention do."""

    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.zeros(1, 1, 4, 4))
        self.register_buffer("fixed", torch.full((1, 1, 4, 4), 5.0))
        self.conv = nn.Conv2d(4, 3, 1)
        self.scale = nn.Parameter(torch.ones(1, 1, 4, 4))

    def remake(self, table):
        del self.table
        self.register_buffer("table", table)


def test_the_average_is_of_tensors_of_one_name_where_the_host_has_made_a_buffer_anew():
    host = Remade()
    teacher = EMATeacher()
    teacher.bind(host)
    host.remake(torch.full((1, 1, 4, 4), 7.0))
    with torch.no_grad():
        host.scale.fill_(2)
    assert list(host.state_dict()) != list(teacher.module.state_dict())
    teacher.update(host)
    found = teacher.module.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in host.state_dict().items())
    host.remake(torch.full((1, 1, 8, 8), 9.0))
    with torch.no_grad():
        host.scale.fill_(3)
    teacher.update(host)
    assert torch.equal(teacher.module.table, torch.full((1, 1, 4, 4), 7.0)), "of the size of the average's images"
    assert 2 < teacher.module.scale.mean() <= 3


# -- frozen ------------------------------------------------------------------------------------------------------------


def pictures(count=8):
    return torch.cat([batch(seed, count=2)[0] for seed in range(count // 2)])


@pytest.mark.parametrize("form", ["tensor", "batches"])
def test_a_frozen_teacher_learns_to_reconstruct_and_is_fixed_afterwards(form):
    images = pictures()
    teacher = FrozenTeacher(images if form == "tensor" else list(images.split(2)), steps=60, lr=3e-3)
    setting = meet(teacher, prepare=False)
    before = reconstruction_error(teacher.module, setting.call, setting.image)
    teacher.prepare(setting.recipe, setting.call, setting.image)
    after = reconstruction_error(teacher.module, setting.call, setting.image)
    assert after < 0.7 * before
    assert float(teacher.errors[-1]) < float(teacher.errors[0])
    fixed = copy.deepcopy(teacher.module.state_dict())
    setting.features()
    teacher.update(setting.host)
    teacher.prepare(setting.recipe, setting.call, setting.image)
    assert same(dict(teacher.module.state_dict()), dict(fixed))
    assert len(teacher.errors) == 60
    assert not teacher.module.training
    assert not any(parameter.requires_grad for parameter in teacher.module.parameters())


def test_a_frozen_teacher_is_the_same_whatever_the_random_state():
    states = []
    for seed in (1, 2):
        setting = meet(FrozenTeacher(pictures(), steps=3, seed=7), prepare=False)
        torch.manual_seed(seed)
        setting.teacher.prepare(setting.recipe, setting.call, setting.image)
        states.append(dict(setting.teacher.module.state_dict()))
    assert same(states[0], states[1])


def test_a_frozen_teacher_trains_on_batches_of_any_size_where_the_call_carries_more_than_the_image():
    toy = ZOO["ones_and_mask"]
    setting = meet(FrozenTeacher([pictures(6), pictures(2)], steps=4), toy, batch(count=3))
    assert len(setting.features()) == 3


def test_a_loaded_frozen_teacher_is_not_trained_again(tmp_path):
    def begin():
        host = TOY.build()
        teacher = FrozenTeacher(pictures(), steps=3)
        return host, teacher, inpaint_distill.attach(host, teacher=teacher, config={"warmup": 0, "balance": "none"})

    host, teacher, distiller = begin()
    image, mask = batch()
    reconstruct(TOY, host, image, mask)
    loss = distiller.loss(image, mask)
    distiller.save(tmp_path / "state")
    host, again, distiller = begin()
    distiller.load(tmp_path / "state")
    reconstruct(TOY, host, image, mask)
    assert torch.equal(distiller.loss(image, mask), loss)
    assert again.errors == []
    assert same(dict(again.module.state_dict()), dict(teacher.module.state_dict()))


def test_a_frozen_teacher_without_images_is_refused_at_attach():
    host = TOY.build()
    before = footprint(host)
    with pytest.raises(ConfigError, match="FrozenTeacher"):
        inpaint_distill.attach(host, teacher="frozen")
    assert footprint(host) == before


# -- online ------------------------------------------------------------------------------------------------------------


def test_an_online_teacher_learns_to_reconstruct_while_it_is_asked():
    teacher = OnlineTeacher(lr=3e-3)
    setting = meet(teacher)
    host = copy.deepcopy(setting.host.state_dict())
    before = reconstruction_error(teacher.module, setting.call, setting.image)
    for _ in range(60):
        features = setting.features()
    assert reconstruction_error(teacher.module, setting.call, setting.image) < 0.7 * before
    assert same(dict(setting.host.state_dict()), dict(host))
    assert not any(feature.requires_grad for feature in features)


@pytest.mark.parametrize("name", ["two_stage", "dict_output", "dataclass_output", "image_and_none", "partial_conv"])
def test_the_restored_image_is_found_among_the_outputs(name):
    teacher = OnlineTeacher(lr=3e-3)
    setting = meet(teacher, ZOO[name])

    def error():
        with torch.no_grad():
            return float((ZOO[name].select(setting.call.run(teacher.module)) - setting.image).abs().mean())

    before = error()
    for _ in range(30):
        setting.features()
    assert error() < before


def test_parameters_that_the_user_froze_stay_frozen_in_a_trained_copy():
    host = TOY.build()
    host.enc0.requires_grad_(False)
    teacher = OnlineTeacher(lr=0.1)
    image, mask = batch()
    distiller = inpaint_distill.attach(
        host, image=image, mask=mask, teacher=teacher, stages=["enc1", "enc2"], config={"warmup": 0, "balance": "none"}
    )
    before = copy.deepcopy(teacher.module.state_dict())
    reconstruct(TOY, host, image, mask)
    distiller.loss(image, mask)
    after = teacher.module.state_dict()
    moved = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert moved == {"enc1", "enc2", "up"}


# -- any module --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["test_resnet", "test_efficientnet"])
def test_a_timm_backbone_is_paired_by_stride_and_its_channels_are_met(model):
    backbone = timm.create_model(model, pretrained=False, features_only=True)
    host = TOY.build()
    optimizer = make_optimizer(host)
    flags, before = [m.training for m in backbone.modules()], footprint(backbone)
    weights = copy.deepcopy(backbone.state_dict())
    with inpaint_distill.attach(host, optimizer, teacher=backbone, config={"warmup": 0}) as distiller:
        losses = train(TOY, host, optimizer, batches(2), distiller)
        paired = distiller._teacher.paired
        assert [stage.stride for stage in paired] == [2, 2, 4]  # the host has strides 1, 2, 4, the backbone from 2 on
        channels = backbone.feature_info.channels()
        assert [stage.channels for stage in paired] == [channels[0], channels[0], channels[1]]
    assert all(torch.isfinite(loss) for loss in losses)
    assert [m.training for m in backbone.modules()] == flags
    assert footprint(backbone) == before
    assert same(dict(backbone.state_dict()), dict(weights))


def test_a_module_gets_the_complete_image_as_the_user_gave_it_or_by_the_users_call():
    seen = []

    class Look(type(ZOO["white_holes"].build())):
        def forward(self, image):
            seen.append(image)
            return super().forward(image)

    image, _ = batch()
    setting = meet(ModuleTeacher(Look(3)))
    setting.features()
    assert torch.equal(seen[-1], image)
    setting = meet(ModuleTeacher(Look(3), call=lambda network, x: network((x - 0.5) * 2)))
    setting.features()
    assert torch.equal(seen[-1], (image - 0.5) * 2)


def test_the_stages_of_a_module_can_be_named():
    setting = meet(ModuleTeacher(ZOO["white_holes"].build(), stages=["enc2"]))
    assert [stage.name for stage in setting.teacher.paired] == ["enc2"] * 3
    with pytest.raises(PlanError, match="nothing"):
        meet(ModuleTeacher(ZOO["white_holes"].build(), stages=["nothing"]))


def test_a_module_that_is_shown_an_enlarged_image_is_paired_by_the_share_of_the_image_a_cell_covers():
    backbone = timm.create_model("test_resnet", pretrained=False, features_only=True)

    def enlarge(network, image):
        return network(nn.functional.interpolate(image, scale_factor=4, mode="bilinear"))

    setting = meet(ModuleTeacher(backbone, call=enlarge))
    own = backbone.feature_info.reduction()
    assert [stage.stride for stage in setting.teacher.paired] == [own[1], own[2], own[3]]  # 4, 8, 16 for 1, 2, 4
    image, _ = batch()
    with torch.no_grad():
        whole = enlarge(backbone.eval(), image)
    assert all(torch.equal(seen, whole[level]) for level, seen in zip((1, 2, 3), setting.features(), strict=True))


def test_the_tokens_of_an_enlarged_image_cover_it_where_a_method_is_called_and_where_the_module_is():
    tokens = timm.create_model("test_vit", pretrained=False, dynamic_img_size=True, num_classes=0)

    def enlarged(image):
        return nn.functional.interpolate(image, scale_factor=2)

    stages = [Stage(name="blocks.1", prefix=1)]
    image, _ = batch()
    with torch.no_grad():
        expected = tokens.forward_intermediates(enlarged(image), indices=[1], norm=False, intermediates_only=True)[0]
    for call in (lambda module, x: module(enlarged(x)), lambda module, x: module.forward_features(enlarged(x))):
        setting = meet(ModuleTeacher(tokens, call=call, stages=stages))
        assert torch.equal(setting.features()[0], expected)


class FixedSize(nn.Module):
    """Accepts one square size, as vision transformers do."""

    def __init__(self):
        super().__init__()
        self.inner = ZOO["white_holes"].build()

    def forward(self, image):
        if image.shape[2:] != (32, 32):
            raise AssertionError("input size doesn't match the model")
        return self.inner(image)


def test_a_module_of_a_fixed_square_size_is_planned_on_the_size_of_the_images():
    setting = meet(ModuleTeacher(FixedSize()))
    assert [stage.stride for stage in setting.teacher.paired] == [1, 2, 4]
    assert len(setting.features()) == 3


def test_a_module_that_does_not_run_on_the_image_is_an_error_with_its_message():
    with pytest.raises(PlanError, match="7 channels"):
        meet(ModuleTeacher(Refusing()))


class Refusing(nn.Module):
    def forward(self, image):
        raise ValueError("wants 7 channels")


def test_a_modules_batch_statistics_do_not_move():
    module = timm.create_model("test_resnet", pretrained=False, features_only=True)
    before = copy.deepcopy(module.state_dict())
    setting = meet(ModuleTeacher(module))
    setting.features()
    setting.teacher.release()
    assert same(dict(module.state_dict()), dict(before))
    assert module.training


def test_a_modules_batch_statistics_do_not_move_where_its_mode_is_changed_meanwhile():
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.host = TOY.build()
            self.teacher = timm.create_model("test_resnet", pretrained=False, features_only=True)

    holder = Holder()
    before = copy.deepcopy(holder.teacher.state_dict())
    optimizer = make_optimizer(holder.host)
    with inpaint_distill.attach(holder.host, optimizer, teacher=holder.teacher) as distiller:
        for data in batches(2):
            holder.train()
            train(TOY, holder.host, optimizer, [data], distiller)
    assert same(dict(holder.teacher.state_dict()), dict(before))
    holder.eval()  # what the user says meanwhile is what stays
    assert not any(part.training for part in holder.teacher.modules())


def test_a_module_is_the_teacher_of_two_hosts_of_which_one_is_detached():
    module = timm.create_model("test_resnet", pretrained=False, features_only=True)
    flags, before = [part.training for part in module.modules()], copy.deepcopy(module.state_dict())
    hosts = [TOY.build(), TOY.build()]
    optimizers = [make_optimizer(host) for host in hosts]
    pairs = [(h, o, inpaint_distill.attach(h, o, teacher=module)) for h, o in zip(hosts, optimizers, strict=True)]
    for host, optimizer, distiller in pairs:
        train(TOY, host, optimizer, batches(1), distiller)
    pairs[0][2].detach()
    train(TOY, *pairs[1][:2], batches(1), pairs[1][2])
    pairs[1][2].detach()
    assert same(dict(module.state_dict()), dict(before))
    assert [part.training for part in module.modules()] == flags


def _backbone():
    return ModuleTeacher(timm.create_model("test_resnet", features_only=True))


@pytest.mark.parametrize("kind", [EMATeacher, OnlineTeacher, _backbone])
def test_a_teacher_object_teaches_for_one_distiller_at_a_time(kind):
    teacher, hosts = kind(), [TOY.build() for _ in range(3)]
    first = inpaint_distill.attach(hosts[0], make_optimizer(hosts[0]), teacher=teacher, config={"balance": "none"})
    with pytest.raises(PlanError, match="teaches for another distiller"):
        inpaint_distill.attach(hosts[1], teacher=teacher)
    assert not hosts[1]._forward_pre_hooks
    train(TOY, hosts[0], first._optimizer, batches(2), first)
    first.detach()
    second = inpaint_distill.attach(hosts[1], teacher=teacher)
    train(TOY, hosts[1], make_optimizer(hosts[1]), batches(1), second)
    del second  # forgotten, not detached
    gc.collect()
    inpaint_distill.attach(hosts[2], teacher=teacher)


def test_what_is_left_out_does_not_pile_up_where_calls_take_turns():
    toy = ZOO["two_stage"]
    host = toy.build()
    optimizer = make_optimizer(host)
    distiller = inpaint_distill.attach(host, optimizer, lookahead="off")
    for index, (image, mask) in enumerate(batches(6)):
        given = (image * (1 - mask), mask)
        named = dict(zip(inspect.signature(host.forward).parameters, given, strict=True))
        output = host(**named) if index % 2 else host(*given)
        loss = toy.select(output).mean() + distiller.loss(image, mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert distiller._teacher.left_out
    for module in distiller._teacher.module.modules():
        assert not isinstance(getattr(module.forward, "forward", None), _Shell)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_module_is_shown_the_image_in_its_own_type(dtype):
    host = ZOO["separate"].build().to(dtype)
    optimizer = make_optimizer(host)
    teacher = timm.create_model("resnet10t", features_only=True, out_indices=(0, 1, 2))
    distiller = inpaint_distill.attach(host, optimizer, teacher=teacher, lookahead="off")
    image, mask = (each.to(dtype) for each in batch())
    ZOO["separate"].call(host, image, mask)
    assert distiller.loss(image, mask).isfinite()
