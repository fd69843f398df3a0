"""What a server counts, for Prometheus."""

from __future__ import annotations

import prometheus_client as prometheus

from lacy_jax.cascade.texts import Generation


class Metrics:
    """The counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = prometheus.CollectorRegistry()

        def counter(name: str, about: str, *labels: str) -> prometheus.Counter:
            return prometheus.Counter(f"lacy_{name}", about, labels, registry=registry)

        def gauge(name: str, about: str) -> prometheus.Gauge:
            return prometheus.Gauge(f"lacy_{name}", about, registry=registry)

        self.requests = counter("requests", "HTTP requests by path and status", "path", "status")
        self.tokens = counter("tokens", "Tokens written, by who wrote them", "origin")
        self.prompt_tokens = counter("prompt_tokens", "Tokens of prompts that were read")
        self.texts = counter("texts", "Texts written to their end, by why they ended", "stopped")
        self.cancelled = counter("cancelled", "Texts whose client went away")
        self.calls = counter("calls", "Calls of the partner, by outcome", "outcome")
        self.missed = counter("budget_missed", "Texts whose call budget was not met")
        self.partner_tokens = counter(
            "partner_tokens", "Tokens partners read and wrote, theirs included, where they say"
        )
        self.partner_seconds = prometheus.Histogram(
            "lacy_partner_seconds", "Seconds of an exchange with the partner", registry=registry
        )
        self.waiting = gauge("queue", "Texts that wait for a row")
        self.rows = gauge("rows", "Texts being written")
        self.budget = gauge("realised_budget", "Share of all tokens so far that the partner wrote")
        self._written = {"model": 0, "partner": 0}

    def text_ended(self, text: Generation) -> None:
        """Count a text at its end."""
        for origin in self._written:
            count = text.origins.count(origin)
            self._written[origin] += count
            self.tokens.labels(origin).inc(count)
        self.texts.labels(text.stopped).inc()
        self.missed.inc(not text.budget_met)
        self.budget.set(self._written["partner"] / max(sum(self._written.values()), 1))

    def page(self) -> bytes:
        """In Prometheus' text format."""
        return prometheus.generate_latest(self.registry)
