"""The fact database: building, fuzzy names, learned cues, and the partner on texts of the world."""

from __future__ import annotations

import json

import pytest
from cascade_fakes import answers_meanwhile

from lacy_jax.cascade import DatabasePartner, FactDatabase, get_partner
from lacy_jax.cascade.fact_database import edit_facts, read_rows
from lacy_jax.cascade.partners.database import subject_of
from lacy_jax.cli import main
from lacy_jax.corpus import Document
from lacy_jax.errors import DataError, LacyError

ROWS = [
    ("Ada Bell", "birth_place", "Oslo"),
    ("Ada Bell", "birth_date", "7 May 1956"),
    ("Ada Bell", "award", "Orkla Medal"),
    ("Ada Bell", "award", "Polar Prize"),
    ("Bea Crane (painter)", "birth_place", "Hull"),
]


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    texts = [
        Document("1", "Ada Bell was born in Oslo on 7 May 1956. She won the Orkla Medal and won the Polar Prize.", "Ada Bell"),
        Document("2", "Bea Crane was born in Hull. She was born in a storm, on the sea, on her way. On and on.", "Bea Crane"),
    ]  # fmt: skip
    return FactDatabase.build(tmp_path_factory.mktemp("db") / "facts.db", ROWS, texts)


@pytest.fixture(scope="module")
def world_database(world, tmp_path_factory):
    """Cues learned on the texts of two thirds of the people; the table has everybody."""
    texts = [Document(str(i), world.text(i).text, world.name(i)) for i in range(40)]
    return FactDatabase.build(tmp_path_factory.mktemp("world") / "facts.db", world.table(), texts)


@pytest.mark.parametrize(
    ("name", "entity"),
    [
        ("Ada Bell", "Ada Bell"),
        ("ADA  BELL", "Ada Bell"),
        ("Ada Bel", "Ada Bell"),
        ("Bea Crane", "Bea Crane (painter)"),
        ("Carl Dent", None),
        ("", None),
    ],
)
def test_names_match_fuzzily(database, name, entity):
    assert database.entity(name) == entity


@pytest.mark.parametrize(
    ("text", "subject"),
    [
        ("Ada Bell was a chemist", "Ada Bell"),
        ("Ada Bell (born 1956) is", "Ada Bell"),
        ("Ada B. Bell-Smith, a chemist", "Ada B. Bell-Smith"),
        ("Émile d'Or", "Émile d'Or"),
        ("Ludwig van Beethoven was", "Ludwig van Beethoven"),
        ("1956 was", ""),
        ("", ""),
    ],
)
def test_subject_of_a_text(text, subject):
    assert subject_of(text) == subject


@pytest.mark.parametrize(
    ("text", "reach", "answer"),
    [
        ("Ada Bell was born in", "span", " Oslo"),
        ("Ada Bell was born in Oslo. Ada was born in", "span", ""),  # Stated already.
        ("Ada Bell won the", "span", " Orkla Medal"),
        ("Ada Bell won the Orkla Medal and then won the", "span", " Polar Prize"),
        ("Ada Bell won the", "word", " Orkla"),
        ("Ada Bell won the Orkla", "span", " Medal"),
        ("Ada Bell, birth date", "span", " 7 May 1956"),
        ("Ada Bell walked", "span", ""),
        ("Carl Dent was born in", "span", ""),
    ],
)
def test_what_is_asked_for_is_returned(database, text, reach, answer):
    assert DatabasePartner(database, reach).complete([text]) == [answer]


def test_facts_of_people_whose_texts_taught_no_cue(world, world_database):
    partner = DatabasePartner(world_database)
    cases = [(world.text(i, 1), fact) for i in range(40, 60) for fact in world.text(i, 1).facts]
    answers = partner.complete([document.text[: fact.start].rstrip() for document, fact in cases])
    right = sum(answer.strip() == fact.value for answer, (_, fact) in zip(answers, cases, strict=True))
    assert right / len(cases) > 0.75
    wrong = sum(
        bool(answer) and answer.strip() != fact.value
        for answer, (_, fact) in zip(answers, cases, strict=True)
    )
    assert wrong / len(cases) < 0.05


def test_the_partner_is_silent_where_no_fact_is_asked_for(world, world_database):
    partner = DatabasePartner(world_database)
    texts = []
    for index in range(40, 50):
        document = world.text(index)
        facts = [(fact.start - 1, fact.end) for fact in document.facts]
        spaces = [at for at, character in enumerate(document.text) if character == " "]
        texts += [document.text[:at] for at in spaces if not any(a <= at < b for a, b in facts)]
    assert sum(map(bool, partner.complete(texts))) / len(texts) < 0.06


def test_a_file_of_facts(tmp_path):
    file = tmp_path / "facts.jsonl"
    file.write_text(
        "".join(
            json.dumps(dict(zip(("entity", "attribute", "value"), row, strict=True))) + "\n" for row in ROWS
        )
    )
    assert list(read_rows(str(file))) == ROWS
    FactDatabase.build(tmp_path / "facts.db", read_rows(str(file))).close()
    partner = get_partner(f"database:{tmp_path}/facts.db")
    assert partner.complete(["Bea Crane: birth place"]) == [" Hull"]
    assert " Oslo" in partner.typical_texts()
    file.write_text('{"entity": "A", "attribute": "b"}\n')
    with pytest.raises(DataError, match=r"facts\.jsonl:1: no fact"):
        list(read_rows(str(file)))


def test_bad_databases_are_named_and_nothing_is_left_half_written(tmp_path):
    with pytest.raises(DataError, match="not found"):
        FactDatabase(tmp_path / "none.db")
    (tmp_path / "text.db").write_text("this is no database " * 100)
    with pytest.raises(DataError, match=r"text\.db"):
        FactDatabase(tmp_path / "text.db")
    with pytest.raises(DataError, match="no facts"):
        FactDatabase.build(tmp_path / "empty.db", [])
    with pytest.raises(LacyError, match="it exists"):
        FactDatabase.build(tmp_path / "text.db", ROWS)
    assert [path.name for path in tmp_path.iterdir()] == ["text.db"]


KNOWN = {
    "birth_date": ["7 May 1956"], "birth_year": ["1956"], "birth_place": ["Paris"], "death_place": ["Paris"], "children": ["5"],
    "height": ["175 cm", "5 ft 9 in"], "award": ["Orkla Medal", "Orkla Medal of Honour"], "graduation": ["1956"],
}  # fmt: skip
CUES = {
    "She was born on": "birth_date", "She was born in the year": "birth_year", "She was born in": "birth_place", "She died in": "death_place",
    "She had children": "children", "Her height was": "height", "She won the": "award", "She graduated in": "graduation",
}  # fmt: skip


@pytest.fixture(scope="module")
def partner(tmp_path_factory):
    rows = [("Ada Bell", name, value) for name, values in KNOWN.items() for value in values]
    rows += [(f"X{k}", name, f"value {name}") for k in range(2) for name in KNOWN]
    texts = [
        Document(str(k), f"{cue} value {name}.", f"X{k}") for k in range(2) for cue, name in CUES.items()
    ]
    return DatabasePartner(FactDatabase.build(tmp_path_factory.mktemp("stated") / "facts.db", rows, texts))


@pytest.mark.parametrize(
    ("said", "asked", "answer"),
    [
        # A value is stated word by word, not letter by letter.
        ("She moved in 1956.", "She had children", " 5"),
        ("She came on 5 May.", "She had children", " 5"),
        ("She ran 5 km in 3.5 hours.", "She had children", " 5"),
        ("She was Parisian.", "She was born in", " Paris"),
        ("She was born in PARIS.", "She was born in", ""),
        # Part of a date that is stated is no news, nor is the date in other words.
        ("She was born on 7 May 1956.", "She was born on", ""),
        ("She was born on May 7, 1956.", "She was born on", ""),
        ("She was born on 7 May 1956.", "She was born in the year", ""),
        ("She was born on 7 May 1956.", "She left on 7", ""),
        ("She was born on 7 May 1956.", "She was born on 7", ""),
        ("She was a child.", "She was born on 7", " May 1956"),
        # But the year of another date is not that of this fact, nor the place of a birth that of a death.
        ("She was born on 7 May 1956.", "She graduated in", " 1956"),
        ("She was born in Paris.", "She died in", " Paris"),
        # Units of another system.
        ("Her height was 175 cm.", "Her height was", ""),
        ("Her height was 5 ft 9 in.", "Her height was", ""),
        ("Her height was hidden.", "Her height was", " 175 cm"),
        ("She won the Orkla Medal of Honour.", "She won the", " Orkla Medal"),
    ],
)
def test_what_the_text_has_stated_is_not_answered_again(partner, said, asked, answer):
    assert partner.complete([f"Ada Bell was a chemist. {said} {asked}"]) == [answer]


def test_the_database_of_lmlm(tmp_path):
    database = {
        "entities": ["Ada Bell"], "relationships": ["Birth Place"], "return_values": ["Oslo"],
        "triplets": [["Ada Bell", "Birth Place", "Oslo"], ["Ada Bell", "St George\\'s Tenure", "1964 to 1968"]],
    }  # fmt: skip
    file = tmp_path / "x_database.json"
    file.write_text(json.dumps(database))
    assert list(read_rows(str(file))) == [
        ("Ada Bell", "Birth Place", "Oslo"), ("Ada Bell", "St George's Tenure", "1964 to 1968"),
    ]  # fmt: skip
    FactDatabase.build(tmp_path / "facts.db", read_rows(str(file))).close()
    assert get_partner(f"database:{tmp_path}/facts.db").complete(["Ada Bell, birth place"]) == [" Oslo"]
    for content, reason in (
        ("[" * 99_999, "too deep"),
        ("[]", "nothing in a list `triplets`"),
        ('{"triplets": [["a", "b"]]}', "triplet 0 is no list"),
    ):
        file.write_text(content)
        with pytest.raises(DataError, match=reason):
            list(read_rows(str(file)))


def test_a_reader_follows_edits(tmp_path):
    path = tmp_path / "facts.db"
    rows = [*ROWS, ("ADA BELL", "height", "175 cm")]
    database = FactDatabase.build(path, rows, [Document("1", "Bea Crane lived in Hull.", "Bea Crane")])
    partner = DatabasePartner(database)

    def ask(*texts):
        return list(partner.complete(texts))

    assert ask("Ada Bell, birth place", "Dee Eck, birth place") == [" Oslo", ""]
    counts = edit_facts(
        path,
        add=[("Dee Eck", "birth_place", "Bergen"), ("Dee Eck", "shoe_size", "39"), ROWS[1]],
        change=[("ada bell", "birth_place", "Rome"), ("Ada Bell", "award", "Golden Pen")],
        delete=[("Ada Bell", "height", ""), ("Bea Crane", "", "")],
    )
    assert counts == {"deleted": 2, "changed": 2, "added": 2}
    texts = (
        "Ada Bell, birth place",
        "Dee Eck, birth place",
        "Dee Eck, shoe size",
        "Bea Crane, birth place",
        "Ada Bell, award",
    )
    assert ask(*texts) == [" Rome", " Bergen", " 39", "", " Golden Pen"]
    assert b"175 cm" not in path.read_bytes()  # Deleted is overwritten.
    partner.close()


def test_readers_and_editors_at_once(tmp_path):
    """Facts are changed, and one comes and goes, while a partner is asked: each answer is of before or after an edit."""
    path = tmp_path / "facts.db"
    partner = DatabasePartner(FactDatabase.build(path, ROWS))
    texts = ["Ada Bell, birth place", "Dee Eck, birth place", "Ada Bell, award"]
    award = partner.complete(texts)[2]

    def edits():
        for at in range(20):
            edit_facts(path, change=[("ADA BELL", "birth_place", f"City {at}")])
            edit_facts(path, add=[("Dee Eck", "birth_place", "Bergen")])
            edit_facts(path, delete=[("dee eck", "", "")])

    said = answers_meanwhile(edits, lambda: partner.complete(texts))
    order = [-1 if born == " Oslo" else int(born.removeprefix(" City ")) for born, _, _ in said]
    assert order == sorted(order)
    assert {added for _, added, _ in said} <= {"", " Bergen"}
    assert {kept for _, _, kept in said} == {award} != {""}
    assert partner.complete(texts) == [" City 19", "", award]
    partner.close()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"delete": [("Nobody", "", "")]}, "nothing to delete: Nobody; nothing was changed"),
        ({"change": [("Ada Bell", "height", "2 m")]}, "nothing to change: Ada Bell, height"),
        ({"delete": [(row[0], "", "") for row in (ROWS[0], ROWS[4])]}, "no fact would be left"),
    ],
)
def test_an_edit_that_cannot_be_made_changes_nothing(tmp_path, changes, says):
    path = tmp_path / "facts.db"
    FactDatabase.build(path, ROWS).close()
    with pytest.raises(DataError, match=says):
        edit_facts(path, **changes)
    database = FactDatabase(path)
    assert database.rows() == ROWS
    database.close()


def test_the_command_builds_and_edits(tmp_path, capsys):
    def lines(*rows):
        (tmp_path / "rows.jsonl").write_text(
            "".join(
                json.dumps(dict(zip(("entity", "attribute", "value"), row, strict=False))) + "\n"
                for row in rows
            )
        )
        return f"{tmp_path}/rows.jsonl"

    def index(*arguments):
        assert main(["index", f"--database={tmp_path}/facts.db", *arguments, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    (tmp_path / "a.jsonl").write_text(
        "".join(
            json.dumps({"title": name, "text": f"{name} hails from {place}."}) + "\n"
            for name, place in (("Ada Bell", "Oslo"), ("Bea Crane", "Hull"))
        )
    )
    assert index(f"--facts={lines(*ROWS)}", f"--documents={tmp_path}/a.jsonl")["facts"] == 5
    partner = get_partner(f"database:{tmp_path}/facts.db")
    assert partner.complete(["Ada Bell hails from"]) == [" Oslo"]
    assert index(f"--change={lines(('Ada Bell', 'birth_place', 'Rome'))}")["changed"] == 1
    assert index(f"--delete={lines(('Bea Crane',))}")["deleted"] == 1
    assert partner.complete(["Ada Bell hails from", "Bea Crane hails from"]) == [" Rome", ""]
    partner.close()
