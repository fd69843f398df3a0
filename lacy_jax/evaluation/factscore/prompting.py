"""Splitter and judge that are language models behind a completions server, with the published prompts.

Splitting: seven fixed demonstrations and the nearest other one by BM25, then the sentence (arXiv:2305.14251,
appendix A; the original's `atomic_facts.py`). Judging: the retrieved passages, then "FACT True or False?".
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence

import bm25s

from lacy_jax.cascade import CompletionsClient
from lacy_jax.cascade.passages import Passage
from lacy_jax.errors import DataError, PartnerError
from lacy_jax.evaluation.factscore.formats import AtomicFact
from lacy_jax.evaluation.factscore.splitting import split_sentences

FIXED_DEMONSTRATIONS = 7
SPLIT_TOKENS, JUDGE_TOKENS = 512, 16
_ASK = "Please breakdown the following sentence into independent facts: "  # The wording of the original.
_NO_FACTS = ("Sure", "Please", "Here are", "This sentence does not contain any facts")
_DENIALS = frozenset(["not", "cannot", "unknown", "information"])


class PromptedSplitter:
    """Splits by a language model.

    Args:
      client: of the server.
      demonstrations: {sentence: facts}, as published (`formats.read_demonstrations`), at least 8.

    Raises:
      DataError: too few demonstrations.
    """

    def __init__(self, client: CompletionsClient, demonstrations: Mapping[str, Sequence[str]]):
        if len(demonstrations) <= FIXED_DEMONSTRATIONS:
            raise DataError(
                f"{len(demonstrations)} demonstrations: the splitter needs {FIXED_DEMONSTRATIONS} and one to choose"
            )
        self.client = client
        self._demonstrations = {sentence: list(facts) for sentence, facts in demonstrations.items()}
        self._sentences = list(demonstrations)
        self._index = bm25s.BM25()
        self._index.index([sentence.split(" ") for sentence in self._sentences], show_progress=False)

    @property
    def name(self) -> str:
        """The model's name, and that it was prompted."""
        return f"{self.client.model or self.client.url}, prompted"

    def split(self, topic: str, text: str) -> list[tuple[str, list[AtomicFact]]]:
        """See `Splitter.split`.

        Raises:
          PartnerError: the server failed.
        """
        sentences = split_sentences(text)
        asked = [sentence for sentence in sentences if not sentence.startswith(_NO_FACTS)]
        answers = _answers(self.client, [self.prompt(sentence) for sentence in asked], SPLIT_TOKENS)
        facts = dict(zip(asked, map(read_facts, answers), strict=True))
        return [(sentence, [AtomicFact(fact) for fact in facts.get(sentence, ())]) for sentence in sentences]

    def prompt(self, sentence: str) -> str:
        """Demonstrations, the nearest last, and the sentence."""
        shown = [*self._sentences[:FIXED_DEMONSTRATIONS], self._nearest(sentence)]
        parts = [
            _ASK + shown_sentence + "\n" + _listed(self._demonstrations[shown_sentence])
            for shown_sentence in shown
        ]
        return "\n".join([*parts, f"{_ASK}{sentence}\n"])

    def _nearest(self, sentence: str) -> str:
        known = [word for word in sentence.split(" ") if word in self._index.vocab_dict]
        if not known:
            return self._sentences[0]
        return self._sentences[int(self._index.retrieve([known], k=1, show_progress=False)[0][0][0])]


class PromptedJudge:
    """Judges by a language model that is shown the passages."""

    def __init__(self, client: CompletionsClient):
        self.client = client

    @property
    def name(self) -> str:
        """The model's name, and that it was prompted."""
        return f"{self.client.model or self.client.url}, prompted"

    def supported(
        self, topic: str, facts: Sequence[str], passages: Sequence[Sequence[Passage]]
    ) -> list[bool]:
        """See `Judge.supported`."""
        prompts = [judge_prompt(topic, fact, found) for fact, found in zip(facts, passages, strict=True)]
        return [read_verdict(answer) for answer in _answers(self.client, prompts, JUDGE_TOKENS)]


def judge_prompt(topic: str, fact: str, passages: Sequence[Passage]) -> str:
    """The original's prompt: the passages, the best last, and the question."""
    context = "".join(f"Title: {passage.title}\nText: {passage.text}\n\n" for passage in reversed(passages))
    told = f"Answer the question about {topic} based on the given context.\n\n{context.strip()}".strip()
    if told[-1] not in string.punctuation:
        told += "."
    return f"{told}\n\nInput: {fact.strip()} True or False?\nOutput:"


def read_verdict(answer: str) -> bool:
    """Whether an answer says "true", by the original's rules; of both words the later one counts."""
    answer = answer.lower()
    true, false = answer.find("true"), answer.find("false")
    if true >= 0 or false >= 0:
        return true >= 0 if false < 0 else true > false
    spoken = answer.translate(str.maketrans("", "", string.punctuation)).split()
    return not _DENIALS & set(spoken)


def read_facts(answer: str) -> list[str]:
    """The facts listed in an answer, one after each "- "; what a model writes after a blank line is not its answer."""
    listed = answer.strip().split("\n\n")[0].split("- ")[1:]
    facts = [" ".join(fact.split()) for fact in listed]
    return [fact if fact.endswith(".") else f"{fact}." for fact in facts if fact]


def _listed(facts: Sequence[str]) -> str:
    return "".join(f"- {fact}\n" for fact in facts)


def _answers(client: CompletionsClient, prompts: Sequence[str], max_tokens: int) -> list[str]:
    """All answers, or the first error."""
    found: list[str] = []
    for answer in client.complete(prompts, max_tokens=max_tokens):
        if isinstance(answer, PartnerError):
            raise answer
        found.append(answer)
    return found
