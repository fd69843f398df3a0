"""Parse texts with any spaCy and write the parses as JSONL: for pipelines that the spaCy of this project cannot load.

    PYTHON benchmarks/parse_texts.py PIPELINE < texts.jsonl > parses.jsonl

PYTHON is that of an environment with spaCy, also an old one; nothing else is needed, and nothing of lacy_jax. Input: JSON
objects with `text` (and what else should be kept, such as `title`), one a line. Output: the same with `tok` = [[start,
length, tag], ...], `ents` = [[start, end, label], ...] and `chunks` = [[start, end], ...] by character offset, as
`lacy_jax.labels.parse.parse_of_record` reads them. The last line on stderr is JSON: `pipeline`, `spacy`, and
`cpu_seconds`, of parsing alone, all threads counted.
"""

import json
import sys
import time
import warnings

warnings.filterwarnings("ignore")  # An old pipeline in another spaCy of its age warns at length.

import spacy  # noqa: E402


def main():
    """Parse standard input."""
    nlp = spacy.load(sys.argv[1], disable=["lemmatizer"])  # Nothing reads lemmas.
    seconds = 0.0
    for line in sys.stdin:
        record = json.loads(line)
        start = time.process_time()
        doc = nlp(record["text"])
        parsed = doc.has_annotation("DEP") if hasattr(doc, "has_annotation") else doc.is_parsed
        chunks = [[chunk.start_char, chunk.end_char] for chunk in doc.noun_chunks] if parsed else []
        seconds += time.process_time() - start
        record["tok"] = [[token.idx, len(token), token.tag_] for token in doc]
        record["ents"] = [[entity.start_char, entity.end_char, entity.label_] for entity in doc.ents]
        record["chunks"] = chunks
        print(json.dumps(record))
    name = "{}_{} {}".format(nlp.meta["lang"], nlp.meta["name"], nlp.meta["version"])
    print(
        json.dumps({"pipeline": name, "spacy": spacy.__version__, "cpu_seconds": round(seconds, 3)}),
        file=sys.stderr,
    )


if __name__ == "__main__":
    main()
