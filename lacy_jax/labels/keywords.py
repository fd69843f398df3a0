"""Word lists of the rules, as data: words that state a fact without being a name, and words that never do."""

from __future__ import annotations

import re

MONTHS = "january february march april may june july august september october november december".split()

_NUMBERS = (
    "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen "
    "nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million billion half twice dozen"
)
_ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth twentieth nineteenth eighteenth"
_OCCUPATIONS = (
    "accountant activist actor actress admiral ambassador analyst anthropologist archaeologist archbishop architect "
    "artist astronaut astronomer athlete attorney author ballerina banker baritone barrister baseball basketball bassist "
    "biologist bishop boxer broadcaster businessman businesswoman cardinal cellist chef chemist choreographer "
    "cinematographer clergyman coach comedian commander composer conductor councillor cricketer critic curator cyclist "
    "dancer dentist designer diplomat director doctor drummer economist editor engineer entrepreneur essayist explorer "
    "farmer filmmaker fighter footballer general geographer geologist golfer goalkeeper governor guitarist gymnast "
    "historian illustrator inventor journalist judge jurist lawyer lecturer librettist linguist magistrate "
    "mathematician mayor merchant midfielder minister missionary model monk musician naturalist novelist nun nurse "
    "officer painter pastor pharmacist philanthropist philosopher photographer physician physicist pianist pilot "
    "playwright poet politician presenter president priest principal producer professor programmer psychiatrist "
    "psychologist publisher rapper rower sailor scholar scientist screenwriter sculptor secretary senator singer skater "
    "skier sociologist soldier songwriter soprano statesman striker surgeon swimmer teacher tenor theologian trader "
    "trainer translator trumpeter violinist winger wrestler writer zoologist"
)

_FIELDS = (
    "accounting agriculture anatomy anthropology archaeology architecture art arts astronomy biochemistry biology botany "
    "business chemistry classics commerce dentistry drama ecology economics education electronics engineering finance "
    "genetics geography geology geometry journalism law linguistics literature logic management mathematics mechanics "
    "medicine meteorology music neuroscience nursing pathology pharmacology philosophy photography physics physiology "
    "politics psychiatry psychology science sociology statistics surgery theatre theology zoology"
)
_SPORTS = (
    "archery athletics badminton baseball basketball biathlon bobsleigh boxing canoeing chess cricket curling cycling "
    "decathlon diving fencing football golf gymnastics handball hockey hurling judo karate lacrosse luge marathon netball "
    "polo rowing rugby sailing shooting skating skiing snooker snowboarding soccer softball squash swimming taekwondo "
    "tennis triathlon volleyball weightlifting wrestling"
)
_INSTRUMENTS = (
    "accordion banjo bassoon cello clarinet drum drums flute guitar harmonica harp harpsichord horn keyboards mandolin oboe "
    "organ percussion piano saxophone sitar synthesizer tabla trombone trumpet tuba ukulele viola violin vocals"
)
_GENRES = (
    "ballet bluegrass blues comedy country disco documentary fantasy fiction folk funk gospel grunge hip-hop horror jazz "
    "metal opera poetry pop punk rap reggae rock romance soul techno thriller"
)
_DIRECTIONS = (
    "north south east west northern southern eastern western north-east north-west south-east south-west northeast "
    "northwest southeast southwest northeastern northwestern southeastern southwestern"
)
_AMOUNTS = "gold silver bronze percent kilometres kilometers miles acres hectares metres meters feet tonnes"
_KINDS = (
    "airline airport album anthology archipelago asteroid bank battalion beetle bird brewery bridge cathedral castle cave "
    "cemetery church city comune constellation dam dialect district enzyme fish film fort frog galaxy genus glacier "
    "hamlet harbour hospital insect island lake library lighthouse magazine mammal manga mineral miniseries monastery "
    "mosque moth mountain municipality museum newspaper novel novella palace parish peninsula plant prison protein "
    "province railway reptile restaurant river school ship shrub sitcom snail song species spider stadium stream "
    "submarine suburb synagogue telenovela temple town treaty tree university valley village virus volcano warship"
)

KEYWORDS: dict[str, str] = {
    **dict.fromkeys(_KINDS.split(), "kind"),
    **dict.fromkeys(_FIELDS.split(), "field"),
    **dict.fromkeys(_SPORTS.split(), "sport"),
    **dict.fromkeys(_INSTRUMENTS.split(), "instrument"),
    **dict.fromkeys(_GENRES.split(), "genre"),
    **dict.fromkeys(_DIRECTIONS.split(), "direction"),
    **dict.fromkeys(_AMOUNTS.split(), "amount"),
    **dict.fromkeys(_NUMBERS.split(), "number"),
    **dict.fromkeys(_ORDINALS.split(), "ordinal"),
    **dict.fromkeys(_OCCUPATIONS.split(), "occupation"),
}
"""Lower-case word -> name of the rule that fires on it."""

_AMBIGUOUS = frozenset("country metal rock soul".split())
"""Genres with other meanings; they count as genres only beside certain words."""
_OF_MUSIC = frozenset(
    "music musical singer singers song songs songwriter songwriters album albums artist artists act band bands duo trio group groups "
    "musician musicians guitarist drummer star stars hit hits single singles chart charts scene record records recording festival "
    "radio anthem ballad ballads crossover fans legend".split()
)
_STYLES = frozenset(
    "alternative art black classic contemporary death doom electronic experimental glam hard heavy indie neo nu progressive "
    "psychedelic soft southern symphonic thrash traditional".split()
)
_BESIDE = re.compile(r"(?: and | or |, |[ /&-])([A-Za-z]+)")
_BEFORE = re.compile(r"([A-Za-z]+)(?: and | or |, |[ /&-])$")


def keyword_rule(text: str, start: int, end: int) -> str:
    """The rule that fires on the word text[start:end], or "". A word with several senses needs a suitable word beside it.

    "He sang country and blues" names a genre, "the country" does not.
    """
    word = text[start:end].lower()
    rule = KEYWORDS.get(word, "")
    if word not in _AMBIGUOUS:
        return rule
    after, before = _BESIDE.match(text, end), _BEFORE.search(text, max(start - 24, 0), start)
    following, preceding = (match[1].lower() if match else "" for match in (after, before))
    genres = {name for name in (following, preceding) if KEYWORDS.get(name) == rule}
    return rule if genres or following in _OF_MUSIC or preceding in _STYLES else ""


VAGUE = frozenset(
    (
        "a about ago all an annual annually another any around at centuries century couple current currently daily date "
        "day days decade decades dozens each earlier early end every few final first following for from half hour hours "
        "hundreds in its last late later least many millions modern-day moment month monthly months more most next night "
        "now of on one ones only over past period present present-day previous recent same season seasons several "
        "short some that the their these this thousands time times today tonight tomorrow was week weekly weeks "
        "year year-round yearly years yesterday young her his"
    ).split()
)
"""A date or number made only of these words ("the same year", "only one") states nothing that could be looked up."""

FINITE_VERBS = (
    "was is were are has had have would could did won became wrote made took led held went left began met sang ran taught gave "
    "grew built fought spent"
).split()
"""Verbs that make a line or a clause a sentence, as does a word that ends in "-ed"."""

ABBREVIATED_TITLES = "Dr Mr Mrs Ms St Jr Sr Prof Rev Gen Col Lt Capt Sgt No".split()
"""Titles before names that are written with a full stop."""
ABBREVIATIONS = [
    *ABBREVIATED_TITLES, *"vs etc Inc Ltd Co approx ca c b d fl var Mgr Ven Jan Feb Aug Sept Oct Nov Dec".split()
]  # fmt: skip
"""Words whose full stop does not end a sentence."""

FUNCTION_WORDS = frozenset(
    (
        "a about above across after again against all along also although always am among an and another any "
        "are around as at away back be became because become been before began being below between both but "
        "by can could despite did do does down during each either else even ever every few for former from "
        "further had has have having he her here hers herself him himself his how however i if in including "
        "instead into is it its itself just later many may me might more most much must my near neither never "
        "next no nor not now of off often on once one only onto or other others our out over own per same "
        "several shall she should since so some such than that the their them themselves then there therefore "
        "these they this those though through throughout thus to together too toward towards under until up "
        "upon us very was we were what when where whereas whether which while who whom whose why will with "
        "within without would yet you your 's n't "
    ).split()
)
"""Words with a grammatical role and no content."""
