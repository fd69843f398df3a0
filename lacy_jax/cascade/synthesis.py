"""New contexts for known facts, written by a teacher: what a query head, or a small model, learns to ask by.

A corpus words each fact once or twice; a model that should ask for it in any wording needs more. A teacher, a larger
model behind a server or the synthetic world itself, is told the fact and writes a question, a paraphrase or a few
sentences that state it. No text is taken on trust: it must name the entity and then state the value (`Said`), a model's
may have no name or number that it was not told, and no text is kept twice. Each text carries where it comes from, and the place of its value in the form of LMLM
(arXiv:2505.15962), so that it is a corpus with labels (`corpus.kind = "lmlm"`, `labels.labeller = "lookups"`) as it stands, and
`cascade.linking` finds the fact that it was written about.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

from lacy_jax.cascade.fact_database import Row, name_cue, normal_name
from lacy_jax.cascade.stated import Said, folded
from lacy_jax.clients import ChatClient, NoAnswer, Question, Tally
from lacy_jax.corpus import World
from lacy_jax.corpus.biography import Writer, template_groups
from lacy_jax.corpus.lmlm import ANNOTATED, Lookup, with_lookup
from lacy_jax.corpus.people import Draw
from lacy_jax.errors import ConfigError
from lacy_jax.registry import Registry

STYLES = (
    "an encyclopedia", "a newspaper", "a letter to a friend", "a school book", "a museum guide", "a radio talk",
    "an obituary", "a quiz book",
)  # fmt: skip
"""The n-th text about a fact is asked for in the n-th style: without sampling, a model repeats itself."""
MOST_WORDS = 150
"""A longer text is not about one fact."""
_PROMPT = """Fact: the {attribute} of {entity} is {value}.

{task} Write as in {style}. Use the name {entity} in full before you state {value}, and write {value} exactly so. Add no other
fact that could be checked. Answer with the text alone."""


@dataclasses.dataclass(frozen=True)
class ContextKind:
    """A kind of text about a fact: its name, a line for help texts, and the task that a model is given."""

    name: str
    description: str
    task: str = dataclasses.field(repr=False)


CONTEXT_KINDS: Registry[ContextKind] = Registry("context kind", (
    ContextKind("question", "a question that asks for the fact, and its answer",
                "Write one question that asks for this fact, and then its answer as a sentence."),
    ContextKind("paraphrase", "one sentence that states it", "State this fact in one sentence, in words of your own."),
    ContextKind("sentences", "three to five sentences, of which one states it",
                "Write three to five sentences about {entity}, of which one states this fact."),
))  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Task:
    """One text to be written: about which fact, of which kind, in which style (a number)."""

    fact: Row
    kind: ContextKind
    style: int

    @property
    def prompt(self) -> str:
        """What a chat model is asked."""
        entity, attribute, value = self.fact
        words = {"entity": entity, "attribute": name_cue(attribute), "value": value}
        task = self.kind.task.format(**words)
        return _PROMPT.format(**words, task=task, style=STYLES[self.style % len(STYLES)])


def tasks_of(facts: Iterable[Row], kinds: Sequence[str], per_fact: int) -> Iterator[Task]:
    """The texts to be written: `per_fact` of each kind for each fact.

    Raises:
      ConfigError: an unknown kind.
    """
    chosen = [CONTEXT_KINDS.named(kind, "--kinds") for kind in kinds]
    return (Task(fact, kind, style) for fact in facts for kind in chosen for style in range(per_fact))


class Teacher(Protocol):
    """Who writes the texts."""

    name: str
    invents: bool
    """Whether names and numbers that it was not told are its inventions."""

    def write(self, tasks: Iterable[Task]) -> Iterator[str | NoAnswer]:
        """The texts, in the order of the tasks."""


class ServedTeacher:
    """A chat model behind an OpenAI-compatible server; its answers are cached, so a killed job goes on where it stopped."""

    invents = True

    def __init__(self, client: ChatClient):
        self.name = f"{client.model} at {client.url}"
        self._client = client

    def write(self, tasks: Iterable[Task]) -> Iterator[str | NoAnswer]:
        """See `Teacher.write`."""
        return self._client.ask(Question(task.prompt, str) for task in tasks)


class WorldTeacher:
    """The generator of the synthetic world, which is always right about its people and knows nobody else."""

    invents = False

    def __init__(self, world: World):
        self.name = f"world of {world.size} people, seed {world.seed}"
        self._world = world

    def write(self, tasks: Iterable[Task]) -> Iterator[str | NoAnswer]:
        """See `Teacher.write`."""
        return map(self._write, tasks)

    def _write(self, task: Task) -> str | NoAnswer:
        name, attribute, value = task.fact
        person = self._world.lookup(name)
        if person is None or person.attributes.get(attribute) != value:
            return NoAnswer("not a fact of this world")
        writer = Writer(
            person, Draw("teacher", self._world.seed, person.index, attribute, task.kind.name, task.style)
        )
        leads, with_facts, fillers = template_groups()

        def add(templates: Sequence[Any]) -> None:
            writer.add(templates[writer.draw.below(len(templates))])

        if task.kind.name == "sentences":
            add([lead for lead in leads if attribute not in lead.slots])
            add(fillers)
        add([template for template in with_facts if template.slots == (attribute,)])
        if task.kind.name == "sentences":
            return writer.text
        asked = (
            f"What do we know about the {name_cue(attribute)} of {name}? "
            if task.kind.name == "question"
            else f"{name}: "
        )
        return asked + writer.text


def accepted(task: Task, text: str) -> int:
    """Where a text states its task's value, after it has named the entity.

    Raises:
      ValueError: it does not, or says something else than what was asked for; one line.
    """
    entity, _, value = task.fact
    if len(text.split()) > MOST_WORDS:
        raise ValueError(f"more than {MOST_WORDS} words")
    if folded(task.prompt[:40]) in folded(text):
        raise ValueError("the prompt's own words")
    said = Said(text)
    named = said.places(normal_name(entity))
    if not named:
        raise ValueError("the entity is not named")
    begin = named[0][1]
    if task.kind.name == "question":
        begin = max(begin, text.find("?") + 1)
        if "?" not in text:
            raise ValueError("no question")
    places = [start for start, _ in said.places(value) if start >= begin]
    if not places:
        raise ValueError("the value is not stated after the entity")
    return places[0]


def to_ask(tasks: Iterable[Task], client: ChatClient) -> Iterator[tuple[str, str, bool]]:
    """For the estimate: (prompt, longest answer, whether the answer is cached) of each task."""
    for task in tasks:
        yield task.prompt, "word " * MOST_WORDS, client.is_cached(Question(task.prompt, str))


_WORD = re.compile(r"\w[\w’'.,-]*\w|\w")
_SENTENCE_STARTS = re.compile(r"(?:^|[.!?:;]|[\"“‘'(])\s*$")


def invented(task: Task, text: str) -> list[str]:
    """Names and numbers of a text that the teacher was not told: words with a digit, or with a capital inside a sentence."""
    told = set(re.findall(r"\w+", folded(" ".join(task.fact))))
    found = []
    for word in _WORD.finditer(text):
        inside = word[0][0].isupper() and word[0] != "I" and not _SENTENCE_STARTS.search(text[: word.start()])
        if (inside or any(c.isdigit() for c in word[0])) and set(
            re.findall(r"\w+", folded(re.sub(r"['’]s$", "", word[0])))
        ) - told:
            found.append(word[0])
    return found


def synthesise(tasks: Sequence[Task], teacher: Teacher, counts: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The texts that were accepted, each with its origin.

    Args:
      counts: is filled: "asked", "kept", "refused" (by reason), "no_answer" (by reason).

    Yields:
      Rows with `id`, `title` (the entity), `text`, `annotated_text` (LMLM's form), `teacher`, `kind`, `attribute`, `value`.

    Raises:
      LacyError: the server fails. PartnerError: most answers are missing.
    """
    tally, refused = Tally(f"teacher {teacher.name}"), collections.Counter[str]()
    counts.update(asked=0, kept=0, refused=refused, no_answer=tally.reasons)
    seen: set[bytes] = set()
    for task, answer in zip(tasks, teacher.write(tasks), strict=True):
        counts["asked"] += 1
        answer = tally.add(answer)
        if isinstance(answer, NoAnswer):
            continue
        text = " ".join(answer.split())
        digest = hashlib.sha256(" ".join(re.findall(r"\w+", folded(text))).encode()).digest()
        try:
            place = accepted(task, text)
            if teacher.invents and invented(task, text):
                raise ValueError("names or numbers that were not told")
            if digest in seen:
                raise ValueError("written before")
        except ValueError as error:
            refused[str(error)] += 1
            continue
        seen.add(digest)
        counts["kept"] += 1
        entity, attribute, value = task.fact
        lookup = Lookup(entity, name_cue(attribute), value, place)
        yield {
            "id": f"{task.kind.name}-{hashlib.sha256('|'.join(task.fact).encode()).hexdigest()[:12]}-{task.style}",
            "title": entity, "text": text, ANNOTATED: with_lookup(text, lookup),
            "teacher": teacher.name, "kind": task.kind.name, "attribute": attribute, "value": value,
        }  # fmt: skip
    tally.settle()


def open_teacher(spec: str, client: Callable[[], ChatClient]) -> Teacher:
    """The teacher that a spec names: `world:PEOPLE[,SEED]`, or the chat model of `client`, which is then opened.

    Raises:
      ConfigError: another spec, or one that `client` refuses.
    """
    if not spec.startswith("world:"):
        return ServedTeacher(client())
    people, _, seed = spec.removeprefix("world:").partition(",")
    if not people.isdecimal() or not (seed or "0").isdecimal():
        raise ConfigError(f"--teacher={spec}: expected world:PEOPLE or world:PEOPLE,SEED")
    return WorldTeacher(World(int(people), int(seed or 0)))
