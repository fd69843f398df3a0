"""A model's own chat template: messages become the token ids that it was tuned on.

Templates are Jinja programs of strangers. They run in the sandbox that `transformers` runs them in, with the same names
(`apply_chat_template`). Unlike there, a message cannot smuggle in the marks of a turn: "<|im_end|>" in its content is
plain text.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox
import numpy as np

from lacy_jax.errors import DataError
from lacy_jax.tokenizer.tokenizer import Tokenizer

_APART = "\ufdd0"
"""A noncharacter that keeps the marks in a message from being read as marks."""


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`: marks what the model wrote, for training; it renders as what is in it."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """A chat template with the tokenizer that it is for.

    Attributes:
      source: the Jinja text.

    Raises:
      DataError: not a Jinja template; `where` names it.
    """

    def __init__(self, source: str, tokenizer: Tokenizer, where: str = "chat template"):
        self.source, self._tokenizer = source, tokenizer
        self._control = tokenizer.control_pieces()
        marks = sorted(self._control, key=len, reverse=True)
        self._marks = re.compile("|".join(map(re.escape, marks)) or r"(?!)")
        # The marks that a template may ask for by name.
        roles = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "pad": tokenizer.pad_id}
        self._names = {f"{role}_token": tokenizer.piece(token) for role, token in roles.items()}
        sandbox = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
        )
        sandbox.filters["tojson"] = _to_json
        sandbox.globals |= {"raise_exception": _refuse, "strftime_now": _now}
        try:
            self._template = sandbox.from_string(source)
        except jinja2.TemplateError as error:
            raise DataError(f"{where}: not a Jinja template: {error}") from None

    def ids(self, messages: Sequence[Mapping[str, str]]) -> tuple[int, ...]:
        """Token ids of a conversation, to which the model's turn is next.

        Args:
          messages: each with `role` and `content`.

        Raises:
          DataError: the template refuses them (two turns of one role, say), or they make no token.
        """
        told = [{name: self._as_text(value) for name, value in message.items()} for message in messages]
        try:
            text = self._template.render(
                messages=told, tools=None, documents=None, add_generation_prompt=True, **self._names
            )
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise DataError(f"the model's chat template refuses these messages: {error}") from None
        found: list[int] = []
        start = 0
        for mark in self._marks.finditer(text):
            found += [*self._plain(text[start : mark.start()], start), self._control[mark.group()]]
            start = mark.end()
        found += self._plain(text[start:], start)
        if not found:
            raise DataError("the model's chat template makes no text of these messages")
        return tuple(found)

    def _as_text(self, value: str) -> str:
        return self._marks.sub(lambda mark: mark.group()[0] + _APART + mark.group()[1:], value)

    def _plain(self, text: str, start: int) -> list[int]:
        text = text.replace(_APART, "")
        return np.asarray(self._tokenizer.encode(text, continues=start > 0)).tolist() if text else []


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)
