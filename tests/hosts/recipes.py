"""Random hosts, data and settings from one record, and what is to be expected of them."""

import math
from dataclasses import dataclass, field

import torch

from hosts import conventions
from hosts.base import Down
from hosts.drawn import Host
from inpaint_distill.config import Config, from_dict
from inpaint_distill.errors import ConfigError, InputError, PlanError, ReplayError
from inpaint_distill.losses.schedule import schedule
from inpaint_distill.teachers import FrozenTeacher

__all__ = ["MASKS", "STEPS", "Recipe", "Refusal"]

STEPS = 3
_LEAST_CHANNELS = 8  # of a stage; fewer is an image, a mask or a gate
_LEAST_TOKENS = 16  # of an attention that is tapped


def _empty(size, generator):
    return torch.zeros(1, *size)


def _pixel(size, generator):
    mask = torch.zeros(size[0] * size[1])
    mask[torch.randint(len(mask), (1,), generator=generator)] = 1
    return mask.view(1, *size)


def _border(size, generator):
    mask = torch.ones(1, *size)
    mask[:, 1:-1, 1:-1] = 0
    return mask


def _rectangle(size, generator):
    mask = torch.zeros(1, *size)
    top, left = (int(torch.randint(side // 2, (1,), generator=generator)) for side in size)
    mask[:, top : top + size[0] // 2, left : left + size[1] // 2] = 1
    return mask


def _noise(size, generator):
    return (torch.rand(1, *size, generator=generator) > 0.5).float()


MASKS = {
    "rectangle": _rectangle,
    "noise": _noise,
    "pixel": _pixel,
    "border": _border,
    "full": lambda size, generator: torch.ones(1, *size),
    "empty": _empty,
}

_SELECT = {"tensor": lambda out: out, "tuple": lambda out: out[1], "dict": lambda out: out["out"]}


@dataclass(frozen=True)
class Refusal:
    """An error that is right: its class, what its text says, and the training step."""

    step: int
    error: type
    text: str


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that one example is made of; its ``repr`` makes the same again.

    Attributes:
        strides: Of each level of the encoder.
        widths: Channels of each level.
        depth: Convolutions of each level.
        down: How a level goes down: strided convolution, pooling before, or pooling after (``late``).
        normalisation: After each convolution.
        activation: A module, one in place, or a function in place that overwrites the level's output; the module is
            one for all levels.
        form: What a level puts out.
        skips: How the decoder takes them.
        tail: The decoder ends with a layer of many channels at image resolution.
        repeats: Runs of one residual block in the bottleneck.
        passes: Runs of each network, on its own result.
        two_stage: A second network, on the result of the first.
        attention: In the bottleneck.
        heads: Its heads.
        output: What the host puts out.
        convention: Key of :data:`hosts.conventions.CALLS`.
        size: Height and width of the images.
        batch: Number of images.
        masks: Kinds of masks, one for each image in turn.
        one_mask: One mask for all images of a batch.
        teacher: Kind of teacher.
        config: Settings, as ``attach`` takes them.
    """

    strides: tuple = (1, 2)
    widths: tuple = (8, 8)
    depth: int = 1
    down: str = "conv"
    normalisation: str = "none"
    activation: str = "module"
    form: str = "tensor"
    skips: str = "none"
    tail: bool = False
    repeats: int = 0
    passes: int = 1
    two_stage: bool = False
    attention: str = "none"
    heads: int = 1
    output: str = "tensor"
    convention: str = "cat"
    size: tuple = (16, 16)
    batch: int = 1
    masks: tuple = ("rectangle",)
    one_mask: bool = False
    teacher: str = "ema"
    config: dict = field(default_factory=dict)

    # -- what is made of it --------------------------------------------------------------------------------------

    def build(self, seed=0):
        """Build the host with fixed weights, whatever the random state."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return Host(self)

    def call(self, host, image, mask):
        """Run the host as its author does."""
        return conventions.CALLS[self.convention](host, image, mask)

    def select(self, output):
        """Take the restored image from the output."""
        return output.sample if self.output == "dataclass" else _SELECT[self.output](output)

    def data(self, step):
        """Make images and masks of a step."""
        generator = torch.Generator().manual_seed(step)
        image = torch.rand(self.batch, 3, *self.size, generator=generator) * 2 - 1
        masks = [MASKS[kind](self.size, generator) for kind in self.kinds(step)]
        return image, torch.stack(masks * (self.batch if self.one_mask else 1))

    def kinds(self, step):
        """Name the kind of each mask of a step."""
        count = 1 if self.one_mask else self.batch
        return [self.masks[(step * count + number) % len(self.masks)] for number in range(count)]

    def make_teacher(self):
        """Return what ``attach`` takes as teacher."""
        if self.teacher == "frozen":
            images = torch.rand(3, 3, *self.size, generator=torch.Generator().manual_seed(7)) * 2 - 1
            return FrozenTeacher(images=images, steps=2)
        return Down(3) if self.teacher == "module" else self.teacher

    # -- what is expected of it ----------------------------------------------------------------------------------

    @property
    def settings(self):
        """The settings as ``attach`` reads them."""
        return from_dict(Config, self.config)

    def stages(self):
        """Return the stride of each feature that should be tapped, shallow to deep, and the number of its level.

        The last feature of each resolution is. What a level holds before it goes down is its own affair, unless
        nothing else shows an encoder; the number of such a level is ``None``.
        """
        total, found, inside, above = 1, {}, {}, 0
        for number, (stride, width) in enumerate(zip(self.strides, self.widths, strict=True)):
            if width >= _LEAST_CHANNELS:
                inside[total] = inside.get(total)
                found[total * stride] = inside[total * stride] = number
            elif stride > 1 and self.down in ("max", "average") and above >= _LEAST_CHANNELS:
                found[total * stride] = None  # the level is too narrow, what it pools is not
            total, above = total * stride, width
        return found if len(found) >= 2 or self.down != "late" else dict.fromkeys(inside)

    @property
    def traced_size(self):
        """Size of the dry run's image."""
        height, width = self.size
        return (height, width * 3 // 2) if height == width else self.size

    @property
    def taps_attention(self):
        """Whether the host's own attention is there to be tapped, with enough tokens."""
        if self.attention == "none" or not self.settings.attention.weight or self.teacher == "module":
            return False
        grid = self.traced_size
        for stride in self.strides:
            grid = tuple(-(-side // stride) if self.down == "conv" else side // stride for side in grid)
        return math.prod(grid) >= _LEAST_TOKENS

    def terms(self):
        """Name the terms that there should be."""
        config = self.settings
        found = {name for name, each in (("cross", config.cross), ("self", config.self_)) if each.weight}
        fused = config.fusion and config.attention.weight and self.teacher != "module"
        return found | ({"attention"} if self.taps_attention or fused else set())

    def active(self, step):
        """Tell whether any term counts at a step."""
        config = self.settings
        return bool(self.terms()) and schedule(step, config.warmup, config.decay) > 0

    def weighs(self):
        """Tell whether any term is asked for."""
        config = self.settings
        return any(term.weight for term in (config.cross, config.self_, config.attention))

    def injects(self):
        """Tell whether blocks are asked for that stay in the host."""
        return self.settings.completion or self.settings.fusion

    def refusal(self):
        """Say which error is right, and when; ``None`` where training should go on."""
        config, terms = self.settings, self.terms()
        if not (self.weighs() or self.injects()):
            return None  # nothing to do
        if len(self.stages()) < 2:
            return Refusal(0, PlanError, "an encoder")
        if self.weighs() and not terms:
            return Refusal(0, ConfigError, "attention transfer")
        for network in config.meta or ():
            if {"gamma": "cross", "rho": "cross", "phi": "self", "t": "attention"}[network] not in terms:
                return Refusal(0, ConfigError, f"the meta-network '{network}'")
        seeks = config.completion
        for step in range(STEPS):
            kinds = set(self.kinds(step))
            if not (self.active(step) or seeks):
                continue
            if kinds == {"empty"}:
                return Refusal(step, InputError, "zeros everywhere")
            explains = bool(terms & {"cross", "attention"}) or seeks
            if step == 0 and explains and kinds == {"full"}:
                return Refusal(0, ReplayError, "no known pixel")
            if seeks and self.convention == "white":
                return Refusal(step, PlanError, "carries the mask")
            seeks = False
        return None

    def gives_up_looking_ahead(self):
        """Tell whether meta-networks cannot be trained: the first batch does not show where image and mask are."""
        config, terms = self.settings, self.terms()
        trained = config.lookahead.engine != "off" and config.meta != () and terms == {"self"}
        return trained and not config.completion and set(self.kinds(0)) == {"full"}
