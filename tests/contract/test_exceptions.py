"""An error or Ctrl-C, wherever it strikes, leaves the host usable and the next step as if it had not happened."""

import copy
import gc
import itertools
import random
import signal
import time
from contextlib import contextmanager

import pytest
import torch
from hosts import EVERY_HOST, SAMPLE, batches, make_optimizer, reconstruct, same, state_of, train
from torch import overrides
from torch.nn import functional as F
from torch.nn.utils._named_member_accessor import NamedMemberAccessor

import inpaint_distill
from inpaint_distill.host.attention_calls import AttentionMode
from inpaint_distill.host.tree import tensors
from inpaint_distill.state import pack, unpack

FUNCTIONS = {
    name: getattr(F, name) for name in ("softmax", "scaled_dot_product_attention", "multi_head_attention_forward")
}
TENSOR_SOFTMAX = torch.Tensor.softmax, torch.softmax


class Struck(Exception):
    """What somebody's code raises."""


class Loop:
    """A user's training, with a look-ahead after every step."""

    def __init__(self, name, teacher):
        self.toy = EVERY_HOST[name]
        self.host = self.toy.build()
        self.optimizer = make_optimizer(self.host)
        self.strike = None  # called in the user's inpainting loss
        config = {"teacher": teacher, "warmup": 0, "ema_decay": 0.9, "balance_every": 2, "lookahead": {"every": 1}}
        self.distiller = inpaint_distill.attach(
            self.host, self.optimizer, config=config, inpainting_loss=self.inpainting_loss
        )

    def inpainting_loss(self, output, image, mask):
        if self.strike is not None:
            self.strike()
        restored, *_ = (each for _, each in tensors(output) if each.shape == image.shape)
        return (restored - image).abs().mean()

    def train(self, first, last):
        data = batches(last - first, first, size=self.toy.size)
        return train(self.toy, self.host, self.optimizer, data, self.distiller)

    def state(self):
        return copy.deepcopy((state_of(self.host, self.optimizer), pack(self.distiller._parts), self.distiller._step))

    def take(self, state):
        own, parts, step = copy.deepcopy(state)
        self.host.load_state_dict(own["host"])
        self.optimizer.load_state_dict(own["optimizer"])
        unpack(self.distiller._parts, *parts)
        self.distiller._step = step
        torch.set_rng_state(own["random"])

    def flags(self):
        """Note what somebody's code may rely on after the error."""
        modules = [*self.host.modules(), *self.distiller._teacher.module.modules()]
        parameters = [*self.host.parameters(), *self.distiller._teacher.module.parameters()]
        return (
            [module.training for module in modules],
            [parameter.requires_grad for parameter in parameters],
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled("cpu"),
            overrides._len_torch_function_stack(),
            self.distiller._paused,
            {name: getattr(F, name) is function for name, function in FUNCTIONS.items()},
            (torch.Tensor.softmax, torch.softmax) == TENSOR_SOFTMAX,
        )


def strike(error):
    def struck(*_):
        raise error

    return struck


def _stage(loop, root, index):
    return root.get_submodule(loop.distiller.plan.stages[index].name)


def both(loop, fresh):
    """Train the disturbed run and the undisturbed one on, from one random state; return their losses."""
    random = torch.get_rng_state()
    first = loop.train(20, 21)
    torch.set_rng_state(random)
    return first, fresh.train(20, 21)


@contextmanager
def removing(handle):
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def before_the_stages(loop, error):
    with removing(_stage(loop, loop.host, 0).register_forward_pre_hook(strike(error))):
        yield


@contextmanager
def after_the_stages(loop, error):
    with removing(loop.host.register_forward_hook(strike(error), prepend=True)):
        yield


@contextmanager
def in_the_look_aheads_forward(loop, error):
    def struck(*_):
        if loop.distiller._paused:
            raise error

    with removing(_stage(loop, loop.host, -1).register_forward_pre_hook(struck)):
        yield


@contextmanager
def in_the_inpainting_loss(loop, error):
    loop.strike = strike(error)
    try:
        yield
    finally:
        loop.strike = None


@contextmanager
def while_a_look_ahead_lends_weights(loop, error):
    whole, swapped = NamedMemberAccessor.swap_tensor, []

    def swap(*args, **kwargs):
        swapped.append(args)
        if len(swapped) == 3:  # of the first forward; torch puts nothing back before it has swapped all
            raise error
        return whole(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NamedMemberAccessor, "swap_tensor", swap)
        yield


@contextmanager
def after_the_companions_step(loop, error):
    with removing(loop.distiller._companion.inner.register_step_post_hook(strike(error))):
        yield


@contextmanager
def in_a_term(loop, error):
    with removing(loop.distiller._terms["cross"].register_forward_pre_hook(strike(error))):
        yield


@contextmanager
def in_the_teacher(loop, error):
    with removing(_stage(loop, loop.distiller._teacher.module, -1).register_forward_pre_hook(strike(error))):
        yield


@contextmanager
def in_backward(loop, error):
    parameter = next(_stage(loop, loop.host, 0).parameters(), next(loop.host.parameters()))
    with removing(parameter.register_hook(strike(error))):
        yield


PLACES = {
    each.__name__: each
    for each in (
        before_the_stages,
        after_the_stages,
        in_the_look_aheads_forward,
        in_the_inpainting_loss,
        in_a_term,
        in_the_teacher,
        in_backward,
        after_the_companions_step,
        while_a_look_ahead_lends_weights,
    )
}
AFTER_THE_STEP = (
    "in_the_look_aheads_forward",
    "in_the_inpainting_loss",
    "after_the_companions_step",
    "while_a_look_ahead_lends_weights",
)


@pytest.mark.parametrize(("name", "teacher"), zip(SAMPLE, itertools.cycle(["online", "ema"]), strict=False))
def test_after_an_error_anywhere_the_next_step_is_that_of_a_run_without_it(name, teacher):
    loop = Loop(name, teacher)
    loop.train(0, 3)
    fresh = Loop(name, teacher)
    fresh.train(0, 1)
    flags = loop.flags()
    for number, (place, make) in enumerate(PLACES.items()):
        error = (Struck, KeyboardInterrupt)[number % 2]("here")
        before = loop.state()
        with pytest.raises(type(error), match="here"), make(loop, error):
            loop.train(10, 11)
        assert loop.flags() == flags, place
        if place not in AFTER_THE_STEP:
            now = loop.state()
            weights = [name for name, _ in loop.host.named_parameters()]
            assert all(torch.equal(now[0]["host"][each], before[0]["host"][each]) for each in weights), place
            assert same(now[0]["optimizer"], before[0]["optimizer"]), place
            assert now[2] == before[2], place
        fresh.take(loop.state())
        first, second = both(loop, fresh)
        assert same(first, second), place
        assert same(loop.state(), fresh.state()), place
        assert loop.flags() == flags, place


@pytest.mark.parametrize("error", [Struck("here"), KeyboardInterrupt("here")], ids=["error", "Ctrl-C"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ["separate_known", "contextual-attention"])
def test_an_error_of_either_kind_anywhere_leaves_a_host_that_is_itself_after_detach(name, place, error):
    loop = Loop(name, "ema")
    loop.train(0, 3)
    with pytest.raises(type(error), match="here"), PLACES[place](loop, error):
        loop.train(10, 11)
    loop.distiller.detach()
    assert is_itself(loop)


@pytest.mark.parametrize("error", [Struck("here"), KeyboardInterrupt("here")], ids=["error", "Ctrl-C"])
@pytest.mark.parametrize("name", ["contextual-attention", "mat"])
def test_an_error_inside_tapped_attention_leaves_no_mode_behind_at_the_next_step(name, error):
    loop = Loop(name, "ema")
    loop.train(0, 3)
    fresh = Loop(name, "ema")
    fresh.train(0, 1)
    assert loop.distiller.plan.attention
    flags = loop.flags()
    site = loop.host.get_submodule(loop.distiller.plan.attention[0].name)
    with pytest.raises(type(error), match="here"), removing(site.register_forward_hook(strike(error), prepend=True)):
        loop.train(10, 11)
    if isinstance(error, Exception):  # nobody tells a module of Ctrl-C
        assert loop.flags() == flags
    fresh.take(loop.state())
    first, second = both(loop, fresh)
    assert same(first, second)
    assert same(loop.state(), fresh.state())
    assert loop.flags() == flags


class PutBackLate:
    """Take a mode off for a function, as torch does; Ctrl-C comes before ours is put back, which a generator does."""

    whole = overrides._pop_mode_temporarily

    def __init__(self):
        self.taken = PutBackLate.whole()

    def __enter__(self):
        self.mode = self.taken.__enter__()
        return self.mode

    def __exit__(self, *error):
        if isinstance(self.mode, AttentionMode):
            raise KeyboardInterrupt("here")
        return self.taken.__exit__(*error)


@pytest.mark.parametrize("ending", ["the next step", "detach"])
@pytest.mark.parametrize("name", ["contextual-attention", "mat"])
def test_a_mode_that_torch_puts_back_after_ctrl_c_goes_with_the_next_step_or_detach(name, ending, monkeypatch):
    loop = Loop(name, "ema")
    loop.train(0, 3)
    flags = loop.flags()
    site = loop.distiller._teacher.sites[0].name
    teacher = loop.distiller._teacher.module.get_submodule(site)
    own = overrides.BaseTorchFunctionMode()  # the user's own stays

    def late(*_):
        monkeypatch.setattr(overrides, "_pop_mode_temporarily", PutBackLate)

    with own:
        handle = teacher.register_forward_pre_hook(late)
        with pytest.raises(KeyboardInterrupt, match="here") as caught, removing(handle):
            loop.train(10, 11)
        monkeypatch.undo()
        assert overrides._get_current_function_mode_stack() == [own]
        del caught
        gc.collect()
        assert overrides._len_torch_function_stack() == 2, "it was to be put back now"
        if ending == "detach":
            loop.distiller.detach()
        else:
            loop.train(11, 12)
        assert overrides._get_current_function_mode_stack() == [own]
    assert loop.flags() == flags


# -- a real Ctrl-C -----------------------------------------------------------------------------------------------------


@pytest.fixture
def press():
    """Return ``press(seconds, run)``: Ctrl-C once a run has computed for that long; it tells whether it ended there.

    The alarm counts the processor's time, so that a busy machine does not move it.
    """
    own = {number: signal.getsignal(number) for number in (signal.SIGPROF, signal.SIGINT)}
    signal.signal(signal.SIGPROF, lambda *_: signal.raise_signal(signal.SIGINT))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell runs in the background ignores it

    def pressed(seconds, run):
        try:
            try:
                signal.setitimer(signal.ITIMER_PROF, seconds)
                run()
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
        except KeyboardInterrupt:
            return True
        return False

    yield pressed
    for number, handler in own.items():
        signal.signal(number, handler)


def length(loop):
    """Return how long a step computes, in seconds."""
    begin = time.process_time()
    loop.train(5, 6)
    return time.process_time() - begin


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there is no such alarm on this system")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # python drops it in a finalizer
@pytest.mark.parametrize(
    ("name", "teacher"), [("separate_known", "ema"), ("batch_norm", "online"), ("contextual-attention", "ema")]
)
def test_a_signal_at_any_moment_leaves_the_next_step_sound(name, teacher, press):
    loop = Loop(name, teacher)
    loop.train(0, 3)
    fresh = Loop(name, teacher)
    fresh.train(0, 1)
    flags, whole, moments = loop.flags(), min(length(loop) for _ in range(3)), random.Random(0)
    struck = 0
    for _ in range(50):  # some come after the end
        before = loop.state()
        if not press(moments.uniform(1e-3, whole), lambda: loop.train(10, 11)):
            continue
        struck += 1
        now = loop.state()
        if same(weights(now, loop), weights(before, loop)) and same(now[0]["optimizer"], before[0]["optimizer"]):
            assert now[2] == before[2]
            assert same(beside(now), beside(before)), "what is beside the host moves with it or not at all"
        fresh.take(now)  # whatever has moved: there is nothing else that the next step depends on
        first, second = both(loop, fresh)
        assert same(first, second)
        assert all(loss.isfinite() for loss in first)
        assert same(loop.state(), fresh.state())
        assert loop.flags() == flags
        if struck == 10:
            break
    assert struck == 10
    loop.distiller.detach()
    assert is_itself(loop)


def weights(state, loop):
    return [state[0]["host"][name] for name, _ in loop.host.named_parameters()]


def beside(state):
    """Pick what is trained beside the host by its own steps."""
    tensors, _ = state[1]
    return {name: each for name, each in tensors.items() if name.partition("/")[0] in ("terms", "companion")}


def is_itself(loop):
    """Hold a host that nothing is attached to any more against one that never was."""
    bare = loop.toy.build()
    bare.load_state_dict(loop.host.state_dict())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in loop.host.modules())
    assert overrides._len_torch_function_stack() == 0
    (image, mask), *_ = batches(1, size=loop.toy.size)
    losses = [reconstruct(loop.toy, host, image, mask) for host in (loop.host, bare)]
    return same(losses[0].detach(), losses[1].detach())


@pytest.mark.parametrize("error", [Struck("here"), KeyboardInterrupt("here")], ids=["error", "Ctrl-C"])
def test_an_error_under_completion_blocks_leaves_them_at_work(error):
    loops = []
    for disturbed in (False, True):
        torch.manual_seed(0)
        toy = EVERY_HOST["separate_known"]
        host = toy.build()
        optimizer = make_optimizer(host)
        (image, mask), *_ = batches(1)
        config = {"completion": True, "warmup": 0, "lookahead": {"every": 2}}
        distiller = inpaint_distill.attach(host, optimizer, config=config, image=image, mask=mask)
        losses = train(toy, host, optimizer, batches(3), distiller)
        if disturbed:
            stage = host.get_submodule(distiller.plan.stages[-1].name)
            with pytest.raises(type(error)), removing(stage.register_forward_hook(strike(error))):
                train(toy, host, optimizer, batches(1, 9), distiller)
        losses += train(toy, host, optimizer, batches(3, 3), distiller)
        loops.append((losses, state_of(host, optimizer)))
    assert same(loops[0], loops[1])
