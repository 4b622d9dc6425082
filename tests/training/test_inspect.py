from __future__ import annotations

import itertools
import json
import shutil

import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file

from inpaint_distill.adapters import get
from inpaint_distill.cli import main
from inpaint_distill.config import from_dict, to_dict
from inpaint_distill.errors import ConfigError, StateError
from inpaint_distill.host.attention import AttentionMap, AttentionSite
from inpaint_distill.training.attention_view import pixel_attention
from inpaint_distill.training.data import EvalSet, load_data
from inpaint_distill.training.evidence import hole_agreement, hole_contrast
from inpaint_distill.training.evidence_table import LevelValues, sentences, summarise
from inpaint_distill.training.explained import explained
from inpaint_distill.training.feature_figures import channel_weights
from inpaint_distill.training.inspect import inspect_study
from inpaint_distill.training.loop import Trainer
from inpaint_distill.training.masks import free_form
from inpaint_distill.training.scoring import restore
from inpaint_distill.training.settings import BoostSettings, Run
from inpaint_distill.training.trained import features, load_trained, open_study

QUIET = Console(quiet=True)
FAMILIES = {
    "partial-conv": {"host_options": {"width": 4, "levels": 2}, "size": 16},
    "gated-conv": {"host_options": {"width": 4, "dilations": [2]}, "size": 32},
}


def make_study(folder, host, seeds=(0,), teacher="ema"):
    """Train the two arms for a few steps and write what a study leaves behind."""
    runs, photos, masks = folder / "runs", folder / "photos", folder / "masks"
    for each in (runs, photos, masks):
        each.mkdir(parents=True)
    for index in range(40):
        channels = [Image.effect_noise((40, 40), 60 + index + channel) for channel in range(3)]
        Image.merge("RGB", channels).save(photos / f"{index:02}.png")
    for index, mask in enumerate(free_form(24, FAMILIES[host]["size"], seed=0)):
        Image.fromarray(mask[0].numpy().astype("uint8") * 255).save(masks / f"{index:02}.png")
    distillation = {"teacher": teacher, "teacher_steps": 2, "warmup": 0}
    values = {"host": host, "data": str(photos), "masks": str(masks), "seeds": seeds, "distillation": distillation}
    values |= {"batch": 2, "steps": 3, "train_images": 6, "eval_images": 12, "fade": None}
    settings = from_dict(BoostSettings, {**values, **FAMILIES[host]})
    data = load_data(settings)
    (folder / "settings.json").write_text(json.dumps(to_dict(settings)))
    results = []
    for seed in seeds:
        for arm in ("bare", "distilled"):
            trainer = Trainer(Run(arm=arm, seed=seed, steps=3, lr=1e-2), settings, data)
            for _ in range(3):
                trainer.train_step()
            name = trainer.run.name
            save_file(
                {k: v.clone().contiguous() for k, v in trainer.host.state_dict().items()},
                runs / f"{name}.host.safetensors",
            )
            if trainer.distiller is not None:
                trainer.distiller.save(runs / f"{name}.distiller")
            results.append({"arm": arm, "seed": seed, "steps": 3, "lr": 1e-2})
            weights = [
                {"step": step, "weights": {"cross.rho.0": [0.25, 0.75 - 0.1 * step, 0.1 * step]}} for step in (1, 2)
            ]
            (runs / f"{name}.json").write_text(json.dumps({**results[-1], "channel_weights": weights}))
    (folder / "result.json").write_text(json.dumps({"runs": results}))
    return folder


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return make_study(tmp_path_factory.mktemp("study") / "boost", "gated-conv", seeds=(0, 3))


def test_the_command_writes_figures_table_and_numbers(study, capsys):
    assert main(["inspect", str(study), "--images", "3"]) == 0
    out = study / "inspect"
    written = {"features.png", "attention.png", "channel_weights.png", "table.md", "inspect.json"}
    assert {file.name for file in out.iterdir()} == written
    for name in ("features.png", "attention.png", "channel_weights.png"):
        with Image.open(out / name) as image:
            assert min(image.size) > 300
            assert len(image.convert("L").getcolors()) > 20
    result = json.loads((out / "inspect.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert (result["schema"], result["images"], result["seeds"], result["arm"]) == (1, 3, [0, 3], "distilled")
    assert result["settings"]["host"] == "gated-conv"
    assert result["versions"]["torch"] == torch.__version__
    assert [level["stage"] for level in result["levels"]] == [f"refine.encoder.{index}" for index in range(3)]
    table = (out / "table.md").read_text()
    assert "3 validation images, seeds 0, 3" in table
    assert "hole contrast" in capsys.readouterr().out
    shares = result["explained"]["known"]["chroma"]["seeds"]["bare"]
    assert len(shares) == 2
    assert max(shares) < 0.1, "three steps teach no colours"
    assert any(each.startswith("The host alone paints grey with 2 of 2 seeds") for each in result["sentences"])
    assert "| known | chroma |" in table


def test_the_numbers_are_those_of_the_trained_hosts(study, tmp_path):
    result = inspect_study(study, tmp_path, images=4, console=QUIET)
    opened = open_study(study, "distilled")
    data = load_data(opened.settings).val
    data = EvalSet(data.images[:4], data.holes[:4])
    for position, pair in enumerate(opened.pairs):
        trained = load_trained(opened, *pair, data)
        teacher, bare, distilled = trained.networks.values()
        for network, run in ((bare, pair[0]), (distilled, pair[1])):
            expected = load_file(study / "runs" / f"{run.name}.host.safetensors")
            assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())
            assert not network.training
        kept = load_file(study / "runs" / f"{pair[1].name}.distiller")
        assert all(torch.equal(value, kept[f"teacher/{name}"]) for name, value in teacher.state_dict().items())
        adapter = get("gated-conv")
        seen = features(distilled, trained.stages, adapter, data)
        complete = features(teacher, trained.stages, adapter, data, complete=True)
        itself = features(distilled, trained.stages, adapter, data, complete=True)
        given = explained(restore(distilled, adapter, data), data.images, data.holes)
        for side, part in itertools.product(given, given["hole"]):
            own = result["explained"][side][part]["seeds"]["distilled"][position]
            assert own == pytest.approx(given[side][part])
        for level, own, target, whole in zip(result["levels"], seen, complete, itself, strict=True):
            for measure, values in (
                ("hole_contrast", hole_contrast(own, data.holes)),
                ("hole_agreement", hole_agreement(own, target, data.holes)),
                ("self_agreement", hole_agreement(own, whole, data.holes)),
            ):
                found = level["measures"][measure]["seeds"]["distilled"][position]
                assert found == pytest.approx(values.nanquantile(0.5).item())


def test_features_do_not_depend_on_the_batch_and_leave_no_hook(study):
    opened = open_study(study, "distilled")
    data = load_data(opened.settings).val
    trained = load_trained(opened, *opened.pairs[0], data)

    def hooks(network):
        return [(*each._forward_hooks.values(), *each._forward_pre_hooks.values()) for each in network.modules()]

    for network in trained.networks.values():
        before = hooks(network)
        whole = features(network, trained.stages, get("gated-conv"), data)
        one = features(network, trained.stages, get("gated-conv"), EvalSet(data.images[2:3], data.holes[2:3]))
        for level, single in zip(whole, one, strict=True):
            torch.testing.assert_close(level[2:3], single, rtol=1e-4, atol=1e-5)
        assert hooks(network) == before


@pytest.mark.parametrize("teacher", ["frozen", "online"])
def test_every_kind_of_teacher_of_a_study_is_restored(teacher, tmp_path):
    folder = make_study(tmp_path / "boost", "partial-conv", teacher=teacher)
    result = inspect_study(folder, tmp_path / "out", images=4, console=QUIET)
    assert not (tmp_path / "out" / "attention.png").exists()
    assert all("teacher" in level["measures"]["energy_ratio"]["median"] for level in result["levels"])


def test_one_pair_of_trainings_has_no_interval(tmp_path):
    folder = make_study(tmp_path / "boost", "partial-conv")
    result = inspect_study(folder, tmp_path / "out", images=4, console=QUIET)
    rows = [row for level in result["levels"] for row in level["measures"].values()]
    assert rows
    assert all(row["difference"]["low"] is None and row["difference"]["pairs"] == 1 for row in rows)
    differences = [each for each in result["sentences"] if "->" in each]
    assert differences
    assert all("one pair of trainings: that shows nothing about chance" in each for each in differences)


def test_a_chosen_image_and_pixel_are_drawn(study, tmp_path):
    hole = load_data(open_study(study, "distilled").settings).val.holes[3, 0]
    row, column = hole.nonzero()[0].tolist()
    words = ["inspect", str(study), "--out", str(tmp_path), "--images", "2", "--image", "3"]
    assert main([*words, "--pixel", str(row), str(column)]) == 0
    assert json.loads((tmp_path / "inspect.json").read_text())["drawn"] == {
        "image": 3,
        "pixel": [row, column],
        "seed": 0,
    }


def test_a_pixel_or_an_image_that_is_not_there_is_an_error(study, tmp_path):
    hole = load_data(open_study(study, "distilled").settings).val.holes[1, 0]
    known = tuple((hole == 0).nonzero()[0].tolist())
    for choice, found in (
        ({"image": 4}, "4 of them"),
        ({"image": -1}, "4 of them"),
        ({"image": 1, "pixel": (32, 0)}, "32 rows and 32 columns"),
        ({"image": 1, "pixel": known}, "a known pixel"),
        ({"images": 0}, "none to measure"),
    ):
        with pytest.raises(ConfigError) as error:
            inspect_study(study, tmp_path / "out", console=QUIET, **choice)
        assert found in error.value.found
    assert not (tmp_path / "out").exists()


def test_an_arm_that_the_study_lacks_is_an_error(study, tmp_path, capsys):
    for arm in ("distiled", "bare"):
        assert main(["inspect", str(study), "--arm", arm, "--out", str(tmp_path)]) == 2
        assert "use distilled" in capsys.readouterr().err


def test_a_folder_that_is_no_finished_study_is_an_error(study, tmp_path):
    with pytest.raises(StateError, match="no study"):
        inspect_study(tmp_path / "nothing", tmp_path, console=QUIET)
    copy = tmp_path / "copy"
    shutil.copytree(study, copy)
    (copy / "result.json").unlink()
    with pytest.raises(StateError, match="not finished"):
        inspect_study(copy, tmp_path / "out", console=QUIET)


@pytest.mark.parametrize("pattern", ["bare-*.host.safetensors", "*.distiller"])
def test_a_study_of_an_earlier_version_without_weights_is_an_error(study, tmp_path, pattern):
    copy = tmp_path / "copy"
    shutil.copytree(study, copy)
    for file in (copy / "runs").glob(pattern):
        file.unlink()
    with pytest.raises(StateError, match="an earlier version") as error:
        inspect_study(copy, tmp_path / "out", console=QUIET)
    assert "inpaint-distill boost --config" in error.value.fix


def test_weights_of_another_host_are_an_error(study, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(study, copy)
    save_file({"weight": torch.zeros(1)}, copy / "runs" / "bare-seed0-steps3-lr0.01.host.safetensors")
    with pytest.raises(StateError, match=r"bare-seed0-steps3-lr0.01.host.safetensors"):
        inspect_study(copy, tmp_path / "out", console=QUIET)


def level(values):
    return LevelValues("encoder.0", 4, (8, 8), 2, 100, {"hole_contrast": values})


def test_the_summary_takes_the_median_over_images_and_pairs_the_seeds():
    nan = float("nan")
    first = {
        "bare": torch.tensor([1.0, 2, 9, nan]),
        "distilled": torch.tensor([0.5, 3, 1, 0]),
        "teacher": torch.ones(4),
    }
    second = {name: values * 2 for name, values in first.items()}
    (found,) = summarise([[level(first)], [level(second)]], "distilled")
    row = found["measures"]["hole_contrast"]
    assert row["seeds"] == {"bare": [2, 4], "distilled": [1, 2], "teacher": [1, 2]}
    assert row["median"] == {"bare": 3, "distilled": 1.5, "teacher": 1.5}
    assert (row["images"], row["lower"], row["cases"]) == ([3, 3], 4, 6)
    assert (row["difference"]["mean"], row["difference"]["pairs"]) == (-1.5, 2)
    assert row["difference"]["low"] < -1.5 < row["difference"]["high"]
    (text,) = sentences({"levels": [found], "arm": "distilled"})
    assert text.startswith("With distillation the hole contrast is lower at encoder.0 (3.000 -> 1.500; lower in 4 of 6")


def test_a_level_where_nothing_can_be_measured_is_left_blank():
    values = {"bare": torch.full((2,), torch.nan), "distilled": torch.ones(2), "teacher": torch.ones(2)}
    (found,) = summarise([[level(values)]], "distilled")
    assert found["measures"]["hole_contrast"]["difference"] is None
    assert sentences({"levels": [found], "arm": "distilled"}) == []


def test_a_seed_in_which_nothing_can_be_measured_is_left_out():
    """Deep levels of a small host: with some weights no image has cells on either side with any energy."""
    good = {"bare": torch.ones(2), "distilled": torch.full((2,), 2.0), "teacher": torch.ones(2)}
    none = {name: torch.full((2,), torch.nan) for name in good}
    (found,) = summarise([[level(values)] for values in (good, none, good)], "distilled")
    row = found["measures"]["hole_contrast"]
    assert row["difference"] == {"mean": 1.0, "low": 1.0, "high": 1.0, "pairs": 2}
    assert row["median"] == {"bare": 1.0, "distilled": 2.0, "teacher": 1.0}
    assert (row["seeds"]["bare"], row["images"]) == ([1.0, None, 1.0], [2, 0, 2])


def test_a_pixels_attention_is_the_same_from_rows_and_from_queries_and_keys():
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, 2, 32, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    bias = torch.randn(32, generator=generator, dtype=torch.float64)
    rows = (0.3 * query @ key.transpose(2, 3) + bias).softmax(-1)
    site = AttentionSite(name="attention", kind="sdpa", heads=2, queries=32, keys=32)
    pixel, size = (9, 30), (16, 32)  # a grid of 4 x 8
    expected = rows[0, :, 2 * 8 + 7].mean(0).view(4, 8)
    for seen in (AttentionMap(rows=rows), AttentionMap(query=query, key=key, scale=0.3, bias=bias)):
        torch.testing.assert_close(pixel_attention(seen, site, pixel, size), expected)


def test_windowed_attention_is_laid_where_the_window_is():
    site = AttentionSite(name="attention", kind="softmax", queries=4, keys=4, windows=(2, 2), window=(2, 2))
    rows = torch.zeros(4, 1, 4, 4)
    rows[2, 0, 1] = torch.tensor([0.1, 0.2, 0.3, 0.4])  # the window below, at the left; its second token
    laid = pixel_attention(AttentionMap(rows=rows), site, (5, 3), (8, 8))
    expected = torch.zeros(4, 4)
    expected[2:, :2] = torch.tensor([[0.1, 0.2], [0.3, 0.4]])
    torch.testing.assert_close(laid, expected.double())


def test_keys_on_a_coarser_grid_are_laid_on_it_and_words_are_not():
    site = AttentionSite(name="attention", kind="sdpa", queries=64, keys=16)
    rows = torch.rand(1, 1, 64, 16).softmax(-1)
    laid = pixel_attention(AttentionMap(rows=rows), site, (0, 0), (8, 8))
    torch.testing.assert_close(laid, rows[0, 0, 0].view(4, 4).double())
    assert pixel_attention(AttentionMap(rows=torch.rand(1, 1, 64, 7)), site, (0, 0), (8, 8)) is None


def test_channel_weights_of_several_levels_are_drawn(tmp_path):
    weights = {f"rho {index}": torch.rand(8).softmax(0).tolist() for index in range(4)}
    path = channel_weights([{"step": step, "weights": weights} for step in (10, 20)], tmp_path / "weights.png")
    with Image.open(path) as image:
        assert min(image.size) > 300
