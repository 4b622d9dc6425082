"""One watched backward on a graph written out by hand: what is measured of the host's loss and of each term."""

import itertools

import pytest
import torch

from inpaint_distill import Config, TermConfig
from inpaint_distill.losses.balance import EAGER_STEPS, GradientNormBalancer, Observation
from inpaint_distill.losses.composer import Composer

LOOKS_AT = {"cross": "features", "self": "features", "attention": "attention"}


class Graph:
    """Two levels of features and an attention layer tapped at its queries and at its keys."""

    def __init__(self):
        self.start = torch.linspace(-1, 1, 6, dtype=torch.float64, requires_grad=True)
        first = self.start * 2
        second = first.cos()
        query, key = second * 0.5, second.exp()
        self.tapped = {
            ("features", 0, 0): first,
            ("features", 1, 0): second,
            ("attention", 0, 0): query,
            ("attention", 0, 1): key,
        }
        self.host = (query * key).sum() + 0.3 * first.square().sum()

    def terms(self):
        first, second, query, key = self.tapped.values()
        return {
            "cross": torch.stack([first.pow(3).sum(), second.pow(2).sum()]),
            "self": torch.stack([first.sin().sum()]),
            "attention": torch.stack([(query.square() * key).sum()]),
        }

    def norm(self, value, level):
        """Return the squared norm of a gradient at all that is tapped of one level, by autograd alone."""
        places = [tensor for place, tensor in self.tapped.items() if place[:2] == level]
        found = torch.autograd.grad(value, places, retain_graph=True, allow_unused=True)
        return sum(float(each.square().sum()) for each in found if each is not None)

    def observed(self, terms=None, applied=None, factor=1.0, apart=False):
        """Run one watched backward, and return the balancer."""
        terms = self.terms() if terms is None else terms
        applied = {name: torch.zeros_like(term) for name, term in terms.items()} if applied is None else applied
        balancer = GradientNormBalancer(list(terms), every=1)
        observation = Observation(balancer)
        for place, tensor in self.tapped.items():
            observation.watch(place, tensor)
        edges = {place: torch.autograd.graph.get_gradient_edge(tensor) for place, tensor in self.tapped.items()}
        loss = torch.stack([(applied[name] * term).sum() for name, term in terms.items()]).sum()
        observation.expect(terms, LOOKS_AT, applied, edges, loss)
        if apart:
            (self.host * factor).backward(retain_graph=True)
            (loss * factor).backward()
        else:
            ((self.host + loss) * factor).backward()
        return balancer


def wanted(graph, terms):
    """Return each term's ratio of gradient norms by level."""
    ratios = {}
    for name, term in terms.items():
        kind = LOOKS_AT[name]
        pairs = [
            (graph.norm(graph.host, (kind, level)), graph.norm(value, (kind, level)))
            for level, value in enumerate(term.unbind())
        ]
        ratios[name] = torch.tensor([(host / own) ** 0.5 if own else 0.0 for host, own in pairs])
    return ratios


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("factor", [1.0, 64.0, 0.25])
@pytest.mark.parametrize("counts", [False, True])
def test_the_ratios_are_those_of_separate_backwards_also_where_a_level_is_tapped_twice(counts, factor, apart):
    graph = Graph()
    terms = graph.terms()
    expected = wanted(graph, terms)
    applied = {name: torch.full_like(term, 0.7 if counts else 0.0) for name, term in terms.items()}
    found = graph.observed(terms, applied, factor, apart).factors
    assert found.keys() == expected.keys()
    for name, ratios in expected.items():
        torch.testing.assert_close(found[name].float(), ratios, rtol=1e-4, atol=0)


def test_a_level_that_a_term_does_not_reach_has_no_ratio_and_the_others_theirs():
    graph = Graph()
    first, second, *_ = graph.tapped.values()
    # Level 0 depends on what comes before it alone, level 1 on level 1.
    terms = {"cross": torch.stack([graph.start.sum(), second.pow(2).sum()]), "self": torch.stack([first.sum()])}
    expected = wanted(graph, terms)
    found = graph.observed(terms).factors
    assert found["cross"][0] == 0
    torch.testing.assert_close(found["cross"].float(), expected["cross"], rtol=1e-5, atol=0)
    torch.testing.assert_close(found["self"].float(), expected["self"], rtol=1e-5, atol=0)


def test_attention_that_only_the_term_reaches_is_measured_as_not_reached_by_the_host():
    graph = Graph()
    graph.host = graph.tapped["features", 1, 0].square().sum()
    found = graph.observed().factors
    assert not found["attention"].any()
    assert bool(found["self"].gt(0).all())


def test_attention_without_any_tapped_tensor_counts_nothing_and_is_no_error():
    graph = Graph()
    terms = {"attention": torch.stack([graph.start.sum()]), "self": graph.terms()["self"]}
    for place in [("attention", 0, 0), ("attention", 0, 1)]:
        del graph.tapped[place]
    found = graph.observed(terms).factors
    assert not found["attention"].any()
    assert bool(found["self"].gt(0).all())


def test_one_backward_is_measured_once():
    graph = Graph()
    balancer = GradientNormBalancer(["self"], every=1)
    observation = Observation(balancer)
    for place, tensor in graph.tapped.items():
        observation.watch(place, tensor)
    edges = {place: torch.autograd.graph.get_gradient_edge(tensor) for place, tensor in graph.tapped.items()}
    terms = {"self": graph.terms()["self"]}
    loss = terms["self"].sum()
    observation.expect(terms, LOOKS_AT, {"self": torch.ones(1)}, edges, loss)
    (graph.host + loss).backward(retain_graph=True)
    first = balancer.factors["self"].clone()
    (graph.host * 9 + loss).backward()
    assert torch.equal(balancer.factors["self"], first)


# -- the running factor ------------------------------------------------------------------------------------------------


def test_each_level_keeps_its_own_factor_and_a_measurement_without_meaning_leaves_it():
    balancer = GradientNormBalancer(["cross"], every=1)
    balancer.update("cross", torch.tensor([4.0, 0.0, 9.0]))
    assert balancer.factors["cross"].tolist() == [4.0, 0.0, 9.0]
    balancer.update("cross", torch.tensor([4.0 * 32, 5.0, float("nan")]))
    # The first moves by a fifth of the way in the logarithm, the second begins, the third stays.
    torch.testing.assert_close(balancer.factors["cross"], torch.tensor([8.0, 5.0, 9.0]))


@pytest.mark.parametrize(("host", "moves"), [(0.9e-12, False), (1.1e-12, True), (1e-7, True), (1e-5, True)])
def test_a_gradient_a_million_times_below_that_of_the_terms_is_rounding(host, moves):
    balancer = GradientNormBalancer(["cross"], every=1)
    for each in (1.0, host):
        balancer.measured("cross", torch.tensor([each], dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    ratio = host**0.5
    assert float(balancer.factors["cross"]) == pytest.approx(ratio ** (0.2 if ratio > 1e-3 else 1) if moves else 1.0)


def test_a_factor_that_is_decades_too_large_comes_down_within_a_few_measurements():
    balancer = GradientNormBalancer(["cross"], every=1)
    balancer.measured("cross", torch.tensor([1e-15]), torch.tensor([1e-16]))
    for _ in range(3):
        balancer.measured("cross", torch.tensor([1e-15]), torch.tensor([1e4]))
    assert float(balancer.factors["cross"]) == pytest.approx(1e-19**0.5, rel=1e-3)


def test_a_factor_is_at_most_a_million():
    balancer = GradientNormBalancer(["cross"], every=1)
    balancer.update("cross", torch.tensor([1e9]))
    assert float(balancer.factors["cross"]) == 1e6
    balancer.update("cross", torch.tensor([1e9]))
    assert float(balancer.factors["cross"]) == pytest.approx(1e6, rel=1e-4)


def test_measured_are_squared_norms_and_a_level_without_own_gradient_has_no_ratio():
    balancer = GradientNormBalancer(["cross"], every=1)
    balancer.measured("cross", torch.tensor([9.0, 4.0, 0.0]), torch.tensor([4.0, 0.0, 1.0]))
    assert balancer.factors["cross"].tolist() == [1.5, 0.0, 0.0]


def test_where_other_processes_measure_too_the_factors_wait_to_be_settled_and_take_each_measurement_once():
    composer = Composer(Config(warmup=0), {"cross": 1.0, "self": 1.0})
    composer.wait()
    balancer = composer.balancer
    for name, host in (("cross", 4.0), ("self", 16.0)):
        balancer.measured(name, torch.tensor([host]), torch.tensor([1.0]))
    assert [balancer.factor(name) for name in ("cross", "self")] == [0.0, 0.0]
    composer.settle()
    assert [balancer.factors[name].tolist() for name in ("cross", "self")] == [[2.0], [4.0]]
    balancer.update("cross", torch.tensor([2.0 * 32]))
    composer.settle()
    torch.testing.assert_close(balancer.factors["cross"], torch.tensor([4.0]))


def test_a_step_is_watched_in_the_first_steps_and_then_every_so_many():
    composer = Composer(Config(balance_every=10), {"cross": 1.0})
    composer.balancer.update("cross", torch.tensor([1.0]))
    watched = [step for step in range(EAGER_STEPS + 30) if composer.observation(step) is not None]
    assert watched == [*range(EAGER_STEPS), 40, 50, 60]
    assert composer.observation(0).balancer is composer.balancer
    assert Composer(Config(balance="none"), {"cross": 1.0}).observation(0) is None


# -- the composer ------------------------------------------------------------------------------------------------------


def test_the_sum_and_the_log_are_the_levels_times_weight_factor_and_schedule():
    composer = Composer(Config(warmup=4), {"cross": 0.5, "self": 0.1})
    composer.balancer.update("cross", torch.tensor([2.0, 3.0]))
    composer.balancer.update("self", torch.tensor([7.0]))
    terms = {"cross": torch.tensor([10.0, 20.0], requires_grad=True), "self": torch.tensor([5.0], requires_grad=True)}
    loss = composer.combine(terms, 2)
    cross, own = 0.75 * 0.5 * (2 * 10 + 3 * 20), 0.75 * 0.1 * 7 * 5
    assert float(loss.detach()) == pytest.approx(cross + own)
    logged = {name: float(value) for name, value in composer.log.items()}
    assert logged == pytest.approx(
        {"cross": 30.0, "self": 5.0, "factor/cross": cross / 30, "factor/self": own / 5, "loss": cross + own}
    )
    loss.backward()
    assert terms["cross"].grad.tolist() == pytest.approx([0.75 * 0.5 * 2, 0.75 * 0.5 * 3])


def test_a_term_of_zero_is_logged_with_a_factor_of_zero():
    composer = Composer(Config(balance="none"), {"cross": 1.0})
    composer.combine({"cross": torch.zeros(2)}, 500)
    assert {name: float(value) for name, value in composer.log.items()} == {"cross": 0, "factor/cross": 0, "loss": 0}


def test_before_the_first_measurement_nothing_counts():
    composer = Composer(Config(warmup=0), {"cross": 1.0})
    assert composer.factors() == {"cross": 0.0}
    assert float(composer.combine({"cross": torch.ones(2)}, 0)) == 0
    assert Composer(Config(balance="none"), {"cross": 0.3, "self": 2}).factors() == {"cross": 0.3, "self": 2.0}


def test_terms_that_a_host_has_not_are_forgotten_with_their_factors():
    composer = Composer(Config(), {"cross": 1.0, "self": 1.0, "attention": 1.0})
    composer.keep(["self"], torch.device("cpu"))
    assert composer.weights == {"self": 1.0}
    assert list(composer.balancer.factors) == ["self"]
    plain = Composer(Config(balance="none"), {"cross": 1.0, "self": 1.0})
    plain.keep(["cross"], torch.device("cpu"))
    assert plain.weights == {"cross": 1.0}
    plain.wait()
    plain.settle()
    assert plain.state() == ({}, {})
    plain.load({"cross": torch.ones(1)}, {})


def test_loaded_factors_are_on_the_hosts_device():
    composer = Composer(Config(), {"cross": 1.0, "self": 1.0})
    composer.keep(["cross", "self"], torch.device("meta"))
    composer.load({"self": torch.ones(2)}, {})
    assert composer.balancer.factors["cross"] is None
    assert composer.balancer.factors["self"].device.type == "meta"


@pytest.mark.parametrize("decay", [None, (3, 6)])
def test_all_is_over_with_the_last_step_of_the_decay(decay):
    composer = Composer(Config(decay=decay), {"cross": 1.0})
    assert [composer.over(step) for step in range(9)] == [decay is not None and step >= 6 for step in range(9)]
    composer.keep([], torch.device("cpu"))
    assert composer.over(0), "without a term it never begins"


def test_the_rise_over_the_warm_up_is_linear_from_its_first_step():
    composer = Composer(Config(warmup=5, balance="none", cross=TermConfig(weight=1.0)), {"cross": 1.0})
    found = [float(composer.combine({"cross": torch.ones(1)}, step)) for step in range(7)]
    assert found == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0])
    assert all(composer.active(step) for step in range(7))
    assert all(later >= sooner for sooner, later in itertools.pairwise(found))
