"""The adapter that ``inpaint-distill plan`` prints is code: as it stands it says what the plan said."""

import importlib
import re
import sys
import textwrap

import pytest
import torch
from hosts import batch, make_optimizer

import inpaint_distill
from inpaint_distill.cli import main

MODULE = "hosts_of_a_user"
CODE = '''
    """A user's own networks."""

    import torch
    from torch import nn
    from torch.nn import functional as F


    def block(inputs, outputs, stride=1):
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.LeakyReLU(0.1))


    class Filler(nn.Module):
        """Image and hole concatenated; an activation that all stages share."""

        def __init__(self, width=8, inputs=4):
            super().__init__()
            self.enc0, self.enc1, self.enc2 = block(inputs, width), block(width, 12, 2), block(12, 16, 2)
            self.dec = nn.ConvTranspose2d(16, 3, 4, 4)

        def forward(self, x):
            return self.dec(self.enc2(self.enc1(self.enc0(x))))


    class HTTPFiller_v2(Filler):
        """Two arguments, two images and a mask come out."""

        def forward(self, image, hole):
            fine = super().forward(torch.cat([image, hole], 1))
            return {"coarse": fine * 0.5, "known": (1 - hole).expand_as(fine), "fine": [fine]}


    class Shared(nn.Module):
        """One activation serves every stage, and is overwritten afterwards."""

        def __init__(self):
            super().__init__()
            sizes = ((5, 8, 1), (8, 12, 2), (12, 16, 2))
            self.convs = nn.ModuleList([nn.Conv2d(i, o, 3, stride, 1) for i, o, stride in sizes])
            self.act, self.dec = nn.ELU(), nn.ConvTranspose2d(16, 3, 4, 4)

        def forward(self, x):
            for conv in self.convs:
                x = self.act(conv(x))
            return self.dec(x.add_(0.5))


    class Pairs(Filler):
        """Stages put out a feature and where it is known."""

        class Pair(nn.Module):
            def __init__(self, inner):
                super().__init__()
                self.inner = inner

            def forward(self, pair):
                feature = self.inner(pair[0])
                return feature, F.interpolate(pair[1], feature.shape[2:])

        def __init__(self):
            super().__init__(inputs=3)
            self.enc0, self.enc1, self.enc2 = (self.Pair(each) for each in (self.enc0, self.enc1, self.enc2))

        def forward(self, image, known):
            feature, known = self.enc2(self.enc1(self.enc0((image, known))))
            return self.dec(feature), F.interpolate(known, scale_factor=4)


    class Attentive(Filler):
        """Attends in a layer that runs twice."""

        class Attend(nn.Module):
            def __init__(self):
                super().__init__()
                self.keys = nn.Conv2d(16, 16, 1)

            def forward(self, x):
                tokens = self.keys(x).flatten(2).mT
                return x + ((tokens @ tokens.mT).softmax(-1) @ tokens).mT.view_as(x)

        def __init__(self):
            super().__init__()
            self.attend = self.Attend()

        def forward(self, x):
            return self.dec(self.attend(self.attend(self.enc2(self.enc1(self.enc0(x))))))


    class Recurrent(Filler):
        """Takes words, and nothing that could be guessed."""

        def forward(self, sample, words, *, steps=3):
            return super().forward(torch.cat([sample, words["mask"]], 1))
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Put a file of the user's into the current folder."""
    (tmp_path / f"{MODULE}.py").write_text(textwrap.dedent(CODE), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    yield MODULE
    sys.modules.pop(MODULE, None)
    importlib.invalidate_caches()


def printed(own, kind, capsys, *arguments):
    """Return the exit status, and what is printed before and after the line that announces the code."""
    importlib.invalidate_caches()
    status = main(["plan", f"{own}:{kind}", "--size", "32", *arguments])
    shown = capsys.readouterr().out
    before, _, code = re.split(r"(An adapter (?:that says the same|to be filled in):\n\n)", shown)
    return status, before, code


def adapter_of(code, kind):
    """Execute printed code as it is."""
    space = {"__name__": "printed"}
    exec(compile(code, "<printed>", "exec"), space)
    return space[f"{kind}Adapter"]()


@pytest.mark.parametrize("kind", ["Filler", "HTTPFiller_v2", "Shared", "Pairs", "Attentive"])
def test_the_printed_adapter_matches_plans_and_calls_alike(own, kind, capsys):
    status, shown, code = printed(own, kind, capsys)
    assert status == 0
    adapter = adapter_of(code, kind)
    host = getattr(importlib.import_module(own), kind)()
    assert adapter.matches(host)
    assert not adapter.matches(torch.nn.Linear(1, 1))

    image, mask = batch()
    found = inpaint_distill.plan(host, image, mask)
    by_adapter = inpaint_distill.plan(host, image, mask, adapter=adapter)
    assert by_adapter.stages == found.stages
    assert by_adapter.attention == found.attention
    assert by_adapter.reason == f"named by adapter {adapter.name!r}"
    assert all(stage.name in shown for stage in found.stages)

    (variant,) = adapter.variants
    outputs = adapter.outputs(host, image, mask)
    assert torch.equal(outputs[-1], variant.convention.unpack(variant.convention.pack(image, mask).run(host))[-1])
    assert all(each.shape == image.shape for each in outputs)


def test_the_printed_adapter_gives_the_hosts_own_images_coarse_before_fine(own, capsys):
    _, _, code = printed(own, "HTTPFiller_v2", capsys)
    adapter = adapter_of(code, "HTTPFiller_v2")
    host = importlib.import_module(own).HTTPFiller_v2()
    image, mask = batch()
    direct = host(image * (1 - mask), mask)
    outputs = adapter.outputs(host, image, mask)
    assert len(outputs) == 2  # the mask among the outputs is none
    assert torch.equal(outputs[0], direct["coarse"])
    assert torch.equal(outputs[1], direct["fine"][0])


def test_a_host_trains_with_the_printed_adapter(own, capsys):
    _, _, code = printed(own, "Attentive", capsys)
    host = importlib.import_module(own).Attentive()
    optimizer = make_optimizer(host)
    distiller = inpaint_distill.attach(host, optimizer, adapter=adapter_of(code, "Attentive"))
    for seed in range(2):
        image, mask = batch(seed)
        loss = (host(torch.cat([image * (1 - mask), mask], 1)) - image).abs().mean() + distiller.loss(image, mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert [stage.name for stage in distiller.plan.stages] == ["enc0", "enc1", "enc2"]
    assert [(site.name, site.call) for site in distiller.plan.attention] == [("attend", 1)]
    assert distiller.detach() is host


def test_the_stages_that_were_named_are_those_that_are_printed(own, capsys):
    _, _, code = printed(own, "Filler", capsys, "--stages", "enc1", "enc2", "--kwargs", '{"width": 10}')
    assert adapter_of(code, "Filler").stages(importlib.import_module(own).Filler(10)) == ("enc1", "enc2")


@pytest.mark.parametrize(("kind", "name"), [("Filler", "filler"), ("Attentive", "attentive")])
def test_the_code_says_how_it_is_used(own, kind, name, capsys):
    _, _, code = printed(own, kind, capsys)
    assert f"adapter={kind}Adapter()" in code
    assert f'{name} = "your_package.your_module:{kind}Adapter"' in code
    assert adapter_of(code, kind).name == name
    assert adapter_of(code, kind).variants[0].source == own


def test_a_host_under_no_convention_gets_code_to_be_filled_in_and_status_2(own, capsys):
    status, shown, code = printed(own, "Recurrent", capsys)
    assert status == 2
    assert "it runs under none of" in shown
    assert "forward(sample, words, *, steps=3)" in code
    adapter = adapter_of(code, "Recurrent")
    host = importlib.import_module(own).Recurrent()
    assert adapter.matches(host)
    assert not adapter.matches(importlib.import_module(own).Filler())
    assert adapter.replayable is False
    assert "restored = host(...)" in code


def test_the_code_to_be_filled_in_works_once_it_is(own, capsys):
    _, _, code = printed(own, "Recurrent", capsys)
    adapter = adapter_of(code.replace("host(...)", 'host(image * (1 - hole), {"mask": hole})'), "Recurrent")
    host = importlib.import_module(own).Recurrent()
    image, mask = batch()
    plan = inpaint_distill.plan(host, image, mask, adapter=adapter)
    assert [stage.name for stage in plan.stages] == ["enc0", "enc1", "enc2"]
