"""One served cascade: a model, its tokenizer and its partner; turns requests into texts to write or score."""

from __future__ import annotations

import dataclasses
import secrets
import threading
import time
from collections.abc import Callable, Sequence

import jax
import jinja2
import numpy as np

from lacy_jax.cascade.calibrated_gate import CalibratedGate
from lacy_jax.cascade.jobs import Calling, Job, calling, introduce
from lacy_jax.cascade.partners.base import Partner
from lacy_jax.cascade.texts import Prompt
from lacy_jax.errors import ConfigError, DataError
from lacy_jax.models import Transformer
from lacy_jax.objectives.gates import GATES
from lacy_jax.serving.metrics import Metrics
from lacy_jax.serving.requests import EXTENSION, Asked, BadRequest, Defaults
from lacy_jax.serving.scheduler import Scheduler
from lacy_jax.serving.scoring import MOST, Scorer
from lacy_jax.serving.tickets import Busy, ShuttingDown, Ticket, Update
from lacy_jax.tokenizer import ChatTemplate, Tokenizer

PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}{% if not loop.last %}\n\n{% endif %}{% endfor %}"
)
"""Chat for a model without turns: the messages become paragraphs, and the answer continues the last one."""
_PLAIN = jinja2.Template(PLAIN_TEMPLATE)


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a cascade is served.

    Attributes:
      name: the model's name for clients. gate, budget: if a request names none. defaults: for its other fields.
      gates: the gates that the page offers.
      rows: texts written side by side. queue: texts that may wait. seconds: the longest a text may take.
      stop_on_failure: a partner's failure is an error of the request; else the model goes on alone.
      created: when the model was made, in seconds since 1970.
    """

    name: str
    gate: str
    budget: float
    defaults: Defaults = dataclasses.field(default_factory=Defaults)
    gates: tuple[str, ...] = ()
    rows: int = 16
    queue: int = 64
    seconds: float = 600.0
    stop_on_failure: bool = False
    created: int = 0


@dataclasses.dataclass(frozen=True)
class Text:
    """One text that was asked for.

    Attributes:
      index: of its choice in the answer. prompt: as text.
      shown: number of prompt tokens that are part of the text if it is echoed.
    """

    index: int
    prompt: str
    job: Job
    shown: int
    seed: int


_QUIET_S = 3.0
"""Between two looks whether nobody asks for anything."""


Fitted = Callable[[str], tuple[str | CalibratedGate, np.ndarray | None]]
"""Gate name -> (the gate, its scores on held-out text)."""


class Service:
    """Writes and scores texts on request."""

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        partner: Partner | None,
        settings: Settings,
        fitted: Fitted = lambda gate: (gate, None),
        template: ChatTemplate | None = None,
    ):
        self.model, self.tokenizer, self.partner, self.settings = model, tokenizer, partner, settings
        introduce(partner, model)
        self.context = model.cfg.max_seq_len
        self.metrics = Metrics()
        self.scheduler = Scheduler(
            model, tokenizer, rows=settings.rows, queue_limit=settings.queue, metrics=self.metrics
        )
        self.scorer = Scorer(model)
        self._closing, self._compiling = threading.Event(), threading.Lock()
        self._fitted = fitted
        self._callings: dict[tuple[str, bool], Calling] = {}
        self._fitting = threading.Lock()
        self.template = template
        self.calling(settings.gate, settings.budget, True)  # An impossible setting must be an error now.

    def close(self, wait_s: float = 0.0) -> None:
        """End the threads; see `Scheduler.close`."""
        self._closing.set()
        self.scheduler.close(wait_s)
        self.scorer.close()
        with self._compiling:  # A process that ends while a thread of it is inside XLA aborts.
            pass

    def warm_up(self) -> None:
        """Compile what requests will need before they wait for it: at once what a text alone needs, and the rest while
        nobody asks for anything. Returns when all is done, or at `close`.
        """
        rest = self.scheduler.compile_ahead().result()
        ids = self.tokenizer.with_prefix(self.tokenizer.encode("A"))
        calls, limit = self.calling(self.settings.gate, 0.0, False), min(len(ids) + 4, self.context)
        job = Job(Prompt("A"), ids, limit, jax.random.key(0), calls, new_tokens=4)
        over = threading.Event()
        try:
            self.scheduler.submit([Ticket(job, lambda update: over.set() if update.over else None)])
        except Busy:
            pass  # What is being written serves as well.
        except ShuttingDown:
            return
        else:
            over.wait()
            self.scorer.score(ids, MOST)  # The page asks for candidates.
        for compile_ in rest:
            while self.scheduler.pending:
                if self._closing.wait(_QUIET_S):
                    return
            with self._compiling:
                if self._closing.is_set():
                    return
                compile_()

    def chat_prompt(self, messages: Sequence[dict[str, str]]) -> str | tuple[int, ...]:
        """Turn messages into a prompt: the model's own template gives token ids; without one they become paragraphs.

        Raises:
          BadRequest: the template refuses them.
        """
        if self.template is None:
            return _PLAIN.render(messages=messages)
        try:
            return self.template.ids(messages)
        except DataError as error:
            raise BadRequest(str(error), "messages", "invalid_value") from None

    def calling(self, gate: str, budget: float, partner: bool) -> Calling:
        """A gate and a budget. A gate is calibrated when it is first asked for, which may take seconds.

        Raises:
          ConfigError: no such gate, or not with this partner. DataError: no data to fit the gate on.
        """
        name = self.settings.gate if gate == "auto" else GATES.named(gate).name
        with self._fitting:
            if (name, partner) not in self._callings:
                fitted, scores = self._fitted(name)
                asked = self.partner if partner else None
                self._callings[name, partner] = calling(self.tokenizer, asked, fitted, 0.0, scores)
            return self._callings[name, partner].at(budget)

    def texts(self, asked: Asked) -> list[Text]:
        """The texts of a request, in the order of their choices.

        Raises:
          BadRequest: another model, a prompt with invalid token ids or too long, or a gate that is not available.
        """
        names = {"", self.settings.name}
        if asked.model not in names:
            message = f"no model {asked.model!r} here, but {self.settings.name!r}"
            raise BadRequest(message, "model", "model_not_found", 404)
        count, most = len(asked.prompts) * asked.n, self.settings.rows + self.settings.queue
        if count > most:
            raise BadRequest(
                f"{count} texts at once: at most {most}", "n" if asked.n > 1 else "prompt", "invalid_value"
            )
        budget = self.settings.budget if asked.budget is None else asked.budget
        try:
            calls = self.calling(asked.gate or self.settings.gate, budget, asked.partner)
        except (ConfigError, DataError) as error:
            raise BadRequest(str(error), f"{EXTENSION}.gate", "invalid_value") from None
        seed = secrets.randbits(31) if asked.seed is None else asked.seed
        root = jax.random.key(seed if -(2**31) <= seed < 2**31 else seed % 2**32)
        found = []
        for number, prompt in enumerate(asked.prompts):
            ids, text, shown = self._read(prompt, "messages" if asked.chat else "prompt", asked.chat)
            room = 0 if asked.only_scores else 1
            if len(ids) + room > self.context:
                raise BadRequest(
                    f"the prompt has {len(ids)} tokens, and the model's context is {self.context}",
                    "messages" if asked.chat else "prompt", "context_length_exceeded",
                )  # fmt: skip
            for choice in range(asked.n):
                index = number * asked.n + choice
                job = Job(
                    Prompt(text, str(index)), ids, min(len(ids) + asked.max_tokens, self.context),
                    jax.random.fold_in(root, index), calls, asked.temperature, asked.top_k, asked.top_p, asked.max_tokens,
                    asked.endless,
                )  # fmt: skip
                found.append(Text(index, text, job, shown, seed))
            self.metrics.prompt_tokens.inc(len(ids))
        return found

    def ticket(self, asked: Asked, text: Text, tell: Callable[[Update], None]) -> Ticket:
        """The scheduler's ticket for a text."""
        return Ticket(
            text.job,
            tell,
            stops=asked.stops,
            streams=asked.stream,
            stop_on_failure=self.settings.stop_on_failure,
            deadline=time.monotonic() + self.settings.seconds,
        )

    def _read(self, prompt: str | tuple[int, ...], field: str, whole: bool) -> tuple[np.ndarray, str, int]:
        """(tokens as the model reads them, as text, how many of them were given). `whole`: ids that lack nothing.

        Token ids are read after the tokenizer's prefix, like texts: clients that get ids from /tokenize send no prefix.
        """
        tokenizer = self.tokenizer
        if isinstance(prompt, str):
            try:
                own = tokenizer.encode(prompt)
            except DataError as error:
                raise BadRequest(str(error), field, "invalid_value") from None
            return tokenizer.with_prefix(own), prompt, len(own)
        if wrong := [token for token in prompt if not 0 <= token < tokenizer.vocab_size]:
            raise BadRequest(
                f"prompt: {wrong[0]} is no token id of a text; they are 0 to {tokenizer.vocab_size - 1}",
                field, "invalid_value",
            )  # fmt: skip
        ids = np.array(prompt, np.int32)
        prefix = tokenizer.with_prefix(ids[:0])
        given = tuple(prompt[: len(prefix)]) == tuple(prefix.tolist())
        return ids if given or whole else tokenizer.with_prefix(ids), tokenizer.decode(ids), len(ids)
