"""Generated texts as HTML: who wrote what, and which stated facts are true."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from markupsafe import Markup

from lacy_jax.evaluation.world_facts import JudgedFact, JudgedText, Span


def render_text(text: JudgedText) -> Markup:
    """One text, escaped. Nothing depends on colour alone: the partner's text is boxed, and facts have a mark.

    Returns:
      The prompt in `<span class="given">`; the partner's characters in `<mark>`; stated values in
      `<span class="fact true|false">`, followed by a labelled ✓ or ✗ (not on repeats, which are not counted).
    """
    parts = [Markup('<span class="given">{}</span>').format(text.text[: text.prompt_length])]
    at = text.prompt_length
    for fact in _disjoint(text.facts, at):
        parts.append(_by_origin(text.text, at, fact.start, text.spans))
        parts.append(_fact(text, fact))
        at = fact.end
    parts.append(_by_origin(text.text, at, len(text.text), text.spans))
    return Markup("").join(parts)


def describe(text: JudgedText, judge: str = "") -> str:
    """One line under a text: "6 of 9 stated facts true by the world's table · partner wrote 21.4 % of 140 tokens"."""
    counted = text.counted
    parts = []
    if counted or text.facts:
        by = f" by {judge}" if judge else ""
        parts.append(f"{sum(fact.true for fact in counted)} of {len(counted)} stated facts true{by}")
    else:
        parts.append(f"nothing stated that {judge} could verify" if judge else "not verified")
    if text.tokens:
        share = 100 * text.partner_tokens / text.tokens
        parts.append(
            f"partner wrote {share:.1f} % of {text.tokens} tokens"
            if share
            else f"{text.tokens} tokens, no partner"
        )
    if not text.budget_met:
        parts.append("call budget not met")
    if text.partner_failures:
        parts.append(f"{text.partner_failures} calls failed")
    return " · ".join(parts)


def _fact(text: JudgedText, fact: JudgedFact) -> Markup:
    verdict = "true" if fact.true else "false"
    title = f"{fact.attribute.replace('_', ' ')}: {verdict}{', repeated' if fact.repeat else ''}"
    written = _by_origin(text.text, max(fact.start, text.prompt_length), fact.end, text.spans)
    value = Markup('<span class="fact {}" title="{}">{}</span>').format(verdict, title, written)
    if fact.repeat:
        return value
    tick = Markup('<span class="tick {}" role="img" aria-label="({})">{}</span>')
    return value + tick.format(verdict, verdict, "✓" if fact.true else "✗")


def _by_origin(text: str, start: int, end: int, spans: Sequence[Span]) -> Markup:
    """Characters [start, end), with the partner's marked."""
    parts, at = [], start
    for first, last, who in spans:
        left, right = max(first, at), min(last, end)
        if who == "partner" and left < right:
            written = text[left:right]
            bare = written.lstrip()
            # The space before a word is never boxed, even if a fact begins after it.
            begin = left + len(written) - len(bare) if bare or right < last else left
            parts.append(Markup("{}").format(text[at:begin]))
            if begin < right:
                parts.append(
                    Markup('<mark title="written by the partner">{}</mark>').format(text[begin:right])
                )
            at = right
    parts.append(Markup("{}").format(text[at:end]))
    return Markup("").join(parts)


def _disjoint(facts: Iterable[JudgedFact], start: int) -> list[JudgedFact]:
    """Facts in order, without those that overlap an earlier one (a statement may be read in two ways)."""
    kept: list[JudgedFact] = []
    for fact in sorted(facts, key=lambda f: (f.start, f.end)):
        if fact.end > start and fact.start >= (kept[-1].end if kept else 0):
            kept.append(fact)
    return kept
