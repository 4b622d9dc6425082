"""Settings round-trip through dicts, YAML and JSON, and are checked wherever they come from."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from inpaint_distill import Config, TermConfig
from inpaint_distill.config import from_dict, load_yaml, to_dict
from inpaint_distill.errors import ConfigError

terms = st.builds(
    TermConfig,
    weight=st.floats(0, 1e3),
    normalize=st.sampled_from(["channel", "layer", "none"]),
    region=st.sampled_from(["hole", "all"]),
)
configs = st.builds(
    Config,
    teacher=st.sampled_from(["ema", "frozen", "online"]),
    ema_decay=st.floats(0, 1, exclude_max=True),
    teacher_steps=st.integers(1, 10**6),
    teacher_lr=st.floats(1e-8, 1),
    cross=terms,
    self_=terms,
    predictor=st.booleans(),
    balance=st.sampled_from(["gradient_norm", "none"]),
    every=st.integers(1, 99),
    balance_every=st.integers(1, 999),
    warmup=st.integers(0, 999),
    nonfinite=st.sampled_from(["raise", "skip"]),
    decay=st.none() | st.integers(0, 99).flatmap(lambda a: st.tuples(st.just(a), st.integers(a + 1, 999))),
    seed=st.integers(0, 2**31),
)


@given(configs)
def test_every_configuration_survives_json_and_yaml(config):
    plain = to_dict(config)
    assert from_dict(Config, plain) == config
    assert from_dict(Config, json.loads(json.dumps(plain))) == config
    assert from_dict(Config, yaml.safe_load(yaml.safe_dump(plain))) == config


def test_missing_keys_take_their_defaults():
    assert from_dict(Config, {}) == Config()
    assert from_dict(Config, {"cross": {"weight": 2.0}}) == Config(cross=TermConfig(weight=2.0))


def test_a_trailing_underscore_is_not_written():
    assert "self" in to_dict(Config())
    assert from_dict(Config, {"self": {"weight": 0.0}}).self_.weight == 0


def test_integers_pass_as_floats_and_lists_as_tuples():
    config = from_dict(Config, {"teacher_lr": 1, "decay": [3, 9]})
    assert type(config.teacher_lr) is float
    assert config.decay == (3, 9)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"tecaher": "ema"}, ("tecaher", "teacher")),
        ({"cross": {"wieght": 1}}, ("wieght", "cross", "weight")),
        ({"teacher": "emma"}, ("teacher", "emma", "ema, frozen, online")),
        ({"cross": {"region": "holes"}}, ("cross.region", "holes", "hole, all")),
        ({"warmup": 1.5}, ("warmup", "1.5", "int")),
        ({"warmup": True}, ("warmup", "True", "int")),
        ({"warmup": "3"}, ("warmup", "'3'", "int")),
        ({"predictor": 1}, ("predictor", "bool")),
        ({"decay": [1]}, ("decay", "[1]")),
        ({"decay": [1, "2"]}, ("decay", "'2'")),
        ({"decay": 5}, ("decay", "5")),
        ({"cross": 0.5}, ("cross", "0.5", "mapping")),
        ({"cross": None}, ("cross", "None", "mapping")),
        ({"seed": None}, ("seed", "None")),
    ],
)
def test_a_wrong_value_is_named_with_its_place(values, words):
    with pytest.raises(ConfigError) as caught:
        from_dict(Config, values)
    text = str(caught.value)
    assert all(word in text for word in words), text


@pytest.mark.parametrize("values", [None, 3, "teacher: ema", ["teacher"]])
def test_settings_that_are_no_mapping(values):
    with pytest.raises(ConfigError, match="mapping"):
        from_dict(Config, values)


def test_settings_are_frozen_and_keyword_only():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().warmup = 3
    with pytest.raises(TypeError):
        Config("ema")


@dataclass(frozen=True, kw_only=True)
class Study:
    """Settings of another room: nested, with paths and lists."""

    data: Path | None = None
    seeds: tuple[int, ...] = (0,)
    distill: Config = field(default_factory=Config)


def test_other_settings_nest_a_configuration_and_hold_paths_and_lists():
    study = Study(data=Path("a/b"), seeds=(1, 2, 3), distill=Config(warmup=7))
    plain = json.loads(json.dumps(to_dict(study)))
    assert plain["data"] == "a/b"
    assert from_dict(Study, plain) == study
    with pytest.raises(ConfigError, match=r"distill\.cross\.weight"):
        from_dict(Study, {"distill": {"cross": {"weight": "much"}}})


def test_a_yaml_file_is_read(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(to_dict(Config(warmup=3))), encoding="utf-8")
    assert from_dict(Config, load_yaml(path)) == Config(warmup=3)


@pytest.mark.parametrize(
    ("content", "word"),
    [(None, "FileNotFound"), (b"a: [1", "Error"), (b"- 1\n- 2", "list"), (b"\xff\xfe\xfa", "Error")],
)
def test_a_yaml_file_that_cannot_be_used_is_named(tmp_path, content, word):
    path = tmp_path / "run.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_yaml(path)
    assert str(path) in str(caught.value)
    assert word in str(caught.value)
