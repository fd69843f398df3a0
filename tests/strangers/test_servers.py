"""OpenAI-compatible servers as they are: what is no answer is none, what failed says why, what is refused is asked otherwise."""

from __future__ import annotations

import email.utils
import json
import time

import pytest
import recorded_answers as recorded
from completions_server import CompletionsServer, InTurn
from hypothesis import given
from hypothesis import strategies as st
from strangers import value_or_line

from lacy_jax.cascade import CompletionsPartner
from lacy_jax.clients import (
    ChatClient,
    CircuitBreaker,
    CompletionsClient,
    NoAnswer,
    Question,
    Tally,
    completions,
    transport,
)
from lacy_jax.clients.answers import answer_of, message_of
from lacy_jax.errors import ConfigError, LacyError, PartnerError


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(transport, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(transport, "LONGEST_WAIT_S", 0.02)
    for name in completions.KEY_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def _chat(url, **options):
    return CompletionsClient(url, "m", chat=True, concurrency=1, **options)


def _ask(client):
    return client.complete(["True or False?"], max_tokens=16)[0]


# -- no answer is not an answer ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", recorded.NO_ANSWERS)
def test_an_answer_that_says_nothing_is_a_problem_with_a_name(name):
    body = recorded.NO_ANSWERS[name]
    with CompletionsServer(lambda prompt: (200, body)) as server:
        answer = _ask(_chat(server.url))
    reason = body["choices"][0]["finish_reason"]
    assert answer.problem, name
    assert repr(reason) in answer.problem or "refusal" in answer.problem
    assert not answer.text.strip()


def test_answers_that_say_something_have_no_problem():
    for body, text in (
        (recorded.chat("True"), "True"),
        (recorded.PARTS, "True"),
        (recorded.chat("<think>Is it? [3, 17, 4]</think>\n\n[1, 2]"), "[1, 2]"),
        (recorded.chat("It is so.</think>False"), "False"),  # The template opens the thinking.
    ):
        answer = answer_of(body, chat=True)
        assert (answer.text, answer.problem) == (text, "")
    assert answer_of(recorded.chat("[1, 2", "length"), chat=True).problem == "cut (finish_reason 'length')"


def test_a_partner_that_withholds_its_answer_has_given_none():
    def behaviour(prompt):
        return (200, recorded.NO_ANSWERS["OpenAI, refusal"]) if prompt == "a" else " Oslo"

    with CompletionsServer(behaviour) as server:
        partner = CompletionsPartner(_chat(server.url))
        assert partner.complete(["a", "b"]) == [None, " Oslo"]
        with pytest.raises(PartnerError, match=r"no answer: a refusal \(I'm sorry"):
            partner.complete(["a"])
    with CompletionsServer(lambda prompt: "") as server:  # A completion may be empty: it has nothing to say.
        assert CompletionsPartner(CompletionsClient(server.url, "m")).complete(["a"]) == [""]


def test_what_is_no_answer_is_not_kept_and_asked_again(tmp_path):
    def read(text):
        return [int(text)]

    bodies = [(200, body) for body in recorded.NO_ANSWERS.values()]
    with CompletionsServer(InTurn(*bodies, "I would rather not.", "7")) as server:
        client = ChatClient(f"chat+{server.url}#m", tmp_path, concurrency=1)
        question = Question("How many?", read)
        for _ in range(len(bodies) + 1):
            (found,) = client.ask([question])
            assert isinstance(found, NoAnswer)
            assert not client.is_cached(question)
        assert not list(tmp_path.rglob("*.json"))
        assert list(client.ask([question])) == [[7]] == list(client.ask([question]))
        assert len(server.requests) == len(bodies) + 2
        kept = next(tmp_path.rglob("*.json"))
    # What an earlier version kept without looking is asked again.
    kept.write_text(json.dumps({"model": "m", "answer": recorded.THINKING, "usage": {}}))
    assert not client.is_cached(question)


def test_having_no_answers_is_an_error_where_it_is_the_rule():
    tally = Tally("judge m")
    for _ in range(9):
        tally.add(True)
        tally.add(NoAnswer("empty (finish_reason 'length')"))
    tally.settle()  # Half of them: reported, no error.
    assert tally.summary() == "9 x empty (finish_reason 'length')"
    tally.add(NoAnswer("a refusal (no)"))
    with pytest.raises(
        PartnerError,
        match=r"judge m: 11 of 20 answers are unusable: 9 x empty \(finish_reason 'length'\), 2 x",
    ):
        tally.add(NoAnswer("a refusal (no)"))
    few = Tally("judge m")
    few.add(NoAnswer("empty (finish_reason 'stop')"))
    with pytest.raises(PartnerError, match="1 of 1 answers"):
        few.settle()


def test_a_job_that_is_stopped_does_not_wait_for_a_server_that_asks_for_it(tmp_path):
    def behaviour(prompt):
        return "1" if prompt == "a" else (429, {"error": "slow down"}, [("Retry-After", "300")])

    with CompletionsServer(behaviour) as server:
        client = ChatClient(f"chat+{server.url}#m", tmp_path, concurrency=2)
        answers = client.ask([Question(prompt, int) for prompt in "ab" * 5])
        assert next(answers) == 1
        started = time.monotonic()
        answers.close()
        assert time.monotonic() - started < 5
        assert list(client.ask([Question("a", int)])) == [1]  # It can be asked again.


# -- failures and their causes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", recorded.FAILURES)
def test_an_error_with_status_200_is_a_failure_that_says_why(name):
    body = recorded.FAILURES[name]
    with CompletionsServer(lambda prompt: (200, body)) as server:
        client = _chat(server.url, retries=1)
        error = _ask(client)
        assert isinstance(error, PartnerError)
        assert "error" in str(error)
        assert message_of(
            body.get("error") or body["choices"][0]["error"] if "object" not in body else body
        ) in str(error)
        assert len(server.requests) == 2  # It may pass.


def test_the_first_cause_survives_the_circuit_breaker():
    causes = InTurn((200, {"error": {"message": "no credit left", "code": 503}}), (500, b"boom"))
    with CompletionsServer(causes) as server:
        client = _chat(server.url, retries=0, breaker=CircuitBreaker(threshold=3))
        errors = client.complete(["a"] * 4, max_tokens=1)
        assert "no credit left" in str(errors[0])
        assert str(errors[3]).endswith(
            "not asked, because it has just failed 3 times: HTTP 200 with an error: no credit left"
        )


def test_an_error_with_status_200_that_will_not_pass_is_a_refusal():
    with CompletionsServer(
        lambda prompt: (200, {"error": {"message": "Invalid key", "code": 401}})
    ) as server:
        assert isinstance(_ask(_chat(server.url)), transport.Refused)
        assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (400, recorded.TOO_LONG, "exceeds the available context size"),
        (422, recorded.UNPROCESSABLE, "field required"),
        (404, {"error": "model 'x' not found"}, "model 'x' not found"),
        (403, b"<html>\nForbidden</html>", "HTTP 403 <html> Forbidden"),
        (401, {"error": {"message": None, "code": None}}, "HTTP 401"),
    ],
)
def test_refusals_say_what_the_server_says(status, body, says):
    with CompletionsServer(lambda prompt: (status, body)) as server:
        error = _ask(_chat(server.url))
    assert isinstance(error, transport.Refused)
    assert says in str(error)
    assert "\n" not in str(error)


# -- what a server asks for --------------------------------------------------------------------------------------


def test_a_model_that_takes_other_parameters_gets_them(capsys):
    refusals = [(400, recorded.MAX_TOKENS_REFUSED), (400, recorded.TEMPERATURE_REFUSED)]
    with CompletionsServer(InTurn(*refusals, "True")) as server:
        client = _chat(server.url, retries=0)
        assert _ask(client).text == "True"
        assert _ask(client).text == "True"
        assert [sorted(set(request) - {"model", "messages"}) for request in server.requests] == [
            ["max_tokens", "temperature"], ["max_completion_tokens", "temperature"],
            ["max_completion_tokens"], ["max_completion_tokens"],
        ]  # fmt: skip
        assert server.requests[-1]["max_completion_tokens"] == 16
    assert "accepts no temperature" in capsys.readouterr().err
    with CompletionsServer(InTurn((400, recorded.WITHOUT_PARAMETER), "True")) as server:
        assert _ask(_chat(server.url)).text == "True"
    with CompletionsServer(lambda prompt: (400, recorded.MAX_TOKENS_REFUSED)) as server:
        assert isinstance(_ask(_chat(server.url)), transport.Refused)  # It refuses the other name, too.
        assert len(server.requests) == 2


def _in(seconds):
    return email.utils.formatdate(time.time() + seconds, usegmt=True)


@pytest.mark.parametrize("after", ["1", "0.7", lambda: _in(2)])
def test_retry_after_is_kept_to_as_a_number_or_a_date(after, monkeypatch):
    monkeypatch.setattr(
        transport, "LONGEST_WAIT_S", 0.01
    )  # Of our own waits, not of those that are asked for.
    given_ = after if isinstance(after, str) else after()
    with CompletionsServer(
        InTurn((429, {"error": "slow down"}, [("Retry-After", given_)]), "True")
    ) as server:
        started = time.monotonic()
        assert _ask(_chat(server.url)).text == "True"
        assert time.monotonic() - started > 0.6


@pytest.mark.parametrize("after", ["3600", lambda: _in(3600)])
def test_a_wait_that_is_longer_than_the_time_left_is_not_waited_for(after):
    given_ = after if isinstance(after, str) else after()
    with CompletionsServer(lambda prompt: (429, {"error": "quota"}, [("Retry-After", given_)])) as server:
        error = _ask(_chat(server.url))
        assert len(server.requests) == 1
    assert "HTTP 429 quota; it asks for a wait of" in str(error)


def test_all_threads_leave_a_server_alone_that_asks_for_it():
    times = []

    def behaviour(prompt):
        times.append(time.monotonic())
        return (429, {"error": "slow down"}, [("Retry-After", "1")]) if len(times) == 1 else "True"

    with CompletionsServer(behaviour) as server:
        client = _chat(server.url)
        client.complete(["a", "b", "c"], max_tokens=1)
    assert min(times[1:]) - times[0] > 0.9


@pytest.mark.parametrize("after", ["soon", "-3", "nan", "inf", "Wed, 99 Foo 2015 07:28:00 GMT", ""])
def test_a_strange_retry_after_is_none(after):
    with CompletionsServer(InTurn((503, b"", [("Retry-After", after)]), "True")) as server:
        assert _ask(_chat(server.url)).text == "True"


# -- anything ----------------------------------------------------------------------------------------------------

_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(
        st.sampled_from("choices message content text finish_reason refusal error usage prompt_tokens code object".split()),
        inside, max_size=4,
    ),
    max_leaves=12,
)  # fmt: skip


@given(value=_json, chat=st.booleans())
def test_any_json_is_an_answer_or_one_clear_line(value, chat):
    answer, _ = value_or_line(answer_of, value, chat, kinds=(ValueError,))
    if answer is not None:
        assert isinstance(answer.text, str)
        assert answer.text.strip() or answer.problem, "an empty answer that looks like one"
        assert answer.tokens("prompt") >= 0


@given(
    parts=st.tuples(
        *[st.dictionaries(st.sampled_from(["content", "text", "refusal", "role"]), _json, max_size=3)] * 2,
        _json,
    )
)
def test_any_choice_is_an_answer_or_one_clear_line(parts):
    message, choice, reason = parts
    body = {"choices": [{**choice, "message": message, "finish_reason": reason}]}
    for chat in (True, False):
        answer, _ = value_or_line(answer_of, body, chat, kinds=(ValueError,))
        assert answer is None or answer.text.strip() or answer.problem


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[" * 100_000,
        b'"x"',
        b"{}",
        b'{"choices": null}',
        b'{"choices": [null]}',
        b"\xff",
        b"5",
    ],
)
def test_any_body_is_one_clear_line(body):
    for chat in (True, False):
        with CompletionsServer(lambda prompt: (200, body)) as server:
            client = CompletionsClient(server.url, "m", chat=chat, retries=0)
            (error,) = client.complete(["a"], max_tokens=1)
            assert isinstance(error, LacyError)
            assert "\n" not in str(error)


@given(
    url=st.text(max_size=20)
    | st.text(max_size=20).map("http://{}".format)
    | st.text("[]:@%/#?1", max_size=12).map("http://{}".format)
)
def test_any_url_is_one_or_refused(url):
    client, _ = value_or_line(CompletionsClient, url, kinds=(ConfigError,))
    if client is not None:
        client.close()
