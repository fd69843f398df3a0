"""FActScore with language models as splitter and judge, behind a real HTTP server on localhost."""

from __future__ import annotations

import json

import pytest
import recorded_answers as recorded
from completions_server import CompletionsServer, InTurn
from hypothesis import given
from hypothesis import strategies as st

from lacy_jax.cascade.passages import Passage
from lacy_jax.clients import Answer, NoAnswer
from lacy_jax.corpus import Document
from lacy_jax.errors import ConfigError, DataError, PartnerError
from lacy_jax.evaluation import factscore
from lacy_jax.evaluation.factscore import prompting
from lacy_jax.report.fact_marks import read_verdicts

ADA = "Ada Bell was a Norwegian chemist. She studied at Heron University."
DEMONSTRATIONS = {
    f"Sentence {word} number {i}.": [f"Fact {i}."] for i, word in enumerate("a b c d e f g h bees".split())
}


def test_prompts_are_the_published_ones(tmp_path):
    (tmp_path / "demos.json").write_text(json.dumps(DEMONSTRATIONS))
    with CompletionsServer(lambda prompt: "- Ada kept bees\n- Ada is tall.\n\nPlease breakdown") as server:
        splitter = factscore.get_splitter(f"{server.url}#m", str(tmp_path / "demos.json"))
        assert splitter.name == "m, prompted"
        split = splitter.split("Ada", "She kept bees today. Sure, more.")
        prompt = server.requests[0]["prompt"]
    assert [[fact.text for fact in facts] for _, facts in split] == [["Ada kept bees.", "Ada is tall."], []]
    blocks = prompt.split("\n\n")
    ask = "Please breakdown the following sentence into independent facts: "
    assert [block.split("\n")[0].removeprefix(ask) for block in blocks] == [
        *list(DEMONSTRATIONS)[:7], "Sentence bees number 8.", "She kept bees today.",
    ]  # fmt: skip
    assert blocks[0].endswith("\n- Fact 0.")
    passages = [Passage("Ada Bell", ADA)]
    assert prompting.judge_prompt("Ada Bell", "Ada kept bees.", passages) == (
        f"Answer the question about Ada Bell based on the given context.\n\nTitle: Ada Bell\nText: {ADA}\n\n"
        "Input: Ada kept bees. True or False?\nOutput:"
    )


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (" True", True),
        ("False.", False),
        ("true, not false", False),
        ("It is not known", False),
        ("Yes", True),
        ("Supported.", True),
        ("No, it is not.", False),
        ("That is untrue.", False),
        ("not true", False),
        ("Ada kept bees. True or False? True", True),
    ],
)
def test_answers_are_read_as_the_original_reads_them(answer, verdict):
    assert prompting.read_verdict(answer) is verdict


@pytest.mark.parametrize(
    "answer",
    [
        "",
        " ",
        "Ada kept bees. True or False?",
        "The passage says that she",
        "I'm sorry, but I cannot say.",
        "Trueness",
        "[3]",
    ],
)
def test_an_answer_without_a_verdict_is_none(answer):
    """The original takes every one of them for true."""
    assert prompting.read_verdict(answer) is None
    assert prompting.read_verdict("It is not stated that she", whole=False) is None


@given(st.text() | st.text("truefalsnoyi ?.\n'"), st.booleans())
def test_any_answer_is_a_verdict_or_none(answer, whole):
    assert prompting.read_verdict(answer, whole=whole) in (True, False, None)
    assert all(fact.strip() for fact in prompting.read_facts(answer))


def test_a_served_judge_and_its_failure():
    with CompletionsServer(InTurn("True", "False")) as server:
        judge = factscore.get_judge(f"chat+{server.url}#m")
        judge.client.concurrency = 1
        assert judge.supported("Ada Bell", ["a.", "b."], [[], []]) == [True, False]
    with CompletionsServer(lambda prompt: (401, {"error": "no key"})) as server:
        judge = factscore.get_judge(f"{server.url}#m")
        with pytest.raises(PartnerError, match="HTTP 401 no key"):
            judge.supported("Ada Bell", ["a."], [[]])


@pytest.mark.parametrize("name", recorded.NO_ANSWERS)
def test_a_judge_that_says_nothing_has_no_verdict(name):
    """Every fact was supported, once: a broken server gave a perfect score."""
    with CompletionsServer(InTurn("True", (200, recorded.NO_ANSWERS[name]))) as server:
        judge = factscore.get_judge(f"chat+{server.url}#m")
        judge.client.concurrency = 1
        known, unknown = judge.supported("Ada Bell", ["a.", "b."], [[], []])
    assert known is True
    assert isinstance(unknown, NoAnswer)


def _splitter(url, tmp_path):
    (tmp_path / "demos.json").write_text(json.dumps(DEMONSTRATIONS))
    return factscore.get_splitter(f"chat+{url}#m", str(tmp_path / "demos.json"))


@pytest.mark.parametrize(
    ("answer", "facts"),
    [
        ("- Ada is tall.", ["Ada is tall."]),
        ("There are no facts in this sentence.", []),
        ("This sentence does not contain any facts.", []),
        ("", "empty (no finish_reason)"),
        ("Here you go", "no list of facts"),
        ("- Fact 3.", "the prompt's own example"),
        ((200, recorded.chat("- Ada is tall.\n- Ada", "length")), "cut (finish_reason 'length')"),
        ((200, recorded.NO_ANSWERS["OpenAI, refusal"]), "a refusal (I'm sorry, I can't assist with that.)"),
    ],
)
def test_a_splitter_that_says_nothing_has_not_split(tmp_path, answer, facts):
    with CompletionsServer(lambda prompt: answer) as server:
        ((_, found),) = _splitter(server.url, tmp_path).split("Ada", "Ada is tall.")
    assert (found.reason if isinstance(found, NoAnswer) else [fact.text for fact in found]) == facts


@pytest.fixture(scope="module")
def splitter(tmp_path_factory):
    return _splitter("http://localhost:9/v1", tmp_path_factory.mktemp("splitter"))


@given(
    st.text()
    | st.lists(st.sampled_from(["- ", "1. ", "Ada", ".", "\n", "no facts", "Fact 3", "<think>", " "])).map(
        "".join
    ),
    st.sampled_from(["", "stop", "length"]),
    st.sampled_from(["", "a refusal (no)"]),
)
def test_any_answer_is_facts_or_none(splitter, text, finish_reason, withheld):
    """No facts only where the answer says that there are none; an empty one, a refusal and what is cut say nothing."""
    found = splitter._facts("Ada is tall.", Answer(text, finish_reason, withheld))
    if isinstance(found, NoAnswer):
        assert found.reason
        assert "\n" not in found.reason
    else:
        assert not withheld
        assert text.strip()
        assert all(fact.text.strip() for fact in found)
        assert found or prompting._NOTHING_IN_IT.search(text)


def test_missing_answers_are_in_no_figure_and_asked_again(tmp_path):
    """One of four facts has no verdict; a sentence that is not split makes no abstention."""
    knowledge = factscore.KnowledgeSource.build(
        tmp_path / "k.db", [Document("1", ADA, name) for name in ("Ada", "Bea", "Eva")]
    )
    entries = [
        factscore.Entry("Ada", "Ada is tall. Ada is old."),
        factscore.Entry("Bea", "Bea is tall. Bea is old."),
        factscore.Entry("Eva", "Eva is odd."),
    ]
    broken = True

    def behaviour(prompt):
        if "breakdown" in prompt:
            sentence = prompt.rsplit(": ", 1)[1].strip()
            return "" if "odd" in sentence and broken else f"- {sentence}"
        return "" if "Bea is old" in prompt and broken else "True" if "tall" in prompt else "False"

    def score(server, out):
        return factscore.run_factscore(
            entries, knowledge, out=tmp_path / out, splitter=_splitter(server.url, tmp_path),
            judge=factscore.get_judge(f"chat+{server.url}#m"), gamma=0,
        )  # fmt: skip

    with CompletionsServer(behaviour) as server:
        figures = score(server, "a.jsonl")
        assert [figures[name] for name in ("covered", "answered", "undecided", "no_verdict", "unsplit")] == [
            3,
            2,
            1,
            1,
            1,
        ]
        assert (figures["facts"], figures["supported"], figures["abstention_rate"]) == (3, 2, 0.0)
        assert figures["score"] == pytest.approx((0.5 + 1.0) / 2)
        assert figures["why_none"] == "1 x empty (no finish_reason); 1 x empty (no finish_reason)"
        assert "no verdict on 1 facts, no facts of 1 sentences (1 x empty" in factscore.score_line(figures)
        output = json.loads((tmp_path / "a_factscore_output.json").read_text())
        assert output["decisions"][1] == [
            {"atom": "Bea is tall.", "is_supported": True}, {"atom": "Bea is old.", "is_supported": None},
        ]  # fmt: skip
        assert output["decisions"][2] is None
        verdicts, _ = read_verdicts(tmp_path / "a.jsonl")
        assert verdicts["Bea is tall. Bea is old."] == [("Bea is tall.", "Bea is tall.", True)]
        broken = False
        assert score(server, "b.jsonl")["no_verdict"] == 0
        broken = True
        with pytest.raises(
            PartnerError, match=r"judge m, prompted in chat: .* answers are unusable: \d+ x empty"
        ):
            factscore.run_factscore(
                [factscore.Entry("Bea", "Bea is old.")], knowledge, out=tmp_path / "c.jsonl",
                splitter=_splitter(server.url, tmp_path), judge=factscore.get_judge(f"chat+{server.url}#m"),
            )  # fmt: skip
    assert not (tmp_path / "c_factscore_output.json").exists()


def test_bad_splitters_and_judges_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="--judge=gpt"):
        factscore.get_judge("gpt")
    with pytest.raises(ConfigError, match="--demonstrations"):
        factscore.get_splitter("http://localhost:1/v1")
    (tmp_path / "demos.json").write_text('{"a": ["b"]}')
    with pytest.raises(DataError, match="1 demonstrations"):
        factscore.get_splitter("http://localhost:1/v1", str(tmp_path / "demos.json"))
    (tmp_path / "demos.json").write_text('{"a": 5}')
    with pytest.raises(DataError, match="expected an object of sentences"):
        factscore.get_splitter("http://localhost:1/v1", str(tmp_path / "demos.json"))
