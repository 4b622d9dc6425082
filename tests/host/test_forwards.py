"""Which of the last forwards a loss is about: by what is still alive of their graphs."""

import torch
from torch import nn

from inpaint_distill.host.call import HostCall
from inpaint_distill.host.forwards import Forward, Forwards


def begun(number=0):
    return Forward(HostCall((number,)), None, None)


def ended(output):
    forward = begun()
    forward.end(output)
    return forward


def graph():
    return nn.Linear(2, 2)(torch.ones(1, 2))


def test_a_forward_is_alive_as_long_as_something_depends_on_what_it_returned():
    coarse = graph()
    fine = coarse * 2
    forward = ended([coarse, {"fine": fine}])
    assert forward.ended
    assert forward.alive
    del fine
    assert not forward.alive  # features that were kept depend on the coarse one too: it says nothing
    del coarse


def test_each_of_several_independent_outputs_keeps_a_forward_alive():
    left, right = graph(), graph()
    forward = ended((left, right))
    del left
    assert forward.alive
    right = right.sum()
    assert forward.alive
    del right
    assert not forward.alive


def test_a_forward_of_which_nothing_is_known_counts_as_alive_and_one_without_a_graph_does_not():
    assert ended({"written": "into the batch"}).alive
    assert begun().alive
    assert not begun().ended
    assert not ended(torch.ones(2)).alive  # of a frozen host


def test_a_forward_remembers_what_it_was_called_with():
    call, observation = HostCall((1,)), object()
    forward = Forward(call, torch.bfloat16, observation)
    assert (forward.call, forward.autocast, forward.observation, forward.kept) == (
        call,
        torch.bfloat16,
        observation,
        None,
    )


def test_gradients_pass_a_watched_output_unchanged():
    value = torch.ones(2, requires_grad=True)
    output = value * 3
    ended(output)
    output.sum().backward()
    assert value.grad.tolist() == [3, 3]


def test_a_loss_is_about_the_newest_forward_that_is_used_and_at_most_two_are_kept():
    forwards, outputs = Forwards(), [graph() for _ in range(3)]
    assert forwards.last is None
    assert forwards.candidates() == []
    each = []
    for output in outputs:
        each.append(begun())
        forwards.add(each[-1], None)
        assert forwards.last is each[-1]
        each[-1].end(output)
    assert forwards.candidates() == [each[2], each[1]]
    del output
    outputs.pop()
    assert forwards.candidates() == [each[1]]
    outputs.clear()
    assert forwards.candidates() == [each[2]]  # of none the graph is used: the last


def test_a_forward_that_was_interrupted_or_of_which_nothing_is_left_is_forgotten_at_the_next():
    forwards, interrupted, detached, kept = Forwards(), begun(), begun(), graph()
    forwards.add(interrupted, None)
    assert forwards.candidates() == [interrupted]
    forwards.add(detached, None)
    detached.end(graph())
    used = begun()
    forwards.add(used, None)
    assert forwards.candidates() == [used]
    used.end(kept)
    newest = begun()
    forwards.add(newest, None)
    assert forwards.candidates() == [used]
    assert forwards.last is newest


class Seen:
    """A watch that keeps one word."""

    def __init__(self):
        self.kept = None

    def put_aside(self):
        kept, self.kept = self.kept, None
        return kept

    def put_back(self, kept):
        self.kept = kept


def test_taking_a_forward_gives_back_what_it_showed_and_forgets_those_before_it():
    forwards, outputs, first, second, watch = Forwards(), [graph(), graph()], begun(), begun(), Seen()
    for forward, output, word in zip((first, second), outputs, ("first", "second"), strict=True):
        forwards.add(forward, watch)
        assert watch.kept is None
        watch.kept = word
        forward.end(output)
    forwards.take(first, watch)
    assert watch.kept == "first"
    assert forwards.candidates() == [second]
    forwards.take(second, watch)
    assert watch.kept == "second"
    assert forwards.last is None
    forwards.add(first, None)
    forwards.clear()
    assert forwards.candidates() == []
