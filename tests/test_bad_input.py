"""Everything a user can get wrong in the two lines: the error's class, what was asked, what was found, what to do."""

import warnings

import pytest
import torch
from hosts import ZOO, batch, batches, footprint, make_optimizer, train
from torch import nn

import inpaint_distill
from inpaint_distill import Config, FrozenTeacher, InpaintDistillError, Stage, TermConfig
from inpaint_distill.errors import (
    CaptureError,
    ConfigError,
    InputError,
    OptimizerError,
    PlanError,
    ReplayError,
    StateError,
)

TOY = ZOO["separate"]
NOW = {"warmup": 0, "balance": "none"}
IMAGE, MASK = batch(count=3)


def says(error, *words):
    """Check the three parts of an error and that the words occur in the right order of detail somewhere."""
    assert isinstance(error, InpaintDistillError)
    assert all(part.strip() for part in (error.asked, error.found, error.fix))
    text = str(error)
    assert text.splitlines()[0] == f"asked: {error.asked}".splitlines()[0]
    missing = [word for word in words if word not in text]
    assert not missing, f"{missing} not in:\n{text}"


def changed(tensor, index, value):
    tensor = tensor.clone()
    tensor[index] = value
    return tensor


BAD_PAIRS = {
    "image is an array": (IMAGE.numpy(), MASK, ("image", "ndarray", "tensor")),
    "mask is None": (IMAGE, None, ("mask", "NoneType")),
    "image without batch": (IMAGE[0], MASK, ("(B, 3, H, W)", "(3, 32, 32)", "batch")),
    "grey image": (IMAGE[:, :1], MASK, ("(3, 1, 32, 32)", "3 channels")),
    "image in NHWC": (IMAGE.movedim(1, -1), MASK, ("(3, 32, 32, 3)", "3 channels")),
    "mask without channel": (IMAGE, MASK[:, 0], ("(3, 32, 32)", "1 channel")),
    "mask with 3 channels": (IMAGE, MASK.expand_as(IMAGE), ("(3, 3, 32, 32)", "1 channel")),
    "mask of another size": (IMAGE, MASK[..., ::2, ::2], ("(3, 1, 16, 16)", "different sizes", "nearest")),
    "mask of another batch": (IMAGE, MASK[:2], ("(2, 1, 32, 32)", "different batches")),
    "swapped": (MASK, IMAGE, ("swapped", "loss(image, mask)")),
    "image of bytes": (((IMAGE + 1) * 127.5).byte(), MASK, ("uint8", "127.5")),
    "image in 0..255": ((IMAGE + 1) * 127.5, MASK, ("255", "[-1, 1]", "127.5")),
    "image normalised otherwise": (IMAGE * 2.6, MASK, ("2.", "before any other normalisation")),
    "image with nan": (changed(IMAGE, (0, 0, 0, 0), float("nan")), MASK, ("nan", "[-1, 1]")),
    "image with inf": (changed(IMAGE, (0, 0, 0, 0), float("inf")), MASK, ("inf",)),
    "soft mask": (IMAGE, MASK * 0.7, ("zeros and ones", "0.7", "> 0.5")),
    "mask in 0..255": (IMAGE, MASK * 255, ("zeros and ones", "255", "> 0.5")),
    "mask in [-1, 1]": (IMAGE, MASK * 2 - 1, ("zeros and ones", "-1")),
    "mask with nan": (IMAGE, changed(MASK, (0, 0, 0, 0), float("nan")), ("zeros and ones", "nan")),
    "empty hole": (IMAGE, MASK * 0, ("hole", "zeros everywhere", "1 = hole")),
}


@pytest.mark.parametrize(("image", "mask", "words"), BAD_PAIRS.values(), ids=BAD_PAIRS)
def test_loss_refuses_a_bad_image_or_mask(image, mask, words):
    host = TOY.build()
    distiller = inpaint_distill.attach(host, config=NOW)
    TOY.call(host, IMAGE, MASK)
    with pytest.raises(InputError) as caught:
        distiller.loss(image, mask)
    says(caught.value, *words)


@pytest.mark.parametrize(("image", "mask", "words"), BAD_PAIRS.values(), ids=BAD_PAIRS)
def test_attach_and_plan_refuse_a_bad_image_or_mask_and_install_nothing(image, mask, words):
    host = TOY.build()
    before = footprint(host)
    if mask is not None:
        with pytest.raises(InputError) as caught:
            inpaint_distill.attach(host, image=image, mask=mask)
        says(caught.value, *words)
    with pytest.raises(InputError) as caught:
        inpaint_distill.plan(host, image, mask)
    says(caught.value, *words)
    assert footprint(host) == before


def test_one_bad_sample_among_good_ones_is_found_at_any_step():
    host = TOY.build()
    optimizer = make_optimizer(host)
    distiller = inpaint_distill.attach(host, optimizer, config=NOW)
    train(TOY, host, optimizer, batches(2, count=3), distiller)
    TOY.call(host, IMAGE, MASK)
    with pytest.raises(InputError, match=r"0\.5"):
        distiller.loss(IMAGE, changed(MASK, (2, 0, 31, 31), 0.5))


def test_a_little_overshoot_of_the_range_passes():
    host = TOY.build()
    distiller = inpaint_distill.attach(host, config=NOW)
    image = changed(IMAGE, (0, 0, 0, 0), 1.03)
    TOY.call(host, image, MASK)
    assert distiller.loss(image, MASK) > 0


# -- the order of calls ------------------------------------------------------------------------------------------------


def test_a_loss_before_the_host_ran():
    distiller = inpaint_distill.attach(TOY.build(), config=NOW)
    with pytest.raises(CaptureError) as caught:
        distiller.loss(IMAGE, MASK)
    says(caught.value, "has not run", "call the host")


def test_a_second_loss_for_one_forward():
    host = TOY.build()
    distiller = inpaint_distill.attach(host, config=NOW)
    TOY.call(host, IMAGE, MASK)
    distiller.loss(IMAGE, MASK)
    with pytest.raises(CaptureError) as caught:
        distiller.loss(IMAGE, MASK)
    says(caught.value, "has not run since", "once per forward")


def test_a_loss_in_a_validation_that_shares_it_with_the_training():
    host = TOY.build()
    distiller = inpaint_distill.attach(host, config=NOW)
    with torch.no_grad():
        with pytest.raises(CaptureError) as caught:
            distiller.loss(IMAGE, MASK)
        says(caught.value, "no_grad", "in validation", "distiller.paused()")
        with distiller.paused():
            TOY.call(host, IMAGE, MASK)
            assert distiller.loss(IMAGE, MASK) == 0


def test_a_host_that_cannot_be_copied_for_a_teacher():
    host = TOY.build()
    host.batches = (number for number in range(3))
    before = footprint(host)
    distiller = inpaint_distill.attach(host, config=NOW)
    with pytest.raises(PlanError) as caught:
        TOY.call(host, IMAGE, MASK)
    says(caught.value, "to copy the host", "generator", "copy.deepcopy(host)")
    assert footprint(host) == before
    assert distiller.plan is None


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_host_that_ran_without_gradients(mode):
    host = TOY.build()
    distiller = inpaint_distill.attach(host, config=NOW)
    with mode():
        TOY.call(host, IMAGE, MASK)
    with pytest.raises(CaptureError) as caught:
        distiller.loss(IMAGE, MASK)
    says(caught.value, "no_grad", "with gradients")


def test_a_host_whose_encoder_is_frozen():
    host = TOY.build()
    host.enc0.requires_grad_(False)
    distiller = inpaint_distill.attach(host, config=NOW)
    TOY.call(host, IMAGE, MASK)
    with pytest.raises(CaptureError) as caught:
        distiller.loss(IMAGE, MASK)
    says(caught.value, "enc0", "frozen", "stages=")


def test_a_host_that_takes_another_way_than_planned():
    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.skip = TOY.build(), False

        def forward(self, image, mask):
            if self.skip:
                return self.inner.enc0(torch.cat([image, mask], 1))[:, :3]
            return self.inner(image, mask)

    host = Sometimes()
    distiller = inpaint_distill.attach(host, config=NOW)
    TOY.call(host, IMAGE, MASK)
    distiller.loss(IMAGE, MASK)
    host.skip = True
    TOY.call(host, IMAGE, MASK)
    with pytest.raises(CaptureError) as caught:
        distiller.loss(IMAGE, MASK)
    says(caught.value, "inner.enc1", "inner.enc2", "skipped", "stages=")


def test_a_loss_after_detach():
    host = TOY.build()
    distiller = inpaint_distill.attach(host, config=NOW)
    distiller.detach()
    TOY.call(host, IMAGE, MASK)
    with pytest.raises(CaptureError) as caught:
        distiller.loss(IMAGE, MASK)
    says(caught.value, "detached", "attach()")


# -- other pixels than the host's --------------------------------------------------------------------------------------

OTHER_PAIRS = {
    "inverted mask": (IMAGE, 1 - MASK, ("1 = hole",)),
    "another batch": (*batch(8, count=3), ("that the host ran on",)),
    "another batch size": (*batch(8, count=2), ("(3, 3, 32, 32)", "(2, 3, 32, 32)")),
    "another image size": (*batch(8, count=3, size=48), ("(32, 32)",)),
    "another mask": (IMAGE, batch(8, count=3)[1], ("that the host ran on",)),
}


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize(("image", "mask", "words"), OTHER_PAIRS.values(), ids=OTHER_PAIRS)
def test_loss_refuses_an_image_and_mask_that_the_host_did_not_run_on(image, mask, words, step):
    host = TOY.build()
    optimizer = make_optimizer(host)
    distiller = inpaint_distill.attach(host, optimizer, config=NOW)
    train(TOY, host, optimizer, batches(step, count=3), distiller)
    TOY.call(host, IMAGE, MASK)
    with pytest.raises(ReplayError) as caught:
        distiller.loss(image, mask)
    says(caught.value, "argument", *words)


def test_a_first_batch_that_is_all_hole_is_named_as_such():
    host = TOY.build()
    distiller = inpaint_distill.attach(host, config=NOW)
    full = torch.ones_like(MASK)
    TOY.call(host, IMAGE, full)
    with pytest.raises(InpaintDistillError) as caught:
        distiller.loss(IMAGE, full)
    says(caught.value, "known pixel")


# -- attach ------------------------------------------------------------------------------------------------------------


def test_an_optimizer_that_does_not_hold_the_hosts_parameters():
    host = TOY.build()
    with pytest.raises(OptimizerError) as caught:
        inpaint_distill.attach(host, make_optimizer(TOY.build()))
    says(caught.value, "none of the host's parameters", "host.parameters()")


@pytest.mark.parametrize("wrong", ["adam", 1e-3, nn.Linear(1, 1)], ids=["a name", "a number", "a module"])
def test_an_optimizer_that_is_none(wrong):
    with pytest.raises(OptimizerError) as caught:
        inpaint_distill.attach(TOY.build(), wrong)
    says(caught.value, type(wrong).__name__, "torch.optim.Optimizer")


def _scripted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(TOY.build(), (IMAGE, MASK))


BAD_ARGUMENTS = {
    "host is a function": (lambda: ((lambda x: x), {}), ConfigError, ("function", "nn.Module")),
    "host is a TorchScript module": (lambda: (_scripted(), {}), PlanError, ("TorchScript",)),
    "host was never run": (lambda: (nn.Sequential(nn.LazyConv2d(8, 3)), {}), InpaintDistillError, ("Lazy",)),
    "image without mask": (lambda: (TOY.build(), {"image": IMAGE}), ConfigError, ("only one", "both")),
    "unknown teacher": (lambda: (TOY.build(), {"teacher": "emma"}), ConfigError, ("emma", "ema", "online")),
    "teacher of no kind": (lambda: (TOY.build(), {"teacher": [1]}), ConfigError, ("teacher",)),
    "frozen teacher without images": (lambda: (TOY.build(), {"teacher": "frozen"}), ConfigError, ("images", "ema")),
    "unknown adapter": (lambda: (TOY.build(), {"adapter": "gated"}), ConfigError, ("gated", "gated-conv")),
    "adapter of no kind": (lambda: (TOY.build(), {"adapter": 3}), ConfigError, ("adapter", "int")),
    "unknown setting": (lambda: (TOY.build(), {"config": {"wramup": 3}}), ConfigError, ("wramup", "warmup")),
    "config is a path": (lambda: (TOY.build(), {"config": "run.yaml"}), ConfigError, ("run.yaml", "mapping")),
    "stages is one name": (
        lambda: (TOY.build(), {"stages": "enc1", "image": IMAGE, "mask": MASK}),
        InpaintDistillError,
        ("enc1", "list"),
    ),
    "an unknown stage among known ones": (
        lambda: (TOY.build(), {"stages": ["enc0", "enc_9"], "image": IMAGE, "mask": MASK}),
        PlanError,
        ("enc_9", "enc0"),
    ),
    "a stage that is no map": (
        lambda: (_with_vector(), {"stages": ["first.enc0", "vector"], "image": IMAGE, "mask": MASK}),
        PlanError,
        ("vector", "(B, C, H, W)"),
    ),
    "a stage by a wrong member": (
        lambda: (
            TOY.build(),
            {"stages": ["enc0", Stage(name="enc1", select=(1,))], "image": IMAGE, "mask": MASK},
        ),
        PlanError,
        ("enc1",),
    ),
    "a call that does not happen": (
        lambda: (TOY.build(), {"stages": ["enc0", Stage(name="enc1", call=2)], "image": IMAGE, "mask": MASK}),
        PlanError,
        ("enc1", "call 2"),
    ),
    "no encoder": (
        lambda: (nn.Conv2d(4, 16, 3, padding=1), {"image": IMAGE, "mask": MASK}),
        PlanError,
        ("encoder", "stages="),
    ),
    "a host that runs under no convention": (
        lambda: (nn.Linear(7, 7), {"image": IMAGE, "mask": MASK}),
        PlanError,
        ("host(image, hole)", "adapter"),
    ),
    "self-distillation on one stage": (
        lambda: (TOY.build(), {"stages": ["enc0"], "image": IMAGE, "mask": MASK}),
        ConfigError,
        ("1 stage", "two stages"),
    ),
}


def _with_vector():
    class WithVector(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.vector = TOY.build(), nn.Linear(3, 5)

        def forward(self, image, mask):
            return self.first(image, mask) + self.vector(image.mean((2, 3))).mean()

    return WithVector()


@pytest.mark.parametrize(("make", "kind", "words"), BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS)
def test_attach_refuses_what_it_cannot_use_and_installs_nothing(make, kind, words):
    host, arguments = make()
    before = footprint(host) if isinstance(host, nn.Module) else None
    with pytest.raises(kind) as caught:
        inpaint_distill.attach(host, **arguments)
    says(caught.value, *words)
    if before is not None and not isinstance(host, torch.jit.ScriptModule):
        assert footprint(host) == before


def test_a_host_whose_call_carries_no_image():
    class FromNoise(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = ZOO["white_holes"].build()

        def forward(self, noise):
            return self.inner(noise)

    host = FromNoise()
    distiller = inpaint_distill.attach(host, config=NOW)
    host(torch.randn(3, 3, 32, 32))
    with pytest.raises(ReplayError) as caught:
        distiller.loss(IMAGE, MASK)
    says(caught.value, "argument 'noise'", "channel 0", "Adapter")


def test_a_host_without_tensor_arguments():
    host = nn.Sequential(nn.Conv2d(3, 8, 1))
    distiller = inpaint_distill.attach(host, config=NOW)
    with pytest.raises(PlanError) as caught:
        host([1, 2])
    says(caught.value, "image among the arguments", "Adapter")
    assert not distiller._handles


# -- settings ----------------------------------------------------------------------------------------------------------

BAD_SETTINGS = {
    "balance": (lambda: Config(balance="gradient"), ("balance", "gradient", "gradient_norm")),
    "teacher": (lambda: Config(teacher="emma"), ("teacher", "emma", "ema")),
    "normalize": (lambda: TermConfig(normalize="chanel"), ("normalize", "chanel", "channel")),
    "region": (lambda: TermConfig(region="holes"), ("region", "holes", "hole")),
    "weight": (lambda: TermConfig(weight=-1.0), ("weight", "-1", ">= 0")),
    "weight nan": (lambda: TermConfig(weight=float("nan")), ("weight", "nan")),
    "warmup type": (lambda: Config(warmup="10"), ("warmup", "'10'", "int")),
    "warmup": (lambda: Config(warmup=-1), ("warmup", "-1")),
    "decay order": (lambda: Config(decay=(5, 5)), ("decay", "(5, 5)")),
    "ema_decay": (lambda: Config(ema_decay=1.0), ("ema_decay", "1.0", "[0, 1)")),
    "every": (lambda: Config(every=0), ("every", "0", ">= 1")),
    "balance_every": (lambda: Config(balance_every=0), ("balance_every", "0", ">= 1")),
    "teacher_steps": (lambda: Config(teacher_steps=0), ("teacher_steps", "0")),
    "teacher_lr": (lambda: Config(teacher_lr=0.0), ("teacher_lr", "0")),
}


@pytest.mark.parametrize(("make", "words"), BAD_SETTINGS.values(), ids=BAD_SETTINGS)
def test_a_setting_that_makes_no_sense(make, words):
    with pytest.raises(ConfigError) as caught:
        make()
    says(caught.value, *words)


# -- files and teachers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [None, b"", b"not a file of ours", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "])
def test_a_state_that_cannot_be_read(tmp_path, content):
    path = tmp_path / "state"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StateError) as caught:
        inpaint_distill.attach(TOY.build()).load(path)
    says(caught.value, str(path), "Distiller.save()")


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.zeros(4, 3, 16, 16), ("3, 16, 16)", "(B, 3, 32, 32)")),
        ([torch.zeros(3, 32, 32)], ("(3, 32, 32)",)),
        (torch.zeros(0, 3, 32, 32), ("none",)),
        ([], ("none",)),
    ],
    ids=["another size", "no batch", "none at all", "no batches"],
)
def test_a_frozen_teacher_with_unfit_images(images, words):
    host = TOY.build()
    distiller = inpaint_distill.attach(host, teacher=FrozenTeacher(images, steps=2), config=NOW)
    TOY.call(host, IMAGE, MASK)
    with pytest.raises(InputError) as caught:
        distiller.loss(IMAGE, MASK)
    says(caught.value, *words)


@pytest.mark.parametrize("teacher", ["online", FrozenTeacher(IMAGE, steps=2)], ids=["online", "frozen"])
def test_a_reconstructing_teacher_of_a_host_that_restores_no_image(teacher):
    class Halved(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = TOY.build()

        def forward(self, image, mask):
            return self.inner(image, mask)[..., ::2, ::2]

    host = Halved()
    distiller = inpaint_distill.attach(host, teacher=teacher, config=NOW)
    TOY.call(host, IMAGE, MASK)
    with pytest.raises(ReplayError) as caught:
        distiller.loss(IMAGE, MASK)
    says(caught.value, "(3, 3, 16, 16)", "(3, 3, 32, 32)", "ema")


# -- TorchScript -------------------------------------------------------------------------------------------------------


def test_a_part_in_torchscript_is_named_by_attach_and_by_plan():
    host = TOY.build()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        host.enc1 = torch.jit.trace(host.enc1, torch.zeros(1, 8, 32, 32))
    for refuse in (lambda: inpaint_distill.attach(host), lambda: inpaint_distill.plan(host, IMAGE, MASK)):
        with pytest.raises(PlanError) as caught:
            refuse()
        says(caught.value, "TorchScript", "'enc1'", "made from")
