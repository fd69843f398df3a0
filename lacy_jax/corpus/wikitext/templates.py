"""Inline templates of Wikipedia as text: what a reader sees where the template stands.

Templates are programs of their wiki, and a dump holds calls, not results. Those that stand inside sentences and whose
result follows from their arguments are few in kind: a wrapper around its text, a quantity, a date, a mark. They are
tables here, by name. Everything else shows something beside the prose, or depends on what a dump does not hold; it is
left out and counted (`Markup.plain`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from lacy_jax.corpus.units import unit
from lacy_jax.corpus.wikitext.convert import convert

Render = Callable[["Arguments"], str]


_SEPARATORS = {
    **dict.fromkeys("de nl es it pt da id tr el ro hr sl sr bs mk vi gl ca eu is lb".split(), (".", ",")),
    **dict.fromkeys("fr ru uk be pl cs sk sv fi no nb nn hu bg et lv lt kk hy ka eo af".split(), (" ", ",")),
}
"""What stands between thousands and before decimals, where it is not as in English."""


class Arguments:
    """A template's arguments as text.

    Attributes:
      positional: those without a name, and those named by number, in order.
      named: the others, names in lower case.
      language: of the wiki, by which numbers are written.
    """

    def __init__(self, positional: Sequence[str], named: Mapping[str, str], language: str = "en"):
        self.positional, self.named, self.language = positional, named, language

    def number(self, text: str) -> str:
        """A number, written as in a program, as the language writes it; other text as it is."""
        match = re.fullmatch(r"([-−]?)(\d+)(?:\.(\d+))?", text.strip().replace(",", ""))
        if match is None or (len(match[2]) > 1 and match[2].startswith("0")):
            return text.strip()
        thousands, point = _SEPARATORS.get(self.language, (",", "."))
        whole = f"{int(match[2]):,}".replace(",", thousands)
        return f"{'−' if match[1] else ''}{whole}{point + match[3] if match[3] else ''}"

    def at(self, number: int) -> str:
        """Argument `number`, from 1; "" if there is none."""
        return self.positional[number - 1].strip() if len(self.positional) >= number else ""

    def get(self, *names: str) -> str:
        """The first of these named arguments that is not empty."""
        return next((self.named[name].strip() for name in names if self.named.get(name, "").strip()), "")

    def given(self) -> list[str]:
        """The positional arguments that are not empty."""
        return [text.strip() for text in self.positional if text.strip()]


# -- words ------------------------------------------------------------------------------------------------------


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


# -- numbers ----------------------------------------------------------------------------------------------------

_UP = str.maketrans("0123456789+-−()n", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻⁽⁾ⁿ")


def raised(text: str) -> str:
    """A number above the line in the characters for it, "10⁶"; other text as it is."""
    return text.translate(_UP) if re.fullmatch(r"[-−+]?\d+[-−+]?|[-−+]", text) else text


def _formatnum(args: Arguments) -> str:
    text = args.at(1) or args.get("nombre", "number")
    return text.replace(",", "") if args.at(2) in ("R", "NOSEP") else args.number(text)


def _number_of(args: Arguments) -> str:
    """French {{unité|1300|km}}: "1 300 km"."""
    number = args.at(1)
    plain = number.replace(" ", "").replace(",", ".")
    if re.fullmatch(r"[-−]?\d{5,}", plain):
        number = f"{int(plain.replace('−', '-')):,}".replace(",", " ")
    parts = [number]
    for index in range(2, len(args.positional) + 1, 2):
        power = args.at(index + 1)
        parts.append(args.at(index) + ("" if power in ("", "1") else raised(power)))
    exponent = args.get("e")
    if exponent:
        parts.insert(1, f"× 10{raised(exponent)}")
    return " ".join(filter(None, parts))


def _fraction(args: Arguments) -> str:
    parts = args.given()
    if len(parts) == 1:
        return f"1/{parts[0]}"
    return "/".join(parts) if len(parts) == 2 else f"{parts[0]} {parts[1]}/{parts[2]}" if parts else "/"


def _value(args: Arguments) -> str:
    """{{val|1.5|0.1|e=6|u=km}}: "1.5±0.1×10⁶ km"."""
    number = args.number(args.at(1)) or args.at(1)
    second, third = args.at(2), args.at(3)
    if second.startswith("("):
        number += second
    elif second and third and not third[:1].isdecimal():
        number += f" +{second.lstrip('+')} {third.replace('-', '−')}"
    elif second:
        number += (
            f"±{second}" if re.fullmatch(r"[\d.,]+", second) else f" {second} {args.number(third)}".rstrip()
        )
    if args.get("e"):
        number += f"×10{raised(args.get('e'))}"
    symbol = args.get("u", "ul")
    per = args.get("up", "upl")
    of = unit(symbol)
    shown = f"{of.symbol if of else symbol}{f'/{per}' if per else ''}"
    return f"{args.get('p')}{number}{args.get('s')}{args.get('end')}{f' {shown}' if shown.strip() else ''}"


def _power(args: Arguments) -> str:
    return f"×10{raised(args.at(1))}" if args.at(1) else "e"


def _gaps(args: Arguments) -> str:
    symbol = args.get("u")
    return f"{args.get('lhs')}{''.join(args.given())}{'×10' + raised(args.get('e')) if args.get('e') else ''}{f' {symbol}' if symbol else ''}"


def _nuclide(args: Arguments) -> str:
    return "-".join(args.given()[:2])


def _currency(mark: str) -> Render:
    return lambda args: f"{mark}{args.number(args.at(1))}" if args.at(1) else mark


def _after_currency(args: Arguments) -> str:
    return f"{args.at(1)} {args.at(2) or 'EUR'}".strip()


def _gauge(args: Arguments) -> str:
    match = re.fullmatch(r"([\d.]+)\s*(mm|m|cm|in|ft)", args.at(1))
    return (
        convert([match[1], match[2], *(["in"] if match[2] == "mm" else [])], {"abbr": "on"})
        if match
        else args.at(1)
    )


# -- dates ------------------------------------------------------------------------------------------------------

MONTHS = "January February March April May June July August September October November December".split()
_FRENCH = "janvier février mars avril mai juin juillet août septembre octobre novembre décembre".split()


def written_date(
    year: str, month: str = "", day: str = "", *, day_first: bool = False, months: Sequence[str] = MONTHS
) -> str:
    """A date in words; parts that are missing are left out."""
    name = months[int(month) - 1] if month.isdecimal() and 1 <= int(month) <= 12 else month
    day = str(int(day)) if day.isdecimal() else day
    year = year.lstrip("0") or year
    if not name:
        return year
    if not day:
        return f"{name} {year}".strip()
    return f"{day} {name} {year}".strip() if day_first else f"{name} {day}{f', {year}' if year else ''}"


def _date(args: Arguments) -> str:
    """{{birth date|1956|5|7|df=y}}: "7 May 1956"; arguments after the day (death dates have a birth date) are left out."""
    if not args.at(1).lstrip("-").isdecimal():
        return args.at(1)  # A date in words.
    first = args.get("df", "dmy").lower() in ("y", "yes", "1", "true")
    return written_date(args.at(1), args.at(2), args.at(3), day_first=first)


def _as_of(args: Arguments) -> str:
    begun = "since" if args.get("since") else "as of"
    date = (
        args.get("alt")
        or f"{begun if args.get('lc') else begun.capitalize()} {written_date(args.at(1), args.at(2), args.at(3), day_first=True)}"
    )
    return date + args.get("post")


def _circa(args: Arguments) -> str:
    years = args.given()
    return f"c. {years[0]}" + (f" – c. {years[1]}" if len(years) > 1 else "") if years else "c."


def _span(before: str) -> Render:
    return lambda args: f"{before} {'–'.join(args.given())}".strip()


def _old_style(args: Arguments) -> str:
    return f"{args.at(1)} [O.S. {args.at(3)}] {args.at(2)}".strip()


def _french_date(args: Arguments) -> str:
    parts = args.given()
    if len(parts) == 1 or not parts:
        return "".join(parts)
    day, month, *rest = parts
    day = "1er" if day == "1" else day
    name = _FRENCH[int(month) - 1] if month.isdecimal() and 1 <= int(month) <= 12 else month
    return " ".join([day, name, *[word for word in rest[:1] if word.lstrip("-").isdecimal()]])


def _century(suffix: str) -> Render:
    """French {{s|XIX|e}}: "XIXe siècle"."""

    def render(args: Arguments) -> str:
        number = f"{args.at(1)}{args.at(2) or ('er' if args.at(1) == 'I' else 'e')}"
        return f"{number} siècle{suffix}"

    return render


# -- the tables -------------------------------------------------------------------------------------------------

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
_CURRENCIES = {
    "US$": "us$ usd us_dollar", "$": "$", "A$": "a$ aud au$", "C$": "c$ cad ca$", "NZ$": "nz$ nzd", "HK$": "hk$ hkd", "R$": "r$ brl",
    "£": "£ gbp pound_sterling", "€": "€ euro", "¥": "¥ jpy yen", "CN¥": "cny rmb cn¥", "₹": "inr ₹ indian_rupee indian_rupees",
    "₽": "rub ruble", "₩": "krw won", "₱": "php philippine_peso", "CHF ": "chf", "kr ": "sek nok dkk", "₪": "ils nis", "R": "zar",
}  # fmt: skip
_SHIPS = "USS HMS HMAS HMCS HMNZS HMT SS RMS MV MS USAT USNS USCGC INS JS ROKS PNS SMS HNLMS HDMS HNoMS HSwMS ORP RFA HMHS USAHS MY SM"
_LISTED: dict[str, Render] = {
    "hlist flat_list": _joined(", "),
    "ubl unbulleted_list ublist vunblist bulleted_list blist ordered_list": _lines,
    "columns-list div_col_list": lambda args: f"\n{max(args.positional, key=len, default='').strip()}\n",
    "lang lang2 script native_name native_phrase rtl-lang ltr-lang resize font_color colored_text fontcolour color sort langue "
    "lang-text": lambda args: args.at(2) or args.get("text", "texte") or args.at(1),
    "transl transliteration transl.": _last,
    "ipa": _first,
    "langx": _langx,
    "quote blockquote quotation bquote cquote centered_pull_quote pull_quote quotation_block poemquote poem_quote quote_block "
    "citation_bloc début_citation_bloc zitat-block cita cita_larga": _quote,
    "zitat": _in_marks("„", "“"),
    "zitat-en zitat-la zitat-fr zitat-it zitat-es": _in_marks("“", "”"),
    "citation citation_étrangère guil « citation_langue": _in_marks("« ", " »"),
    "angbr angle_bracket grapheme gph": _in_marks("⟨", "⟩"),
    "angbr_ipa": _in_marks("⟨", "⟩"),
    "sic": lambda args: (
        "".join(args.given()) if args.get("hide") else f"{''.join(args.given())} [sic]".strip()
    ),
    "sup superscript": lambda args: raised(args.at(1)),
    "sub subscript": _nth(1),
    "ill interlanguage_link illm interlanguage_link_multi lien link-interwiki lien_wikidata": _interlanguage,
    "nihongo": _nihongo,
    "nihongo3": _nihongo3,
    "japonais": _nihongo,
    "zh": _chinese,
    "sortname sort_name": _sortname,
    "ship": _ship(""),
    "linktext": _joined(""),
    "formatnum fnum nombre_formaté": _formatnum,
    "number format_number formatnumber": _formatnum,
    "convert convertir": lambda args: convert(args.positional, args.named),
    "cvt": lambda args: convert(args.positional, {"abbr": "on", **args.named}),
    "unité unite nombre nb unidad": _number_of,
    "frac fraction sfrac fracn": _fraction,
    "bruch": _fraction,
    "val": _value,
    "e exp": _power,
    "10^": lambda args: f"10{raised(args.at(1))}",
    "gaps": _gaps,
    "chem chemical_formula fchim": lambda args: "".join(
        raised(part) if re.fullmatch(r"\d*[-−+]", part) else part for part in args.given()
    ),
    "nuclide nuclide2 simplenuclide simplenuclide2": _nuclide,
    "sqrt radic": lambda args: f"√{args.at(1)}",
    "music": lambda args: {"flat": "♭", "b": "♭", "sharp": "♯", "#": "♯", "natural": "♮"}.get(
        args.at(1), args.at(1)
    ),
    "eur": _after_currency,
    "railgauge track_gauge": _gauge,
    "ordinal ordinal_number": lambda args: _ordinal(args.at(1)),
    "birth_date bda birth_date_and_age birth_date2 dob death_date death_date_and_age dda start_date start_date_and_age end_date "
    "film_date release_date dts dtsa date_table_sorting dtsx launch_date": _date,
    "as_of asof": _as_of,
    "circa c. ca. c": _circa,
    "floruit fl. fl": _span("fl."),
    "reign r.": _span("r."),
    "born_in b.": _span("b."),
    "oldstyledate": _old_style,
    "oldstyledatedy oldstyledatenoyear": lambda args: (
        f"{args.at(1)} {args.at(2)} [O.S. {args.at(3)}]".strip()
    ),
    "date date- date_de_naissance date_de_naissance- date_de_décès date_de_décès- dn": _french_date,
    "s siècle": _century(""),
    "s- s-c": lambda args: _century("")(args).removesuffix(" siècle"),
    "-s": _century(" av. J.-C."),
    "sav": _century(" av. J.-C."),
    "e_siècle": lambda args: f"{args.at(1)}e siècle",
    "höhe": lambda args: f"{_german_number(args.at(1))} m",
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
}


def _ordinal(number: str) -> str:
    ends = {"1": "st", "2": "nd", "3": "rd"}
    teen = number[-2:-1] == "1"
    return f"{number}{'th' if teen else ends.get(number[-1:], 'th')}" if number[-1:].isdecimal() else number


def _german_number(text: str) -> str:
    return f"{int(text):,}".replace(",", ".") if re.fullmatch(r"\d{5,}", text) else text


def _table() -> dict[str, Render]:
    listed: list[tuple[str, Render]] = [(_WRAPPERS, _first), *_LISTED.items()]
    listed += [(names, _mark(text)) for text, names in _MARKS.items()]
    listed += [(names, _currency(mark)) for mark, names in _CURRENCIES.items()]
    listed += [(prefix.lower(), _ship(prefix)) for prefix in _SHIPS.split()]
    listed += [(f"lang-{code}", _language(name)) for code, name in LANGUAGES.items()]
    listed += [(f"{code}s", _in_marks(f"{name} ", "")) for code, name in _GERMAN.items()]
    return {name.replace("_", " "): render for names, render in listed for name in names.split()}


RENDERS = _table()
"""What a template shows, by its name in lower case."""
