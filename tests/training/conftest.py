"""A folder of torch hub of the suite's own, so that what a machine has of pretrained weights changes no test."""

import math

import pytest
import torch
import torchvision


@pytest.fixture(scope="session", autouse=True)
def hub(tmp_path_factory):
    """Point torch hub at an empty folder."""
    folder = tmp_path_factory.mktemp("hub")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(folder))
        patch.setattr(torch.hub, "_hub_dir", None)
        yield folder


@pytest.fixture
def alexnet(tmp_path, monkeypatch):
    """Put a checkpoint of AlexNet into torch hub's folder, with random features, and return those."""
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in torchvision.models.alexnet(weights=None).state_dict().items()}
    generator = torch.Generator().manual_seed(3)
    state = {}
    for name, shape in shapes.items():
        if name.startswith("features"):
            state[name] = torch.randn(shape, generator=generator) / math.sqrt(math.prod(shape[1:]) / 2)
        else:  # the classifier, which LPIPS leaves out: one number, expanded, is stored as one number
            state[name] = torch.zeros(1).expand(shape)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    folder = tmp_path / "home" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(state, folder / torchvision.models.AlexNet_Weights.DEFAULT.url.rpartition("/")[2])
    return {name: value for name, value in state.items() if name.startswith("features")}
