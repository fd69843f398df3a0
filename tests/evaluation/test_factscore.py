"""FActScore: formats, knowledge, splitting, verdicts, scores, the pipeline, and a judged judge."""

from __future__ import annotations

import itertools
import json
import math
import re

import pytest

from lacy_jax.cascade.passages import read_documents
from lacy_jax.corpus import Document
from lacy_jax.errors import DataError, LacyError, PartnerError
from lacy_jax.evaluation import factscore
from lacy_jax.evaluation.factscore import (
    Entry,
    Judge,
    JudgedTopic,
    KnowledgeSource,
    formats,
    pipeline,
    scoring,
    splitting,
)
from lacy_jax.evaluation.factscore.splitting import ClauseSplitter, split_sentences
from lacy_jax.evaluation.suites import factscore as factscore_suite

ADA = (
    "Ada Bell (7 May 1956 – 3 June 2001) was a Norwegian chemist. She studied at Heron University. "
    "Bell joined Orkla Works in 1980, where she led the paint laboratory. She won the Polar Prize in 1990."
)
BEA = "Bea Crane is a British painter from Hull. Her portraits hang in the York Gallery."
TEXT = "Ada Bell was a Norwegian chemist. She was born on 7 May 1956 and won the Nobel Prize in 1999."


@pytest.fixture(scope="module")
def knowledge(tmp_path_factory):
    documents = [Document("1", ADA, "Ada Bell"), Document("2", BEA, "Bea Crane (painter)")]
    return KnowledgeSource.build(tmp_path_factory.mktemp("knowledge") / "facts.db", documents)


# -- formats and knowledge ---------------------------------------------------------------------------------------


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


def test_knowledge_by_title_and_normal_name(knowledge):
    assert knowledge.title("Ada Bell") == "Ada Bell"
    assert knowledge.title("bea  crane") == "Bea Crane (painter)"
    assert knowledge.title("Bea Crane", exact=True) is None
    assert knowledge.title("Cy Dent") is None
    assert " ".join(p.text for p in knowledge.passages("Ada Bell")) == ADA
    assert knowledge.passages("Cy Dent") == []


def test_retrieval_finds_the_passage_of_a_fact(tmp_path):
    filler = "The weather was fine that year and nothing else happened in the town of Hull at all. " * 12
    long = f"{filler}\nShe painted the Blue Door in 1931.\n{filler}"
    source = KnowledgeSource.build(tmp_path / "long.db", [Document("1", long, "Bea")])
    assert len(source.passages("Bea")) >= 2
    assert "Blue Door" in source.retrieve("Bea", "She painted the Blue Door.", 1)[0].text
    assert len(source.retrieve("Bea", "zzz", 2)) == 2  # No known word: the first passages.


def test_bad_knowledge_is_refused(tmp_path):
    with pytest.raises(DataError, match="not found"):
        KnowledgeSource(tmp_path / "none.db")
    (tmp_path / "text.db").write_text("no database " * 100)
    with pytest.raises(DataError, match=r"text\.db"):
        KnowledgeSource(tmp_path / "text.db")
    with pytest.raises(LacyError, match="it exists"):
        KnowledgeSource.build(tmp_path / "text.db", [])
    with pytest.raises(DataError, match="no document has a title"):
        KnowledgeSource.build(tmp_path / "new.db", [Document("1", "text")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.db"]


# -- facts and verdicts ------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("fact", "supported"),
    [
        ("Ada Bell was a Norwegian chemist.", True),
        ("Ada Bell was born on 7 May 1956.", True),
        ("Ada Bell was born on May 7, 1956.", True),
        ("Ada Bell died on 3 June 2001.", True),
        ("Ada Bell was born on 8 May 1956.", False),
        ("Ada Bell joined Orkla Works in 1980.", True),
        ("Ada Bell won the Nobel Prize.", False),
        ("She studied at Heron University.", True),
        ("She kept bees and wrote poems.", False),
        ("Bell led a laboratory.", True),
    ],
)
def test_embedded_verdicts(knowledge, fact, supported):
    judge = factscore.EmbeddedJudge()
    assert judge.supported("Ada Bell", [fact], [knowledge.retrieve("Ada Bell", fact)]) == [supported]


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


# -- judging the judge -------------------------------------------------------------------------------------------


def _annotated(topic, *facts):
    labelled = tuple(formats.AtomicFact(text, label) for text, label in facts)
    return Entry(topic, "text", sentences=(("text", (), labelled),))


def test_agreement_counts_what_people_labelled(knowledge):
    systems = {
        "good": [
            _annotated(
                "Ada Bell",
                ("Ada Bell was a chemist.", "S"),
                ("Ada Bell won the Polar Prize.", "S"),
                ("x", "IR"),
            ),
            _annotated("Cy Dent", ("Cy Dent is tall.", "S")),
        ],
        "bad": [
            _annotated("Ada Bell", ("Ada Bell won the Nobel Prize.", "NS"), ("Ada Bell kept bees.", "S")),
            _annotated(
                "Bea Crane (painter)", ("Bea Crane is from Leeds.", "NS"), ("Bea Crane is a painter.", "NS")
            ),
        ],
    }
    result = factscore.agreement(systems, factscore.EmbeddedJudge(), knowledge)
    assert (result["facts"], result["topics"]) == (6, 2)
    assert result["accuracy"] == pytest.approx(4 / 6)  # Wrong: the bees (no article says so) and the painter.
    assert result["f1_supported"] == pytest.approx(2 * 2 / (3 + 3))
    assert result["f1_not_supported"] == pytest.approx(2 * 2 / (3 + 3))
    assert result["systems"]["good"] == {"texts": 1, "human": 1.0, "judge": 1.0}
    assert result["ranking_correlation"] == pytest.approx(1.0)
    table = factscore.agreement_table(result)
    assert "judge: embedded value matching" in table
    assert result["kinds"]["what the topic is"] == {
        "both": 1,
        "judge_only": 1,
        "people_only": 0,
        "neither": 0,
    }
    assert "what the topic is: 2 facts, agreed on 50 %" in table
    with pytest.raises(DataError, match="has no article on the topic of any labelled fact"):
        factscore.agreement({"x": [_annotated("Cy Dent", ("a", "S"))]}, factscore.EmbeddedJudge(), knowledge)


def test_the_embedded_judge_on_published_labels(shared_data, tmp_path):
    """Two people of the published annotations who are in the real articles: better than chance, and in order."""
    articles = shared_data / "wiki" / "featured_bios.jsonl.xz"
    labelled = shared_data / "factual" / "factscore_labeled"
    if not articles.exists() or not labelled.exists():
        pytest.skip("no FActScore annotations or articles")
    from lacy_jax.cascade.passages import read_documents

    wanted = {"Anna May Wong", "Gilberto Silva"}
    documents = (d for d in read_documents(str(articles)) if d.title in wanted)
    source = KnowledgeSource.build(tmp_path / "real.db", documents)
    systems = {n: formats.read_entries(labelled / f"{n}.jsonl") for n in ("ChatGPT", "InstructGPT")}
    result = factscore.agreement(systems, factscore.EmbeddedJudge(), source)
    assert result["topics"] == 2
    assert result["facts"] > 100
    assert result["accuracy"] > 0.65
    assert result["systems"]["ChatGPT"]["judge"] > result["systems"]["InstructGPT"]["judge"]


@pytest.mark.parametrize(
    ("fact", "verdict"),
    [
        ("Ada Bell was born in 1956.", True),
        ("Ada Bell died in 1956.", False),
        ("Ada Bell died in 2001.", True),
        ("Ada Bell won 5 prizes.", True),
        ("Ada Bell won five prizes.", True),
        ("Ada Bell won six prizes.", False),
        ("Ada Bell lived in Norway.", True),
        ("Ada Bell was a 2nd cousin of Cy Dent.", False),
        ("Ada Bell died at the age of 45.", True),
        ("Ada Bell died at the age of 54.", False),
        ("Ada Bell lived in 1956.", False),
        ("Ada Bell was a lecturer.", False),
        ("Ada Bell was a chemist.", True),
    ],
)
def test_the_embedded_judge_minds_events_and_numbers(tmp_path, fact, verdict):
    text = "Ada Bell (1956 – 2001) was a chemist. She won five prizes. A lecturer from Hull met her. Then she lived in Norway."
    knowledge = KnowledgeSource.build(tmp_path / "k.db", [Document("1", text, "Ada Bell")])
    judge = factscore.EmbeddedJudge()
    assert judge.supported("Ada Bell", [fact], [knowledge.retrieve("Ada Bell", fact)]) == [verdict]


def test_the_lenient_judge_trusts_texts_that_are_mostly_right(knowledge):
    lenient, strict = (pipeline.get_judge(spec) for spec in ("lenient", "embedded"))
    right = ["Ada Bell was a Norwegian.", "Ada Bell joined Orkla Works.", "Ada Bell won the Polar Prize."]
    open_ones = ["Ada Bell won the Nobel Prize.", "She kept bees."]
    wrong = ["Ada Bell was born in 1949.", "Ada Bell was a Dane."]

    def verdicts(judge, facts):
        return judge.supported("Ada Bell", facts, [knowledge.retrieve("Ada Bell", fact) for fact in facts])

    assert verdicts(strict, right + open_ones + wrong) == [True] * 3 + [False] * 4
    assert verdicts(lenient, right + open_ones + wrong) == [True] * 5 + [False] * 2
    assert verdicts(lenient, right[:1] + open_ones + wrong) == [True] + [False] * 4
    assert lenient.name == f"{strict.name}, lenient"


def test_titles_as_they_stand_in_addresses_are_found(tmp_path):
    documents = [
        Document("1", "A mathematician.", "Andr%C3%A9_Weil"),
        Document("2", "Rate.", "100% Pure_Love"),
    ]
    knowledge = KnowledgeSource.build(tmp_path / "k.db", documents)
    assert knowledge.title("André Weil", exact=True) == "André Weil"
    assert knowledge.title("100% Pure_Love", exact=True) == "100% Pure_Love", (
        "a per cent sign alone encodes nothing"
    )
