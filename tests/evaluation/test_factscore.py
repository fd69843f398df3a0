"""FActScore: formats of texts, scores, and the pipeline."""

from __future__ import annotations

import json
import math

import pytest
from judged_people import ADA, BEA, TEXT, knowledge_of_people

from lacy_jax.corpus import Document
from lacy_jax.errors import DataError, PartnerError
from lacy_jax.evaluation import factscore
from lacy_jax.evaluation.factscore import (
    Entry,
    Judge,
    JudgedTopic,
    KnowledgeSource,
    formats,
    pipeline,
    scoring,
)
from lacy_jax.evaluation.suites import factscore as factscore_suite


@pytest.fixture(scope="module")
def knowledge(tmp_path_factory):
    return knowledge_of_people(tmp_path_factory.mktemp("knowledge"))


# -- formats -----------------------------------------------------------------------------------------------------


def test_texts_survive_writing_and_reading(tmp_path):
    facts = (formats.AtomicFact("She was born."), formats.AtomicFact("She won.", "NS"))
    entries = [
        Entry("Ada Bell", TEXT, "Ada Bell", ("rare",), ((TEXT, facts[:1], facts[1:]),)),
        Entry("Bea", "I'm sorry"),
    ]
    formats.write_entries(tmp_path / "texts.jsonl", entries)
    assert formats.read_entries(tmp_path / "texts.jsonl") == entries
    first = json.loads((tmp_path / "texts.jsonl").read_text().splitlines()[0])
    assert first["annotations"][0]["model-atomic-facts"] == [{"text": "She was born."}]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"topic": "A"}', "strings `topic` and `output`"),
        ("[1]", "expected a JSON object"),
        ("{", "not JSON"),
        ('{"topic": "A", "output": "b", "annotations": [{"no": 1}]}', "not in the format"),
        (
            '{"topic": "A", "output": "b", "annotations": [{"text": "t", "human-atomic-facts": [{"text": "x", "label": "Q"}]}]}',
            "label 'Q'",
        ),
        ("", "it contains no texts"),
    ],
)
def test_bad_texts_are_named(tmp_path, line, message):
    (tmp_path / "texts.jsonl").write_text(line + "\n")
    with pytest.raises(DataError, match=message):
        formats.read_entries(tmp_path / "texts.jsonl")


def test_entities_as_lines_or_objects(tmp_path):
    (tmp_path / "entities.txt").write_text('Ada Bell\n\n{"topic": "Bea Crane"}\n{"title": "Cy"}\nAda Bell\n')
    assert formats.read_entities(tmp_path / "entities.txt") == ["Ada Bell", "Bea Crane", "Cy"]
    (tmp_path / "entities.txt").write_text('{"name": "Ada"}\n')
    with pytest.raises(DataError, match=r"entities\.txt:1: no entity"):
        formats.read_entities(tmp_path / "entities.txt")
    with pytest.raises(DataError, match="entities"):
        formats.read_entities(tmp_path / "none.txt")


# -- scores ------------------------------------------------------------------------------------------------------


def _topic(name, verdicts, title="t"):
    return JudgedTopic(name, title, tuple(f"f{i}" for i in range(len(verdicts))), tuple(verdicts))


def test_score_is_that_of_the_paper():
    topics = [
        _topic("a", [True] * 3 + [False]),
        _topic("b", [True] * 6 + [False] * 6),
        _topic("abstained", []),
        _topic("not covered", [True], title=""),
    ]
    figures = factscore.factscore_figures(topics, judge="j", splitter="s", knowledge="k")
    assert figures["init_score"] == pytest.approx((0.75 + 0.5) / 2)
    assert figures["score"] == pytest.approx((0.75 * math.exp(1 - 10 / 4) + 0.5) / 2)
    assert figures["respond_ratio"] == pytest.approx(2 / 3)
    assert figures["facts_per_text"] == 8.0
    assert (figures["texts"], figures["covered"], figures["answered"]) == (4, 3, 2)
    low, high = figures["init_score_ci"]
    assert 0.5 <= low < high <= 0.75
    unpenalised = factscore.factscore_figures(topics, judge="j", splitter="s", knowledge="k", gamma=0)
    assert unpenalised["score"] == unpenalised["init_score"]
    line = factscore.score_line(figures)
    assert "judge: j; splitter: s; knowledge: k" in line
    assert "3 of 4 topics covered" in line


def test_nothing_answered_has_no_score_but_names_its_judge():
    figures = factscore.factscore_figures([_topic("a", [])], judge="j", splitter="s", knowledge="k")
    assert figures["score"] is None
    assert figures["abstention_rate"] == 1.0
    assert "judge: j" in factscore.score_line(figures)
    with pytest.raises(DataError, match="no texts to score"):
        factscore.factscore_figures([], judge="j", splitter="s", knowledge="k")


@pytest.mark.parametrize(
    ("text", "says_nothing"),
    [
        ("I’m sorry, but I know nothing.", True), (" ", True), ("Ada Bell apologized.", False),
        ("I don't have any information about Ada Bell.", True), ("I have no information on her.", True),
        ("There is no information about Ada Bell.", True), ("No information is available on Ada Bell.", True),
        ("Unfortunately, I could not verify who she is.", True), ("I'm not familiar with Ada Bell.", True),
        ("As an AI language model, I only know", True), ("The search results do not mention Ada Bell.", True),
        ('She sang "I Don\'t Know" and "I Can\'t Find Love".', False), ("Information theory was her field, not art.", False),
        ("No one knew her. Information was scarce.", False),
    ],
)  # fmt: skip
def test_apologies_are_abstentions(text, says_nothing):
    assert scoring.abstains(text) == says_nothing


def test_abstentions_are_those_that_people_saw(shared_data):
    """Of 366 annotated texts 27 have no annotations; no sentence that states an annotated fact says nothing."""
    for system in ("ChatGPT", "InstructGPT"):
        for entry in formats.read_entries(shared_data / "factual" / "factscore_labeled" / f"{system}.jsonl"):
            assert scoring.abstains(entry.output) == (entry.sentences is None), entry.output
            assert not any(human and scoring.abstains(text) for text, _, human in entry.sentences or ())


def test_facts_without_a_verdict_are_in_no_figure():
    topics = [_topic("a", [True, None, False]), _topic("b", [None]), JudgedTopic("c", "t", (), (), unsplit=2)]
    figures = factscore.factscore_figures(topics, judge="j", splitter="s", knowledge="k", gamma=0)
    assert figures["score"] == 0.5
    assert (figures["respond_ratio"], figures["abstention_rate"]) == (1.0, 0.0)
    assert [figures[name] for name in ("covered", "answered", "undecided", "facts", "no_verdict", "unsplit")] == [
        3, 1, 2, 2, 2, 2,
    ]  # fmt: skip


# -- the pipeline ------------------------------------------------------------------------------------------------

ENTRIES = [
    Entry("Ada Bell", TEXT),
    Entry("Bea Crane", "I'm sorry, I don't know."),
    Entry("Cy Dent", "Cy Dent is tall."),
]


def test_pipeline_writes_what_the_original_reads(knowledge, tmp_path):
    figures = factscore.run_factscore(ENTRIES, knowledge, out=tmp_path / "texts.jsonl")
    assert figures["judge"] == "embedded value matching, 3rd edition"
    output = json.loads((tmp_path / "texts_factscore_output.json").read_text())
    decisions = output["decisions"]
    assert decisions[1:] == [None, None]
    assert {d["atom"]: d["is_supported"] for d in decisions[0]} == {
        "Ada Bell was a Norwegian.": True,
        "Ada Bell was a chemist.": True,
        "Ada Bell was born on 7 May 1956.": True,
        "Ada Bell won the Nobel Prize.": False,
        "Ada Bell won in 1999.": False,
    }
    # The original's own arithmetic on what we wrote gives our score.
    shares = [sum(d["is_supported"] for d in row) / len(row) for row in decisions if row is not None]
    assert output["init_score"] == pytest.approx(sum(shares) / len(shares)) == pytest.approx(0.6)
    assert output["score"] == pytest.approx(0.6 * math.exp(1 - 10 / 5))
    assert output["num_facts_per_response"] == 5
    lines = [json.loads(line) for line in (tmp_path / "texts.jsonl").read_text().splitlines()]
    assert lines[1]["annotations"] is None
    atoms = [atom["text"] for sentence in lines[0]["annotations"] for atom in sentence["model-atomic-facts"]]
    assert atoms == [d["atom"] for d in decisions[0]]
    again = formats.read_entries(tmp_path / "texts.jsonl")
    given = factscore.run_factscore(again, knowledge, out=tmp_path / "again.jsonl", given_facts=True)
    assert given["score"] == figures["score"]


def test_a_sentence_that_says_nothing_is_no_false_fact(knowledge, tmp_path):
    texts = [
        Entry("Ada Bell", f"{TEXT} I don't have any more information about her."),
        Entry("Ada Bell", TEXT),
    ]
    factscore.run_factscore(texts, knowledge, out=tmp_path / "texts.jsonl")
    one, other = json.loads((tmp_path / "texts_factscore_output.json").read_text())["decisions"]
    assert one == other


def test_entries_of_one_text_with_other_facts_are_judged_apart(knowledge, tmp_path):
    def entry(fact):
        return Entry("Ada Bell", TEXT, sentences=((TEXT, (formats.AtomicFact(fact),), ()),))

    facts = ["Ada Bell was a chemist.", "Ada Bell was a plumber."]
    figures = factscore.run_factscore(
        [entry(fact) for fact in facts], knowledge, out=tmp_path / "texts.jsonl", given_facts=True
    )
    assert (figures["supported"], figures["facts"]) == (1, 2)
    assert factscore_suite._by_topic(tmp_path / "texts.jsonl") == {
        "Ada Bell": [1, 2]
    }  # Both texts of the topic.


def test_a_stopped_run_goes_on_without_judging_twice(knowledge, tmp_path):
    class Failing(Judge):
        name = "failing"

        def __init__(self, after):
            self.after, self.judged = after, []

        def supported(self, topic, facts, passages):
            if len(self.judged) >= self.after:
                raise PartnerError("server gone")
            self.judged.append(topic)
            return [True] * len(facts)

    entries = [Entry("Ada Bell", TEXT), Entry("Bea Crane", "Bea Crane is a painter from Hull.")]
    out = tmp_path / "texts.jsonl"
    with pytest.raises(PartnerError, match="server gone; 1 of 2 texts are judged and kept: run again"):
        factscore.run_factscore(entries, knowledge, out=out, judge=Failing(1))
    assert not out.exists()
    partial = tmp_path / "texts.jsonl.partial.jsonl"
    partial.write_text(partial.read_text() + '\n{"key": "cut o')  # Killed while writing a line.
    second = Failing(9)
    assert factscore.run_factscore(entries, knowledge, out=out, judge=second)["init_score"] == 1.0
    assert second.judged == ["Bea Crane"]
    assert not partial.exists()


def test_a_stopped_run_is_gone_on_with_by_the_same_judge_and_knowledge_alone(tmp_path):
    """A key holds all that decides a verdict: also which articles there are, and how the model was asked."""
    path = tmp_path / "k.db"
    KnowledgeSource.build(path, [Document("1", ADA, "Ada Bell")]).close()
    keys = {KnowledgeSource(path).identity}
    path.unlink()
    KnowledgeSource.build(path, [Document("1", BEA, "Ada Bell")]).close()
    keys.add(KnowledgeSource(path).identity)
    for spec, tokens in (("http://h/v1#m", 0), ("chat+http://h/v1#m", 0), ("chat+http://h/v1#m", 99)):
        keys.add(pipeline.get_judge(spec, max_tokens=tokens).identity)
    demonstrations = {f"Sentence {n}.": [f"Fact {n}."] for n in range(8)}
    for n in (8, 9):
        demonstrations[f"Sentence {n}."] = [f"Fact {n}."]
        (tmp_path / "demos.json").write_text(json.dumps(demonstrations))
        keys.add(pipeline.get_splitter("http://h/v1#m", str(tmp_path / "demos.json")).identity)
    assert len(keys) == 7


def test_a_knowledge_database_is_made_anew_where_its_files_have_changed(tmp_path):
    def names():
        source = pipeline.open_knowledge(f"{tmp_path}/*.jsonl", tmp_path / "made")
        return [source.title(name) for name in ("Ada Bell", "Bea Crane")]

    (tmp_path / "a.jsonl").write_text(json.dumps({"title": "Ada Bell", "text": ADA}) + "\n")
    assert names() == ["Ada Bell", None]
    (tmp_path / "b.jsonl").write_text(json.dumps({"title": "Bea Crane", "text": BEA}) + "\n")
    assert names() == ["Ada Bell", "Bea Crane"]
    with pytest.raises(DataError, match=r"no file matches .*none.* \(--knowledge\)"):
        pipeline.open_knowledge(f"{tmp_path}/none*.jsonl", tmp_path / "made")


def test_generations_become_texts_about_their_subject():
    class Text:
        prompt, text = "Ada Bell was", " a chemist."

    [entry] = pipeline.entries_of_generations([Text()])
    assert (entry.topic, entry.output) == ("Ada Bell", "Ada Bell was a chemist.")


def test_knowledge_from_a_corpus_is_made_once(tmp_path):
    corpus = tmp_path / "people.jsonl"
    corpus.write_text(json.dumps({"title": "Ada Bell", "text": ADA}) + "\n")
    first = pipeline.open_knowledge(str(corpus), tmp_path / "work")
    assert first.title("Ada Bell") == "Ada Bell"
    made = list((tmp_path / "work").iterdir())
    assert pipeline.open_knowledge(str(corpus), tmp_path / "work").name == first.name == made[0].stem
    assert len(made) == 1
