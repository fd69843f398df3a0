"""Registries: every list of choices derives from them, and a plugin adds to them."""

from __future__ import annotations

import contextlib
import io
import pathlib
import runpy
import subprocess
import sys

import pytest

from lacy_jax import config as config_lib
from lacy_jax import registry as registry_module
from lacy_jax.cli import main
from lacy_jax.config import flatten, get_default_config
from lacy_jax.errors import ConfigError
from lacy_jax.objectives import POLICIES
from lacy_jax.registry import Kind, Option, Registry, choice_fields, form_of, registry_of

REGISTRIES = {registry.kind.name: registry for registry in map(registry_of, choice_fields())}
VERBS = ("prepare", "train", "generate", "evaluate", "index", "synthesise")
EXPERIMENT = """
from lacy_jax.config import get_default_config
def get_config(arg=""):
    return get_default_config()
"""


@pytest.fixture
def experiment(tmp_path):
    path = tmp_path / "experiment.py"
    path.write_text(EXPERIMENT)
    return str(path)


@pytest.fixture
def forget(request):
    """Takes an entry that a test's plugin added out again."""

    def later(registry, name):
        request.addfinalizer(lambda: registry._entries.pop(name, None))

    return later


# -- what derives from the registries ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def helps():
    texts = {}
    for verb in VERBS:
        with contextlib.redirect_stdout(io.StringIO()) as shown, pytest.raises(SystemExit):
            main([verb, "--help"])
        texts[verb] = shown.getvalue()
    return texts


@pytest.mark.parametrize("kind", REGISTRIES)
def test_help_lists_every_entry_of_every_registry(kind, helps):
    for field in REGISTRIES[kind].kind.fields:
        title = field if field.startswith("--") else f"--config.{field}="
        shown = [text.split(f"\n{title}\n")[1].split("\n\n")[0] for text in helps.values() if title in text]
        assert shown, f"no verb lists the choices of {field}"
        for form, about in REGISTRIES[kind].table():
            assert any(
                line.split(maxsplit=1)[0] == form and line.endswith(about) for line in shown[0].splitlines()
            )


@pytest.mark.parametrize("kind", REGISTRIES)
def test_the_config_accepts_each_entry_and_refuses_others_with_the_list(kind, experiment):
    registry = REGISTRIES[kind]
    for field in registry.kind.fields:
        for entry in registry.values():
            assert registry_of(field).named(entry.name + ":x" * (":" in form_of(entry)), field) is entry
        if field.startswith("--"):
            continue
        with pytest.raises(ConfigError) as caught:
            config_lib.load_config(experiment, [f"{field}=no-such-thing"])
        message = str(caught.value)
        assert message.startswith(f"config.{field} = 'no-such-thing': expected one of ")
        assert all(form_of(entry) in message for entry in registry.values())
        assert "\n" not in message


def test_every_default_is_a_choice():
    """`validate` takes the defaults for granted, so that no room is imported for them."""
    defaults = flatten(get_default_config())
    for field in choice_fields():
        if not field.startswith("--"):
            registry_of(field).named(defaults[field], field)


@pytest.fixture(scope="module")
def tables(request):
    return runpy.run_path(str(request.config.rootpath / "docs" / "tables.py"))


def test_the_tables_in_docs_are_those_of_the_registries(tables):
    for page in tables["pages"]():
        text = page.read_text()
        assert text == tables["filled"](text), f"{page.name}: python docs/tables.py fills its tables anew"


def test_docs_have_a_table_of_every_registry(tables):
    shown = {field for page in tables["pages"]() for field in tables["tables_in"](page.read_text())}
    for registry in REGISTRIES.values():
        assert shown & set(registry.kind.fields), f"no page has a table of {registry.kind.fields[0]}"


@pytest.mark.parametrize("kind", REGISTRIES)
def test_entries_describe_themselves_in_one_line(kind):
    for entry in REGISTRIES[kind].values():
        assert entry.description, entry.name
        assert "\n" not in entry.description
        assert form_of(entry).startswith(entry.name)


def test_checking_a_config_of_defaults_imports_no_room_of_the_model(experiment):
    code = f"import sys; from lacy_jax.config import load_config; load_config({experiment!r}); print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# -- one registry ----------------------------------------------------------------------------------------------


@pytest.fixture
def fruit(monkeypatch) -> Registry[Option]:
    monkeypatch.setattr(registry_module, "_made", {})
    return Registry(Kind("fruit", ("a.fruit",), __name__), [Option("apple", "round"), Option("pear", "long")])


def test_unknown_names_get_the_list_and_the_nearest(fruit):
    with pytest.raises(ConfigError) as caught:
        fruit.named("pare")
    assert str(caught.value) == "config.a.fruit = 'pare': expected one of apple, pear; did you mean 'pear'?"
    with pytest.raises(ConfigError, match=r"^config.b.fruit = 'x': expected one of apple, pear$"):
        fruit.named("x", "b.fruit")
    with pytest.raises(ConfigError, match="fruit 'pear' is registered already"):
        fruit.add(Option("pear", "again"))


class Formed(Option):
    form = "bag:OF_WHAT"


def test_a_form_says_where_an_argument_belongs(fruit):
    fruit.add(Formed("bag", "several"))
    assert fruit.named("bag:apples").name == "bag"
    for bad in ("bag", "bag:", "apple:red"):
        with pytest.raises(ConfigError, match=r"expected one of apple, pear, bag:OF_WHAT$"):
            fruit.named(bad)


# -- plugins -------------------------------------------------------------------------------------------------------

PLUGIN = """
from lacy_jax.objectives import POLICIES, Policy
from lacy_jax.objectives.policies import Choice
POLICIES.add(Policy("all_facts", "every factual target", lambda s: Choice(s.flagged("factual")), ("factual",)))
"""


@pytest.mark.parametrize("plugins", [True, "mine.py", [None], {"a": 1}, [["mine.py"]]])
def test_plugins_of_a_strange_config_file_are_one_clear_line(plugins):
    with pytest.raises(ConfigError, match=r"config\.plugins: .* is no ") as error:
        registry_module.load_plugins(plugins)
    assert "\n" not in str(error.value)


@pytest.fixture
def plugin(tmp_path, forget):
    forget(POLICIES, "all_facts")
    path = tmp_path / "mine.py"
    path.write_text(PLUGIN)
    return path


def test_a_plugin_is_recorded_with_its_full_path_and_imported_before_the_check(
    experiment, plugin, monkeypatch
):
    monkeypatch.chdir(plugin.parent)
    config = config_lib.load_config(experiment, ["plugins=('mine.py',)", "objective.policy=all_facts"])
    assert config.plugins == (str(plugin),)
    assert config_lib.from_json(config_lib.to_json(config)).plugins == (str(plugin),)
    config_lib.validate(config)  # Imported once.


def test_a_plugin_may_be_a_module(experiment, plugin, monkeypatch):
    monkeypatch.syspath_prepend(plugin.parent)
    config = config_lib.load_config(experiment, ["plugins=('mine',)", "objective.policy=all_facts"])
    assert config.plugins == ("mine",)
    sys.modules.pop("mine")


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("gone.py", None, "config.plugins: no file .*gone.py; restore it, or give its new path"),
        ("gone_module", None, "config.plugins: gone_module: ModuleNotFoundError: .*'gone_module'"),
        ("bad.py", "x = 1\n\nraise ValueError('two\\nlines')", r"config.plugins: .*bad.py:3: ValueError: two lines"),
        ("twice.py", PLUGIN.replace("all_facts", "lacy"), r"twice.py:4: ConfigError: policy 'lacy' is registered already"),
    ],
)  # fmt: skip
def test_a_plugin_that_cannot_be_imported_is_one_line(experiment, tmp_path, name, text, says, capsys):
    plugin = str(tmp_path / name) if name.endswith(".py") else name
    if text:
        pathlib.Path(plugin).write_text(text)
    code = main(
        ["train", f"--config={experiment}", f"--config.plugins=('{plugin}',)", f"--workdir={tmp_path}/run"]
    )
    error = capsys.readouterr().err
    assert code == 2
    assert error.count("\n") == 1
    with pytest.raises(ConfigError, match=says):
        config_lib.load_config(experiment, [f"plugins=('{plugin}',)"])


def test_an_installed_package_brings_its_plugin(tmp_path, experiment):
    """As pip leaves a package: a module and the entry points of its distribution."""
    (tmp_path / "theirs.py").write_text(PLUGIN)
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[lacy_jax.plugins]\nfacts = theirs\n")
    code = (
        "from lacy_jax.config import load_config\n"
        f"print(load_config({experiment!r}, ['objective.policy=all_facts']).objective.policy)"
    )
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{code}"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "all_facts\n"
