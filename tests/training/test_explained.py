"""What a host gives back of brightness and colours, and whether it says when a host paints grey."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inpaint_distill.training.explained import (
    explained,
    explained_markdown,
    explained_sentences,
    summarise_explained,
)


def images(seed=0, count=6):
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(count, 3, 8, 8, generator=generator) * 1.6 - 0.8
    hole = (torch.rand(count, 1, 8, 8, generator=generator) > 0.6).float()
    return image, hole


def grey(image):
    """Keep the luma of BT.601."""
    return (image * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True).expand_as(image)


@given(seed=st.integers(0, 99))
def test_a_grey_image_explains_all_of_the_luma_and_none_of_the_chroma(seed):
    image, hole = images(seed)
    for shares in explained(grey(image), image, hole).values():
        assert shares["luma"] == pytest.approx(1, abs=1e-6)
        assert shares["chroma"] == pytest.approx(0, abs=0.1), "but for the mean, which is nearly grey here"


@given(seed=st.integers(0, 99))
def test_one_colour_everywhere_explains_nothing_and_the_mean_exactly_nothing(seed):
    image, hole = images(seed)
    known = (image * (1 - hole)).sum((0, 2, 3), keepdim=True) / (1 - hole).sum()
    shares = explained(known.expand_as(image), image, hole)
    assert shares["known"] == {"luma": pytest.approx(0, abs=1e-6), "chroma": pytest.approx(0, abs=1e-6)}
    assert max(shares["hole"].values()) <= 0


def test_each_side_is_measured_by_itself_and_values_out_of_range_are_clamped():
    image, hole = images()
    restored = torch.where(hole.bool(), image, 0.5 * image)
    shares = explained(restored, image, hole)
    assert shares["hole"] == {"luma": 1.0, "chroma": 1.0}
    assert 0.5 < shares["known"]["luma"] < 0.8  # 1 - 0.5^2, less what halving the mean costs
    extreme = image.sign()
    assert explained(9 * extreme, extreme, hole)["known"] == {"luma": 1.0, "chroma": 1.0}


def test_of_photographs_without_colour_no_share_of_it_is_told():
    image, hole = images()
    shares = explained(image, grey(image), hole)
    assert shares["known"]["chroma"] is None
    assert shares["known"]["luma"] is not None


def test_networks_and_seeds_are_put_together():
    image, hole = images()
    seeds = [
        {"bare": explained(factor * image, image, hole), "x": explained(image, image, hole)} for factor in (1, 0.5)
    ]
    found = summarise_explained(seeds)["known"]["luma"]
    assert found["seeds"]["x"] == [1, 1]
    assert found["mean"]["bare"] == pytest.approx((1 + seeds[1]["bare"]["known"]["luma"]) / 2)
    colourless = summarise_explained([{"bare": explained(image, grey(image), hole)}])
    assert colourless["hole"]["chroma"] == {"mean": {"bare": None}, "seeds": {"bare": [None]}}


def summary(bare, distilled):
    """Return shares as of two seeds and two networks, the chroma of known pixels as given."""

    def both(first, second):
        mean = {
            "bare": None if None in first else sum(first) / 2,
            "distilled": None if None in second else sum(second) / 2,
        }
        return {"mean": mean, "seeds": {"bare": first, "distilled": second}}

    full = both([0.9, 0.9], [0.95, 0.95])
    return {"known": {"luma": full, "chroma": both(bare, distilled)}, "hole": {"luma": full, "chroma": full}}


def test_a_host_that_paints_grey_is_named_with_its_seeds():
    (alone,) = explained_sentences(summary([0.0, -0.02], [0.5, 0.6]), "distilled")
    assert alone.startswith("The host alone paints grey with 2 of 2 seeds (it explains 0.00, -0.02 of the chroma")
    (with_it,) = explained_sentences(summary([0.5, 0.6], [0.03, 0.6]), "distilled")
    assert with_it.startswith("The host + distillation paints grey with 1 of 2 seeds")
    assert explained_sentences(summary([0.5, 0.6], [0.5, 0.6]), "distilled") == []
    assert explained_sentences(summary([None, None], [None, None]), "distilled") == []


def test_the_table_has_a_row_for_each_side_and_part():
    text = explained_markdown(summary([0.0, 0.1], [None, None]), "distilled")
    assert "| known | chroma | 0.050 | n/a |" in text
    assert "| hole | luma | 0.900 | 0.950 |" in text
