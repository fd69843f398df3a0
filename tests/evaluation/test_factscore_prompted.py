"""FActScore with language models as splitter and judge, behind a real HTTP server on localhost."""

from __future__ import annotations

import json

import pytest
from completions_server import CompletionsServer, InTurn

from lacy_jax.cascade.passages import Passage
from lacy_jax.errors import ConfigError, DataError, PartnerError
from lacy_jax.evaluation import factscore
from lacy_jax.evaluation.factscore import prompting

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
    ],
)
def test_answers_are_read_as_the_original_reads_them(answer, verdict):
    assert prompting.read_verdict(answer) == verdict


def test_a_served_judge_and_its_failure():
    with CompletionsServer(InTurn("True", "False")) as server:
        judge = factscore.get_judge(f"chat+{server.url}#m")
        judge.client.concurrency = 1
        assert judge.supported("Ada Bell", ["a.", "b."], [[], []]) == [True, False]
    with CompletionsServer(lambda prompt: (401, {"error": "no key"})) as server:
        judge = factscore.get_judge(f"{server.url}#m")
        with pytest.raises(PartnerError, match="HTTP 401 no key"):
            judge.supported("Ada Bell", ["a."], [[]])


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
