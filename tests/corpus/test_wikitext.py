"""From wikitext to prose: what is shown in sentences is kept in the reader's words, the rest is left out and counted."""

from __future__ import annotations

import pytest

from lacy_jax.corpus.wikitext import Markup
from lacy_jax.corpus.wikitext.convert import convert


def _text(wikitext, **namespaces):
    return Markup({6: "Datei", 14: "Kategorie"}).prose(wikitext, "Ada").text


@pytest.mark.parametrize(
    ("wikitext", "prose"),
    [
        ("'''Bold''' and ''italic''", "Bold and italic"),
        ("[[Paris]], [[France|the country]], [[bird]]s", "Paris, the country, birds"),
        ("A[[File:X.jpg|thumb|A [[cat]] here]] B[[Category:Cats]]", "A B"),
        ("[[de:Katze]]Cat [[:Category:Cats|cats]]", "Cat cats"),
        ("See [http://x.org the site] [http://y.org]", "See the site"),
        (
            "Tours ({{IPA|tuʁ}}) is{{efn|no}} a city.<ref name=a>Book, 1.</ref><ref name=a />",
            "Tours is a city.",
        ),
        ("One<!-- hidden -->\n\n\n\nTwo", "One\nTwo"),
        ("''Iliad'''s fame, '''A''' ''B", "Iliad's fame, A B"),
        ("== Life ==\nBorn.\n== References ==\n{{reflist}}", "Life.\nBorn."),
        ("{| class=x\n| cell\n|}\nProse.", "Prose."),
        ("* first\n** second\n# third", "first\nsecond\nthird"),
        ("5&nbsp;km &ndash; far &amp;lt; &#x263A;", "5 km – far &lt; ☺"),
        ("__NOTOC__Text<br/>more <math>x^2</math>", "Text\nmore"),
        ("{{PAGENAME}} lives", "Ada lives"),
    ],
)
def test_prose_of_wikitext(wikitext, prose):
    assert _text(wikitext) == prose


@pytest.mark.parametrize(
    ("wikitext", "prose"),
    [
        # Titles with a colon are no namespaces; files and categories have the dump's own names, and the English ones.
        ("[[CSI: Miami]] and [[2001: A Space Odyssey|2001]]", "CSI: Miami and 2001"),
        ("[[Star Trek: Picard]], [[Re:Zero]]", "Star Trek: Picard, Re:Zero"),
        ("[[Datei:X.jpg|mini|Ein Bild]]A [[datei: X.svg]][[Kategorie:Katze]][[KATEGORIE:Tier]]B", "A B"),
        (
            "[[Bild:X.png|mini|nach altem Brauch]]A",
            "A",
        ),  # An alias that no dump lists: it is a file by its ending.
        ("[[wikt:poet|poet]] [[Portal:Art]] [[:de:Katze]]", "poet Portal:Art de:Katze"),
        ("[[zh-min-nan:Niau]][[simple:Cat]]C", "C"),
    ],
)
def test_links(wikitext, prose):
    assert _text(wikitext) == prose


@pytest.mark.parametrize(
    ("wikitext", "prose"),
    [
        ("Marks left <div>{{Infobox\n| a = {{convert|1|km|mi}}\n}} by it", "Marks left\nby it"),
        ("<small>Small <span style='x'>and {{nowrap|a b}} so on", "Small and a b so on"),
        ("A <ref>never closed. Text goes on.<ref>closed</ref> End.", "A never closed. Text goes on. End."),
        ('Map <mapframe>{"type": "Feature"}</mapframe>here', "Map here"),
        ("The call <code>f(x)</code> and <tt>y</tt>", "The call f(x) and y"),
        (
            "<syntaxhighlight lang=c>int x;</syntaxhighlight>Set <syntaxhighlight inline>x = 1</syntaxhighlight>.",
            "Set x = 1.",
        ),
        ("<ul><li>one<li>two</ul>\n<ol><li>three</li></ol>", "one\ntwo\nthree"),
        (
            "10<sup>6</sup> m<sup>2</sup>, 1<sup>st</sup>, H<sub>2</sub>O, O<sup>2−</sup>",
            "10⁶ m², 1st, H2O, O²⁻",
        ),
        (
            "<nowiki>[[not]] {{a}} ''link''</nowiki> &#91;&#91;x&#93;&#93; &lt;br&gt;",
            "[[not]] {{a}} ''link'' [[x]] <br>",
        ),
        ("Broken {{template [[link ''x", "Broken template link x"),
        ("Open {{quote|text and [[Paris|the city", "Open text and the city"),
        ("{|\n| never closed\n== Life ==\nBorn.", "Life.\nBorn."),
        ("<table><tr><td>a<table><tr><td>b</table></table>Prose", "Prose"),
        ("if a < b and b > c, x <y", "if a < b and b > c, x <y"),
        ("{{{1|shown}}} {{{2}}}here", "shown here"),
        ("a (b) ()", "a (b) ()"),  # Brackets of the text itself stay.
        ("<gallery>\nX.jpg|x\n</gallery>\n<poem>\nA rose\nis a rose\n</poem>", "A rose\nis a rose"),
    ],
)
def test_damaged_and_unusual_markup(wikitext, prose):
    assert _text(wikitext) == prose


@pytest.mark.parametrize(
    ("wikitext", "prose"),
    [
        ("The town ({{lang|de|Stadt}}, {{unknown}}; {{IPA-de|x}}) lies", "The town (Stadt) lies"),
        ("Rand ({{IPAc-en|aɪ}}, {{respell|R}}; born 1905; {{IPA-ru|x}})", "Rand (born 1905)"),
        ("at the sea {{unknown}}, and {{unknown}}.", "at the sea, and."),
        ("red, {{x}}, {{y}}, blue", "red, blue"),
        ("== A ==\n=== B ===\nText.\n=== C ===\n== D ==\n=== E ===\n{{reflist}}", "A.\nB.\nText."),
        ("The letter {{IPA|/a/}} is open", "The letter /a/ is open"),
    ],
)
def test_what_is_left_where_something_was_taken_out(wikitext, prose):
    assert _text(wikitext) == prose


@pytest.mark.parametrize(
    ("wikitext", "prose"),
    [
        ("At {{convert|1300|mi|km}},", "At 1,300 miles (2,100 km),"),
        ("{{cvt|5|ft|9|in|cm}} tall", "5 ft 9 in (175 cm) tall"),
        ("{{formatnum: 3003}} m, {{formatnum:1234567.5}}", "3,003 m, 1,234,567.5"),
        ("{{lang|fr|Été}} ({{lang-la|Aestas}}; {{langx|grc|θέρος|lit=heat}})", "Été (Latin: Aestas; Ancient Greek: θέρος, lit. 'heat')"),
        ("{{transl|ar|ALA|al-Jazā'ir}}", "al-Jazā'ir"),
        ("{{nowrap|[[Paris]], {{small|France}}}}", "Paris, France"),
        ("{{as of|2009|5}}, {{as of|2014|lc=y}}", "As of May 2009, as of 2014"),
        ("{{circa|1900}}, {{c.|100|200}}, {{fl.|1550}}", "c. 1900, c. 100 – c. 200, fl. 1550"),
        ("{{frac|1|2}}, {{frac|3}}, {{sfrac|2|1|4}}", "1/2, 1/3, 2 1/4"),
        ("{{val|1.5|0.1|e=6|u=km}}, {{val|1.00794|(7)}}", "1.5±0.1×10⁶ km, 1.00794(7)"),
        ("{{birth date|1956|5|7|df=y}}, {{death date and age|1865|4|15|1809|2|12}}", "7 May 1956, April 15, 1865"),
        ("{{start date|2001|9}}, {{dts|1777|12|16}}, {{birth-date|7 May 1956}}", "September 2001, December 16, 1777, 7 May 1956"),
        ("1914{{ndash}}18{{snd}}war{{nbsp}}{{'}}s", "1914–18 – war 's"),
        ("{{US$|1500}}, {{£|20}}", "US$1,500, £20"),
        ("{{USS|Hornet|CV-12}}, {{HMS|Ajax|22|6}}, {{ship|SS|Great Eastern||2}}", "USS Hornet (CV-12), HMS Ajax, Great Eastern"),
        ("{{nihongo|'''Aikido'''|合気道|aikidō}}", "Aikido (合気道, aikidō)"),
        ("{{ill|Jean X|fr}}, {{ill|Y|de|lt=Ypsilon}}", "Jean X, Ypsilon"),
        ("{{chem|SO|4|2-}}, {{chem2|H2O}}, {{SimpleNuclide|Lithium|7}}", "SO4²⁻, H2O, Lithium-7"),
        ("{{sic|teh}} {{abbr|UN|United Nations}} {{sup|2}} {{flag|France}}", "teh [sic] UN ² France"),
        ("Said:\n{{quote|text=To be.|author=Hamlet}}\nEnd", "Said:\nTo be.\n— Hamlet\nEnd"),
        ("{{hlist|[[A]]|B}}; {{ubl|C|D}}", "A, B;\nC\nD"),
        ("{{uc:abc}} {{lc:ABC}} {{ucfirst:abc}}", "ABC abc Abc"),
        ("{{Citation|title=A source}}X{{citation needed|date=May 2020}}", "X"),
        # Other languages' most usual ones.
        ("Le {{s|XIX|e}}, {{date|7|mai|1956}}, {{unité|13000|km}}, {{1er}} {{citation|mot}}", "Le XIXe siècle, 7 mai 1956, 13 000 km, 1er « mot »"),
        ("{{laS|Roma}}, {{Höhe|1234|DE-NN}}, {{§|1|BGB}}, {{Zitat|Ja.|Autor=X}}", "lateinisch Roma, 1234 m, § 1 BGB, „Ja.“"),
    ],
)  # fmt: skip
def test_inline_templates_show_what_a_reader_sees(wikitext, prose):
    assert _text(wikitext) == prose


@pytest.mark.parametrize(
    ("call", "shown"),
    [
        # Examples of the template's documentation, and of articles.
        ("2|km|mi", "2 kilometres (1.2 mi)"),
        ("7|mi|km", "7 miles (11 km)"),
        ("1|lb|kg", "1 pound (0.45 kg)"),
        ("1|lb|kg|abbr=on", "1 lb (0.45 kg)"),
        ("1|lb|kg|abbr=off", "1 pound (0.45 kilograms)"),
        ("1|lb|kg|abbr=in", "1 lb (0.45 kilograms)"),
        ("10|mi|km|adj=on", "10-mile (16 km)"),
        ("3|sqmi|km2|disp=or", "3 square miles or 7.8 km²"),
        ("88|m|ft", "88 metres (289 ft)"),
        ("9|ft|cm", "9 feet (270 cm)"),
        ("3003|m|ft|0|abbr=on", "3,003 m (9,852 ft)"),
        ("2,381,741|km2|sqmi|0", "2,381,741 square kilometres (919,595 sq mi)"),
        ("5|to|10|mi|km", "5 to 10 miles (8.0 to 16.1 km)"),
        ("20|C|F", "20 °C (68 °F)"),
        ("-40|C|F", "−40 °C (−40 °F)"),
        ("175|cm|ftin", "175 centimetres (5 ft 9 in)"),
        ("5|ft|9|in|m", "5 feet 9 inches (1.75 m)"),
        ("100|km/h|mph|order=flip", "62 miles per hour (100 km/h)"),
        ("12|km|sp=us", "12 kilometers (7.5 mi)"),
        ("1/2|in|mm", "1/2 inch (13 mm)"),
        ("6|acre|ha|sigfig=3", "6 acres (2.43 ha)"),
        ("70|km|mi nmi", "70 kilometres (43 mi; 38 nmi)"),
        ("5|mi|km|disp=out", "8.0 km"),
        ("40|furlongs of rain|mm", "40 furlongs of rain"),  # A unit that is not known here: the fact stays.
        ("", ""),
        ("about ten|mi", "about ten mi"),
    ],
)
def test_convert(call, shown):
    parts = call.split("|") if call else []
    named = dict(part.split("=", 1) for part in parts if "=" in part)
    assert convert([part for part in parts if "=" not in part], named) == shown


def test_what_is_left_out_is_counted_by_kind():
    prose = Markup().prose(
        "{{Infobox person\n| name = Ada\n}}\n'''Ada'''{{efn|x}} cost {{inflation|US|5}}, <math>x</math>.<ref>a</ref>\n"
        "{|\n| b\n|}\n[[File:A.jpg]] [[Category:B]] [[de:Ada]] <gallery>c</gallery> }} and <timeline>d</timeline>"
    )
    assert prose.dropped == {
        "templates beside the text": 1, "notes and sources in templates": 1, "template inflation": 1, "formulas": 1, "references": 1,
        "tables": 1, "images": 1, "categories": 1, "links to other languages": 1, "<gallery>": 1, "unclosed markup": 1, "<timeline>": 1,
    }  # fmt: skip


def test_a_page_of_markup_alone_is_no_text():
    assert _text("{{Infobox}}\n[[Category:X]]\n== A ==\n<ref>b</ref>") == ""
    assert _text("") == ""
