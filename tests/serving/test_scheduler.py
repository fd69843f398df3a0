"""Continuous batching: each text is the one that `generate` writes for it alone, whoever it shares the rows with."""

from __future__ import annotations

import concurrent.futures
import threading
import time

import jax
import numpy as np
import pytest
from cascade_fakes import Asked, Scripted, make_model

from lacy_jax.cascade import FactTablePartner, Partner, Prompt, engine, generate
from lacy_jax.cascade.jobs import Job, calling, encode_prompt
from lacy_jax.errors import LacyError, PartnerError
from lacy_jax.serving import scoring
from lacy_jax.serving.scheduler import Scheduler, seconds_between_updates
from lacy_jax.serving.service import Service, Settings
from lacy_jax.serving.tickets import Busy, ShuttingDown, Ticket

NEW = 48
GATE = "call_prob"


class Waiter:
    """Waits for the end of a text; keeps what was told on the way."""

    def __init__(self):
        self.updates, self._over = [], threading.Event()

    def __call__(self, update):
        self.updates.append(update)
        if update.over:
            self._over.set()

    def wait(self, seconds=60.0):
        assert self._over.wait(seconds)
        return self.updates[-1]


@pytest.fixture
def serve(model, tokenizer):
    """Makes schedulers, and closes them."""
    made = []

    def make(**options):
        made.append(Scheduler(model, tokenizer, **{"rows": 4, **options}))
        return made[-1]

    yield make
    for scheduler in made:
        scheduler.close(0.0)


@pytest.fixture(scope="module")
def make_ticket(model, tokenizer):
    def make(text, partner, *, budget=0.3, gate=GATE, seed=0, new=NEW, sampling=(), **options):
        prompt = Prompt(text, text)
        ids = encode_prompt(prompt, tokenizer, model)
        limit = min(len(ids) + new, model.cfg.max_seq_len)
        key = jax.random.fold_in(jax.random.key(seed), 0)
        call = calling(tokenizer, partner, gate, budget)
        waiter = Waiter()
        ticket = Ticket(Job(prompt, ids, limit, key, call, *sampling, new_tokens=new), waiter, **options)
        return ticket, waiter

    return make


@pytest.fixture(scope="module")
def asked(world):
    """(prompt, options) of seven texts, each unlike the others: budgets, gates, seeds, lengths, ways to sample."""
    prompts = [world.prompt(i) for i in range(5)] + ["She", "In 1984 the Žižkov 東京 " * 2]
    return [
        (prompts[0], {}),
        (prompts[1], {"budget": 0.1}),
        (prompts[2], {"sampling": (0.8, 0, 1.0), "seed": 3}),
        (prompts[3], {"sampling": (0.8, 7, 0.9), "seed": 4, "budget": 0.2}),
        (prompts[4], {"gate": "entropy"}),
        (prompts[5], {"gate": "random", "seed": 5, "new": 20}),
        (prompts[6], {"budget": 0.0, "sampling": (1.3, 0, 0.5)}),
    ]


def alone(model, tokenizer, partner, text, *, budget=0.3, gate=GATE, seed=0, new=NEW, sampling=(0.0, 0, 1.0)):
    temperature, top_k, top_p = sampling
    (found,) = generate(
        model, tokenizer, [Prompt(text, text)], partner, budget=budget, gate=gate, seed=seed, max_new_tokens=new,
        temperature=temperature, top_k=top_k, top_p=top_p, progress=False,
    )  # fmt: skip
    return found


def same(found, wanted):
    """Equal in all; gate scores to the rounding of sums of other lengths."""
    a, b = found.to_json(), wanted.to_json()
    np.testing.assert_allclose(
        np.array(a.pop("gate_scores"), float), np.array(b.pop("gate_scores"), float), atol=1e-4
    )
    assert a == b


@pytest.fixture(scope="module")
def wanted(model, tokenizer, world, asked):
    partner = FactTablePartner(world)
    return [alone(model, tokenizer, partner, text, **options) for text, options in asked]


@pytest.mark.parametrize("how", ["one after the other", "all at once", "staggered"])
def test_each_text_is_that_of_generate_alone(serve, make_ticket, world, asked, wanted, how):
    scheduler, partner = serve(), FactTablePartner(world)
    tickets = [make_ticket(text, partner, **options) for text, options in asked]
    if how == "all at once":
        scheduler.submit([ticket for ticket, _ in tickets])
    for ticket, waiter in tickets if how != "all at once" else ():
        scheduler.submit([ticket])
        if how == "one after the other":
            waiter.wait()
        time.sleep(0.01)
    for (_, waiter), text in zip(tickets, wanted, strict=True):
        same(waiter.wait().generation, text)
    assert sum(text.calls for text in wanted) > 10
    assert scheduler.pending == 0


def test_a_partner_that_is_asked_by_query_gets_those_of_generate(make_ticket, tokenizer, world):
    headed, served, wanted = make_model(tokenizer.vocab_size, query_dim=8), Asked(" Oslo"), Asked(" Oslo")
    text = alone(headed, tokenizer, wanted, world.prompt(1))
    scheduler = Scheduler(headed, tokenizer, rows=2)
    ticket, waiter = make_ticket(world.prompt(1), served)
    scheduler.submit([ticket])
    same(waiter.wait().generation, text)
    scheduler.close(0.0)
    assert served.asked == wanted.asked
    np.testing.assert_allclose(served.queries, wanted.queries, atol=1e-4)


def test_what_is_told_on_the_way_is_the_beginning_of_the_text(serve, make_ticket, world, monkeypatch):
    monkeypatch.setattr("lacy_jax.serving.scheduler.TELL_S", 0.0)
    scheduler = serve()
    ticket, waiter = make_ticket(world.prompt(7), FactTablePartner(world), streams=True)
    scheduler.submit([ticket])
    whole = waiter.wait().generation
    parts = [update.text for update in waiter.updates]
    assert len(parts) > 3
    assert all(whole.text.startswith(part) for part in parts)
    assert parts == sorted(parts, key=len)


def test_the_more_texts_are_written_the_rarer_is_each_told_of():
    one, sixteen, hundred = map(seconds_between_updates, (1, 16, 100))
    assert sixteen == pytest.approx(16 * one)
    assert sixteen < hundred == seconds_between_updates(1000)


@pytest.mark.parametrize("stops", [(), ("\x00",)])
def test_between_two_updates_a_text_is_not_told_of(serve, make_ticket, world, monkeypatch, stops):
    monkeypatch.setattr("lacy_jax.serving.scheduler.seconds_between_updates", lambda texts: 1000.0)
    scheduler = serve()
    ticket, waiter = make_ticket(world.prompt(7), FactTablePartner(world), streams=True, stops=stops)
    scheduler.submit([ticket])
    whole = waiter.wait().generation
    first, last = waiter.updates  # Its first tokens at once, and its end.
    assert 0 < len(first.tokens) < len(last.tokens) == len(whole.tokens)


def test_a_stop_string_ends_a_text_before_it(serve, make_ticket, model, tokenizer, world):
    partner = FactTablePartner(world)
    full = alone(model, tokenizer, partner, world.prompt(2))
    stop = full.text[20:24]
    cut = full.text.index(stop)
    ticket, waiter = make_ticket(world.prompt(2), partner, stops=("\x00", stop), streams=True)
    serve_one = serve()
    serve_one.submit([ticket])
    last = waiter.wait()
    assert (last.generation.text, last.generation.stopped, last.stop) == (full.text[:cut], "stop", stop)
    assert last.generation.tokens == full.tokens[: len(last.generation.tokens)]
    # The fewest tokens that hold the text.
    assert len(tokenizer.decode(last.generation.tokens[:-1])) < cut
    assert all(full.text[:cut].startswith(update.text) for update in waiter.updates)


class Stuck(Partner):
    """Answers about texts with a word in them when it is told to."""

    name, parallel = "stuck", True

    def __init__(self, word):
        self.word, self.free, self.asked = word, threading.Event(), threading.Event()

    def complete(self, texts):
        if self.word in texts[0]:
            self.asked.set()
            assert self.free.wait(60)
        return [" so"] * len(texts)


def test_a_slow_partner_holds_up_its_own_text_alone(serve, make_ticket, model, tokenizer):
    slow = Stuck("Zoë")
    scheduler = serve(rows=2)
    held, held_waiter = make_ticket("Zoë was", slow)
    scheduler.submit([held])
    assert slow.asked.wait(60)
    for text in ("He was", "She was", "They were"):  # All in the one row that is left.
        ticket, waiter = make_ticket(text, slow)
        scheduler.submit([ticket])
        same(waiter.wait().generation, alone(model, tokenizer, Scripted(" so"), text))
    assert not held_waiter.updates
    slow.free.set()
    same(held_waiter.wait().generation, alone(model, tokenizer, Scripted(" so"), "Zoë was"))


def test_a_cancelled_text_frees_its_row_although_its_partner_never_answers(serve, make_ticket):
    slow = Stuck("Zoë")
    scheduler = serve(rows=1)
    held, held_waiter = make_ticket("Zoë was", slow)
    behind, behind_waiter = make_ticket("He was", slow)
    scheduler.submit([held])
    assert slow.asked.wait(60)
    scheduler.submit([behind])
    scheduler.cancel(held)
    assert behind_waiter.wait().generation.text
    slow.free.set()
    assert not held_waiter.updates
    assert scheduler.pending == 0


def test_a_partner_that_fails_is_given_up_for_the_text_and_asked_again_for_the_next(
    serve, make_ticket, model, tokenizer
):
    error = PartnerError("partner scripted: down")
    scheduler = serve()
    partner = Scripted(error, error, error, " so")
    for answers in ([error], [" so"]):
        ticket, waiter = make_ticket("He was", partner)
        scheduler.submit([ticket])
        found = waiter.wait().generation
        same(found, alone(model, tokenizer, Scripted(*answers), "He was"))
        assert found.partner_failures == (3 if answers == [error] else 0)
        partner.answers = (" so",)


def test_on_failure_stop_is_an_error_of_the_text(serve, make_ticket):
    ticket, waiter = make_ticket(
        "He was", Scripted(PartnerError("partner scripted: down")), stop_on_failure=True
    )
    scheduler = serve()
    scheduler.submit([ticket])
    assert str(waiter.wait().error) == "partner scripted: down"
    assert scheduler.pending == 0


def test_a_full_queue_says_when_to_come_again(serve, make_ticket):
    slow = Stuck("Zoë")
    scheduler = serve(rows=1, queue_limit=2)
    tickets = [make_ticket("Zoë was", slow) for _ in range(4)]
    scheduler.submit([ticket for ticket, _ in tickets[:2]])
    with pytest.raises(Busy, match="no room for 2 more") as busy:
        scheduler.submit([ticket for ticket, _ in tickets[2:]])
    assert busy.value.retry_after >= 1
    scheduler.submit([tickets[2][0]])
    slow.free.set()
    for _, waiter in tickets[:3]:
        assert waiter.wait().generation.text


def test_a_text_whose_time_is_over_ends_with_what_there_is(serve, make_ticket):
    slow = Stuck("Zoë")
    scheduler = serve(rows=1)
    first, first_waiter = make_ticket("Zoë was", slow, deadline=time.monotonic() + 0.5)
    second, second_waiter = make_ticket("Zoë is", slow, deadline=time.monotonic() + 0.1)
    scheduler.submit([first, second])
    assert first_waiter.wait().generation.stopped == "time"
    assert isinstance(second_waiter.wait().error, Busy)
    slow.free.set()


def test_shutting_down_finishes_what_it_can_and_hands_back_the_rest(serve, make_ticket, world):
    slow = Stuck("Zoë")
    scheduler = serve(rows=2)
    quick, quick_waiter = make_ticket("He was", slow)
    held, held_waiter = make_ticket("Zoë was", slow)
    queued, queued_waiter = make_ticket("Zoë is", slow)
    scheduler.submit([held, quick])
    assert slow.asked.wait(60)
    scheduler.submit([queued])
    scheduler.close(1.0)
    with pytest.raises(ShuttingDown):
        scheduler.submit([make_ticket("He was", slow)[0]])
    assert quick_waiter.wait().generation.stopped in ("eos", "length")
    assert held_waiter.wait().generation.stopped == "shutdown"
    ending = queued_waiter.wait()
    assert isinstance(ending.error, ShuttingDown) or ending.generation.stopped == "shutdown"
    slow.free.set()


@pytest.mark.parametrize(("seconds", "waits"), [(0.002, True), (0.3, False)])
def test_a_partner_quicker_than_a_step_is_waited_for(serve, make_ticket, world, monkeypatch, seconds, waits):
    """Or its texts would stand still for all the steps that the others are given."""
    scheduler, write, blocked = serve(), Scheduler._write, []

    def watched(self):
        blocked.append(sum(row.asked for row in self._writer.rows.values()))
        write(self)
        self._step_s = 0.1

    class Slow(FactTablePartner):
        def complete(self, texts):
            time.sleep(seconds)
            return super().complete(texts)

    monkeypatch.setattr(Scheduler, "_write", watched)
    partner = Slow(world)
    first, waiter = make_ticket(world.prompt(0), partner)
    scheduler.submit([first])
    assert waiter.wait().generation.calls  # How long the partner takes is known.
    blocked.clear()
    other, other_waiter = make_ticket(world.prompt(2), None, budget=0.0)
    again, waiter = make_ticket(world.prompt(1), partner)
    scheduler.submit([other, again])
    assert waiter.wait().generation.calls
    assert other_waiter.wait().generation
    assert any(blocked) is not waits


def test_a_fault_of_ours_ends_the_texts_at_hand_and_no_others(serve, make_ticket, monkeypatch, capsys):
    scheduler = serve()
    real = scheduler._writer.advance

    def broken(*_, **__):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(scheduler._writer, "advance", broken)
    ticket, waiter = make_ticket("He was", None)
    scheduler.submit([ticket])
    assert isinstance(waiter.wait().error, LacyError)
    assert real != scheduler._writer.advance
    ticket, waiter = make_ticket("He was", None)
    scheduler.submit([ticket])
    assert waiter.wait().generation.text
    assert "a bug" in capsys.readouterr().err


def test_the_end_waits_for_what_is_being_scored(model, monkeypatch):
    """A process that ends while a thread of it is inside XLA aborts."""
    begun, score = threading.Event(), scoring._score

    def slow(*args):
        begun.set()
        time.sleep(0.5)
        return score(*args)

    monkeypatch.setattr(scoring, "_score", slow)
    scorer = scoring.Scorer(model)
    found = scorer.score(np.array([1, 5, 7]))
    assert begun.wait(60)
    scorer.close()
    assert found.done()


def test_the_end_waits_for_what_is_being_compiled_and_no_longer(model, tokenizer, monkeypatch):
    begun, compiled = threading.Event(), []

    def slow():
        begun.set()
        time.sleep(0.5)
        compiled.append(True)

    rest = concurrent.futures.Future()
    rest.set_result([slow, slow])
    monkeypatch.setattr(Scheduler, "compile_ahead", lambda self: rest)
    service = Service(model, tokenizer, None, Settings("m", "entropy", 0.0))
    warming = threading.Thread(target=service.warm_up)
    warming.start()
    assert begun.wait(60)
    service.close()
    assert compiled == [True]
    warming.join(60)
    assert compiled == [True]


def test_what_texts_need_is_compiled_ahead_of_them(serve, make_ticket, monkeypatch, caplog):
    """First what a text alone needs, then the rest: groups of any size, whose prompts are of any length."""

    def compiled():
        finished = [message for message in caplog.messages if "Finished XLA compilation" in message]
        return [m for m in finished if any(f"({name})" in m for name in ("advance", "feed_row", "feed"))]

    def write(*texts):
        made = [make_ticket(text, None, new=4) for text in texts]
        scheduler.submit([ticket for ticket, _ in made])
        assert all(waiter.wait().generation.text for _, waiter in made)

    monkeypatch.setattr(engine, "CHUNKS", (8, 12))
    scheduler = serve(rows=5)  # No other test has so many, so nothing is compiled yet.
    jax.config.update("jax_log_compiles", True)
    try:
        rest = scheduler.compile_ahead().result(60)
        assert len(compiled()) == 2
        write("She")
        assert len(compiled()) == 2
        for compile_ in rest:
            compile_()
        assert len(compiled()) == 2 + len(rest)
        for length in (2, 5, 9, 30):
            for longer in range(6):
                write(*["x" * (length if number < longer else 3) for number in range(5)])
                write(*["y" * length] * max(longer, 1))
        assert len(compiled()) == 2 + len(rest)
    finally:
        jax.config.update("jax_log_compiles", False)
