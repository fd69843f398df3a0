"""MediaWiki's markup as prose."""

from lacy_jax.corpus.wikitext.markup import EDITION, Markup, Prose

__all__ = ["EDITION", "Markup", "Prose"]
