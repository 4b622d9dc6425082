"""Feature taps: what they keep, how they go, and what a copy of a tapped module carries."""

import copy
import gc
import io
import pickle
import subprocess
import sys

import pytest
import torch
from hosts import ZOO, batch, footprint
from hosts.base import Down, Plain
from torch import nn

from inpaint_distill.errors import CaptureError, PlanError
from inpaint_distill.host.attention import AttentionSite
from inpaint_distill.host.stage import Stage
from inpaint_distill.host.taps import FeatureTaps, MethodHook, StopForward
from inpaint_distill.host.watch import Watch


def kept(host, stages, *args):
    taps = FeatureTaps(host, stages)
    taps.begin()
    host(*args)
    features = taps.take()
    taps.remove()
    return features


def x(channels=4, size=16):
    return torch.randn(2, channels, size, size)


def test_the_features_come_in_the_order_of_the_stages_and_carry_the_graph():
    host, value = Plain(4), x()
    first, second = kept(host, [Stage(name="enc2"), Stage(name="enc0")], value)
    shallow = host.enc0(value)
    assert torch.equal(second, shallow)
    assert torch.equal(first, host.enc2(host.enc1(shallow)))
    assert first.requires_grad


def test_the_nth_call_of_a_module_is_kept():
    host = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Tanh())
    host.append(host[0])
    host.append(host[1])
    value = x()
    stages = [Stage(name="1", call=1), Stage(name="1", call=0), Stage(name="0", call=1)]
    last, first, middle = kept(host, stages, value)
    assert torch.equal(first, host[1](host[0](value)))
    assert torch.equal(middle, host[0](first))
    assert torch.equal(last, host[1](middle))


def test_a_module_that_hangs_under_two_names_can_be_named_by_either():
    host = Plain(4)
    host.alias = host.enc1
    value = x()
    first, second = kept(host, [Stage(name="alias"), Stage(name="enc1")], value)
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("output", "select"),
    [
        (lambda t: (t, None), (0,)),
        (lambda t: (0, [t]), (1, 0)),
        (lambda t: {"feature": {"map": t}}, ("feature", "map")),
    ],
)
def test_a_selector_takes_the_member_it_names(output, select):
    class Block(nn.Module):
        def forward(self, value):
            return output(value * 2)

    value = x()
    (feature,) = kept(nn.Sequential(Block()), [Stage(name="0", select=select)], value)
    assert torch.equal(feature, value * 2)


@pytest.mark.parametrize("select", [(1,), ("key",), (0, 3)])
def test_a_selector_that_leads_nowhere_is_an_error_that_names_the_stage(select):
    class Block(nn.Module):
        def forward(self, value):
            return (value,)

    with pytest.raises(CaptureError, match="stage 0"):
        kept(nn.Sequential(Block()), [Stage(name="0", select=select)], x())


def test_a_member_that_is_no_tensor_is_an_error():
    class Block(nn.Module):
        def forward(self, value):
            return value, 0

    with pytest.raises(CaptureError, match="int instead of a tensor"):
        kept(nn.Sequential(Block()), [Stage(name="0", select=(1,))], x())


def test_an_overwritten_feature_is_found_out_and_a_clone_is_not():
    host, value = ZOO["in_place"].build(), x()
    with pytest.raises(CaptureError, match=r"overwrote.*\n.*clone=True"):
        kept(host, [Stage(name="enc0")], value)
    (feature,) = kept(host, [Stage(name="enc0", clone=True)], value)
    assert torch.equal(feature, host.enc0(value))


def test_a_clone_carries_gradient_to_the_layers_before_it():
    host = ZOO["in_place"].build()
    (feature,) = kept(host, [Stage(name="enc1", clone=True)], x())
    feature.square().sum().backward()
    assert host.enc0.weight.grad.abs().sum() > 0
    assert host.enc2.weight.grad is None


def test_a_stage_that_did_not_run_is_named_and_the_others_are_not():
    host = Plain(4)
    taps = FeatureTaps(host, [Stage(name="enc0"), Stage(name="enc1", call=1)])
    taps.begin()
    host(x())
    with pytest.raises(CaptureError) as caught:
        taps.take()
    assert "enc1 (call 1)" in str(caught.value)
    assert "enc0" not in caught.value.asked


def test_an_unknown_module_is_an_error_and_no_hook_stays():
    host = Plain(4)
    before = footprint(host)
    with pytest.raises(PlanError, match=r"enc_1(.|\n)*enc1"):
        FeatureTaps(host, [Stage(name="enc0"), Stage(name="enc_1")])
    assert footprint(host) == before


def test_only_the_forward_after_begin_is_kept_and_take_forgets_it():
    host, value = Plain(4), x()
    taps = FeatureTaps(host, [Stage(name="enc1")])
    host(value)
    with pytest.raises(CaptureError):
        taps.take()
    taps.begin()
    host(x())
    taps.begin()
    host(value)
    (feature,) = taps.take()
    assert torch.equal(feature, host.enc1(host.enc0(value)))
    with pytest.raises(CaptureError):
        taps.take()
    host(value)
    with pytest.raises(CaptureError):
        taps.take()


def test_watching_sees_every_feature_as_it_appears():
    host = ZOO["in_place"].build()
    stages = [Stage(name=name, clone=True) for name in ("enc0", "enc1")]
    taps, seen = FeatureTaps(host, stages), []
    taps.begin(lambda index, feature: seen.append((index, feature._version)))
    host(x())
    assert seen == [(0, 0), (1, 0)]


def test_a_teachers_forward_ends_at_the_last_tap():
    host = Plain(4)
    calls = []
    for name, module in host.named_modules():
        module.register_forward_pre_hook(lambda module, args, name=name: calls.append(name))
    watch = Watch(host, [Stage(name="enc1"), Stage(name="enc0")])
    seen = watch.run(lambda: host(x()), (16, 16))
    assert len(seen.features) == 2
    assert calls == ["", "enc0", "enc0.0", "enc0.1", "enc1", "enc1.0", "enc1.1"]


def test_a_host_that_catches_every_exception_does_not_swallow_the_stop():
    class Careful(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Down(4)

        def forward(self, value):
            try:
                return self.inner(value)
            except Exception:
                return None

    watch = Watch(host := Careful(), [Stage(name="inner.enc0")])
    watch.begin(stop=True)
    with pytest.raises(StopForward):
        host(x())


def test_removing_leaves_other_hooks_and_nothing_else():
    host = Plain(4)
    handle = host.enc1.register_forward_hook(lambda *_: None)
    before = footprint(host)
    taps = FeatureTaps(host, [Stage(name="enc1"), Stage(name="enc1", call=1), Stage(name="enc2")])
    assert footprint(host) != before
    taps.remove()
    taps.remove()
    assert footprint(host) == before
    handle.remove()


# -- copies ------------------------------------------------------------------------------------------------------------


class Owner:
    """Something whose method serves as a hook."""

    def __init__(self):
        self.calls = 0

    def see(self, *args):
        self.calls += 1


def tapped(run):
    """Return a host with a feature tap and a method hook, before or after a forward, and their owners."""
    host, owner = Plain(4), Owner()
    taps = FeatureTaps(host, [Stage(name="enc0"), Stage(name="enc1")])
    host.register_forward_pre_hook(MethodHook(owner, "see"), with_kwargs=True)
    host.enc2.register_forward_hook(MethodHook(owner, "see"))
    taps.begin()
    if run:
        host(x())
    owner.calls = 0
    return host, taps, owner


def by_pickle(host):
    return pickle.loads(pickle.dumps(host))


def by_torch(host):
    buffer = io.BytesIO()
    torch.save(host, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("run", [False, True], ids=["before a forward", "after a forward"])
@pytest.mark.parametrize("way", [copy.deepcopy, by_pickle, by_torch])
def test_a_copy_computes_the_same_and_tells_nobody(way, run):
    host, taps, owner = tapped(run)
    other = way(host)
    value = x()
    taps.begin()
    owner.calls = 0
    result = other(value)
    assert owner.calls == 0
    with pytest.raises(CaptureError):
        taps.take()
    assert torch.equal(result, host(value))
    assert owner.calls == 2
    assert not any("inpaint_distill" in str(type(hook)) for m in other.modules() for hook in m._forward_hooks.values())


def test_a_saved_tapped_host_loads_where_the_package_is_not_installed(tmp_path):
    host = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    owner = Owner()
    taps = FeatureTaps(host, [Stage(name="0")])
    host.register_forward_pre_hook(MethodHook(owner, "see"), with_kwargs=True)
    taps.begin()
    value = torch.randn(1, 3, 8, 8)
    expected = host(value)
    torch.save((host, value, expected.detach()), tmp_path / "host.pt")
    script = """
import sys, torch
sys.path = [p for p in sys.path if p]
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] == 'inpaint_distill':
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
host, value, expected = torch.load(sys.argv[1], weights_only=False)
assert torch.equal(host(value), expected)
host.register_forward_hook(lambda *_: None)
host(value)
assert not any(name.startswith('inpaint_distill') for name in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "host.pt")], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr


def test_a_method_hook_does_not_keep_its_owner_alive():
    host, owner = nn.Identity(), Owner()
    host.register_forward_hook(MethodHook(owner, "see"))
    host(torch.zeros(1))
    assert owner.calls == 1
    del owner
    host(torch.zeros(1))


def test_a_tapped_zoo_host_still_saves_its_weights_alone():
    toy = ZOO["separate"]
    host = toy.build()
    keys = list(host.state_dict())
    taps = FeatureTaps(host, [Stage(name="enc0")])
    taps.begin()
    toy.call(host, *batch())
    assert list(host.state_dict()) == keys


class Interrupted(nn.MultiheadAttention):
    """Ctrl-C arrives when a hook has just been put on, before its handle is anywhere."""

    strikes = 0

    def register_forward_pre_hook(self, *args, **kwargs):
        return self._strike(super().register_forward_pre_hook(*args, **kwargs))

    def register_forward_hook(self, *args, **kwargs):
        return self._strike(super().register_forward_hook(*args, **kwargs))

    def _strike(self, handle):
        self.strikes -= 1
        if not self.strikes:
            raise KeyboardInterrupt
        return handle


@pytest.mark.parametrize("strike", [1, 2, 3])
def test_an_interrupt_as_the_taps_are_put_on_leaves_none(strike):
    host = nn.ModuleDict({"first": nn.Conv2d(3, 3, 1), "attention": Interrupted(4, 1, batch_first=True)})
    before = footprint(host)
    host["attention"].strikes = strike
    stages = [Stage(name="first"), Stage(name="attention", select=(0,), layout="tokens")]
    site = AttentionSite(name="attention", kind="mha", heads=1, queries=4, keys=4, channels=4)
    with pytest.raises(KeyboardInterrupt):
        Watch(host, stages, [site])
    gc.collect()
    del host["attention"].strikes
    assert footprint(host) == before
