"""The file formats of the original FActScore tool.

Input is JSONL with `topic`, `output` (the text), and optionally `input`, `cat`, `annotations`: for each sentence its
`text`, `is-relevant`, `model-atomic-facts` ([{`text`}]) and `human-atomic-facts` ([{`text`, `label`}], label S, NS or
IR); `annotations` is null if the system abstained. Output is a JSON file beside it, NAME_factscore_output.json, with
`score`, `init_score`, `respond_ratio`, `num_facts_per_response` and `decisions`, per text null or
[{`atom`, `is_supported`}].
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from lacy_jax import files
from lacy_jax.errors import DataError
from lacy_jax.json_lines import parse_object, read_objects, split_lines

LABELS = ("S", "NS", "IR")
OUTPUT_SUFFIX = "_factscore_output.json"


@dataclasses.dataclass(frozen=True, slots=True)
class AtomicFact:
    """A statement and a person's label: S (supported), NS (not supported), IR (irrelevant), or "" for none."""

    text: str
    label: str = ""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One text about a topic.

    Attributes:
      topic: the entity, written like the title of its article.
      output: the text.
      input: the prompt.
      cat: the original's categories of the entity.
      sentences: (text, model's atomic facts, people's atomic facts) per sentence; None without annotations.
    """

    topic: str
    output: str
    input: str = ""
    cat: tuple[str, ...] = ()
    sentences: tuple[tuple[str, tuple[AtomicFact, ...], tuple[AtomicFact, ...]], ...] | None = None

    @property
    def model_facts(self) -> list[AtomicFact]:
        """Facts as a splitter wrote them."""
        return [fact for _, model, _ in self.sentences or () for fact in model]

    @property
    def human_facts(self) -> list[AtomicFact]:
        """Facts as people wrote and labelled them."""
        return [fact for _, _, human in self.sentences or () for fact in human]

    def to_json(self) -> dict[str, Any]:
        """The entry as an object in the original format."""
        annotations = None
        if self.sentences is not None:
            annotations = [
                {
                    "text": text,
                    "is-relevant": bool(model or human),
                    "model-atomic-facts": [{"text": fact.text} for fact in model],
                    "human-atomic-facts": [{"text": fact.text, "label": fact.label} for fact in human]
                    or None,
                }
                for text, model, human in self.sentences
            ]
        return {
            "input": self.input,
            "output": self.output,
            "topic": self.topic,
            "cat": list(self.cat),
            "annotations": annotations,
        }


def read_entries(path: epath.PathLike) -> list[Entry]:
    """Texts from JSONL in the original format.

    Raises:
      DataError: the file is missing or empty, or a line (which is named) has no `topic` or `output`, or an unknown label.
    """
    entries = []
    for where, record in read_objects(path, "FActScore texts"):
        topic, output = record.get("topic"), record.get("output")
        if not isinstance(topic, str) or not isinstance(output, str) or not topic.strip():
            raise DataError(f"{where}: expected an object with strings `topic` and `output`")
        try:
            sentences = _sentences(record.get("annotations"))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise DataError(f"{where}: annotations are not in the format of FActScore ({error})") from None
        cat = record.get("cat") or ()
        entries.append(Entry(topic, output, str(record.get("input", "")), tuple(map(str, cat)), sentences))
    if not entries:
        raise DataError(f"{path}: it contains no texts")
    return entries


def write_entries(path: epath.PathLike, entries: Iterable[Entry]) -> None:
    """Inverse of `read_entries`, atomically."""
    files.write_text(path, "".join(json.dumps(e.to_json(), ensure_ascii=False) + "\n" for e in entries))


def read_entities(path: epath.PathLike) -> list[str]:
    """Entities, one per line as in the original's prompt_entities.txt, or JSONL with `topic`, `entity` or `title`.

    Raises:
      DataError: the file is missing or empty, or an object names no entity.
    """
    path = epath.Path(path)
    try:
        lines = split_lines(path.read_bytes().decode("utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"entities {path}: {getattr(error, 'strerror', None) or error}") from None
    found = []
    for number, line in enumerate(lines, start=1):
        name: Any = line.strip()
        if name.startswith("{"):
            try:
                record = parse_object(name)
            except ValueError as error:
                raise DataError(f"{path.name}:{number}: {error}") from None
            name = next((record[key] for key in ("topic", "entity", "title") if record.get(key)), None)
            if not isinstance(name, str):
                raise DataError(f"{path.name}:{number}: no entity; give it as `topic`, `entity` or `title`")
        if name:
            found.append(name)
    if not found:
        raise DataError(f"{path}: it contains no entities")
    return list(dict.fromkeys(found))


def read_demonstrations(path: epath.PathLike) -> dict[str, list[str]]:
    """Published demonstrations of splitting: {sentence: facts}, in order.

    Raises:
      DataError: the file is missing or has another form.
    """
    value = files.read_json(path, "demonstrations")
    good = isinstance(value, dict) and all(isinstance(facts, list) and facts for facts in value.values())
    if not good or not value:
        raise DataError(f"demonstrations {path}: expected an object of sentences with their lists of facts")
    return {str(sentence): [str(fact) for fact in facts] for sentence, facts in value.items()}


def output_path(path: epath.PathLike) -> epath.Path:
    """The file in which the original tool stores the scores of the texts in `path`."""
    path = epath.Path(path)
    return path.parent / (path.name.removesuffix(".jsonl") + OUTPUT_SUFFIX)


def write_output(path: epath.PathLike, figures: Mapping[str, Any], decisions: Sequence[Any]) -> None:
    """Write scores in the original's format, with further keys (judge, splitter, intervals) beside its own.

    Args:
      figures: from `scoring.factscore_figures`.
      decisions: None or [{"atom", "is_supported"}] for each text.
    """
    own = {
        "score": figures["score"],
        "init_score": figures["init_score"],
        "respond_ratio": figures["respond_ratio"],
        "num_facts_per_response": figures["facts_per_text"],
        "decisions": list(decisions),
    }
    files.write_json(path, {**own, **{key: value for key, value in figures.items() if key not in own}})


def _sentences(annotations: Any) -> Any:
    if annotations is None:
        return None
    return tuple(
        (
            str(sentence["text"]),
            tuple(AtomicFact(str(fact["text"])) for fact in sentence.get("model-atomic-facts") or ()),
            tuple(_labelled(fact) for fact in sentence.get("human-atomic-facts") or ()),
        )
        for sentence in annotations
    )


def _labelled(fact: Mapping[str, Any]) -> AtomicFact:
    if fact["label"] not in LABELS:
        raise ValueError(f"label {fact['label']!r}: expected one of {', '.join(LABELS)}")
    return AtomicFact(str(fact["text"]), fact["label"])
