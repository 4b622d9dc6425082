"""A call written down in words packs what the words say, unpacks what the host gives, and is replayed as declared."""

import pytest
import torch
from hosts import batch, make_optimizer
from hosts.base import Plain
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import inpaint_distill
from inpaint_distill import adapters
from inpaint_distill.errors import ConfigError, PlanError, ReplayError
from inpaint_distill.host.adapted import derive
from inpaint_distill.host.adapter import Adapter, Variant
from inpaint_distill.host.call import HostCall
from inpaint_distill.host.conventions import COMMON, WORDS, Convention, find_convention
from inpaint_distill.networks.fill import pull_push

IMAGE, MASK = batch(count=2)
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def by_hand(word, image, mask):
    """Write every word as a loop over the samples would."""
    ones = torch.ones_like(mask)
    emptied = torch.where(mask.bool().expand_as(image), torch.zeros_like(image), image)
    return {
        "image": emptied,
        "whole": image,
        "grey": (emptied[:, :1] + emptied[:, 1:2] + emptied[:, 2:]) / 3,
        "hole": mask,
        "hole3": torch.cat([mask, mask, mask], 1),
        "known": ones - mask,
        "known3": torch.cat([ones - mask] * 3, 1),
        "known-0.5": ones - mask - 0.5,
        "ones": ones,
        "edges": ones - ones,
        "noisy": image,
    }[word]


@pytest.mark.parametrize("word", WORDS)
def test_a_word_means_what_it_says(word):
    (packed,) = Convention(word).pack(IMAGE, MASK).args
    torch.testing.assert_close(packed, by_hand(word, IMAGE, MASK), rtol=0, atol=1e-6)


@given(st.lists(st.lists(st.sampled_from(list(WORDS)), min_size=1, max_size=4), min_size=1, max_size=3))
def test_words_are_concatenated_within_an_argument_and_the_text_says_so(arguments):
    convention = Convention(*("+".join(words) for words in arguments))
    call = convention.pack(IMAGE, MASK)
    assert not call.kwargs
    assert len(call.args) == len(arguments)
    for tensor, words in zip(call.args, arguments, strict=True):
        expected = torch.cat([by_hand(word, IMAGE, MASK) for word in words], 1)
        torch.testing.assert_close(tensor, expected, rtol=0, atol=1e-6)
    written = [words[0] if len(words) == 1 else f"cat[{', '.join(words)}]" for words in arguments]
    assert str(convention) == f"host({', '.join(written)})"


SCALES = {
    "signed": lambda image: image,
    "unit": lambda image: (image + 1) / 2,
    "imagenet": lambda image: ((image + 1) / 2 - MEAN) / STD,
    "latent": lambda image: image,
}


@pytest.mark.parametrize("scale", SCALES)
def test_pixels_go_into_the_hosts_range_and_come_back(scale):
    convention = Convention("whole", scale=scale)
    (packed,) = convention.pack(IMAGE, MASK).args
    torch.testing.assert_close(packed, SCALES[scale](IMAGE), rtol=1e-5, atol=1e-6)
    (back,) = convention.unpack(packed)
    torch.testing.assert_close(back, IMAGE, rtol=1e-5, atol=1e-5)


@given(st.sampled_from(list(SCALES)), st.sampled_from([torch.float32, torch.float64]), st.integers(0, 99))
def test_unpacking_undoes_packing_for_any_image_and_type(scale, dtype, seed):
    image = torch.rand(1, 3, 4, 5, dtype=dtype, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    convention = Convention("whole", scale=scale)
    (back,) = convention.unpack(*convention.pack(image, image[:, :1] * 0).args)
    assert back.dtype == dtype
    torch.testing.assert_close(back, image, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", ["signed", "unit"])
def test_a_white_hole_is_the_top_of_the_range(scale):
    convention = Convention("image", scale=scale, fill="white")
    (packed,) = convention.pack(IMAGE, MASK).args
    expected = torch.where(MASK.bool(), torch.ones_like(IMAGE), SCALES[scale](IMAGE))
    torch.testing.assert_close(packed, expected, rtol=1e-5, atol=1e-6)
    assert str(convention).endswith(", holes white")


@pytest.mark.parametrize("scale", SCALES)
def test_an_empty_hole_leaves_the_complete_image(scale):
    for fill in ("zero", "white", "interpolated"):
        (packed,) = Convention("image", scale=scale, fill=fill).pack(IMAGE, MASK * 0).args
        torch.testing.assert_close(packed, SCALES[scale](IMAGE), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", ["signed", "unit", "imagenet"])
def test_an_interpolated_hole_continues_the_pixels_around_it_in_the_hosts_range(scale):
    convention = Convention("image+hole", "whole", scale=scale, fill="interpolated")
    first, whole = convention.pack(IMAGE, MASK).args
    torch.testing.assert_close(first[:, :3], pull_push(whole, 1 - MASK))
    torch.testing.assert_close(first[:, :3] * (1 - MASK), whole * (1 - MASK))
    assert torch.equal(first[:, 3:], MASK)
    assert str(convention).endswith(", holes interpolated")


def test_a_convention_filled_otherwise_differs_in_nothing_else():
    whole = Convention("image+known", "hole", scale="unit", fill="white", outputs=((0,), (1,)), extra=HostCall)
    other = whole.filled("interpolated")
    assert vars(other) == {**vars(whole), "fill": "interpolated"}
    assert whole.fill == "white"


def test_a_convention_without_an_emptied_image_cannot_be_filled_otherwise():
    with pytest.raises(ConfigError, match="no emptied image among its arguments"):
        Convention("whole", "hole").filled("interpolated")
    assert Convention("grey+hole").filled("interpolated").fill == "interpolated"


def test_an_emptied_hole_is_zero_in_the_hosts_range():
    for scale in SCALES:
        (packed,) = Convention("image", scale=scale).pack(IMAGE, MASK).args
        assert not packed[MASK.bool().expand_as(packed)].any()


TEXTS = {
    "host(image)": Convention("image"),
    "host(cat[image, hole], hole)": Convention("image+hole", "hole"),
    "host(whole, hole), in [0, 1]": Convention("whole", "hole", scale="unit"),
    "host(image, known3), imagenet-normalised": Convention("image", "known3", scale="imagenet"),
    "host(cat[noisy, image, hole], ...), latents": Convention(
        "noisy+image+hole", scale="latent", extra=lambda image: HostCall((0,))
    ),
    "host(image), in [0, 1], holes white": Convention("image", scale="unit", fill="white"),
}


@pytest.mark.parametrize("text", TEXTS)
def test_a_convention_is_written_as_a_call(text):
    assert str(TEXTS[text]) == text


@pytest.mark.parametrize(
    ("arguments", "word", "near"),
    [(("imgae",), "imgae", "image"), (("image+holes",), "holes", "hole"), (("image", "known5"), "known5", "known3")],
)
def test_a_word_that_does_not_exist_is_answered_by_near_ones(arguments, word, near):
    with pytest.raises(ConfigError) as caught:
        Convention(*arguments)
    assert caught.value.asked == f"argument word {word!r}"
    assert near in caught.value.fix


def test_further_arguments_follow_and_are_made_for_the_batch():
    convention = Convention(
        "image", extra=lambda image: HostCall((torch.arange(len(image)), "label"), {"scale": image.shape[-1]})
    )
    call = convention.pack(IMAGE, MASK)
    assert torch.equal(call.args[1], torch.tensor([0, 1]))
    assert call.args[2] == "label"
    assert call.kwargs == {"scale": 32}


def test_the_restored_images_are_taken_from_where_they_are_coarse_first():
    coarse, fine = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    convention = Convention("image", outputs=(("coarse",), ("fine", 0)), scale="unit")
    found = convention.unpack({"fine": [fine, None], "coarse": coarse})
    assert torch.equal(found[0], coarse * 2 - 1)
    assert torch.equal(found[1], fine * 2 - 1)


def test_an_output_without_the_image_says_where_it_was_sought():
    with pytest.raises(ReplayError) as caught:
        Convention("image", outputs=((0,), ("fine",))).unpack((IMAGE,))
    assert "'fine'" in caught.value.asked
    assert "outputs" in caught.value.fix


@pytest.mark.parametrize("convention", COMMON[:-1], ids=str)
def test_a_common_convention_is_found_by_the_number_of_channels_and_of_arguments(convention):
    tensors = convention.pack(IMAGE, MASK).args

    class Strict(nn.Module):
        def forward(self, *planes):
            assert [plane.shape[1] for plane in planes] == [tensor.shape[1] for tensor in tensors]
            return planes[0][:, :3]

    assert find_convention(Strict(), IMAGE, MASK) is convention


def test_a_host_under_no_convention_is_told_which_were_tried():
    with pytest.raises(PlanError, match=r"host\(cat\[image, hole\]\), host\(image, hole\)(.|\n)*adapter"):
        find_convention(nn.Linear(7, 7), IMAGE, MASK)


# -- what an adapter declares ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("convention", "channels", "expected"),
    [
        (Convention("image+hole"), 3, {}),
        (Convention("image+edges+hole"), 3, {0: {3: None}}),
        (Convention("hole", "edges"), 3, {1: {0: None}}),
        (Convention("image+hole", scale="latent"), 4, {0: {0: 0, 1: 1, 2: 2, 3: 3}}),
        (
            Convention("noisy+hole+image", scale="latent"),
            4,
            {0: {0: None, 1: None, 2: None, 3: None, 5: 0, 6: 1, 7: 2, 8: 3}},
        ),
        (Convention("noisy", "grey+edges"), 3, {0: {0: None, 1: None, 2: None}, 1: {1: None}}),
    ],
    ids=str,
)
def test_what_values_cannot_tell_is_declared_by_argument_and_channel(convention, channels, expected):
    assert convention.declared(channels) == expected


class Edges(nn.Module):
    """Takes a picture, edges and holes, by position or by keyword."""

    def __init__(self):
        super().__init__()
        self.inner = Plain(5)

    def forward(self, picture, conditions=None, step=0):
        return self.inner(picture, conditions)


class Latents(nn.Module):
    """Takes noisy latents, holes and the latents of what is known as one argument."""

    def __init__(self):
        super().__init__()
        self.inner = Plain(9)
        self.inner.up.out = nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, sample, step):
        return self.inner(sample) + step


class Known(Adapter):
    """Knows both."""

    name = "known"
    restores = False
    variants = (
        Variant(source="tests", kind="Edges", has=("inner",), convention=Convention("image", "edges+hole")),
        Variant(
            source="tests",
            kind="Latents",
            has=("inner",),
            convention=Convention("noisy+hole+image", scale="latent", extra=lambda image: HostCall((0,))),
        ),
    )


def edges_and_holes():
    return torch.cat([(torch.randn_like(MASK) > 1).float(), MASK], 1)


@pytest.mark.parametrize("how", ["position", "keyword", "both"])
def test_edges_are_passed_on_however_the_host_is_called(how):
    conditions, emptied = edges_and_holes(), IMAGE * (1 - MASK)
    call = {
        "position": HostCall((emptied, conditions)),
        "keyword": HostCall((), {"conditions": conditions, "picture": emptied, "step": 3}),
        "both": HostCall((emptied,), {"conditions": conditions}),
    }[how]
    recipe = derive(Edges(), call, IMAGE, MASK, Known())
    replayed = dict(recipe.apply(call, IMAGE).tensors())
    assert list(replayed) == [path for path, _ in call.tensors()]
    picture = replayed[("picture",) if how == "keyword" else (0,)]
    held = replayed[(1,) if how == "position" else ("conditions",)]
    torch.testing.assert_close(picture, IMAGE, rtol=1e-5, atol=1e-5)
    assert torch.equal(held[:, :1], conditions[:, :1])
    assert not held[:, 1:].any()
    assert "argument 'conditions': 1 passed on + 1 mask" in recipe.describe().split("; ")


@pytest.mark.parametrize("how", ["position", "keyword"])
def test_latents_become_those_of_the_complete_image_and_noise_is_passed_on(how):
    latents = torch.randn(2, 4, 32, 32) * 3
    known = torch.nn.functional.avg_pool2d(latents, 3, 1, 1)  # a hole shows in its surroundings too
    noisy = torch.randn_like(latents)
    sample = torch.cat([noisy, MASK, known], 1)
    call = HostCall((sample, 3)) if how == "position" else HostCall((), {"step": 3, "sample": sample})
    recipe = derive(Latents(), call, latents, MASK, Known())
    ((_, replayed),) = recipe.apply(call, latents).tensors()
    assert torch.equal(replayed[:, :4], noisy)
    assert not replayed[:, 4].any()
    torch.testing.assert_close(replayed[:, 5:], latents)
    assert "4 passed on + 1 mask + 4 latent" in recipe.describe()


def test_without_the_adapter_the_same_call_cannot_be_explained():
    call = HostCall((IMAGE * (1 - MASK), edges_and_holes()))
    with pytest.raises(ReplayError, match="channel 0 of argument 'conditions'"):
        derive(Edges(), call, IMAGE, MASK, None)


@pytest.mark.parametrize("keywords", [False, True], ids=["position", "keyword"])
@pytest.mark.parametrize("planned", [False, True], ids=["first forward", "image and mask"])
def test_a_host_on_latents_with_declared_channels_trains(keywords, planned):
    host = Latents()
    optimizer = make_optimizer(host)
    latents = torch.randn(2, 4, 32, 32) * 3
    early = {"image": latents, "mask": MASK} if planned else {}
    config = {"warmup": 0, "balance": "none", "lookahead": {"engine": "off"}}
    distiller = inpaint_distill.attach(host, optimizer, adapter=Known(), config=config, **early)
    for _ in range(2):
        noise = torch.randn_like(latents)
        sample = torch.cat([latents + noise, MASK, latents * (1 - MASK)], 1)
        predicted = host(sample=sample, step=3) if keywords else host(sample, 3)
        loss = (predicted - noise).square().mean() + distiller.loss(latents, MASK)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert distiller.log["loss"] > 0
    assert distiller.detach() is host


def test_an_adapter_calls_the_host_by_its_convention_and_gives_images_back():
    class Unit(Adapter):
        name = "unit"
        variants = (
            Variant(source="tests", kind="Plain", has=("enc0",), convention=Convention("image+hole", scale="unit")),
        )

    host, adapter = Plain(4), Unit()
    with torch.no_grad():
        (restored,) = adapter.outputs(host, IMAGE, MASK)
        expected = host((IMAGE + 1) / 2 * (1 - MASK), MASK) * 2 - 1
        torch.testing.assert_close(restored, expected)
        assert torch.equal(adapter.call(host, IMAGE, MASK), restored)
    with pytest.raises(PlanError, match=r"Plain of tests(.|\n)*variants"):
        adapter.outputs(nn.Linear(1, 1), IMAGE, MASK)


def test_every_family_says_what_stands_in_an_interpolated_hole_or_that_it_cannot():
    for name, adapter in adapters.families().items():
        if name == "diffusers-inpainting-unet":
            with pytest.raises(ConfigError, match="a method 'convention' of its own"):
                adapter.interpolated()
            continue
        for variant in adapter.variants:
            if {"image", "grey"}.isdisjoint(word for argument in variant.convention.arguments for word in argument):
                with pytest.raises(ConfigError, match="no emptied image"):
                    variant.convention.filled("interpolated")
            else:
                assert variant.convention.filled("interpolated").fill == "interpolated"
        assert adapter.interpolated().fill == "interpolated"
        assert adapter.fill is None


def test_an_adapter_with_outputs_of_its_own_refuses_to_fill_holes_that_it_does_not_empty():
    class Own(Adapter):
        def outputs(self, host, image, hole):
            return (host(image * (1 - hole)),)

    with pytest.raises(ConfigError, match="a method 'outputs' of its own"):
        Own().interpolated()
