"""Each experiment's resolved config as text, so that a changed hyperparameter shows in review.

A golden file holds the fields in which an experiment differs from the defaults; `default.txt` holds the defaults. After
a change that is meant: `LACY_UPDATE_GOLDEN=1 python -m pytest tests/experiments/test_golden_configs.py`, and read the diff.
"""

from __future__ import annotations

import os
import pathlib

import pytest

from lacy_jax.config import flatten, get_default_config, load_config, training_fields

GOLDEN = pathlib.Path(__file__).parent / "golden"
EXPERIMENTS = pathlib.Path(__file__).resolve().parents[2] / "experiments"
ARGS = {
    "call_rate": ("", "ablations", "learning_rate", "search", "smoke"),
    "paper_1b3": ("", "llama", "llama,loop", "smoke"),
    "first_mention": ("", "window", "smoke"),
    "forgetting": ("", "head", "ntp", "real", "smoke"),
    "growth": ("6m,epochs=0.45,cpu",),
    "muon": ("", "muon", "smoke"),
    "paper_334m": ("", "llama", "bf16", "rho", "smoke"),
    "query_head": ("", "plain", "smoke"),
    "query_head_real": ("", "smoke"),
    "quickstart": ("", "smoke"),
    "wiki_bios": ("", "ntp", "gpu", "smoke"),
    "wiki_comparison": ("", "rho,6m", "smoke"),
    "wiki_openings": ("", "partner", "smoke"),
}
"""Args by experiment. The rest of an arg's words choose a policy only."""
WITHOUT = {"continue_from_hf": "its model is that of the run it goes on from"}


def _lines(config) -> list[str]:
    return [f"{name} = {value!r}" for name, value in flatten(config).items()]


def _text(name: str, arg: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("LACY_DATA", "DATA")
    monkeypatch.delenv("LACY_WIKI", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    config = load_config(f"{EXPERIMENTS / name}.py:{arg}")
    defaults = set(_lines(get_default_config()))
    return "\n".join(line for line in _lines(config) if line not in defaults) + "\n"


def _check(file: pathlib.Path, text: str) -> None:
    if os.environ.get("LACY_UPDATE_GOLDEN"):
        file.write_text(text)
    assert file.exists(), f"no golden text {file.name}; LACY_UPDATE_GOLDEN=1 writes it"
    assert text == file.read_text(), (
        f"{file.name} differs; if that is meant, LACY_UPDATE_GOLDEN=1 rewrites it"
    )


def test_the_defaults_are_the_golden_ones():
    _check(GOLDEN / "default.txt", "\n".join(_lines(get_default_config())) + "\n")


@pytest.mark.parametrize(("name", "arg"), [(name, arg) for name, args in ARGS.items() for arg in args])
def test_an_experiment_is_its_golden_text(name, arg, monkeypatch):
    _check(GOLDEN / f"{name}{arg and '-'}{arg}.txt", _text(name, arg, monkeypatch))


def test_every_experiment_has_a_golden_text():
    assert {file.stem for file in EXPERIMENTS.glob("*.py")} == ARGS.keys() | WITHOUT.keys()
    kept = {"default.txt"} | {f"{name}{arg and '-'}{arg}.txt" for name, args in ARGS.items() for arg in args}
    assert {file.name for file in GOLDEN.iterdir()} == kept


def test_a_changed_field_is_seen(monkeypatch):
    """The text that is compared holds what a checkpoint depends on."""
    config = get_default_config()
    assert training_fields(config).keys() <= flatten(config).keys()
    monkeypatch.setenv("LACY_DATA", "elsewhere")
    before = _lines(load_config(f"{EXPERIMENTS}/quickstart.py"))
    after = _lines(load_config(f"{EXPERIMENTS}/quickstart.py", ["optimizer.b2=0.99"]))
    assert [b for a, b in zip(before, after, strict=True) if a != b] == ["optimizer.b2 = 0.99"]
