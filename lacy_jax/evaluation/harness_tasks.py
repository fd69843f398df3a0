"""Local-file variants of the usual language-understanding tasks, in the harness's task format.

`write_tasks` converts the test sets, as they are distributed, to JSONL with one YAML file per task, named lacy_TASK.
Prompts and metrics are those of the harness's own tasks.
"""

from __future__ import annotations

import bz2
import json
import lzma
import os
import re
import tarfile
from collections.abc import Callable, Iterator
from typing import Any

from etils import epath

from lacy_jax import files
from lacy_jax.errors import DataError, one_line
from lacy_jax.json_lines import objects, read_objects, split_lines

_METRICS = {
    "acc": "  - metric: acc\n    aggregation: mean\n    higher_is_better: true\n",
    "acc_norm": "  - metric: acc_norm\n    aggregation: mean\n    higher_is_better: true\n",
    "perplexity": "  - metric: perplexity\n    aggregation: perplexity\n    higher_is_better: false\n",
}
_OPTION = re.compile(r"Answer\d+:\s*")
BLIMP = "blimp"
_SOURCES = {
    "arc_easy": "ARC-Easy_test.json", "hellaswag": "hellaswag_val_full.txt.bz2", "piqa": "piqa_valid.jsonl",
    "social_iqa": "social_i_qa_test.json", "lambada": "lambada_test.jsonl.xz", BLIMP: "blimp.tar.xz",
}  # fmt: skip
TASKS = tuple(_SOURCES)

Item = dict[str, Any]


def write_tasks(data: epath.PathLike, folder: epath.PathLike, tasks: tuple[str, ...] = TASKS) -> list[str]:
    """Write tasks into a folder for the harness's `include_path`; existing tasks are kept.

    Args:
      data: folder with the files of `_SOURCES` (and piqa_valid-labels.lst).
      tasks: names in `TASKS`.

    Returns:
      Names of the tasks; BLiMP becomes one group task, lacy_blimp.

    Raises:
      DataError: a file is missing or has another format.
    """
    data, folder = epath.Path(data), epath.Path(folder)
    names = []
    for task in tasks:
        if task not in TASKS:
            raise DataError(f"task {task!r}: expected one of {', '.join(TASKS)}")
        names.append(f"lacy_{task}")
        if (folder / f"lacy_{task}.yaml").exists():
            continue
        source = data / _SOURCES[task]
        try:
            if task == BLIMP:
                _write_blimp(source, folder)
            else:
                reader, yaml = _SINGLE[task]
                _write_task(folder, task, [_checked(item) for item in reader(source)], yaml)
        except (
            OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError, EOFError,
            tarfile.TarError, lzma.LZMAError,
        ) as error:  # fmt: skip
            reason = getattr(error, "strerror", None) or one_line(error, 200)
            where = getattr(error, "filename", None) or source
            raise DataError(f"task {task}: {where}: {reason}") from None
    return names


def _checked(item: Item) -> Item:
    """The item, if the harness can score it."""
    choices = item.get("choices", ())
    texts = [item["text"]] if "text" in item else [item["query"], *choices]
    if not all(isinstance(text, str) for text in texts) or ("text" in item and not item["text"].strip()):
        raise ValueError("an item whose question or answers are no text")
    if "gold" in item and not 0 <= item["gold"] < len(choices):
        raise ValueError(f"an item with {len(choices)} answers, of which number {item['gold'] + 1} is right")
    return item


def _write_task(folder: epath.Path, task: str, items: list[Item], yaml: str) -> None:
    """Write a task; its data comes first, so that an existing task file always has its data.

    Raises:
      ValueError: there are no items.
    """
    if not items:
        raise ValueError("no items in it")
    path = folder / f"{task}.jsonl"
    files.write_text(path, "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items))
    place = os.path.abspath(path) if files.is_local(path) else str(path)
    head = (
        f"task: lacy_{task}\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {place}\n"
        f"  cache_dir: {place.rpartition('/')[0]}/cache\ntest_split: test\n"
    )
    files.write_text(folder / f"lacy_{task}.yaml", head + yaml + "metadata:\n  version: 1.0\n")


def _write_blimp(source: epath.Path, folder: epath.Path) -> None:
    yaml = _choice("", "acc", text='""')
    names = []
    with tarfile.open(str(source)) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.name.endswith(".jsonl") else None
            if file is None:
                continue
            rows = [row for _, row in objects(split_lines(file.read()), member.name)]
            pairs = [[row["sentence_good"], row["sentence_bad"]] for row in rows]
            items = [_checked({"query": "", "choices": pair, "gold": 0}) for pair in pairs]
            name = f"blimp_{epath.Path(member.name).stem}"
            _write_task(folder, name, items, yaml)
            names.append(f"lacy_{name}")
    if not names:
        raise ValueError("no paradigm in the archive")
    parts = "".join(f"  - {name}\n" for name in sorted(names))
    files.write_text(
        folder / "lacy_blimp.yaml",
        f"group: lacy_blimp\ntask:\n{parts}aggregate_metric_list:\n  - metric: acc\n    aggregation: mean\n"
        "    weight_by_size: false\nmetadata:\n  version: 1.0\n",
    )


def _arc(path: epath.Path) -> Iterator[Item]:
    for question, options, gold in _instructions(path):
        yield {"query": f"Question: {question}\nAnswer:", "choices": options, "gold": gold}


def _siqa(path: epath.Path) -> Iterator[Item]:
    for question, options, gold in _instructions(path):
        yield {"query": f"Q: {question}\nA:", "choices": options, "gold": gold}


def _instructions(path: epath.Path) -> Iterator[tuple[str, list[str], int]]:
    """(question, options, index of the right one) of each item in instruction form."""
    for item in json.loads(path.read_text()):
        body = item["instruction"].split(":", 1)[1].split("\n\nAnswer format:")[0]
        question, options = body.split("\n\n", 1)
        choices = [option.strip() for option in _OPTION.split(options)[1:]]
        yield (
            question.strip(),
            choices,
            int(item["answer"].removeprefix("answer")) - 1,
        )


def _hellaswag(path: epath.Path) -> Iterator[Item]:
    """Each item has six lines: context, index of the right ending, four endings."""
    text = bz2.decompress(path.read_bytes()).decode()
    lines = split_lines(text)
    lines = lines[: len(lines) // 6 * 6]
    for start in range(0, len(lines), 6):
        context, gold, *endings = lines[start : start + 6]
        yield {"query": _wikihow(context), "choices": [_wikihow(e) for e in endings], "gold": int(gold)}


def _wikihow(text: str) -> str:
    """The text without the bracketed remains of WikiHow's markup, as in the harness."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def _piqa(path: epath.Path) -> Iterator[Item]:
    labels = path.with_name("piqa_valid-labels.lst").read_text().split()
    rows = [row for _, row in read_objects(path, "PIQA")]
    if len(labels) != len(rows):
        raise ValueError(f"{len(rows)} questions and {len(labels)} labels")
    for row, label in zip(rows, labels, strict=True):
        yield {
            "query": f"Question: {row['goal']}\nAnswer:",
            "choices": [row["sol1"], row["sol2"]],
            "gold": int(label),
        }


def _lambada(path: epath.Path) -> Iterator[Item]:
    for _, row in objects(split_lines(lzma.decompress(path.read_bytes())), path.name):
        yield {"text": row["text"]}


def _choice(delimiter: str, *metrics: str, text: str = '"{{query}}"') -> str:
    between = f'target_delimiter: "{delimiter}"\n'
    listed = "".join(_METRICS[metric] for metric in metrics)
    return (
        f"output_type: multiple_choice\ndoc_to_text: {text}\ndoc_to_choice: choices\ndoc_to_target: gold\n"
        f"{between}metric_list:\n{listed}"
    )


_SINGLE: dict[str, tuple[Callable[[epath.Path], Iterator[Item]], str]] = {
    "arc_easy": (_arc, _choice(" ", "acc", "acc_norm")),
    "hellaswag": (_hellaswag, _choice(" ", "acc", "acc_norm")),
    "piqa": (_piqa, _choice(" ", "acc", "acc_norm")),
    "social_iqa": (_siqa, _choice(" ", "acc")),
    "lambada": (
        _lambada,
        "output_type: loglikelihood\ndoc_to_text: \"{{text.split(' ')[:-1]|join(' ')}}\"\n"
        "doc_to_target: \"{{' '+text.split(' ')[-1]}}\"\nmetric_list:\n"
        + _METRICS["perplexity"]
        + _METRICS["acc"],
    ),
}
