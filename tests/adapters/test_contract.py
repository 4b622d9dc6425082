"""What every built-in host family promises; a new family costs one row."""

from __future__ import annotations

import copy
import pickle

import pytest
import safetensors.torch
import torch
from hosts import FAMILIES

from inpaint_distill import adapters
from inpaint_distill.host.adapted import derive
from inpaint_distill.host.attention_taps import AttentionTaps
from inpaint_distill.host.taps import FeatureTaps
from inpaint_distill.plan import plan

NAMES = list(FAMILIES)


@pytest.fixture(params=NAMES)
def adapter(request):
    return adapters.get(request.param)


@pytest.fixture
def row(adapter):
    return FAMILIES[adapter.name]


@pytest.fixture
def pictures(row):
    """Return :func:`picture` for the row's channels, of its first size by default."""

    def make(batch, height=row.sizes[0][0], width=row.sizes[0][1], seed=0):
        return picture(batch, height, width, seed, row.channels)

    return make


def build(adapter, seed=0):
    row = FAMILIES[adapter.name]
    pytest.importorskip(row.package)
    torch.manual_seed(seed)
    return adapter.build(**row.kwargs)


def picture(batch, height=64, width=64, seed=0, channels=3):
    """Return smooth random images (B, C, H, W) and a mask with another hole in every sample."""
    generator = torch.Generator().manual_seed(seed)
    grid = torch.rand(batch, channels, 5, 5, generator=generator) * 2 - 1
    image = torch.nn.functional.interpolate(grid, (height, width), mode="bilinear", align_corners=True)
    hole = torch.zeros(batch, 1, height, width)
    for index in range(batch):
        hole[index, :, 3 + 2 * index : height // 2 + index, 5 : width // 2 + 3 * index] = 1
    return image, hole


def fixed(call, seed=0):
    """Run a call with the same random numbers every time."""
    torch.manual_seed(seed)
    return call()


def tapped(adapter, host, image, hole):
    """Run the host once under the taps of its plan; return its outputs, the plan and the features as maps."""
    planned = plan(host, image, hole, adapter=adapter)
    taps = FeatureTaps(host, planned.stages)
    taps.begin()
    outputs = adapter.outputs(host, image, hole)
    size = (image.shape[2], image.shape[3])
    features = [stage.as_map(each, size) for stage, each in zip(planned.stages, taps.take(), strict=True)]
    taps.remove()
    return outputs, planned, features


def test_every_built_in_family_is_held_to_this_contract():
    assert list(adapters.families()) == NAMES


def test_recognises_its_own_host_and_no_other(adapter):
    host = build(adapter)
    assert [name for name in NAMES if adapters.get(name).matches(host)] == [adapter.name]
    assert adapters.find(host).name == adapter.name


@pytest.mark.parametrize("more", [0, 2])
@pytest.mark.parametrize("training", [True, False])
def test_restores_images_of_the_size_it_was_given(adapter, row, more, training, pictures):
    host = build(adapter).train(training)
    for size in row.sizes:
        image, hole = pictures(row.batch + more, *size)
        with torch.no_grad():
            outputs = adapter.outputs(host, image, hole)
        for output in outputs:
            assert output.shape == image.shape
            assert output.isfinite().all()
            assert not row.bounded or output.abs().max() <= 1
            assert output.std() > 0.01


def test_call_returns_the_last_output(adapter, pictures):
    host, (image, hole) = build(adapter).eval(), pictures(2)
    called = fixed(lambda: adapter.call(host, image, hole))
    assert torch.equal(called, fixed(lambda: adapter.outputs(host, image, hole)[-1]))


def test_every_parameter_gets_a_gradient(adapter, pictures):
    host, (image, hole) = build(adapter), pictures(2)
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
def test_empty_and_full_holes_are_finite_forward_and_backward(adapter, fill, pictures):
    host, (image, hole) = build(adapter), pictures(2)
    outputs = adapter.outputs(host, image, torch.full_like(hole, fill))
    sum((output - image).abs().mean() for output in outputs).backward()
    assert all(output.isfinite().all() for output in outputs)
    assert all(p.grad.isfinite().all() for p in host.parameters() if p.grad is not None)


def test_pixels_in_the_hole_change_nothing(adapter, pictures):
    if not adapter.restores:
        pytest.skip("it is given the complete image under noise")
    host, (image, hole) = build(adapter).eval(), pictures(3)
    other = torch.where(hole > 0, pictures(3, seed=1)[0], image)
    assert not torch.equal(image, other)
    first, second = (fixed(lambda each=each: adapter.outputs(host, each, hole)) for each in (image, other))
    assert all(torch.equal(output, again) for output, again in zip(first, second, strict=True))


def test_known_pixels_change_the_result(adapter, pictures):
    host, (image, hole) = build(adapter).eval(), pictures(1)
    other = torch.where(hole > 0, image, pictures(1, seed=1)[0])
    first, second = (fixed(lambda each=each: adapter.call(host, each, hole)) for each in (image, other))
    assert not torch.equal(first, second)


def test_stages_go_from_shallow_to_deep_one_at_each_level(adapter, row, pictures):
    host, size = build(adapter), row.sizes[-1]
    _, planned, features = tapped(adapter, host, *pictures(2, *size))
    assert planned.encoders == () or adapter.stages(host) is None
    strides = [stage.stride for stage in planned.stages]
    assert strides == sorted(set(strides))
    assert len(strides) > 1
    for stage, feature in zip(planned.stages, features, strict=True):
        assert feature.shape == (2, stage.channels, -(-size[0] // stage.stride), -(-size[1] // stage.stride))


def test_every_stage_reaches_the_result(adapter, pictures):
    host, (image, hole) = build(adapter), pictures(2)
    seen = []
    taps = FeatureTaps(host, plan(host, image, hole, adapter=adapter).stages)
    # What the host itself put out: a kept feature may be a copy, a view or a concatenation.
    taps.begin(watch=lambda index, feature: seen.append(feature))
    outputs = adapter.outputs(host, image, hole)
    taps.remove()
    found = torch.autograd.grad(outputs[-1].square().sum(), seen, allow_unused=True)
    assert len(found) >= len(taps.stages)
    assert all(grad is not None and grad.any() for grad in found)


def test_what_is_named_as_attention_is_tapped(adapter, pictures):
    host, (image, hole) = build(adapter), pictures(2)
    sites = plan(host, image, hole, adapter=adapter).attention
    assert len(sites) >= len(adapter.attention(host) or ())
    taps = AttentionTaps(host, sites)
    taps.begin()
    adapter.call(host, image, hole)
    assert len(taps.take()) == len(sites)


def test_the_teacher_is_called_as_the_host_is(adapter, pictures):
    """The host's own call, derived again from its arguments alone, with the hole filled."""
    if not adapter.replayable:
        pytest.skip("the teacher is run by `outputs`")
    host, (image, hole) = build(adapter).eval(), pictures(2)
    convention = adapter.convention(host)
    call = convention.pack(image, hole)
    complete = derive(host, call, image, hole, adapter).apply(call, image)
    wanted = convention.pack(image, torch.zeros_like(hole))
    for (path, found), (same, expected) in zip(complete.tensors(), wanted.tensors(), strict=True):
        assert path == same
        torch.testing.assert_close(found, expected)


def test_state_survives_safetensors(adapter, pictures):
    image, hole = pictures(2)
    host, other = build(adapter), build(adapter, seed=1)
    adapter.call(host, image, hole)
    other.load_state_dict(safetensors.torch.load(safetensors.torch.save(host.state_dict())))
    host.eval(), other.eval()
    assert torch.equal(*(fixed(lambda each=each: adapter.call(each, image, hole)) for each in (host, other)))


@pytest.mark.parametrize("copy_of", [copy.deepcopy, lambda host: pickle.loads(pickle.dumps(host))])
def test_copies_after_a_training_forward_give_the_same_result(adapter, copy_of, pictures):
    host, (image, hole) = build(adapter), pictures(2)
    adapter.call(host, image, hole).mean().backward()
    twin = copy_of(host)
    host.eval(), twin.eval()
    assert torch.equal(*(fixed(lambda each=each: adapter.call(each, image, hole)) for each in (host, twin)))


def test_evaluation_is_deterministic_and_changes_no_state(adapter, row, pictures):
    host, (image, hole) = build(adapter).eval(), pictures(2)
    before = {name: tensor.clone() for name, tensor in host.state_dict().items()}
    assert torch.equal(adapter.call(host, image, hole), adapter.call(host, image, hole)) != row.noisy
    assert all(torch.equal(tensor, before[name]) for name, tensor in host.state_dict().items())


def test_runs_under_autocast(adapter, pictures):
    host, (image, hole) = build(adapter), pictures(2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = adapter.outputs(host, image, hole)
    sum(output.float().square().mean() for output in outputs).backward()
    assert all(output.isfinite().all() for output in outputs)
    assert all(p.grad.isfinite().all() for p in host.parameters())


def test_learns_a_handful_of_images_from_scratch(adapter, pictures):
    host, (image, hole) = build(adapter), pictures(4)
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
