"""Batched generation with a partner: the host's side of decoding.

The device writes (`engine.advance`) until rows call; the host then asks the partner for all waiting rows at
once, turns its text into tokens and hands them back. A text depends on the model, the prompt, its place in the list
of prompts (sampling), the partner and the options, but not on the batch size or on the texts beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lacy_jax.cascade.calibrated_gate import CalibratedGate
from lacy_jax.cascade.exchange import Standing, ask
from lacy_jax.cascade.jobs import Job, calling, check_sampling, encode_prompt, introduce
from lacy_jax.cascade.partners.base import Partner
from lacy_jax.cascade.texts import Generation, Prompt
from lacy_jax.cascade.writer import Writer, bucket
from lacy_jax.default_config import ON_PARTNER_FAILURE
from lacy_jax.errors import ConfigError, PartnerError
from lacy_jax.models import Transformer
from lacy_jax.progress import Progress, Silent
from lacy_jax.tokenizer import Tokenizer

WAITING_SHARE = 0.5
"""The partner is asked once this share of the unfinished rows waits: few exchanges against few idle rows."""
STEPS_PER_CALL = 64
"""Steps on the device before the host looks (progress, Ctrl-C)."""


class GenerationStopped(PartnerError):
    """The partner failed and `on_partner_failure` is "stop".

    Attributes:
      generations: the texts so far, unfinished ones with `stopped` = "partner"; nothing is lost.
    """

    def __init__(self, message: str, generations: list[Generation]):
        super().__init__(message)
        self.generations = generations


def generate(
    model: Transformer,
    tokenizer: Tokenizer,
    prompts: Sequence[str | Prompt],
    partner: Partner | None = None,
    *,
    gate: str | CalibratedGate = "call_margin",
    budget: float = 0.22,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = 16,
    calibration_scores: np.ndarray | None = None,
    tokens_per_call: float | None = None,
    on_partner_failure: str = "continue",
    progress: bool = True,
    done: Sequence[Generation] = (),
    standing: Standing | None = None,
    keep: Callable[[list[Generation], Standing], None] | None = None,
) -> list[Generation]:
    """Write one text per prompt.

    Args:
      model, tokenizer: of a trained run.
      prompts: texts to go on from.
      partner: who is called; None = the model alone.
      gate: a name in `GATES` ("auto": for a model trained to call; "oracle": for a partner that holds facts), or a
        fitted `CalibratedGate`.
      budget: call budget, the share of generated tokens the partner writes, in [0, 1]; `budget.py` has the
        rules.
      max_new_tokens: longest continuation; shorter where the model's context ends.
      temperature: 0 = greedy. top_k: sample only from the k most likely; 0 = off. top_p: and of those only from the
        fewest that hold this share of the probability; 1 = off.
      seed: for sampling and for the gate "random".
      batch_size: texts written side by side.
      calibration_scores: `gates.calibration_scores` of the same model and gate; without them the first
        decisions of every text are made on the text's own few scores.
      tokens_per_call: typical tokens of a call; default: measured on the partner's typical texts, else 3.
      on_partner_failure: "continue" (the model goes on alone, recorded) or "stop".
      progress: show progress on stderr.
      done: texts of the first prompts from an earlier call with the same arguments; they are not written again.
        standing: the partner's standing after them.
      keep: called with the texts of each batch as it ends and the partner's standing then, so that nothing is lost when
        the job is stopped.

    Returns:
      Generations in the order of the prompts.

    Raises:
      ConfigError: an option out of range, or a partner that asks for a query head. DataError: a prompt longer than the context, named.
      GenerationStopped: the partner failed and `on_partner_failure` is "stop"; carries the texts so far.
    """
    if max_new_tokens < 1:
        raise ConfigError(f"generate.max_new_tokens = {max_new_tokens}: must be at least 1")
    if batch_size < 1:
        raise ConfigError(f"generate.batch_size = {batch_size}: must be at least 1")
    check_sampling(temperature, top_k, top_p)
    ON_PARTNER_FAILURE.named(on_partner_failure)
    if tokenizer.vocab_size != model.cfg.vocab_size:
        raise ConfigError(
            f"tokenizer has {tokenizer.vocab_size} pieces, the model {model.cfg.vocab_size}: use the tokenizer of the run"
        )
    introduce(partner, model)
    call = calling(tokenizer, partner, gate, budget, calibration_scores, tokens_per_call)
    cases = [p if isinstance(p, Prompt) else Prompt(p, str(i)) for i, p in enumerate(prompts)]
    encoded = [encode_prompt(case, tokenizer, model) for case in cases]
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.arange(len(cases)))
    context = model.cfg.max_seq_len
    jobs = [
        Job(case, ids, min(len(ids) + max_new_tokens, context), key, call, temperature, top_k, top_p, max_new_tokens)
        for case, ids, key in zip(cases, encoded, keys, strict=True)
    ]  # fmt: skip
    size = min(batch_size, max(len(jobs), 1))
    writer = Writer(model, tokenizer, size, bucket(max((job.limit for job in jobs), default=1), context))
    if call.partner is not None:
        call.partner.expect([case.text for case in cases], max_new_tokens)
    standing = standing or Standing()
    texts = list(done)
    with Progress("generate", len(cases), "texts", initial=len(texts)) if progress else Silent() as bar:
        for start in range(len(texts), len(jobs), size):
            writer.admit(dict(enumerate(jobs[start : start + size])))
            standing, failure = _write(writer, standing, on_partner_failure == "stop", bar.update)
            new = [writer.generation(row, standing) for row in sorted(writer.rows)]
            writer.halt(list(writer.rows))
            texts += new
            if failure is not None:
                raise GenerationStopped(
                    f"{failure}; {len(texts)} of {len(cases)} texts were begun and are kept", texts
                )
            if keep is not None:
                keep(new, standing)
    return texts


def _write(
    writer: Writer, standing: Standing, stop_on_failure: bool, finished: Callable[[int], None]
) -> tuple[Standing, PartnerError | None]:
    """Write all texts to their ends. If a failure of the partner stops the job, return that failure."""
    running = reported = len(writer.rows)
    if standing.gave_up:
        _give_up(writer)
    while True:
        wait_for = max(1, int(WAITING_SHARE * running))
        writer.advance(wait_for, STEPS_PER_CALL)
        running = len(writer.running())
        finished(reported - running)
        reported = running
        if running == 0:
            return standing, None
        waiting = writer.waiting()
        if len(waiting) >= wait_for or len(waiting) == running:
            failure = _ask(writer, waiting, stop_on_failure)
            standing = standing.after(failure)
            if failure is not None and stop_on_failure:
                return standing, failure
            if standing.gave_up:
                _give_up(writer)


def _give_up(writer: Writer) -> None:
    for row in writer.rows:
        writer.give_up(row)


def _ask(writer: Writer, waiting: list[int], stop_on_failure: bool) -> PartnerError | None:
    """Ask the partner for the waiting rows at once; a failure is recorded and returned."""
    partner = writer.rows[waiting[0]].job.calling.partner
    assert partner is not None  # Without a partner the budget is 0 and nobody waits.
    questions = [writer.question(row) for row in waiting]
    queries = [query for row in waiting if (query := writer.query(row)) is not None]
    replies: list[str | None] = [None] * len(waiting)
    failure = None
    try:
        found = ask(partner, questions, np.stack(queries) if queries else None)
        if None in found and stop_on_failure:
            raise PartnerError(
                f"partner {partner.name}: no answer to {found.count(None)} of {len(found)} texts"
            )
        replies = found
    except PartnerError as error:
        failure = error
    for row, reply in zip(waiting, replies, strict=True):
        writer.answer(row, reply)
    return failure
