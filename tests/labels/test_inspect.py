"""`lacy inspect`: what is marked, by which rule, and that nothing of a document can harm terminal or page."""

from __future__ import annotations

import html.parser
import json

import pytest

from lacy_jax.config import get_default_config
from lacy_jax.corpus.document import Document, Fact
from lacy_jax.corpus.world import World
from lacy_jax.errors import ConfigError, DataError
from lacy_jax.labels import Labels, RuleLabeller, WorldLabeller
from lacy_jax.labels.inspect import (
    inspect_documents,
    label_document,
    render_html,
    render_terminal,
    rule_counts,
)
from lacy_jax.tokenizer import Tokenizer, train_tokenizer

TEXT = "Mara was born in New York on 7 March. <b>She</b> ran.  "
YORK = Fact(17, 25, "Mara", "birthplace", "New York")
DATE = Fact(29, 36, "Mara", "birth_date", "7 March")
DOCUMENT = Document("d1", TEXT, "Mara", (YORK, DATE))


class Page(html.parser.HTMLParser):
    """Text of the articles of a page, the marked parts of it with their rules, and what the page loads."""

    def __init__(self, page: str):
        super().__init__()
        self.text = ""
        self.marked: list[tuple[str, str]] = []
        self.loads: list[str] = []
        self._tags: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self._tags.append(tag)
        self.loads += [value for name, value in attrs if name in ("src", "href")]
        if tag == "mark" and "article" in self._tags:
            self.marked.append((dict(attrs)["title"], ""))

    def handle_endtag(self, tag):
        while self._tags and self._tags.pop() != tag:  # <meta> has no end
            pass

    def handle_data(self, data):
        if "article" in self._tags:
            self.text += data
            if "mark" in self._tags:
                self.marked[-1] = (self.marked[-1][0], self.marked[-1][1] + data)


@pytest.fixture(scope="module")
def tokenizer():
    settings = get_default_config().unlock().tokenizer
    settings.vocab_size = 500
    return Tokenizer.from_bytes(train_tokenizer([World(40).text(i, 0).text for i in range(40)], settings))


@pytest.mark.parametrize("pieces", ["tokens", "words"])
def test_marks_and_text(tokenizer, pieces):
    shown = label_document(DOCUMENT, WorldLabeller(), tokenizer if pieces == "tokens" else None)
    assert "".join(piece.text for piece in shown.pieces) == TEXT
    assert "".join(piece.text for piece in shown.pieces if piece.factual).replace(" ", "") == "NewYork7March"
    assert shown.facts == (("New York", "birthplace"), ("7 March", "birth_date"))
    assert shown.unit == pieces
    page = Page(render_html([shown]))
    assert page.text == TEXT
    assert [(rule, text.strip()) for rule, text in page.marked] == [
        ("birthplace", "New York"),
        ("birth_date", "7 March"),
    ]
    assert not page.loads


def test_rate_counts_tokens_not_characters():
    shown = label_document(DOCUMENT, WorldLabeller())
    words = ["Mara", "was", "born", "in", "New", "York", "on", "7", "March", "."]
    words += ["<", "b", ">", "She", "<", "/", "b", ">", "ran", "."]
    assert [piece.text.strip() for piece in shown.pieces if piece.text.strip()] == words
    report = shown.to_dict()
    assert report["factual"] == 4
    assert report["factual_rate"] == pytest.approx(4 / report["pieces"])
    assert json.loads(json.dumps(report))["facts"][0] == {"text": "New York", "rule": "birthplace"}
    assert rule_counts([shown, shown]) == [("birthplace", 2), ("birth_date", 2)]


def test_terminal_with_and_without_color():
    shown = label_document(DOCUMENT, WorldLabeller())
    plain = render_terminal([shown], color=False)
    assert "born in [[New York|birthplace]] on [[7 March|birth_date]]." in plain
    assert "\x1b" not in plain
    assert "world (version" in plain
    # Bold and underline, so that the marks are seen without colours.
    assert "\x1b[1;4mNew York\x1b[0m" in render_terminal([shown], color=True)


def test_documents_command_neither_terminal_nor_page():
    text = "\x1b]0;title\x07 <script>alert(1)</script> \x9b31m"
    document = Document("<i>", text, "<u>\x1b[2J", (Fact(11, 19, "", "<rule>", "<script>"),))
    shown = label_document(document, WorldLabeller())
    plain = render_terminal([shown], color=False)
    assert not set(plain) & {"\x1b", "\x07", "\x9b"}
    page = render_html([shown])
    assert "<script" not in page
    assert "<i>" not in page
    assert "<rule>" not in page


def test_repeats_are_struck_out(tokenizer):
    text = "In 1990 Ann left Oslo. Ann came back to Oslo."
    shown = label_document(Document("d", text), RuleLabeller(), tokenizer)
    repeated = "".join(piece.text for piece in shown.pieces if piece.repeated)
    assert repeated.replace(" ", "") == "AnnOslo"
    assert "".join(piece.text for piece in shown.pieces) == text
    page = render_html([shown])
    assert page.count('class="repeated">') == 1 + sum(
        piece.repeated for piece in shown.pieces
    )  # and the legend
    assert Page(page).text.strip() == text


def test_two_labellers_side_by_side(tokenizer):
    config = get_default_config().unlock()
    config.corpus.people, config.corpus.texts_per_person = 3, 1
    shown = inspect_documents(config, 2, tokenizer, against="rules")
    assert [document.labeller.split(" ")[0] for document in shown] == ["world", "rules"] * 2
    for one, other in (shown[:2], shown[2:]):
        assert one.title == other.title
        differ = [a.factual != b.factual for a, b in zip(one.pieces, other.pieces, strict=True)]
        assert differ == [piece.differs for piece in one.pieces] == [piece.differs for piece in other.pieces]
        assert any(differ)
    count = sum(piece.differs for document in shown[::2] for piece in document.pieces)
    total = sum(len(document.pieces) for document in shown[::2])
    assert f"they differ on {count} of {total} tokens" in render_terminal(shown, color=False)
    page = render_html(shown)
    assert page.count('<div class="pair">') == 2
    assert f"they differ on {count} of {total} tokens" in page
    assert page.count("differs") >= 2 * count
    with pytest.raises(ConfigError, match="expected one of"):
        inspect_documents(config, 1, tokenizer, against="nobody")


def test_labeller_without_reasons():
    class Plain:
        name, version = "mine", "1"

        def label(self, document):
            return Labels(((0, 4),))

    shown = label_document(DOCUMENT, Plain())
    assert shown.facts == (("Mara", "factual"),)
    assert "[[Mara|factual]]" in render_terminal([shown], color=False)


def test_inspect_reads_the_configured_corpus(tokenizer):
    config = get_default_config().unlock()
    config.corpus.people, config.corpus.texts_per_person = 3, 1
    shown = inspect_documents(config, 2, tokenizer)
    assert [document.title for document in shown] == [World(3).people[i].name for i in range(2)]
    for document, i in zip(shown, range(2)):
        facts = sorted(World(3).text(i, 0).facts, key=lambda fact: fact.start)
        assert document.facts == tuple((fact.value, fact.attribute) for fact in facts)
    assert len(inspect_documents(config, 99)) == 3


def test_bad_requests():
    config = get_default_config().unlock()
    with pytest.raises(ConfigError, match="--limit=0"):
        inspect_documents(config, 0)
    config.corpus.kind, config.corpus.path = "jsonl", "missing/*.jsonl"
    with pytest.raises(DataError, match="missing"):
        inspect_documents(config, 1)


def test_nothing_to_show():
    assert render_terminal([]) == "no documents"
    assert "<article>" not in render_html([])
