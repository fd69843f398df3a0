"""The texts of a report: the setting that wrote them, who wrote what, what is true, and the values to filter by."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lacy_jax import config as config_lib
from lacy_jax.corpus import World, world_of
from lacy_jax.errors import DataError, LacyError
from lacy_jax.evaluation.cost import PARTNER_ALONE
from lacy_jax.evaluation.world_facts import JudgedText, as_record, judge_text
from lacy_jax.formatting import short_percent
from lacy_jax.report.fact_marks import mark_text
from lacy_jax.report.markup import describe, render_text
from lacy_jax.report.run_record import RunRecord, SampleFile, Study

MOST_TEXTS = 600
"""Texts on a page, which take about 2 MB."""
MOST_SETS = 64
FACETS = ("method", "gate", "partner", "budget", "people")
"""The properties to filter texts by, in the order of the form; one with a single value is not offered."""
_TABLE = "the world's table"


@dataclasses.dataclass(frozen=True)
class TextSet:
    """Texts of one setting.

    Attributes:
      facets: a value for each of `FACETS`, "" if it does not apply.
      texts: the texts with their judged facts.
      judge: the judge of the facts, or "".
    """

    facets: dict[str, str]
    texts: tuple[JudgedText, ...]
    judge: str

    @property
    def label(self) -> str:
        """The heading of a card."""
        facets = self.facets
        # The method's name may include the gate ("ntp+entropy"); a model alone has none.
        named = facets["gate"] in ("", "alone") or facets["gate"] in facets["method"]
        parts = [facets["method"], "" if named else facets["gate"], facets["partner"], facets["budget"]]
        return " · ".join(part for part in parts if part and part != "alone")


def collect_texts(
    records: Sequence[RunRecord],
    results: Mapping[str, Any] | None = None,
    samples: Mapping[str, Sequence[Any]] | None = None,
    study: Study | None = None,
) -> tuple[list[TextSet], list[str]]:
    """All sets of texts, and notes on what could not be shown.

    Args:
      results: results of the quickstart, whose methods name the texts of their runs.
      samples: {method: generations} to use instead of the runs' texts.
      study: a gate study with its texts.
    """
    notes: list[str] = []
    sets: list[TextSet] = []
    if samples is not None:
        world = next((found for record in records if (found := _world(record)) is not None), None)
        for label, texts in samples.items():
            sets.append(_judged({"method": label}, SampleFile(texts), world, notes))
    else:
        for record in records:
            world = _world(record)
            for stem, file in record.samples.items():
                facets = _facets(record.name, stem, file, results, len(record.samples))
                sets.append(_judged(facets, file, world, notes))
    for (group, setting), file in (study.texts if study else {}).items():
        facets = {"method": setting.model, "gate": setting.gate, "partner": setting.partner, "people": group}
        sets.append(_judged(facets, file, None, notes))
    sets = [one for one in sets if one.texts]
    methods = list(results["runs"]) if results else list(dict.fromkeys(one.facets["method"] for one in sets))
    place = {name: number for number, name in enumerate(methods)}
    sets.sort(
        key=lambda one: (place.get(one.facets["method"], len(methods)), _as_number(one.facets["budget"]))
    )
    if len(sets) > MOST_SETS:
        left_out = ", ".join(one.label for one in sets[MOST_SETS:])
        notes.append(f"texts not shown, to keep the page small: {left_out}")
    return sets[:MOST_SETS], notes


def text_section(
    sets: Sequence[TextSet], styles: Mapping[str, int], budget: float | None = None
) -> dict[str, Any] | None:
    """What the template shows of the texts; None without texts.

    Args:
      budget: the call budget that is selected at first; None = all.

    Returns:
      "facets": [{"name", "values": [{"value", "checked"}]}]; "groups": [{"prompt", "cards"}], first the prompts that
      most sets have, taking turns between groups of people; "total": texts; "left_out": texts that are not on the page.
    """
    if not sets:
        return None
    by_prompt: dict[str, list[dict[str, Any]]] = {}
    turn: dict[str, tuple[int, int]] = {}  # Prompt -> its number in its group of people, and overall.
    kinds: dict[str, int] = {}
    for one in sets:
        seen = set()
        for text in one.texts:
            prompt = text.text[: text.prompt_length]
            if prompt in seen:  # One text per setting and prompt.
                continue
            seen.add(prompt)
            people = one.facets["people"]
            if prompt not in turn:
                turn[prompt] = (kinds.get(people, 0), len(turn))
                kinds[people] = kinds.get(people, 0) + 1
            by_prompt.setdefault(prompt, []).append(_card(one, text, styles))
    order = sorted(by_prompt, key=lambda prompt: (-len(by_prompt[prompt]), turn[prompt]))
    groups: list[dict[str, Any]] = []
    shown = 0
    for prompt in order:
        if not groups or shown + len(by_prompt[prompt]) <= MOST_TEXTS:
            groups.append({"prompt": prompt, "cards": by_prompt[prompt]})
            shown += len(by_prompt[prompt])
    main = {"", "alone", *([] if budget is None else [short_percent(budget)])}
    facets = []
    for name in FACETS:
        values = list(dict.fromkeys(one.facets[name] for one in sets))
        if name == "budget":
            values.sort(key=_as_number)
        if len(values) > 1:
            chosen = [name != "budget" or budget is None or value in main for value in values]
            if not any(chosen):
                chosen = [True] * len(values)
            facets.append(
                {
                    "name": name,
                    "values": [
                        {"value": value, "checked": checked}
                        for value, checked in zip(values, chosen, strict=True)
                    ],
                }
            )
    total = sum(map(len, by_prompt.values()))
    return {"facets": facets, "groups": groups, "left_out": total - shown, "total": total}


def _card(one: TextSet, text: JudgedText, styles: Mapping[str, int]) -> dict[str, Any]:
    kinds = {
        f"{'true' if fact.true else 'false'}-{who}"
        for fact in text.counted
        for who in (("own", "partner") if fact.origin == "mixed" else (_OWN.get(fact.origin, fact.origin),))
    }
    if not kinds:
        writers = {_OWN.get(who, who) for _, _, who in text.spans} or {"own"}
        kinds = {f"unverified-{who}" for who in writers}
    return {
        "label": one.label,
        "style": styles.get(one.facets["method"], 0),
        "facets": one.facets,
        "facts": " ".join(sorted(kinds)),
        "html": render_text(text),
        "summary": describe(text, one.judge),
    }


_OWN = {"model": "own"}


def _judged(facets: dict[str, str], file: SampleFile, world: World | None, notes: list[str]) -> TextSet:
    """Texts judged by the synthetic world that they are about, else by FActScore verdicts if there are any."""
    judge: Callable[[Any], JudgedText]
    if world is not None:
        name, judge = _TABLE, lambda line: judge_text(as_record(line), world)
    else:
        name, judge = file.judge, lambda line: mark_text(line, file.verdicts)
    judged, bad = [], 0
    for line in file.lines:
        try:
            judged.append(judge(line))
        except (DataError, TypeError, ValueError, AttributeError):
            bad += 1
    whole = {facet: facets.get(facet, "") for facet in FACETS}
    found = TextSet(whole, tuple(judged), name)
    if bad:
        notes.append(f"samples {found.label}: {bad} of {len(file.lines)} lines are not generations; left out")
    return found


def _facets(
    run: str, stem: str, file: SampleFile, results: Mapping[str, Any] | None, files: int
) -> dict[str, str]:
    """The facets of a samples file, from its texts, or else from its name (GATE-BUDGET)."""
    first = next((line for line in file.lines if isinstance(line, Mapping)), {})
    gate, budget = first.get("gate"), first.get("budget")
    if not isinstance(gate, str) or not isinstance(budget, int | float):
        return {"method": run, "gate": stem if files > 1 else ""}
    if stem == PARTNER_ALONE:
        return {"method": f"{run}'s partner", "gate": "alone", "budget": "alone"}
    gate = gate if budget else "alone"
    rows = (results or {}).get("runs") or {}
    method = next(
        (m for m, row in rows.items() if m.split("+")[0] == run and (row.get("gate") or "alone") == gate), run
    )
    return {"method": method, "gate": gate, "budget": short_percent(budget) if budget else "alone"}


def _as_number(budget: str) -> float:
    """Inverse of `short_percent`; 0 for "" and "alone"."""
    return float(budget.rstrip("%\N{NO-BREAK SPACE}")) if budget[:1].isdigit() else 0.0


def _world(record: RunRecord) -> World | None:
    """The synthetic world of a run; None for other text, or if the config can no longer be read."""
    try:
        return world_of(config_lib.from_json(json.dumps(record.config)).corpus)
    except (LacyError, TypeError, ValueError, AttributeError):
        return None
