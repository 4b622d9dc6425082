"""Whether a reconstructing teacher's deep features matter."""

import pytest
import torch
from hosts import batches
from torch import nn

import inpaint_distill
from inpaint_distill import FrozenTeacher, OnlineTeacher
from inpaint_distill.errors import TeacherWarning
from inpaint_distill.host.call import HostCall
from inpaint_distill.host.stage import Stage
from inpaint_distill.teachers.quality import TeacherQuality, measure_quality


class Autoencoder(nn.Module):
    """Two levels; ``skip`` adds the input to the output."""

    def __init__(self, skip):
        super().__init__()
        self.down1 = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.down2 = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.up = nn.Sequential(nn.Upsample(scale_factor=4), nn.Conv2d(16, 3, 3, padding=1))
        self.skip = skip

    def forward(self, x):
        image = self.up(self.down2(self.down1(x).relu()).relu())
        return image + x[:, :3] if self.skip else image


def train_with_frozen(host, steps=60):
    image, mask = next(iter(batches(1)))
    teacher = FrozenTeacher(torch.cat([image for image, _ in batches(4)]), steps=steps, lr=1e-2)
    distiller = inpaint_distill.attach(host, teacher=teacher)
    host(torch.cat([image * (1 - mask), mask], dim=1))
    distiller.loss(image, mask)
    distiller.detach()
    return teacher


def test_a_teacher_that_copies_through_skips_raises_a_warning_that_names_the_remedy():
    with pytest.warns(TeacherWarning, match="teacher='ema'"):
        teacher = train_with_frozen(Autoencoder(skip=True))
    assert teacher.quality.copies_through_skips
    assert teacher.quality.bottleneck == "down2"


def test_a_teacher_without_skips_is_not_warned_of():
    teacher = train_with_frozen(Autoencoder(skip=False))
    assert not teacher.quality.copies_through_skips
    assert teacher.quality.error < 0.8 * teacher.quality.error_without_bottleneck


def test_a_teacher_that_has_learned_nothing_is_not_said_to_copy():
    assert not TeacherQuality(0.30, 0.30, 0.32, "down2").copies_through_skips
    assert TeacherQuality(0.03, 0.03, 0.32, "down2").copies_through_skips
    assert not TeacherQuality(0.03, 0.20, 0.32, "down2").copies_through_skips


def test_both_errors_are_what_the_network_gives_and_nothing_stays_on_it():
    network = Autoencoder(skip=False).eval()
    image = torch.rand(2, 3, 16, 16)
    x = torch.cat([image, torch.zeros(2, 1, 16, 16)], dim=1)
    found = measure_quality(network, HostCall((x,)), image, image, Stage(name="down2"))
    with torch.no_grad():
        whole = (network(x) - image).abs().mean()
        without = (network.up(torch.zeros(2, 16, 4, 4)) - image).abs().mean()
    flat = torch.stack([(plane - plane.mean()).abs().mean() for plane in image.flatten(0, 1)]).mean()
    assert found == TeacherQuality(float(whole), float(without), pytest.approx(float(flat)), "down2")
    assert not network.down2._forward_hooks


def test_an_online_teacher_is_measured_once_it_has_trained_for_a_while(monkeypatch):
    from inpaint_distill.teachers import reconstruction

    monkeypatch.setattr(reconstruction, "_MEASURED_AFTER", 40)
    host, teacher = Autoencoder(skip=True), OnlineTeacher(lr=1e-2)
    distiller = inpaint_distill.attach(host, teacher=teacher, lookahead="off")
    seen = []

    def train():
        for image, mask in batches(41):
            host(torch.cat([image * (1 - mask), mask], dim=1))
            distiller.loss(image, mask)
            seen.append(teacher.quality)

    with pytest.warns(TeacherWarning, match="teacher='ema'"):
        train()
    assert seen[:39] == [None] * 39
    assert seen[39] is seen[40]
    assert seen[39].copies_through_skips
