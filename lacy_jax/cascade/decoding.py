"""Batched generation with a partner: the host's side of decoding.

The device writes (`engine.advance`) until rows call; the host then asks the partner for all waiting rows at
once, turns its text into tokens and hands them back. What a text becomes depends on the model, the prompt,
its place in the list of prompts (sampling), the partner and the options: not on the batch size or on the
texts beside it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lacy_jax.cascade import engine
from lacy_jax.cascade.boundary import Boundary
from lacy_jax.cascade.budget import BudgetController, make_controller
from lacy_jax.cascade.calibrated_gate import CalibratedGate, gate_weights
from lacy_jax.cascade.partners.base import Partner, calls_anywhere
from lacy_jax.cascade.summary import generation_of
from lacy_jax.cascade.texts import Generation, Prompt
from lacy_jax.default_config import ON_PARTNER_FAILURE
from lacy_jax.errors import ConfigError, PartnerError
from lacy_jax.models import Transformer, check_fits_context, init_cache
from lacy_jax.objectives.gates import GATES, resolve_gate
from lacy_jax.progress import Progress, Silent
from lacy_jax.tokenizer import Tokenizer

MAX_CALL_TOKENS = 32
"""The most tokens one call may add, whatever the budget: a fixed shape, and a bound on a rambling partner."""
WAITING_SHARE = 0.75
"""The partner is asked once this share of the unfinished rows waits: few exchanges against few idle rows."""
STEPS_PER_CALL = 64
"""Steps on the device before the host looks (progress, Ctrl-C)."""
GIVE_UP_AFTER = 3
"""Exchanges that fail in a row before the partner is not asked again."""
DEFAULT_TOKENS_PER_CALL = 3.0


class GenerationStopped(PartnerError):
    """The partner failed and `on_partner_failure` is "stop".

    Attributes:
      generations: the texts so far, unfinished ones with `stopped` = "partner"; nothing is lost.
    """

    def __init__(self, message: str, generations: list[Generation]):
        super().__init__(message)
        self.generations = generations


@dataclasses.dataclass(frozen=True)
class Standing:
    """How the partner has done so far: what one batch of texts passes on to the next.

    Attributes:
      failed_in_a_row: exchanges that failed since one did not. gave_up: why it is not asked any more, "" if it is.
    """

    failed_in_a_row: int = 0
    gave_up: str = ""


@dataclasses.dataclass
class _Batch:
    """One batch on its way: device state, and what only the host knows about each row."""

    cache: Any
    rows: engine.Rows
    fixed: engine.Fixed
    prompts: list[Prompt]
    calls: list[list[tuple[int, int]]]  # Per row: (first token, tokens) of each call.
    failures: list[int]
    silences: list[int]  # Calls the partner answered with nothing.
    unfit: list[int]  # Calls of whose answer not one character fitted into the budget.


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
      gate: a name of `GATES` ("auto": of a model trained to call; "oracle": for a partner that holds facts), or a
        fitted `CalibratedGate`.
      budget: call budget, the share of generated tokens the partner writes, in [0, 1]; `budget.py` has the
        rules.
      max_new_tokens: longest continuation; shorter where the model's context ends.
      temperature: 0 = greedy. top_k: sample from the k most likely only; 0 = off.
      seed: of sampling and of the gate "random".
      batch_size: texts written side by side.
      calibration_scores: `gates.calibration_scores` of the same model and gate; without them the first
        decisions of every text are made on the text's own few scores.
      tokens_per_call: typical tokens of a call; default: measured on the partner's typical texts, else 3.
      on_partner_failure: "continue" (the model goes on alone, recorded) or "stop".
      progress: show progress on stderr.
      done: texts of the first prompts, written by an earlier call with the same arguments: they are not written again.
        standing: the partner's after them.
      keep: given the texts of each batch as it ends, and the partner's standing then, so that nothing is lost when the
        job is stopped.

    Returns:
      Generations in the order of the prompts.

    Raises:
      ConfigError: an option out of range. DataError: a prompt longer than the context, named.
      GenerationStopped: the partner failed and was to stop the job; carries what is written so far.
    """
    _check(max_new_tokens, temperature, top_k, batch_size, on_partner_failure, tokenizer, model)
    name = "calibrated" if isinstance(gate, CalibratedGate) else resolve_gate(gate, uses_call=True)
    oracle = "facts" in GATES[name].needs
    partner = partner.only_facts() if oracle and partner is not None else partner
    weights = gate_weights(name if isinstance(gate, str) else gate)
    cases = [p if isinstance(p, Prompt) else Prompt(p, str(i)) for i, p in enumerate(prompts)]
    if tokens_per_call is None:
        tokens_per_call = _typical_tokens(partner, tokenizer)
    make_controller(budget, tokens_per_call)  # A budget out of range is an error even where no partner is.
    asked = 0.0 if partner is None else budget
    controller = make_controller(asked, tokens_per_call, calibration_scores)
    writer = _Writer(model, tokenizer, partner, controller, on_partner_failure, standing or Standing())
    encoded = [_encode_prompt(case, tokenizer, model) for case in cases]
    fixed = _fixed_options(writer.boundary, weights, temperature, top_k, calls_anywhere(partner))
    fixed["oracle"] = jnp.bool_(oracle)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(jnp.arange(len(cases)))
    limits = [min(len(ids) + max_new_tokens, model.cfg.max_seq_len) for ids in encoded]
    width = _bucket(max(limits, default=1), model.cfg.max_seq_len)
    size = min(batch_size, max(len(cases), 1))
    if partner is not None:
        partner.expect([case.text for case in cases], max_new_tokens)
    texts = list(done)
    with Progress("generate", len(cases), "texts", initial=len(texts)) if progress else Silent() as bar:
        for start in range(len(texts), len(cases), size):
            part = slice(start, start + size)
            batch = writer.start(cases[part], encoded[part], limits[part], keys[part], fixed, size, width)
            failure = writer.write(batch, bar.update)
            new = _finish(batch, writer, name, asked, max_new_tokens, tokens_per_call)
            texts += new
            if failure is not None:
                raise GenerationStopped(
                    f"{failure}; {len(texts)} of {len(cases)} texts were begun and are kept", texts
                )
            if keep is not None:
                keep(new, writer.standing)
    return texts


class _Writer:
    """Writes batches with one model, partner and budget."""

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        partner: Partner | None,
        controller: BudgetController,
        on_failure: str,
        standing: Standing,
    ):
        self.cfg, self.tokenizer, self.partner, self.controller = model.cfg, tokenizer, partner, controller
        self.boundary = Boundary(tokenizer)
        self._stop_on_failure = on_failure == "stop"
        self._stand(standing)
        self._model = model.for_decoding()

    def _stand(self, standing: Standing) -> None:
        self.standing = standing
        if standing.gave_up:
            self.controller = dataclasses.replace(self.controller, budget=jnp.float32(0.0))

    def start(
        self,
        prompts: list[Prompt],
        encoded: list[np.ndarray],
        limits: list[int],
        keys: jax.Array,
        options: dict[str, Any],
        size: int,
        width: int,
    ) -> _Batch:
        """Read the prompts. Rows beyond the prompts are padding that has already ended."""
        extra = size - len(prompts)
        tokens = np.zeros((size, width), np.int32)
        for row, ids in enumerate(encoded):
            tokens[row, : len(ids)] = ids
        length = np.array([len(ids) for ids in encoded] + [1] * extra, np.int32)
        cache = init_cache(self.cfg, size, width)
        stop = np.where(np.arange(size) < len(prompts), length - 1, 0)
        cache = engine.prefill(self._model, cache, tokens, np.zeros(size, int), stop)
        status = np.where(np.arange(size) < len(prompts), engine.RUNNING, engine.ENDED).astype(np.int32)
        zero = jnp.zeros(size, jnp.int32)
        rows = engine.Rows(
            tokens=jnp.asarray(tokens),
            known=jnp.asarray(length),
            fed=jnp.asarray(length - 1),
            status=jnp.asarray(status),
            candidate=zero,
            need=jnp.zeros_like(zero),
            scores=jnp.full((size, width), jnp.nan, jnp.float32),
            budget=self.controller.init(size, width),
        )
        fixed = engine.Fixed(
            prompt_length=jnp.asarray(length),
            limit=jnp.asarray(np.array(limits + [width] * extra, np.int32)),
            keys=jnp.concatenate([keys, jnp.repeat(keys[:1], extra, axis=0)]) if extra else keys,
            **options,
        )
        n = len(prompts)
        return _Batch(cache, rows, fixed, prompts, [[] for _ in range(n)], [0] * n, [0] * n, [0] * n)

    def write(self, batch: _Batch, finished: Callable[[int], None]) -> PartnerError | None:
        """Run a batch to its end, or to the partner's failure, which is returned, if that stops the job."""
        sample = bool(batch.fixed.temperature > 0)
        answers = self._no_answers(batch)
        running, reported = len(batch.prompts), 0
        while True:
            wait_for = max(1, int(WAITING_SHARE * running))
            batch.cache, batch.rows, allowance = engine.advance(
                self._model, sample, batch.cache, batch.rows, answers, batch.fixed, self.controller,
                (jnp.int32(wait_for), jnp.int32(STEPS_PER_CALL)),
            )  # fmt: skip
            status, tokens, known, allowed = jax.device_get(
                (batch.rows.status, batch.rows.tokens, batch.rows.known, allowance)
            )
            running = int(np.sum(status <= engine.WAITING))
            finished(len(batch.prompts) - running - reported)
            reported = len(batch.prompts) - running
            if running == 0:
                return None
            answers = self._no_answers(batch)
            waiting = np.flatnonzero(status == engine.WAITING)
            if waiting.size >= wait_for or waiting.size == running:
                failure = self._ask(batch, waiting, tokens, known, allowed, answers)
                if failure is not None and self._stop_on_failure:
                    return failure

    def _no_answers(self, batch: _Batch) -> tuple[np.ndarray, np.ndarray]:
        size = batch.rows.known.shape[0]
        return np.zeros((size, MAX_CALL_TOKENS), np.int32), np.full(size, -1, np.int32)

    def _ask(
        self,
        batch: _Batch,
        waiting: np.ndarray,
        tokens: np.ndarray,
        known: np.ndarray,
        allowed: np.ndarray,
        answers: tuple[np.ndarray, np.ndarray],
    ) -> PartnerError | None:
        """Ask the partner for the waiting rows and fill in `answers`; a failure is recorded and returned."""
        new, count = answers
        count[waiting] = 0
        histories = [tokens[row, : known[row]] for row in waiting]
        try:
            replies = self._call([self.tokenizer.decode(history) for history in histories])
        except PartnerError as error:
            for row in waiting:
                batch.failures[row] += 1
            failed = self.standing.failed_in_a_row + 1
            reason = f"partner given up after {GIVE_UP_AFTER} failures in a row ({error})"
            self._stand(Standing(failed, reason if failed >= GIVE_UP_AFTER else ""))
            return error
        self._stand(Standing())
        prompt_length = np.asarray(batch.fixed.prompt_length)
        for row, history, reply in zip(waiting, histories, replies, strict=True):
            if reply is None:  # This text alone has no answer: it goes on with its own token.
                batch.failures[row] += 1
                continue
            answer = self.boundary.append(history, reply)
            ids = self.boundary.fit(answer, min(int(allowed[row]), MAX_CALL_TOKENS))
            new[row, : len(ids)], count[row] = ids, len(ids)
            if len(ids):
                batch.calls[row].append((int(known[row] - prompt_length[row]), len(ids)))
            elif len(answer):
                batch.unfit[row] += 1
            else:
                batch.silences[row] += 1
        return None

    def _call(self, texts: list[str]) -> list[str | None]:
        assert self.partner is not None  # Without a partner the budget is 0 and nobody waits.
        try:
            replies = list(self.partner.complete(texts))
        except (OSError, TimeoutError) as error:
            raise PartnerError(f"partner {self.partner.name}: {error}") from error
        if len(replies) != len(texts) or not all(
            reply is None or isinstance(reply, str) for reply in replies
        ):
            raise PartnerError(
                f"partner {self.partner.name}: {len(texts)} texts in, but not as many texts out"
            )
        if None in replies and self._stop_on_failure:
            raise PartnerError(
                f"partner {self.partner.name}: no answer to {replies.count(None)} of {len(texts)} texts"
            )
        return replies


def _finish(
    batch: _Batch, writer: _Writer, gate: str, budget: float, max_new_tokens: int, tokens_per_call: float
) -> list[Generation]:
    """Generations from the final state of a batch."""
    rows = jax.device_get(batch.rows)
    start, limit = np.asarray(batch.fixed.prompt_length), np.asarray(batch.fixed.limit)
    found = []
    for row, prompt in enumerate(batch.prompts):
        stopped = {engine.ENDED: "eos", engine.FULL: "length"}.get(int(rows.status[row]), "partner")
        if stopped == "length" and limit[row] - start[row] < max_new_tokens:
            stopped = "context"
        found.append(
            generation_of(
                prompt,
                writer.tokenizer,
                tokens=rows.tokens[row, : rows.known[row]],
                prompt_length=int(start[row]),
                scores=rows.scores[row],
                calls=batch.calls[row],
                budget=budget,
                gate=gate,
                failures=batch.failures[row],
                silences=batch.silences[row],
                unfit=batch.unfit[row],
                tokens_per_call=tokens_per_call,
                gave_up=writer.standing.gave_up,
                stopped=stopped,
            )
        )
    return found


def _fixed_options(
    boundary: Boundary, weights: np.ndarray, temperature: float, top_k: int, anywhere: bool
) -> dict[str, Any]:
    tokenizer = boundary.tokenizer
    banned, ends = np.zeros((2, tokenizer.vocab_size), bool)
    ends[list(tokenizer.eos_ids)] = True
    banned[[tokenizer.bos_id, tokenizer.pad_id]] = True
    return {
        "gate": jnp.asarray(weights),
        "temperature": jnp.float32(temperature),
        "top_k": jnp.int32(top_k),
        "anywhere": jnp.bool_(anywhere),
        "banned": jnp.asarray(banned & ~ends),
        "ends": jnp.asarray(ends),
        **{
            name: jnp.asarray(getattr(boundary, name))
            for name in ("lead", "tail", "inner", "begins", "opens")
        },
    }


def _encode_prompt(prompt: Prompt, tokenizer: Tokenizer, model: Transformer) -> np.ndarray:
    ids = tokenizer.with_prefix(tokenizer.encode(prompt.text))
    check_fits_context(len(ids), model.cfg, 1, f"prompt {prompt.id!r}")
    return ids


def _typical_tokens(partner: Partner | None, tokenizer: Tokenizer) -> float:
    """Mean tokens of the partner's typical texts, where it knows some."""
    typical = [] if partner is None else partner.typical_texts()
    lengths = [len(tokenizer.encode(text, continues=True)) for text in typical]
    return max(float(np.mean(lengths)), 1.0) if lengths else DEFAULT_TOKENS_PER_CALL


def _bucket(length: int, context: int) -> int:
    """Cache slots for rows of up to `length` tokens: few sizes, so that other lengths compile nothing."""
    step = 64 if length <= 512 else 512
    return min(-(-length // step) * step, context)


def _check(
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    batch_size: int,
    on_failure: str,
    tokenizer: Tokenizer,
    model: Transformer,
) -> None:
    for name, value, low in (
        ("max_new_tokens", max_new_tokens, 1),
        ("top_k", top_k, 0),
        ("batch_size", batch_size, 1),
    ):
        if value < low:
            raise ConfigError(f"generate.{name} = {value}: must be at least {low}")
    if not 0.0 <= temperature < float("inf"):
        raise ConfigError(f"generate.temperature = {temperature}: must be 0 (greedy) or positive")
    ON_PARTNER_FAILURE.named(on_failure)
    if tokenizer.vocab_size != model.cfg.vocab_size:
        raise ConfigError(
            f"tokenizer has {tokenizer.vocab_size} pieces, the model {model.cfg.vocab_size}: use the tokenizer of the run"
        )
