"""The user's side of a test: data, a training loop, and snapshots to compare exactly."""

import copy

import torch
from torch import nn
from torch.nn import functional as F

from inpaint_distill.injection import injected

__all__ = [
    "batch",
    "batches",
    "footprint",
    "make_optimizer",
    "outputs",
    "reconstruct",
    "same",
    "state_of",
    "stir",
    "train",
]


def batch(seed=0, count=2, size=32, channels=3):
    """Make images (count, 3, size, size) in [-1, 1] of coarse and fine noise, and one rectangular hole in each."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, channels, 5, 5, generator=generator) * 2 - 1
    image = F.interpolate(coarse, (size, size), mode="bicubic", align_corners=True) * 0.8
    image = (image + 0.1 * torch.randn(image.shape, generator=generator)).clamp(-1, 1)
    mask = torch.zeros(count, 1, size, size)
    for each in mask:
        top, left = (int(torch.randint(2, size // 2, (1,), generator=generator)) for _ in range(2))
        height, width = (int(torch.randint(size // 5, size // 2, (1,), generator=generator)) for _ in range(2))
        each[:, top : top + height, left : left + width] = 1
    return image, mask


def batches(steps, start=0, **kwargs):
    """Make the batches of ``steps`` steps from step ``start`` on."""
    return [batch(seed, **kwargs) for seed in range(start, start + steps)]


def make_optimizer(host, kind=torch.optim.AdamW, lr=1e-3, **kwargs):
    """Make the user's optimizer."""
    return kind([p for p in host.parameters() if p.requires_grad], lr=lr, **kwargs)


def reconstruct(toy, host, image, mask):
    """Run the host and compute its own loss, as its author would."""
    restored = toy.select(toy.call(host, image, mask))
    return (restored - image).abs().mean()


def train(toy, host, optimizer, data, distiller=None, scheduler=None):
    """Train as a user does, with the distiller's loss added where there is one; return the total losses."""
    losses = []
    for image, mask in data:
        loss = reconstruct(toy, host, image, mask)
        if distiller is not None:
            loss = loss + distiller.loss(image, mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        losses.append(loss.detach())
    return losses


def state_of(host, optimizer=None):
    """Copy all that training changes: parameters, buffers, optimizer state, random state."""
    state = {"host": host.state_dict(), "random": torch.get_rng_state()}
    if optimizer is not None:
        state["optimizer"] = optimizer.state_dict()
    return copy.deepcopy(state)


def same(first, second):
    """Compare nested containers of tensors and values, bit for bit."""
    if isinstance(first, torch.Tensor) or isinstance(second, torch.Tensor):
        both = isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor)
        return both and first.dtype == second.dtype and first.shape == second.shape and _same_bits(first, second)
    if isinstance(first, dict):
        return (
            isinstance(second, dict) and list(first) == list(second) and all(same(first[k], second[k]) for k in first)
        )
    if isinstance(first, (list, tuple)):
        return type(first) is type(second) and len(first) == len(second) and all(map(same, first, second))
    return type(first) is type(second) and first == second


def _same_bits(first, second):
    return torch.equal(first.isnan(), second.isnan()) and torch.equal(first.nan_to_num(), second.nan_to_num())


def footprint(host):
    """Note, for every module, its class, its attributes (objects by identity) and every hook it carries.

    What a forward or a training step is expected to change (the values of tensors) is not part of it.
    """
    notes = {}
    for name, part in host.named_modules(remove_duplicate=False):
        own = {}
        for key, value in vars(part).items():
            if key in ("_parameters", "_buffers", "_modules"):
                own[key] = {name: id(member) for name, member in value.items()}
            elif isinstance(value, dict):  # hooks, and whatever else is a dict
                own[key] = {each: id(member) for each, member in value.items()}
            elif isinstance(value, list):
                own[key] = [id(member) for member in value]
            elif isinstance(value, (torch.Tensor, nn.Module)) or callable(value):
                own[key] = id(value)
            else:
                own[key] = value
        notes[name] = (type(part), own)
    return notes


def outputs(toy, host, seed=9):
    """Run in eval mode from a fixed random state; the host's buffers are as before."""
    host.eval()
    state = copy.deepcopy(host.state_dict())
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(3)
        output = toy.select(toy.call(host, *batch(seed))).clone()
    host.load_state_dict(state)
    host.train()
    return output


def stir(host):
    """Move what is injected away from the identity."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in injected(host).parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
