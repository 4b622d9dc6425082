"""Weights of a person's own that a study starts from: the files training loops leave, and what is told of others."""

import json

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import nn

from inpaint_distill import save_host
from inpaint_distill.adapters import get
from inpaint_distill.cli import main
from inpaint_distill.errors import StateError
from inpaint_distill.training.start import load_weights

OPTIONS = {"width": 4, "levels": 2}


def build(seed=0, **options):
    torch.manual_seed(seed)
    return get("partial-conv").build(**{**OPTIONS, **options})


def as_safetensors(host, path):
    save_file(host.state_dict(), path)


def as_weights(host, path):
    torch.save(host.state_dict(), path)


def as_checkpoint(host, path):
    optimizer = torch.optim.Adam(host.parameters())
    discriminator = nn.Conv2d(3, 1, 3)
    content = {"epoch": 3, "generator": host.state_dict(), "discriminator": discriminator.state_dict()}
    torch.save({**content, "optimizer": optimizer.state_dict()}, path)


def as_wrapped(host, path):
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in host.state_dict().items()}}, path)


def as_compiled(host, path):
    torch.save({f"_orig_mod.{name}": tensor for name, tensor in host.state_dict().items()}, path)


def as_nested(host, path):
    torch.save({"model": {"net": {"generator": host.state_dict()}}, "lr": 0.1}, path)


WAYS = {
    "ours.safetensors": save_host,
    "plain.safetensors": as_safetensors,
    "weights.pt": as_weights,
    "checkpoint.pth": as_checkpoint,
    "ddp.tar": as_wrapped,
    "compiled.pt": as_compiled,
    "nested.ckpt": as_nested,
}


@pytest.mark.parametrize("name", WAYS)
def test_the_weights_are_found_in_every_file_that_training_leaves(name, tmp_path):
    trained, host = build(1), build(2)
    WAYS[name](trained, tmp_path / name)
    load_weights(host, tmp_path / name)
    for key, tensor in trained.state_dict().items():
        assert torch.equal(host.state_dict()[key], tensor)


def test_half_precision_is_loaded_into_the_hosts_own(tmp_path):
    as_weights(build(1).half(), tmp_path / "half.pt")
    host = build(2)
    load_weights(host, tmp_path / "half.pt")
    assert {parameter.dtype for parameter in host.parameters()} == {torch.float32}


class Args:
    """What some loops keep beside their weights."""


def averaged(host, path):
    torch.save({"generator": host.state_dict(), "generator_ema": host.state_dict()}, path)


@pytest.mark.parametrize(
    ("write", "found"),
    [
        (
            lambda host, path: as_checkpoint(build(width=8), path),
            r"generator of another host: .* instead of .*and \d+ more",
        ),
        (lambda host, path: as_weights(build(levels=3), path), "weights of another host: .* and 14 more"),
        (lambda host, path: as_weights(build(levels=1), path), "weights of another host: .* is missing"),
        (averaged, "several that fit: generator, generator_ema"),
        (lambda host, path: torch.save({"epoch": 3}, path), "no weights"),
        (
            lambda host, path: torch.save({"args": Args(), "net": host.state_dict()}, path),
            "test_start.Args in it, whose code would have to run",
        ),
        (lambda host, path: path.write_bytes(b"not a file of torch"), "no weights"),
        (lambda host, path: None, "No such file"),
    ],
    ids=["wider", "deeper", "shallower", "two", "none", "pickled", "noise", "absent"],
)
def test_what_does_not_fit_is_told_and_leaves_the_host_as_it_was(write, found, tmp_path):
    host = build(2)
    before = {name: tensor.clone() for name, tensor in host.state_dict().items()}
    write(build(1), tmp_path / "weights.pt")
    with pytest.raises(StateError, match=found) as error:
        load_weights(host, tmp_path / "weights.pt")
    assert "weights.pt" in error.value.asked
    assert all(torch.equal(before[name], tensor) for name, tensor in host.state_dict().items())


def test_every_arm_of_a_study_goes_on_from_a_file_of_ones_own(tmp_path, capsys):
    torch.manual_seed(7)
    as_checkpoint(get("gated-conv").build(width=4), tmp_path / "mine.pth")  # which has no statistics of batches
    config, out = tmp_path / "study.yaml", tmp_path / "out"
    values = {"host": "gated-conv", "host_options": {"width": 4}, "size": 32, "batch": 2, "steps": 3, "seeds": [0, 1]}
    values |= {"lrs": [1e-12], "evaluations": 1, "train_images": 12, "eval_images": 8, "jobs": 1, "fade": None}
    config.write_text(yaml.safe_dump(values))
    command = ["boost", "--config", str(config), "--start", str(tmp_path / "mine.pth"), "--out", str(out)]
    assert main(command) == 0
    result = json.loads((out / "result.json").read_text())
    assert result["host"]["start"]["file"] == str(tmp_path / "mine.pth")
    ends = [run["scores"]["hole_psnr"]["all"] for run in result["runs"]]
    assert ends == pytest.approx([result["host"]["start"]["hole_psnr"]] * 6, abs=1e-4), "a rate that changes nothing"
    assert f"Every arm starts from {tmp_path / 'mine.pth'}" in (out / "report.html").read_text()
    (tmp_path / "mine.pth").unlink()
    command[command.index(str(out))] = str(tmp_path / "other")
    assert main(command) == 2
    assert "give the path of an existing file" in capsys.readouterr().err
