"""Whether a hole shows in a feature, as numbers: pure functions over features and masks (ours)."""

from __future__ import annotations

import torch
from torch import Tensor

from inpaint_distill.errors import InputError
from inpaint_distill.losses.functional import hole_weight

__all__ = ["energy", "energy_ratio", "hole_agreement", "hole_contrast", "sides"]

_TINY = 1e-30  # in float64: keeps 0 / 0 at 0


def energy(feature: Tensor) -> Tensor:
    """Return the mean square over the channels (B, 1, H, W), float64.

    The feature is taken as it is: any normalisation over space would also remove what is looked for. Ratios of
    energies within one image do not depend on the feature's scale; loud channels weigh more, as they do in a picture.
    """
    return feature.detach().double().square().mean(1, keepdim=True)


def sides(mask: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Tell which cells of a feature lie in the hole and which are known; a cell that is partly hole is neither.

    Where no cell of an image is wholly hole (a thin hole on a coarse level), its cells that are hole by more than half
    count as hole. The known side makes no such concession, because a map is fitted on it.

    Args:
        mask: (B, 1, H, W), 1 in the hole, 0 elsewhere.
        size: Height and width of the feature.

    Returns:
        Hole and known, boolean, each (B, 1, *size); either may be empty for an image.

    Raises:
        InputError: The mask is none, or one of its images has no hole or nothing but hole.

    >>> mask = torch.zeros(1, 1, 4, 4); mask[..., :3] = 1
    >>> hole, known = sides(mask, (2, 2))
    >>> hole.tolist(), known.any().item()
    ([[[[True, False], [True, False]]]], False)
    """
    _check_mask(mask)
    share = hole_weight(mask, size)
    whole = share == 1
    has_whole = whole.flatten(1).any(1)[:, None, None, None]
    return torch.where(has_whole, whole, share > 0.5), share == 0


def energy_ratio(feature: Tensor, mask: Tensor) -> Tensor:
    """Divide the mean energy in the hole by the mean energy outside: below 1 the hole is darker, above 1 brighter.

    Args:
        feature: (B, C, h, w).
        mask: (B, 1, H, W), 1 in the hole.

    Returns:
        (B,), float64; nan for an image without a cell on either side (see :func:`sides`) or without energy outside.

    Raises:
        InputError: Shapes that do not belong together, or a mask without a hole or without known pixels.

    >>> feature = torch.full((1, 3, 4, 4), 2.0); feature[..., :2] = 1
    >>> mask = torch.zeros(1, 1, 8, 8); mask[..., :4] = 1
    >>> energy_ratio(feature, mask)
    tensor([0.2500], dtype=torch.float64)
    """
    _check_feature(feature, mask)
    hole, known = sides(mask, (feature.shape[2], feature.shape[3]))
    each = energy(feature)
    inside, outside = ((each * side).sum((1, 2, 3)) / side.sum((1, 2, 3)) for side in (hole, known))
    return torch.where(outside > 0, inside / outside, torch.nan)


def hole_contrast(feature: Tensor, mask: Tensor) -> Tensor:
    """Return ``| mean energy in the hole / mean energy outside - 1 |`` for each image: 0 where the hole does not show.

    Args:
        feature: (B, C, h, w).
        mask: (B, 1, H, W), 1 in the hole.

    Returns:
        (B,), float64, >= 0; nan where :func:`energy_ratio` is.

    Raises:
        InputError: As :func:`energy_ratio`.

    >>> feature = torch.full((1, 3, 4, 4), 2.0); feature[..., :2] = 0
    >>> mask = torch.zeros(1, 1, 8, 8); mask[..., :4] = 1
    >>> hole_contrast(feature, mask), hole_contrast(torch.ones(1, 3, 4, 4), mask)
    (tensor([1.], dtype=torch.float64), tensor([0.], dtype=torch.float64))
    """
    return (energy_ratio(feature, mask) - 1).abs()


def hole_agreement(student: Tensor, teacher: Tensor, mask: Tensor, ridge: float = 1e-3) -> Tensor:
    """Return the cosine similarity of two features inside the hole, after a linear map fitted on known cells.

    The map from the student's channels to the teacher's is the ridge regression, with intercept, over the known cells
    of the whole batch. Both sides are taken relative to the teacher's mean over these cells, because features behind a
    ReLU point in much the same direction everywhere: guessing that mean scores 0. The similarity of an image is that
    of two vectors over all channels and hole cells.

    Args:
        student: (B, C, h, w).
        teacher: (B, C*, h, w), whatever the number of its channels.
        mask: (B, 1, H, W), 1 in the hole.
        ridge: Penalty, relative to the mean variance of the student's channels; > 0.

    Returns:
        (B,), float64 in [-1, 1]; nan for an image without a hole cell, and for all where no cell of the batch is known.

    Raises:
        InputError: Shapes that do not belong together, a mask without a hole or without known pixels, a bad ``ridge``.

    >>> teacher = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    >>> student = 3 * teacher.flip(1) + 1  # the same content, written in other channels
    >>> mask = torch.zeros(2, 1, 16, 16); mask[..., :8] = 1
    >>> hole_agreement(student, teacher, mask).round(decimals=2)
    tensor([1., 1.], dtype=torch.float64)
    """
    for feature in (student, teacher):
        _check_feature(feature, mask)
    if student.shape[2:] != teacher.shape[2:]:
        found = f"student {tuple(student.shape)}, teacher {tuple(teacher.shape)}"
        raise InputError("two features of one size", found, "compare them level by level, or resize one of them")
    if not ridge > 0:
        raise InputError(f"ridge = {ridge}", "no penalty", "use a number > 0, such as 1e-3")
    hole, known = (side[:, 0] for side in sides(mask, (student.shape[2], student.shape[3])))
    if not bool(known.any()):
        return torch.full((len(mask),), torch.nan, dtype=torch.float64, device=student.device)
    own, other = (feature.detach().double().movedim(1, -1) for feature in (student, teacher))  # (B, h, w, C)
    own, other = own - own[known].mean(0), other - other[known].mean(0)
    mapped, target = (values * hole[..., None] for values in (own @ _ridge_map(own[known], other[known], ridge), other))
    product = (mapped * target).sum((1, 2, 3))
    norms = mapped.square().sum((1, 2, 3)).sqrt() * target.square().sum((1, 2, 3)).sqrt()
    return torch.where(hole.flatten(1).any(1), product / norms.clamp_min(_TINY), torch.nan)


def _ridge_map(inputs: Tensor, outputs: Tensor, ridge: float) -> Tensor:
    """Return the matrix (C, C*) of the ridge regression of centred (N, C*) on centred (N, C)."""
    gram = inputs.T @ inputs
    penalty = (ridge * gram.diagonal().mean()).clamp_min(_TINY)
    solution: Tensor = torch.linalg.solve(gram + penalty * torch.eye(len(gram)).to(gram), inputs.T @ outputs)
    return solution


def _check_feature(feature: Tensor, mask: Tensor) -> None:
    if feature.ndim != 4 or mask.ndim != 4 or len(feature) != len(mask):
        found = f"feature {tuple(feature.shape)}, mask {tuple(mask.shape)}"
        raise InputError("a feature (B, C, h, w) and its mask (B, 1, H, W)", found, "give one mask per image")


def _check_mask(mask: Tensor) -> None:
    asked = "a mask (B, 1, H, W) with a hole and with known pixels in every image"
    if mask.ndim != 4 or mask.shape[1] != 1:
        raise InputError(asked, f"shape {tuple(mask.shape)}", "give one channel, 1 = hole, batch first")
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise InputError(asked, "values other than 0 and 1", "threshold it: (mask > 0.5).float()")
    flat = mask.flatten(1)
    for value, name in ((1, "no hole"), (0, "no known pixel")):
        without = (~(flat == value).any(1)).nonzero().flatten().tolist()
        if without:
            raise InputError(asked, f"image {without[0]} of the batch has {name}", "leave such images out")
