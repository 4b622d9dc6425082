import base64
import copy
import io
import math
import re
from html.parser import HTMLParser

import matplotlib as mpl
import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from inpaint_distill.errors import StateError
from inpaint_distill.training.figures import curves, differences, panels
from inpaint_distill.training.masks import BIN_NAMES, free_form
from inpaint_distill.training.metrics import METRICS, score
from inpaint_distill.training.report import write_report
from inpaint_distill.training.result import upgrade
from inpaint_distill.training.statistics import paired_interval
from inpaint_distill.training.tables import headlines, markdown_overview, markdown_table, print_table

BINS = ("all", *BIN_NAMES)


def run(arm, seed, value):
    curve = [
        {"step": step, "seconds": 0.1 * step + seed, "hole_psnr": value - 10 / step, "train_loss": 1 / step}
        for step in (10, 20, 30)
    ]
    scores = {metric: {name: value + index for index, name in enumerate(BINS)} for metric in METRICS}
    return {
        **{"arm": arm, "seed": seed, "steps": 30, "lr": 0.002, "seconds": 3.0, "stuck": False},
        **{"curve": curve, "scores": scores},
    }


def comparison(kind, baseline, metric, name, before, after):
    interval = paired_interval(before, after)
    return {
        **{"split": "test", "comparison": kind, "baseline": baseline, "arm": "distilled"},
        **{"metric": metric, "bin": name},
        **{"baseline_mean": sum(before) / len(before), "arm_mean": sum(after) / len(after), "mean": interval.mean},
        "low": interval.low if math.isfinite(interval.low) else None,
        "high": interval.high if math.isfinite(interval.high) else None,
        "pairs": len(before),
        "differences": [b - a for a, b in zip(before, after, strict=True)],
    }


def make_result(steps=(0.30, 0.35, 0.25), time=(-0.1, 0.1, 0.05)):
    before = [17.0 + seed for seed in range(len(steps))]
    rows = [
        comparison(kind, baseline, metric, name, before, [a + d for a, d in zip(before, gains, strict=True)])
        for kind, baseline, gains in (("steps", "bare", steps), ("time", "bare_equal_time", time))
        for metric in METRICS
        for name in BINS
    ]
    seeds = list(range(len(steps)))
    return {
        "schema": 2,
        "created": "2030-01-01T00:00:00Z",
        "command": "inpaint-distill boost --steps 30",
        "versions": {"inpaint_distill": "0.1.0", "torch": "2.5.0"},
        "machine": {"processor": "x86_64", "cores": 2, "device": "cpu", "threads_per_run": 1},
        "settings": {
            "host": "unet",
            "size": 16,
            "steps": 30,
            "seeds": seeds,
            "distillation": {"weights": {"cross": 0.5}},
        },
        "data": {"source": "folder", "train": 100, "val": 10, "test": 12, "skipped": [["broken.png", "OSError: cut"]]},
        "host": {"name": "unet", "parameters": 1234567, "stages": ["enc.0", "enc.1"]},
        "tuning": [
            {"lr": 0.001, "val_hole_psnr": 16.5, "steps": 10, "stuck": False, "chosen": True},
            {"lr": 0.1, "val_hole_psnr": math.nan, "steps": 10, "stuck": True, "chosen": False},
        ],
        "cost": {
            "step_seconds": {"bare": 0.1, "distilled": 0.13},
            "ratio": {"bare": 1.0, "distilled": 1.3},
            "rounds": 20,
        },
        "runs": [run(arm, seed, 17.0) for arm in ("bare", "distilled", "bare_equal_time") for seed in seeds],
        "comparisons": rows,
        "verdict": [],
        "warnings": ["bare, seed 1: the loss did not fall"],
    }


class Page(HTMLParser):
    """Collects the tags, checks that they nest."""

    VOID = frozenset({"meta", "img", "br", "!doctype"})

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture
def figures(tmp_path):
    files = {}
    for name in ("curves", "differences"):
        files[name] = tmp_path / f"{name}.png"
        Image.new("RGB", (4, 4)).save(files[name])
    return files


def read_page(result, figures, folder):
    path = write_report(result, figures, folder / "new" / "folder")
    assert path.name == "report.html"
    return Page(path.read_text(encoding="utf-8"))


def test_the_page_stands_alone(tmp_path, figures):
    page = read_page(make_result(), figures, tmp_path)
    images = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert [base64.b64decode(source.removeprefix("data:image/png;base64,")) for source in images] == [
        file.read_bytes() for file in figures.values()
    ]
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "a"})
    assert not any("http" in str(value) for _, attributes in page.tags for value in attributes.values())
    assert "url(" not in "".join(page.text)
    assert "prefers-color-scheme: dark" in "".join(page.text)


def test_the_page_says_what_was_found_and_how(tmp_path, figures):
    text = " ".join("".join(read_page(make_result(), figures, tmp_path).text).split())
    assert "Distillation raises hole PSNR at equal steps by 0.30 dB (95% interval 0.18 to 0.42, 3 paired runs)." in text
    assert "No effect of distillation on hole PSNR at equal wall-clock is shown" in text
    assert "+0.30 [+0.18, +0.42]" in text
    for piece in (
        "1,234,567 parameters",
        "1.30 times",
        "did not fall",
        "inpaint-distill boost --steps 30",
        "seeds 0, 1, 2",
    ):
        assert piece in text
    for piece in ("distillation.weights.cross", "broken.png", "OSError: cut", "enc.0, enc.1", "0.001", "n/a", "2.5.0"):
        assert piece in text


def test_every_comparison_row_is_in_a_table(tmp_path, figures):
    result = make_result()
    page = read_page(result, figures, tmp_path)
    text = "".join(page.text)
    assert len(re.findall(r"\+0\.30(00)? \[", text)) == len(METRICS) * (len(BINS) + 1)


def hostile(value):
    if isinstance(value, dict):
        return {key: hostile(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [hostile(inner) for inner in value]
    return f"<script>alert('{value}')</script>&\"" if isinstance(value, str) else value


def test_text_from_outside_is_escaped(tmp_path, figures):
    result = make_result()
    bad = hostile(result) | {"comparisons": result["comparisons"], "runs": result["runs"]}
    page = read_page(bad, figures, tmp_path)
    assert "script" not in {tag for tag, _ in page.tags}
    assert "<script>alert('unet')</script>&\"" in "".join(page.text)
    assert "<script" not in (tmp_path / "new" / "folder" / "report.html").read_text(encoding="utf-8")


def test_a_study_of_one_seed_and_one_comparison_is_reported(tmp_path, figures):
    result = make_result(steps=(0.3,), time=(0.1,))
    result["comparisons"] = [row for row in result["comparisons"] if row["comparison"] == "steps"]
    result["warnings"], result["data"]["skipped"] = [], []
    text = "".join(read_page(result, figures, tmp_path).text)
    assert "One pair of runs differs by +0.30 dB in hole PSNR at equal steps" in text
    assert "host, equal wall-clock" not in text
    assert "Warnings" not in text
    assert "Files left out" not in text
    assert "nan" not in markdown_table(result)


def test_another_schema_is_an_error(tmp_path, figures):
    with pytest.raises(StateError, match="schema 3, this version reads 1 and 2"):
        write_report(make_result() | {"schema": 3}, figures, tmp_path)


def test_a_result_of_the_first_schema_is_read_as_one_of_today():
    new = make_result()
    rows = [{key: value for key, value in row.items() if key != "split"} for row in new["comparisons"]]
    cost = {"bare_step_seconds": 0.1, "distilled_step_seconds": 0.13, "ratio": 1.3, "pairs": 20}
    old = new | {"schema": 1, "comparisons": rows, "cost": cost, "verdict": {"steps": "gain", "time": "not shown"}}
    read = upgrade(old)
    assert read | {"verdict": []} == new
    assert [(each["comparison"], each["verdict"]) for each in read["verdict"]] == [
        ("steps", "gain"),
        ("time", "not shown"),
    ]
    assert upgrade(read) == read


def test_the_overview_has_the_cost_and_both_splits():
    result = make_result()
    result["comparisons"] += [row | {"split": "val"} for row in result["comparisons"]]
    lines = markdown_overview(result).splitlines()
    assert [line for line in lines if line.startswith("On")] == ["On the test images:", "On the validation images:"]
    assert len([line for line in lines if line.startswith("| host + distillation | host |")]) == 2
    assert all("1.30x" in line for line in lines if line.startswith("| host + distillation"))


def test_less_l1_is_a_gain(tmp_path, figures):
    result = make_result(steps=(-0.30, -0.35, -0.25))
    page = read_page(result, figures, tmp_path)
    classes = [attributes.get("class") for tag, attributes in page.tags if tag == "td"]
    assert classes.count("gain") == len(BINS) + 1
    assert classes.count("loss") == 3 * (len(BINS) + 1)
    assert [outcome for outcome, _ in headlines(result)] == ["loss", "not shown"]


def test_the_markdown_table_is_rectangular():
    lines = markdown_table(make_result(), metrics=("hole_psnr", "ssim")).strip().splitlines()
    assert len(lines) == 2 + 2 * 2 * len(BINS)
    assert {line.count("|") for line in lines} == {8}
    assert lines[2] == "| equal steps | hole PSNR (dB) ↑ | all | 18.00 | 18.30 | +0.30 [+0.18, +0.42] | 3 |"


def test_the_terminal_table_fits_eighty_columns_and_takes_no_markup():
    result = make_result()
    result["host"]["name"] = "[red]unet[/red]"
    console = Console(file=io.StringIO(), width=80)
    print_table(result, metrics=METRICS, console=console)
    text = console.file.getvalue()
    assert "[red]unet[/red], equal steps: hole PSNR" in text
    assert text.count("+0.30 [+0.18, +0.42]") == 2 * len(BINS)
    assert text.count("+0.3000 [+0.1758, +0.4242]") == 2 * len(BINS)
    assert "Distillation raises hole PSNR at equal steps by 0.30 dB" in text


def test_panels_show_the_pixels_as_they_are(tmp_path):
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 256, (2, 3, 16, 16), generator=generator).float() / 127.5 - 1
    hole = free_form(2, 16, seed=0).float()
    images = {"input": truth * (1 - hole), "hole": hole, "bare": truth * 0.5, "distilled": truth * 0.9, "truth": truth}
    path = panels(images, tmp_path / "panels.png")
    drawn = np.asarray(Image.open(path).convert("RGB")).astype(int)
    side, gap, header, footer = 192, 8, 26, 22
    assert drawn.shape[1] == 4 * (side + gap) + gap
    for row in range(2):
        top, left = header + row * (side + footer), gap + 3 * (side + gap)
        cell = drawn[top : top + side, left : left + side]
        expected = ((truth[row] + 1) * 127.5).round().permute(1, 2, 0).numpy().repeat(12, axis=0).repeat(12, axis=1)
        assert np.abs(cell - expected).max() <= 1
        first = drawn[top : top + side, gap : gap + side][6::12, 6::12]
        inside = hole[row, 0].bool().numpy()
        assert len(np.unique(first[inside], axis=0)) == 1
        assert np.abs(first[~inside] - expected[6::12, 6::12][~inside]).max() <= 1


def test_panels_caption_restored_cells_with_their_hole_psnr(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(
        "inpaint_distill.training.figures._write", lambda figure, x, y, text, size: written.append(text)
    )
    truth = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    hole = free_form(1, 16, seed=0).float()
    panels({"input": truth, "hole": hole, "bare": truth * 0.5, "distilled": truth, "truth": truth}, tmp_path / "p.png")
    expected = score(truth * 0.5, truth, hole)["hole_psnr"].item()
    assert written == [
        *("input", "host", f"hole PSNR {expected:.2f} dB", "host + distillation", "hole PSNR 100.00 dB", "truth"),
    ]


@pytest.mark.parametrize("seeds", [1, 3, 8])
def test_graphs_are_drawn_for_any_number_of_seeds(tmp_path, seeds):
    result = make_result(steps=[0.1 * seed for seed in range(seeds)], time=[0.0] * seeds)
    original, settings = copy.deepcopy(result["comparisons"]), dict(mpl.rcParams)
    for draw in (curves, differences):
        path = draw(result, tmp_path / f"{draw.__name__}.png")
        drawn = Image.open(path).convert("RGB")
        assert drawn.width == 1680
        assert drawn.getpixel((0, 0)) == (255, 255, 255)
        assert len(drawn.getcolors(maxcolors=drawn.width * drawn.height)) > 20
    assert result["comparisons"] == original
    assert dict(mpl.rcParams) == settings


def test_graphs_cope_with_runs_that_stopped_early_and_one_comparison(tmp_path):
    result = make_result()
    result["runs"] = [run for run in result["runs"] if run["arm"] != "bare_equal_time"]
    result["runs"][0]["curve"] = result["runs"][0]["curve"][:1]
    result["runs"][1]["curve"] = []
    result["comparisons"] = [row for row in result["comparisons"] if row["comparison"] == "steps"]
    assert curves(result, tmp_path / "curves.png").stat().st_size > 10_000
    assert differences(result, tmp_path / "differences.png", metric="l1").stat().st_size > 10_000
