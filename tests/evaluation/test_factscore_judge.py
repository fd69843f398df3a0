"""FActScore's knowledge and embedded judges: articles found, verdicts on facts, agreement with people."""

from __future__ import annotations

import pytest
from judged_people import ADA, knowledge_of_people

from lacy_jax.cascade.passages import read_documents
from lacy_jax.corpus import Document
from lacy_jax.errors import DataError, LacyError
from lacy_jax.evaluation import factscore
from lacy_jax.evaluation.factscore import Entry, KnowledgeSource, formats, pipeline


@pytest.fixture(scope="module")
def knowledge(tmp_path_factory):
    return knowledge_of_people(tmp_path_factory.mktemp("knowledge"))


# -- knowledge ---------------------------------------------------------------------------------------------------


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


# -- verdicts ----------------------------------------------------------------------------------------------------


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
    wanted = {"Anna May Wong", "Gilberto Silva"}
    documents = (d for d in read_documents(str(articles)) if d.title in wanted)
    source = KnowledgeSource.build(tmp_path / "real.db", documents)
    systems = {n: formats.read_entries(labelled / f"{n}.jsonl") for n in ("ChatGPT", "InstructGPT")}
    result = factscore.agreement(systems, factscore.EmbeddedJudge(), source)
    assert result["topics"] == 2
    assert result["facts"] > 100
    assert result["accuracy"] > 0.65
    assert result["systems"]["ChatGPT"]["judge"] > result["systems"]["InstructGPT"]["judge"]
