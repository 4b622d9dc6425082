"""How a host takes image and hole and gives the restored image back, in words (ours).

No two public models share a call convention. Most are told apart by what each argument holds, in which range, and what
is painted into the hole:

>>> deepfill = Convention("image+ones+hole", outputs=((0,), (1,)))
>>> str(deepfill)
'host(cat[image, ones, hole])'
>>> str(Convention("image", "known3", scale="imagenet"))
'host(image, known3), imagenet-normalised'
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor

from inpaint_distill.errors import ConfigError, PlanError, ReplayError, near_names
from inpaint_distill.host.call import HostCall
from inpaint_distill.host.guard import untouched
from inpaint_distill.host.tree import Path, select
from inpaint_distill.networks.fill import pull_push

if TYPE_CHECKING:
    from torch import nn

__all__ = ["COMMON", "WORDS", "Convention", "Fill", "Scale", "find_convention"]

Scale: TypeAlias = Literal["signed", "unit", "imagenet", "latent"]
Fill: TypeAlias = Literal["zero", "white", "interpolated"]

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

_Word: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]

WORDS: dict[str, _Word] = {
    "image": lambda whole, emptied, hole: emptied,
    "whole": lambda whole, emptied, hole: whole,
    "grey": lambda whole, emptied, hole: emptied.mean(1, keepdim=True),
    "hole": lambda whole, emptied, hole: hole,
    "hole3": lambda whole, emptied, hole: hole.expand(-1, 3, -1, -1),
    "known": lambda whole, emptied, hole: 1 - hole,
    "known3": lambda whole, emptied, hole: (1 - hole).expand(-1, 3, -1, -1),
    "known-0.5": lambda whole, emptied, hole: 0.5 - hole,
    "ones": lambda whole, emptied, hole: torch.ones_like(hole),
    "edges": lambda whole, emptied, hole: torch.zeros_like(hole),
    "noisy": lambda whole, emptied, hole: whole,
}
"""What a group of channels may hold: each makes it from the image, the emptied image and the hole.

``image`` is emptied, ``whole`` is not. ``edges`` and ``noisy`` come from elsewhere in the host's own training, and are
passed on to the teacher as they are; here they are nothing drawn, and no noise.
"""

_EMPTIED = frozenset({"image", "grey"})
_FOREIGN = frozenset({"edges", "noisy"})


class Convention:
    """One way to call a host.

    Args:
        arguments: What each positional argument holds: words of :data:`WORDS`, joined by ``+`` where they are
            concatenated along the channels.
        scale: Range of the pixels: [-1, 1], [0, 1], or [0, 1] normalised by the mean and deviation of ImageNet; or
            latents of another network, of any range and number of channels.
        fill: What stands in the hole: 0; white (the top of [-1, 1] or [0, 1]); or what is interpolated from the pixels
            around it (:func:`~inpaint_distill.networks.fill.pull_push`).
        outputs: Paths of the restored images in the host's output, coarse first, the result last.
        extra: Further arguments, made from the batch of images: a timestep, a latent. The teacher gets them too.

    Raises:
        ConfigError: A word that does not exist.
    """

    def __init__(
        self,
        *arguments: str,
        scale: Scale = "signed",
        fill: Fill = "zero",
        outputs: tuple[Path, ...] = ((),),
        extra: Callable[[Tensor], HostCall] | None = None,
    ) -> None:
        self.arguments = tuple(tuple(argument.split("+")) for argument in arguments)
        self.scale = scale
        self.fill = fill
        self.outputs = outputs
        self.extra = extra
        for word in (word for argument in self.arguments for word in argument):
            if word not in WORDS:
                raise ConfigError(
                    f"argument word {word!r}", "no word of that name", f"use one of {near_names(word, WORDS)}"
                )

    def __str__(self) -> str:
        held = (words[0] if len(words) == 1 else f"cat[{', '.join(words)}]" for words in self.arguments)
        text = f"host({', '.join(held)}{', ...' if self.extra else ''})"
        if self.scale != "signed":
            text += {"unit": ", in [0, 1]", "imagenet": ", imagenet-normalised", "latent": ", latents"}[self.scale]
        return text + ("" if self.fill == "zero" else f", holes {self.fill}")

    def filled(self, fill: Fill) -> Convention:
        """Return this convention with something else in the hole.

        Raises:
            ConfigError: It gives no emptied image: the host empties the hole itself.
        """
        if _EMPTIED.isdisjoint(word for argument in self.arguments for word in argument):
            words = " or ".join(sorted(_EMPTIED))
            raise ConfigError(f"holes {fill} in {self}", "no emptied image among its arguments", f"use {words} in it")
        return Convention(
            *map("+".join, self.arguments), scale=self.scale, fill=fill, outputs=self.outputs, extra=self.extra
        )

    def inverted(self) -> Convention:
        """Return this convention with a mask of the other meaning: 1 where pixels are known for 1 in the hole."""
        words = {"hole": "known", "known": "hole", "hole3": "known3", "known3": "hole3"}
        arguments = ("+".join(words.get(word, word) for word in argument) for argument in self.arguments)
        return Convention(*arguments, scale=self.scale, fill=self.fill, outputs=self.outputs, extra=self.extra)

    def pack(self, image: Tensor, hole: Tensor) -> HostCall:
        """Return the host's arguments for an image (B, C, H, W) in [-1, 1] and its hole (B, 1, H, W)."""
        whole = self._scaled(image)
        emptied = whole * (1 - hole)
        if self.fill == "white":
            emptied = emptied + hole
        elif self.fill == "interpolated":
            emptied = emptied + hole * pull_push(whole, 1 - hole)
        groups = ([WORDS[word](whole, emptied, hole) for word in words] for words in self.arguments)
        tensors = tuple(torch.cat(group, 1) if len(group) > 1 else group[0] for group in groups)
        more = self.extra(image) if self.extra else HostCall()
        return HostCall((*tensors, *more.args), more.kwargs)

    def unpack(self, output: Any) -> tuple[Tensor, ...]:
        """Return the restored images (B, 3, H, W) in [-1, 1] from the host's output, coarse first.

        Raises:
            ReplayError: The output has no image where the convention says it.
        """
        try:
            found = [select(output, path) for path in self.outputs]
        except LookupError as error:
            asked = f"restored images at {', '.join(map(str, self.outputs))} of the host's output"
            raise ReplayError(asked, str(error), "correct the convention's `outputs`") from None
        return tuple(self._signed(image) for image in found)

    def declared(self, channels: int) -> dict[int, dict[int, int | None]]:
        """Return the channels that cannot be told from their values, and what the teacher takes for each.

        Args:
            channels: Number of channels of the image.

        Returns:
            By position of the argument, and channel: ``None`` for what is passed on as it is, or a channel of the
            complete image. The latter for latents, where a hole shows in its surroundings too.
        """
        blank, plane = torch.zeros(1, channels, 1, 1), torch.zeros(1, 1, 1, 1)
        found: dict[int, dict[int, int | None]] = {}
        for index, words in enumerate(self.arguments):
            kept: list[int | Literal["open"] | None] = []
            for word in words:
                count = WORDS[word](blank, blank, plane).shape[1]
                taken = word in ("image", "whole") and self.scale == "latent"
                kept += [None] * count if word in _FOREIGN else [*range(count)] if taken else ["open"] * count
            chosen = {channel: value for channel, value in enumerate(kept) if value != "open"}
            if chosen:
                found[index] = chosen
        return found

    def _scaled(self, image: Tensor) -> Tensor:
        if self.scale in ("signed", "latent"):
            return image
        unit = (image + 1) / 2
        return unit if self.scale == "unit" else (unit - _column(_MEAN, unit)) / _column(_STD, unit)

    def _signed(self, image: Tensor) -> Tensor:
        if self.scale == "imagenet":
            image = image * _column(_STD, image) + _column(_MEAN, image)
        return image if self.scale in ("signed", "latent") else image * 2 - 1


def _column(values: tuple[float, ...], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(-1, 1, 1)


COMMON = (
    Convention("image+hole"),
    Convention("image", "hole"),
    Convention("image+ones+hole"),
    Convention("image+ones+hole", "hole"),
    Convention("image", "known3"),
    Convention("image"),
)
"""The ways in which 45 public hosts take their pixels, the most frequent first."""


def find_convention(host: nn.Module, image: Tensor, mask: Tensor) -> Convention:
    """Return the first common convention under which the host runs; the host is as before afterwards.

    For a dry run only: that a host runs does not mean that it was meant to be called so.

    Raises:
        PlanError: It runs under none of them.
    """
    for convention in COMMON:
        # Whatever a foreign forward raises means "not this one".
        with suppress(Exception), untouched(host), torch.no_grad():
            convention.pack(image, mask).run(host)
            return convention
    raise PlanError(
        f"a dry run of {type(host).__name__} on an image and a mask",
        f"it runs under none of: {', '.join(map(str, COMMON))}",
        "leave image and mask out of attach(), so that your own first call is used, or pass an adapter with `outputs`",
    )
