"""A trained model for lm-evaluation-harness, registered as `lacy` (optional: pip install lacy_jax[nlu]).

CALL is not part of the vocabulary here: likelihoods are those of p_\\CALL = softmax(z) over the base vocabulary
(nll = lse_V - z), and the model writes texts alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text

from lacy_jax.cascade import Prompt, generate
from lacy_jax.errors import ConfigError
from lacy_jax.models import Transformer
from lacy_jax.objectives.scoring import score_documents, scorer
from lacy_jax.tokenizer import Tokenizer

_NEW_TOKENS = 256
"""Longest text if the task sets no limit, as for the harness's own `hf` model."""
_ONLY_SAMPLING = frozenset(["min_p", "typical_p"])


@register_model("lacy")
class LacyLM(TemplateLM):
    """The wrapper around a trained model.

    It encodes and splits context and continuation like the harness's own `hf` model, so that an exported folder gets the
    same scores there: the tokenizer's prefix comes first, and tokens across the boundary belong to the continuation.

    Args:
      model, tokenizer: those of a run.
      workdir: a run directory to open instead, for the harness's command line
        (`--model lacy --model_args workdir=RUN`).
      batch_size: rows scored at once.

    Raises:
      ConfigError: neither a model with its tokenizer nor a run directory was given.
    """

    def __init__(
        self,
        model: Transformer | None = None,
        tokenizer: Tokenizer | None = None,
        *,
        workdir: str = "",
        batch_size: int | str | None = 16,
        **_: Any,  # The harness passes other options, such as the device.
    ):
        super().__init__()
        if workdir:
            from lacy_jax.training.run import load_run

            run = load_run(workdir)
            model, tokenizer = run.model, run.tokenizer
        if model is None or tokenizer is None:
            raise ConfigError("harness model 'lacy': give workdir=RUN_DIR, or a model and its tokenizer")
        self.model, self.tokenizer = model, tokenizer
        self._scorer = scorer(model)
        self.batch = int(batch_size or 16) if str(batch_size or 16).isdigit() else 16

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer's name in the harness's caches."""
        return f"lacy-{self.tokenizer.hash}"

    @property
    def eot_token_id(self) -> int:
        """The id that ends a text."""
        return self.tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """The id before a text without a context."""
        return self.tokenizer.bos_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids, after the tokenizer's prefix (mostly bos) unless `add_special_tokens` is False."""
        ids = self.tokenizer.encode(string).tolist()
        return ids if add_special_tokens is False else [*self.tokenizer.prefix, *ids]

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """(log-likelihood of the continuation, whether it is the greedy one) for each (_, context ids, continuation ids).

        The beginning of a context that does not fit is cut off.
        """
        room = self.model.cfg.max_seq_len + 1  # The last token is not an input.
        documents = [np.asarray([*context, *own], np.int32)[-room:] for _, context, own in requests]
        found = []
        for (logs, firsts), request in zip(self._score(documents), requests, strict=True):
            first = max(len(logs) - len(request[2]), 0)
            found.append((float(sum(logs[first:].tolist())), bool(firsts[first:].all())))
        return found

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihoods of whole texts, scored in windows of the model's context; every token counts once."""
        documents = [
            np.concatenate([[self.tokenizer.bos_id], self.tokenizer.encode(request.args[0])]).astype(np.int32)
            for request in requests
        ]
        return [float(sum(logs.tolist())) for logs, _ in self._score(documents)]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Greedy continuations (or sampled ones, if the task sets a temperature), cut before the first stop string.

        The harness's own helper interprets the options of a request.

        Raises:
          ConfigError: a request asks for a sampling option that is not supported here.
        """
        found = [""] * len(requests)
        stops: list[list[str]] = []
        groups: dict[tuple[int, float, int, float], list[int]] = {}
        for index, request in enumerate(requests):
            options = dict(normalize_gen_kwargs(request.args[1], _NEW_TOKENS))
            stops.append([stop for stop in options.pop("until") if stop])
            groups.setdefault(_writing(options), []).append(index)
        for (tokens, temperature, top_k, top_p), members in groups.items():
            prompts = [Prompt(self._fitting(requests[i].args[0], tokens), str(i)) for i in members]
            texts = generate(
                self.model,
                self.tokenizer,
                prompts,
                max_new_tokens=tokens,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                batch_size=self.batch,
            )
            for index, text in zip(members, texts, strict=True):
                found[index] = postprocess_generated_text(text.text, stops[index], None)
        return found

    def _fitting(self, context: str, new_tokens: int) -> str:
        """The end of a context, short enough to leave room for the new tokens."""
        room = max(
            self.model.cfg.max_seq_len
            - len(self.tokenizer.prefix)
            - min(new_tokens, self.model.cfg.max_seq_len // 2),
            1,
        )
        ids = self.tokenizer.encode(context)
        return context if len(ids) <= room else self.tokenizer.decode(ids[-room:])

    def _score(self, documents: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each document: log-probabilities of its tokens after the first, and whether each is the first choice."""
        context = self.model.cfg.max_seq_len
        found = score_documents(self._scorer, documents, context, rows=self.batch, title="likelihoods")
        return [
            (np.asarray(-f.nll), np.asarray(f.top1 == ids[1:]))
            for f, ids in zip(found, documents, strict=True)
        ]


def _writing(options: dict[str, Any]) -> tuple[int, float, int, float]:
    """(most tokens, temperature, top_k, top_p) of normalised options."""
    tokens, sampled = int(options.pop("max_gen_toks")), bool(options.pop("do_sample", False))
    temperature, top_k = float(options.pop("temperature", 0.0) or 0.0), int(options.pop("top_k", 0) or 0)
    top_p = float(options.pop("top_p", 1.0) or 1.0)
    for name, value in options.items():
        if value not in (None, False, 0, 1) and (sampled or name not in _ONLY_SAMPLING):
            raise ConfigError(f"harness model 'lacy': the task's option {name} = {value!r} is not supported")
    return (tokens, temperature, top_k, top_p) if sampled else (tokens, 0.0, 0, 1.0)
