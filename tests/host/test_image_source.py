"""The emptied image among a host's arguments: found by its values, where the host reads its holes; and rewritten."""

import dataclasses
import math

import pytest
import torch
from hosts import ZOO, batch, footprint
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from inpaint_distill.errors import CaptureError
from inpaint_distill.host.call import HostCall
from inpaint_distill.host.image_source import ImageSource, find_image

PLAIN = ZOO["separate"]


class Reads(nn.Module):
    """Puts out what it was given, in whatever structure."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, *args, **kwargs):
        return [self.scale * each for _, each in HostCall(args, kwargs).tensors()]


class Empties(Reads):
    """Looks at known pixels alone."""

    def forward(self, image, mask):
        return self.scale * image * (1 - mask), mask


def find(host, *args, **kwargs):
    return find_image(host, HostCall(args, kwargs)).source


def parts(seed=0):
    image, mask = batch(seed)
    return image * (1 - mask), mask, image


@pytest.mark.parametrize("fill", [0.0, 1.0, -0.3])
@pytest.mark.parametrize("signs", [lambda m: m, lambda m: 1 - m, lambda m: 0.5 - m, lambda m: m.repeat(1, 3, 1, 1)])
def test_it_is_found_whatever_fills_the_hole_and_however_that_is_marked(fill, signs):
    emptied, mask, _ = parts()
    host = Reads()
    found = find(host, emptied + fill * mask, signs(mask))
    assert (found.path, found.channels) == ((0,), (0, 1, 2))
    found = find(host, torch.cat([signs(mask), torch.ones_like(mask), emptied + fill * mask], 1))
    count = signs(mask).shape[1] + 1
    assert found.channels == (count, count + 1, count + 2)


def test_it_is_found_in_a_dictionary_by_keyword_and_under_its_other_name():
    emptied, mask, _ = parts()
    found = find(Reads(), batch={"holes": mask, "picture": emptied})
    assert found.path == ("batch", "picture")
    source = ImageSource(path=(0,), channels=(0, 1, 2), also="picture")
    assert source.find((), {"picture": emptied}) == (("picture",), emptied)
    assert str(source) == "channels 0, 1, 2 of argument 'picture'"
    assert str(dataclasses.replace(source, also=None)) == "channels 0, 1, 2 of positional argument 0"
    with pytest.raises(CaptureError, match="the image in argument 0") as caught:
        source.find((), {"x": emptied})
    assert "no keywords" not in caught.value.found


def test_latents_and_grey_images_count_as_well():
    emptied, mask, _ = parts()
    assert find(Reads(), emptied.mean(1, keepdim=True), mask).channels == (0,)
    latents = torch.cat([emptied, emptied[:, :1] - 2 * (1 - mask)], 1)
    assert find(Reads(), latents, mask).channels == (0, 1, 2, 3)


def test_no_image_is_found_where_there_is_none_or_where_it_is_not_emptied():
    emptied, mask, image = parts()
    noise = torch.randn_like(image)
    for args in ((image, mask), (emptied,), (mask,), (), (noise, mask), (torch.zeros_like(image), mask), (5, "a")):
        assert find(Reads(), *args) is None
    assert find(Reads(), image * (1 - mask) + noise * mask, mask) is None
    assert find(Reads(), emptied, torch.zeros_like(mask)) is None
    assert find(Reads(), emptied[:, :, ::2, ::2], mask) is None
    assert find(Reads(), (127 * emptied).to(torch.uint8), mask) is None, "it takes no gradient"
    assert "no argument" in find_image(Reads(), HostCall((image, mask))).reason


def test_a_host_that_empties_its_image_itself_does_not_read_the_holes():
    emptied, mask, _ = parts()
    assert find(Empties(), emptied, mask) is None
    assert find(Reads(), emptied, mask) is not None
    reason = find_image(Empties(), HostCall((emptied, mask))).reason
    assert reason == "the host does not read what stands in the hole of channels 0, 1, 2 of argument 'image'"


class GivesBack(Empties):
    def forward(self, image, mask):
        return super().forward(image, mask)[0], image


class Drifts(Empties):
    """Puts out something else each time, whatever torch's generator is set to."""

    calls = 0

    def forward(self, image, mask):
        type(self).calls += 1
        return super().forward(image, mask)[0] + 1e-3 * math.sin(self.calls)


class Blows(Empties):
    def forward(self, image, mask):
        return super().forward(image, mask)[0] + torch.where(mask > 0, torch.nan, 0)


@pytest.mark.parametrize("kind", [GivesBack, Drifts, Blows])
def test_what_differs_without_the_hole_having_a_part_in_it_says_nothing(kind):
    emptied, mask, _ = parts()
    assert find(kind(), emptied, mask) is None


def test_of_several_the_one_of_most_channels_that_is_read():
    emptied, mask, _ = parts()
    noise = torch.randn_like(mask)
    assert find(Reads(), torch.cat([1 - mask, emptied, noise * mask], 1)).channels == (1, 2, 3)
    assert find(Reads(), noise * mask, emptied, mask).path == (1,)
    assert find(Reads(), emptied.mean(1, keepdim=True), emptied, mask).path == (1,)

    class Second(Reads):
        def forward(self, first, second, mask):
            return self.scale * second

    assert find(Second(), emptied, emptied.clone(), mask).path == (1,)


def test_one_mask_for_all_and_one_without_channel_mark_a_hole():
    emptied, mask, image = parts()
    one = mask[:1]
    assert find(Reads(), image * (1 - one), one).path == (0,)
    assert find(Reads(), emptied, mask[:, 0]).path == (0,)


@pytest.mark.parametrize("name", ["separate", "batch_norm", "noisy", "dict_output", "silent_modes", "partial_conv"])
def test_a_host_is_as_before(name):
    toy = ZOO[name]
    host = toy.build()
    calls = []
    handle = host.register_forward_pre_hook(
        lambda m, args, kwargs: calls.append(HostCall.of(args, kwargs)), with_kwargs=True
    )
    with torch.no_grad():
        toy.call(host, *batch())
    handle.remove()
    before, state = footprint(host), torch.random.get_rng_state()
    found = find_image(host, calls[0])
    assert (found.source is None) == bool(found.reason) == (name == "partial_conv")
    assert footprint(host) == before
    assert torch.equal(state, torch.random.get_rng_state())


@given(
    channels=st.lists(st.integers(0, 6), min_size=1, max_size=4, unique=True).map(sorted).map(tuple),
    key=st.sampled_from([0, 1, "x"]),
    inner=st.sampled_from([(), ("a",), ("b", 0)]),
)
def test_rewriting_changes_its_channels_alone_and_nothing_in_place(channels, key, inner):
    tensor, other = torch.randn(2, 7, 4, 4), torch.randn(2, 7, 4, 4)
    value = {(): tensor, ("a",): {"a": tensor, "b": other}, ("b", 0): {"b": (tensor, 3, other)}}[inner]
    args = tuple(value if i == key else other for i in range(2))
    kwargs = {"x": value if key == "x" else other}
    kept = tensor.clone()
    source = ImageSource(path=(key, *inner), channels=channels)
    path, changed = source.find(*source.rewrite(args, kwargs, lambda image: image + 1))
    assert path == (key, *inner)
    assert torch.equal(tensor, kept)
    inside = torch.zeros(7, dtype=torch.bool).index_fill(0, torch.tensor(channels), True)
    assert torch.equal(changed[:, inside], tensor[:, inside] + 1)
    assert torch.equal(changed[:, ~inside], tensor[:, ~inside])
    again = dataclasses.asdict(source)
    assert ImageSource(**again) == source
