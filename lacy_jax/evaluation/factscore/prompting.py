"""Splitter and judge by a language model behind a completions server, with the published prompts.

The prompt for splitting has seven fixed demonstrations and the nearest other one by BM25, then the sentence
(arXiv:2305.14251, appendix A; the original's `atomic_facts.py`). The prompt for judging has the retrieved passages, then
"FACT True or False?".
"""

from __future__ import annotations

import hashlib
import json
import re
import string
from collections.abc import Mapping, Sequence

from lacy_jax.cascade.passages import Passage, bm25s_library
from lacy_jax.clients import Answer, CompletionsClient, NoAnswer
from lacy_jax.errors import DataError, PartnerError
from lacy_jax.evaluation.factscore.formats import AtomicFact
from lacy_jax.evaluation.factscore.judging import Judge
from lacy_jax.evaluation.factscore.splitting import Splitter, split_sentences

FIXED_DEMONSTRATIONS = 7
SPLIT_TOKENS, JUDGE_TOKENS = 512, 16
_ASK = "Please breakdown the following sentence into independent facts: "  # The original's wording.
_NO_FACTS = ("Sure", "Please", "Here are", "This sentence does not contain any facts")
_NOTHING_IN_IT = re.compile(
    r"(?:there (?:are|is) )?no\b.{0,40}\bfacts?\b|this sentence (?:does not|doesn't)|n/a\b", re.IGNORECASE
)
_DENIALS = frozenset(["not", "cannot", "unknown", "information"])
_QUESTION = re.compile(r"\btrue or false\b\W*")
_VERDICT = re.compile(r"\b(?:(?P<true>true)|(?P<false>not true|untrue|false))\b")
_WORD_FOR_IT = re.compile(
    r"\W*(?:(?P<true>yes|supported|correct)|(?P<false>no|not supported|unsupported|incorrect))\b"
)
_DECLINES = re.compile(r"\b(?:sorry|apologi[sz]e|unable to|as an ai|i (?:can't|cannot|won't|will not))\b")


class PromptedSplitter(Splitter):
    """Splits by a language model.

    Args:
      client: client of the server.
      demonstrations: {sentence: facts}, as published (`formats.read_demonstrations`), at least 8.
      max_tokens: most tokens of an answer, including the model's reasoning.

    Raises:
      DataError: there are too few demonstrations.
    """

    def __init__(
        self,
        client: CompletionsClient,
        demonstrations: Mapping[str, Sequence[str]],
        max_tokens: int = SPLIT_TOKENS,
    ):
        if len(demonstrations) <= FIXED_DEMONSTRATIONS:
            raise DataError(
                f"{len(demonstrations)} demonstrations: the splitter needs {FIXED_DEMONSTRATIONS} and one to choose"
            )
        self.client, self._max_tokens = client, max_tokens
        self._demonstrations = {sentence: list(facts) for sentence, facts in demonstrations.items()}
        self._sentences = list(demonstrations)
        self._index = bm25s_library().BM25()
        self._index.index([sentence.split(" ") for sentence in self._sentences], show_progress=False)

    @property
    def name(self) -> str:
        """The model's name, and how it was prompted."""
        return _name(self.client)

    @property
    def identity(self) -> str:
        """The name, a hash of the demonstrations, and the longest answer."""
        shown = json.dumps(self._demonstrations, sort_keys=True).encode()
        return f"{self.name}, {hashlib.sha256(shown).hexdigest()[:16]}, {self._max_tokens}"

    def split(self, topic: str, text: str) -> list[tuple[str, list[AtomicFact] | NoAnswer]]:
        """See `Splitter.split`; an answer that neither lists facts nor says that there are none is no answer.

        Raises:
          PartnerError: the server failed.
        """
        sentences = split_sentences(text)
        asked = [sentence for sentence in sentences if not sentence.startswith(_NO_FACTS)]
        answers = _answers(self.client, [self.prompt(sentence) for sentence in asked], self._max_tokens)
        facts = {
            sentence: self._facts(sentence, answer) for sentence, answer in zip(asked, answers, strict=True)
        }
        return [(sentence, facts.get(sentence, [])) for sentence in sentences]

    def _facts(self, sentence: str, answer: Answer) -> list[AtomicFact] | NoAnswer:
        facts = read_facts(answer.text)
        # After its answer, a completion may go on with another question, which may be cut off.
        whole = not answer.is_cut or (not self.client.chat and "\n\n" in answer.text.strip())
        if answer.withheld or not whole or not (facts or _NOTHING_IN_IT.search(answer.text)):
            return NoAnswer(answer.problem or "no list of facts")
        for shown, published in self._demonstrations.items():
            if shown != sentence and facts and facts == read_facts(_listed(published)):
                return NoAnswer("the prompt's own example")
        return [AtomicFact(fact) for fact in facts]

    def prompt(self, sentence: str) -> str:
        """The demonstrations, the nearest one last, and the sentence."""
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


class PromptedJudge(Judge):
    """Judges by a language model that reads the passages; an answer has at most `max_tokens` tokens."""

    def __init__(self, client: CompletionsClient, max_tokens: int = JUDGE_TOKENS):
        self.client, self._max_tokens = client, max_tokens

    @property
    def name(self) -> str:
        """The model's name, and how it was prompted."""
        return _name(self.client)

    @property
    def identity(self) -> str:
        """The name and the longest answer."""
        return f"{self.name}, {self._max_tokens}"

    def supported(
        self, topic: str, facts: Sequence[str], passages: Sequence[Sequence[Passage]]
    ) -> list[bool | NoAnswer]:
        """See `Judge.supported`."""
        prompts = [judge_prompt(topic, fact, found) for fact, found in zip(facts, passages, strict=True)]
        return [_verdict_of(answer) for answer in _answers(self.client, prompts, self._max_tokens)]


def _name(client: CompletionsClient) -> str:
    return f"{client.model or client.url}, prompted{' in chat' if client.chat else ''}"


def judge_prompt(topic: str, fact: str, passages: Sequence[Passage]) -> str:
    """The original's prompt: the passages, the best one last, and the question."""
    context = "".join(f"Title: {passage.title}\nText: {passage.text}\n\n" for passage in reversed(passages))
    told = f"Answer the question about {topic} based on the given context.\n\n{context.strip()}".strip()
    if told[-1] not in string.punctuation:
        told += "."
    return f"{told}\n\nInput: {fact.strip()} True or False?\nOutput:"


def _verdict_of(answer: Answer) -> bool | NoAnswer:
    verdict = None if answer.withheld else read_verdict(answer.text, whole=not answer.is_cut)
    return NoAnswer(answer.problem or "neither true nor false") if verdict is None else verdict


def read_verdict(answer: str, *, whole: bool = True) -> bool | None:
    """Whether an answer says "true", by the original's rules; if it has both words, the later one counts. None = no verdict.

    It differs from the original in three ways: only whole words count, a repeated "True or False?" is not an answer, and
    an answer with neither word is a verdict only if it says yes or no, or denies ("It is not known"). The original takes
    every other answer, even an empty one, for "true".

    Args:
      whole: the answer was not cut off; a cut answer never counts as a denial.
    """
    answer = _QUESTION.sub(" ", answer.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"))
    said = list(_VERDICT.finditer(answer)) or [match for match in [_WORD_FOR_IT.match(answer)] if match]
    if said:
        return said[-1]["true"] is not None
    spoken = answer.translate(str.maketrans("", "", string.punctuation)).split()
    return False if whole and _DENIALS & set(spoken) and not _DECLINES.search(answer) else None


def read_facts(answer: str) -> list[str]:
    """The facts listed in an answer, each after "- "; text after a blank line is not part of the answer."""
    listed = answer.strip().split("\n\n")[0].split("- ")[1:]
    facts = [" ".join(fact.split()) for fact in listed]
    return [fact if fact.endswith(".") else f"{fact}." for fact in facts if fact]


def _listed(facts: Sequence[str]) -> str:
    return "".join(f"- {fact}\n" for fact in facts)


def _answers(client: CompletionsClient, prompts: Sequence[str], max_tokens: int) -> list[Answer]:
    """All answers; raises the first error."""
    found: list[Answer] = []
    for answer in client.complete(prompts, max_tokens=max_tokens):
        if isinstance(answer, PartnerError):
            raise answer
        found.append(answer)
    return found
