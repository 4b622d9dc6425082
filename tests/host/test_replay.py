"""The teacher's call is the host's own call with the complete image and an empty hole, whatever the convention."""

import copy
import random

import numpy as np
import pytest
import torch
from hosts import ZOO, ZOO_NAMES, batch, same
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import inpaint_distill
from inpaint_distill.errors import ReplayError
from inpaint_distill.host.adapter import Adapter
from inpaint_distill.host.call import HostCall
from inpaint_distill.host.explain import derive_recipe


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


def test_holes_that_the_caller_interpolates():
    close(*replayed(*batch(2), lambda i, m: torch.cat([inpaint_distill.pull_push(i, 1 - m), m], 1)))


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


# -- whether a recipe still holds, and what can be read of it ----------------------------------------------------------


def wide(seed=0, count=2, size=(16, 24)):
    """Draw a batch whose height is not its width, with a hole of its own for each sample."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(count, 1, *size)
    for index in range(count):
        mask[index, :, 3 + index : 9 + index, 2 + 3 * index : 11] = 1
    return torch.rand(count, 3, *size, generator=generator) * 2 - 1, mask


def known_first(image, mask):
    """Give the known places as 255 and 5, the pixels in [0, 1] and blue first, and a plane of ones."""
    pixels = (image.flip(1) + 1) / 2 * (1 - mask)
    return HostCall((torch.cat([250 * (1 - mask) + 5, pixels, torch.ones_like(mask)], 1),), {"condition": 1 - 2 * mask})


def changed(call, path, place, value):
    """Return the call with one value of one argument changed."""

    def change(own, tensor):
        tensor = tensor.clone()
        if own == path:
            tensor[place] = value
        return tensor

    return call.rebuild(change)


def test_a_recipe_fits_every_batch_that_is_given_alike():
    image, mask = wide()
    recipe = derive_recipe(Named(), known_first(image, mask), image, mask)
    assert recipe.tells
    for other, hole in (wide(), wide(1), wide(2, count=3), wide(3, size=(24, 16))):
        call = known_first(other, hole)
        assert recipe.fits(call, other, hole)
        assert recipe.fits(changed(call, (0,), (0, 4), 0.3), other, hole)  # constants may change
        assert recipe.fits(changed(call, (0,), (0, 2, 5, 5), 9.0), other, hole)  # and what stands in the hole


@pytest.mark.parametrize(
    ("path", "place", "value"),
    [
        ((0,), (0, 0, 0, 0), 5.0),
        ((0,), (1, 0, 5, 6), 255.0),
        ((0,), (0, 1, 0, 0), 2.0),
        ((0,), (1, 3, 15, 23), -1.0),
        (("condition",), (1, 0, 0, 0), -1.0),
        (("condition",), (0, 0, 4, 4), 1.0),
    ],
)
def test_a_recipe_does_not_fit_a_call_with_one_other_pixel_or_one_other_place_in_a_mask(path, place, value):
    image, mask = wide()
    call = known_first(image, mask)
    recipe = derive_recipe(Named(), call, image, mask)
    assert not recipe.fits(changed(call, path, place, value), image, mask)


def test_a_recipe_does_not_fit_another_batch_another_hole_or_other_sizes():
    image, mask = wide()
    call = known_first(image, mask)
    recipe = derive_recipe(Named(), call, image, mask)
    assert not recipe.fits(call, wide(1)[0], mask)
    assert not recipe.fits(call, image, mask.flip(3))
    assert not recipe.fits(call, image, 1 - mask)
    only = derive_recipe(Named(), HostCall((image * (1 - mask),)), image, mask)
    assert only.fits(HostCall((image,)), image, mask)
    assert not only.fits(HostCall((image[:1],)), image, mask)
    for cut in (image[..., :12], image[..., :8, :]):
        assert not only.fits(HostCall((cut,)), image, mask)


def test_one_mask_for_a_batch_is_compared_with_every_sample():
    image, mask = wide(count=3)
    one = mask[:1]
    call = HostCall((image * (1 - one), 3 * one - 1))
    recipe = derive_recipe(Named(), call, image, one)
    assert recipe.fits(call, image, one)
    assert not recipe.fits(HostCall((image * (1 - one), 3 * mask[1:2] - 1)), image, one)
    assert not recipe.fits(HostCall((image * (1 - one), one)), image, one)


def test_a_mask_without_channels_and_one_at_a_lower_resolution_are_told_apart_from_what_is_compared():
    image, mask = wide()
    small = F.max_pool2d(mask, 2)
    call = HostCall((image * (1 - mask), mask[:, 0]), {"small": small})
    recipe = derive_recipe(Recorder(), call, image, mask)
    assert recipe.fits(call, image, mask)
    assert recipe.fits(HostCall(call.args, {"small": small * 0}), image, mask)
    assert not recipe.fits(HostCall((call.args[0], mask[:, 0] * 0), {"small": small}), image, mask)
    assert recipe.fits(HostCall((call.args[0],), {"other": torch.zeros(2, 7, 4, 4)}), image, mask)


def test_a_recipe_without_pixels_cannot_tell_one_batch_from_another():
    image, mask = wide()
    recipe = derive_recipe(Named(), HostCall((image, mask)), image, mask, {(0,): {0: 0, 1: 1, 2: 2}})
    assert not recipe.tells
    assert recipe.fits(HostCall((wide(1)[0], mask)), image, mask)
    assert not recipe.fits(HostCall((image, 1 - mask)), image, mask)


def test_declared_channels_are_passed_on_or_become_the_named_channel_of_the_image():
    image, mask = wide()
    given = torch.randn(2, 5, 16, 24)
    given[:, 4:] = mask
    recipe = derive_recipe(Named(), HostCall((given,)), image, mask, {(0,): {0: None, 1: 2, 2: 0, 3: None}})
    (found,) = recipe.apply(HostCall((given,)), image).args
    expected = torch.cat([given[:, :1], image[:, 2:], image[:, :1], given[:, 3:4], torch.zeros_like(mask)], 1)
    torch.testing.assert_close(found, expected)
    assert recipe.describe() == "argument 'picture': 2 passed on + 2 latent + 1 mask"


def test_the_hole_is_read_where_the_call_carries_it():
    image, mask = wide()
    call = known_first(image, mask)
    source = derive_recipe(Named(), call, image, mask).hole(Named())
    assert (source.path, source.channel, source.also) == ((0,), 0, "picture")
    assert (source.slope, source.bias) == (-250, 255)
    torch.testing.assert_close(source.read(call.args, call.kwargs), mask)
    apart = HostCall((image * (1 - mask),), {"condition": 1 - 2 * mask[:, 0]})
    source = derive_recipe(Named(), apart, image, mask).hole(Named())
    assert (source.path, source.channel, source.also) == (("condition",), 0, 1)
    torch.testing.assert_close(source.read(apart.args, apart.kwargs), mask)
    assert derive_recipe(Named(), HostCall((image * (1 - mask),)), image, mask).hole(Named()) is None


def test_the_target_is_the_first_argument_that_has_three_image_channels():
    image, mask = wide()
    grey = image[:, :1] * (1 - mask)
    call = HostCall((mask, grey), {"picture": torch.cat([mask, 2 * image + 1, image], 1)})
    recipe = derive_recipe(Recorder(), call, image, mask)
    torch.testing.assert_close(recipe.target(call, image), 2 * image + 1)
    assert recipe.describe() == (
        "positional argument 0: 1 mask; positional argument 1: 1 image; argument 'picture': 1 mask + 6 image"
    )


@pytest.mark.parametrize("size", [(8, 12), (4, 6), (16, 12), (8, 24)])
@pytest.mark.parametrize("reduce", [F.adaptive_max_pool2d, F.adaptive_avg_pool2d, F.interpolate])
@pytest.mark.parametrize("known", [False, True])
def test_a_smaller_mask_of_any_sides_becomes_an_empty_hole(size, reduce, known):
    def fill(image, mask):
        small = reduce(mask, size)
        return image * (1 - mask), 2 - 3 * small if known else small

    close(*replayed(*wide(), fill))


def test_pixels_of_a_smaller_size_are_not_taken_for_the_image():
    image, mask = wide()
    text = refused(image, mask, image * (1 - mask), F.avg_pool2d(image, 2))
    assert "channel 0 of argument 'condition'" in text
    assert "size (8, 12)" in text


def test_a_picture_without_channels_is_read_as_one_and_other_tensors_of_three_dimensions_are_passed_on():
    image, mask = wide()
    words, grey = torch.randn(2, 16, 7), image[:, 1] * (1 - mask[:, 0])
    call = HostCall((grey, mask[:, 0], words))
    found = derive_recipe(Recorder(), call, image, mask).apply(call, image).args
    torch.testing.assert_close(found[0], image[:, 1])
    assert not found[1].any()
    assert found[1].shape == (2, 16, 24)
    assert found[2] is words


@pytest.mark.parametrize("shape", [(2, 5, 1, 7), (2, 5, 7, 1), (3, 16, 24), (2, 24, 16), (2, 9), ()])
def test_what_has_no_height_or_width_of_a_picture_is_passed_on(shape):
    image, mask = wide()
    other = torch.randn(shape)
    call = HostCall((image * (1 - mask), other))
    assert derive_recipe(Named(), call, image, mask).apply(call, image).args[1] is other


def test_pixels_stay_exact_in_a_mixed_precision_step():
    image, mask = wide()
    call = HostCall((torch.cat([image * (1 - mask), mask], 1),))
    recipe = derive_recipe(Named(), call, image, mask)
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = recipe.apply(call, image).args
    assert torch.equal(found[:, :3], image)


@pytest.mark.parametrize(("error", "fits"), [(5e-5, True), (5e-4, False)])
def test_pixels_may_differ_by_rounding_alone(error, fits):
    image, mask = wide()
    call = HostCall((image * (1 - mask),))
    recipe = derive_recipe(Named(), call, image, mask)
    assert recipe.fits(HostCall((image + error,)), image, mask) is fits


@pytest.mark.parametrize(("error", "fits"), [(1e-2, True), (0.1, False)])
def test_pixels_in_half_precision_may_differ_by_theirs(error, fits):
    image, mask = wide()
    recipe = derive_recipe(Named(), HostCall((image * (1 - mask),)), image, mask)
    assert recipe.fits(HostCall(((image + error).half(),)), image, mask) is fits


def test_every_pixel_of_a_large_batch_is_compared_though_not_every_one_is_fitted():
    image, mask = wide(size=(256, 384))
    call = HostCall((image * (1 - mask), mask))
    close(derive_recipe(Named(), call, image, mask).apply(call, image), HostCall((image, torch.zeros_like(mask))))
    pixels = image.clone()
    pixels[1, 2, 200, 333] += 0.3
    assert "channel 2" in refused(image, mask, pixels * (1 - mask), mask)


def test_a_flat_image_says_nothing_and_is_a_constant():
    image, mask = torch.full((2, 3, 16, 24), 0.5), wide()[1]
    text = refused(image, mask, image.clone())
    assert "none carries the image" in text


class Keeping(nn.Module):
    """Keeps a tensor in a sub-module, where a method would set it."""

    def __init__(self, kept):
        super().__init__()
        self.part = nn.Identity()
        self.part.state = {"kept": [kept]}

    def forward(self, picture):
        return picture


@pytest.mark.parametrize(
    ("kept", "named"),
    [
        (lambda mask: mask, True),
        (lambda mask: 1 - mask[:, 0], True),
        (lambda mask: (mask > 0).expand(-1, 3, -1, -1), True),
        (lambda mask: F.max_pool2d(mask, 4), True),
        (lambda mask: F.adaptive_max_pool2d(mask, (3, 6)), False),
        (lambda mask: mask[:1].repeat(3, 1, 1, 1), False),
        (lambda mask: torch.randn_like(mask), False),
        (lambda mask: torch.zeros_like(mask), False),
        (lambda mask: mask.flatten(), False),
        (lambda mask: mask[:, :, None], False),
    ],
    ids=["mask", "known", "three channels", "a quarter", "smaller", "other batch", "noise", "none", "flat", "volume"],
)
def test_only_a_mask_that_is_kept_beside_the_call_is_refused(kept, named):
    image, mask = wide()
    host, call = Keeping(kept(mask)), HostCall((image * (1 - mask),))
    if named:
        with pytest.raises(ReplayError, match=r"but part\.state\.kept\.0 holds it"):
            derive_recipe(host, call, image, mask)
    else:
        close(derive_recipe(host, call, image, mask).apply(call, image), HostCall((image,)))
    given = HostCall((call.args[0],), {"mask": mask})
    assert derive_recipe(host, given, image, mask).hole(host) is not None


def test_one_mask_that_is_kept_for_the_whole_batch_is_refused_too():
    image, mask = wide()
    mask = mask[:1].expand(2, -1, -1, -1)
    with pytest.raises(ReplayError, match=r"but part\.state\.kept\.0 holds it"):
        derive_recipe(Keeping(mask[:1].clone()), HostCall((image * (1 - mask),)), image, mask)


# -- random numbers ----------------------------------------------------------------------------------------------------


class Drawing(nn.Module):
    """Its features depend on random numbers alone, not on the image: both networks should see the same."""

    def __init__(self, draw):
        super().__init__()
        self.draw = draw
        self.first, self.second = nn.Conv2d(1, 8, 1), nn.Conv2d(8, 12, 2, 2)
        self.up = nn.ConvTranspose2d(12, 3, 2, 2)

    def forward(self, x):
        blank = torch.zeros_like(x[:, :1]) * x[:, :1]
        first = self.first(self.draw(blank + 1))
        return self.up(self.second(self.draw(first))) + x[:, :3]


DRAWS = {
    "dropout": lambda x: F.dropout(x, 0.4, training=True),
    "noise": lambda x: x + torch.randn(x.shape),
    "choice": lambda x: x * torch.randint(1, 9, (1,)) + torch.rand_like(x),
    "bernoulli": lambda x: x * torch.bernoulli(torch.full_like(x, 0.5)),
    "python": lambda x: x * random.uniform(1, 9),
    "numpy": lambda x: x * np.random.uniform(1, 9),
}
GET_STATE = np.random.get_state
FIXED = {"warmup": 0, "balance": "none", "predictor": False, "self": {"weight": 0.0}, "lookahead": {"engine": "off"}}


def views_of(distiller):
    """Note the views of the teacher and those of the host, loss by loss."""
    seen, compute = [], distiller._terms.forward

    def forward(student, teacher, *rest):
        seen.append((student, teacher))
        return compute(student, teacher, *rest)

    distiller._terms.forward = forward
    return seen


def step(host, optimizer, distiller, seed, weight=1.0):
    image, mask = batch(seed)
    loss = (host(torch.cat([image * (1 - mask), mask], 1)) - image).abs().mean()
    if distiller is not None:
        loss = loss + weight * distiller.loss(image, mask)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


@pytest.mark.parametrize("early", [False, True], ids=["first forward", "image and mask"])
@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_teacher_and_host_draw_the_same_numbers(draw, early):
    host = Drawing(draw)
    optimizer = torch.optim.SGD(host.parameters(), 0.0)  # the average stays the host
    image, mask = batch()
    given = {"image": image, "mask": mask} if early else {}
    distiller = inpaint_distill.attach(host, optimizer, config=FIXED, **given)
    seen = []
    for seed in range(3):
        if distiller.plan is not None and not seen:
            seen = views_of(distiller)
        step(host, optimizer, distiller, seed)
    assert distiller.plan.draws
    assert len(seen) >= 2
    for student, teacher in seen:
        assert len(student.features) == 2
        for own, other in zip(student.features, teacher.features, strict=True):
            assert torch.equal(own, other)
    assert not torch.equal(seen[0][0].features[0], seen[1][0].features[0])  # and new ones at every step
    assert distiller.log["cross"] == 0


def test_the_numbers_are_those_of_the_hosts_forward_whatever_is_drawn_before_the_loss():
    host = Drawing(DRAWS["noise"])
    distiller = inpaint_distill.attach(host, config=FIXED, image=batch()[0], mask=batch()[1])
    seen = views_of(distiller)
    image, mask = batch(1)
    host(torch.cat([image * (1 - mask), mask], 1))
    torch.randn(17)  # the user's own loss draws, too
    distiller.loss(image, mask)
    ((student, teacher),) = seen
    assert torch.equal(student.features[0], teacher.features[0])


@pytest.mark.parametrize("name", ["concatenated", "batch_norm", "recurrent"])
def test_a_host_that_draws_nothing_does_not_pay_for_the_state(name, monkeypatch):
    toy = ZOO[name]
    host = toy.build()
    image, mask = batch()
    distiller = inpaint_distill.attach(host, config=FIXED)
    toy.call(host, image, mask)
    distiller.loss(image, mask)
    assert not distiller.plan.draws

    def refuse(device, **_):
        raise AssertionError("the random state was read")

    with monkeypatch.context() as patch:
        patch.setattr("inpaint_distill.distiller.RandomState.now", refuse)
        toy.call(host, image, mask)
    assert distiller.loss(image, mask) > 0


@pytest.mark.parametrize("draw", ["noise", "numpy"])
def test_the_numbers_of_numpy_are_left_to_other_threads_unless_the_host_draws_some(draw, monkeypatch):
    host = Drawing(DRAWS[draw])
    optimizer = torch.optim.SGD(host.parameters(), 0.0)
    distiller = inpaint_distill.attach(host, optimizer, config=FIXED)
    step(host, optimizer, distiller, 0)  # dry runs
    read = []
    monkeypatch.setattr(np.random, "get_state", lambda: read.append(True) or GET_STATE())
    step(host, optimizer, distiller, 1)
    assert distiller.plan.draws_others is bool(read) is (draw == "numpy")


@pytest.mark.parametrize("training", [True, False])
def test_a_dropout_that_is_off_draws_nothing(training):
    host = Drawing(nn.Dropout(0.4)).train(training)
    image, mask = batch()
    plan = inpaint_distill.plan(host, image, mask)
    assert plan.draws is training


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_the_users_random_stream_is_that_of_a_training_without_distillation(draw):
    weights = {key: {"weight": 0.0} for key in ("cross", "self", "attention")}
    runs = []
    for config in (None, FIXED | weights, FIXED):
        for seed in (torch.manual_seed, random.seed, np.random.seed):
            seed(5)
        host = Drawing(draw)
        optimizer = torch.optim.SGD(host.parameters(), 0.05)
        distiller = None if config is None else inpaint_distill.attach(host, optimizer, config=config)
        drawn = []
        for seed in range(3):
            step(host, optimizer, distiller, seed)
            drawn += [torch.rand(3), random.random(), np.random.rand()]  # augmentation
        runs.append((drawn, host.state_dict()))
    assert same(runs[0], runs[1])
    assert same(runs[0][0], runs[2][0])
    assert not same(runs[0][1], runs[2][1])


# -- hosts whose call does not carry the mask --------------------------------------------------------------------------


class SetMask(nn.Module):
    """Takes its mask by a method."""

    def __init__(self):
        super().__init__()
        self.inner = ZOO["concatenated"].build()
        self.mask = None

    def set_mask(self, mask):
        self.mask = mask

    def forward(self, image):
        return self.inner(image * (1 - self.mask), self.mask)


class Setting(Adapter):
    """Sets it."""

    name = "setting"
    replayable = False

    def outputs(self, host, image, hole):
        host.set_mask(hole)
        return (host(image),)


def set_and_step(host, optimizer, distiller, seed, count=2):
    image, mask = batch(seed, count=count)
    host.set_mask(mask)
    loss = (host(image) - image).abs().mean() + distiller.loss(image, mask)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def start_setting(**config):
    host = SetMask()
    optimizer = torch.optim.AdamW(host.parameters(), 1e-3)
    return host, optimizer, inpaint_distill.attach(host, optimizer, adapter=Setting(), config=config)


@pytest.mark.parametrize("shape", ["mask", "pyramid", "buffer"])
def test_a_mask_that_only_a_method_sets_is_refused_without_an_adapter(shape):
    host, (image, mask) = SetMask(), batch()
    kept = {"mask": mask, "pyramid": [1 - mask, torch.nn.functional.max_pool2d(1 - mask, 2)], "buffer": mask * 255}
    if shape == "buffer":
        del host.mask
        host.register_buffer("mask", None)
    host.set_mask(kept[shape])
    host.forward = lambda x: host.inner(x, mask)
    distiller = inpaint_distill.attach(host, config=FIXED)
    host(image * (1 - mask))
    place = "mask.0" if shape == "pyramid" else "mask"
    with pytest.raises(ReplayError, match=rf"none carries it, but {place} holds it(.|\n)*forward takes the mask"):
        distiller.loss(image, mask)


def test_a_kernel_is_not_taken_for_a_mask_that_was_set():
    host, (image, mask) = ZOO["white_holes"].build(), batch()
    host.register_buffer("blur", torch.nn.functional.adaptive_max_pool2d(mask[:1], 7))
    distiller = inpaint_distill.attach(host, config=FIXED)
    ZOO["white_holes"].call(host, image, mask)
    assert distiller.loss(image, mask) > 0


@pytest.mark.parametrize("counts", [(2, 2), (3, 2), (2, 3)], ids=["even", "smaller last", "larger last"])
@pytest.mark.parametrize("engine", ["finite_difference", "unroll"])
def test_a_look_ahead_shows_a_host_each_batch_with_its_own_mask(counts, engine):
    host, optimizer, distiller = start_setting(warmup=0, lookahead={"every": 2, "engine": engine})
    seen = []

    def note(module, args):
        seen.append((args[0].detach().clone(), module.mask.clone()))

    for seed, count in enumerate(counts):
        if seed == 1:
            optimizer.register_step_pre_hook(lambda *_: seen.clear())
            host.register_forward_pre_hook(note)
        set_and_step(host, optimizer, distiller, seed, count)
    pairs = [batch(seed, count=count) for seed, count in enumerate(counts)]
    met = [False, False]
    assert seen
    for image, mask in seen:
        (which,) = [index for index, (own, _) in enumerate(pairs) if torch.equal(own, image)]
        # The host sees the mask of the batch; its teacher, the whole image.
        assert torch.equal(mask, pairs[which][1])
        met[which] = True
    assert met == [True, True]
    assert torch.equal(host.mask, pairs[1][1])  # what the user set is still set


@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize("early", [True, False], ids=["loaded before", "loaded after"])
def test_a_run_of_such_a_host_is_resumed_bit_for_bit(tmp_path, at, early):
    settings = {"warmup": 2, "lookahead": {"every": 2}, "balance_every": 2, "ema_decay": 0.9}
    torch.manual_seed(7)
    host, optimizer, distiller = start_setting(**settings)
    for seed in range(at):
        set_and_step(host, optimizer, distiller, seed)
    distiller.save(tmp_path / "state")
    saved = copy.deepcopy((host.state_dict(), optimizer.state_dict()))
    losses = [set_and_step(host, optimizer, distiller, seed) for seed in range(at, 6)]
    through = (losses, dict(host.state_dict()), dict(distiller._terms.state_dict()), distiller._teacher.state()[0])

    torch.manual_seed(99)
    host, optimizer, distiller = start_setting(**settings)
    host.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    if early:
        distiller.load(tmp_path / "state")
    else:
        image, mask = batch()
        host.set_mask(mask)
        host(image)
        distiller.load(tmp_path / "state")
    losses = [set_and_step(host, optimizer, distiller, seed) for seed in range(at, 6)]
    resumed = (losses, dict(host.state_dict()), dict(distiller._terms.state_dict()), distiller._teacher.state()[0])
    assert same(through, resumed)
