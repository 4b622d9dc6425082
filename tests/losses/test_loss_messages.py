"""The whole text of every error of the terms: what was asked, what was found, what to do."""

import math

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from inpaint_distill import AttentionConfig, AttentionSite, Config, LookaheadConfig, TermConfig
from inpaint_distill.errors import CaptureError, ConfigError, InputError, NumericsError, NumericsWarning
from inpaint_distill.host.attention import AttentionMap
from inpaint_distill.host.stage import Stage
from inpaint_distill.host.watch import Views
from inpaint_distill.losses.attention_distance import attention_distance
from inpaint_distill.losses.attention_transfer import AttentionTransfer
from inpaint_distill.losses.balance import EAGER_STEPS, GradientNormBalancer, Observation
from inpaint_distill.losses.build import build_terms
from inpaint_distill.losses.composer import Composer
from inpaint_distill.losses.screen import Screen
from inpaint_distill.losses.self_distillation import SelfDistillation
from inpaint_distill.losses.term import Term

STAGES = [Stage(name=f"enc{level}", channels=4, stride=2**level) for level in range(2)]
SITE = AttentionSite(name="mix", kind="softmax", queries=16, keys=16)


def parts(error):
    return error.asked, error.found, error.fix


def rows(maps=1, heads=1, queries=4, keys=4, **more):
    return AttentionMap(rows=torch.full((maps, heads, queries, keys), 1 / keys), **more)


def compare(student=None, teacher=None, hole=None, **more):
    hole = torch.ones(1, 4) if hole is None else hole
    return attention_distance(student or rows(), teacher or rows(), hole, **more)


# -- attention ---------------------------------------------------------------------------------------------------------


def second_derivative():
    query = torch.ones(1, 1, 4, 2, requires_grad=True)
    value = compare(AttentionMap(query=query, key=torch.rand(1, 1, 4, 2)))
    torch.autograd.grad(value, query, create_graph=True)


ALIKE = "use one of l2, l1, kl"
LAYOUT = "query (B, heads, Nq, d) and key (B, heads, Nk, d), or its rows (B, heads, Nq, Nk)"
TAP_ANOTHER = "tap another attention layer, or have the adapter give the map in this layout"
ONE_EACH = "give one value for each query of the student's map"
ADDED = "have the adapter give the bias as it is added to the logits"
QUERY, WHOLE = torch.ones(1, 1, 4, 2), torch.ones(1, 1, 8, 8)
SIX, NINE = rows(queries=6, keys=6), rows(queries=9, keys=9)

ATTENTION = {
    "distance": (
        lambda: compare(distance="cosine"),
        ConfigError("attention distance 'cosine'", "no such distance", ALIKE),
    ),
    "hole": (lambda: compare(hole=torch.ones(1, 5)), InputError("hole (B, Nq) = (1, 4)", "(1, 5)", ONE_EACH)),
    "weight": (lambda: compare(weight=torch.ones(2, 4)), InputError("weight (B, Nq) = (1, 4)", "(2, 4)", ONE_EACH)),
    "second derivative": (
        second_derivative,
        CaptureError(
            "a second derivative through attention transfer",
            "its first was computed without a graph, to save memory",
            "compute the loss within `inpaint_distill.double_backward.double_backward()`",
        ),
    ),
    "nothing": (lambda: compare(AttentionMap()), CaptureError(f"the student's {LAYOUT}", "neither", TAP_ANOTHER)),
    "no key": (
        lambda: compare(AttentionMap(query=QUERY)),
        CaptureError(f"the student's {LAYOUT}", "(1, 1, 4, 2)", TAP_ANOTHER),
    ),
    "key of another depth": (
        lambda: compare(AttentionMap(query=QUERY, key=torch.ones(1, 1, 4, 3))),
        CaptureError(f"the student's {LAYOUT}", "(1, 1, 4, 2) and (1, 1, 4, 3)", TAP_ANOTHER),
    ),
    "key of other heads": (
        lambda: compare(AttentionMap(query=QUERY, key=torch.ones(1, 2, 4, 2))),
        CaptureError(f"the student's {LAYOUT}", "(1, 1, 4, 2) and (1, 2, 4, 2)", TAP_ANOTHER),
    ),
    "rows of three dimensions": (
        lambda: compare(None, AttentionMap(rows=torch.ones(1, 4, 4))),
        CaptureError(f"the teacher's {LAYOUT}", "(1, 4, 4)", TAP_ANOTHER),
    ),
    "student's bias": (
        lambda: compare(rows(bias=torch.zeros(4, 3))),
        CaptureError("the student's bias, broadcastable to (1, 1, 4, 4)", "(1, 1, 4, 3)", ADDED),
    ),
    "teacher's bias": (
        lambda: compare(None, rows(heads=3, bias=torch.zeros(2, 1, 1))),
        CaptureError("the teacher's bias, broadcastable to (1, 3, 4, 4)", "(1, 2, 1, 1)", ADDED),
    ),
    "maps": (
        lambda: compare(None, rows(maps=3)),
        CaptureError(
            "as many attention maps of the teacher as of the student",
            "1 of the student, 3 of the teacher",
            "tap the same layer of both; where it is windowed, both need as many windows",
        ),
    ),
    "student's tokens that are no square": (
        lambda: compare(SIX, NINE, torch.ones(1, 6)),
        InputError(
            "rows and columns of the student's 6 queries and 6 keys",
            "2 x 2 queries and 2 x 2 keys",
            "give student_grid=(rows, columns), or tap layers of as many tokens in both networks",
        ),
    ),
    "teacher's grid": (
        lambda: compare(None, SIX, teacher_grid=(2, 4)),
        InputError(
            "rows and columns of the teacher's 6 queries and 6 keys",
            "2 x 4 queries and 2 x 4 keys",
            "give teacher_grid=(rows, columns), or tap layers of as many tokens in both networks",
        ),
    ),
    "keys of other proportions": (
        lambda: compare(None, rows(queries=4, keys=3)),
        InputError(
            "rows and columns of the teacher's 4 queries and 3 keys",
            "2 x 2 queries and 2 x 2 keys",
            "give teacher_grid=(rows, columns), or tap layers of as many tokens in both networks",
        ),
    ),
    "taps that kept nothing": (
        lambda: AttentionTransfer(AttentionConfig(), [SITE], [SITE])(
            [AttentionMap()], [rows()], torch.ones(1, 1, 8, 8)
        ),
        CaptureError("an attention map", "neither queries nor rows", "report this: the taps kept nothing"),
    ),
}


# -- terms and their balance -------------------------------------------------------------------------------------------


def without_host_loss():
    balancer = GradientNormBalancer(["cross"], every=1)
    for _ in range(EAGER_STEPS):
        balancer.measured("cross", torch.zeros(1), torch.ones(1))
    balancer.check()


def expect(value, edges):
    Observation(GradientNormBalancer(["cross"], 1)).expect(
        {"cross": value}, {"cross": "features"}, {"cross": torch.ones(1)}, edges, value.sum()
    )


def reentrant_between():
    feature = torch.ones(1, requires_grad=True)
    edges = {("features", 0, 0): torch.autograd.graph.get_gradient_edge(feature)}
    expect(checkpoint(torch.exp, feature, use_reentrant=True), edges)


class Donated(torch.autograd.Function):
    """Refuses a second backward, as a graph does that was compiled to be walked back only once."""

    @staticmethod
    def forward(ctx, value):
        return value * 2

    @staticmethod
    def backward(ctx, gradient):
        raise RuntimeError("This backward function was compiled with non-empty donated buffers")


def compiled_late():
    feature = torch.ones(1, requires_grad=True)
    expect(Donated.apply(feature), {("features", 0, 0): torch.autograd.graph.get_gradient_edge(feature)})


TO_BALANCE = "the gradient of the terms at the tapped features, to balance them"
REENTRANT = CaptureError(
    TO_BALANCE,
    "reentrant gradient checkpointing between them, which allows none",
    "checkpoint with use_reentrant=False, or set Config(balance='none')",
)
OR_ATTENTION = ", name the attention (attach(attention=...)), or inject one (Config(fusion=True))"
NO_CROSS, NO_SELF = ({"cross": TermConfig(weight=0.0)}, {"self_": TermConfig(weight=0.0)})

TERMS = {
    "one stage": (
        lambda: SelfDistillation(TermConfig(), STAGES[:1]),
        ConfigError("self-distillation between encoder levels", "1 stage", "tap two stages or set its weight to 0"),
    ),
    "attention alone, without any": (
        lambda: build_terms(Config(**NO_CROSS, **NO_SELF), STAGES, STAGES),
        ConfigError(
            "attention transfer, the only term with a weight",
            "no attention of this host and its teacher to compare",
            "give another term a weight, name the attention (attach(attention=...)), or inject one "
            "(Config(fusion=True))",
        ),
    ),
    "gamma without its term": (
        lambda: build_terms(Config(**NO_CROSS, meta=("phi", "gamma")), STAGES, STAGES),
        ConfigError("the meta-network 'gamma'", "no cross term on this host", "leave 'gamma' out of `meta`"),
    ),
    "rho without its term": (
        lambda: build_terms(Config(**NO_CROSS, meta=("rho",)), STAGES, STAGES),
        ConfigError("the meta-network 'rho'", "no cross term on this host", "leave 'rho' out of `meta`"),
    ),
    "phi without its term": (
        lambda: build_terms(Config(**NO_SELF, meta=("phi",)), STAGES, STAGES),
        ConfigError("the meta-network 'phi'", "no self term on this host", "leave 'phi' out of `meta`"),
    ),
    "t without attention": (
        lambda: build_terms(Config(meta=("t",)), STAGES, STAGES),
        ConfigError("the meta-network 't'", "no attention term on this host", "leave 't' out of `meta`" + OR_ATTENTION),
    ),
    "no gradient of the host's own loss": (
        without_host_loss,
        CaptureError(
            "the gradient of your own loss at the tapped features, to balance the terms against",
            f"none in {EAGER_STEPS} steps: your loss is made from another forward of the host, from none, or from an "
            "output that does not depend on these features, such as that of an earlier network",
            "call loss() right after the forward that your loss is made from, and run others under "
            "torch.no_grad() or distiller.paused(); name stages of the network that your loss trains: "
            "attach(stages=[...]); or set Config(balance='none')",
        ),
    ),
    "reentrant checkpointing of what is between": (reentrant_between, REENTRANT),
    "reentrant checkpointing of the features": (lambda: expect(torch.ones(1, requires_grad=True), {}), REENTRANT),
    "compiled after attach": (
        compiled_late,
        CaptureError(
            TO_BALANCE,
            "a graph, compiled after attach(), that can be walked back only once",
            "compile first, then attach to what is called: attach(torch.compile(host), ...); "
            "or set Config(balance='none')",
        ),
    ),
}


@pytest.mark.parametrize(("provoke", "wanted"), [*ATTENTION.values(), *TERMS.values()], ids=[*ATTENTION, *TERMS])
def test_an_error_says_what_was_asked_what_was_found_and_what_to_do(provoke, wanted):
    with pytest.raises(type(wanted)) as caught:
        provoke()
    assert type(caught.value) is type(wanted)
    assert parts(caught.value) == parts(wanted)


def test_an_error_of_the_hosts_own_backward_is_handed_on_as_it_is():
    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value):
            return value * 2

        @staticmethod
        def backward(ctx, gradient):
            raise RuntimeError("the host's own")

    feature = torch.ones(1, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"^the host's own$"):
        expect(Fails.apply(feature), {("features", 0, 0): torch.autograd.graph.get_gradient_edge(feature)})


def test_factors_of_unknown_terms_are_all_named():
    composer = Composer(Config(), {"cross": 1.0})
    with pytest.raises(ValueError, match=r"^no term attention, self$"):
        composer.load({name: torch.ones(1) for name in ("self", "cross", "attention")}, {})


def test_a_term_without_a_forward_is_not_implemented():
    with pytest.raises(NotImplementedError):
        Term()([], [], torch.ones(1, 1, 2, 2))


@pytest.mark.parametrize("names", [["cross"], ["cross", "self"]])
def test_the_hosts_own_loss_is_missed_after_the_first_steps_and_not_one_sooner(names):
    balancer = GradientNormBalancer(names, every=1)
    for _ in range(EAGER_STEPS):
        balancer.check()
        for name in names:
            balancer.measured(name, torch.zeros(2), torch.ones(2))
    with pytest.raises(CaptureError, match=f"none in {EAGER_STEPS} steps"):
        balancer.check()
    for name in names:
        balancer.measured(name, torch.zeros(2), torch.ones(2))
    with pytest.raises(CaptureError, match=f"none in {EAGER_STEPS + 1} steps"):
        balancer.check()


@pytest.mark.parametrize("reached", [0, 20, EAGER_STEPS - 1])
def test_a_host_whose_loss_arrived_once_at_one_level_is_not_refused(reached):
    balancer = GradientNormBalancer(["cross"], every=1)
    for step in range(EAGER_STEPS + 5):
        balancer.measured("cross", torch.tensor([0.0, float(step == reached)]), torch.ones(2))
    balancer.check()


def test_a_balancer_without_terms_has_nothing_to_miss():
    balancer = GradientNormBalancer([], every=1)
    balancer.check()


# -- NaN and inf -------------------------------------------------------------------------------------------------------

AT_STUDENT = "look at that batch and at the learning rate, or leave float16"
AT_TEACHER = "look at the teacher's weights and at that batch, or run it in bfloat16 or float32"
OR_SKIP = "; Config(nonfinite='skip') leaves the term out of such a step instead"


def seen(spoilt=None):
    """Return views of two stages and one attention layer, one of whose numbers may be NaN."""
    features, attention = [torch.ones(1, 4, 4, 4) for _ in STAGES], rows(queries=16, keys=16)
    attention.entering = torch.ones(1, 16, 3)
    places = {"enc0": features[0], "enc1": features[1], "mix": attention.rows, "entering": attention.entering}
    if spoilt is not None:
        places[spoilt].view(-1)[1] = math.nan
    return Views(features, [attention])


def screen(choice="raise"):
    terms = build_terms(Config(lookahead=LookaheadConfig(engine="off")), STAGES, STAGES, [SITE], [SITE])
    return Screen(choice, terms.each, ["enc0", "enc1"], ["mix"])


def values(**changed):
    return {"cross": torch.ones(2), "self": torch.ones(1), "attention": torch.ones(1)} | changed


SPOILT = {
    ("student", "enc1"): ("the terms cross, self", "NaN or inf in the student's feature of stage enc1", AT_STUDENT),
    ("teacher", "enc0"): ("the term cross", "NaN or inf in the teacher's feature of stage enc0", AT_TEACHER),
    ("student", "mix"): ("the term attention", "NaN or inf in the student's attention mix", AT_STUDENT),
    ("teacher", "mix"): ("the term attention", "NaN or inf in the teacher's attention mix", AT_TEACHER),
    ("teacher", "entering"): ("the term attention", "NaN or inf in the teacher's attention mix", AT_TEACHER),
}


def look(watcher, whose, place, step):
    both = {"student": seen(), "teacher": seen(), whose: seen(place)}
    watcher.views(both["student"], both["teacher"])
    return watcher.values(values(), step)


@pytest.mark.parametrize(("whose", "place"), SPOILT)
@pytest.mark.parametrize(("step", "asked_at"), [(0, 0), (7, 7), (7, 100)])
def test_nan_is_reported_with_its_terms_place_side_and_step(whose, place, step, asked_at):
    watcher = screen()
    look(watcher, whose, place, step)
    with pytest.raises(NumericsError) as caught:
        watcher.check(asked_at)
    asked, found, fix = SPOILT[whose, place]
    later = f" (an accelerator is asked every so many steps, now at step {asked_at})" if asked_at > step else ""
    assert parts(caught.value) == (f"{asked} at step {step}", found + later, fix + OR_SKIP)


@pytest.mark.parametrize(("name", "level", "what"), [("cross", 1, "features"), ("attention", 0, "attention")])
def test_a_value_too_large_to_square_is_reported_with_its_level(name, level, what):
    watcher = screen()
    watcher.views(seen(), seen())
    spoilt = values()[name].index_fill(0, torch.tensor(level), math.inf)
    watcher.values(values(**{name: spoilt}), 3)
    with pytest.raises(NumericsError) as caught:
        watcher.check(3)
    found = f"NaN or inf in level {level} of the term, though all {what} are finite: too large to square"
    assert parts(caught.value) == (f"the term {name} at step 3", found, AT_STUDENT + OR_SKIP)


@pytest.mark.parametrize(("whose", "place"), SPOILT)
def test_a_skipped_step_is_warned_of_once_with_the_same_facts(whose, place):
    watcher = screen("skip")
    asked, found, _ = SPOILT[whose, place]
    look(watcher, whose, place, 7)
    with pytest.warns(NumericsWarning) as caught:
        watcher.check(7)
    (told,) = caught
    assert (
        str(told.message) == f"left out: {asked} at step 7; {found}; distiller.log counts such steps as 'skipped/...'"
    )
    look(watcher, whose, place, 8)
    watcher.check(8)  # a second warning would be an error here


def test_every_side_and_kind_that_is_not_finite_is_warned_of_but_of_several_levels_the_first():
    watcher = screen("skip")
    student, teacher = seen("enc0"), seen("mix")
    student.features[1].view(-1)[0] = math.inf
    watcher.views(student, teacher)
    watcher.values(values(), 2)
    with pytest.warns(NumericsWarning) as caught:
        watcher.check(2)
    told = [str(each.message).split("; ")[1] for each in caught]
    assert told == [SPOILT["student", "enc1"][1].replace("enc1", "enc0"), SPOILT["teacher", "mix"][1]]


def test_of_two_places_the_one_that_failed_first_is_reported_and_then_forgotten():
    watcher = screen()
    look(watcher, "teacher", "mix", 4)
    look(watcher, "student", "enc0", 5)
    look(watcher, "teacher", "mix", 6)
    with pytest.raises(NumericsError, match=r"term attention at step 4\n"):
        watcher.check(9)
    watcher.check(9)


def test_what_enters_the_students_attention_is_not_compared_and_may_be_anything():
    watcher = screen()
    kept = look(watcher, "student", "entering", 1)
    watcher.check(1)
    assert all(bool(value.all()) for value in kept.values())


def test_a_term_that_saw_nan_is_zero_and_counted_and_the_others_are_handed_on():
    watcher = screen("skip")
    for step, (whose, place) in enumerate([("teacher", "enc0"), ("student", "enc1"), ("student", "mix")]):
        kept = look(watcher, whose, place, step)
        left_out = {name for name, value in kept.items() if not value.any()}
        assert left_out == {"enc0": {"cross"}, "enc1": {"cross", "self"}, "mix": {"attention"}}[place]
    assert {name: int(count) for name, count in watcher.skipped.items()} == {"cross": 2, "self": 1, "attention": 1}


def test_what_is_finite_is_handed_on_without_a_copy_and_what_is_not_as_zeros():
    watcher = screen()
    student, teacher = seen("enc0"), seen()
    cleaned, others = watcher.views(student, teacher)
    assert not cleaned.features[0].any()
    assert cleaned.features[1] is student.features[1]
    assert cleaned.attention[0].rows is student.attention[0].rows
    assert [a is b for a, b in zip(others.features, teacher.features, strict=True)] == [True, True]


def test_before_any_step_there_is_nothing_to_report():
    screen().check(0)
