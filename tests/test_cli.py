from __future__ import annotations

import pytest

from inpaint_distill.cli import main


def test_plan_shows_the_stages_of_a_family(capsys):
    assert main(["plan", "gated-conv", "--kwargs", '{"width": 8}', "--size", "32"]) == 0
    shown = capsys.readouterr().out
    assert "refine.encoder.2" in shown
    assert "adapter 'gated-conv'" in shown


def test_plan_shows_the_stages_of_a_class_of_another_package(capsys):
    pytest.importorskip("segmentation_models_pytorch")
    kwargs = '{"encoder_name": "resnet18", "encoder_weights": null, "in_channels": 4, "classes": 3}'
    assert main(["plan", "segmentation_models_pytorch:Unet", "--kwargs", kwargs]) == 0
    shown = capsys.readouterr().out
    rows = [line.split() for line in shown.splitlines() if line.startswith("encoder")]
    assert [(row[4], row[8]) for row in rows] == [
        ("64", "2"),
        ("64", "4"),
        ("128", "8"),
        ("256", "16"),
        ("512", "32"),
    ]


def test_plan_takes_names(capsys):
    assert main(["plan", "partial-conv", "--stages", "encoder.0", "encoder.2"]) == 0
    shown = capsys.readouterr().out
    assert "encoder.2" in shown
    assert "encoder.1" not in shown


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["plan", "gated"], "gated-conv"),
        (["plan", "gated-conv", "--kwargs", "{width"], "JSON"),
        (["plan", "no_such_package:Net"], "no_such_package"),
        (["plan", "torch.nn:NoSuchClass"], "NoSuchClass"),
        (["plan", "gated-conv", "--stages", "refine.encoder.9"], "refine.encoder"),
        (["boost", "--config", "missing.yaml"], "missing.yaml"),
    ],
)
def test_a_mistake_ends_with_what_to_do_and_status_2(arguments, word, capsys):
    assert main(arguments) == 2
    shown = capsys.readouterr().err
    assert word in shown
    assert "to do:" in shown
