"""One registry for each kind of thing that a config chooses by name and a user may add: policies, gates, partners and so on.

A registry stands in the room that knows its kind (`POLICIES: Registry[Policy] = Registry("policy")`) and each entry is
added to it beside its code. Whatever lists entries derives from it: checks of the config, error texts, `lacy VERB --help`
and the tables in docs/. An earlier room, which may not import a later one, asks by config field
(`registry_of("objective.policy")`); the room is imported only then.

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
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, TypeVar

from lacy_jax.errors import ConfigError

ENTRY_POINTS = "lacy_jax.plugins"
"""Entry-point group in which an installed package names its plugin modules: `any-name = package.module`."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """What is chosen, where, and what has to be imported to know the choices.

    Attributes:
      name: one of them, in words: "policy".
      fields: the config fields, or the option of the command ("--suite"), that name an entry.
      room: the module that holds the registry and its entries; of a package all of its modules.
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
        Kind("optimizer", ("optimizer.name",), "lacy_jax.training.optimizer"),
        Kind("quantization", ("train.quantization",), "lacy_jax.training.quantization"),
        Kind("schedule", ("optimizer.schedule",), "lacy_jax.training.optimizer"),
        Kind("partner", ("generate.partner",), "lacy_jax.cascade.partners"),
        Kind("gate", ("generate.gate",), "lacy_jax.objectives.gates"),
        Kind("suite", ("--suite",), "lacy_jax.evaluation.suites"),
    )
}  # fmt: skip


class Entry(Protocol):
    """What an entry has, besides what its room needs of it.

    An entry may also have `form`, how a value that chooses it is written where that is more than its name: "hf:FOLDER"
    (an argument after the colon), "bundled[:FOLDER]" (it may be left out).
    """

    @property
    def name(self) -> str:
        """As in the config field."""

    @property
    def description(self) -> str:
        """One line, for help, errors and docs."""


E = TypeVar("E", bound=Entry)


@dataclasses.dataclass(frozen=True)
class Option:
    """An entry that is a word and nothing else: code elsewhere tells its few words apart."""

    name: str
    description: str


class Registry(Mapping[str, E]):
    """The entries of one kind by name, in the order they were added.

    Args:
      kind: a name of `KINDS`; or a `Kind` of one's own, for what is not loaded by this module.

    Attributes:
      sources: the files that added entries from outside the package, by entry.
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
          ConfigError: there is one of that name.
        """
        if entry.name in self._entries:
            raise ConfigError(f"{self.kind.name} {entry.name!r} is registered already: choose another name")
        self._entries[entry.name] = entry
        by = sys._getframe(1).f_globals
        if not by["__name__"].startswith(f"{__package__}."):
            self.sources[entry.name] = by.get("__file__", "")
        return entry

    def digest(self, value: str) -> str:
        """sha256 of the file that added the entry which `value` chooses; "" for an entry of the package."""
        source = self.sources.get(self.named(value).name)
        return _sha256(source) if source else ""

    def named(self, value: str, field: str = "") -> E:
        """The entry that a value of the field chooses: its name, with an argument after a colon where its form has one.

        Args:
          field: named in the error; "" = the first of the kind.

        Raises:
          ConfigError: none; says which there are, and the nearest.
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
        """`table` for docs/."""
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
        self._filled = True  # Before the imports, which may read what there is so far.
        try:
            _import_room(self.kind.room)
            _import_installed()
        except BaseException:
            self._filled = False
            raise


_made: dict[str, Registry[Any]] = {}  # By field.
_OPTIONS = "lacy_jax.default_config"
"""Where the registries of plain words are."""


def registry_of(field: str) -> Registry[Any]:
    """The registry of the entries that a config field, or an option of the command, chooses among."""
    if field not in _made:
        importlib.import_module(next((k.room for k in KINDS.values() if field in k.fields), _OPTIONS))
    return _made[field]


def choice_fields() -> list[str]:
    """The fields, and options of the command, that name an entry of a registry; imports no room."""
    importlib.import_module(_OPTIONS)
    return list(dict.fromkeys([*_made, *(field for kind in KINDS.values() for field in kind.fields)]))


def all_registries() -> list[Registry[Any]]:
    """Every registry there is; imports every room that has one."""
    for room in (_OPTIONS, *(kind.room for kind in KINDS.values())):
        importlib.import_module(room)
    return list({registry.kind.name: registry for registry in _made.values()}.values())


def choices_text(groups: Iterable[str]) -> Iterator[str]:
    """The choices of the config fields in these groups ("objective"), and of options ("--suite"), as `--help` shows them.

    One text per field: the room that knows the choices may take a second or two to import.
    """
    wanted = tuple(groups)
    for field in choice_fields():
        if field.partition(".")[0] in wanted:
            rows = registry_of(field).table()
            width = min(max(len(form) for form, _ in rows), 28)
            title = field if field.startswith("--") else f"--config.{field}="
            yield f"\n{title}\n" + "".join(f"  {form:{width}}  {about}\n" for form, about in rows)


def form_of(entry: Entry) -> str:
    """How a value that chooses the entry is written; see `Entry`."""
    return str(getattr(entry, "form", entry.name))


def _import_room(room: str) -> None:
    module = importlib.import_module(room)
    for part in pkgutil.iter_modules(getattr(module, "__path__", ())):
        importlib.import_module(f"{room}.{part.name}")


# -- plugins ---------------------------------------------------------------------------------------------------


def plugins_in_use() -> dict[str, str]:
    """sha256 of each file from outside the package that added an entry to a registry of this process, by its path."""
    files = [file for registry in _made.values() for file in registry.sources.values()]
    return {file: _sha256(file) for file in sorted(set(files))}


def plugin_path(plugin: str) -> str:
    """How a run records a plugin: a file by its full path, as the next command may be given elsewhere."""
    return os.path.abspath(plugin) if _is_file(plugin) else plugin


def load_plugins(plugins: Iterable[str]) -> None:
    """Import plugins: names of modules, or files that end in ".py". One that is imported already is left alone.

    Raises:
      ConfigError: it is not there, or its import fails; names the line.
    """
    for plugin in plugins:
        if not _is_file(plugin):
            _import_module(plugin, plugin)
            continue
        path = pathlib.Path(plugin_path(plugin))
        if not path.is_file():
            raise ConfigError(f"config.plugins: no file {plugin}; restore it, or say where it is now")
        # The name depends on the path alone, so that worker processes find classes of the plugin under it.
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
    """One line about an error that a user's file raised: file and line, class, message."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    where = f"{path}:{lines[-1]}" if lines else path
    return f"{where}: {type(error).__name__}: {' '.join(str(error).split())}"


def _is_file(plugin: str) -> bool:
    return plugin.endswith(".py")


def _sha256(path: str) -> str:
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


def _import_module(name: str, shown: str) -> None:
    try:
        importlib.import_module(name)
    except Exception as error:  # A plugin is user input: whatever it raises is one line.
        raise ConfigError(
            f"config.plugins: {shown}: {type(error).__name__}: {' '.join(str(error).split())}"
        ) from error


def _import_installed() -> None:
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        _import_module(point.module, f"{point.value} (entry point {point.name!r} of an installed package)")
