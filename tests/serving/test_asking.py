"""Partners are asked in threads of their own."""

from __future__ import annotations

import queue
import threading
import time

import pytest
from cascade_fakes import Scripted

from lacy_jax.serving import asking


@pytest.mark.parametrize("slow", [False, True])
def test_the_end_waits_for_an_exchange_but_not_for_a_slow_partner(monkeypatch, slow):
    begun, go, answers = threading.Event(), threading.Event(), []

    class Thinking(Scripted):
        def complete(self, texts):
            begun.set()
            go.wait(60)
            return super().complete(texts)

    monkeypatch.setattr(asking, "_LAST_EXCHANGE_S", 0.2 if slow else 60.0)
    asker = asking.Asker(Thinking(" x"), 1, lambda replies, *_: answers.extend(replies))
    asker.ask([("a", "He was", None)])
    assert begun.wait(60)
    if not slow:
        threading.Timer(0.3, go.set).start()
    asker.close()
    assert answers == ([] if slow else [("a", " x")])
    go.set()


@pytest.mark.parametrize("parallel", [False, True])
def test_texts_that_are_asked_at_once_are_one_exchange_or_one_each(parallel):
    given, replies = [], queue.SimpleQueue()

    class Counting(Scripted):
        def complete(self, texts):
            given.append(len(texts))
            return super().complete(texts)

    partner = Counting(" x")
    partner.parallel = parallel
    asker = asking.Asker(partner, 2, lambda found, *_: [replies.put(one) for one in found])
    asker.ask([(number, "He was", None) for number in range(3)])
    assert {replies.get(timeout=60) for _ in range(3)} == {(number, " x") for number in range(3)}
    assert given == ([1, 1, 1] if parallel else [3])
    asker.close()


def test_one_slow_exchange_says_nothing_about_the_next():
    answered, pauses = threading.Semaphore(0), iter([0.3, 0.0, 0.0, 0.3, 0.0])

    class Unsteady(Scripted):
        def complete(self, texts):
            time.sleep(next(pauses))
            return super().complete(texts)

    asker = asking.Asker(Unsteady(" x"), 1, lambda *_: answered.release())
    found = []
    for _ in range(5):
        asker.ask([("a", "He was", None)])
        assert answered.acquire(timeout=60)
        found.append(asker.seconds < 0.2)
    assert found == [False, True, True, True, True]
    asker.close()
