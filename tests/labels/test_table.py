"""The table of rules: its examples hold, the rules fire no other names, and the docs show it."""

from __future__ import annotations

import itertools
import json
import lzma
import pathlib

import pytest

from lacy_jax.corpus.document import Document
from lacy_jax.labels import BundledLabeller, RuleLabeller, label_parse
from lacy_jax.labels.keywords import KEYWORDS
from lacy_jax.labels.parse import parse_of_record
from lacy_jax.labels.table import FACTUAL_ENTITIES, RULES, markdown

DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs" / "labels.md"


@pytest.fixture(scope="module")
def bundled() -> BundledLabeller:
    return BundledLabeller()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_examples(bundled, rule):
    text, factual = rule.marked()
    for labeller in [bundled] * rule.full + [RuleLabeller()] * rule.free:
        labels = labeller.label(Document("", text, rule.title))
        assert labels.factual == factual, labeller.name
        # A keyword that the pipeline takes for an entity is labelled by that: "tenth" by ORDINAL.
        assert (
            rule.kind == "never" or rule.name in map(str.lower, labels.reasons) or rule.name in labels.reasons
        )


def test_every_rule_is_somebodys():
    assert all(rule.full or rule.free for rule in RULES)
    assert len({rule.name for rule in RULES}) == len(RULES)
    assert {rule.name for rule in RULES if rule.kind == "word"} == {
        *KEYWORDS.values(),
        "noun_chunk",
        "definition",
    }
    assert len(FACTUAL_ENTITIES) == 18  # all of OntoNotes


def test_no_rule_outside_of_the_table(shared_data):
    full = {rule.name for rule in RULES if rule.full and rule.kind != "never"}
    free = {rule.name for rule in RULES if rule.free and rule.kind != "never"}
    seen: set[str] = set()
    with lzma.open(shared_data / "labels" / "parsed_valid.jsonl.xz", "rt", encoding="utf-8") as lines:
        for line in itertools.islice(lines, 100):
            record = json.loads(line)
            fired = set(label_parse(parse_of_record(record), record["title"]).reasons)
            assert fired <= full
            assert set(RuleLabeller().label(Document("", record["text"], record["title"])).reasons) <= free
            seen |= fired
    assert len(seen) > 20


def test_docs_show_the_table():
    assert markdown() in DOCS.read_text(encoding="utf-8"), (
        "docs/labels.md: replace the table of rules by the output of `python -m lacy_jax.labels.table`"
    )
