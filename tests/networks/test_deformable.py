"""The adaptive convolution against torch's own sampling, in each of its forms, up to the second derivative."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from inpaint_distill.double_backward import double_backward
from inpaint_distill.networks import deformable
from inpaint_distill.networks.deformable import adaptive_convolution

FORMS = [deformable._gathered, deformable._bagged, deformable._fused]


def arguments(batch, channels, out, size, height, width, reach=2.0):
    """Draw feature, weight, offset and kernel; no sample lies closer than a tenth to a pixel, where the slope jumps."""
    points = size * size
    whole = torch.randint(-int(reach), int(reach) + 1, (batch, 2 * points, height, width))
    offset = whole + torch.rand(whole.shape, dtype=torch.float64) * 0.8 + 0.1
    feature = torch.randn(batch, channels, height, width, dtype=torch.float64)
    weight = torch.randn(out, channels, size, size, dtype=torch.float64)
    kernel = torch.randn(batch, points, height, width, dtype=torch.float64)
    return [tensor.requires_grad_() for tensor in (feature, weight, offset, kernel)]


def by_grid_sample(feature, weight, offset, kernel):
    """Sum the formula's points one by one, each sampled by ``F.grid_sample``."""
    height, width = feature.shape[2:]
    size = weight.shape[-1]
    total = 0
    for k in range(size * size):
        y = torch.arange(height).view(-1, 1) + k // size - size // 2 + offset[:, 2 * k]
        x = torch.arange(width) + k % size - size // 2 + offset[:, 2 * k + 1]
        grid = torch.stack(((2 * x + 1) / width - 1, (2 * y + 1) / height - 1), -1)
        sample = F.grid_sample(feature, grid, align_corners=False)
        mixed = torch.einsum("oc,bchw->bohw", weight[:, :, k // size, k % size], sample)
        total = total + kernel[:, k : k + 1] * mixed
    return total


def gradients(form, tensors, seed):
    return torch.autograd.grad((form(*tensors) * seed).sum(), tensors)


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=25)
@given(
    batch=st.integers(1, 3),
    channels=st.integers(1, 4),
    out=st.integers(1, 4),
    size=st.sampled_from([1, 3, 5]),
    height=st.integers(1, 7),
    width=st.integers(1, 7),
)
def test_value_and_gradient_are_those_of_the_formula(form, batch, channels, out, size, height, width):
    tensors = arguments(batch, channels, out, size, height, width)
    expected = by_grid_sample(*tensors)
    torch.testing.assert_close(form(*tensors), expected)
    seed = torch.randn_like(expected)
    torch.testing.assert_close(gradients(form, tensors, seed), gradients(by_grid_sample, tensors, seed))


@pytest.mark.parametrize("reach", [0, 1, 9])
def test_the_forms_take_the_same_side_where_a_sample_falls_on_a_pixel(reach):
    feature, weight, offset, kernel = arguments(2, 3, 4, 3, 5, 6)
    offset = torch.randint(-reach, reach + 1, offset.shape).double().requires_grad_()
    tensors = (feature, weight, offset, kernel)
    seed = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    expected, *others = FORMS
    for form in others:
        torch.testing.assert_close(form(*tensors), expected(*tensors))
        torch.testing.assert_close(gradients(form, tensors, seed), gradients(expected, tensors, seed))


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_pixels_that_are_asked_for_are_as_if_all_were_and_the_gradient_is_theirs(share):
    tensors = arguments(2, 3, 4, 3, 5, 6)
    where = torch.rand(2, 1, 5, 6) < share
    out, whole = adaptive_convolution(*tensors, where), adaptive_convolution(*tensors)
    torch.testing.assert_close(out * where, whole * where)
    seed = torch.randn_like(whole) * where
    torch.testing.assert_close(*(torch.autograd.grad((each * seed).sum(), tensors) for each in (out, whole)))


def test_without_offsets_and_with_kernels_of_one_it_is_a_convolution():
    feature, weight, offset, kernel = arguments(2, 3, 4, 3, 5, 6)
    out = adaptive_convolution(feature, weight, torch.zeros_like(offset), torch.ones_like(kernel))
    torch.testing.assert_close(out, F.conv2d(feature, weight, padding=1))


@pytest.mark.parametrize("size", [1, 3])
def test_the_first_and_the_second_derivative_are_exact(size):
    tensors = arguments(1, 2, 2, size, 2, 3)
    with double_backward():
        assert torch.autograd.gradcheck(adaptive_convolution, tensors)
        assert torch.autograd.gradgradcheck(adaptive_convolution, tensors, fast_mode=size > 1)


@pytest.mark.parametrize("far", [1e4, -1e4, 1e30])
def test_a_sample_far_outside_is_zero(far):
    feature, weight, offset, kernel = arguments(1, 2, 2, 3, 4, 4)
    out = adaptive_convolution(feature, weight, torch.full_like(offset, far), kernel)
    assert torch.equal(out, torch.zeros_like(out))


def test_offsets_that_are_not_numbers_show_and_do_not_crash():
    feature, weight, offset, kernel = arguments(1, 2, 2, 3, 4, 4)
    assert adaptive_convolution(feature, weight, torch.full_like(offset, torch.nan), kernel).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_only_round_the_result(dtype):
    tensors = [tensor.detach().to(dtype) for tensor in arguments(1, 3, 3, 3, 5, 5)]
    expected = adaptive_convolution(*(tensor.float() for tensor in tensors))
    with torch.autocast("cpu", torch.bfloat16):
        out = adaptive_convolution(*tensors)
    assert out.dtype == dtype
    assert torch.equal(out, expected.to(dtype))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torchvision's form is taken on CUDA")
def test_cuda_takes_the_fused_form_and_within_double_backward_the_other():
    tensors = [tensor.detach().cuda().requires_grad_() for tensor in arguments(2, 3, 4, 3, 5, 6)]
    fused = adaptive_convolution(*tensors)
    with double_backward():
        gathered = adaptive_convolution(*tensors)
    torch.testing.assert_close(fused, gathered)
    seed = torch.randn_like(fused)
    slope = torch.autograd.grad((gathered * seed).sum(), tensors, create_graph=True)
    torch.testing.assert_close(slope, torch.autograd.grad((fused * seed).sum(), tensors))
    torch.autograd.grad(sum(part.square().sum() for part in slope), tensors)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there are no streams on the CPU")
def test_on_a_stream_of_its_own_it_waits_for_its_input():
    """Torchvision's kernels run on the default stream, and would read a feature that is not there yet."""
    tensors = [tensor.detach().cuda() for tensor in arguments(2, 3, 4, 3, 5, 6)]
    expected = adaptive_convolution(*tensors)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        busy = torch.randn(4000, 4000, device="cuda")
        for _ in range(20):
            busy = busy @ busy / 4000
        late = [tensor + 0 * busy[0, 0] for tensor in tensors]
        found = adaptive_convolution(*late)
    stream.synchronize()
    torch.testing.assert_close(found, expected)
