"""The teacher's call is the host's own call with the complete image and an empty hole, whatever the convention."""

import pytest
import torch
from hosts import ZOO, ZOO_NAMES, batch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from inpaint_distill.errors import ReplayError
from inpaint_distill.host.call import HostCall
from inpaint_distill.host.replay import derive_recipe


class Recorder(nn.Module):
    """A host that keeps its arguments and computes nothing."""

    def __init__(self):
        super().__init__()
        self.call = None

    def forward(self, *args, **kwargs):
        self.call = HostCall(args, kwargs)


class Named(nn.Module):
    """A host with argument names, for the error texts."""

    def forward(self, picture, condition=None):
        return picture


def close(call, expected):
    """Compare two calls argument by argument."""
    found, wanted = list(call.tensors()), list(expected.tensors())
    assert [path for path, _ in found] == [path for path, _ in wanted]
    for (_, tensor), (_, other) in zip(found, wanted, strict=True):
        assert tensor.dtype == other.dtype
        torch.testing.assert_close(tensor, other, rtol=1e-5, atol=1e-5)


def replayed(image, mask, fill):
    """Build arguments with ``fill(image, mask)``, derive, replay; return what came out and what should have."""
    call = HostCall(*_arguments(fill(image, mask)))
    expected = HostCall(*_arguments(fill(image, torch.zeros_like(mask))))
    return derive_recipe(Named(), call, image, mask).apply(call, image), expected


def _arguments(value):
    return (value, {}) if isinstance(value, tuple) else ((value,), {})


@pytest.mark.parametrize("name", ZOO_NAMES)
@pytest.mark.parametrize("unit", [False, True], ids=["image in [-1, 1]", "image in [0, 1]"])
def test_every_convention_of_the_zoo_is_repeated_exactly(name, unit):
    toy = ZOO[name]
    image, mask = batch(3, count=3)
    given_image = (image + 1) / 2 if unit else image
    seen = Recorder()
    toy.call(seen, image, mask)
    call = seen.call
    toy.call(seen, image, torch.zeros_like(mask))
    recipe = derive_recipe(toy.build(), call, given_image, mask)
    close(recipe.apply(call, given_image), seen.call)

    image, mask = batch(4, count=2)  # the same recipe on another batch, of another size
    given_image = (image + 1) / 2 if unit else image
    toy.call(seen, image, mask)
    call = seen.call
    toy.call(seen, image, torch.zeros_like(mask))
    close(recipe.apply(call, given_image), seen.call)


@pytest.mark.parametrize("name", ZOO_NAMES)
def test_the_host_gives_the_same_output_by_its_own_call_and_by_the_replayed_one(name):
    toy = ZOO[name]
    host = toy.build()
    host.eval()
    image, mask = batch()
    seen = Recorder()
    toy.call(seen, image, mask)
    recipe = derive_recipe(host, seen.call, image, mask)
    outputs = []
    for run in (
        lambda: toy.call(host, image, torch.zeros_like(mask)),
        lambda: recipe.apply(seen.call, image).run(host),
    ):
        state = {key: value.clone() for key, value in host.state_dict().items()}
        torch.manual_seed(0)
        with torch.no_grad():
            outputs.append(toy.select(run()))
        host.load_state_dict(state)
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-5, atol=1e-4 if name == "bytes" else 1e-5)


# -- any affine range, order, position ---------------------------------------------------------------------------------

scales = st.floats(0.05, 300).flatmap(lambda size: st.sampled_from([size, -size]))
offsets = st.floats(-3, 3)


@given(
    scale=st.tuples(scales, scales, scales),
    bias=st.tuples(offsets, offsets, offsets),
    order=st.permutations(range(3)),
    hole=offsets,
    polarity=st.booleans(),
    slope=scales,
    position=st.integers(0, 3),
    plane=st.one_of(st.none(), offsets),
    seed=st.integers(0, 99),
)
def test_any_affine_image_and_mask_in_any_channel(scale, bias, order, hole, polarity, slope, position, plane, seed):
    def fill(image, mask):
        pixels = image[:, order] * torch.tensor(scale).view(3, 1, 1) + torch.tensor(bias).view(3, 1, 1)
        planes = list((pixels * (1 - mask) + hole * mask).split(1, 1))
        planes.insert(position, (mask if polarity else 1 - mask) * slope + 0.25)
        if plane is not None:
            planes.append(torch.full_like(mask, plane))
        return torch.cat(planes, 1)

    image, mask = batch(seed)
    found, expected = replayed(image, mask, fill)
    for (_, tensor), (_, other) in zip(found.tensors(), expected.tensors(), strict=True):
        torch.testing.assert_close(tensor, other, rtol=1e-5, atol=1e-5 * max(1.0, other.abs().max().item()))


@given(weights=st.lists(st.floats(0.1, 1), min_size=3, max_size=3), seed=st.integers(0, 99))
def test_a_grey_mixture_of_the_channels(weights, seed):
    mixture = torch.tensor(weights).view(1, 3, 1, 1)
    image, mask = batch(seed)
    found, expected = replayed(
        image, mask, lambda i, m: (torch.cat([i * (1 - m), m], 1), (i * mixture).sum(1, keepdim=True) * (1 - m))
    )
    close(found, expected)


@given(
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bool, torch.uint8, torch.int64, torch.float16]),
    known=st.booleans(),
    channels=st.sampled_from([1, 3]),
    squeezed=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_mask_of_any_type_and_polarity(dtype, known, channels, squeezed, seed):
    def fill(image, mask):
        value = (1 - mask if known else mask).to(dtype)
        value = value[:, 0] if squeezed else value.expand(-1, channels, -1, -1)
        return image * (1 - mask), value

    close(*replayed(*batch(seed), fill))


@pytest.mark.parametrize(
    "reduce",
    [
        lambda m: F.interpolate(m, scale_factor=0.5, mode="nearest"),
        lambda m: F.max_pool2d(m, 2),
        lambda m: F.avg_pool2d(m, 2),
        lambda m: F.max_pool2d(m, 4),
        lambda m: 1 - F.max_pool2d(m, 8),
    ],
    ids=["nearest", "maximum", "average", "quarter", "eighth, known"],
)
def test_a_mask_at_a_lower_resolution(reduce):
    close(*replayed(*batch(2), lambda i, m: (i * (1 - m), reduce(m))))


def test_one_mask_passed_for_the_whole_batch():
    image, mask = batch(count=3)
    one = mask[:1]
    call = HostCall((image * (1 - one), one))
    found = derive_recipe(Named(), call, image, one).apply(call, image)
    close(found, HostCall((image, torch.zeros_like(one))))


def test_samples_that_are_all_hole_or_all_known_are_filled_with_the_others():
    image, mask = batch(count=4)
    mask[0], mask[1] = 1, 0
    close(*replayed(image, mask, lambda i, m: torch.cat([i * (1 - m) + m, 1 - m], 1)))


def test_a_grey_photograph_keeps_the_order_of_the_channels():
    image, mask = batch()
    image = image[:, :1].expand(-1, 3, -1, -1).contiguous()
    call = HostCall((torch.cat([image * (1 - mask), mask], 1),))
    recipe = derive_recipe(Named(), call, image, mask)
    colour, _ = batch(7)
    wanted = HostCall((torch.cat([colour, torch.zeros_like(mask)], 1),))
    close(recipe.apply(call, colour), wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_precision_host_gets_half_precision_pixels(dtype):
    image, mask = batch()
    call = HostCall((torch.cat([image * (1 - mask), mask], 1).to(dtype),))
    (found,) = derive_recipe(Named(), call, image, mask).apply(call, image).args
    assert found.dtype == dtype
    torch.testing.assert_close(found[:, :3].float(), image, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(found[:, 3].float(), torch.zeros_like(mask[:, 0]), rtol=0, atol=1e-2)


def test_what_carries_no_pixels_is_passed_on_as_the_same_object():
    image, mask = batch()
    steps, text, flag = torch.tensor([3, 7]), torch.randn(2, 5, 8), object()
    call = HostCall(
        ({"x": [image * (1 - mask)], "extra": (steps, flag)},), {"text": text, "mode": "train", "mask": mask}
    )
    found = derive_recipe(Named(), call, image, mask).apply(call, image)
    assert found.args[0]["extra"][0] is steps
    assert found.args[0]["extra"][1] is flag
    assert found.kwargs["text"] is text
    assert found.kwargs["mode"] == "train"
    torch.testing.assert_close(found.args[0]["x"][0], image)
    assert not found.kwargs["mask"].any()


def test_planes_that_differ_from_sample_to_sample_are_kept():
    image, mask = batch()
    level = torch.tensor([0.1, 0.9]).view(2, 1, 1, 1).expand_as(mask)
    close(*replayed(image, mask, lambda i, m: torch.cat([i * (1 - m), m, level], 1)))


# -- what cannot be explained ------------------------------------------------------------------------------------------


def refused(image, mask, *args, **kwargs):
    with pytest.raises(ReplayError) as caught:
        derive_recipe(Named(), HostCall(args, kwargs), image, mask)
    return str(caught.value)


@pytest.mark.parametrize("index", [0, 2, 4])
def test_a_noise_channel_is_named_by_argument_and_channel(index):
    image, mask = batch()
    planes = list(torch.cat([image * (1 - mask), mask], 1).split(1, 1))
    planes.insert(index, torch.randn_like(mask))
    text = refused(image, mask, torch.cat(planes, 1))
    assert f"channel {index} of argument 'picture'" in text
    assert "Adapter" in text
    text = refused(image, mask, image * (1 - mask), condition=torch.cat(planes[: index + 1], 1))
    assert f"channel {index} of argument 'condition'" in text


@pytest.mark.parametrize("separate", [False, True])
def test_an_inverted_mask_is_called_inverted(separate):
    image, mask = batch()
    args = (image * (1 - mask), mask) if separate else (torch.cat([image * (1 - mask), mask], 1),)
    text = refused(image, 1 - mask, *args)
    assert "the mask is 1 where pixels are known" in text
    assert "1 - mask" in text


def test_another_batch_is_refused():
    image, mask = batch()
    other, hole = batch(1)
    assert "channel 0" in refused(image, mask, torch.cat([other * (1 - hole), hole], 1))


def test_another_batch_size_is_refused_with_both_shapes():
    image, mask = batch(count=3)
    text = refused(image[:2], mask[:2], image * (1 - mask), mask)
    assert "(3, 3, 32, 32)" in text
    assert "(2, 3, 32, 32)" in text


def test_an_image_at_another_scale_than_affine_is_refused():
    image, mask = batch()
    assert "channel 0" in refused(image, mask, image.clamp_min(0).sqrt() * (1 - mask))


@given(st.integers(0, 99))
def test_a_wrong_pixel_anywhere_among_the_known_ones_is_found(seed):
    image, mask = batch(seed)
    known = (mask == 0).expand_as(image).nonzero()
    place = tuple(known[seed * 7 % len(known)].tolist())
    pixels = image * (1 - mask)
    pixels[place] += 0.2
    assert f"channel {place[1]}" in refused(image, mask, pixels)


def test_a_call_without_the_image_lists_its_arguments():
    image, mask = batch()
    text = refused(image, mask, mask, condition=torch.zeros(2, 7))
    assert "argument 'picture' (2, 1, 32, 32)" in text
    assert "argument 'condition' (2, 7)" in text


def test_the_target_of_a_reconstruction_is_the_image_in_the_hosts_range():
    image, mask = batch()
    mean, std = torch.tensor([0.1, -0.2, 0.3]).view(3, 1, 1), torch.tensor([0.5, 0.6, 0.7]).view(3, 1, 1)
    call = HostCall((torch.cat([mask - 0.5, (image - mean) / std * (1 - mask)], 1),))
    recipe = derive_recipe(Named(), call, image, mask)
    torch.testing.assert_close(recipe.target(call, image), (image - mean) / std, rtol=1e-5, atol=1e-5)


def test_a_recipe_describes_what_each_argument_carries():
    image, mask = batch()
    call = HostCall((torch.cat([image * (1 - mask), torch.ones_like(mask), mask], 1), mask))
    text = derive_recipe(Named(), call, image, mask).describe()
    assert text == "argument 'picture': 3 image + 1 constant + 1 mask; argument 'condition': 1 mask"
