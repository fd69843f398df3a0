"""Configs: typed overrides, errors that name the field, JSON there and back."""

from __future__ import annotations

import ast
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strangers import value_or_line

from lacy_jax import config as config_lib
from lacy_jax.errors import ConfigError

EXPERIMENT = """
from lacy_jax.config import get_default_config
def get_config(arg=""):
    config = get_default_config()
    config.name = arg or "plain"
    return config
"""


@pytest.fixture
def experiment(tmp_path):
    path = tmp_path / "experiment.py"
    path.write_text(EXPERIMENT)
    return str(path)


@pytest.mark.parametrize(
    "spec",
    [
        "world",
        "checkpoint:runs/a",
        "http://localhost:8000/v1#m",
        "documents:a.jsonl,checkpoint:b",
        "database:a.db",
        "index:a#dense,checkpoint:b",
    ],
)
def test_every_kind_of_partner_passes_the_check(experiment, spec):
    assert config_lib.load_config(experiment, [f"generate.partner={spec}"]).generate.partner == spec


def test_overrides_take_the_type_of_the_field(experiment):
    c = config_lib.load_config(
        f"{experiment}:arg",
        [
            "train.steps=7",
            "optimizer.learning_rate=1",
            "model.tie_head=false",
            "model.d_model=64",
            "dataset.mixture=(('a', 1.0), ('b', 2.0))",
            "optimizer.warmup_steps=2",
        ],
    )
    assert (c.name, c.train.steps, c.model.tie_head, c.model.d_model) == ("arg", 7, False, 64)
    assert c.optimizer.learning_rate == 1.0
    assert isinstance(c.optimizer.learning_rate, float)
    assert c.dataset.mixture == (("a", 1.0), ("b", 2.0))
    assert c.is_locked


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.stepz=5", "did you mean config.train.steps?"),
        ("objective.polcy=lacy", "did you mean config.objective.policy?"),
        ("train.steps=many", "expected int"),
        ("train.steps=0", "at least 1"),
        ("model=1", "is a group of fields"),
        ("objective.policy=lazy", "did you mean 'lacy'?"),
        ("objective.call_rate=1.0", "must be in [0, 1)"),
        ("objective.call_rate=-0.1", "must be in [0, 1)"),
        ("generate.budget=1.5", "must be in [0, 1]"),
        ("generate.gate=entropi", "did you mean 'entropy'?"),
        ("generate.partner=oracle", "expected one of none, checkpoint:RUN_DIR"),
        ("objective.policy=rho", "needs 'dataset' or the run directory"),
        ("train.accumulation=3", "must divide input.batch_size"),
        ("corpus.kind=csv", "expected one of"),
        ("optimizer.learning_rate=0", "must be positive"),
        (
            "dataset.mixture=(('a', 1.0))",
            "a single part needs a comma after its parenthesis, as in (('a', 1.0),)",
        ),
        ("dataset.mixture=(('a', 1.0), ('b',))", "('b',) is not (path, weight)"),
        ("dataset.mixture=(('a', 0),)", "'a' needs a positive weight, not 0"),
        ("dataset.mixture=(('a', 1e999),)", "'a' needs a positive weight, not inf"),
        ("dataset.mixture=('a',)", "a single part needs a comma"),
        ("dataset.mixture=((1, 2),)", "(1, 2) is not (path, weight)"),
        ("dataset.mixture=None", "expected tuple, such as ()"),
        ("train.steps=None", "expected int, such as 1000"),
        ("train.steps=True", "expected int, such as 1000"),
        ("labels.online=None", "expected bool, such as False"),
        ("model.d_model=many", "expected int or None"),
        ("model.tie_head=perhaps", "expected bool or None"),
    ],
)
def test_a_bad_field_is_one_line_that_names_it(experiment, override, says):
    with pytest.raises(ConfigError) as caught:
        config_lib.load_config(experiment, [override])
    message = str(caught.value)
    assert says in message
    assert message.startswith("config.")
    assert "\n" not in message


@pytest.mark.parametrize(
    "field", ["model.d_model", "model.tie_head", "model.rope_theta", "model.rope_scaling"]
)
def test_a_placeholder_takes_none(experiment, field):
    """As their defaults show it."""
    c = config_lib.load_config(experiment, [f"{field}=None"])
    assert config_lib.get_field(c, field) is None


@given(
    st.sampled_from(sorted(config_lib.flatten(config_lib.get_default_config()))),
    st.text()
    | st.text("()[]{}',.1eNoneTru", max_size=12)
    | st.integers().map(str)
    | st.sampled_from(["(" * 200, "1" * 5000]),
)
def test_any_value_of_any_field_is_one_or_refused_in_one_line(field, text):
    config = config_lib.get_default_config().unlock()
    before = type(config_lib.get_field(config, field))
    _, line = value_or_line(config_lib.set_field, config, field, text, kinds=(ConfigError,))
    assert line.startswith(f"config.{field} = ") or type(config_lib.get_field(config, field)) in (before, type(None)) or before is type(None)  # fmt: skip


def test_a_broken_experiment_file_names_its_line(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text(EXPERIMENT + "    config.train.stepz = 3\n")
    path.write_text(
        EXPERIMENT.replace("    return config\n", "    config.train.stepz = 3\n    return config\n")
    )
    with pytest.raises(ConfigError, match=r"broken.py:6: .*stepz"):
        config_lib.load_config(str(path))
    path.write_text("def get_config(:\n")
    with pytest.raises(ConfigError, match="SyntaxError"):
        config_lib.load_config(str(path))
    path.write_text("x = 1\n")
    with pytest.raises(ConfigError, match="must define get_config"):
        config_lib.load_config(str(path))
    with pytest.raises(ConfigError, match="config file not found"):
        config_lib.load_config(str(tmp_path / "nowhere.py"))


def test_json_there_and_back_and_unknown_fields_refused(experiment):
    c = config_lib.load_config(experiment, ["dataset.mixture=(('a', 1.0),)", "model.n_layers=3"])
    again = config_lib.from_json(config_lib.to_json(c))
    assert config_lib.to_json(again) == config_lib.to_json(c)
    assert again.dataset.mixture == (("a", 1.0),)
    with pytest.raises(
        ConfigError, match=r"config\.train\.stepz: no such field; did you mean config\.train\.steps"
    ):
        config_lib.from_json('{"train": {"stepz": 3}}')


def test_every_experiment_says_command_hardware_cost_and_what_to_expect(request):
    files = sorted((request.config.rootpath / "experiments").glob("*.py"))
    assert len(files) >= 7
    for path in files:
        about = ast.get_docstring(ast.parse(path.read_text())) or ""
        assert f"experiments/{path.name}" in about, path
        for what in (r"\bcores?\b|GPU|v5e", r"\bCost\b", r"Expected|\bresults\b"):
            assert re.search(what, about), f"{path}: nothing about {what}"


@pytest.mark.parametrize("name", ["quickstart", "wiki_bios"])
@pytest.mark.parametrize("arg", ["", "smoke", "ntp"])
def test_every_experiment_loads_and_validates(name, arg, request):
    path = request.config.rootpath / "experiments" / f"{name}.py"
    c = config_lib.load_config(f"{path}:{arg}")
    assert c.name == name
    assert c.objective.policy == ("ntp" if arg == "ntp" else "lacy")
