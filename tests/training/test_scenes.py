import torch

from inpaint_distill.training.scenes import dead_leaves


def test_a_scene_depends_on_seed_and_position_alone():
    few, many = dead_leaves(3, 24, seed=1), dead_leaves(6, 24, seed=1)
    assert torch.equal(few, many[:3])
    assert not torch.equal(few, dead_leaves(3, 24, seed=2))
    assert len(torch.unique(many.flatten(1), dim=0)) == 6


def test_scenes_are_uint8_images_that_use_the_range():
    scenes = dead_leaves(32, 33, seed=0)
    assert scenes.shape == (32, 3, 33, 33)
    assert scenes.dtype == torch.uint8
    means = scenes.float().mean(dim=(2, 3))
    assert means.std() > 15
    assert scenes.float().std(dim=(2, 3)).min() > 8


def test_neighbours_are_alike_as_in_photographs():
    scenes = dead_leaves(64, 40, seed=0).double()
    scenes -= scenes.mean(dim=(2, 3), keepdim=True)
    energy = (scenes**2).mean()
    near = (scenes[..., 1:] * scenes[..., :-1]).mean() / energy
    far = (scenes[..., 12:] * scenes[..., :-12]).mean() / energy
    assert near > 0.8
    assert 0.0 < far < near


def test_sharp_edges_and_flat_regions_are_both_present():
    scenes = dead_leaves(64, 40, seed=0).double() / 255
    steps = (scenes[..., 1:] - scenes[..., :-1]).abs()
    deviations = steps / steps.std()
    # Natural images have heavy-tailed derivatives; a Gaussian one has kurtosis 3.
    assert (deviations**4).mean() / (deviations**2).mean() ** 2 > 8
    assert (steps < 0.02).double().mean() > 0.3


def test_one_half_of_a_scene_tells_about_the_other():
    scenes = dead_leaves(200, 32, seed=0).double().mean(dim=1)
    left, right = scenes.reshape(200, 32, 2, 16).mean(dim=(1, 3)).T
    assert torch.corrcoef(torch.stack([left, right]))[0, 1] > 0.3
