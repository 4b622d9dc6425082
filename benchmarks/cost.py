"""What a training step costs with a distiller attached, beside the bare step, the floor, and other libraries.

    python benchmarks/cost.py [--out benchmarks/results/cpu.json] [--only NAME ...] [--rounds 7]

A gated-conv host on one thread in float32. What is compared takes turns in one process, in both orders; a value is the
median over the rounds of the ratio within a round. A round of a training arm is 16 steps, the period of the balance, so
that its dearer step has its share. The floor is counted (FLOPs, forwards, bytes), not timed. Rows whose packages are
not installed (``nvidia-modelopt``, ``torchdistill``) are left out of the file, and named on the console.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import importlib
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from attention_transfer import HOLE, dense_all, leaves, ours, saved_bytes, scene
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

import inpaint_distill
from inpaint_distill import AttentionConfig, Config, FrozenTeacher, LookaheadConfig, TermConfig, adapters
from inpaint_distill.losses.balance import EAGER_STEPS
from inpaint_distill.teachers.unneeded import put_back

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn

WIDTH, SIZE, BATCH = 24, 64, 8
BLOCK = Config().balance_every
OFF = Config(
    cross=TermConfig(weight=0.0),
    self_=TermConfig(weight=0.0),
    attention=AttentionConfig(weight=0.0),
    lookahead=LookaheadConfig(engine="off"),
)
TERMS = Config(warmup=0, attention=AttentionConfig(weight=0.0), lookahead=LookaheadConfig(engine="off"))
ADAPTER = adapters.families()["gated-conv"]
_TRANSFER = "attention transfer at 1,024 tokens, {}: step with / without"


@dataclasses.dataclass
class Row:
    """One line of the table.

    Attributes:
        name: What is measured.
        value: The ratio, or the exponent.
        target: A bound on ``value`` from above or, with ``at_least``, from below.
        floor: What no implementation goes below, counted.
        at_least: Which side ``target`` bounds.
        note: How it was measured.
        points: Seconds by what grows, where ``value`` is a fitted exponent.
    """

    name: str
    value: float
    target: float | None
    floor: float | None = None
    at_least: bool = False
    note: str = ""
    points: dict[int, float] = dataclasses.field(default_factory=dict)

    @property
    def holds(self) -> bool | None:
        """Tell whether the target is reached; ``None`` where there is none."""
        if self.target is None:
            return None
        return self.value >= self.target if self.at_least else self.value <= self.target


class Arm:
    """A host in training: calling it does ``steps`` steps on one batch.

    Args:
        config: The distillation; ``None`` for the bare host.
        size: Side of the images.
        batch: Images per step.
        steps: Steps of one call.
        attach: Further arguments of ``inpaint_distill.attach``.
    """

    def __init__(
        self, config: Config | None = None, *, size: int = SIZE, batch: int = BATCH, steps: int = BLOCK, **attach: Any
    ) -> None:
        torch.manual_seed(0)
        self.host = ADAPTER.build(width=WIDTH)
        self.image, self.mask = picture(size, batch)
        self.optimizer = torch.optim.Adam(self.host.parameters(), 1e-4)
        self.steps = steps
        self.distiller = None
        if config is not None:
            self.distiller = inpaint_distill.attach(self.host, self.optimizer, config=config, **attach)

    def forward(self) -> list[Tensor]:
        """Run the host on the masked image."""
        return restored(self.host, self.image, self.mask)

    def loss(self) -> Tensor:
        """Return the loss of a step: an L1 of every image that the host puts out, and the distillation."""
        loss = sum((output - self.image).abs().mean() for output in self.forward())
        return loss if self.distiller is None else loss + self.distiller.loss(self.image, self.mask)

    def step(self) -> None:
        """Do a step."""
        self.optimizer.zero_grad(set_to_none=True)
        self.loss().backward()
        self.optimizer.step()

    def __call__(self) -> None:
        """Do the steps of one round."""
        for _ in range(self.steps):
            self.step()

    def warm(self) -> Arm:
        """Do the first steps, which are dearer than the rest: planning, and a measurement of the balance in each."""
        balanced = self.distiller is not None and self.distiller.config.balance == "gradient_norm"
        for _ in range(EAGER_STEPS + 1 if balanced and self.distiller.config.cross.weight else 2):
            self.step()
        return self


def picture(size: int, batch: int) -> tuple[Tensor, Tensor]:
    """Return smooth random images in [-1, 1] and masks with a quarter of the image in the hole."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(batch, 3, 9, 9, generator=generator) * 2 - 1
    mask = torch.zeros(batch, 1, size, size)
    mask[:, :, size // 4 : 3 * size // 4, size // 4 : 3 * size // 4] = 1
    return functional.interpolate(coarse, (size, size), mode="bilinear"), mask


def restored(host: nn.Module, image: Tensor, mask: Tensor) -> list[Tensor]:
    """Return the images that the host puts out, coarse to final."""
    convention = ADAPTER.convention(host)
    return convention.unpack(convention.pack(image, mask).run(host))


def race(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Time the calls in turn, forwards and backwards; return the seconds of every round."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for index in range(rounds):
        for name in list(calls)[:: 1 if index % 2 else -1]:
            began = time.perf_counter()
            calls[name]()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def ratio(seconds: dict[str, list[float]], one: str, other: str = "bare") -> float:
    """Return the median of the ratios of two calls, round by round."""
    return statistics.median(a / b for a, b in zip(seconds[one], seconds[other], strict=True))


def flops(call: Callable[[], object]) -> int:
    """Count the multiply-adds of convolutions and matrix products, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def teacher_flops(arm: Arm) -> int:
    """Count those of the teacher's forward on the complete image, up to the last tap and without what is left out."""
    teacher = arm.distiller._teacher
    call = arm.distiller._recipe.apply(ADAPTER.convention(arm.host).pack(arm.image, arm.mask), arm.image)
    return flops(lambda: teacher.look(call, arm.image) if hasattr(teacher, "look") else teacher.views(call, arm.image))


# -- the rows ----------------------------------------------------------------------------------------------------------


def idle(rounds: int) -> list[Row]:
    """Weights 0, and after detach."""
    arms = {"bare": Arm(steps=4).warm(), "off": Arm(OFF, steps=4).warm()}
    seconds = race(arms, 3 * rounds)
    detached = Arm(TERMS).warm()
    never = copy.deepcopy(arms["bare"].host)
    never.load_state_dict(detached.distiller.detach().state_dict())
    with torch.no_grad():
        hosts = {"never attached": never, "detached": detached.host}
        calls = {
            name: lambda host=host: restored(host, arms["bare"].image, arms["bare"].mask)
            for name, host in hosts.items()
        }
        one, other = (call() for call in calls.values())
        identical = all(map(torch.equal, one, other))
        forwards = race(calls, 20 * rounds)
    return [
        Row("attached, weights 0 / bare step", ratio(seconds, "off"), 1.01, 1.0),
        Row(
            "after detach: forward / forward of a host never attached",
            ratio(forwards, "detached", "never attached"),
            1.02,
            1.0,
            note=f"outputs {'identical' if identical else 'DIFFER'}; the target allows for noise",
        ),
    ]


def block(rounds: int) -> list[Row]:
    """A completion block while nothing is distilled, as after the fade, in training and in use."""
    arms = {"bare": Arm(steps=4).warm()}
    for place, levels in (("at the input", "input"), ("after the first stage", (0,))):
        arms[place] = Arm(dataclasses.replace(OFF, completion=True, completion_levels=levels), steps=4).warm()
    steps = {name: flops(arm.step) for name, arm in arms.items()}
    seconds = race(arms, 3 * rounds)
    with torch.no_grad():
        uses = {name: flops(arm.forward) for name, arm in arms.items()}
        forwards = race({name: arm.forward for name, arm in arms.items()}, 20 * rounds)
    note = "floor: FLOPs of its convolutions, without the interpolation"
    rows = []
    for place in list(arms)[1:]:
        for what, counted, timed in (("step", steps, seconds), ("forward", uses, forwards)):
            name = f"completion block {place}: {what} / bare {what}"
            rows.append(Row(name, ratio(timed, place), None, counted[place] / counted["bare"], note=note))
    return rows


def teachers(rounds: int) -> list[Row]:
    """Cross- and self-distillation with each kind of teacher."""
    image, _ = picture(SIZE, BATCH)
    plain = dataclasses.replace(TERMS, balance="none")
    arms = {
        "bare": Arm().warm(),
        "frozen": Arm(TERMS, teacher=FrozenTeacher(image, steps=1)).warm(),
        "ema": Arm(TERMS).warm(),
        "ema, balance off": Arm(plain).warm(),
        "online": Arm(dataclasses.replace(TERMS, teacher="online")).warm(),
    }
    bare = flops(arms["bare"].step)
    whole = Arm(TERMS).warm()
    teacher = whole.distiller._teacher
    put_back(teacher.module, teacher.left_out)
    floor, own = (1 + teacher_flops(arm) / bare for arm in (whole, arms["ema"]))
    seconds = race(arms, rounds)
    target = min(1.05 * floor, 1.30)
    counted = f"floor: FLOPs of a teacher that stops after its last tap; with what ours leaves out, {own:.3g}; "
    rows = [
        Row(f"{name} teacher, CD + SD / bare step", ratio(seconds, name), target, floor, note=counted + why)
        for name, why in (
            ("frozen", "balanced every 16 steps"),
            ("ema", "balanced every 16 steps"),
            ("ema, balance off", "fixed weights"),
        )
    ]
    online = 1 + flops(arms["online"].step) / bare - flops(arms["ema, balance off"].step) / bare
    note = f"floor: a whole second model in training; with what ours leaves out, {online:.3g}"
    return [*rows, Row("online teacher, CD + SD / bare step", ratio(seconds, "online"), 2.1, 2.0, note=note)]


def memory(rounds: int) -> list[Row]:
    """Peak of what torch has allocated, over a step."""
    image, _ = picture(SIZE, BATCH)
    arms = {"bare": Arm().warm(), "frozen": Arm(TERMS, teacher=FrozenTeacher(image, steps=1)).warm()}
    peaks = {name: peak_bytes(arm) for name, arm in arms.items()}
    note = f"bytes allocated during a step above those before it: {peaks['bare'] / 2**20:.1f} MiB bare"
    return [
        Row("peak memory of a step, frozen teacher, CD + SD / bare", peaks["frozen"] / peaks["bare"], 1.15, note=note)
    ]


def peak_bytes(arm: Arm) -> int:
    """Return the most that is allocated during a step that measures no balance, above what was before."""
    while arm.distiller is not None and arm.distiller._composer.observation(arm.distiller._step) is not None:
        arm.step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        arm.step()
    events = [each for each in profile.profiler.kineto_results.events() if each.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda each: each.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def lookahead(rounds: int) -> list[Row]:
    """The meta-step, alone and spread over the steps between two."""
    rows = []
    every = LookaheadConfig().every
    engines: tuple[Literal["finite_difference", "unroll"], ...] = ("finite_difference", "unroll")
    plain = dataclasses.replace(TERMS, balance="none")
    arms = {"bare": Arm(steps=4).warm(), "off": Arm(plain, steps=4).warm()}
    for engine in engines:
        config = dataclasses.replace(plain, lookahead=LookaheadConfig(engine=engine, every=1))
        arms[engine] = Arm(config, steps=4).warm()
    seconds = race(arms, 2 * rounds)
    for engine, floor, target in (("finite_difference", 3.0, 3.3), ("unroll", 4.0, 5.0)):
        cost = statistics.median(
            (a - b) / c for a, b, c in zip(seconds[engine], seconds["off"], seconds["bare"], strict=True)
        )
        name = engine.replace("_", " ")
        rows.append(Row(f"look-ahead, {name}: one meta-step / bare step", cost, target, floor))
        rows.append(Row(f"look-ahead, {name}: steps with one in {every} / without", 1 + cost / every, 1.15))
    return rows


def attention(rounds: int) -> list[Row]:
    """Attention transfer in a step at 1,024 tokens, and alone at 4,096."""
    plain = dataclasses.replace(TERMS, balance="none")
    rows = [on_tokens(rounds, plain)]
    for stages, where, more in (
        ([f"refine.attention_encoder.{index}" for index in range(3)], "its encoder's stages", "what follows them"),
        (None, "the default stages", "the attention's own encoder"),
    ):
        given = {"size": 256, "batch": 1, "steps": 1, "stages": stages, "attention": ["refine.attention"]}
        arms = {
            "without": Arm(plain, **{**given, "attention": []}).warm(),
            "with": Arm(dataclasses.replace(plain, attention=AttentionConfig()), **given).warm(),
        }
        floor = 1 + (teacher_flops(arms["with"]) - teacher_flops(arms["without"])) / flops(arms["without"].step)
        value = ratio(race(arms, 2 * rounds), "with", "without")
        note = f"the teacher also has to run {more}; floor: its FLOPs"
        rows.append(Row(_TRANSFER.format(f"gated-conv, {where}"), value, 1.05, floor, note=note))
    tensors, hole = scene(4096)
    own = ours(None)
    kept = saved_bytes(dense_all, tensors, hole, "l2") / saved_bytes(own, tensors, hole, "l2")

    def timed(run: Callable[..., Tensor]) -> Callable[[], None]:
        return lambda: run(leaves(tensors), hole, "l2").backward()

    seconds = race({"dense": timed(dense_all), "ours": timed(own)}, max(3, rounds // 2))
    what = "attention transfer at 4,096 tokens, 4 heads"
    rows.append(Row(f"{what}: kept for the backward, dense / ours", kept, 60, at_least=True))
    note = f"{HOLE:.0%} of the rows in the hole"
    rows.append(
        Row(f"{what}: time, dense / ours", ratio(seconds, "dense", "ours"), 2, 1 / HOLE, at_least=True, note=note)
    )
    return rows


class Tokens(torch.nn.Module):
    """A transformer of timm's blocks on tokens of 2 x 2 pixels."""

    def __init__(self, width: int = 128, depth: int = 4) -> None:
        super().__init__()
        block = importlib.import_module("timm.models.vision_transformer").Block
        self.stem = torch.nn.Conv2d(4, width, 4, 2, 1)
        self.blocks = torch.nn.ModuleList([block(width, 4) for _ in range(depth)])
        self.head = torch.nn.ConvTranspose2d(width, 3, 4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Restore an image from what is known of it and the mask."""
        feature = self.stem(x)
        tokens = feature.flatten(2).transpose(1, 2)
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(tokens.transpose(1, 2).view_as(feature))


def on_tokens(rounds: int, config: Config) -> Row:
    """Attention transfer where the tapped stages hold the attention, so that the teacher runs it anyway."""
    image, mask = picture(SIZE, BATCH)
    arms = {}
    for name, weight, attention in (("without", 0.0, []), ("with", AttentionConfig().weight, ["blocks.3.attn"])):
        torch.manual_seed(0)
        host = Tokens()
        own = dataclasses.replace(config, attention=AttentionConfig(weight=weight))
        given = {"stages": ["blocks.0", "blocks.1", "blocks.3"], "attention": attention}
        arms[name] = training(host, image, mask, own, **given)
        width = host.stem.out_channels
    tokens = (SIZE // 2) ** 2
    # Hole rows of q k^T: of the teacher, of the student, and of its queries' and keys' gradients.
    floor = 1 + 4 * BATCH * 2 * int(HOLE * tokens) * tokens * width / flops(arms["without"])
    value = ratio(race(arms, 2 * rounds), "with", "without")
    note = (
        f"{len(host.blocks)} timm blocks, width {width}, 4 heads, stages that hold the attention; floor: FLOPs of q k^T"
    )
    return Row(_TRANSFER.format("transformer"), value, 1.05, floor, note=f"{note}, hole rows")


def planning(rounds: int) -> list[Row]:
    """Attaching to a large host."""
    torch.manual_seed(0)
    host = ADAPTER.build(width=192)
    image, mask = picture(256, 1)
    count = sum(each.numel() for each in host.parameters()) / 1e6

    def attached() -> None:
        inpaint_distill.attach(host, image=image, mask=mask, config=TERMS).detach()

    def forward() -> None:
        with torch.no_grad():
            restored(host, image, mask)

    forward()
    seconds = race({"attach": attached, "forward": forward}, max(3, rounds // 2))
    name, note = (
        f"attach() to a host of {count:.0f} M parameters / one forward",
        "256 px, batch 1; the plan is made at once",
    )
    return [Row(name, ratio(seconds, "attach", "forward"), 2, 1.0, note=note)]


def imports(rounds: int) -> list[Row]:
    """A new process that imports the package."""
    # pip compiles what it installs; what is installed as editable is compiled in the race before the one that counts.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}

    def process(code: str) -> Callable[[], object]:
        return lambda: subprocess.run([sys.executable, "-c", code], check=True, env=environment)

    calls = {"ours": process("import torch, inpaint_distill"), "bare": process("import torch")}
    race(calls, 1)
    return [Row("import inpaint_distill / import torch", ratio(race(calls, 2 * rounds), "ours"), 1.05, 1.0)]


def libraries(rounds: int) -> list[Row]:
    """One loss on the same features through other libraries: squared differences inside the hole, no added network."""
    cross = TermConfig(weight=1.0, normalize="none")
    config = dataclasses.replace(
        TERMS, cross=cross, self_=TermConfig(weight=0.0), predictor=False, meta=(), balance="none"
    )
    image, _ = picture(SIZE, BATCH)
    arms: dict[str, Any] = {"ours": Arm(config, steps=4, teacher=FrozenTeacher(image, steps=1)).warm()}
    layers = [stage.name for stage in arms["ours"].distiller.plan.stages]
    for name, build in (("torchdistill", TorchDistill), ("nvidia-modelopt", ModelOpt)):
        try:
            arms[name] = build(layers)
        except ImportError as error:  # noqa: PERF203 - two of them
            print(f"not measured: {name} ({error})")
    for arm in arms.values():
        arm()
    seconds = race(arms, 2 * rounds)
    return [
        Row(f"{name} {version(name)} / ours: step with CD", ratio(seconds, name, "ours"), 1.10, at_least=True)
        for name in arms
        if name != "ours"
    ]


class TorchDistill(Arm):
    """The same features through torchdistill's hook manager; the teacher's call is written by hand."""

    def __init__(self, layers: Sequence[str]) -> None:
        manager = importlib.import_module("torchdistill.core.forward_hook").ForwardHookManager
        super().__init__(steps=4)
        self.layers = layers
        self.teacher = copy.deepcopy(self.host).eval().requires_grad_(False)
        self.managers = [manager(torch.device("cpu")) for _ in range(2)]
        for each, module in zip(self.managers, (self.host, self.teacher), strict=True):
            for layer in layers:
                each.add_hook(module, layer, requires_input=False, requires_output=True)

    def loss(self) -> Tensor:
        """Add the squared differences at every layer."""
        loss = super().loss()
        with torch.no_grad():
            restored(self.teacher, self.image, torch.zeros_like(self.mask))
        own, other = (each.pop_io_dict() for each in self.managers)
        return loss + sum(in_hole(own[layer]["output"], other[layer]["output"], self.mask) for layer in self.layers)


class ModelOpt(Arm):
    """The same features through nvidia-modelopt's distillation; it gives the teacher what the student gets."""

    def __init__(self, layers: Sequence[str]) -> None:
        distill = importlib.import_module("modelopt.torch.distill")
        super().__init__(steps=4)
        mask = self.mask

        class Hole(torch.nn.modules.loss._Loss):
            def forward(self, own: Tensor, other: Tensor) -> Tensor:
                return in_hole(own, other, mask)

        settings = {
            "teacher_model": copy.deepcopy(self.host).eval(),
            "criterion": {(layer, layer): Hole() for layer in layers},
            "loss_balancer": distill.StaticLossBalancer([1 / (len(layers) + 1)] * len(layers)),
        }
        self.host = distill.convert(self.host, mode=[("kd_loss", settings)])
        self.optimizer = torch.optim.Adam([each for each in self.host.parameters() if each.requires_grad], 1e-4)

    def loss(self) -> Tensor:
        """Let the library put its losses beside the host's."""
        return self.host.compute_kd_loss(student_loss=super().loss())


def in_hole(own: Tensor, other: Tensor, mask: Tensor) -> Tensor:
    """Return the mean squared difference inside the hole."""
    hole = functional.adaptive_max_pool2d(mask, own.shape[-2:])
    return ((own - other).square() * hole).sum() / (hole.sum() * own.shape[1])


def growth(rounds: int) -> list[Row]:
    """Fit how what is added to a step grows, as a power of what grows."""
    plain = dataclasses.replace(TERMS, balance="none")
    points: dict[str, dict[int, float]] = {"pixels": {}, "stages": {}, "hole rows x tokens": {}}
    for size in (64, 96, 128, 192):
        given = {"size": size, "batch": 2, "steps": 2}
        seconds = race({"bare": Arm(**given).warm(), "ours": Arm(plain, **given).warm()}, rounds)
        points["pixels"][size**2] = added(seconds, "bare") / 2
    for stages in (2, 3, 4, 6, 8):
        points["stages"][stages] = added(race(on_a_chain(stages, plain), 2 * rounds), "bare", "teacher")
    for tokens in (1024, 2304, 4096, 6400):
        tensors, hole = scene(tokens)
        calls = {"ours": lambda tensors=tensors, hole=hole: ours(None)(leaves(tensors), hole, "l2").backward()}
        race(calls, 1)
        points["hole rows x tokens"][int(hole.sum()) * tokens] = added(race(calls, max(3, rounds // 2)))
    notes = {
        "pixels": "added to a step, CD + SD",
        "stages": "added to a step beside the teacher's forward, equal stages",
        "hole rows x tokens": "attention transfer alone, 4 heads",
    }
    return [
        Row(f"growth with {what}: exponent", exponent(seconds), 1.1, 1.0, note=notes[what], points=seconds)
        for what, seconds in points.items()
    ]


def added(seconds: dict[str, list[float]], *others: str) -> float:
    """Return the median of what ``ours`` takes beyond the others of its round."""
    beyond = zip(seconds["ours"], *(seconds[name] for name in others), strict=True)
    return statistics.median(one - sum(rest) for one, *rest in beyond)


def on_a_chain(stages: int, config: Config) -> dict[str, Callable[[], object]]:
    """Return steps of a chain of eight equal stages, bare and with the last ``stages`` tapped, and its forward."""
    image, mask = picture(SIZE, BATCH)
    calls: dict[str, Callable[[], object]] = {}
    for name in ("bare", "ours"):
        torch.manual_seed(0)
        layers = [torch.nn.Sequential(torch.nn.Conv2d(32, 32, 3, 1, 1), torch.nn.ELU()) for _ in range(8)]
        host = torch.nn.Sequential(torch.nn.Conv2d(4, 32, 3, 2, 1), *layers, torch.nn.ConvTranspose2d(32, 3, 4, 2, 1))
        names = [str(index) for index in range(1, 9)][-stages:]
        calls[name] = training(host, image, mask, config if name == "ours" else None, stages=names)
    with_hole = torch.cat([image, torch.zeros_like(mask)], 1)
    calls["teacher"] = torch.no_grad()(lambda: host[:-1](with_hole))
    return calls


def training(
    host: nn.Module, image: Tensor, mask: Tensor, config: Config | None, **attach: Any
) -> Callable[[], object]:
    """Return a step of a host that takes image and mask as one tensor, after the first two."""
    optimizer = torch.optim.Adam(host.parameters(), 1e-4)
    distiller = None if config is None else inpaint_distill.attach(host, optimizer, config=config, **attach)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss = (host(torch.cat([image * (1 - mask), mask], 1)) - image).abs().mean()
        (loss if distiller is None else loss + distiller.loss(image, mask)).backward()
        optimizer.step()

    step()
    step()
    return step


def exponent(seconds: dict[int, float]) -> float:
    """Fit a power by least squares of the logarithms."""
    x, y = ([math.log(each) for each in values] for values in (seconds, seconds.values()))
    return statistics.linear_regression(x, y).slope


GROUPS = (idle, block, teachers, memory, lookahead, attention, planning, imports, libraries, growth)


def main(argv: list[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [each.__name__ for each in GROUPS]
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", nargs="+", default=names, choices=names)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    for group in GROUPS:
        if group.__name__ not in args.only:
            continue
        rows = group(args.rounds)
        for row in rows:
            floor = "" if row.floor is None else f"floor {row.floor:.3g}, "
            bound = "" if row.target is None else f"{'>=' if row.at_least else '<='} {row.target:.3g}"
            missed = "MISSED" if row.holds is False else ""
            print(f"{row.name:62} {row.value:8.3f}  {floor}{bound}  {missed}", flush=True)
        if args.out:
            write(args.out, group.__name__, rows, args.rounds)


def write(file: Path, group: str, rows: Sequence[Row], rounds: int) -> None:
    """Put the rows of a group into a file, in place of those it had; the other groups' stay."""
    settings = {
        "device": "cpu, 1 thread",
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "host": f"gated-conv, width {WIDTH}, {SIZE} px, batch {BATCH}, float32, Adam",
        "rounds": rounds,
        "torch": torch.__version__,
        "inpaint_distill": inpaint_distill.__version__,
        "python": platform.python_version(),
    }
    kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"settings": settings, "rows": []}
    if kept["settings"] != settings:
        raise SystemExit(f"{file} was measured with {kept['settings']}, this is {settings}: give another --out")
    found = {name: [each for each in kept["rows"] if each["group"] == name] for name in map(_name, GROUPS)}
    found[group] = [{"group": group, **dataclasses.asdict(row), "holds": row.holds} for row in rows]
    file.parent.mkdir(parents=True, exist_ok=True)
    report = {"settings": settings, "rows": [each for name in found for each in found[name]]}
    file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _name(group: Callable[[int], list[Row]]) -> str:
    return group.__name__


if __name__ == "__main__":
    main()
