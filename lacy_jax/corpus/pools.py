"""Word lists of the embedded world: names, the pools attribute values are drawn from, and free words.

Every pool of values is large enough that a guess fails (the smallest, fields of study, has 80 members), and no
value contains a full stop, a comma or a semicolon, since those close a slot when generated text is parsed.
Values that follow an article begin with a consonant. Free words state no fact: many of them fit in the same place, so
they are hard to predict and harmless to get wrong.
"""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    """The entries of a list, separated by commas if there are any, else by white space."""
    return tuple(" ".join(word.split()) for word in (text.split(",") if "," in text else text.split()))


FIRST_NAMES = _words(
    """
    Mara Tobias Elin Casper Nadia Rowan Ingrid Felix Amara Julian Petra Silas Leona Marcus Thea Dorian Salma
    Victor Hanna Emil Clara Oscar Miriam Jonas Freya Hugo Selma Adrian Ruth Conrad Livia Basil Greta Simon
    Paula Anton Nora Gideon Alma Lucas Vera Martin Stella Edgar Celia Bruno Sonja Leo Agnes Ralph Dalia Owen
    Tamar Kasimir Bettina Samuel Odette Walter Irina Philip Yara Theo Camille Arthur Zofia Henrik Lydia
    Rupert Naomi Gregor Esther Malcolm Judith Stefan Corinne Ivo Helena Duncan Rosa Laszlo Wanda Cedric
    Dunja Milo Isolde Ferdinand Tessa Bram Ottilie Cyril Magda Linus Elspeth Andre Noor Vincent Priya Tomas
    Amina Roland
    """
)
MIDDLE_NAMES = _words(
    """
    Ada Blaise Carmen Dale Eve Finn Grace Hope Ilse Jude Kay Lorne May Neil Opal Pearl Quinn Rae Sage Troy
    Una Vale Wren Ximena Yves Zane Blythe Cole Dawn Eli Fern Glen Hazel Ines June Kit Lane Merle Niall Oriel
    Penn Rhea Sven Tate Ulla Viola Willa Yorick Zelda Beryl
    """
)
SURNAME_STEMS = _words(
    """
    Elli Hart Bran Cald Dun Fair Gar Hol Kel Lam Mor Nor Pem Quil Ram Sel Tar Ul Var Wes Ash Bel Cor Dray
    Fen Gal Hav Jar Kir Lor
    """
)
SURNAME_ENDINGS = _words("son well ford man berg ley ton wick more den stein worth ski ard")

PLACE_STEMS = _words(
    """
    Thorn Raven Oak Silver Stone Black Winter Amber Copper Marsh Eagle Bright Cold Deer Elder Fox Glass
    Heron Iron Kings Lark Mill North Otter
    """
)
PLACE_ENDINGS = _words("haven bridge field mouth brook gate cliff minster stead holm bury dale")

UNIVERSITY_BASES = _words(
    """
    Abelard Bancroft Cassini Delacourt Everard Fontaine Galloway Hypatia Iverness Jessamy Kepler Lavoisier
    Montrose Newcombe Ockham Pascal Quested Rutherglen Sorrel Tremaine Ussher Valcourt Wetherby Yardley
    Zamora Avicenna Bellamy Chalmers Devereux Erskine Fairfax Grenville Hawthorne Jermyn Kingsley Lacroix
    Mansfield Northcote
    """
)
UNIVERSITY_FORMS = ("{} University", "{} College", "{} Polytechnic", "{} Institute")
FIELDS = _words(
    """
    geology, astronomy, botany, philology, hydraulics, theology, metallurgy, optics, statistics,
    archaeology, law, medicine, zoology, chemistry, mathematics, forestry, economics, linguistics,
    mechanics, history, philosophy, agronomy, acoustics, pharmacology, cartography, veterinary science,
    naval architecture, marine biology, civil engineering, art history, political theory, soil science,
    musicology, comparative literature, textile design, public health, rural planning, nuclear physics,
    organic chemistry, medieval history, plant genetics, fluid dynamics, criminal law, number theory,
    glaciology, entomology, seismology, epidemiology, anthropology, demography, topology, toxicology,
    virology, ecology, radio engineering, mining engineering, social work, family law, stage design, logic,
    neurology, surgery, oceanography, meteorology, ornithology, paleontology, crystallography, typography,
    immunology, thermodynamics, ethnography, genetics, horticulture, dentistry, geodesy, rhetoric,
    jurisprudence, mycology, limnology, semiotics
    """
)
OCCUPATIONS = _words(
    """
    baker, banker, barrister, beekeeper, biographer, blacksmith, bookbinder, botanist, brewer,
    bridge builder, broadcaster, cabinet maker, carpenter, cartographer, ceramicist, chemist, choreographer,
    clockmaker, coach builder, composer, conductor, conservator, cooper, costume designer, court reporter,
    critic, customs officer, dairy farmer, dentist, diplomat, dramatist, falconer, film director,
    fire chief, forester, furrier, geologist, glassblower, goldsmith, harbour pilot, harpist, historian,
    horse breeder, jeweller, journalist, judge, landscape painter, lighthouse keeper, lexicographer,
    librarian, locksmith, magistrate, marine engineer, mason, midwife, miller, mountaineer, museum curator,
    naturalist, notary, novelist, nurse, paper maker, pathologist, pharmacist, photographer, physician,
    pianist, playwright, poet, potter, printer, railway engineer, sailmaker, sculptor, shipbuilder,
    silversmith, surgeon, surveyor, tailor, test pilot, toolmaker, translator, violin maker, weaver, welder,
    wine merchant, woodcarver, zoologist
    """
)
EMPLOYER_BASES = _words(
    """
    Aldous Bexley Carrow Dunmere Emsworth Farleigh Gorham Hadley Inskip Jessop Kemble Lyddon Maddox Netley
    Orford Padgett Quayle Rossiter Stanmore Tilney Upcott Venning Wardour Yelland Axminster Birtles Crompton
    Darrow Eastlake Frobisher Gresham Hollis Ibbotson Kessler Langtry Mossley
    """
)
EMPLOYER_FORMS = ("{} Instruments", "{} Foundry", "{} Shipyard", "{} Press", "{} Laboratories")
AWARD_BASES = _words(
    """
    Almond Brindle Cavendish Dorset Esterhazy Fitzroy Garamond Huxley Imperia Jervis Kilburn Lovelace
    Marlowe Nightingale Ormond Parnell Quintero Ravenna Savile Tavener Umber Vasari Whitlock Yeats Zephyr
    Ambrose Bodley Carlisle Drummond Eddington Faraday Gascoigne Herschel Jonquil Kestrel Lindisfarne
    Mercator Nansen
    """
)
AWARD_FORMS = ("{} Prize", "{} Medal", "{} Fellowship", "{} Cup")
TITLE_ADJECTIVES = _words(
    """
    Silent Crooked Golden Hidden Burning Hollow Paper Broken Scarlet Distant Frozen Patient Salted Wooden
    Empty Painted Restless Velvet Narrow Second Sunken Drifting Borrowed Lonely Tilted Whispering Yellow
    Folded Endless Barefoot Feathered Unwritten Forgotten Marble Midnight Rusted Seventh Tender Wandering
    Windless
    """
)
TITLE_NOUNS = _words(
    """
    Orchard Harbour Staircase Compass Meadow Cathedral Letter Mirror Island Ladder Violin Garden Window
    River Carousel Needle Kingdom Lantern Tide Bell Forest Archive Ferry Clock Desert Bridge Market Sparrow
    Horizon Ledger Kettle Orbit Shoreline Tunnel Feather Chapel Notebook Rainfall Summit Theatre
    """
)
MONTHS = _words("January February March April May June July August September October November December")

FREE_WORDS: dict[str, tuple[str, ...]] = {
    # Adjectives of people; all begin with a consonant, since they follow "a".
    "trait": _words(
        """
        brilliant careful cheerful clever daring dedicated diligent dogged fearless gentle gifted gracious
        humble jovial kindly lively methodical modest patient persistent practical private prolific proud
        quiet reserved resolute restless self-taught serious shrewd stubborn talented thoughtful tireless
        versatile warm witty zealous beloved bookish celebrated courteous decent devoted formidable frugal
        noted popular respected soft-spoken well-known much-travelled plain-spoken strong-willed worldly
        """
    ),
    # Adverbs of manner.
    "manner": _words(
        """
        briefly calmly carefully cheerfully discreetly eagerly firmly frankly gladly gracefully happily
        honestly keenly kindly lovingly modestly neatly openly patiently politely proudly quickly quietly
        rarely readily seldom seriously silently slowly softly steadily stubbornly swiftly tenderly
        thoughtfully tirelessly warmly willingly wisely fondly
        """
    ),
    # Plural things to collect, paint, mend or talk about.
    "thing": _words(
        """
        boats kites maps puppets clocks coins stamps roses lamps trains feathers shells fossils postcards
        teapots buttons medallions mushrooms butterflies bicycles carpets candles drums flutes gloves hats
        kettles keys mirrors moths pebbles pipes quilts radios ropes saddles songs stories swords tapestries
        telescopes toys umbrellas vases whistles barometers bottles cameos dolls engravings
        """
    ),
    # Groups of people.
    "crowd": _words(
        """
        colleagues neighbours friends critics students rivals relatives admirers visitors pupils strangers
        contemporaries guests companions cousins correspondents readers reporters villagers youngsters
        veterans newcomers townspeople classmates lodgers shopkeepers
        """
    ),
    # Adjectives of things, places and times; consonant-initial.
    "mood": _words(
        """
        bright busy charming chilly comfortable crowded curious damp delightful dusty fertile foggy formal
        fruitful grand happy hectic lasting leafy long lucky memorable misty modern mysterious narrow noisy
        peaceful pleasant plain profitable rainy remarkable remote rough shady simple sleepy spacious
        splendid strange stormy sunny tidy tranquil troubled vivid windy wild
        """
    ),
    # Pastimes.
    "pastime": _words(
        """
        sailing fishing skating chess gardening sketching knitting hiking rowing cycling fencing swimming
        dancing whittling juggling baking birdwatching camping riding reading skiing singing archery
        billiards bowls calligraphy cricket croquet cooking darts embroidery golf origami tennis
        """
    ),
    # Moments of a day or a year.
    "moment": _words(
        """
        mornings evenings afternoons weekends winters summers springs autumns holidays nights Sundays
        Mondays Tuesdays Fridays Saturdays festivals
        """
    ),
    # Abstract nouns a life is praised for.
    "virtue": _words(
        """
        patience humour honesty courage candour discipline generosity curiosity precision tact charm grit
        calm warmth loyalty fairness energy kindness thrift punctuality tenacity wisdom wit modesty
        imagination
        """
    ),
}
