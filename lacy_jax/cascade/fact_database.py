"""A table of (entity, attribute, value) in SQLite, and the cues by which a text asks for an attribute.

Cues are learned when the table is built: where a text about an entity states one of its values, the one to
four words before the value are a cue for the attribute. A cue is kept if a value of that attribute follows it
in a fair share of all its occurrences.
"""

from __future__ import annotations

import contextlib
import functools
import pathlib
import re
import sqlite3
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import cast

import rapidfuzz

from lacy_jax.cascade.stated import Said, folded
from lacy_jax.corpus import Document
from lacy_jax.corpus.compression import find_files, read_items, read_lines
from lacy_jax.errors import DataError, LacyError
from lacy_jax.json_lines import objects
from lacy_jax.sqlite_file import SqliteFile, changing

LONGEST_CUE = 4
"""Words of a cue."""
LEAST_SHARE = 0.3
"""Share of a cue's occurrences that a value of the attribute must follow."""
LEAST_COUNT = 2
NAME_SIMILARITY = 88.0
"""Two names at least this similar (0 to 100, rapidfuzz's `ratio`) count as one entity."""
_TOKEN = re.compile(r"\w+|[^\w\s]")
_SCHEMA = """
CREATE TABLE facts (entity TEXT NOT NULL, attribute TEXT NOT NULL, value TEXT NOT NULL);
CREATE INDEX facts_by_entity ON facts (entity);
CREATE TABLE cues (cue TEXT NOT NULL, attribute TEXT NOT NULL, share REAL NOT NULL);
CREATE INDEX cues_by_cue ON cues (cue);
"""

Row = tuple[str, str, str]
"""(entity, attribute, value)."""


def normal_name(name: str) -> str:
    """A name in the form used for comparing: folded, single spaces between words, no parenthesis at the end."""
    return " ".join(re.findall(r"\w+", folded(re.sub(r"\s*\([^()]*\)\s*$", "", name))))


def read_rows(path: str) -> Iterator[Row]:
    """Facts from JSONL: objects with string `entity`, `attribute`, `value`; or from the database of LMLM
    (arXiv:2505.15962): JSON with `triplets`. Either may be compressed.

    Raises:
      DataError: missing, without facts, or a line or triplet (named) that is not a fact.
    """
    for file in find_files(path, "config.generate.partner"):
        triplets = re.search(r"\.json(?:\.(?:gz|bz2|xz|zst))?$", file)
        row = None
        for row in _read_triplets(file) if triplets else _read_lines(file):
            yield row
        if row is None:
            raise DataError(f"{file}: no facts in it")


def _read_lines(path: str) -> Iterator[Row]:
    for where, fact in objects((line for _, line in read_lines(path)), path):
        row = (fact.get("entity"), fact.get("attribute"), fact.get("value"))
        if not all(isinstance(part, str) and part.strip() for part in row):
            raise DataError(f"{where}: no fact; it needs strings `entity`, `attribute`, `value`")
        yield cast(Row, row)


def _read_triplets(path: str) -> Iterator[Row]:
    """(entity, relation, value) of each triplet of LMLM's JSON; relations as written ("Birth Date")."""
    for number, triplet in enumerate(read_items(path, "triplets")):
        parts = [part for part in triplet if isinstance(part, str)] if isinstance(triplet, list) else []
        if len(parts) != 3 or len(triplet) != 3 or not all(map(str.strip, parts)):
            raise DataError(f"{path}: triplet {number} is no list of entity, relation and value")
        entity, relation, answer = (part.replace("\\'", "'").strip() for part in parts)
        yield entity, relation, answer


class FactDatabase:
    """Facts by entity, entities by fuzzy name, attributes by cue; it follows edits (`edit_facts`) that are made meanwhile.

    Args:
      path: SQLite file made by `build`, opened for reading.

    Raises:
      DataError: missing, not SQLite, without the tables or without facts; when reading later: a damaged file.
    """

    def __init__(self, path: str | pathlib.Path):
        self._file = SqliteFile(path, "fact database", "make it with FactDatabase.build")
        self._by_name: dict[str, str] = {}
        self._version = -1
        self._found = functools.lru_cache(maxsize=4096)(self._find)
        try:
            self._refresh()
            self._file.rows("SELECT cue, attribute, share FROM cues LIMIT 1", of=(str, str, float))
            if not self._by_name:
                raise DataError(f"fact database {path}: no facts in it")
        except DataError:
            self._file.close()
            raise

    @classmethod
    def build(
        cls, path: str | pathlib.Path, rows: Iterable[Row], texts: Iterable[Document] = ()
    ) -> FactDatabase:
        """Write a database, all or nothing, and open it.

        Args:
          rows: facts; an attribute may have several values, the first is stated first.
          texts: documents whose title is an entity, to learn cues from; without them the words of an
            attribute's name are its only cues ("birth_place": "birth place").

        Raises:
          DataError: no fact. LacyError: `path` exists, or cannot be written.
        """
        path = pathlib.Path(path)
        if path.exists():
            raise LacyError(f"cannot write the fact database {path}: it exists")
        temporary = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"
        kept = list(dict.fromkeys(rows))
        if not kept:
            raise DataError("no facts: the table is empty")
        cues = learn_cues(kept, texts)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.closing(sqlite3.connect(temporary)) as db:
                db.executescript(_SCHEMA)
                db.executemany("INSERT INTO facts VALUES (?, ?, ?)", kept)
                db.executemany("INSERT INTO cues VALUES (?, ?, ?)", cues)
                db.commit()
            temporary.rename(path)
        except (OSError, sqlite3.Error) as error:
            temporary.unlink(missing_ok=True)
            raise LacyError(f"cannot write the fact database {path}: {error}") from error
        return cls(path)

    def entity(self, name: str) -> str | None:
        """The entity of that name, or of the most similar name if it is similar enough; else None."""
        self._refresh()
        return self._found(name)

    def _refresh(self) -> None:
        """Read the names again if somebody has edited the file."""
        while (version := self._file.version()) != self._version:
            self._by_name.clear()
            for (entity,) in self._file.rows("SELECT DISTINCT entity FROM facts ORDER BY rowid"):
                self._by_name.setdefault(normal_name(entity), entity)
            self._found.cache_clear()
            self._version = version

    def _find(self, name: str) -> str | None:
        wanted = normal_name(name)
        if not wanted:
            return None
        if wanted in self._by_name:
            return self._by_name[wanted]
        near = rapidfuzz.process.extractOne(
            wanted, self._by_name.keys(), scorer=rapidfuzz.fuzz.ratio, score_cutoff=NAME_SIMILARITY
        )
        return None if near is None else self._by_name[near[0]]

    def values(self, entity: str) -> dict[str, list[str]]:
        """{attribute: values} of an entity, in the order they were given."""
        found: dict[str, list[str]] = {}
        query = "SELECT attribute, value FROM facts WHERE entity = ? ORDER BY rowid"
        rows = self._file.rows(query, (entity,), of=(str, str))
        for attribute, value in rows:
            found.setdefault(attribute, []).append(value)
        return found

    def cue(self, before: Sequence[str]) -> list[tuple[str, float]]:
        """Attributes that the last words of a text ask for, with their share, from the longest known cue.

        Args:
          before: the words (lower case) and marks before the place.
        """
        for size in range(min(LONGEST_CUE, len(before)), 0, -1):
            words = " ".join(before[len(before) - size :])
            query = "SELECT attribute, share FROM cues WHERE cue = ? ORDER BY share DESC"
            if rows := self._file.rows(query, (words,), of=(str, float)):
                return rows
        return []

    def rows(self) -> list[Row]:
        """All facts, in the order they were given."""
        query = "SELECT entity, attribute, value FROM facts ORDER BY rowid"
        return self._file.rows(query, of=(str, str, str))

    def sample_values(self, count: int = 600) -> list[str]:
        """Some values, as examples of what a call returns."""
        return [value for (value,) in self._file.rows("SELECT value FROM facts LIMIT ?", (count,))]

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def edit_facts(
    path: str | pathlib.Path,
    *,
    add: Iterable[Row] = (),
    change: Iterable[Row] = (),
    delete: Iterable[Row] = (),
) -> dict[str, int]:
    """Change a database that others may be reading, all or nothing; first deletions, then changes, then additions.

    Entities are compared by `normal_name`, so every spelling of a name is meant.

    Args:
      add: facts; those that are there already are left as they are. The words of a new attribute's name are its cue.
      change: facts whose values replace all values of the same entity and attribute.
      delete: (entity, attribute, value), where "" stands for any attribute or value.

    Returns:
      How many facts were added, changed (written anew) and deleted.

    Raises:
      DataError: missing or damaged, or a change or deletion of what is not there. LacyError: it cannot be written.
    """
    FactDatabase(path).close()  # Names what is wrong with the file.
    try:
        with changing(path) as db:
            return _edit(db, f"fact database {path}", add, change, delete)
    except (OSError, sqlite3.Error) as error:
        raise LacyError(f"cannot change the fact database {path}: {error}; nothing was changed") from error


def _edit(
    db: sqlite3.Connection, name: str, add: Iterable[Row], change: Iterable[Row], delete: Iterable[Row]
) -> dict[str, int]:
    spellings: dict[str, list[str]] = {}
    for (entity,) in db.execute("SELECT DISTINCT entity FROM facts ORDER BY rowid"):
        spellings.setdefault(normal_name(entity), []).append(entity)

    def remove(entity: str, attribute: str, value: str, what: str) -> int:
        query = (
            "DELETE FROM facts WHERE entity = ?1 AND (?2 = '' OR attribute = ?2) AND (?3 = '' OR value = ?3)"
        )
        known = spellings.get(normal_name(entity), ())
        count = sum(db.execute(query, (spelling, attribute, value)).rowcount for spelling in known)
        if not count:
            named = ", ".join(part for part in (entity, attribute, value) if part)
            raise DataError(f"{name}: nothing to {what}: {named}; nothing was changed")
        return count

    def insert(entity: str, attribute: str, value: str) -> int:
        row = (spellings.get(normal_name(entity), [entity])[0], attribute, value)
        if db.execute("SELECT 1 FROM facts WHERE entity = ? AND attribute = ? AND value = ?", row).fetchone():
            return 0
        if not db.execute("SELECT 1 FROM cues WHERE attribute = ?", (attribute,)).fetchone():
            db.execute("INSERT INTO cues VALUES (?, ?, 1.0)", (name_cue(attribute), attribute))
        return db.execute("INSERT INTO facts VALUES (?, ?, ?)", row).rowcount

    counts = {"deleted": sum(remove(*row, "delete") for row in delete)}
    changes: dict[tuple[str, str], list[str]] = {}
    for entity, attribute, value in change:
        changes.setdefault((entity, attribute), []).append(value)
    for entity, attribute in changes:
        remove(entity, attribute, "", "change")
    counts["changed"] = sum(insert(*which, value) for which, values in changes.items() for value in values)
    counts["added"] = sum(insert(*row) for row in add)
    if not db.execute("SELECT 1 FROM facts LIMIT 1").fetchone():
        raise DataError(f"{name}: no fact would be left; remove the file instead; nothing was changed")
    return counts


def name_cue(attribute: str) -> str:
    """The words of an attribute's name, as a cue."""
    return " ".join(_TOKEN.findall(attribute.lower().replace("_", " ")))


def read_facts(path: str) -> Iterator[Row]:
    """The rows of a fact database, or of a file that `read_rows` reads.

    Raises:
      DataError: missing or damaged.
    """
    file = pathlib.Path(path)
    with contextlib.ExitStack() as opened:
        start = opened.enter_context(file.open("rb")).read(15) if file.is_file() else b""
    if start != b"SQLite format 3":
        yield from read_rows(path)
        return
    database = FactDatabase(file)
    try:
        yield from database.rows()
    finally:
        database.close()


def learn_cues(rows: Sequence[Row], texts: Iterable[Document]) -> list[tuple[str, str, float]]:
    """(cue, attribute, share) of all cues worth keeping; the words of each attribute's name are always among them."""
    by_entity: dict[str, list[tuple[str, str]]] = {}
    for entity, attribute, value in rows:
        by_entity.setdefault(normal_name(entity), []).append((attribute, value))
    seen: Counter[str] = Counter()
    asks: Counter[tuple[str, str]] = Counter()
    for text in texts:
        facts = by_entity.get(normal_name(text.title))
        if facts is None:
            continue
        tokens = list(_TOKEN.finditer(text.text))
        lower = [token[0].lower() for token in tokens]
        starts = _value_starts(Said(text.text), dict.fromkeys(facts))  # Known by other spellings, too.
        for at in range(1, len(tokens)):
            here = starts.get(tokens[at].start(), ())
            for size in range(1, min(LONGEST_CUE, at) + 1):
                cue = " ".join(lower[at - size : at])
                seen[cue] += 1
                for attribute in here:
                    asks[cue, attribute] += 1
    learned = {
        (cue, attribute): count / seen[cue]
        for (cue, attribute), count in asks.items()
        if count >= LEAST_COUNT and count / seen[cue] >= LEAST_SHARE
    }
    for attribute in dict.fromkeys(attribute for _, attribute, _ in rows):
        learned.setdefault((name_cue(attribute), attribute), 1.0)
    return [(cue, attribute, share) for (cue, attribute), share in learned.items()]


def _value_starts(said: Said, facts: Iterable[tuple[str, str]]) -> dict[int, list[str]]:
    """{character position where a value is stated: the attributes it belongs to}."""
    starts: dict[int, list[str]] = {}
    for attribute, value in facts:
        for start, _ in said.places(value):
            starts.setdefault(start, []).append(attribute)
    return starts
