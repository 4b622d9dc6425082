"""Cross- and self-distillation: hole only, zero on agreement, and which side takes the gradient."""

import itertools

import pytest
import torch
from hosts import batch
from torch import nn

from inpaint_distill.config import AttentionConfig, Config, LookaheadConfig, TermConfig
from inpaint_distill.errors import ConfigError
from inpaint_distill.host.attention import AttentionMap, AttentionSite
from inpaint_distill.host.stage import Stage
from inpaint_distill.host.watch import Views
from inpaint_distill.losses.build import build_terms, term_weights
from inpaint_distill.losses.cross import CrossDistillation
from inpaint_distill.losses.functional import hole_weight
from inpaint_distill.losses.self_distillation import SelfDistillation

CHANNELS = (8, 12, 16)


def stages(channels=CHANNELS, first=1):
    return [Stage(name=f"enc{i}", channels=c, stride=first * 2**i) for i, c in enumerate(channels)]


def features(channels=CHANNELS, first=1, seed=0, size=32):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(2, c, size // (first * 2**i), size // (first * 2**i), generator=generator).requires_grad_()
        for i, c in enumerate(channels)
    ]


def settings(**kwargs):
    return TermConfig(weight=1.0, **kwargs)


def distance(student, target, mask):
    """Compute the plain distance of one level in float64."""
    weight = hole_weight(mask.double(), target.shape[2:])
    squared = (target.double() - student.double()).square().mean(1, keepdim=True)
    return (weight * squared).sum() / weight.sum()


@pytest.fixture
def mask():
    return batch()[1]


# -- cross -------------------------------------------------------------------------------------------------------------


def test_cross_is_the_sum_over_the_levels(mask):
    term = CrossDistillation(settings(normalize="none"), stages(), stages(), predictor=False)
    student, teacher = features(), features(seed=1)
    expected = sum(distance(s, t, mask) for s, t in zip(student, teacher, strict=True))
    torch.testing.assert_close(term(student, teacher, mask).sum().double(), expected)
    assert not list(term.parameters())


@pytest.mark.parametrize("normalize", ["none", "channel", "layer"])
@pytest.mark.parametrize("predictor", [False, True])
def test_cross_is_zero_where_student_and_teacher_agree(mask, normalize, predictor):
    term = CrossDistillation(settings(normalize=normalize), stages(), stages(), predictor=predictor)
    student = features()
    loss = term(student, [each.detach().clone() for each in student], mask).sum()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("normalize", ["none", "channel", "layer"])
def test_cross_touches_no_known_pixel_and_no_teacher(mask, normalize):
    term = CrossDistillation(settings(normalize=normalize), stages(), stages())
    student, teacher = features(), features(seed=1)
    term(student, teacher, mask).sum().backward()
    for own, other in zip(student, teacher, strict=True):
        hole = (hole_weight(mask, own.shape[2:]) > 0).expand_as(own)
        assert not own.grad[~hole].any()
        assert own.grad[hole].abs().min() > 0 or own.grad[hole].count_nonzero() > 0.99 * hole.sum()
        assert other.grad is None


def test_cross_everywhere_touches_every_pixel(mask):
    term = CrossDistillation(settings(normalize="none", region="all"), stages(), stages())
    student = features()
    term(student, features(seed=1), mask).sum().backward()
    assert all(bool(each.grad.abs().sum(1).gt(0).all()) for each in student)


@pytest.mark.parametrize("factor", [1e-2, 1e2])
def test_a_common_scale_does_not_change_cross_under_channel_normalisation(mask, factor):
    term = CrossDistillation(settings(), stages(), stages(), predictor=False)
    student, teacher = features(), features(seed=1)
    scaled = term([each * factor for each in student], [each * factor for each in teacher], mask).sum()
    torch.testing.assert_close(scaled, term(student, teacher, mask).sum(), rtol=1e-3, atol=1e-4)


def test_a_teacher_of_other_channels_and_sizes_is_met_by_a_predictor(mask):
    other = (5, 7, 9)
    term = CrossDistillation(settings(), stages(), stages(other, first=2), predictor=False)
    student = features()
    loss = term(student, features(other, first=2, seed=1), mask).sum()
    loss.backward()
    assert torch.isfinite(loss)
    assert [predictor.conv.weight.shape[:2] for predictor in term.predictors] == [(5, 8), (7, 12), (9, 16)]
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in term.parameters())


def test_a_predictor_starts_as_the_identity(mask):
    student, teacher = features(), features(seed=1)
    values = [CrossDistillation(settings(), stages(), stages(), predictor=p)(student, teacher, mask) for p in (0, 1)]
    torch.testing.assert_close(values[0], values[1])


# -- self --------------------------------------------------------------------------------------------------------------


def test_self_compares_each_level_with_the_next_deeper_one(mask):
    term = SelfDistillation(settings(normalize="none"), stages())
    student = features()
    expected = sum(
        distance(f.conv(shallow), deep, mask)
        for f, shallow, deep in zip(term.projections, student, student[1:], strict=False)
    )
    torch.testing.assert_close(term(student, [], mask).sum().double(), expected, rtol=1e-5, atol=1e-6)
    assert [f.conv.stride for f in term.projections] == [(2, 2), (2, 2)]


@pytest.mark.parametrize("normalize", ["none", "channel"])
def test_self_pulls_the_shallow_side_alone_and_only_what_the_hole_sees(mask, normalize):
    term = SelfDistillation(settings(normalize=normalize), stages())
    student = features()
    term(student, [], mask).sum().backward()
    assert student[-1].grad is None
    for shallow, deep in itertools.pairwise(student):
        # The 3x3 kernel of f_l reads one shallow pixel around each deep cell of the hole.
        hole = (hole_weight(mask, deep.shape[2:]) > 0).float()
        read = nn.functional.interpolate(hole, shallow.shape[2:], mode="nearest")
        read = nn.functional.max_pool2d(read, 3, 1, 1).bool().expand_as(shallow)
        assert not shallow.grad[~read].any()
        assert shallow.grad[read].any()


def test_self_is_zero_where_the_projection_is_exact(mask):
    term = SelfDistillation(settings(), stages())
    shallow = features()[0]
    levels = [shallow]
    for projection in term.projections:
        levels.append(projection.conv(levels[-1]))
    loss = term([each.detach() for each in levels], [], mask).sum()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-9)


def test_self_between_equal_resolutions_uses_a_1x1_kernel():
    term = SelfDistillation(settings(), [Stage(name="a", channels=4, stride=4), Stage(name="b", channels=6, stride=4)])
    assert term.projections[0].conv.kernel_size == (1, 1)


def test_self_of_odd_sizes_is_brought_to_the_deep_one(mask):
    term = SelfDistillation(settings(), stages((8, 12)))
    loss = term([torch.randn(2, 8, 31, 31), torch.randn(2, 12, 15, 15)], [], mask).sum()
    assert torch.isfinite(loss)


@pytest.mark.parametrize("count", [0, 1])
def test_self_of_less_than_two_levels_is_an_error(count):
    with pytest.raises(ConfigError, match="two stages"):
        SelfDistillation(settings(), stages()[:count])


def test_a_term_is_zero_with_an_empty_hole(mask):
    empty = torch.zeros_like(mask)
    assert not CrossDistillation(settings(), stages(), stages())(features(), features(seed=1), empty).any()
    assert not SelfDistillation(settings(), stages())(features(), [], empty).any()


# -- meta-networks, sizes and anchors, against the formula -------------------------------------------------------------


def shaken(term):
    """Move all of a term's networks off their start."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in term.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return term


def weighed(student, target, mask, weights):
    """Compute the distance of one level in float64 with a weight for each channel of each sample."""
    hole = hole_weight(mask.double(), target.shape[2:])
    squared = (target.double() - student.double()).square() * weights.double()[:, :, None, None]
    return (hole * squared.sum(1, keepdim=True)).sum() / hole.sum()


def test_cross_with_meta_networks_is_the_formula_with_gamma_and_rho_of_the_teachers_feature(mask):
    term = shaken(CrossDistillation(settings(normalize="none"), stages(), stages(), meta=("gamma", "rho")))
    student, teacher = features(), features(seed=1)
    found = term(student, teacher, mask)
    for level, value in enumerate(found):
        target, size = teacher[level], student[level].shape[2:]
        predicted = term.predictors[level](student[level], size)
        torch.testing.assert_close(
            value.double(), weighed(predicted, term.gamma[level](target), mask, term.rho[level](target))
        )
        torch.testing.assert_close(term.channel_weights[f"rho/{level}"], term.rho[level](target).mean(0).detach())
    assert list(term.channel_weights) == ["rho/0", "rho/1", "rho/2"]
    assert not any(each.requires_grad for each in term.channel_weights.values())


@pytest.mark.parametrize("meta", [(), ("gamma",), ("rho",), ("gamma", "rho", "phi")])
def test_cross_has_the_meta_networks_that_were_asked_for(meta):
    term = CrossDistillation(settings(), stages(), stages((5, 7, 9)), meta=meta)
    assert (term.gamma is not None) == ("gamma" in meta)
    assert (term.rho is not None) == ("rho" in meta)
    if term.rho is not None:
        assert [each.linear.weight.shape for each in term.rho] == [(5, 5), (7, 7), (9, 9)]
    if term.gamma is not None:
        assert [each.conv.weight.shape[:2] for each in term.gamma] == [(5, 5), (7, 7), (9, 9)]


@pytest.mark.parametrize("scale", [(2, 2), (0.5, 0.5), (2, 1), (1, 2)])
def test_a_teachers_feature_of_another_size_is_brought_to_the_students_without_aliasing(mask, scale):
    term = CrossDistillation(settings(normalize="none"), stages(), stages(), predictor=False)
    student = features()
    teacher = [
        torch.randn(2, c, int(32 // 2**i * scale[0]), int(32 // 2**i * scale[1])) for i, c in enumerate(CHANNELS)
    ]
    resized = [
        nn.functional.interpolate(each, own.shape[2:], mode="bilinear", antialias=True)
        for each, own in zip(teacher, student, strict=True)
    ]
    wanted = torch.stack([distance(own, other, mask) for own, other in zip(student, resized, strict=True)])
    torch.testing.assert_close(term(student, teacher, mask).double(), wanted)


@pytest.mark.parametrize("predictor", [False, True])
def test_a_predictor_is_where_it_is_asked_for_or_where_the_channels_differ(predictor):
    term = CrossDistillation(settings(), stages((8, 12)), stages((8, 13)), predictor=predictor)
    assert [isinstance(each, nn.Identity) for each in term.predictors] == [not predictor, False]
    kernels = [each.conv.kernel_size for each in term.predictors if not isinstance(each, nn.Identity)]
    assert set(kernels) == {(1, 1)}
    assert not any(
        isinstance(each, nn.Identity) for each in CrossDistillation(settings(), stages(), stages()).predictors
    )


@pytest.mark.parametrize("normalize", ["none", "channel", "layer"])
@pytest.mark.parametrize("region", ["hole", "all"])
def test_both_sides_are_normalised_alike_and_compared_in_the_region_asked_for(mask, normalize, region):
    term = CrossDistillation(settings(normalize=normalize, region=region), stages(), stages(), predictor=False)
    student, teacher = features(), features(seed=1)

    def brought(each, reference):
        each, reference = each.double(), reference.double()
        if normalize == "none":
            return each
        if normalize == "layer":
            centred = each - each.mean(1, keepdim=True)
            return centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
        mean = reference.mean((0, 2, 3), keepdim=True)
        variance = (reference - mean).square().mean((0, 2, 3), keepdim=True)
        return (each - mean) / (variance + 0.1 * variance.mean()).sqrt()

    area = mask if region == "hole" else torch.ones_like(mask)
    wanted = torch.stack([distance(brought(s, t), brought(t, t), area) for s, t in zip(student, teacher, strict=True)])
    torch.testing.assert_close(term(student, teacher, mask).double(), wanted, rtol=1e-4, atol=1e-6)


def test_self_with_its_meta_network_is_the_formula_with_phi_of_the_deep_feature(mask):
    term = shaken(SelfDistillation(settings(normalize="none"), stages(), meta=("phi",)))
    student = features()
    found = term(student, [], mask)
    assert found.shape == (2,)
    for level, value in enumerate(found):
        deep, predicted = student[level + 1], term.projections[level].conv(student[level])
        weights = term.phi[level](deep)
        torch.testing.assert_close(value.double(), weighed(predicted, deep, mask, weights), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(term.channel_weights[f"phi/{level}"], weights.mean(0).detach())
    assert [each.linear.weight.shape for each in term.phi] == [(12, 12), (16, 16)]
    assert list(term.channel_weights) == ["phi/0", "phi/1"]


def test_self_without_a_meta_network_has_no_weights_to_show(mask):
    for term in (SelfDistillation(settings(), stages()), SelfDistillation(settings(), stages(), meta=("gamma",))):
        term(features(), [], mask)
        assert term.phi is None
        assert term.channel_weights == {}


def test_self_takes_the_deep_side_from_the_anchor(mask):
    term = SelfDistillation(settings(normalize="none"), stages())
    student, anchor = features(), features(seed=1)
    wanted = torch.stack([distance(term.projections[i].conv(student[i]), anchor[i + 1], mask) for i in range(2)])
    torch.testing.assert_close(term(student, [], mask, anchor).double(), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("strides", "kernel", "step"), [((2, 8), 3, 4), ((4, 4), 1, 1), ((8, 4), 1, 1), ((16, 4), 1, 1), ((3, 8), 3, 3)]
)
def test_self_strides_by_the_ratio_of_the_resolutions(strides, kernel, step):
    levels = [Stage(name=f"enc{i}", channels=4, stride=stride) for i, stride in enumerate(strides)]
    conv = SelfDistillation(settings(), levels).projections[0].conv
    assert (conv.kernel_size, conv.stride) == ((kernel, kernel), (step, step))


# -- all terms together ------------------------------------------------------------------------------------------------

SITES = [AttentionSite(name="mix", kind="softmax", queries=16, keys=16, channels=5)]
OFF = LookaheadConfig(engine="off")


@pytest.mark.parametrize(
    ("without", "wanted"),
    [
        ((), ["cross", "self", "attention"]),
        (("cross",), ["self", "attention"]),
        (("self_",), ["cross", "attention"]),
        (("attention",), ["cross", "self"]),
        (("cross", "self_"), ["attention"]),
    ],
)
def test_terms_are_built_where_they_have_a_weight(without, wanted):
    zero = {name: (AttentionConfig if name == "attention" else TermConfig)(weight=0.0) for name in without}
    terms = build_terms(Config(**zero), stages(), stages(), SITES, SITES)
    assert list(terms) == list(term_weights(Config(**zero))) == wanted
    assert terms.needs_teacher == (wanted != ["self"])
    assert terms.looks_at == {name: "attention" if name == "attention" else "features" for name in wanted}


def test_the_weights_are_the_configured_ones():
    config = Config(cross=TermConfig(weight=0.3), self_=TermConfig(weight=0.7), attention=AttentionConfig(weight=0.9))
    assert term_weights(config) == {"cross": 0.3, "self": 0.7, "attention": 0.9}
    assert "cross" not in term_weights(Config(cross=TermConfig(weight=0.0)))


def test_without_attention_the_other_terms_are_built():
    assert list(build_terms(Config(), stages(), stages())) == ["cross", "self"]
    with pytest.raises(ConfigError, match="name the attention"):
        build_terms(Config(meta=("t",)), stages(), stages())


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        (Config(), {"gamma", "rho", "phi", "t"}),
        (Config(meta=("rho", "t")), {"rho", "t"}),
        (Config(meta=("gamma",)), {"gamma"}),
        (Config(meta=("phi",)), {"phi"}),
        (Config(meta=()), set()),
        (Config(lookahead=OFF), set()),
    ],
)
def test_the_meta_networks_are_those_asked_for_and_all_by_default(config, wanted):
    terms = build_terms(config, stages(), stages(), SITES, SITES)
    names = {"gamma": terms["cross"].gamma, "rho": terms["cross"].rho, "phi": terms["self"].phi}
    assert {name for name, each in names.items() if each is not None} | (
        {"t"} if len(terms["attention"].t) else set()
    ) == (wanted)


def test_each_terms_own_settings_reach_it():
    config = Config(
        cross=TermConfig(normalize="none"),
        self_=TermConfig(region="all"),
        attention=AttentionConfig(distance="kl"),
        predictor=False,
    )
    teacher = [AttentionSite(name="other", kind="softmax", channels=7)]
    terms = build_terms(config, stages(), stages(), SITES, teacher)
    assert [terms[name].settings for name in terms] == [config.cross, config.self_, config.attention]
    assert all(isinstance(each, nn.Identity) for each in terms["cross"].predictors)
    assert terms["attention"].sites == tuple(SITES)
    assert terms["attention"].teacher_sites == tuple(teacher)
    assert terms["attention"].t[0].linear.in_features == 7
    assert terms["cross"].predictors is not None
    assert all(
        not isinstance(each, nn.Identity) for each in build_terms(Config(), stages(), stages())["cross"].predictors
    )


def test_every_term_is_given_what_it_looks_at(mask):
    terms = build_terms(Config(lookahead=OFF), stages(), stages(), SITES, SITES)
    student, teacher = features(), features(seed=1)
    rows = [[AttentionMap(rows=torch.randn(2, 1, 16, 16).softmax(-1))] for _ in range(2)]
    found = terms(Views(student, rows[0]), Views(teacher, rows[1]), mask)
    torch.testing.assert_close(found["cross"], terms["cross"](student, teacher, mask))
    torch.testing.assert_close(found["self"], terms["self"](student, teacher, mask))
    torch.testing.assert_close(found["attention"], terms["attention"](rows[0], rows[1], mask))
    assert [len(value) for value in found.values()] == [3, 2, 1]


def test_the_distillation_trains_predictors_and_projections_but_no_meta_network_and_all_is_saved(mask):
    terms = build_terms(Config(), stages(), stages())
    trained = {id(each) for each in terms.trained()}
    by_name = dict(terms.named_parameters())
    assert {name.split(".")[1] for name, each in by_name.items() if id(each) in trained} == {
        "predictors",
        "projections",
    }
    terms(Views(features()), Views(features(seed=1)), mask)
    assert sorted(terms.channel_weights) == ["phi/0", "phi/1", "rho/0", "rho/1", "rho/2"]
    tensors, values = shaken(terms).state()
    assert values == {}
    other = build_terms(Config(), stages(), stages())
    other.load(tensors, values)
    assert all(torch.equal(each, by_name[name]) for name, each in other.named_parameters())
