from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

from inpaint_distill.adapters import get
from inpaint_distill.cli import main
from inpaint_distill.config import AttentionConfig, Config, TermConfig, from_dict, to_dict
from inpaint_distill.errors import ConfigError
from inpaint_distill.training import boost as boost_module
from inpaint_distill.training import cost as cost_module
from inpaint_distill.training import pool as pool_module
from inpaint_distill.training.ablation import ARM_LABELS, CHANGES, VARIANTS, Contrast, contrasts, variant_config
from inpaint_distill.training.boost import boost
from inpaint_distill.training.data import EvalSet, load_data
from inpaint_distill.training.explained import paints_grey
from inpaint_distill.training.figures import curves, differences, forest
from inpaint_distill.training.inspect import inspect_study
from inpaint_distill.training.loop import Trainer
from inpaint_distill.training.report import write_report
from inpaint_distill.training.result import read_result
from inpaint_distill.training.settings import BoostSettings, Run
from inpaint_distill.training.statistics import paired_interval
from inpaint_distill.training.tables import headlines, markdown_table

CHOSEN = ("self", "completion", "uniform", "finite_difference")
TINY = {
    "host": "partial-conv",
    "host_options": {"width": 4, "levels": 3},
    "size": 32,
    "batch": 2,
    "steps": 3,
    "seeds": [0, 1],
    "lrs": [0.001],
    "evaluations": 2,
    "train_images": 8,
    "eval_images": 6,
    "jobs": 1,
    "distillation": {"warmup": 0, "balance_every": 1, "lookahead": {"every": 1}},
}
ROOT = Path(__file__).parents[2]


class InProcess:
    """Stands in for the worker processes, which take longer to start than these runs to train."""

    def __init__(self, jobs, context, start, arguments):
        start(*arguments)

    def submit(self, work, *arguments):
        future = concurrent.futures.Future()
        future.set_result(work(*arguments))
        return future

    def shutdown(self, **_):
        pass


@pytest.fixture(scope="module", autouse=True)
def _quick():
    """Train in this process, and time few steps."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool_module, "ProcessPoolExecutor", InProcess)
        patch.setattr(pool_module.signal, "signal", lambda *_: None)
        patch.setattr(cost_module, "_WARM", 1)
        patch.setattr(cost_module, "_ROUNDS", 3)
        yield
    torch.set_num_threads(threads)


STARTED = {"completion_start": "interpolation"}


def parts(config):
    terms = {name for name in ("cross", "self", "attention") if to_dict(config)[name]["weight"] > 0}
    return terms, config.completion, config.lookahead.engine


@pytest.mark.parametrize(
    ("name", "terms", "completion", "engine"),
    [
        ("cross", {"cross"}, False, "off"),
        ("self", {"self"}, False, "off"),
        ("attention", {"attention"}, False, "off"),
        ("completion", set(), True, "off"),
        ("uniform", {"cross", "self", "attention"}, False, "off"),
        ("finite_difference", {"cross", "self", "attention"}, False, "finite_difference"),
        ("unroll", {"cross", "self", "attention"}, False, "unroll"),
        ("all", {"cross", "self", "attention"}, True, "finite_difference"),
    ],
)
def test_a_variant_has_its_parts_and_no_others(name, terms, completion, engine):
    nothing = from_dict(Config, {part: {"weight": 0.0} for part in ("cross", "self", "attention")})
    studies = [Config(completion=True, **other) for other in ({"completion_levels": (1,), "fusion": True}, STARTED)]
    for study in (Config(), nothing, *studies):
        assert parts(variant_config(name, study)) == (terms, completion, engine)


def test_a_variant_keeps_the_studys_own_choices():
    values = {"teacher": "frozen", "cross": {"weight": 0.7}, "self": {"weight": 0.0}, "attention": {"distance": "kl"}}
    study = from_dict(Config, {**values, "lookahead": {"engine": "unroll", "steps": 3}, "meta": ["rho"]})
    uniform, everything = (variant_config(name, study) for name in ("uniform", "all"))
    assert (uniform.teacher, uniform.cross.weight, uniform.self_.weight) == ("frozen", 0.7, 0.0125)
    assert (uniform.attention.distance, uniform.meta) == ("kl", None)
    assert (everything.lookahead, everything.meta) == (study.lookahead, ("rho",))
    assert variant_config("finite_difference", study).lookahead.steps == 1
    assert variant_config("distilled", study) is study


def test_variants_that_do_not_exist_or_repeat_are_errors():
    with pytest.raises(ConfigError, match="unroll"):
        BoostSettings(variants=("unrol",))
    for variants in ((), ("self", "self"), ("bare",)):
        with pytest.raises(ConfigError):
            BoostSettings(variants=variants)


def test_the_look_aheads_are_compared_with_uniform_weights_and_all_with_the_same_time():
    made = contrasts(tuple(VARIANTS), equal_time=True)
    assert made[: len(VARIANTS)] == [Contrast("steps", "bare", name) for name in VARIANTS]
    assert made[len(VARIANTS) :] == [
        Contrast("steps", "uniform", "finite_difference"),
        Contrast("steps", "uniform", "unroll"),
        Contrast("steps", "completion", "all"),
        Contrast("time", "bare_equal_time", "all"),
    ]
    assert contrasts(("distilled",), equal_time=False) == [Contrast("steps", "bare", "distilled")]


STUDY = Config(teacher_steps=2, warmup=0, balance_every=1, cross=TermConfig(normalize="none"), decay=(3, 9))
NORMALIZE = {"channel_norm": "channel", "layer_norm": "layer", "no_norm": "none"}
EXPECTED = {
    "teacher_frozen": dataclasses.replace(STUDY, teacher="frozen"),
    "teacher_untrained": dataclasses.replace(STUDY, teacher="frozen", teacher_steps=1),
    "teacher_online": dataclasses.replace(STUDY, teacher="online"),
    "teacher_ema": STUDY,
    **{
        name: dataclasses.replace(
            STUDY, cross=TermConfig(normalize=how), self_=TermConfig(weight=0.0125, normalize=how)
        )
        for name, how in NORMALIZE.items()
    },
    "fixed_weights": dataclasses.replace(
        STUDY,
        balance="none",
        cross=TermConfig(weight=0.005, normalize="none"),
        self_=TermConfig(weight=0.0006),
        attention=AttentionConfig(weight=0.05),
    ),
    "no_fade": dataclasses.replace(STUDY, decay=None),
    "early_fade": STUDY,  # the settings say when
    "every_step": STUDY,
    "every_fourth": dataclasses.replace(STUDY, every=4),
    "adaptive_blocks": dataclasses.replace(STUDY, completion=True, completion_adaptive=True),
    "identity_start": dataclasses.replace(STUDY, completion=True),
    "interpolation_start": dataclasses.replace(STUDY, completion=True, completion_start="interpolation"),
    "stage_block": dataclasses.replace(STUDY, completion=True, completion_levels=(0,)),
    "deep_blocks": dataclasses.replace(STUDY, completion=True, completion_levels=(1, 2)),
    "more_blocks": dataclasses.replace(STUDY, completion=True, completion_levels=(0, 1, 2)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_distillation_is_the_studys_but_for_one_thing(name):
    assert variant_config(name, STUDY) == EXPECTED[name]


def test_a_changed_distillation_leaves_out_what_the_study_does():
    study = from_dict(Config, {"self": {"weight": 0.0}, "attention": {"weight": 0.0}, "completion": True})
    fixed = variant_config("fixed_weights", study)
    assert (fixed.cross.weight, fixed.self_.weight, fixed.attention.weight) == (0.005, 0.0, 0.0)
    assert fixed.completion
    unnormalized = variant_config("no_norm", study)
    assert (unnormalized.cross, unnormalized.self_) == (TermConfig(normalize="none"), study.self_)


def test_one_arm_never_fades_and_one_in_half_the_time():
    settings = BoostSettings(fade=(0.5, 1.0), variants=("distilled", "no_fade", "early_fade", "layer_norm"))
    decays = [settings.distillation_for(name, 200).decay for name in settings.variants]
    assert decays == [(100, 200), None, (50, 100), (100, 200)]
    assert [settings.fade_for(name) for name in settings.variants] == [(0.5, 1.0), None, (0.25, 0.5), (0.5, 1.0)]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("teacher_ema", {}),
        ("channel_norm", {}),
        ("no_fade", {"fade": None}),
        ("early_fade", {"fade": None}),
        ("every_step", {}),
        ("teacher_online", {"distillation": {"teacher": "online"}}),
    ],
)
def test_a_change_to_what_the_study_has_already_is_an_error(name, values):
    with pytest.raises(ConfigError, match="is like that"):
        from_dict(BoostSettings, {**values, "variants": [name]})


def test_a_widened_host_wants_its_options_and_has_no_distillation():
    with pytest.raises(ConfigError, match="widened_options"):
        BoostSettings(variants=("widened",))
    settings = BoostSettings(variants=("widened",), host_options={"width": 4}, widened_options={"width": 7})
    assert settings.distillation_for("widened", 100) is None
    assert [settings.options_for(arm)["width"] for arm in ("bare", "all", "bare_equal_time", "widened")] == [4, 4, 4, 7]


def test_changes_are_compared_with_the_studys_own_and_with_their_blocks_and_completion_with_width():
    names = ("distilled", "no_fade", "deep_blocks", "completion", "all", "widened", "self")
    assert contrasts(names, equal_time=True)[len(names) :] == [
        Contrast("steps", "distilled", "no_fade"),
        Contrast("steps", "distilled", "deep_blocks"),
        Contrast("steps", "widened", "completion"),
        Contrast("steps", "widened", "all"),
        Contrast("steps", "widened", "distilled"),
        Contrast("steps", "completion", "all"),
        Contrast("steps", "completion", "distilled"),
        Contrast("steps", "completion", "no_fade"),
        Contrast("time", "bare_equal_time", "self"),
    ]
    assert contrasts(("no_fade", "widened"), equal_time=False) == [
        Contrast("steps", "bare", "no_fade"),
        Contrast("steps", "bare", "widened"),
    ]


def test_a_host_with_interpolated_holes_is_a_host_alone_that_blocks_are_compared_with():
    settings = BoostSettings(variants=("filled", "completion", "distilled"))
    assert settings.distillation_for("filled", 100) is None
    assert settings.options_for("filled") == settings.host_options
    assert [settings.adapter(arm).fill for arm in ("bare", "filled", "distilled")] == [None, "interpolated", None]
    made = contrasts(settings.variants, equal_time=False)
    assert {Contrast("steps", "bare", "filled"), Contrast("steps", "filled", "completion")} <= set(made)
    assert Contrast("steps", "filled", "distilled") in made
    assert not any(contrast.comparison == "time" for contrast in made)
    with pytest.raises(ConfigError, match="in every arm"):
        BoostSettings(variants=("filled",), interpolate=True)


def test_each_host_alone_is_trained_for_the_wall_clock_of_the_last_arm():
    settings = BoostSettings(variants=("filled", "completion", "distilled"), steps=100, seeds=(3,))
    made = [contrast for contrast in contrasts(settings.variants, equal_time=True) if contrast.comparison == "time"]
    assert made == [
        Contrast("time", "bare_equal_time", "distilled"),
        Contrast("time", "filled_equal_time", "distilled"),
        Contrast("time", "completion_equal_time", "distilled"),
    ]
    assert settings.distillation_for("filled_equal_time", 100) is None
    assert settings.adapter("filled_equal_time").fill == "interpolated"
    assert settings.distillation_for("completion_equal_time", 100) == settings.distillation_for("completion", 100)
    ratio = {"bare": 1.0, "filled": 1.25, "completion": 1.2, "distilled": 1.5}
    steps = {run.arm: run.steps for run in boost_module.planned(settings, 1e-3, ratio)}
    assert steps == {
        **dict.fromkeys(ratio, 100),
        "bare_equal_time": 150,
        "filled_equal_time": 120,
        "completion_equal_time": 125,
    }
    with pytest.raises(ConfigError, match="no such variant"):
        BoostSettings(variants=("completion_equal_time", "distilled"))
    alone = contrasts(("distilled", "filled"), equal_time=True)
    assert [contrast.baseline for contrast in alone if contrast.comparison == "time"] == ["bare_equal_time"]


def test_a_study_whose_block_starts_at_the_interpolation_can_ask_for_blocks_after_stages():
    study = Config(completion=True, **STARTED)
    for name in ("stage_block", "deep_blocks", "more_blocks"):
        assert variant_config(name, study).completion_start == "identity"
    assert variant_config("completion", study).completion_start == "interpolation"


def test_it_is_trained_as_the_host_of_a_study_that_interpolates_the_holes_of_all():
    reads = {"host": "unet", "host_options": {"levels": 2, "width": 4}}  # its holes
    settings = from_dict(BoostSettings, {**TINY, **reads, "variants": ["filled"]})
    data = load_data(settings)
    other = dataclasses.replace(settings, variants=("distilled",), interpolate=True)
    run = Run(arm="filled", seed=0, steps=4, lr=1e-3)
    first, second = Trainer(run, settings, data), Trainer(dataclasses.replace(run, arm="bare"), other, data)
    losses = [[float(trainer.train_step()) for _ in range(run.steps)] for trainer in (first, second)]
    assert losses[0] == losses[1]
    assert torch.equal(first.restored(2), second.restored(2))
    assert Trainer(dataclasses.replace(run, arm="bare"), settings, data).train_step() != losses[0][0]


@pytest.fixture(scope="module")
def few_steps():
    """Train an arm for seven steps, the last one after the fade; return the trainer, its start and its batches."""
    settings = from_dict(BoostSettings, {**TINY, "widened_options": {"width": 7, "levels": 3}})
    settings = dataclasses.replace(settings, distillation=STUDY, fade=(0.5, 1.0))
    data = load_data(settings)

    @functools.cache
    def train(arm):
        trainer = Trainer(Run(arm=arm, seed=5, steps=6, lr=1e-3), settings, data)
        start = {name: value.clone() for name, value in trainer.host.state_dict().items()}
        drawn, draw = [], trainer.batches.draw
        trainer.batches.draw = lambda: drawn.append(draw()) or drawn[-1]
        assert torch.isfinite(torch.stack([trainer.train_step() for _ in range(7)])).all()
        return trainer, start, [tensor for batch in drawn for tensor in batch]

    return train


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_distillation_shares_start_and_batches_and_trains_otherwise(few_steps, name):
    trainer, start, batches = few_steps(name)
    decay = {"no_fade": None, "early_fade": (2, 3)}.get(name, (3, 6))
    assert trainer.distiller.config == dataclasses.replace(EXPECTED[name], decay=decay)
    for other in ("bare", "distilled"):
        trained, own_start, own_batches = few_steps(other)
        assert equal({name: start[name] for name in own_start}, own_start)  # blocks of its own aside
        assert all(torch.equal(*pair) for pair in zip(batches, own_batches, strict=True))
        # The study's teacher is the moving average already, and asked at every step: the very same training.
        same = other == "distilled" and name in ("teacher_ema", "every_step")
        assert equal(trainer.host.state_dict(), trained.host.state_dict()) == same


def test_a_widened_host_trains_without_distillation_on_the_batches_of_the_others(few_steps):
    trainer, start, batches = few_steps("widened")
    assert trainer.distiller is None
    expected = get("partial-conv").build(width=7, levels=3)
    assert [value.shape for value in start.values()] == [value.shape for value in expected.state_dict().values()]
    assert not equal(start, trainer.host.state_dict())
    assert all(torch.equal(*pair) for pair in zip(batches, few_steps("bare")[2], strict=True))


def test_every_arm_starts_from_the_same_weights_and_trains_on_the_same_batches():
    settings = from_dict(BoostSettings, {**TINY, "variants": CHOSEN})
    data = load_data(settings)
    seen, start = {}, {}
    for arm in ("bare", *CHOSEN):
        trainer = Trainer(Run(arm=arm, seed=5, steps=3, lr=1e-3), settings, data)
        start[arm] = {name: value.clone() for name, value in trainer.host.state_dict().items()}
        drawn, draw = [], trainer.batches.draw
        trainer.batches.draw = lambda draw=draw, drawn=drawn: drawn.append(draw()) or drawn[-1]
        for _ in range(3):
            trainer.train_step()
        seen[arm] = [tensor for batch in drawn for tensor in batch]
        assert len(seen[arm]) == 6
        assert all(torch.equal(own, bare) for own, bare in zip(seen[arm], seen["bare"], strict=True))
    weights = get("partial-conv").build(**settings.host_options).state_dict()
    for arm in CHOSEN:
        shared = [name for name in weights if name in start[arm]]
        assert shared == list(weights) or arm == "completion"
        assert all(torch.equal(start[arm][name], start["bare"][name]) for name in shared)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A whole ablation through the command line."""
    folder = tmp_path_factory.mktemp("ablation")
    (folder / "study.yaml").write_text(yaml.safe_dump(TINY))
    words = ["boost", "--config", str(folder / "study.yaml"), "--out", str(folder / "out"), "--ablate", *CHOSEN]
    assert main(words) == 0
    return folder / "out"


def test_every_variant_is_paired_with_the_host_on_both_splits(study):
    result = json.loads((study / "result.json").read_text())
    arms = ("bare", *CHOSEN, "bare_equal_time")
    assert [(run["arm"], run["seed"]) for run in result["runs"]] == [(arm, seed) for seed in (0, 1) for arm in arms]
    runs = {(run["arm"], run["seed"]): run for run in result["runs"]}
    for split, scores in (("test", "scores"), ("val", "val_scores")):
        found = {
            (row["comparison"], row["baseline"], row["arm"]): row
            for row in result["comparisons"]
            if (row["split"], row["metric"], row["bin"]) == (split, "hole_psnr", "all")
        }
        assert list(found) == contrasts(CHOSEN, equal_time=True)
        for (_, baseline, arm), row in found.items():
            before, after = ([runs[each, s][scores]["hole_psnr"]["all"] for s in (0, 1)] for each in (baseline, arm))
            interval = paired_interval(before, after)
            assert (row["mean"], row["low"], row["high"]) == (interval.mean, interval.low, interval.high)
    assert len(result["verdict"]) == 2 * len(contrasts(CHOSEN, equal_time=True))
    for run in runs.values():
        assert run["val_scores"]["hole_psnr"]["all"] == run["curve"][-1]["hole_psnr"]


def test_what_could_not_be_measured_is_said_once(study):
    warnings = [text for text in read_result(study / "result.json")["warnings"] if "was not measured" in text]
    assert [text.split()[0] for text in warnings] == ["LPIPS", "FID"]
    assert "LPIPS was not measured" in (study / "report.html").read_text()
    assert "LPIPS ↓" not in (study / "table.md").read_text()


def test_a_host_that_ends_below_interpolation_is_warned_of(study):
    result = read_result(study / "result.json")
    bare = [run["scores"]["hole_psnr"]["all"] for run in result["runs"] if run["arm"] == "bare"]
    fills = result["fills"]
    assert fills["one_colour"] < fills["interpolation"]  # scenes are smooth but for their edges
    expected = f"({sum(bare) / len(bare):.2f} against {fills['interpolation']:.2f} dB hole PSNR)"
    warned = [text for text in result["warnings"] if "below interpolation" in text]
    assert len(warned) == 1  # a few steps teach less than that
    assert expected in warned[0]
    assert f"interpolation of the holes has {fills['interpolation']:.2f} dB" in (study / "report.html").read_text()


def test_a_host_that_paints_grey_is_warned_of_as_its_curve_says(study):
    result = read_result(study / "result.json")
    ends = [run["curve"][-1]["known_chroma"] for run in result["runs"] if run["arm"] == "bare"]
    warned = [text for text in result["warnings"] if "paints grey" in text]
    assert len(warned) == 1, "a few steps teach no colours"
    assert warned[0].startswith(f"the host alone {paints_grey(ends)}")
    assert all({"known_luma", "known_chroma"} <= set(point) for run in result["runs"] for point in run["curve"])


def test_the_cost_of_every_arm_sets_the_length_of_the_longer_run(study):
    result = json.loads((study / "result.json").read_text())
    cost = result["cost"]
    assert list(cost["ratio"]) == list(cost["step_seconds"]) == ["bare", *CHOSEN]
    assert cost["ratio"]["bare"] == 1.0
    longer = [run["steps"] for run in result["runs"] if run["arm"] == "bare_equal_time"]
    assert longer == [max(3, round(3 * cost["ratio"][CHOSEN[-1]]))] * 2


def test_the_report_names_every_arm(study):
    report, table = (study / "report.html").read_text(), (study / "table.md").read_text()
    result = read_result(study / "result.json")
    for name in CHOSEN:
        assert VARIANTS[name].label in report
        assert f"| {VARIANTS[name].label} | host |" in table
    assert "On the test images" in report
    assert "On the validation images" in report
    assert len(headlines(result)) == len(contrasts(CHOSEN, equal_time=True))
    assert "+ meta, finite difference against + three terms, equal steps" in report
    for name in ("forest", "curves", "panels", "preview"):
        with Image.open(study / f"{name}.png") as drawn:
            assert drawn.width > 400


def test_every_run_leaves_its_trained_host_and_the_report_shows_what_is_in_it(study):
    runs = study / "runs"
    hosts = sorted(file.name.split("-steps")[0] for file in runs.glob("*.host.safetensors"))
    assert hosts == sorted(f"{arm}-seed{seed}" for arm in ("bare", *CHOSEN, "bare_equal_time") for seed in (0, 1))
    evidence = json.loads((study / "inspect" / "inspect.json").read_text())
    assert (evidence["arm"], evidence["seeds"]) == (CHOSEN[-1], [0, 1])
    assert "What the features show" in (study / "report.html").read_text()
    (bare,) = runs.glob("bare-seed0-*.host.safetensors")
    get("partial-conv").build(width=4, levels=3).load_state_dict(load_file(bare))
    assert {"self", "uniform"} <= {file.name.split("-seed")[0] for file in runs.glob("*.distiller")}
    assert all("channel_weights" in json.loads(file.read_text()) for file in runs.glob("*-seed0-*.json"))
    assert not any("channel_weights" in run for run in read_result(study / "result.json")["runs"])


def test_a_run_that_is_missing_a_file_is_trained_again_to_the_same_scores(study):
    before = json.loads((study / "result.json").read_text())
    lost = ("uniform-seed1-*.json", "self-seed0-*[0-9].safetensors", "bare-seed0-*.host*", "finite*-seed1-*.distiller")
    for name in lost:
        (file,) = (study / "runs").glob(name)
        file.unlink()
    assert main(["boost", "--config", str(study / "result.json"), "--out", str(study), "--resume"]) == 0
    after = json.loads((study / "result.json").read_text())
    assert after["comparisons"] == before["comparisons"]


def test_a_study_on_validation_images_never_reads_the_test_images(tmp_path, monkeypatch):
    settings = from_dict(BoostSettings, {**TINY, "variants": ["self"], "score_test": False})
    data = load_data(settings)
    unread = EvalSet(torch.full_like(data.test.images, math.nan), torch.zeros_like(data.test.holes))
    monkeypatch.setattr(boost_module, "load_data", lambda settings: dataclasses.replace(data, test=unread))
    result = boost(settings, tmp_path / "out", Console(quiet=True))
    assert {row["split"] for row in result["comparisons"]} == {"val"}
    assert all(run["scores"] == {} for run in result["runs"])
    assert "NaN" not in (tmp_path / "out" / "result.json").read_text()
    assert (
        not load_file(next((tmp_path / "out" / "runs").glob("self-seed0*lr0.001.safetensors")))["restored"]
        .isnan()
        .any()
    )
    report = (tmp_path / "out" / "report.html").read_text()
    assert "The test images were not scored." in report
    assert "On the test images" not in report


def test_the_command_line_ablates_everything_and_keeps_off_the_test_images(tmp_path, monkeypatch):
    asked = []

    def remember(settings, *_, **__):
        asked.append(settings)
        raise KeyboardInterrupt

    monkeypatch.setattr(boost_module, "boost", remember)
    for words in (["--ablate"], ["--ablate", "all", "--val-only"], []):
        assert main(["boost", "--out", str(tmp_path / "out"), *words]) == 130
    assert [settings.variants for settings in asked] == [tuple(VARIANTS), ("all",), ("distilled",)]
    assert [settings.score_test for settings in asked] == [True, False, True]


def test_a_widened_host_is_the_control_of_completion_blocks(tmp_path, alexnet):
    widened = {"width": 7, "levels": 3}
    values = {"variants": ["completion", "widened"], "widened_options": widened, "score_test": False, "seeds": [0]}
    out = tmp_path / "out"
    result = boost(from_dict(BoostSettings, {**TINY, **values}), out, Console(quiet=True))
    assert list(dict.fromkeys((row["baseline"], row["arm"]) for row in result["comparisons"])) == [
        ("bare", "completion"),
        ("bare", "widened"),
        ("widened", "completion"),
        ("bare_equal_time", "widened"),
    ]
    parameters = {run["arm"]: run["parameters"] for run in result["runs"]}
    assert parameters["widened"] == sum(p.numel() for p in get("partial-conv").build(**widened).parameters())
    assert json.loads((out / "inspect" / "inspect.json").read_text())["arm"] == "completion"
    report = (out / "report.html").read_text()
    assert f"{VARIANTS['completion'].label} against {ARM_LABELS['widened']}, equal steps" in report
    assert "LPIPS ↓" in report
    assert "FID grows" in report
    assert "LPIPS ↓" in (out / "table.md").read_text()


def test_a_study_of_a_widened_host_alone_has_no_distillation_to_inspect(tmp_path):
    values = {"variants": ["widened"], "widened_options": {"width": 5, "levels": 3}, "seeds": [0]}
    out = tmp_path / "out"
    result = boost(from_dict(BoostSettings, {**TINY, **values}), out, Console(quiet=True))
    assert [run["arm"] for run in result["runs"]] == ["bare", "widened", "bare_equal_time"]
    assert not (out / "inspect").exists()
    assert "What the features show" not in (out / "report.html").read_text()
    with pytest.raises(ConfigError, match="widened"):
        inspect_study(out, tmp_path / "inspect", arm="widened", console=Console(quiet=True))


@pytest.mark.parametrize("file", sorted((ROOT / "docs" / "results").glob("*/result.json")), ids=lambda f: f.parent.name)
def test_published_results_are_settings_and_render_whatever_their_schema(file, tmp_path):
    result = read_result(file)
    assert from_dict(BoostSettings, result["settings"]).variants
    assert markdown_table(result).startswith("| at | metric | holes |")
    assert headlines(result)
    figures = {draw.__name__: draw(result, tmp_path / f"{draw.__name__}.png") for draw in (curves, differences, forest)}
    page = write_report(result, figures, tmp_path).read_text()
    assert ("equal wall-clock" in page) == result["settings"]["equal_time"]
