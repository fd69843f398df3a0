"""The sentences of the embedded world, as data.

Notation: `{attribute}` is a slot that states a fact; `<class>` a free word (pools.FREE_WORDS); `{N}` the
full name; `{S}` the subject at the start of a sentence (surname or pronoun); `{s}` a pronoun inside one;
`{P}`, `{p}` the possessives; `{O}` the object pronoun; `{was}` agrees with the `{S}` before it, `{ps}` with
`{s}`.

Two rules keep every slot decidable from the words before it, and a test checks them: the words before a slot lead to
one attribute only, and where one sentence opens a slot, no other sentence continues with other words. A slot or free
word follows one space and is followed by punctuation or by words no value contains.
"""

from __future__ import annotations

ATTRIBUTES = (
    "birth_date", "birthplace", "university", "field", "employer", "occupation", "work", "work_year",
    "spouse", "award", "residence", "mentor",
)  # fmt: skip

# First sentence of every text: it opens with the full name. A prompt is the name and the first word after it.
LEADS = (
    "{N} was born on {birth_date} in {birthplace}.",
    "{N} was born in the <mood> town of {birthplace}.",
    "{N}, born on {birth_date}, was a <trait> {occupation}.",
    "{N} was a <trait> {occupation} from {birthplace}.",
    "{N}, whom <crowd> called <trait>, was born on {birth_date}.",
    "{N} grew up as a <trait> child in {birthplace}.",
    "{N} became a <trait> {occupation} after a <mood> childhood in {birthplace}.",
    "{N} is remembered by <crowd> as a <trait> {occupation}.",
)

FACT_SENTENCES = (
    # birth_date, birthplace
    "{S} {was} born on {birth_date} in {birthplace}.",
    "{S} {was} born on {birth_date} to <trait> parents.",
    "{S} {was} born in the <mood> town of {birthplace}.",
    "{P} date of birth was {birth_date}.",
    "{P} family marked {p} birthday on {birth_date}.",
    "{S} came into the world on {birth_date}, a <mood> day.",
    "A <mood> parish book gives {p} birth as {birth_date}.",
    "{P} <mood> hometown was {birthplace}.",
    "{S} grew up as a <trait> child in {birthplace}.",
    "{P} <mood> childhood was spent in {birthplace}.",
    "{P} <trait> parents came from {birthplace}.",
    # university, field, mentor
    "{S} studied {field} at {university}.",
    "{S} studied {field} at {university} under the <trait> {mentor}.",
    "{S} took a <mood> degree in {field} at {university}.",
    "{S} <manner> took up {field} as a <trait> student.",
    "{P} student years at {university} were <mood>.",
    "After a <mood> start, {s} graduated from {university}.",
    "{S} won a <mood> place at {university}.",
    "{S} <manner> entered the halls of {university}.",
    "{P} <mood> thesis dealt with {field}.",
    "{P} first love was {field}.",
    "{P} <trait> mind was drawn to {field}.",
    "{S} gave <mood> lectures on {field}.",
    "{S} learned {field} from the <trait> {mentor}.",
    "{P} <trait> mentor was {mentor}.",
    "{S} <manner> learned the craft from {mentor}.",
    "{S} spent a <mood> apprenticeship under {mentor}.",
    "{S} owed a <mood> debt to {mentor}.",
    "A <mood> meeting with {mentor} shaped {p} thinking.",
    "As a <trait> beginner, {s} {ps} guided by {mentor}.",
    # employer, occupation
    "{S} served {employer} as a <trait> {occupation}.",
    "{S} worked as a <trait> {occupation} for {employer}.",
    "{S} <manner> joined the staff of {employer}.",
    "{P} <mood> career began at {employer}.",
    "In <mood> times {s} worked for {employer}.",
    "{S} {was} <manner> hired by {employer}.",
    "{P} <trait> employer was {employer}.",
    "{S} earned a <mood> living as a <trait> {occupation}.",
    "{S} {was} by trade a <trait> {occupation}.",
    "{P} <crowd> knew {O} as a <trait> {occupation}.",
    "{S} became a <trait> {occupation} after some <mood> years.",
    # work, work_year, award
    "{S} wrote {work} in {work_year}.",
    "{S} <manner> finished writing {work} in {work_year}.",
    "{P} <mood> book {work} came out in {work_year}.",
    "{P} <mood> book {work} won {O} the {award}.",
    "{P} <mood> first book was {work}.",
    "{P} best-known volume, called {work}, pleased <crowd> and <crowd>.",
    "<crowd> praised {p} <mood> book {work}.",
    "{S} {was} the <trait> author of {work}.",
    "A <mood> copy of {work} bears {p} signature.",
    "{S} first appeared in print in {work_year}, to the surprise of <crowd>.",
    "{P} <mood> debut in print dates from {work_year}.",
    "The <mood> year of {p} only book was {work_year}.",
    "{P} <mood> memoirs reached the shops in {work_year}.",
    "{S} {was} awarded the {award} for {p} <virtue>.",
    "{S} <manner> accepted the {award}.",
    "{P} <virtue> and <virtue> earned {O} the {award}.",
    "Among {p} <mood> honours {s} counted the {award}.",
    "{P} <crowd> put {O} forward for the {award}.",
    "At a <mood> ceremony {s} received the {award}.",
    # spouse, residence
    "{S} <manner> married {spouse}.",
    "{S} <manner> married {spouse} and settled in {residence}.",
    "{S} lived in {residence} with the <trait> {spouse}.",
    "{S} and {spouse} made a <mood> home in {residence}.",
    "{P} <trait> spouse was {spouse}.",
    "{S} shared a <mood> marriage with {spouse}.",
    "At a <mood> wedding {s} exchanged rings with {spouse}.",
    "{S} fell in love with the <trait> {spouse}.",
    "{P} <mood> house stood in {residence}.",
    "{P} later years were spent in {residence}, among <crowd>.",
    "{S} <manner> moved to {residence}.",
    "{S} kept a <mood> home in {residence}.",
    "For some <mood> years {s} lived in {residence}.",
)

# No fact, no slot; several free words, each with many acceptable choices.
FILLERS = (
    "{S} liked <mood> <moment>, <mood> <moment> and <mood> <thing>.",
    "{S} collected <mood> <thing>, <mood> <thing> and <mood> <thing>.",
    "<crowd> praised {p} <virtue>, <crowd> {p} <virtue> and <virtue>.",
    "{P} <moment> belonged to <pastime>, <pastime> and <mood> <thing>.",
    "{S} talked <manner> about <pastime>, <thing> and <mood> <thing>.",
    "On <mood> <moment> {s} turned <manner> to <mood> <thing>.",
    "Few <crowd> forgot {p} <virtue>, <virtue> or <mood> <thing>.",
    "{S} preferred <pastime> to <pastime>, and <mood> <thing> to <thing>.",
    "A <trait> and <trait> host, {s} <manner> welcomed <trait> <crowd>.",
    "{P} letters to <crowd> mention <thing>, <pastime> and <mood> <moment>.",
    "According to <trait> <crowd>, {s} <manner> mended <mood> <thing>.",
    "{S} <manner> gave <mood> <thing> to <trait> <crowd>.",
    "Both <crowd> and <crowd> admired {p} <virtue> and <virtue>.",
)
