"""`lacy init` writes experiments that come with the package, as they are."""

from __future__ import annotations

import json

import pytest

from lacy_jax import cli, config
from lacy_jax.setup import templates


@pytest.mark.parametrize("name", templates.TEMPLATES)
def test_a_template_is_the_experiment_of_that_name_and_loads(name, tmp_path, capsys):
    assert cli.main(["init", str(tmp_path / "new"), f"--template={name}"]) == 0
    path = tmp_path / "new" / "experiments" / f"{templates.TEMPLATES[name]}.py"
    assert path.read_bytes() == (templates.experiments_folder() / path.name).read_bytes()
    printed = capsys.readouterr().out
    assert printed.startswith(f"{path}\n")
    assert f"--config=experiments/{path.name}" in printed
    if name != "continue":  # It wants the run of an imported model.
        assert config.load_config(f"{path}:smoke").name == path.stem


def test_nothing_is_overwritten(tmp_path, capsys):
    assert cli.main(["init", str(tmp_path), "--json"]) == 0
    path = tmp_path / "experiments" / "quickstart.py"
    assert json.loads(capsys.readouterr().out) == {"path": str(path)}
    path.write_text("mine")
    assert cli.main(["init", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"lacy init: {path} exists and is not overwritten\n"
    assert path.read_text() == "mine"


def test_an_unknown_template_and_a_folder_that_cannot_be_made_are_one_line(tmp_path, capsys):
    assert cli.main(["init", str(tmp_path), "--template=nanogpt"]) == 2
    assert "--template=nanogpt: expected one of quickstart, wiki, paper, continue" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert cli.main(["init", str(tmp_path / "file")]) == 74
    assert f"cannot write {tmp_path}/file/experiments/quickstart.py" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]
