"""What every built-in host family promises; a new family costs one row."""

from __future__ import annotations

import copy
import fnmatch
import math
import pickle

import pytest
import safetensors.torch
import torch

from inpaint_distill import adapters

SMALL = {
    "gated-conv": {"width": 8},
    "contextual-attention": {"width": 4},
    "partial-conv": {"width": 4},
    "unet": {"width": 4},
}
NAMES = list(SMALL)


@pytest.fixture(params=NAMES)
def adapter(request):
    return adapters.get(request.param)


def build(adapter, seed=0):
    torch.manual_seed(seed)
    return adapter.build(**SMALL[adapter.name])


def picture(batch, height=32, width=32, seed=0):
    """Return smooth random images (B, 3, H, W) and a mask with another hole in every sample."""
    generator = torch.Generator().manual_seed(seed)
    grid = torch.rand(batch, 3, 5, 5, generator=generator) * 2 - 1
    image = torch.nn.functional.interpolate(grid, (height, width), mode="bilinear", align_corners=True)
    hole = torch.zeros(batch, 1, height, width)
    for index in range(batch):
        hole[index, :, 3 + 2 * index : height // 2 + index, 5 : width // 2 + 3 * index] = 1
    return image, hole


def stage_names(adapter, host):
    """Expand the adapter's stage patterns, each of which has to match."""
    ordered = [name for name, _ in host.named_modules()]
    matched = [fnmatch.filter(ordered, pattern) for pattern in adapter.stages]
    assert all(matched)
    return [name for names in matched for name in names]


def feature_of(output):
    return output[0] if isinstance(output, tuple) else output


def tapped_call(adapter, host, image, hole):
    """Run the host once and return, by stage, each output as (feature, its version when the stage returned)."""
    kept = {name: [] for name in stage_names(adapter, host)}

    def watch(name):
        def hook(module, args, output):
            kept[name].append((feature_of(output), feature_of(output)._version))

        return host.get_submodule(name).register_forward_hook(hook)

    handles = [watch(name) for name in kept]
    outputs = adapter.outputs(host, image, hole)
    for handle in handles:
        handle.remove()
    return outputs, kept


def test_every_built_in_family_is_held_to_this_contract():
    assert list(adapters.families()) == NAMES


def test_recognises_its_own_host_and_no_other(adapter):
    assert [name for name in NAMES if adapter.matches(build(adapters.get(name)))] == [adapter.name]


@pytest.mark.parametrize("size", [(64, 64), (32, 32), (64, 96)])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("training", [True, False])
def test_restores_images_of_the_size_it_was_given(adapter, size, batch, training):
    host = build(adapter).train(training)
    with torch.no_grad():
        outputs = adapter.outputs(host, *picture(batch, *size))
    for output in outputs:
        assert output.shape == (batch, 3, *size)
        assert output.isfinite().all()
        assert output.abs().max() <= 1
        assert output.std() > 0.01


def test_call_returns_the_last_output(adapter):
    host, (image, hole) = build(adapter).eval(), picture(2)
    assert torch.equal(adapter.call(host, image, hole), adapter.outputs(host, image, hole)[-1])


def test_every_parameter_gets_a_gradient(adapter):
    host, (image, hole) = build(adapter), picture(2, 64, 64)
    optimizer = torch.optim.SGD(host.parameters(), lr=1e-2)
    # Twice: a residual branch that timm starts at zero passes a gradient inward only after the first step.
    for _ in range(2):
        optimizer.step()
        optimizer.zero_grad()
        sum((output - image).abs().mean() for output in adapter.outputs(host, image, hole)).backward()
    without = [name for name, p in host.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without
    assert all(p.grad.isfinite().all() for p in host.parameters())


@pytest.mark.parametrize("fill", [0.0, 1.0])
def test_empty_and_full_holes_are_finite_forward_and_backward(adapter, fill):
    host, (image, hole) = build(adapter), picture(2)
    outputs = adapter.outputs(host, image, torch.full_like(hole, fill))
    sum((output - image).abs().mean() for output in outputs).backward()
    assert all(output.isfinite().all() for output in outputs)
    assert all(p.grad.isfinite().all() for p in host.parameters() if p.grad is not None)


def test_pixels_in_the_hole_change_nothing(adapter):
    host, (image, hole) = build(adapter).eval(), picture(3)
    other = torch.where(hole > 0, picture(3, seed=1)[0], image)
    assert not torch.equal(image, other)
    for output, again in zip(adapter.outputs(host, image, hole), adapter.outputs(host, other, hole), strict=True):
        assert torch.equal(output, again)


def test_known_pixels_change_the_result(adapter):
    host, (image, hole) = build(adapter).eval(), picture(1)
    other = torch.where(hole > 0, image, picture(1, seed=1)[0])
    assert not torch.equal(adapter.call(host, image, hole), adapter.call(host, other, hole))


def test_stages_fire_once_shallow_to_deep_at_one_level_each(adapter):
    _, kept = tapped_call(adapter, build(adapter), *picture(2, 64, 96))
    assert {name: len(calls) for name, calls in kept.items()} == dict.fromkeys(kept, 1)
    features = [calls[0][0] for calls in kept.values()]
    levels = [round(math.log2(64 / feature.shape[2])) for feature in features]
    assert levels == sorted(set(levels))
    assert all(feature.shape[3] * 2 == feature.shape[2] * 3 for feature in features)


def test_stage_features_are_not_overwritten_later(adapter):
    _, kept = tapped_call(adapter, build(adapter), *picture(2))
    assert all(feature._version == version for calls in kept.values() for feature, version in calls)


def test_every_stage_reaches_the_result(adapter):
    host, (image, hole) = build(adapter), picture(2)
    outputs, kept = tapped_call(adapter, host, image, hole)
    features = [calls[0][0] for calls in kept.values()]
    assert all(grad.any() for grad in torch.autograd.grad(outputs[-1].square().sum(), features))


def test_attention_modules_exist_and_run(adapter):
    host, ran = build(adapter), []
    handles = [
        host.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name))
        for name in adapter.attention
    ]
    adapter.call(host, *picture(1))
    for handle in handles:
        handle.remove()
    assert tuple(ran) == adapter.attention


def test_state_survives_safetensors(adapter):
    image, hole = picture(2)
    host, other = build(adapter), build(adapter, seed=1)
    adapter.call(host, image, hole)
    other.load_state_dict(safetensors.torch.load(safetensors.torch.save(host.state_dict())))
    assert torch.equal(adapter.call(host.eval(), image, hole), adapter.call(other.eval(), image, hole))


@pytest.mark.parametrize("copy_of", [copy.deepcopy, lambda host: pickle.loads(pickle.dumps(host))])
def test_copies_after_a_training_forward_give_the_same_result(adapter, copy_of):
    host, (image, hole) = build(adapter), picture(2)
    adapter.call(host, image, hole).mean().backward()
    twin = copy_of(host)
    assert torch.equal(adapter.call(host.eval(), image, hole), adapter.call(twin.eval(), image, hole))


def test_evaluation_is_deterministic_and_changes_no_state(adapter):
    host, (image, hole) = build(adapter).eval(), picture(2)
    before = {name: tensor.clone() for name, tensor in host.state_dict().items()}
    assert torch.equal(adapter.call(host, image, hole), adapter.call(host, image, hole))
    assert all(torch.equal(tensor, before[name]) for name, tensor in host.state_dict().items())


def test_runs_under_autocast(adapter):
    host, (image, hole) = build(adapter), picture(2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = adapter.outputs(host, image, hole)
    sum(output.float().square().mean() for output in outputs).backward()
    assert all(output.isfinite().all() for output in outputs)
    assert all(p.grad.isfinite().all() for p in host.parameters())


def test_learns_a_handful_of_images_from_scratch(adapter):
    host, (image, hole) = build(adapter), picture(4)
    optimizer = torch.optim.Adam(host.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        outputs = adapter.outputs(host, image, hole)
        loss = sum((output - image).abs().mean() for output in outputs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(outputs[-1].detach().sub(image).abs().mean()))
    assert losses[-1] < 0.8 * losses[0]
