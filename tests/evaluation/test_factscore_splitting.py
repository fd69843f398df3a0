"""FActScore's embedded splitter: sentences, and one whole fact a value."""

from __future__ import annotations

import itertools
import re

import pytest

from lacy_jax.cascade.passages import read_documents
from lacy_jax.evaluation.factscore import splitting
from lacy_jax.evaluation.factscore.splitting import ClauseSplitter, split_sentences


def test_sentences_end_at_marks_but_not_after_initials():
    assert split_sentences('J. B. One met Dr. Two. He said "Go." Then left!\nEnd') == [
        "J. B. One met Dr. Two.", 'He said "Go."', "Then left!", "End",
    ]  # fmt: skip


def test_runs_of_abbreviations_take_linear_time():
    """They join with the sentence before: 40,000 characters of them took 17 s when each looked at all of it."""
    text = "Mr. Dr. U.S. J. R. St. " * 20_000
    assert split_sentences(f"{text}End. Then.") == [f"{text}End.", "Then."]


@pytest.mark.parametrize(
    ("sentence", "facts"),
    [
        (
            "Ada Bell is an American actor born on December 18, 1949, in Pensacola, Florida.",
            ["Ada Bell is an American.", "Ada Bell is an actor.", "Ada Bell was born on December 18, 1949.",
             "Ada Bell was born in Pensacola, Florida."],
        ),
        ("He moved to the United States in 1929.", ["Ada Bell moved to the United States.", "Ada Bell moved in 1929."]),
        (
            'She appeared in "The Door", "Blue Hour" and "Night".',
            ["Ada Bell appeared in The Door.", "Ada Bell appeared in Blue Hour.", "Ada Bell appeared in Night."],
        ),
        ("In 1990, Bell won the Polar Prize.", ["Ada Bell won the Polar Prize.", "Ada Bell won in 1990."]),
        ("She was well liked and kept bees.", ["Ada Bell was well liked and kept bees."]),
        ("Ada Bell.", []),
    ],
)  # fmt: skip
def test_one_fact_per_value_with_the_topic_as_subject(sentence, facts):
    [(_, found)] = ClauseSplitter().split("Ada Bell", sentence)
    assert [fact.text for fact in found] == facts


@pytest.mark.parametrize(
    ("sentence", "facts"),
    [
        ("Ada Bell (born May 15, 1949) is an American dancer.",
         ["Ada Bell was born on May 15, 1949.", "Ada Bell is an American.", "Ada Bell is a dancer."]),
        ("Ada Mary Bell (; née Crane; c. 1950 – 3 June 2001), also known as \"Dot\", was a film director.",
         ["Ada Bell was née Crane.", "Ada Bell was born in 1950.", "Ada Bell died on 3 June 2001.",
          "Ada Bell was also known as Dot.", "Ada Bell was a film director."]),
        ("Bell made The Door (1990) and married Bo Dent (born 1940; died 1990).",
         ["Ada Bell made The Door (1990).", "Ada Bell married Bo Dent (born 1940; died 1990)."]),
        ("Bell (1856-1901 is a 19th-century painter who lives in Oslo.",
         ["Ada Bell 1856-1901.", "Ada Bell is a 19th-century painter.", "Ada Bell lives in Oslo."]),
        ("She ran at the 1938 British Empire Games.", ["Ada Bell ran at the 1938 British Empire Games."]),
        ("Bell's father, a sailor, was from Bergen.", ["Ada Bell's father, a sailor, was from Bergen."]),
    ],
)  # fmt: skip
def test_parentheses_and_appositions_are_facts_of_their_own(sentence, facts):
    [(_, found)] = ClauseSplitter().split("Ada Bell", sentence)
    assert [fact.text for fact in found] == facts


def test_sentences_do_not_end_inside_parentheses():
    text = "Bell (fl. 1670; var. Belle. 1680) was a pirate. She was born Jan. 26 in Oslo (Norway. Then left."
    assert split_sentences(text) == [
        "Bell (fl. 1670; var. Belle. 1680) was a pirate.", "She was born Jan. 26 in Oslo (Norway.", "Then left.",
    ]  # fmt: skip


def test_real_leads_give_whole_facts(shared_data):
    """Each fact names its subject, closes what it opens, and has one verb. Of these leads 357 had a fault, 150 of them
    half a parenthesis; now four have one."""
    articles = shared_data / "wiki" / "bios_unseen.jsonl.xz"
    documents = list(itertools.islice(read_documents(str(articles)), 0, 1900, 5))
    splitter, faulty = ClauseSplitter(), []
    verbs = re.compile(r"\b(?:born|died) (?:is|was|an?|and)\b|\b(?:is|was) (?:is|was)\b|(?:^|\s)[–-]\s")
    for document in documents:
        _, found = splitter.split(document.title, document.text.split("\n")[0])[0]
        facts, topic = [fact.text for fact in found], splitting.normal_topic(document.title)
        whole = all(fact.startswith(topic) and fact.count("(") == fact.count(")") for fact in facts)
        if not facts or not whole or any(map(verbs.search, facts)):
            faulty.append(facts)
    assert len(documents) == 380
    assert len(faulty) <= 6, faulty
