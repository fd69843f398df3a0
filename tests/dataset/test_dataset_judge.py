"""Judge labels through a real HTTP server on this machine: answers, failures, resuming, cost, refusals."""

from __future__ import annotations

import http.server
import json
import pathlib
import re
import threading
import time
from collections.abc import Iterator

import pytest
from gcs_server import WRITES
from hypothesis import given
from hypothesis import strategies as st
from strangers import value_or_line

from lacy_jax import cli
from lacy_jax.clients import ChatClient, Question
from lacy_jax.config import get_default_config
from lacy_jax.corpus.document import Document
from lacy_jax.dataset import build_dataset, make_input, open_split
from lacy_jax.dataset.judge import judge_split
from lacy_jax.errors import STORAGE, ConfigError, LacyError
from lacy_jax.labels import RuleLabeller, align
from lacy_jax.labels.judge import PASSAGE, excerpts_of, read_numbers
from lacy_jax.run_files import JUDGE_FILE
from lacy_jax.tokenizer import Tokenizer


class Judge(http.server.ThreadingHTTPServer):
    """Flags the capitalised words of each passage; `failures` are (status, headers) given before answers."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.failures: list[tuple[int, dict[str, str]]] = []
        self.requests: list[dict] = []
        self.keys: set[str | None] = set()
        self.answer = None
        self.unanswered = 0  # So many answers are empty.
        self.delay_s = 0.0
        self.busy = self.most_busy = 0
        self.lock = threading.Lock()


class Handler(http.server.BaseHTTPRequestHandler):
    server: Judge

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.busy += 1
            self.server.most_busy = max(self.server.most_busy, self.server.busy)
            self.server.requests.append(request)
            self.server.keys.add(self.headers["Authorization"])
            failure = self.server.failures.pop(0) if self.server.failures else None
            empty, self.server.unanswered = self.server.unanswered > 0, max(self.server.unanswered - 1, 0)
        time.sleep(self.server.delay_s)
        prompt = request["messages"][0]["content"]
        words = re.findall(r"(\d+):(\S+)", prompt.split("number:\n")[1].split("\n\nAnswer")[0])
        text = self.server.answer or f"Sure! {[int(n) for n, word in words if word[0].isupper()]}"
        body: object = {
            "choices": [{"message": {"content": "" if empty else text}}],
            "usage": {"prompt_tokens": 9, "completion_tokens": 2},
        }
        if failure is not None:
            body = {"error": "sorry\nlater"}
        data = json.dumps(body).encode() if failure != (200, {}) else b"<html>"
        with self.server.lock:
            self.server.busy -= 1
        self.send_response(failure[0] if failure else 200)
        for name, value in (failure[1] if failure else {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def judge() -> Iterator[Judge]:
    with Judge() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def dataset(tmp_path) -> str:
    config = get_default_config()
    config.corpus.people, config.corpus.texts_per_person = 12, 1
    config.tokenizer.vocab_size, config.dataset.shards, config.dataset.valid_fraction = 330, 1, 0.25
    build_dataset(config, tmp_path / "dataset")
    return str(tmp_path / "dataset")


def client_for(judge: Judge, cache, **options) -> ChatClient:
    return ChatClient(f"chat+{judge.url}#m", cache, **{"backoff_s": 0.01, **options})


def test_the_judges_words_become_bits(judge, dataset, tmp_path):
    outcome = judge_split(dataset, "train", client_for(judge, tmp_path / "cache"), rate=0.5)
    source = open_split(dataset, "train")
    assert (outcome.documents, outcome.no_answer, outcome.unaligned) == (len(source), 0, 0)
    tokenizer = Tokenizer.load(f"{dataset}/tokenizer.model")
    record = source[0]
    flagged = record.labels["judge"]
    text = tokenizer.decode(record.tokens[1:-1])
    passage = excerpts_of(text, 0.5)[0]
    assert len(passage.words) < PASSAGE, "one passage a document: the rest of this test relies on it"
    wanted = [(a, b) for a, b in passage.words if text[a].isupper()][: passage.most]
    _, starts, ends = tokenizer.encode_with_offsets(text)
    for bit, start, end in zip(flagged[1:-1].tolist(), starts.tolist(), ends.tolist()):
        assert bit == any(
            a < end and start < b and text[max(a, start) : min(b, end)].strip() for a, b in wanted
        )
    assert not flagged[0]
    assert flagged.sum() > 5
    config = get_default_config()
    config.dataset.path, config.input.seq_len, config.input.batch_size = dataset, 64, 2
    assert next(make_input(config)).labels["judge"].any()


def _question(words: str) -> Question[list[int]]:
    return Question(
        f"Passage, each word with its number:\n{words}\n\nAnswer", lambda text: read_numbers(text, 99)
    )


def test_requests_are_concurrent_and_in_order(judge, tmp_path):
    judge.delay_s, judge.answer = 0.05, None
    questions = [_question(f"{i}:Word") for i in range(1, 21)]
    client = client_for(judge, tmp_path, concurrency=5)
    assert list(client.ask(iter(questions))) == [[i] for i in range(1, 21)]
    assert 1 < judge.most_busy <= 5


def test_failures_are_retried_then_named(judge, dataset, tmp_path):
    judge.failures = [(429, {"Retry-After": "0.01"}), (503, {}), (200, {}), (500, {})]
    client = client_for(judge, tmp_path / "cache", key="secret-key", concurrency=1)
    judge_split(dataset, "valid", client)
    assert client.usage.retried == 4
    assert client.usage.prompt_tokens == 9 * client.usage.answered
    assert judge.keys == {"Bearer secret-key"}
    assert not [f for f in (tmp_path / "cache").rglob("*.json") if "secret-key" in f.read_text()]
    judge.failures = [(503, {})] * 3
    with pytest.raises(LacyError, match=r"HTTP 503.*3 times.*run again to go on") as error:
        judge_split(dataset, "train", client_for(judge, tmp_path / "cache", retries=2, concurrency=1))
    assert "\n" not in str(error.value)
    judge.failures = [(401, {})]
    before = len(judge.requests)
    with pytest.raises(LacyError, match=r"HTTP 401.*check the address, model and key"):
        judge_split(dataset, "train", client_for(judge, tmp_path / "cache", concurrency=1))
    asked = [request["messages"][0]["content"] for request in judge.requests[before:]]
    assert len(asked) == len(set(asked)), "a refusal was tried again"
    assert "judge" not in open_split(dataset, "train").labels  # nothing half-written


def test_an_interrupted_job_goes_on(judge, dataset, tmp_path):
    documents = len(open_split(dataset, "train"))
    judge.failures = []
    client = client_for(judge, tmp_path / "cache", retries=0, concurrency=1)
    texts = client.ask(iter([_question("1:A"), _question("2:B")]))
    next(texts)
    texts.close()
    judged = len(judge.requests)
    judge_split(dataset, "train", client_for(judge, tmp_path / "cache"))
    assert len(judge.requests) == judged + documents
    again = client_for(judge, tmp_path / "cache")
    outcome = judge_split(dataset, "train", again)
    assert len(judge.requests) == judged + documents, "cached answers were asked for again"
    assert (again.usage.cached, again.usage.answered) == (documents, 0)
    damaged = next((tmp_path / "cache").rglob("*.json"))
    damaged.write_text("{")
    third = client_for(judge, tmp_path / "cache")
    assert judge_split(dataset, "train", third) == outcome
    assert third.usage.answered <= 1


def test_answers_that_are_none_are_counted_and_where_they_are_the_rule_an_error(judge, dataset, tmp_path):
    """Nothing is stored then, and nothing was cached: a repaired server is asked again."""
    judge.answer = "I would rather not."
    cache = tmp_path / "cache"
    with pytest.raises(
        LacyError, match=r"judge m at http.* answers are unusable: \d+ x no list of numbers"
    ) as error:
        judge_split(dataset, "valid", client_for(judge, cache))
    assert "\n" not in str(error.value)
    assert open_split(dataset, "valid").extras == {}
    assert not list(cache.rglob("*.json"))
    judge.answer = None
    judge.unanswered = 1
    outcome = judge_split(dataset, "valid", client_for(judge, cache, concurrency=1))
    assert (outcome.no_answer, outcome.why_none) == (1, "1 x empty (no finish_reason)")
    assert outcome.passages == outcome.documents == 2
    assert outcome.flagged > 0


@pytest.mark.parametrize(
    ("answer", "numbers"),
    [("[3, 1, 3]", [3, 1]), ("Here: [2]. Good?", [2]), ("[1] or rather [4]", [4]), ("[]", []), ("[4] as I said [sic]", [4])],
)  # fmt: skip
def test_answers(answer, numbers):
    assert read_numbers(answer, 4) == numbers


@pytest.mark.parametrize(
    ("answer", "says"),
    [("[9]", "other things"), ("[0]", "other things"), ("[1.5]", "other things"), ('["1"]', "other things"),
     ("[true]", "other things"), ("[1, 2] or rather [30]", "other things"), ("none", "no list"), ("[1, 2", "no list"),
     ("", "no list"), ("Example: [3, 17, 4]", "own example")],
)  # fmt: skip
def test_malformed_answers(answer, says):
    with pytest.raises(ValueError, match=says):
        read_numbers(answer, 40 if "17" in answer else 4)


@given(
    st.text() | st.text('[]0123456789, "e.-tru', max_size=30) | st.lists(st.integers()).map(str),
    st.integers(1, 150),
)
def test_any_answer_is_a_list_of_numbers_or_one_clear_line(answer, most):
    numbers, line = value_or_line(read_numbers, answer, most, kinds=(ValueError,))
    assert line or all(1 <= number <= most for number in numbers)
    assert not line or numbers is None


def test_long_documents_are_asked_in_passages():
    text = " ".join(f"word{i}" for i in range(2 * PASSAGE + 10))
    found = excerpts_of(text, 0.15)
    assert [len(passage.words) for passage in found] == [PASSAGE, PASSAGE, 10]
    assert [passage.most for passage in found] == [23, 23, 2]
    assert "(none)" in found[0].prompt
    assert f"word{PASSAGE - 1}" in found[1].prompt  # what stands before it
    assert excerpts_of("", 0.15) == []
    (fifty,) = excerpts_of("word " * 50, 0.14)
    assert fifty.most == 7  # 0.14 * 50 is more than 7 in floats.


def test_the_command(judge, dataset, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MY_KEY", "abc")
    (tmp_path / "c.py").write_text(
        "from lacy_jax.config import get_default_config\n\n\ndef get_config(arg=''):\n    return get_default_config()\n"
    )
    arguments = [
        "judge", f"--config={tmp_path / 'c.py'}", f"--config.dataset.path={dataset}", f"--judge=chat+{judge.url}#m",
        "--json", "--prices=1,2", "--key-env=MY_KEY",
    ]  # fmt: skip
    assert cli.main([*arguments, "--dry-run"]) == 0
    expected = json.loads(capsys.readouterr().out)["estimate"]
    documents = {split: len(open_split(dataset, split)) for split in ("train", "valid")}
    assert expected["requests"] == sum(
        documents.values()
    )  # Training will validate, so all splits by default.
    assert cli.main([*arguments, "--dry-run", "--split=valid"]) == 0
    assert json.loads(capsys.readouterr().out)["estimate"]["requests"] == documents["valid"]
    assert expected["cost"] == pytest.approx(
        (expected["prompt_tokens"] + 2 * expected["answer_tokens"]) / 1e6, abs=1e-4
    )
    assert not judge.requests
    assert cli.main([*arguments, "--max-cost=0.00001"]) == 2
    assert "exceeds --max-cost" in capsys.readouterr().err
    assert cli.main(arguments) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["answered"] == expected["requests"]
    assert result["judge_rate"] == pytest.approx(0.15, abs=0.1)
    assert (result["splits"], result["documents"]) == (["train", "valid"], sum(documents.values()))
    assert all("judge" in open_split(dataset, split).extras for split in documents)
    assert judge.keys == {"Bearer abc"}
    assert json.loads((pathlib.Path(dataset) / JUDGE_FILE).read_text()) == result
    for bad, says in (
        ("--rate=0", "expected more than 0"),
        ("--prices=much", "two numbers"),
        ("--max-cost=-1", "expected a number"),
        ("--key-env=NOT_SET", "is not set"),
        ("--split=test", "no records in split 'test' (there are: train, valid)"),
        ("--judge=ftp://x#m", "chat+http://"),
        ("--judge=http://x/v1#m", "needs a chat model"),
        ("--judge=chat+http://x/v1", "needs a chat model"),
    ):
        assert cli.main([*arguments, bad]) == 2
        assert says in capsys.readouterr().err


def test_a_labeller_may_be_the_judge(judge, dataset, tmp_path, capsys):
    """Without a server: what it calls factual becomes the bits."""
    (tmp_path / "c.py").write_text(
        "from lacy_jax.config import get_default_config\n\n\ndef get_config(arg=''):\n    return get_default_config()\n"
    )
    arguments = [
        "judge",
        f"--config={tmp_path / 'c.py'}",
        f"--config.dataset.path={dataset}",
        "--judge=rules",
        "--json",
    ]
    assert cli.main([*arguments, "--dry-run"]) == 0
    documents = {split: len(open_split(dataset, split)) for split in ("train", "valid")}
    assert json.loads(capsys.readouterr().out)["documents"] == sum(documents.values())
    assert cli.main(arguments) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["judge"].startswith("rules ")
    assert (result["documents"], result["unaligned"]) == (sum(documents.values()), 0)
    assert json.loads((pathlib.Path(dataset) / JUDGE_FILE).read_text()) == result
    records = [open_split(dataset, split)[index] for split in documents for index in range(documents[split])]
    assert sum(int(record.labels["judge"].sum()) for record in records) == result["flagged"] > 0
    tokenizer, record = Tokenizer.load(f"{dataset}/tokenizer.model"), records[0]
    text = tokenizer.decode(record.tokens[tokenizer.body])
    _, starts, ends = tokenizer.encode_with_offsets(text)
    factual = RuleLabeller().label(Document(record.id, text, record.title)).factual
    assert record.labels["judge"][tokenizer.body].tolist() == align(factual, starts, ends, text).tolist()
    assert not judge.requests
    assert cli.main([*arguments[:-2], "--judge=annotator:none.npz"]) == 2
    assert "no annotator in none.npz" in capsys.readouterr().err
    before = (pathlib.Path(dataset) / JUDGE_FILE).read_bytes()
    for more in (["--rate=0.15"], ["--rate=2", "--prices=1,2"], ["--concurrency=8", "--key-env=NOT_SET"]):
        assert cli.main([*arguments, *more]) == 2
        names = ", ".join(option.partition("=")[0] for option in more)
        error = capsys.readouterr().err.strip()
        assert error.endswith(f"{names}: only for the chat model of a server; --judge=rules is a labeller")
        assert "\n" not in error
    assert (pathlib.Path(dataset) / JUDGE_FILE).read_bytes() == before


def test_a_dataset_in_a_bucket_is_judged_there(judge, dataset, bucket, gcs, tmp_path, capsys):
    """With the answers kept beside it: what a bucket that fails has not taken is asked again, and nothing else."""
    gcs.put_folder(dataset, f"{bucket}/d")
    (tmp_path / "c.py").write_text(
        "from lacy_jax.config import get_default_config\n\n\ndef get_config(arg=''):\n    return get_default_config()\n"
    )

    def lacy_judge(path: str) -> tuple[int, str, str]:
        code = cli.main([
            "judge", f"--config={tmp_path / 'c.py'}", f"--config.dataset.path={path}", f"--config.dataset.cache={tmp_path / 'cache'}",
            f"--judge=chat+{judge.url}#m", "--json",
        ])  # fmt: skip
        return code, *capsys.readouterr()

    code, out, err = lacy_judge(dataset)
    assert code == 0, err
    here = json.loads(out)
    gcs.fail(403, WRITES, match="extra-judge-valid")
    code, out, err = lacy_judge(f"{bucket}/d")
    assert (code, out) == (STORAGE.status, "")
    assert f"cannot write {bucket}/d/extra-judge-valid.npy" in err.splitlines()[-1]
    assert "judge" not in open_split(f"{bucket}/d", "valid").extras
    gcs.heal()
    asked = len(judge.requests)
    code, out, err = lacy_judge(f"{bucket}/d")
    assert code == 0, err
    assert len(judge.requests) == asked, "kept answers were asked for again"
    there = json.loads(out)
    assert there["cached"] == here["answered"]
    assert json.loads(gcs.read(f"{bucket}/d/{JUDGE_FILE}")) == there
    for name in ("documents", "passages", "flagged", "tokens", "judge_rate"):
        assert there[name] == here[name], name
    for split in ("train", "valid"):
        name = f"extra-judge-{split}.npy"
        assert gcs.read(f"{bucket}/d/{name}") == (pathlib.Path(dataset) / name).read_bytes()
    gcs.fail(403, match="judge_cache")
    code, _, err = lacy_judge(f"{bucket}/d")
    assert code == STORAGE.status
    assert "403" in err.splitlines()[-1] or "Forbidden" in err.splitlines()[-1]


def test_bad_client_options(tmp_path):
    with pytest.raises(ConfigError, match="concurrency = 0"):
        ChatClient("chat+http://x#m", tmp_path, concurrency=0)
    with pytest.raises(LacyError, match=r"cannot connect.*run again to go on"):
        list(ChatClient("chat+http://127.0.0.1:9#m", tmp_path, retries=0).ask([_question("1:A")]))
