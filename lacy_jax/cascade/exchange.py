"""One exchange with a partner: texts in, as many answers out, or a failure; and how the partner has done so far."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from lacy_jax.cascade.partners.base import Partner
from lacy_jax.errors import PartnerError

GIVE_UP_AFTER = 3
"""After this many failed exchanges in a row the partner is not asked again."""


@dataclasses.dataclass(frozen=True)
class Standing:
    """How the partner has done so far; each batch of texts passes it on to the next.

    Attributes:
      failed_in_a_row: failed exchanges since the last success. gave_up: why the partner is no longer asked; "" if it
        still is.
    """

    failed_in_a_row: int = 0
    gave_up: str = ""

    def after(self, failure: PartnerError | None) -> Standing:
        """The standing after one more exchange."""
        if failure is None:
            return Standing()
        failed = self.failed_in_a_row + 1
        reason = f"partner given up after {GIVE_UP_AFTER} failures in a row ({failure})"
        return Standing(failed, reason if failed >= GIVE_UP_AFTER else "")


def ask(
    partner: Partner, texts: Sequence[str], queries: Float32[np.ndarray, "n Q"] | None = None
) -> list[str | None]:
    """`Partner.complete`, or `complete_by_query` where the partner wants the model's `queries`; checked.

    Raises:
      PartnerError: it failed, or did not give a text or None for each text.
    """
    try:
        if partner.by_query and queries is not None:
            replies = list(partner.complete_by_query(texts, queries))
        else:
            replies = list(partner.complete(texts))
    except (OSError, TimeoutError) as error:
        raise PartnerError(f"partner {partner.name}: {error}") from error
    if len(replies) != len(texts) or not all(reply is None or isinstance(reply, str) for reply in replies):
        raise PartnerError(f"partner {partner.name}: {len(texts)} texts in, but not as many texts out")
    return replies
