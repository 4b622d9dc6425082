from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inpaint_distill.errors import InputError
from inpaint_distill.training.evidence import energy_ratio, hole_agreement, hole_contrast, sides


def box(batch=2, size=16, corner=(4, 4), side=8):
    mask = torch.zeros(batch, 1, size, size)
    mask[:, :, corner[0] : corner[0] + side, corner[1] : corner[1] + side] = 1
    return mask


def naive_sides(mask, size):
    """Cell by cell, for a feature whose size divides the mask's."""
    hole, known = [], []
    for sample in mask[:, 0].tolist():
        step = [len(sample) // size[0], len(sample[0]) // size[1]]
        shares = {}
        for row in range(size[0]):
            for column in range(size[1]):
                values = [
                    sample[row * step[0] + i][column * step[1] + j] for i in range(step[0]) for j in range(step[1])
                ]
                shares[row, column] = sum(values) / len(values)
        inside = [cell for cell, share in shares.items() if share == 1]
        hole.append(inside or [cell for cell, share in shares.items() if share > 0.5])
        known.append([cell for cell, share in shares.items() if share == 0])
    return hole, known


def naive_ratio(feature, mask):
    hole, known = naive_sides(mask, feature.shape[2:])
    ratios = []
    for sample, inside, outside in zip(feature.double().tolist(), hole, known, strict=True):

        def mean(cells, sample=sample):
            squares = [channel[row][column] ** 2 for row, column in cells for channel in sample]
            return sum(squares) / len(squares) if squares else math.nan

        above, below = mean(inside), mean(outside)
        ratios.append(above / below if below > 0 else math.nan)
    return ratios


def naive_agreement(student, teacher, mask, ridge):
    """Fit by least squares on a system with the penalty as further rows, in numpy."""
    hole, known = naive_sides(mask, student.shape[2:])

    def rows(feature, cells):
        pairs = [(b, cell) for b, each in enumerate(cells) for cell in each]
        return np.array([feature[b, :, row, column].double().numpy() for b, (row, column) in pairs])

    own, other = rows(student, known), rows(teacher, known)
    own_mean, other_mean = own.mean(0), other.mean(0)
    own, other = own - own_mean, other - other_mean
    count = own.shape[1]
    penalty = math.sqrt(ridge * (own**2).sum() / count) * np.eye(count)
    system = np.concatenate([own, penalty])
    matrix = np.linalg.lstsq(system, np.concatenate([other, np.zeros((count, other.shape[1]))]), rcond=None)[0]
    values = []
    for index, cells in enumerate(hole):
        only = [cells if b == index else [] for b in range(len(hole))]
        if not cells:
            values.append(math.nan)
            continue
        mapped = ((rows(student, only) - own_mean) @ matrix).ravel()
        target = (rows(teacher, only) - other_mean).ravel()
        values.append(mapped @ target / (np.linalg.norm(mapped) * np.linalg.norm(target)))
    return values


@st.composite
def cases(draw):
    batch, channels, other = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 5))
    height, width, factor = draw(st.integers(1, 6)), draw(st.integers(1, 6)), draw(st.integers(1, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    blob = torch.rand(batch, 1, height, width, generator=generator) < draw(st.floats(0.1, 0.9))
    mask = blob.float().repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    flips = torch.rand(mask.shape, generator=generator) < draw(st.sampled_from([0.0, 0.05, 0.3]))
    mask = torch.where(flips, 1 - mask, mask)
    mask[:, 0, 0, 0], mask[:, 0, -1, -1] = 1, 0
    features = [torch.randn(batch, count, height, width, generator=generator) for count in (channels, other)]
    return *features, mask


@given(cases())
def test_ratio_and_contrast_are_those_of_a_loop(case):
    feature, _, mask = case
    if mask.shape[2:] == (1, 1):
        return  # one pixel cannot have two sides
    expected = torch.tensor(naive_ratio(feature, mask), dtype=torch.float64)
    torch.testing.assert_close(energy_ratio(feature, mask), expected, equal_nan=True)
    torch.testing.assert_close(hole_contrast(feature, mask), (expected - 1).abs(), equal_nan=True)


@given(cases())
def test_agreement_is_that_of_a_fit_by_least_squares(case):
    student, teacher, mask = case
    if mask.shape[2:] == (1, 1):
        return
    agreement = hole_agreement(student, teacher, mask, ridge=0.1)
    if not sides(mask, student.shape[2:])[1].any():
        assert agreement.isnan().all()
        return
    assert ((agreement.abs() <= 1 + 1e-9) | agreement.isnan()).all()
    _, known = naive_sides(mask, student.shape[2:])
    if sum(map(len, known)) < 2:
        return  # one cell minus its own mean: nothing is fitted
    expected = torch.tensor(naive_agreement(student, teacher, mask, 0.1), dtype=torch.float64)
    torch.testing.assert_close(agreement, expected, rtol=1e-6, atol=1e-6, equal_nan=True)


@given(cases())
def test_a_cell_is_on_one_side_at_most(case):
    feature, _, mask = case
    if mask.shape[2:] == (1, 1):
        return
    hole, known = sides(mask, feature.shape[2:])
    assert not (hole & known).any()


def test_a_hole_that_does_not_show_has_no_contrast():
    assert hole_contrast(torch.full((2, 3, 8, 8), 0.7), box()).tolist() == [0, 0]


def test_a_darker_and_a_brighter_hole_are_told_apart_by_the_ratio():
    mask = box()
    cells = sides(mask, (8, 8))[0]
    dark, bright = (torch.where(cells, value, torch.ones(2, 3, 8, 8)) for value in (0.5, 1.5))
    assert energy_ratio(dark, mask).tolist() == [0.25, 0.25]
    assert energy_ratio(bright, mask).tolist() == [2.25, 2.25]
    assert hole_contrast(dark, mask).tolist() == [0.75, 0.75]


@pytest.mark.parametrize("scale", [1e-12, 1e6])
def test_the_scale_of_a_feature_does_not_matter(scale):
    generator = torch.Generator().manual_seed(1)
    student, teacher = (torch.randn(2, 4, 8, 8, generator=generator).double() for _ in range(2))
    mask = box()
    torch.testing.assert_close(hole_contrast(student * scale, mask), hole_contrast(student, mask))
    torch.testing.assert_close(hole_agreement(student * scale, teacher, mask), hole_agreement(student, teacher, mask))
    torch.testing.assert_close(hole_agreement(student, teacher * scale, mask), hole_agreement(student, teacher, mask))


def test_a_partly_covered_cell_counts_to_neither_side():
    mask = box(
        1, size=16, corner=(4, 5), side=8
    )  # columns 5 to 12: at stride 4, the cells of columns 1 and 3 are partly hole
    hole, known = sides(mask, (4, 4))
    assert hole[0, 0].nonzero().tolist() == [[1, 2], [2, 2]]
    assert known[0, 0, :, 0].all()
    assert known[0, 0, [0, 3]].all()
    assert known.sum() == 4 + 4 + 2
    feature = torch.ones(1, 2, 4, 4)
    feature[..., 1:3, [1, 3]] = 100
    assert hole_contrast(feature, mask).tolist() == [0]


def test_a_hole_thinner_than_a_cell_is_where_most_of_a_cell_is_hole():
    mask = torch.zeros(2, 1, 16, 16)
    mask[0, :, :, 0:3] = 1  # three of the four columns of a cell
    mask[1, :, :, 0:2] = 1  # half a cell: no side to be on
    hole, _ = sides(mask, (4, 4))
    assert hole[0, 0].nonzero()[:, 1].tolist() == [0] * 4
    assert not hole[1].any()
    ratio = energy_ratio(torch.ones(2, 1, 4, 4), mask)
    assert ratio[0] == 1
    assert ratio[1].isnan()


def test_any_linear_image_of_the_teacher_agrees_with_it():
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(4, 3, 16, 16, generator=generator, dtype=torch.float64)
    matrix = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    student = torch.einsum("oc,bchw->bohw", matrix, teacher) + 5
    assert hole_agreement(student, teacher, box(4), ridge=1e-9).min() > 1 - 1e-9


def test_a_student_that_knows_nothing_in_the_hole_does_not_agree():
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(8, 4, 16, 16, generator=generator, dtype=torch.float64)
    mask = box(8)
    cells = sides(mask, (16, 16))[0]
    noise = torch.randn(teacher.shape, generator=generator, dtype=torch.float64)
    assert hole_agreement(torch.where(cells, noise, teacher), teacher, mask).abs().max() < 0.25
    mean = teacher.movedim(1, -1)[~cells[:, 0]].mean(0)[None, :, None, None]
    assert hole_agreement(torch.where(cells, mean, teacher), teacher, mask).tolist() == [0] * 8


def test_a_feature_that_does_not_vary_agrees_with_nothing():
    generator = torch.Generator().manual_seed(0)
    varied = torch.randn(2, 3, 8, 8, generator=generator)
    assert hole_agreement(torch.zeros(2, 2, 8, 8), varied, box()).tolist() == [0, 0]
    assert hole_agreement(varied, torch.zeros(2, 2, 8, 8), box()).tolist() == [0, 0]


def test_nothing_outside_makes_a_ratio_undefined():
    mask = box()
    feature = torch.where(sides(mask, (8, 8))[0], 1.0, torch.zeros(2, 3, 8, 8))
    assert energy_ratio(feature, mask).isnan().all()


def test_no_gradient_is_kept():
    feature = torch.randn(2, 3, 8, 8, requires_grad=True)
    assert not hole_contrast(feature, box()).requires_grad
    assert not hole_agreement(feature, feature * 2, box()).requires_grad


@pytest.mark.parametrize(
    ("mask", "found"),
    [
        (torch.cat([box(1), torch.zeros(1, 1, 16, 16)]), "image 1 of the batch has no hole"),
        (torch.cat([torch.ones(1, 1, 16, 16), box(1)]), "image 0 of the batch has no known pixel"),
        (box() * 0.5, "values other than 0 and 1"),
        (box().expand(-1, 3, -1, -1), "shape"),
        (box(3), "mask (3, 1, 16, 16)"),
    ],
)
def test_a_mask_that_cannot_be_used_is_an_error(mask, found):
    feature = torch.ones(2, 3, 8, 8)
    for measure in (lambda: hole_contrast(feature, mask), lambda: hole_agreement(feature, feature, mask)):
        with pytest.raises(InputError) as error:
            measure()
        assert found in error.value.found


def test_features_of_two_sizes_and_a_missing_penalty_are_errors():
    with pytest.raises(InputError, match="level by level"):
        hole_agreement(torch.ones(2, 3, 8, 8), torch.ones(2, 3, 4, 4), box())
    with pytest.raises(InputError, match="ridge = 0"):
        hole_agreement(torch.ones(2, 3, 8, 8), torch.ones(2, 3, 8, 8), box(), ridge=0)
