"""The boost study of several hosts: its cells, what is collected from them, and its page, on two tiny cells."""

import json
import math
import runpy
import shutil
from pathlib import Path

import pytest
import scipy.stats
import yaml
from PIL import Image

from inpaint_distill import Config

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(not (ROOT / "benchmarks").is_dir(), reason="needs the repository, not an installation")

PROTOCOL = {
    "settings": {
        "size": 32,
        "batch": 2,
        "steps": 6,
        "evaluations": 5,
        "seeds": [0, 1],
        "lrs": [0.001],
        "eval_images": 8,
        "variants": ["completion", "distilled"],
        "distillation": {"completion": True},
    },
    "regimes": {
        "small": {"train_images": 8, "variants": ["completion", "teacher_online", "distilled"]},
        "full": {"train_images": None},
    },
    "hosts": [
        {"name": "narrow", "host": "partial-conv", "host_options": {"width": 4, "levels": 2}},
        {
            "name": "wide",
            "host": "partial-conv",
            "host_options": {"width": 6, "levels": 2},
            "batch": 3,
            "regimes": {"small": {"lrs": [0.002]}},
        },
    ],
}


@pytest.fixture(autouse=True)
def siblings(monkeypatch):
    """Scripts find each other, as where they are called by their path."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


def call(script, *arguments):
    return runpy.run_path(str(ROOT / "benchmarks" / script))["main"]([str(each) for each in arguments])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Both hosts in one of the two regimes, in the other order, on synthetic scenes with masks from a folder."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "protocol.yaml").write_text(yaml.safe_dump(PROTOCOL, sort_keys=False))
    (folder / "masks").mkdir()
    for index in range(16):
        mask = Image.new("L", (32, 32))
        mask.paste(255, (index, 4, index + 12, 18))
        mask.save(folder / "masks" / f"{index:02}.png")
    words = ["--protocol", folder / "protocol.yaml", "--out", folder / "out"]
    places = ["--masks", folder / "masks", "--hosts", "wide", "narrow", "--regimes", "small", "--jobs", "1"]
    training = [*words, *places]
    assert call("boost_study.py", *training) == 0
    return folder / "out", words, training


@pytest.fixture(scope="module")
def study(trained):
    return json.loads((trained[0] / "boost_study.json").read_text())


@pytest.fixture(scope="module")
def runs(trained):
    files = [trained[0] / f"{host}-small" / "runs.jsonl" for host in ("narrow", "wide")]
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def test_cells_that_are_trained_together_are_those_trained_one_by_one(trained, tmp_path):
    out, _, training = trained
    words = [str(each).replace(str(out), str(tmp_path / "out")) for each in training]
    assert call("boost_study.py", *words, "--together", "2") == 0
    both = [json.loads((folder / "boost_study.json").read_text()) for folder in (out, tmp_path / "out")]
    assert both[1]["not_run"] == both[0]["not_run"]
    scores = [  # those at equal wall-clock depend on the machine's
        [row for row in study["rows"] if not row["comparison"].endswith("time")] for study in both
    ]
    assert scores[0] == scores[1]
    assert all((tmp_path / "out" / f"{host}-small.log").stat().st_size for host in ("narrow", "wide"))


def test_a_cell_that_fails_among_others_is_named(trained, tmp_path, capsys):
    _, words, _ = trained
    protocol = tmp_path / "protocol.yaml"
    values = yaml.safe_load(Path(words[1]).read_text())
    protocol.write_text(yaml.safe_dump(values, sort_keys=False))
    out = tmp_path / "out"
    arguments = ["--protocol", protocol, "--out", out, "--hosts", "narrow", "--regimes", "small", "--jobs", "1"]
    (out / "narrow-small").mkdir(parents=True)
    (out / "narrow-small" / "runs").mkdir()
    (out / "narrow-small" / "runs" / "cost.json").write_text('{"ratio": {}}')
    assert call("boost_study.py", *arguments, "--together", "2") == 1
    assert "narrow-small did not finish" in capsys.readouterr().err


def find(rows, **wanted):
    (row,) = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    return row


def test_every_cell_takes_its_settings_from_the_protocol(study):
    cells = {cell["host"]: cell["settings"] for cell in study["cells"]}
    assert {name: cell["batch"] for name, cell in cells.items()} == {"narrow": 2, "wide": 3}
    assert {name: cell["lrs"] for name, cell in cells.items()} == {"narrow": [0.001], "wide": [0.002]}
    assert [cell["departures"] for cell in study["cells"]] == [{}, {}]
    assert study["not_run"] == [{"host": name, "regime": "full"} for name in ("narrow", "wide")]


def test_the_hosts_are_run_in_the_order_of_the_arguments(study):
    created = {cell["host"]: cell["created"] for cell in study["cells"]}
    assert created["wide"] <= created["narrow"]


def test_every_run_has_its_line_and_trials_are_marked(runs):
    arms = ["bare", "bare_equal_time", "completion", "completion_equal_time", "distilled", "teacher_online"]
    for host in ("narrow", "wide"):
        own = [run for run in runs if run["host"] == host]
        assert sorted((run["arm"], run["seed"]) for run in own if not run["trial"]) == [
            (arm, seed) for arm in arms for seed in (0, 1)
        ]
        assert [run["seed"] for run in own if run["trial"]] == [1000]
        assert all(len(run["curve"]) == 5 for run in own)


@pytest.mark.parametrize(
    ("comparison", "baseline", "arm"),
    [
        ("steps", "bare", "distilled"),
        ("time", "bare_equal_time", "distilled"),
        ("steps", "bare", "completion"),
        ("block", "completion", "distilled"),
        ("block_time", "completion_equal_time", "distilled"),
        ("steps", "bare", "teacher_online"),
        ("block", "completion", "teacher_online"),
        ("own", "distilled", "teacher_online"),
    ],
)
def test_rows_and_means_are_those_computed_from_the_runs(study, runs, comparison, baseline, arm):
    means = []
    for host in ("narrow", "wide"):
        scores = {
            (run["arm"], run["seed"]): run["scores"]["hole_psnr"]["all"]
            for run in runs
            if run["host"] == host and not run["trial"]
        }
        first, second = (scores[arm, seed] - scores[baseline, seed] for seed in (0, 1))
        row = find(study["rows"], host=host, arm=arm, comparison=comparison, metric="hole_psnr", bin="all")
        means.append((first + second) / 2)
        reach = scipy.stats.t.ppf(0.975, 1) * abs(first - second) / 2
        assert (row["mean"], row["pairs"]) == (pytest.approx(means[-1]), 2)
        assert (row["low"], row["high"]) == (pytest.approx(means[-1] - reach), pytest.approx(means[-1] + reach))
    row = find(study["overall"], regime="small", arm=arm, comparison=comparison, metric="hole_psnr", bin="all")
    reach = scipy.stats.t.ppf(0.975, 1) * abs(means[0] - means[1]) / 2
    assert row["hosts"] == ["narrow", "wide"]
    assert row["mean"] == pytest.approx(math.fsum(means) / 2)
    assert (row["low"], row["high"]) == (pytest.approx(row["mean"] - reach), pytest.approx(row["mean"] + reach))


@pytest.mark.parametrize(("differences", "kept"), [([0.0, 0.0], False), ([0.0, 0.1], True)])
def test_interpolated_holes_that_a_host_does_not_read_are_not_compared(differences, kept):
    common = {"split": "test", "metric": "hole_psnr", "bin": "all", "low": 0.0, "high": 0.0, "pairs": 2}
    common |= {"baseline_mean": 1.0, "arm_mean": 1.0, "mean": 0.0}
    compared = [
        ("steps", "bare", "filled", differences),
        ("steps", "bare", "distilled", [0.0, 0.0]),
        ("steps", "filled", "distilled", [0.0, 0.0]),
        ("time", "filled_equal_time", "distilled", [0.0, 0.0]),
    ]
    names = ("comparison", "baseline", "arm", "differences")
    comparisons = [{**common, **dict(zip(names, each, strict=True))} for each in compared]
    compare = runpy.run_path(str(ROOT / "benchmarks" / "boost_study.py"))["compared"]
    found = [(row["comparison"], row["arm"]) for row in compare(comparisons)]
    filled = [("filled", "distilled"), ("filled_time", "distilled")]
    assert found == [*[("steps", "filled")] * kept, ("steps", "distilled"), *filled * kept]


def test_flatness_and_steps_to_the_bare_score_follow_from_the_curves(study, runs):
    for cell in study["cells"]:
        curves = {
            (run["arm"], run["seed"]): {point["step"]: point["hole_psnr"] for point in run["curve"]}
            for run in runs
            if run["host"] == cell["host"] and not run["trial"]
        }
        changes = [curves["bare", seed][6] - curves["bare", seed][5] for seed in (0, 1)]
        assert cell["flatness"]["last_fifth"] == pytest.approx(sum(changes) / 2)
        longest = cell["flatness"]["longer_steps"]
        gains = [curves["bare_equal_time", seed][longest] - curves["bare", seed][6] for seed in (0, 1)]
        assert cell["flatness"]["longer"] == pytest.approx(sum(gains) / 2)
        for found in cell["steps_to_bare"]:
            seed = found["seed"]
            reached = [step for step, psnr in curves["distilled", seed].items() if psnr >= curves["bare", seed][6]]
            assert found["step"] == min(reached, default=None)


def test_what_is_finished_is_neither_trained_nor_collected_differently(trained):
    folder, words, training = trained
    collected = [folder / "boost_study.json", *folder.glob("*/runs.jsonl")]
    before = {file: file.stat().st_mtime_ns for file in folder.glob("*/**/*") if file not in collected}
    content = [file.read_text() for file in collected]
    assert call("boost_study.py", *training) == 0
    (folder / "boost_study.json").unlink()
    assert call("boost_study.py", *words, "--collect") == 0
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert len(collected) == 3
    assert [file.read_text() for file in collected] == content


def test_a_cell_of_other_settings_is_told(trained, tmp_path):
    folder, _, _ = trained
    shutil.copytree(folder / "narrow-small", tmp_path / "narrow-small")
    distillation = {"completion": True, "cross": {"weight": 0.7}, "decay": [1, 2]}
    changed = {**PROTOCOL, "settings": {**PROTOCOL["settings"], "seeds": [0, 1, 2], "distillation": distillation}}
    (tmp_path / "protocol.yaml").write_text(yaml.safe_dump(changed, sort_keys=False))
    assert call("boost_study.py", "--protocol", tmp_path / "protocol.yaml", "--out", tmp_path, "--collect") == 0
    study = json.loads((tmp_path / "boost_study.json").read_text())
    assert study["cells"][0]["departures"] == {
        "seeds": [[0, 1, 2], [0, 1]],
        "distillation.cross.weight": [0.7, Config().cross.weight],
        "distillation.decay": [[1, 2], None],
    }
    assert len(study["not_run"]) == 3
    assert {(row["low"], row["high"]) for row in study["overall"]} == {(None, None)}


def test_an_unknown_host_or_regime_is_an_error_with_a_near_name(trained, capsys):
    _, words, _ = trained
    assert call("boost_study.py", *words, "--hosts", "narow") == 2
    assert "narrow" in capsys.readouterr().err
    assert call("boost_study.py", *words, "--regimes", "smal") == 2
    assert "small" in capsys.readouterr().err


def pages(root):
    """Copy the pages, with the repository's own tables in them."""
    (root / "docs" / "results").mkdir(parents=True, exist_ok=True)
    found = [root / "docs" / name for name in ("boost.md", "boost_cells.md")]
    for page in found:
        shutil.copy(ROOT / "docs" / page.name, page)
    shutil.copy(ROOT / "README.md", root)
    return found


def make_page(study, root):
    made, results = pages(root), root / "docs" / "results"
    (results / "boost-study" / "narrow-small").mkdir(parents=True, exist_ok=True)
    (results / "boost-study" / "narrow-small" / "curves.png").touch()
    (results / "boost_study.json").write_text(json.dumps(study))
    call("boost_page.py", "--root", root)
    return "".join(page.read_text() for page in made), (root / "README.md").read_text()


def test_finished_cells_are_published_beside_those_that_were_and_collected_from_what_lies_there(
    trained, study, tmp_path
):
    folder, words, _ = trained
    cells = pages(tmp_path)[1]
    places = ["--root", tmp_path, *words[:2]]
    results = tmp_path / "docs" / "results"
    for host in ("wide", "narrow"):  # one after the other, from folders of their own
        own = tmp_path / host
        shutil.copytree(folder / f"{host}-small", own / f"{host}-small")
        shutil.copytree(folder / f"{host}-small", own / f"{host}-full", ignore=shutil.ignore_patterns("report.html"))
        call("boost_publish.py", own, *places)
    assert json.loads((results / "boost_study.json").read_text()) == study
    assert {path.name for path in (results / "boost-study").iterdir()} == {"narrow-small", "wide-small"}
    files = {path.name for path in (results / "boost-study" / "wide-small").iterdir()}
    assert {"result.json", "runs.jsonl", "table.md", "curves.png", "inspect"} <= files
    assert not files & {"runs", "report.html"}
    assert "| wide | small |" in block(cells.read_text(), "bins")


def block(text, name):
    return text.partition(f"<!-- {name} -->")[2].partition(f"<!-- /{name} -->")[0]


def cells_of(text, name, *start):
    (line,) = [line for line in block(text, name).splitlines() if line.startswith(f"| {' | '.join(start)} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_page_and_the_readme_show_the_numbers_and_what_is_not_run(study, tmp_path):
    page, readme = make_page(study, tmp_path)
    row = find(study["rows"], host="wide", arm="distilled", comparison="steps", metric="hole_psnr", bin="all")
    cells = cells_of(page, "headline", "wide", "small")
    assert cells[2:5] == ["8", f"{row['baseline_mean']:.2f}", f"{row['arm_mean']:.2f}"]
    assert cells[5].strip("*").startswith(f"{row['mean']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]")
    assert "\nNot yet run: full: narrow, wide." in block(page, "headline")
    for name in ("headline", "bins", "metrics", "training", "speed", "repeat"):
        assert "| narrow | small |" in block(page, name)
        assert "| narrow | full |" not in block(page, name)
    assert "--hosts narrow --regimes small`" in cells_of(page, "repeat", "narrow", "small")[2]
    assert cells_of(page, "repeat", "narrow", "small")[3] == "[curves](results/boost-study/narrow-small/curves.png)"
    assert len(cells_of(readme, "results", "wide")) == 6, "a regime that no host has run has no column"
    assert "small (8 training images)" in block(readme, "results")
    assert (tmp_path / "docs" / "results" / "boost_study.png").stat().st_size > 10_000


def test_what_the_largest_holes_gain_more_than_the_smallest_is_taken_seed_by_seed(study, tmp_path):
    gains = {"10-20": [0.1, 0.3], "40-50": [0.3, 0.6]}
    wanted = {"host": "wide", "regime": "small", "arm": "distilled", "comparison": "steps", "metric": "hole_psnr"}
    row = find(study["rows"], **wanted, bin="all")
    others = [each for each in study["rows"] if each["host"] != "wide" or each["bin"] not in gains]
    added = [{**row, "bin": name, "differences": each} for name, each in gains.items()]
    page, _ = make_page({**study, "rows": [*others, *added]}, tmp_path)
    half = scipy.stats.t.ppf(0.975, 1) * 0.05
    assert (
        cells_of(page, "bins", "wide", "small", "equal steps")[-1] == f"+0.25 [{0.25 - half:+.2f}, {0.25 + half:+.2f}]"
    )
    assert cells_of(page, "bins", "wide", "small", "equal wall-clock")[-1] == "not measured"


def test_the_means_by_hole_ratio_set_the_largest_holes_against_the_smallest_host_by_host(study, tmp_path):
    gains = {"all": (0.2, 0.4), "10-20": (0.1, 0.2), "20-30": (0, 0), "30-40": (0, 0), "40-50": (0.2, 0.5)}
    row = find(study["rows"], host="wide", arm="distilled", comparison="steps", metric="hole_psnr", bin="all")
    each = [
        {**row, "host": host, "bin": name, "mean": mean}
        for name, means in gains.items()
        for host, mean in zip(("narrow", "wide"), means, strict=True)
    ]
    means = [
        {**row, "hosts": ["narrow", "wide"], "bin": name, "mean": sum(both) / 2, "low": -1.0, "high": 1.0}
        for name, both in gains.items()
    ]
    page, _ = make_page({**study, "rows": each, "overall": means}, tmp_path)
    cells = cells_of(page, "ratios", "2 hosts", "small", "equal steps")
    half = scipy.stats.t.ppf(0.975, 1) * 0.1
    assert cells[3:5] == ["+0.30 [-1.00, +1.00]", "+0.15 [-1.00, +1.00]"]
    assert cells[-1] == f"+0.20 [{0.2 - half:+.2f}, {0.2 + half:+.2f}]"
    assert "equal wall-clock" not in block(page, "ratios"), "of which there is no mean"


def test_pairs_that_were_added_stand_by_themselves(study, tmp_path):
    wanted = {"host": "wide", "regime": "small", "arm": "distilled", "comparison": "steps", "metric": "hole_psnr"}
    row = find(study["rows"], **wanted, bin="all")
    gains = [0.1, 0.3, 0.6]
    rows = [{**each, "differences": gains, "pairs": 3} if each is row else each for each in study["rows"]]
    page, _ = make_page({**study, "rows": rows}, tmp_path)
    half = scipy.stats.t.ppf(0.975, 1) * 0.1
    first, added, every = cells_of(page, "later", "wide", "small", "equal steps")[3:]
    assert (first, added) == (f"+0.20 [{0.2 - half:+.2f}, {0.2 + half:+.2f}]", "+0.60")
    assert every.startswith("+0.33 [")
    assert "| narrow |" not in block(page, "later")


def test_what_is_gained_is_set_against_what_the_best_host_has_more(study, tmp_path):
    wanted = {"arm": "distilled", "metric": "hole_psnr"}
    row = find(study["rows"], host="narrow", regime="small", comparison="steps", bin="all", **wanted)
    gains = {"all": [1.0, 2.0], "10-20": [0.5, 1.0], "20-30": [1.0, 1.0], "30-40": [1.0, 1.0], "40-50": [2.0, 3.0]}
    narrow = [{**row, "bin": name, "baseline_mean": 10, "arm_mean": 11, "differences": d} for name, d in gains.items()]
    wide = [{**each, "host": "wide", "baseline_mean": 13, "arm_mean": 15} for each in narrow]
    page, _ = make_page({**study, "rows": [*narrow, *wide]}, tmp_path)
    assert "The best is wide in `small`, with block and distillation." in block(page, "lacking")
    assert "| wide |" not in block(page, "lacking")
    cells = cells_of(page, "lacking", "narrow", "small", "equal steps")
    assert cells[3:8] == ["30%", "15%", "20%", "20%", "50%"]
    half = scipy.stats.t.ppf(0.975, 1) * 5
    assert cells[8] == f"+35 [{35 - half:+.0f}, {35 + half:+.0f}]"
    page, _ = make_page({**study, "rows": [{**narrow[0], "baseline_mean": 16}, *narrow[1:], *wide]}, tmp_path)
    assert "Not yet run." in block(page, "lacking"), "a host that lacks nothing has no share of it"


def test_a_host_that_is_not_run_where_another_is_has_its_row(study, tmp_path):
    own = {part: [each for each in study[part] if each["host"] == "narrow"] for part in ("cells", "rows")}
    page, readme = make_page({**study, **own}, tmp_path)
    assert cells_of(readme, "results", "wide")[1:3] == ["not yet run"] * 2
    assert "\nNot yet run: small: wide; full: narrow, wide." in block(page, "headline")


def test_a_metric_that_is_absent_is_not_measured(study, tmp_path):
    page, _ = make_page({**study, "rows": [row for row in study["rows"] if row["metric"] != "ssim"]}, tmp_path)
    line = next(line for line in block(page, "metrics").splitlines() if line.startswith("| narrow | small"))
    assert line.count("not measured") == 3  # and LPIPS and FID, whose weights this machine does not have


def test_what_each_part_does_is_set_side_by_side_host_by_host(study, tmp_path):
    gains = {("completion", "steps"): 0.3, ("distilled", "steps"): 0.4, ("distilled", "block"): 0.1}
    rows, means = (
        [
            {**row, "mean": mean, "low": mean - 0.2, "high": mean + 0.2}
            for row in study[part]
            if (mean := gains.get((row["arm"], row["comparison"]))) is not None
        ]
        for part in ("rows", "overall")
    )
    ratio = {"cost_ratio": {"completion": 1.25, "distilled": 1.5}}
    cells = [{**cell, **ratio} for cell in study["cells"]]
    content = {**study, "overall": means, "cells": cells}
    found = ["**+0.30 [+0.10, +0.50]**", "**+0.40 [+0.20, +0.60]**", "+0.10 [-0.10, +0.30]"]
    page, _ = make_page({**content, "rows": rows}, tmp_path)
    assert cells_of(page, "parts", "narrow", "small")[2:] == [*found, "2", "1.25x", "1.50x"], "no empty column"
    assert cells_of(page, "parts", "mean of 2 hosts", "small")[2:] == [*found, "", "", ""]
    assert "Not yet run." in block(page, "control")
    row = find(rows, host="wide", arm="completion", comparison="steps", metric="hole_psnr", bin="all")
    more = {
        ("interpolation_start", "steps"): (0.75, 0.7, 0.8),
        ("distilled", "block_time"): (-0.02, -0.1, 0.06),
        ("filled", "steps"): (0.25, 0.2, 0.3),
        ("completion", "filled"): (0.05, -0.1, 0.2),
        ("distilled", "filled"): (0.15, 0.1, 0.2),
        ("distilled", "filled_time"): (-0.5, -0.7, -0.3),
    }
    keys = ("arm", "comparison", "mean", "low", "high")
    added = [{**row, **dict(zip(keys, (*key, *bounds), strict=True))} for key, bounds in more.items()]
    cells = [{**cell, "cost_ratio": {**cell["cost_ratio"], "filled": 1.05}} for cell in cells]
    page, _ = make_page({**content, "cells": cells, "rows": [*rows, *added]}, tmp_path)
    found += ["-0.02 [-0.10, +0.06]", "**+0.75 [+0.70, +0.80]**"]
    assert cells_of(page, "parts", "wide", "small")[2:7] == found
    assert cells_of(page, "parts", "narrow", "small")[2:7] == [*found[:3], "", ""]
    expected = ["**+0.25 [+0.20, +0.30]**", "+0.05 [-0.10, +0.20]", "**+0.15 [+0.10, +0.20]**"]
    expected += ["**-0.50 [-0.70, -0.30]**", "2", "1.05x", "1.50x"]
    assert cells_of(page, "control", "wide", "small")[2:] == expected
    assert "narrow" not in block(page, "control")


def test_the_block_alone_is_set_against_the_host_that_trains_longer(study, tmp_path):
    row = find(study["rows"], host="wide", arm="distilled", comparison="steps", metric="hole_psnr", bin="all")
    gains = {
        ("completion", "steps"): [0.3, 0.5],
        ("distilled", "steps"): [0.4, 0.4],
        ("distilled", "time"): [0.3, 0.2],
        ("distilled", "block"): [0.1, -0.1],
    }
    rows = [
        {**row, "host": host, "arm": arm, "comparison": comparison, "differences": differences}
        for host in ("narrow", "wide")
        for (arm, comparison), differences in gains.items()
    ]
    cells = [{**cell, "cost_ratio": {"completion": 1.25, "distilled": 1.5}} for cell in study["cells"]]
    means = [each for each in study["overall"] if each["comparison"] == "block" and each["arm"] == "distilled"]
    page, _ = make_page({**study, "rows": rows, "cells": cells, "overall": means}, tmp_path)
    half = scipy.stats.t.ppf(0.975, 1) * 0.05
    assert cells_of(page, "parts", "wide", "small")[5] == f"+0.25 [{0.25 - half:+.2f}, {0.25 + half:+.2f}]"
    assert cells_of(page, "parts", "mean of 2 hosts", "small")[5] == "**+0.25 [+0.25, +0.25]**"


def test_many_intervals_are_counted_with_holms_correction(study, tmp_path):
    row = find(study["rows"], host="wide", arm="distilled", comparison="steps", metric="hole_psnr", bin="all")
    gains = {"narrow": [0.10, 0.12, 0.11], "wide": [0.1, 0.2, 0.17]}  # p = 0.003 and 0.034
    rows = [{**row, "host": host, "differences": each, "pairs": 3} for host, each in gains.items()]
    page, _ = make_page({**study, "rows": rows}, tmp_path)
    assert cells_of(page, "many", "block and distillation, equal steps")[1:] == ["2", "2", "2", "none"]
    more = [{**row, "regime": "full", "host": "narrow", "differences": [0.1, -0.1, 0.1], "pairs": 3}]
    cells = [*study["cells"], {**study["cells"][0], "host": "narrow", "regime": "full"}]
    page, _ = make_page({**study, "rows": [*rows, *more], "cells": cells}, tmp_path)
    assert cells_of(page, "many", "block and distillation, equal steps")[1:] == ["3", "2", "1", "wide small"]
    assert cells_of(page, "many", "distillation minus block, equal steps")[1:] == ["0", "0", "0", "none"]


def test_what_a_host_gives_back_is_taken_from_its_inspection(study, tmp_path):
    page, _ = make_page(study, tmp_path)
    assert cells_of(page, "training", "narrow", "small")[7] == "not measured"
    folder = tmp_path / "docs" / "results" / "boost-study" / "narrow-small" / "inspect"
    folder.mkdir()
    shares = {"luma": {"mean": {"bare": 0.815, "distilled": 1.0}}, "chroma": {"mean": {"bare": None, "distilled": 1.0}}}
    (folder / "inspect.json").write_text(json.dumps({"explained": {"known": shares}}))
    page, _ = make_page(study, tmp_path)
    assert cells_of(page, "training", "narrow", "small")[7] == "0.81, not measured"
    assert cells_of(page, "training", "wide", "small")[7] == "not measured"


def test_hosts_trained_both_ways_stand_side_by_side(study, tmp_path):
    page, _ = make_page(study, tmp_path)
    assert "Not yet run." in block(page, "filled")
    row = find(study["rows"], host="wide", arm="distilled", comparison="steps", metric="hole_psnr", bin="all")
    other = {**row, "regime": "interpolated", "baseline_mean": 1.0, "arm_mean": 2.0}
    page, _ = make_page({**study, "rows": [*study["rows"], other]}, tmp_path)
    means = [f"{row[key]:.2f}" for key in ("baseline_mean", "arm_mean")]
    assert cells_of(page, "filled", "wide") == ["wide", *means, "1.00", "2.00"]
    assert "narrow" not in block(page, "filled")


def test_a_study_without_the_block_alone_has_no_line_about_it(study, tmp_path):
    rows = [row for row in study["rows"] if row["arm"] == "distilled" and row["comparison"] != "block"]
    page, _ = make_page({**study, "rows": rows}, tmp_path)
    assert "narrow" not in block(page, "parts")
    assert "| narrow | small |" in block(page, "headline")


def test_a_note_is_written_once_with_the_cells_that_it_is_about(study, tmp_path):
    cells = [{**cell, "warnings": [f"the same ({len(cell['host'])}.5 dB)", cell["host"]]} for cell in study["cells"]]
    page, _ = make_page({**study, "cells": cells}, tmp_path)
    notes = [line for line in block(page, "training").splitlines() if line.startswith("- ")]
    assert notes == ["- every cell: the same", "- narrow, small: narrow", "- wide, small: wide"]


@pytest.mark.parametrize(
    ("bounds", "words"),
    [((0.1, 0.3), "a gain"), ((-0.3, -0.1), "a loss"), ((-0.1, 0.5), "no gain is shown")],
)
def test_the_line_of_a_regime_says_gain_loss_or_neither(study, tmp_path, bounds, words):
    mean = sum(bounds) / 2
    row = {"regime": "small", "arm": "distilled", "comparison": "steps", "metric": "hole_psnr", "bin": "all"}
    row["hosts"] = ["narrow", "wide"]
    changed = {**study, "overall": [{**row, "mean": mean, "low": bounds[0], "high": bounds[1]}]}
    _, readme = make_page(changed, tmp_path)
    (line,) = [line for line in block(readme, "results").splitlines() if line.startswith("- small (8 training images)")]
    said, _, about = line.partition(", 2 hosts: ")[2].rpartition(" at equal steps ")
    assert said.strip("*") == f"{mean:+.2f} [{bounds[0]:+.2f}, {bounds[1]:+.2f}]"
    assert about == f"({words})", "and nothing about a comparison that is not there"


def test_one_host_has_no_mean_over_hosts(study, tmp_path):
    page, readme = make_page(study, tmp_path / "two")
    assert "| mean of 2 hosts | small |" in block(page, "headline")
    assert "" not in cells_of(readme, "results", "mean over hosts")[1:3]
    alone = {**study, "overall": [{**row, "hosts": ["narrow"]} for row in study["overall"]]}
    page, readme = make_page(alone, tmp_path / "one")
    assert "mean of" not in block(page, "headline")
    assert cells_of(readme, "results", "mean over hosts")[1:3] == ["", ""]
    row = find(study["rows"], host="narrow", arm="distilled", comparison="steps", metric="hole_psnr", bin="all")
    assert f"too few hosts for a mean: narrow {row['mean']:+.2f} [" in block(readme, "results").replace("**", "")


def test_a_regime_that_one_host_has_run_is_a_line_on_the_page_alone(study, tmp_path):
    more = {
        part: [{**each, "regime": "full"} for each in study[part] if each["host"] == "narrow"]
        for part in ("cells", "rows")
    }
    more["overall"] = [{**row, "regime": "full", "hosts": ["narrow"]} for row in study["overall"]]
    page, readme = make_page({**study, **{part: [*study[part], *rows] for part, rows in more.items()}}, tmp_path)
    assert "- full (8 training images), too few hosts for a mean: narrow " in block(page, "headline")
    assert "- full" not in block(readme, "results")
    assert len(cells_of(readme, "results", "narrow")) == 6, "host, small twice, block, interpolation, step"


def test_interpolation_without_a_network_stands_beside_the_means(study, tmp_path):
    (fill,) = {f"{cell['fills']['interpolation']:.2f}" for cell in study["cells"]}  # one: of the same images
    for text, name in zip(make_page(study, tmp_path), ("headline", "results"), strict=True):
        assert f"interpolation of the holes, without a network, has {fill} dB" in block(text, name)


def test_less_of_what_is_better_low_is_a_gain():
    outcome = runpy.run_path(str(ROOT / "benchmarks" / "boost_page.py"))["outcome"]
    row = {"metric": "l1", "mean": -0.2, "low": -0.3, "high": -0.1, "pairs": 3}
    assert outcome(row) == "gain"
    assert outcome({**row, "metric": "psnr"}) == "loss"
