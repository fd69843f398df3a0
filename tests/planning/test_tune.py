"""The search of `lacy plan --tune` with a compiler whose programs take known times; the real one is in test_plan_tpu.py."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import runpy
import shlex

import jax
import pytest

from lacy_jax import cli
from lacy_jax import config as config_lib
from lacy_jax.errors import ConfigError
from lacy_jax.planning import tune as tune_lib
from lacy_jax.planning.ahead import DoesNotFit, Memory
from lacy_jax.planning.clock import Clock, Part
from lacy_jax.planning.plan import Target, arguments, words
from lacy_jax.planning.programs import Programs, program_key
from lacy_jax.planning.slices import parse_topology
from lacy_jax.planning.space import AXES, settings
from lacy_jax.planning.tune import OVERRIDES_FILE, RESULT_FILE, tune
from lacy_jax.training.chips import GIB

_ROOT = pathlib.Path(__file__).resolve().parents[2]
PAPER = f"{_ROOT}/experiments/paper_334m.py:llama"
# Where every test starts: the slowest of what the search may change.
SLOW = ("train.shard_optimizer=False", "objective.chunk=512", "model.remat=full", "model.attention_block=128", "model.scan_layers=True", "input.batch_size=64")  # fmt: skip
PLACE = parse_topology("v5e:2x4")
_REMAT = {"none": (0, 20), "dots": (5, 6), "attention": (8, 3), "full": (20, 2)}  # ms, GiB
_OPTION_MS = {"xla_tpu_scoped_vmem_limit_kib=65536": -3, "xla_tpu_rwb_fusion=false": -0.05}


def time_of(config) -> tuple[float, float]:
    """(ms, GiB) of the pretended program."""
    ms, gib = _REMAT[config.model.remat]
    ms += 0 if config.train.shard_optimizer else 15
    ms += 4 * abs(config.objective.chunk - 4096) / 1024
    ms += 30 * 128 / min(config.model.attention_block, 512)  # Rows are cut in blocks of at most 512.
    ms += 8 if config.model.scan_layers else 0
    ms += 10 * (max(config.mesh.tensor, config.mesh.sequence, config.mesh.fsdp) - 1)
    ms += sum(_OPTION_MS.get(option, 0) for option in config.train.compiler_options)
    ms += 6 * (config.train.accumulation - 1)
    return 100 + ms, gib / config.train.accumulation + (0 if config.train.shard_optimizer else 4)


class Lowered:
    def __init__(self, config):
        kept = settings(config) | {"model.attention_block": min(config.model.attention_block, 512)}
        self.time, self.text = time_of(config), json.dumps([*kept.items(), config.input.batch_size])

    def as_text(self):
        return self.text


@pytest.fixture
def compiled(monkeypatch):
    """The programs that were compiled, in order."""

    log: list[str] = []

    def compile_lowered(config, lowered, place):
        log.append(lowered.text)
        if any("dot_dot" in option for option in config.train.compiler_options):
            raise ConfigError("config.train.compiler_options: No such compile option")
        if any("msa" in option for option in config.train.compiler_options):
            raise jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK\nfailure")
        ms, gib = lowered.time
        if gib > 15.75:
            return DoesNotFit(int(gib * GIB), int(15.75 * GIB))
        return Memory(int(gib * GIB), 0, 0, int(15.75 * GIB)), str(ms)

    @dataclasses.dataclass
    class Plan:
        clock: Clock
        memory: Memory

    def read_plan(config, target, memory, program):
        seconds = float(program) / 1e3
        return Plan(Clock([Part("a", "copy", "mlp", seconds, 1, 0.8 * seconds)], 0, 0, 0, 0), memory)

    monkeypatch.setattr(tune_lib, "target_of", lambda *_: Target(PLACE, PLACE, jax.devices()[:8]))
    monkeypatch.setattr(tune_lib, "lower_step", lambda config, model, mesh: Lowered(config))
    monkeypatch.setattr(tune_lib, "compile_lowered", compile_lowered)
    monkeypatch.setattr(tune_lib, "read_plan", read_plan)
    return log


def start(*overrides: str):
    return config_lib.load_config(PAPER, [*SLOW, *overrides])


def test_the_search_finds_the_fastest_that_fits_and_says_what_each_change_brings(compiled, tmp_path):
    found = tune(start(), "v5e:2x4", tmp_path, compilations=200)
    best = found.best()
    assert best[0].changes == {
        "train.shard_optimizer": True,
        "objective.chunk": 4096,
        "train.compiler_options": ("xla_tpu_scoped_vmem_limit_kib=65536",),
        "model.remat": "dots",
        "model.attention_block": 512,
        "model.scan_layers": False,
    }
    assert best[0].step_s == pytest.approx(0.1095)
    assert best[0].least_s == pytest.approx(0.8 * 0.1095)
    assert not found.spent
    assert len(best) == 10
    assert [trial.step_s for trial in best[1:]] == sorted(trial.step_s for trial in best[1:])
    # An option that saves half a thousandth is worth no line of a config.
    assert best[1].step_s == pytest.approx(best[0].step_s - 5e-5)
    assert len({trial.program for trial in best}) == 10
    # Each step by itself, and all of them together.
    gains = {next(iter(step)): saved for step, saved in found.gains()}
    assert gains["train.shard_optimizer"] == pytest.approx(0.015)
    assert gains["model.remat"] == pytest.approx(0.015)
    assert gains["train.compiler_options"] == pytest.approx(0.003)
    assert sum(saved for _, saved in found.gains()) == pytest.approx(found.trials[0].step_s - best[0].step_s)
    # Keeping everything would be 5 ms faster but does not fit; refusals of the compiler are said and passed over.
    refused = found.to_dict()["refused"]
    assert any(
        "model.remat=none" in name and "does not fit: needs 20.0 GiB" in why for name, why in refused.items()
    )
    assert any("No such compile option" in why for why in refused.values())
    assert any(why == "the compiler fails: INTERNAL: RET_CHECK failure" for why in refused.values())
    saved = (found.trials[0].step_s - best[0].step_s) * 1e3
    assert f", saves {saved:.1f} ms (" in found.summary().splitlines()[2]


def test_the_files_are_the_result_and_arguments_that_any_verb_takes(compiled, tmp_path):
    found = tune(start(), "v5e:2x4", tmp_path, compilations=200, given=("--config=x.py",))
    lines = (tmp_path / OVERRIDES_FILE).read_text().split()
    assert "--config.train.compiler_options=('xla_tpu_scoped_vmem_limit_kib=65536',)" in lines
    config = start(*(line.removeprefix("--config.") for line in lines))
    kept = json.loads((tmp_path / RESULT_FILE).read_text())
    assert json.loads(json.dumps(settings(config))) == kept["best"][0]["settings"]
    assert kept == json.loads(json.dumps(found.to_dict()))
    assert (kept["given"], kept["programs"]) == (["--config=x.py"], len(compiled))
    assert words({"a.b": (1, 2), "c": 1}) == "'--config.a.b=(1,2)' --config.c=1"
    assert words({"a.b": ("x=1",)}) == "\"--config.a.b=('x=1',)\""
    assert shlex.split(words({"a": "$'"})) == ["--config.a=$'"]
    assert arguments({"a.b": "x"}) == ["--config.a.b=x"]


def test_a_killed_search_goes_on_and_ends_as_if_it_had_not_been(compiled, tmp_path, monkeypatch):
    whole = tune(start(), "v5e:2x4", tmp_path / "whole", compilations=200).to_dict()
    expected = list(compiled)
    compiled.clear()
    folder, compile_lowered = tmp_path / "killed", tune_lib.compile_lowered
    for kill in (1, 5, 9):

        def killed(*arguments, after=kill):
            if len(compiled) == after:
                raise KeyboardInterrupt
            return compile_lowered(*arguments)

        monkeypatch.setattr(tune_lib, "compile_lowered", killed)
        with pytest.raises(KeyboardInterrupt):
            tune(start(), "v5e:2x4", folder, compilations=200)
        assert len(compiled) == kill
        assert not (folder / RESULT_FILE).exists()
    monkeypatch.setattr(tune_lib, "compile_lowered", compile_lowered)
    assert tune(start(), "v5e:2x4", folder, compilations=200).to_dict() == whole
    assert compiled == expected


def test_the_budget_counts_programs_and_a_larger_one_goes_on(compiled, tmp_path):
    first = tune(start(), "v5e:2x4", tmp_path, compilations=6)
    assert (len(compiled), first.programs, first.spent) == (6, 6, True)
    assert first.best()[0].step_s < first.trials[0].step_s
    assert first.overrides() == arguments(first.best()[0].changes)
    assert "6 programs of at most 6; the budget ended the search" in first.summary()
    tune(start(), "v5e:2x4", tmp_path, compilations=6)
    assert len(compiled) == 6
    more = tune(start(), "v5e:2x4", tmp_path, compilations=9)
    assert len(compiled) == len(set(compiled)) == 9
    # What the last axis has found counts, though the budget ended before its last neighbour.
    assert more.path[-1].changes["train.compiler_options"] == ("xla_tpu_scoped_vmem_limit_kib=65536",)
    assert more.path[-1].step_s == pytest.approx(min(trial.step_s for trial in more.trials), rel=1e-3)


def test_settings_that_make_the_same_program_compile_once_and_what_is_damaged_again(compiled, tmp_path):
    found = tune(start("model.attention_block=512"), "v5e:2x4", tmp_path, compilations=200)
    tried = [trial for trial in found.trials if trial.changes.get("model.attention_block") == 1024]
    assert tried
    assert len(compiled) == len(set(compiled)) == found.programs < len(found.trials)
    kept = sorted((tmp_path / "programs").iterdir())
    kept[0].write_bytes(kept[0].read_bytes()[:-9])
    tune(start("model.attention_block=512"), "v5e:2x4", tmp_path, compilations=200)
    assert len(compiled) == found.programs + 1


def test_the_hash_is_of_all_that_the_compiler_is_given(monkeypatch):
    lowered, more = Lowered(start()), Lowered(start("objective.chunk=1024"))
    keys = [
        program_key(lowered, {}, PLACE),
        program_key(more, {}, PLACE),
        program_key(lowered, {"a": "1"}, PLACE),
        program_key(lowered, {}, parse_topology("v5e:4x4")),
    ]
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--x")
    keys.append(program_key(lowered, {}, PLACE))
    for name in ("jax_optimization_level", "jax_memory_fitting_level"):
        before = getattr(jax.config, name)
        jax.config.update(name, "O1")
        keys.append(program_key(lowered, {}, PLACE))
        jax.config.update(name, before)
    assert len(set(keys)) == len(keys)


def test_kept_programs_are_what_was_put(tmp_path):
    programs = Programs(tmp_path)
    for number, compiled in enumerate(((Memory(1, 2, 3, 4), "HLO"), DoesNotFit(5, 4), "refused")):
        assert programs.get(str(number)) is None
        programs.put(str(number), compiled)
        assert programs.get(str(number)) == compiled


def test_accumulation_is_only_tried_where_it_leaves_the_mask_alone():
    (axis,) = (axis for axis in AXES if axis.name == "accumulation")

    def steps(*overrides):
        config = start(*overrides)
        mesh, model = Target(PLACE, PLACE, jax.devices()[:8]).mesh_and_model(config)
        return list(axis.steps(tune_lib.Point(config, model, mesh.shape)))

    assert steps() == [{"train.accumulation": 2, "objective.mask_scope": "step"}]
    assert steps("train.accumulation=2") == []
    assert steps("model.dropout=0.1") == []
    assert len(steps("train.accumulation=2", "objective.mask_scope=step")) == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--compilations=0"], "--compilations=0: must be at least 1"),
        (
            ["--config.model.remat=none"],
            "does not fit: needs 24.0 GiB a chip of 15.75; raise config.mesh.fsdp",
        ),
        (["--config.input.batch_size=12"], "choose a multiple of 8"),
    ],
)
def test_what_cannot_be_searched_is_one_line(compiled, tmp_path, capsys, arguments, says):
    slow = [f"--config.{override}" for override in SLOW]
    code = cli.main(["plan", f"--config={PAPER}", "--topology=v5e:2x4", "--tune", f"--workdir={tmp_path}", *slow, *arguments])  # fmt: skip
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert says in err.splitlines()[-1]
    assert not (tmp_path / RESULT_FILE).exists()


def test_the_command_says_how_to_use_what_it_found(compiled, tmp_path, capsys):
    given = [f"--config={PAPER}", "--config.model.remat=dots"]
    command = ["plan", *given, "--topology=v5e:2x4", "--tune"]
    assert cli.main(command) == 2
    assert capsys.readouterr().err == "lacy plan: --workdir=DIR is needed\n"
    assert (
        cli.main([*command, f"--workdir={tmp_path}", "--compilations=3", "--config.objective.chunk=1024"])
        == 0
    )
    out, err = capsys.readouterr()
    assert (
        f"lacy train {' '.join(given)} --config.objective.chunk=1024 $(cat {tmp_path}/overrides.txt)" in out
    )
    assert err.splitlines()[0].startswith("1 of 3: as given: ")
    assert json.loads((tmp_path / RESULT_FILE).read_text())["given"] == [
        *given,
        "--config.objective.chunk=1024",
    ]


_TUNED = runpy.run_path(str(_ROOT / "benchmarks" / "tune.py"))
_CLEARLY = 1.02
"""Differences below 2 % are less than such estimates are good for."""


@pytest.mark.parametrize("name", list(_TUNED["SEARCHES"]))
def test_presets_have_what_the_search_found(name):
    """To update: `python benchmarks/tune.py NAME`, and put what is clearly better into the experiment."""
    found = json.loads(_TUNED["stored"](name).read_text())
    assert tuple(found["given"]) == _TUNED["SEARCHES"][name][:1]
    spec, *overrides = found["given"]
    config = config_lib.load_config(
        f"{_ROOT}/{spec.removeprefix('--config=')}", [line.removeprefix("--config.") for line in overrides]
    )
    ours = json.loads(json.dumps(settings(config)))
    rows = [row for row in (found["start"], *found["best"]) if row["settings"] == ours]
    assert rows, f"{spec} has settings that the search has not tried, or that are not among its best"
    assert rows[0]["step_s"] <= _CLEARLY * found["best"][0]["step_s"]
