"""Hosts that differ in how they take the image and the mask."""

import torch

from hosts.base import WIDTHS, Plain

__all__ = [
    "CALLS",
    "Keywords",
    "MaskByMethod",
    "MaskSetter",
    "MasksItself",
    "Nested",
    "Overwrites",
    "Pooled",
    "Written",
]

_MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
_STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


class Keywords(Plain):
    """Takes everything by keyword, and a setting that is no tensor."""

    def forward(self, *, picture, holes, mode="train"):
        return super().forward(picture, holes)


class MasksItself(Plain):
    """Takes the whole image and empties the hole itself."""

    def forward(self, image, mask):
        return super().forward(image * (1 - mask) + mask, mask)


class MaskByMethod(Plain):
    """Is told the mask by a method, before its forward."""

    def __init__(self):
        super().__init__(4)
        self.mask = None

    def set_mask(self, mask):
        self.mask = mask

    def forward(self, image):
        return super().forward(image, self.mask)


class MaskSetter(torch.nn.Module):
    """Takes the mask and hands it to a network by its method."""

    def __init__(self):
        super().__init__()
        self.net = MaskByMethod()

    def forward(self, image, mask):
        self.net.set_mask(mask)
        return self.net(image)


class Nested(Plain):
    """Takes one nested container, with a timestep that it ignores."""

    def forward(self, batch):
        picture, holes = batch["pixels"]
        return super().forward(picture, holes)


class Overwrites(Plain):
    """Normalises the image that it is given in place."""

    def forward(self, image, mask):
        return super().forward(image.sub_(0.2).div_(0.5), mask)


class Written(Plain):
    """Takes a batch, writes the result into it, and returns it."""

    def forward(self, batch):
        batch["restored"] = super().forward(batch["image"] * (1 - batch["mask"]), batch["mask"])
        batch["steps"].append(batch["restored"])
        return batch


class Pooled(Plain):
    """Takes the mask at half the resolution."""

    def forward(self, image, mask):
        return super().forward(image, torch.nn.functional.interpolate(mask, scale_factor=2))


def _rgb_known(host, image, mask):
    known = (1 - mask).expand_as(image)
    return host(image * known, known)


def _with_words(host, image, mask):
    words = torch.linspace(-1, 1, 5 * WIDTHS[1]).view(1, 5, WIDTHS[1])
    return host(torch.cat([image * (1 - mask), mask], 1), words.repeat(len(image), 1, 1))


CALLS = {
    "cat": lambda host, image, mask: host(torch.cat([image * (1 - mask), mask], 1)),
    "cat_known": lambda host, image, mask: host(torch.cat([image * (1 - mask), 1 - mask], 1)),
    "mask_first": lambda host, image, mask: host(torch.cat([mask, image * (1 - mask)], 1)),
    "separate": lambda host, image, mask: host(image * (1 - mask), mask),
    "separate_known": lambda host, image, mask: host(image * (1 - mask), 1 - mask),
    "rgb_known": _rgb_known,
    "ones": lambda host, image, mask: host(torch.cat([image * (1 - mask), torch.ones_like(mask), mask], 1)),
    "ones_and_mask": lambda host, image, mask: host(
        torch.cat([image * (1 - mask), torch.ones_like(mask), mask], 1), mask
    ),
    "centred_mask": lambda host, image, mask: host(torch.cat([0.5 - mask, image * (1 - mask)], 1)),
    "whole": lambda host, image, mask: host(image, mask),
    "unit": lambda host, image, mask: host(torch.cat([(image + 1) / 2 * (1 - mask), mask], 1)),
    "imagenet": lambda host, image, mask: host(((image + 1) / 2 - _MEAN) / _STD * (1 - mask), mask),
    "mean": lambda host, image, mask: host((image + 1) / 2 * (1 - mask) + _MEAN * mask, mask),
    "bytes": lambda host, image, mask: host((image + 1) * 127.5 * (1 - mask), mask * 255),
    "bgr": lambda host, image, mask: host(image.flip(1) * (1 - mask), mask),
    "white": lambda host, image, mask: host(image * (1 - mask) + mask),
    "bool_mask": lambda host, image, mask: host(image * (1 - mask), (mask > 0.5)),
    "half_mask": lambda host, image, mask: host(image * (1 - mask), torch.nn.functional.max_pool2d(mask, 2)),
    "written": lambda host, image, mask: host({"image": image, "mask": mask, "steps": []}),
    "words": _with_words,
    "keywords": lambda host, image, mask: host(picture=image * (1 - mask), holes=mask, mode="train"),
    "nested": lambda host, image, mask: host(
        {"pixels": (image * (1 - mask), mask), "step": torch.zeros(len(image), dtype=torch.long)}
    ),
}
