"""Right answers per call, by partner, in the synthetic world, where the right answer to every call is known.

There are these kinds of calls: those that a model makes itself while it writes, where a fact is asked for ("own") and where none is
("idle": right is who says nothing), and every fact of given texts: of biographies ("every"), or in other forms (`REWORDED`). All
partners get the same calls.
"""

from __future__ import annotations

import collections
import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from etils import epath

from lacy_jax import files
from lacy_jax.cascade import FactTablePartner, IndexPartner, Partner, generate
from lacy_jax.cascade.dense_index import SEARCHES
from lacy_jax.cascade.encoders import Encoder
from lacy_jax.cascade.entries import context_of
from lacy_jax.cascade.fact_database import name_cue
from lacy_jax.cascade.synthesis import CONTEXT_KINDS, Task, WorldTeacher, accepted
from lacy_jax.corpus import Document, Fact, World
from lacy_jax.evaluation.detectors import bootstrap_seeds_and_units
from lacy_jax.evaluation.run_texts import gate_calibration
from lacy_jax.training.run import Run

REWORDED = ("paraphrase", "question", "card")
"""Forms of texts that state one fact: two of `lacy synthesise`, and one that it does not know."""
KINDS = ("own", "idle", "every", *REWORDED)
_ABOUT = ("kind", "unseen", "person", "attribute", "value")
_NEAREST = "nearest: "


@dataclasses.dataclass(frozen=True)
class Call:
    """One call.

    Attributes:
      kind: one of `KINDS`.
      unseen: whether no training text is about the person. text: so far. query: of the query head.
      attribute, value: of the right answer; "" where there is none.
    """

    kind: str
    unseen: bool
    person: str
    attribute: str
    text: str
    query: np.ndarray
    value: str


class Remembering(Encoder):
    """An encoder that several partners ask about the same texts."""

    def __init__(self, encoder: Encoder):
        self.name, self.dim, self._encoder = encoder.name, encoder.dim, encoder
        self._known: dict[str, np.ndarray] = {}

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """See `Encoder.encode`."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        self._known |= zip(new, self._encoder.encode(new), strict=True)
        return np.array([self._known[text] for text in texts], np.float32).reshape(-1, self.dim)


class Listener(FactTablePartner):
    """The world's table; keeps what it is asked."""

    by_query = True

    def __init__(self, world: World):
        super().__init__(world)
        self.heard: list[tuple[str, np.ndarray]] = []

    def complete_by_query(self, texts: Sequence[str], queries: np.ndarray) -> list[str]:
        """Answers as the table does."""
        self.heard += zip(texts, queries, strict=True)
        return self.complete(texts)


def own_calls(
    run: Run, config: ml_collections.ConfigDict, world: World, people: Sequence[int], seen: int
) -> list[Call]:
    """The calls that the model makes while it writes about people, with the world's table as partner.

    Args:
      run: a trained run with a query head.
      config: `generate.*` and `seed` are read, and the dataset's path for the calibration of the gate.
      people: numbers of people of the world; training texts are about those below `seen`.
    """
    listener = Listener(world)
    generate(
        run.model, run.tokenizer, [world.prompt(at, 2) for at in people], listener, gate="call_margin",
        budget=config.generate.budget, max_new_tokens=config.generate.max_new_tokens,
        temperature=config.generate.temperature, batch_size=config.generate.batch_size, seed=config.seed,
        calibration_scores=gate_calibration(run, config, "call_margin"), progress=False,
    )  # fmt: skip
    found = []
    for text, query in listener.heard:
        person, rest = world.subject(text), (world.complete(text) or "").strip()
        if person is None:  # An untrained model may write on in the name.
            continue
        # What is left of a value that the model has begun is an answer, too.
        about = [name for name, value in person.attributes.items() if rest and value.endswith(rest)]
        kind, attribute = ("own", about[0]) if about else ("idle", "")
        found.append(Call(kind, person.index >= seen, person.name, attribute, text, query, rest))
    return found


def reworded(world: World, people: Sequence[int], form: str) -> Iterator[Document]:
    """One text of the form (one of `REWORDED`) about each fact of people: the world's generator as a teacher in another style than
    its first, or "Ada Eve Bell. Birth date: 7 May 1956."
    """
    teacher = WorldTeacher(world)
    for person in (world.people[at] for at in people):
        for attribute, value in person.attributes.items():
            text = f"{person.name}. {name_cue(attribute).capitalize()}: {value}."
            start = len(text) - len(value) - 1
            if form in CONTEXT_KINDS:
                task = Task((person.name, attribute, value), CONTEXT_KINDS[form], style=1)
                (answer,) = teacher.write([task])
                text = str(answer)
                start = accepted(task, text)
            fact = Fact(start, start + len(value), person.name, attribute, value)
            yield Document(f"{form}-{person.index}-{attribute}", text, person.name, (fact,))


def every_fact(
    run: Run, documents: Iterable[Document], world: World, seen: int, kind: str = "every"
) -> list[Call]:
    """Every fact of texts about people of the world; see `own_calls`."""
    ask = jax.jit(
        lambda model, tokens: model.queries(
            model(tokens, jnp.arange(tokens.shape[1])[None], (tokens >= 0).astype(jnp.int32))
        )
    )
    found = []
    for text in documents:
        person = world.lookup(text.title)
        assert person is not None
        ids, _, ends = run.tokenizer.encode_with_offsets(text.text)
        width = min(-(-(len(ids) + 1) // 128) * 128, run.model_config.max_seq_len)  # Few widths to compile.
        tokens = np.full((1, width), run.tokenizer.pad_id, np.int32)
        tokens[0, : len(ids) + 1] = [run.tokenizer.bos_id, *ids]
        queries = np.asarray(ask(run.model, tokens))[0]
        for fact in text.facts:
            first = int(np.searchsorted(ends, fact.start, side="right"))  # Its own place has <s> before it.
            before = text.text[: fact.start].rstrip()
            found.append(
                Call(
                    kind,
                    person.index >= seen,
                    fact.subject,
                    fact.attribute,
                    before,
                    queries[first],
                    fact.value,
                )
            )
    return found


def ask_all(
    calls: Sequence[Call], partners: Iterable[tuple[str, Callable[[], Partner]]], path: epath.PathLike
) -> list[dict[str, Any]]:
    """Every call, JSON-safe, with what each partner says to it under its name.

    Args:
      calls: what is asked.
      partners: names, and what opens them; they are closed.
      path: where answers are kept, so that a call that was stopped goes on.

    Of an index that is searched by vectors alone also whether its best entry, whoever it is about, has the right person, and the right
    attribute (the right value, if it has no attribute).
    """
    asked = [{name: getattr(call, name) for name in _ABOUT} for call in calls]
    known = files.read_json(path, "answers") if files.exists(path) else []
    if asked == [{name: record[name] for name in _ABOUT} for record in known]:
        asked = known
    texts, queries = [call.text for call in calls], np.stack([call.query for call in calls])
    for name, open_partner in partners:
        if name in asked[0]:
            continue
        print(f"ask {name}", file=sys.stderr, flush=True)
        partner = open_partner()
        for record, answer in zip(asked, partner.complete_by_query(texts, queries), strict=True):
            record[name] = (answer or "").strip()
        if isinstance(partner, IndexPartner) and not SEARCHES[partner.by].words:
            vectors = queries if partner.by_query else None
            found = partner.index.search([context_of(text) for text in texts], 1, partner.by, vectors)
            for record, near in zip(asked, found, strict=True):
                best = near[0].entry
                same = (
                    best.attribute == record["attribute"] if best.attribute else best.value == record["value"]
                )
                record[_NEAREST + name] = [best.title == record["person"], same]
        partner.close()
        files.write_json(path, asked)
    return asked


def figures(
    seeds: Sequence[Sequence[dict[str, Any]]], world: World, baseline: str
) -> dict[str, dict[str, Any]]:
    """Right answers per call by kind, people and partner, with 95 % intervals over seeds and people, and by attribute.

    Args:
      seeds: `ask_all` of each seed's model.
      baseline: the partner that the others are compared with, at the same calls.

    Returns:
      JSON-safe: {"KIND, seen" or "KIND, unseen": {"calls", "people", "partners": {partner: {"right", "right_ci", "by_seed",
      "silent", "another_fact_of_the_person", "more", "more_ci" (than the baseline), "by_attribute", "nearest"}}}}.
    """
    partners = [name for name in seeds[0][0] if name not in _ABOUT and not name.startswith(_NEAREST)]
    found = {}
    for kind in KINDS:
        for unseen in (False, True):
            chosen = [[c for c in calls if c["kind"] == kind and c["unseen"] == unseen] for calls in seeds]
            people = sorted({c["person"] for calls in chosen for c in calls})
            if not people:
                continue
            count = _by_person(chosen, people, None)
            of_baseline = _by_person(chosen, people, baseline)
            rows = {}
            for name in partners:
                own = _by_person(chosen, people, name)
                share = bootstrap_seeds_and_units(own, count)
                more = bootstrap_seeds_and_units(
                    own - of_baseline, count
                )  # The same calls: paired in seeds, too.
                silent = sum(not c[name] for calls in chosen for c in calls)
                other = sum(_another_fact(c, name, world) for calls in chosen for c in calls)
                rows[name] = {
                    "right": share.estimate, "right_ci": share.ends,
                    "by_seed": (own.sum(1) / np.maximum(count.sum(1), 1)).tolist(),
                    "silent": silent / count.sum(), "another_fact_of_the_person": other / count.sum(),
                    "more": more.estimate, "more_ci": more.ends,
                    "by_attribute": _by_attribute(chosen, name), "nearest": _nearest(chosen, name),
                }  # fmt: skip
            found[f"{kind}, {'unseen' if unseen else 'seen'}"] = {
                "calls": int(count.sum()),
                "people": len(people),
                "partners": rows,
            }
    return found


def figures_table(found: dict[str, dict[str, Any]], baseline: str) -> str:
    """The figures as text."""

    def share(value: float, ends: Sequence[float] | None, form: str) -> str:
        low, high = ends or (float("nan"),) * 2
        return f"{value:{form}} ({low:{form}} to {high:{form}})"

    lines = []
    width = max(len(partner) for group in found.values() for partner in group["partners"])
    for name, group in found.items():
        lines.append(f"{name} people: {group['calls']} calls about {group['people']} people")
        for partner, row in group["partners"].items():
            seeds = " ".join(f"{value:.1%}" for value in row["by_seed"])
            lines.append(
                f"  {partner:{width}} right {share(row['right'], row['right_ci'], '.1%'):26} seeds {seeds:20}  silent {row['silent']:6.1%}"
                f"  other fact {row['another_fact_of_the_person']:6.1%}  minus {baseline} {share(row['more'], row['more_ci'], '+.1%')}"
            )
        for partner, row in group["partners"].items():
            if row["nearest"]:
                shares = ", ".join(f"{what} {value:.1%}" for what, value in row["nearest"].items())
                lines.append(f"    nearest entry of {partner}: right {shares}")
        for attribute in sorted({a for row in group["partners"].values() for a in row["by_attribute"] if a}):
            shares = "  ".join(f"{row['by_attribute'][attribute]:6.1%}" for row in group["partners"].values())
            lines.append(f"    {attribute:18} {shares}")
    return "\n".join(lines)


def _by_person(
    chosen: Sequence[Sequence[dict[str, Any]]], people: Sequence[str], partner: str | None
) -> np.ndarray:
    """float64 [seeds, people]: right answers of a partner; None = calls."""
    place = {person: at for at, person in enumerate(people)}
    table = np.zeros((len(chosen), len(people)))
    for row, calls in zip(table, chosen, strict=True):
        for c in calls:
            row[place[c["person"]]] += partner is None or c[partner] == c["value"]
    return table


def _nearest(chosen: Sequence[Sequence[dict[str, Any]]], name: str) -> dict[str, float] | None:
    """How often the best entry is about the person, and how often it is of the attribute (of the value, if it has none).

    None for other partners.
    """
    found = [c[_NEAREST + name] for calls in chosen for c in calls if _NEAREST + name in c]
    if not found:
        return None
    return dict(zip(("person", "attribute or value"), np.mean(found, axis=0).tolist(), strict=True))


def _another_fact(call: dict[str, Any], name: str, world: World) -> bool:
    """Whether an answer is wrong and yet a fact of the person."""
    person = world.lookup(call["person"])
    return person is not None and call[name] != call["value"] and call[name] in person.attributes.values()


def _by_attribute(chosen: Sequence[Sequence[dict[str, Any]]], name: str) -> dict[str, float]:
    tally: dict[str, list[bool]] = collections.defaultdict(list)
    for calls in chosen:
        for c in calls:
            tally[c["attribute"]].append(c[name] == c["value"])
    return {attribute: float(np.mean(right)) for attribute, right in sorted(tally.items())}
