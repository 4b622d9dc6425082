"""What a published cell of the boost study is given later, and regimes that are for some hosts alone, on tiny cells."""

import json
import runpy
import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(not (ROOT / "benchmarks").is_dir(), reason="needs the repository, not an installation")

SMALL = {"train_images": 8, "variants": ["completion", "distilled"]}
PROTOCOL = {
    "settings": {
        "size": 32,
        "batch": 2,
        "steps": 6,
        "evaluations": 2,
        "seeds": [0, 1],
        "lrs": [0.001],
        "eval_images": 8,
        "distillation": {"completion": True},
    },
    "regimes": {"small": SMALL, "other": {**SMALL, "hosts": ["held_out"]}},
    "hosts": [
        {"name": "narrow", "host": "partial-conv", "host_options": {"width": 4, "levels": 2}},
        {"name": "held_out", "host": "partial-conv", "host_options": {"width": 4, "levels": 2}},
    ],
}
MORE = {
    **PROTOCOL,
    "settings": {**PROTOCOL["settings"], "seeds": [0, 1, 2]},
    "regimes": {
        **PROTOCOL["regimes"],
        "small": {
            **SMALL,
            "variants": ["completion", "widened", "distilled"],
            "widened_options": {"width": 8, "levels": 2},
        },
    },
}


@pytest.fixture(autouse=True)
def siblings(monkeypatch):
    """Scripts find each other, as where they are called by their path."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


def call(script, *arguments):
    return runpy.run_path(str(ROOT / "benchmarks" / script))["main"]([str(each) for each in arguments])


def write(folder, protocol, name):
    (folder / name).write_text(yaml.safe_dump(protocol, sort_keys=False))
    return folder / name


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A repository's docs with the one cell that each regime has."""
    folder = tmp_path_factory.mktemp("published")
    (folder / "masks").mkdir()
    for index in range(16):
        mask = Image.new("L", (32, 32))
        mask.paste(255, (index, 4, index + 12, 18))
        mask.save(folder / "masks" / f"{index:02}.png")
    (folder / "docs" / "results").mkdir(parents=True)
    shutil.copy(ROOT / "README.md", folder)
    for page in ("boost.md", "boost_cells.md"):
        shutil.copy(ROOT / "docs" / page, folder / "docs")
    protocol = write(folder, PROTOCOL, "protocol.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        places = ["--protocol", protocol, "--masks", folder / "masks", "--jobs", "1"]
        assert call("boost_study.py", "--out", folder / "study", *places) == 0
        call("boost_publish.py", folder / "study", "--root", folder, "--protocol", protocol)
    return folder


@pytest.fixture
def root(published, tmp_path):
    shutil.copytree(published, tmp_path / "root")
    return tmp_path / "root"


def content(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def add(root, protocol, host="narrow", regime="small"):
    places = ["--root", root, "--protocol", write(root, protocol, "more.yaml"), "--jobs", "1"]
    words = ["--masks", root / "masks", "--hosts", host, "--regimes", regime]
    return call("boost_add.py", root / "added", *places, *words)


def test_a_regime_that_names_hosts_is_theirs_alone_and_the_others_are_not_theirs(published):
    study = json.loads((published / "docs" / "results" / "boost_study.json").read_text())
    assert [(cell["host"], cell["regime"]) for cell in study["cells"]] == [("narrow", "small"), ("held_out", "other")]
    assert study["not_run"] == []
    page, readme = ((published / name).read_text() for name in ("docs/boost.md", "README.md"))
    assert "| held_out | other | 8 |" in page
    assert "Not yet run: " not in page.partition("<!-- /headline -->")[0]
    results = readme.partition("<!-- results -->")[2].partition("<!-- /results -->")[0]
    assert "| narrow |" in results
    assert "| held_out |" not in results, "the table is that of the first regime's hosts"
    assert "- other (8 training images), " in results


def test_arms_and_seeds_of_the_protocol_are_trained_and_what_is_there_stays(root):
    cell = root / "docs" / "results" / "boost-study" / "narrow-small"
    before = json.loads((cell / "result.json").read_text())
    lines = (cell / "runs.jsonl").read_text().splitlines()
    assert add(root, MORE) == 0
    after = json.loads((cell / "result.json").read_text())
    arms = {"bare", "completion", "widened", "distilled", "bare_equal_time", "completion_equal_time"}
    assert {(run["arm"], run["seed"]) for run in after["runs"]} == {(arm, seed) for arm in arms for seed in (0, 1, 2)}
    kept = [
        run for run in after["runs"] if (run["arm"], run["seed"]) in {(r["arm"], r["seed"]) for r in before["runs"]}
    ]
    assert sorted(kept, key=repr) == sorted(before["runs"], key=repr)
    assert (cell / "runs.jsonl").read_text().splitlines()[: len(lines)] == lines
    assert len((cell / "runs.jsonl").read_text().splitlines()) == len(lines) + len(after["runs"]) - len(before["runs"])
    (note,) = after["added"]
    assert len(note["runs"]) == len(after["runs"]) - len(before["runs"])
    assert note["created"] >= after["created"] == before["created"]
    assert after["tuning"] == before["tuning"]
    assert after["cost"]["ratio"].items() > before["cost"]["ratio"].items()
    assert set(after["cost"]["ratio"]) - set(before["cost"]["ratio"]) == {"widened"}
    study = json.loads((root / "docs" / "results" / "boost_study.json").read_text())
    (row,) = [
        row
        for row in study["rows"]
        if (row["arm"], row["comparison"], row["metric"], row["bin"]) == ("distilled", "widened", "hole_psnr", "all")
    ]
    scores = {(run["arm"], run["seed"]): run["scores"]["hole_psnr"]["all"] for run in after["runs"]}
    assert row["differences"] == [scores["distilled", seed] - scores["widened", seed] for seed in (0, 1, 2)]
    assert study["cells"][0]["departures"] == {}
    table = (root / "docs" / "boost.md").read_text().partition("<!-- wider -->")[2].partition("<!-- /wider -->")[0]
    assert "| narrow | small |" in table


def test_what_was_added_is_what_a_study_of_the_whole_protocol_trains(root):
    assert add(root, MORE) == 0
    whole = ["--out", root / "whole", "--protocol", root / "more.yaml", "--masks", root / "masks", "--jobs", "1"]
    assert call("boost_study.py", *whole, "--hosts", "narrow", "--regimes", "small") == 0
    cells = [root / "docs" / "results" / "boost-study" / "narrow-small", root / "whole" / "narrow-small"]
    found = [json.loads((cell / "result.json").read_text()) for cell in cells]
    scores = [
        {
            (run["arm"], run["seed"]): (run["steps"], run["scores"])
            for run in result["runs"]
            if not run["arm"].endswith("_equal_time")  # their steps depend on the machine's
        }
        for result in found
    ]
    assert scores[0] == scores[1]
    assert len(scores[0]) == 12


def test_where_nothing_is_missing_nothing_changes(root):
    before = content(root / "docs")
    assert add(root, PROTOCOL) == 0
    assert content(root / "docs") == before


def test_other_masks_than_those_it_was_trained_with_are_refused(root, capsys):
    before = content(root / "docs")
    for file in (root / "masks").iterdir():
        mask = Image.new("L", (32, 32))
        mask.paste(255, (0, 0, 20, 20))
        mask.save(file)
    assert add(root, MORE) == 2
    assert "other images or masks" in capsys.readouterr().err
    assert content(root / "docs") == before


def test_a_cell_of_other_settings_or_that_starts_from_trained_hosts_is_refused(root, capsys):
    before = content(root / "docs")
    assert add(root, {**MORE, "settings": {**MORE["settings"], "steps": 7, "clip": 0.5}}) == 2
    assert "clip = 1.0 (now 0.5), steps = 6 (now 7)" in capsys.readouterr().err
    file = root / "docs" / "results" / "boost-study" / "narrow-small" / "result.json"
    result = json.loads(file.read_text())
    start = {"pretrain_steps": 4, "pretrain_lr": 0.001}
    file.write_text(json.dumps({**result, "settings": {**result["settings"], **start}}))
    small = {key: value for key, value in MORE["regimes"]["small"].items() if key != "widened_options"}
    small |= {"variants": ["completion", "distilled"], **start}
    assert add(root, {**MORE, "regimes": {**MORE["regimes"], "small": small}}) == 2
    assert "without the hosts it starts from" in capsys.readouterr().err
    file.write_bytes(before[file])
    assert content(root / "docs") == before


def test_a_host_that_the_protocol_has_not_is_named(root, capsys):
    assert add(root, MORE, "narow") == 2
    assert "narrow" in capsys.readouterr().err


def test_what_is_not_published_or_not_for_the_host_is_told(root, capsys):
    assert add(root, MORE, "narrow", "other") == 2
    assert "the cell narrow-other" in capsys.readouterr().err
    words = ["--out", root / "none", "--protocol", root / "more.yaml", "--hosts", "narrow", "--regimes", "other"]
    assert call("boost_study.py", *words) == 2
    assert "use held_out" in capsys.readouterr().err
    assert not (root / "none").exists()
    assert not list((root / "docs").rglob(".lock"))
