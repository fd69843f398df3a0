"""One registry for each kind of thing that a config chooses by name and a user may add: policies, gates, partners and so on.

A registry is defined in the room that its kind belongs to (`POLICIES: Registry[Policy] = Registry("policy")`), and each
entry is added beside its code. Everything that lists entries derives from the registry: checks of the config, error
texts, `lacy VERB --help` and the tables in docs/. An earlier room, which may not import a later one, asks by config
field (`registry_of("objective.policy")`); the later room is imported only then.

Entries from outside the package come from plugins: modules or files that `config.plugins` names, and entry points of
installed packages in the group `lacy_jax.plugins`. A plugin is Python that adds entries when it is imported.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import pathlib
import pkgutil
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from lacy_jax.errors import ConfigError, one_line

ENTRY_POINTS = "lacy_jax.plugins"
"""Entry-point group in which an installed package names its plugin modules: `any-name = package.module`."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of thing that is chosen by name: where it is chosen, and which module defines the choices.

    Attributes:
      name: the kind in words: "policy".
      fields: the config fields, or the command-line option ("--suite"), that name an entry.
      room: the module that holds the registry and its entries; if it is a package, all of its modules.
    """

    name: str
    fields: tuple[str, ...]
    room: str


KINDS = {
    kind.name: kind
    for kind in (
        Kind("policy", ("objective.policy",), "lacy_jax.objectives.policies"),
        Kind("model preset", ("model.preset",), "lacy_jax.models.config"),
        Kind("attention", ("model.attention",), "lacy_jax.models.attention"),
        Kind("remat policy", ("model.remat",), "lacy_jax.models.transformer"),
        Kind("corpus reader", ("corpus.kind",), "lacy_jax.corpus"),
        Kind("labeller", ("labels.labeller",), "lacy_jax.labels.registry"),
        Kind("first mention", ("labels.first_mention",), "lacy_jax.labels.windows"),
        Kind("optimizer", ("optimizer.name",), "lacy_jax.training.optimizer"),
        Kind("quantization", ("train.quantization",), "lacy_jax.training.quantization"),
        Kind("schedule", ("optimizer.schedule",), "lacy_jax.training.optimizer"),
        Kind("partner", ("generate.partner",), "lacy_jax.cascade.partners"),
        Kind("gate", ("generate.gate",), "lacy_jax.objectives.gates"),
        Kind("encoder", ("--encoder",), "lacy_jax.cascade.encoders"),
        Kind("context kind", ("--kinds",), "lacy_jax.cascade.synthesis"),
        Kind("suite", ("--suite",), "lacy_jax.evaluation.suites"),
    )
}  # fmt: skip


class Entry(Protocol):
    """What every entry has; its room may need more of it.

    An entry whose value takes an argument also has `form`, which shows how the value is written: "hf:FOLDER"
    (an argument after the colon), "bundled[:FOLDER]" (an optional argument).
    """

    @property
    def name(self) -> str:
        """The name, as written in the config field."""

    @property
    def description(self) -> str:
        """One line for help, errors and docs."""


E = TypeVar("E", bound=Entry)


@dataclasses.dataclass(frozen=True)
class Option:
    """An entry that is only a word: the code that reads the config field acts on it."""

    name: str
    description: str


class Registry(Mapping[str, E]):
    """The entries of one kind by name, in the order they were added.

    Args:
      kind: a name in `KINDS`, or a new `Kind` that this module does not load.

    Attributes:
      sources: for each entry from outside the package, the file that added it.
    """

    def __init__(self, kind: str | Kind, entries: Iterable[E] = ()):
        self.kind = KINDS[kind] if isinstance(kind, str) else kind
        self._entries: dict[str, E] = {}
        self.sources: dict[str, str] = {}
        self._filled = False
        _made.update(dict.fromkeys(self.kind.fields, self))
        for entry in entries:
            self.add(entry)

    def add(self, entry: E) -> E:
        """Add an entry, and return it.

        Raises:
          ConfigError: the name is taken.
        """
        if entry.name in self._entries:
            raise ConfigError(f"{self.kind.name} {entry.name!r} is registered already: choose another name")
        self._entries[entry.name] = entry
        caller = sys._getframe(1).f_globals
        if not caller["__name__"].startswith(f"{__package__}."):
            self.sources[entry.name] = caller.get("__file__", "")
        return entry

    def digest(self, value: str) -> str:
        """sha256 of the file that added the entry that `value` chooses; "" for an entry of the package."""
        source = self.sources.get(self.named(value).name)
        return _sha256(source) if source else ""

    def named(self, value: str, field: str = "") -> E:
        """The entry that a config value chooses: its name, followed by a colon and an argument if its form has one.

        Args:
          field: the field to name in the error; "" = the first field of the kind.

        Raises:
          ConfigError: there is no such entry; lists the entries and names the nearest.
        """
        name, colon, argument = str(value).partition(":")
        entry = self.get(name)
        if entry is not None:
            form = form_of(entry)
            wanted, optional = ":" in form, "[:" in form
            if (wanted and argument) or (not colon and (optional or not wanted)):
                return entry
        near = difflib.get_close_matches(name, self, n=1)
        hint = f"; did you mean {near[0]!r}?" if near and near[0] != name else ""
        forms = ", ".join(form for form, _ in self.table())
        field = field or self.kind.fields[0]
        where = f"{field}={value}" if field.startswith("--") else f"config.{field} = {value!r}"
        raise ConfigError(f"{where}: expected one of {forms}{hint}")

    def table(self) -> list[tuple[str, str]]:
        """(form, description) of each entry."""
        return [(form_of(entry), entry.description) for entry in self.values()]

    def markdown(self) -> str:
        """`table` as Markdown, for docs/."""
        cells = [(form, about.replace("|", "\\|")) for form, about in self.table()]
        rows = "".join(f"| `{form}` | {about} |\n" for form, about in cells)
        return f"| {self.kind.name} | |\n|---|---|\n{rows}"

    def __getitem__(self, name: str) -> E:
        self._fill()
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        self._fill()
        return iter(self._entries)

    def __len__(self) -> int:
        self._fill()
        return len(self._entries)

    def _fill(self) -> None:
        if self._filled:
            return
        self._filled = True  # Set before the imports, because they may read the entries added so far.
        try:
            _import_room(self.kind.room)
            _import_installed()
        except BaseException:
            self._filled = False
            raise


_made: dict[str, Registry[Any]] = {}
"""Field -> its registry."""
_OPTIONS = "lacy_jax.default_config"
"""The module with the registries of plain words."""


def registry_of(field: str) -> Registry[Any]:
    """The registry that a config field, or a command-line option, chooses from."""
    if field not in _made:
        importlib.import_module(next((k.room for k in KINDS.values() if field in k.fields), _OPTIONS))
    return _made[field]


def choice_fields() -> list[str]:
    """The config fields and command-line options that choose from a registry; imports no room."""
    importlib.import_module(_OPTIONS)
    return list(dict.fromkeys([*_made, *(field for kind in KINDS.values() for field in kind.fields)]))


def choices_text(groups: Iterable[str]) -> Iterator[str]:
    """The choices of the config fields in these groups ("objective") and of options ("--suite"), as `--help` shows them.

    Yields one text per field, because importing a field's room may take a second or two.
    """
    wanted = tuple(groups)
    for field in choice_fields():
        if field.partition(".")[0] in wanted:
            rows = registry_of(field).table()
            width = min(max(len(form) for form, _ in rows), 28)
            title = field if field.startswith("--") else f"--config.{field}="
            yield f"\n{title}\n" + "".join(f"  {form:{width}}  {about}\n" for form, about in rows)


def form_of(entry: Entry) -> str:
    """How a config value that chooses this entry is written; see `Entry`."""
    return str(getattr(entry, "form", entry.name))


def _import_room(room: str) -> None:
    module = importlib.import_module(room)
    for part in pkgutil.iter_modules(getattr(module, "__path__", ())):
        importlib.import_module(f"{room}.{part.name}")


# -- plugins ---------------------------------------------------------------------------------------------------


def plugins_in_use() -> dict[str, str]:
    """path -> sha256 of each file from outside the package that added an entry in this process."""
    files = [file for registry in _made.values() for file in registry.sources.values()]
    return {file: _sha256(file) for file in sorted(set(files))}


def plugin_path(plugin: str) -> str:
    """How a run records a plugin: a file by its full path, because the next command may run in another folder."""
    return os.path.abspath(plugin) if _is_file(plugin) else plugin


def load_plugins(plugins: Sequence[str]) -> None:
    """Import plugins: names of modules, or files that end in ".py". A plugin that is already imported is not imported again.

    Raises:
      ConfigError: a plugin is missing, no name at all, or its import fails; names the line.
    """
    if not isinstance(plugins, (list, tuple)):  # As a file from outside may have it.
        raise ConfigError(f"config.plugins: {plugins!r} is no list of modules and files")
    for plugin in plugins:
        if not _is_file(plugin):
            _import_module(plugin, plugin)
            continue
        path = pathlib.Path(plugin_path(plugin))
        if not path.is_file():
            raise ConfigError(f"config.plugins: no file {plugin}; restore it, or give its new path")
        # The name depends on the path alone, so that worker processes find the plugin's classes under the same name.
        name = f"lacy_plugin_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
        if name not in sys.modules:
            spec = importlib.util.spec_from_file_location(name, path)
            assert spec is not None
            assert spec.loader is not None
            module = sys.modules[name] = importlib.util.module_from_spec(spec)
            try:
                spec.loader.exec_module(module)
            except BaseException as error:
                del sys.modules[name]
                if not isinstance(error, Exception):
                    raise
                raise ConfigError(f"config.plugins: {describe_failure(error, str(path))}") from error


def describe_failure(error: Exception, path: str) -> str:
    """One line about an error that a user's file raised: file, line, class, message."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    where = f"{path}:{lines[-1]}" if lines else path
    return f"{where}: {type(error).__name__}: {one_line(error)}"


def _is_file(plugin: str) -> bool:
    if not isinstance(plugin, str):
        raise ConfigError(f"config.plugins: {plugin!r} is no module and no file")
    return plugin.endswith(".py")


def _sha256(path: str) -> str:
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


def _import_module(name: str, shown: str) -> None:
    try:
        importlib.import_module(name)
    except Exception as error:  # A plugin is user input: whatever it raises becomes one line.
        raise ConfigError(f"config.plugins: {shown}: {type(error).__name__}: {one_line(error)}") from error


def _import_installed() -> None:
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        _import_module(point.module, f"{point.value} (entry point {point.name!r} of an installed package)")
