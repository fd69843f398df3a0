"""Templates that show words: a wrapper around its text, a foreign word, a quotation, a ship, a mark."""

from __future__ import annotations

from lacy_jax.corpus.wikitext.templates import Arguments, Render, by_name

LANGUAGES = {
    code: name.replace("_", " ")
    for code, name in (
        pair.split("=")
        for pair in (
            "af=Afrikaans ang=Old_English ar=Arabic arz=Egyptian_Arabic az=Azerbaijani be=Belarusian bg=Bulgarian bn=Bengali "
            "bo=Tibetan br=Breton bs=Bosnian ca=Catalan cop=Coptic cs=Czech cy=Welsh da=Danish de=German el=Greek en=English "
            "eo=Esperanto es=Spanish et=Estonian eu=Basque fa=Persian fi=Finnish fr=French fro=Old_French ga=Irish "
            "gd=Scottish_Gaelic gl=Galician grc=Ancient_Greek grc-gre=Greek gu=Gujarati he=Hebrew hi=Hindi hr=Croatian "
            "hu=Hungarian hy=Armenian id=Indonesian is=Icelandic it=Italian ja=Japanese ka=Georgian kk=Kazakh km=Khmer "
            "kn=Kannada ko=Korean ku=Kurdish la=Latin lb=Luxembourgish lt=Lithuanian lv=Latvian mk=Macedonian ml=Malayalam "
            "mn=Mongolian mr=Marathi ms=Malay mt=Maltese my=Burmese nah=Nahuatl nds=Low_German ne=Nepali nl=Dutch no=Norwegian "
            "non=Old_Norse oc=Occitan pa=Punjabi pl=Polish ps=Pashto pt=Portuguese qu=Quechua ro=Romanian ru=Russian "
            "sa=Sanskrit sco=Scots si=Sinhala sk=Slovak sl=Slovene sq=Albanian sr=Serbian sv=Swedish sw=Swahili ta=Tamil "
            "te=Telugu th=Thai tl=Tagalog tr=Turkish uk=Ukrainian ur=Urdu uz=Uzbek vi=Vietnamese yi=Yiddish zh=Chinese"
        ).split()
    )
}
"""Names of languages by the codes of {{lang-xx}}."""
_GERMAN = {
    "ar": "arabisch", "bg": "bulgarisch", "cs": "tschechisch", "da": "dänisch", "el": "griechisch", "en": "englisch",
    "es": "spanisch", "fr": "französisch", "grc": "altgriechisch", "he": "hebräisch", "hr": "kroatisch", "hu": "ungarisch",
    "it": "italienisch", "ja": "japanisch", "la": "lateinisch", "nl": "niederländisch", "no": "norwegisch", "pl": "polnisch",
    "pt": "portugiesisch", "ro": "rumänisch", "ru": "russisch", "sk": "slowakisch", "sl": "slowenisch", "sr": "serbisch",
    "sv": "schwedisch", "tr": "türkisch", "uk": "ukrainisch",
}  # fmt: skip
"""German {{enS|text}}: "englisch text"."""
_WRAPPERS = """
    nowrap nobr nobreak small smaller small2 big larger large huge em strong bold italic italics noitalic nobold
    nonbold underline underlined u strike smallcaps sc caps code mono monospace tt kbd var samp key keypress vanchor
    visible_anchor abbr abbrlink tooltip unicode iast polytonic nastaliq hebrew bdo bidi not_a_typo typo proper_name as_written
    center centre align_center plainlist flatlist longitem highlight math mvar bigmath texhtml serif nts ntsx number_sort
    citation_needed_span cn-span fact_span clarify_span référence_nécessaire référence_souhaitée refnec abréviation
    abréviation_discrète abrd petites_capitales petite_capitale pc souligner flag flagu flagcountry flagteam pays chem2 ce wrap
    nihongo2 texte visible_anchor birth_year_and_age death_year_and_age birth-date birth-date_and_age death-date
    death-date_and_age start-date end-date lcap sic-inline quote-inline
"""
"""Templates that show their first argument, in whatever dress."""
_MARKS = {
    "–": "ndash endash en_dash –", " – ": "snd spnd snds sndash spaced_ndash spaced_en_dash dash",
    "—": "mdash emdash em_dash — mdashb", " — ": "spaced_mdash spaced_em_dash smd",
    " ": "nbsp space spaces thinsp thin_space hairsp hair_space figure_space pad sp",
    " · ": "· middot dot • bullet bull interpunct ·w", "|": "! pipe", "=": "=", "'": "' apostrophe -'", "'s": "'s", "'\"": "'\"",
    "\"'": "\"'", "{": "( lbrace", "}": ") rbrace", "[": " (( lsqb", "]": ")) rsqb", "−": "minus", "×": "times", "π": "pi",
    "": "0 zwsp wbr shy zwj -- zwnj", "av. J.-C.": "av_jc av._j.-c. avjc av", "apr. J.-C.": "ap_jc apr._j.-c. apjc",
    "1er": "1er", "1re": "1re", "Ier": "ier", "er": "er", "re": "re ère", "no": "numéro n°", "nos": "",
    "BC": "bc bce", "AD": "ad1",
}  # fmt: skip
_SHIPS = "USS HMS HMAS HMCS HMNZS HMT SS RMS MV MS USAT USNS USCGC INS JS ROKS PNS SMS HNLMS HDMS HNoMS HSwMS ORP RFA HMHS USAHS MY SM"


def _first(args: Arguments) -> str:
    return args.positional[0].strip("\n") if args.positional else args.get("text", "1")


def _nth(number: int) -> Render:
    return lambda args: args.at(number)


def _last(args: Arguments) -> str:
    given = args.given()
    return given[-1] if given else ""


def _mark(text: str) -> Render:
    return lambda args: text


def _joined(mark: str) -> Render:
    return lambda args: mark.join(args.given())


def _lines(args: Arguments) -> str:
    return "".join(f"\n{text}" for text in args.given()) + "\n"


def _language(name: str) -> Render:
    """{{lang-la|text}}: "Latin: text"."""

    def render(args: Arguments) -> str:
        text = args.at(1) or args.get("text")
        meaning = args.get("lit", "translation") or args.at(3)
        roman = args.get("translit") or args.at(2)
        label = "" if args.get("label", "links") == "none" else f"{name}: "
        extra = (f", romanized: {roman}" if roman else "") + (f", lit. '{meaning}'" if meaning else "")
        return f"{label}{text}{extra}" if text else ""

    return render


def _langx(args: Arguments) -> str:
    rest = Arguments(args.positional[1:], args.named, args.language)
    return _language(LANGUAGES[args.at(1)])(rest) if args.at(1) in LANGUAGES else rest.at(1)


def _quote(args: Arguments) -> str:
    text = args.at(1) or args.get("text", "quote", "content", "zitat", "texte", "cita")
    source = ", ".join(filter(None, (
        args.at(2) or args.get("author", "sign", "autor", "auteur", "by"),
        args.at(3) or args.get("title", "source", "quelle", "titre"),
    )))  # fmt: skip
    return f"\n{text}\n" + (f"— {source}\n" if source else "") if text else ""


def _in_marks(before: str, after: str) -> Render:
    return lambda args: (
        f"{before}{args.at(1) or args.get('text')}{after}" if args.at(1) or args.get("text") else ""
    )


def _interlanguage(args: Arguments) -> str:
    return args.get("lt", "texte", "text", "display") or args.at(1) or args.get("trad")


def _nihongo(args: Arguments) -> str:
    inside = ", ".join(filter(None, (args.at(2), args.at(3), args.at(4) or args.get("extra"))))
    return f"{args.at(1)} ({inside})" if args.at(1) and inside else args.at(1) or inside


def _nihongo3(args: Arguments) -> str:
    inside = ", ".join(filter(None, (args.at(2), args.at(1))))
    return f"{args.at(3)} ({inside})" if args.at(3) and inside else args.at(3) or inside


_CHINESE = {"c": "Chinese", "s": "simplified Chinese", "t": "traditional Chinese", "p": "pinyin", "w": "Wade–Giles", "j": "Jyutping",
            "poj": "Pe̍h-ōe-jī", "l": "lit."}  # fmt: skip


def _chinese(args: Arguments) -> str:
    return "; ".join(f"{name}: {args.get(key)}" for key, name in _CHINESE.items() if args.get(key))


def _ship(prefix: str) -> Render:
    """{{USS|Hornet|CV-12}}: "USS Hornet (CV-12)"; a third argument asks for some of the parts (bits: id, name, prefix)."""

    def render(args: Arguments) -> str:
        parts = args if prefix else Arguments(args.positional[1:], args.named, args.language)
        bits = int(parts.at(3)) if parts.at(3).isdecimal() else 7
        before, name, id_ = prefix or args.at(1), parts.at(1), parts.at(2)
        shown = [before if bits & 4 else "", name if bits & 2 else ""]
        if id_ and bits & 1:
            shown.append(id_ if bits == 1 else f"({id_})")
        return " ".join(filter(None, shown))

    return render


def _sortname(args: Arguments) -> str:
    return f"{args.at(1)} {args.at(2)}".strip()


WORDS: dict[str, Render] = by_name(
    {
        _WRAPPERS: _first,
        "hlist flat_list": _joined(", "),
        "ubl unbulleted_list ublist vunblist bulleted_list blist ordered_list": _lines,
        "columns-list div_col_list": lambda args: f"\n{max(args.positional, key=len, default='').strip()}\n",
        "lang lang2 script native_name native_phrase rtl-lang ltr-lang resize font_color colored_text fontcolour color sort langue lang-text": lambda args: (
            args.at(2) or args.get("text", "texte") or args.at(1)
        ),
        "transl transliteration transl.": _last,
        "ipa": _first,
        "langx": _langx,
        "quote blockquote quotation bquote cquote centered_pull_quote pull_quote quotation_block poemquote poem_quote quote_block citation_bloc début_citation_bloc zitat-block cita cita_larga": _quote,
        "zitat": _in_marks("„", "“"),
        "zitat-en zitat-la zitat-fr zitat-it zitat-es": _in_marks("“", "”"),
        "citation citation_étrangère guil « citation_langue": _in_marks("« ", " »"),
        "angbr angle_bracket grapheme gph": _in_marks("⟨", "⟩"),
        "angbr_ipa": _in_marks("⟨", "⟩"),
        "sub subscript": _nth(1),
        "sic": lambda args: (
            "".join(args.given()) if args.get("hide") else f"{''.join(args.given())} [sic]".strip()
        ),
        "ill interlanguage_link illm interlanguage_link_multi lien link-interwiki lien_wikidata": _interlanguage,
        "nihongo": _nihongo,
        "nihongo3": _nihongo3,
        "japonais": _nihongo,
        "zh": _chinese,
        "sortname sort_name": _sortname,
        "ship": _ship(""),
        "linktext": _joined(""),
        "music": lambda args: {"flat": "♭", "b": "♭", "sharp": "♯", "#": "♯", "natural": "♮"}.get(
            args.at(1), args.at(1)
        ),
        "§": lambda args: f"§ {args.at(1)} {args.at(2)}".strip(),
        "anker": _mark(""),
        "lc": lambda args: args.at(1).lower(),
        "uc": lambda args: args.at(1).upper(),
        "ucfirst": lambda args: args.at(1)[:1].upper() + args.at(1)[1:],
        "lcfirst": lambda args: args.at(1)[:1].lower() + args.at(1)[1:],
        "bibleverse bibleref bibleref2": lambda args: " ".join(
            filter(None, (args.at(1), args.at(2), args.at(3)))
        ),
        "marriage": lambda args: (
            args.at(1) + (f" ({'–'.join(filter(None, (args.at(2), args.at(3))))})" if args.at(2) else "")
        ),
        "url website official_url": _mark(""),
        **{names: _mark(text) for text, names in _MARKS.items()},
        **{prefix.lower(): _ship(prefix) for prefix in _SHIPS.split()},
        **{f"lang-{code}": _language(name) for code, name in LANGUAGES.items()},
        **{f"{code}s": _in_marks(f"{name} ", "") for code, name in _GERMAN.items()},
    }
)
"""Renders by the names of their templates."""
