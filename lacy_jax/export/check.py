"""Compares the exported folder, loaded by `transformers` as its users will do, with the model it came from."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lacy_jax.errors import DataError, LacyError
from lacy_jax.export import torture
from lacy_jax.export.extras import require
from lacy_jax.export.tokenizer_files import has_rules
from lacy_jax.models import ModelConfig, Transformer
from lacy_jax.tokenizer import CALL_PIECE, ChatTemplate, Tokenizer

TOLERANCE = 1e-4
"""Largest accepted difference of logits, as a share of the largest logit, since float32's error grows with the numbers.

SmolLM2-135M has logits of -26 to 39; there transformers' own float32 differs from its float64 by 3e-5 of the largest.
"""
_ROWS, _LENGTH = 8, 128
_MESSAGES = [
    {"role": "user", "content": "Who was Ada Byron?"},
    {"role": "assistant", "content": "She wrote programs."},
    {"role": "user", "content": "When was she born, and where?"},
]
"""A conversation that most chat templates take."""


def check_tokenizer(
    folder: pathlib.Path, tokenizer: Tokenizer, with_call: bool = True, template: str = ""
) -> dict[str, Any]:
    """Compares the ids of `AutoTokenizer` with ours on `torture.texts()` and, if there is a chat template, those of a
    conversation, and checks how it treats CALL.

    Returns:
      What was found, JSON-safe. Models with one of SentencePiece's normalisers (nmt_nfkc and the like) may differ on
      a few of the *random* texts: `tokenizers` applies its rules to whole grapheme clusters. These are counted.

    Raises:
      LacyError: ids differ; the first text is shown.
    """
    transformers = require("transformers", "lacy export --format=hf")
    with _quiet(transformers):
        theirs = transformers.AutoTokenizer.from_pretrained(str(folder))
        chat = _compare_chat(theirs, tokenizer, template) if template else {}
        theirs.split_special_tokens = (
            True  # As without a template, which needs its marks to be read as marks.
        )
        return _compare_tokenizers(theirs, tokenizer, with_call) | chat


def _compare_chat(theirs: Any, tokenizer: Tokenizer, template: str) -> dict[str, str]:
    try:
        ours = ChatTemplate(template, tokenizer).ids(_MESSAGES)
    except DataError as error:
        return {"chat template": f"not compared: {error}"}
    found = theirs.apply_chat_template(_MESSAGES, add_generation_prompt=True, return_dict=True)["input_ids"]
    _expect(tuple(found) == ours, "the chat template gives other ids", str(_MESSAGES))
    return {"chat template": f"the same {len(ours)} ids for a conversation"}


def _compare_tokenizers(theirs: Any, tokenizer: Tokenizer, with_call: bool) -> dict[str, Any]:
    ours = torture.texts()
    differing = []
    for text in ours:
        want = tokenizer.encode(text).tolist()
        if theirs(text, add_special_tokens=False)["input_ids"] != want:
            differing.append(text)
        _expect(
            theirs(text)["input_ids"] == [*tokenizer.prefix, *want] or text in differing,
            "something else is in front",
            text,
        )
        known = tokenizer.unk_id not in want  # Only unknown pieces are written differently.
        exact = not known or theirs.decode(want) == tokenizer.decode(want)
        _expect(exact, "ids decode to another text", text)
    forgiven = [t for t in differing if t not in torture.TEXTS] if has_rules(tokenizer) else []
    for text in differing:
        _expect(text in forgiven, "ids differ", text)
    if with_call:
        _check_call(theirs, tokenizer.call_id)
    return {"tokenizer": f"ids identical on {len(ours) - len(differing)} of {len(ours)} texts"}


def _check_call(theirs: Any, call: int) -> None:
    _expect(theirs.convert_tokens_to_ids(CALL_PIECE) == call, "CALL has another id", CALL_PIECE)
    _expect(theirs.decode([call]) == CALL_PIECE, "CALL does not decode to itself", CALL_PIECE)
    _expect(theirs.decode([call], skip_special_tokens=True) == "", "CALL is not special", CALL_PIECE)
    _expect(call not in theirs(f"a {CALL_PIECE}b {CALL_PIECE}")["input_ids"], "text becomes CALL", CALL_PIECE)


def _expect(holds: bool, what: str, text: str) -> None:
    if not holds:
        raise LacyError(
            f"the exported tokenizer is not ours: {what} for the text {text[:60]!r}; nothing was written"
        )


def check_logits(
    folder: pathlib.Path,
    model: Transformer,
    tokenizer: Tokenizer,
    tolerance: float = TOLERANCE,
    with_call: bool = True,
    config: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Compares the logits of `AutoModelForCausalLM` with ours in float32, including the CALL column.

    Args:
      folder: exported.
      model: ours, with the parameters that were stored.
      tokenizer: of the run.
      tolerance: see `compare`.
      with_call: False if the folder has no CALL column.
      config: see `their_logits`.

    Raises:
      LacyError: they differ, or a package is missing.
    """
    tokens = sample_tokens(tokenizer, min(model.cfg.max_seq_len, _LENGTH))
    want = their_logits(folder, tokens, config)
    got = logits(model, tokens)[..., : model.cfg.vocab_size + with_call]
    if got.shape != want.shape:
        raise LacyError(
            f"the exported model gives logits {want.shape}, ours {got.shape}; nothing was written"
        )
    found = compare(got, want, tolerance, "the exported model is not ours")
    call = "CALL included" if with_call else "without CALL"
    return {"logits": f"{differing(*found)} over {tokens.size} tokens, {call}"}


def compare(got: np.ndarray, want: np.ndarray, tolerance: float, what: str) -> tuple[float, float]:
    """(largest absolute difference, largest absolute value of `want`).

    Raises:
      LacyError: the difference is NaN or more than `tolerance` times that value; the line begins with `what`.
    """
    difference, scale = float(np.abs(got - want).max()), float(np.abs(want).max())
    if not difference <= tolerance * scale:
        raise LacyError(
            f"{what}: logits differ by up to {difference:.2e}, the largest is {scale:.3g} (tolerance {tolerance:.0e} of it); "
            "nothing was written"
        )
    return difference, scale


def differing(difference: float, scale: float) -> str:
    """The result of `compare` in words."""
    return f"max abs difference {difference:.2e} of logits up to {scale:.3g}, in float32"


def unread(source: pathlib.Path, cfg: ModelConfig) -> str:
    """The dimensions that `transformers` does not read from a GGUF file but sets to its defaults; "" for none."""
    if not source.is_file():
        return ""
    found = [name for name in ("attention_bias", "mlp_bias", "rope_scaling") if getattr(cfg, name)]
    if cfg.family == "gpt2":
        found += ["n_inner"] * (cfg.d_ff != 4 * cfg.d_model) + ["n_positions"] * (cfg.max_seq_len != 1024)
    if cfg.qk_norm and cfg.head_dim != 128:
        found.append("head_dim")
    return ", ".join(found)


def their_logits(
    source: pathlib.Path, tokens: np.ndarray, config: dict[str, Any] | None = None
) -> np.ndarray:
    """[B, T, V'] float32 logits of `transformers`' model of a folder or GGUF file; tokens int32 [B, T].

    Args:
      config: content of config.json, for a GGUF file that `transformers` does not read completely (`unread`).

    Raises:
      LacyError: a package is missing.
    """
    torch, transformers = (
        require(name, "the comparison with transformers") for name in ("torch", "transformers")
    )
    place: dict[str, Any] = {"pretrained_model_name_or_path": str(source), "use_safetensors": True}
    if source.is_file():
        place = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    if config:
        place["config"] = transformers.AutoConfig.for_model(**config)
    with _quiet(transformers), torch.no_grad():
        model = transformers.AutoModelForCausalLM.from_pretrained(
            **place, dtype=torch.float32, attn_implementation="eager"
        )
        return model(torch.from_numpy(tokens.astype(np.int64))).logits.float().numpy()


def logits(model: Transformer, tokens: np.ndarray) -> np.ndarray:
    """[B, T, V + 1] float32 logits, CALL last, computed in float32 whatever the run's dtype; tokens int32 [B, T]."""
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    with jax.default_matmul_precision("highest"):
        z, c = _logits(_in_float32(model), tokens, positions)
    return np.concatenate([np.asarray(z), np.asarray(c)[..., None]], axis=-1)


def _in_float32(model: Transformer) -> Transformer:
    cfg = dataclasses.replace(model.cfg, dtype="float32", attention="xla")
    structure = jax.tree.structure(nnx.eval_shape(lambda: Transformer(cfg, rngs=nnx.Rngs(0))))
    return jax.tree.unflatten(structure, jax.tree.leaves(model))


@jax.jit
def _logits(model: Transformer, tokens: jax.Array, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    return model.logits(model(tokens, positions, jnp.ones_like(tokens)))


def sample_tokens(tokenizer: Tokenizer, length: int) -> np.ndarray:
    """Half of the rows are random ids, half are text; bos first. int32 [B, T]."""
    random = np.random.default_rng(0)
    rows = random.integers(0, tokenizer.vocab_size, (_ROWS, length)).astype(np.int32)
    text = np.concatenate([tokenizer.encode(text) for text in torture.texts(20)])
    rows[: _ROWS // 2] = np.resize(text, (_ROWS // 2, length))
    rows[:, 0] = tokenizer.bos_id
    return rows


@contextlib.contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Keep transformers' progress bars and notes out of our output."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
