"""Texts on which two tokenizers are likely to differ; every export is checked with them."""

from __future__ import annotations

import random

TEXTS: tuple[str, ...] = (
    "",
    " ",
    "  ",
    "a",
    "Marie Curie was born in Warsaw on 7 November 1867.",
    " leading",
    "trailing ",
    "two  spaces   three    four",
    "tab\tnewline\ncarriage\r\nmixed \n \t end\n",
    "0 1 12 123 1234 12345 1,234,567.89 3.14159 1e-9 0x41 2026-11-23",
    "١٢٣ ４５６ Ⅷ ½ ² ₃",
    "naïve café Zoë Ångström fiancée",
    "cafe\u0301 A\u030a n\u0303o combining",
    "ﬁ ﬂ ﬃ ligatures ™ ® © №",
    "ＦＵＬＬ　ＷＩＤＴＨ",
    "Привет, мир! Ελληνικά. עברית العربية हिन्दी ไทย 한국어 日本語 中文",
    "👍 👩‍👩‍👧‍👦 🏳️‍🌈 🇫🇷 ☃ 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈",
    "zero\u200bwidth\u200djoiner\u00a0nbsp\u2009thin\u3000ideographic\ufeffbom\u00adshy",
    "\u2581 block \u2581\u2581two a\u2581b",
    "\ue000 private \uf8ff use \U000f0000",
    "\x00 nul \x01\x02\x07\x1b[0m control \x7f\x80\x85\x9f",
    "<CALL>",
    "say <CALL> twice <CALL><CALL>, ▁<CALL> and <call> < CALL >",
    "<s> </s> <pad> <unk> <|endoftext|> <|begin_of_text|> <|im_start|>",
    "<0x41> <0x0A><0xE2><0x96><0x81> <0xZZ>",
    "http://example.org/a_b?c=d&e=f#g user@host.tld C:\\path\\file.txt",
    "def f(x):\n    return {'a': [1, 2, 3], \"b\": x ** 2}\n",
    "ALLCAPS camelCase snake_case kebab-case it's don't “quotes” ‘single’ — dash… ellipsis",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
)

_RANGES = ((0x20, 0x7F),) * 6 + (
    (0xA0, 0x250),
    (0x370, 0x500),
    (0x900, 0x980),
    (0x2000, 0x2600),
    (0x4E00, 0x4F00),
)
_WORDS = (
    "the",
    "born",
    "in",
    "Paris",
    "1867",
    "of",
    "and",
    "river",
    "<CALL>",
    "naïve",
    "▁",
    "  ",
    "\n",
    "123",
    "é",
)


def texts(rounds: int = 200, seed: int = 0) -> list[str]:
    """The fixed texts, and `rounds` random ones made of characters and of words; the same on every call."""
    source = random.Random(seed)
    made = list(TEXTS)
    for _ in range(rounds):
        made.append(
            "".join(chr(source.randrange(*source.choice(_RANGES))) for _ in range(source.randrange(1, 40)))
        )
        made.append(" ".join(source.choice(_WORDS) for _ in range(source.randrange(1, 20))))
    return made
