"""Dates of English prose, by grammar. REALM found them by a regular expression (arXiv:2002.08909, section 3.4).

Its expression was not published; this is ours. What counts, and how far a span reaches:

    a day            12 March 1921 | 12th of March, 1921 | March 12, 1921 | Mar. 12 | 4 July | 1921-03-12
    a month          March 1921 | March of 1921
    a season         summer 1952 | summer of 1952 | Christmas 1914
    a year           1921, from 1000 to 2099, in four digits | AD 79 | 79 AD | 44 BC | 10,000 BCE; a year of
                     fewer digits only with an era
    a decade         1990s | the '90s, without the apostrophe's article
    a century        5th century | 5th century BC | nineteenth century | 18th and 19th centuries | 2nd millennium
    a range          1914-1918 | 1914-18 | 12-14 March 1921 | May-June 1940 | 218-201 BC, with a hyphen or a dash. "from
                     1914 to 1918" is two dates.

What does not count: a weekday, a month or a season alone ("in May"), a time of day, "early", "mid-" and "c." before a
date, and a four-digit number that counts something ("1200 men", "about 1500 kilometres", "1,921", "$1900", "No. 1204").

>>> text = "From 12 to 14 March 1921 and in the 1990s, but not 1200 men in May."
>>> [text[start:end] for start, end in dates(text)]
['14 March 1921', '1990s']
"""

import re

MONTH = (
    r"(?:January|February|March|April|May|June|July|August|September|October|November|December"
    r"|(?:Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)\b\.?)"
)
DAY = r"(?:3[01]|[12]\d|0?[1-9])(?:st|nd|rd|th)?"
YEAR = r"(?:1\d{3}|20\d\d)"
ERA = r"(?:BCE|BC|CE|AD|B\.C\.E\.|B\.C\.|C\.E\.|A\.D\.|BH|AH)(?!\w)"
DASH = "[ \u00a0]?[-\u2010-\u2015][ \u00a0]?"
GAP = "[ \u00a0]"
SEASON = r"(?:[Ss]pring|[Ss]ummer|[Aa]utumn|[Ff]all|[Ww]inter|Christmas|Easter|New Year's Day|Lent)"
ORDINAL = (
    r"(?:\d{1,2}(?:st|nd|rd|th)|[Tt]wenty-first|[Tt]wentieth|[Nn]ineteenth|[Ee]ighteenth|[Ss]eventeenth|[Ss]ixteenth"
    r"|[Ff]ifteenth|[Ff]ourteenth|[Tt]hirteenth|[Tt]welfth|[Ee]leventh|[Tt]enth|[Nn]inth|[Ee]ighth|[Ss]eventh"
    r"|[Ss]ixth|[Ff]ifth|[Ff]ourth|[Tt]hird|[Ss]econd|[Ff]irst)"
)
AFTER_MONTH = rf"(?:,?{GAP}(?:of{GAP})?{YEAR}(?![\d,]*\d)(?:{GAP}{ERA})?|,?{GAP}\d{{1,4}}{GAP}{ERA})"
DAY_MONTH = rf"{DAY}{GAP}(?:of{GAP})?{MONTH}"
MONTH_DAY = rf"{MONTH}{GAP}{DAY}(?![\d:]|[.,]\d)"

# In order: what comes first wins where several fit.
DATE = re.compile(
    r"\b(?=[\dJFMASONDCELWT]|s[peiu]|au|f[aio]|wi|t[weh]|ni|e[il])"  # how they start: quicker than trying each
    r"(?:(?:(?<![.,$\u00a3\u20ac#/-])|(?<=\b(?:mid|pre)-)|(?<=\b(?:late|post)-)|(?<=\bearly-))(?:"
    rf"(?P<iso>{YEAR}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])(?![\w-]))"
    rf"|(?P<day>(?:{DAY_MONTH}(?:{AFTER_MONTH})?{DASH})?(?:{DAY}{DASH})?{DAY_MONTH}\b(?:{AFTER_MONTH})?)"
    rf"|(?P<month_day>{MONTH_DAY}(?:{DASH}(?:{MONTH_DAY}|{DAY})\b)?(?:{AFTER_MONTH})?(?!\w))"
    rf"|(?P<month>{MONTH}(?:{DASH}{MONTH})?{AFTER_MONTH}(?!\w)(?:{DASH}{MONTH}{AFTER_MONTH}(?!\w))?)"
    rf"|(?P<season>{SEASON}(?:{DASH}{SEASON})?,?{GAP}(?:of{GAP})?{YEAR}(?:[-\u2013/]\d\d)?(?!\w))"
    rf"|(?P<century>(?:{ORDINAL}(?:{DASH}|{GAP}(?:and|or|to){GAP}))?{ORDINAL}[ \u00a0-]"
    rf"(?:centur(?:y|ies)|millenni(?:um|a))"
    rf"(?:{GAP}{ERA})?)"
    rf"|(?P<era>(?:(?:\d{{1,3}},\d{{3}}|\d{{1,5}}){DASH})?(?:\d{{1,3}},\d{{3}}|\d{{1,5}}){GAP}?{ERA})"
    rf"|(?P<ad>(?:AD|A\.D\.){GAP}\d{{1,4}}(?:[-\u2013]\d{{1,4}})?(?!\w|[.,-]\d))"
    rf"|(?P<decade>(?:1\d|20)\d0['\u2019]?s(?!\w)(?:{DASH}(?:(?:1\d|20)?\d0['\u2019]?s)(?!\w))?)"
    rf"|(?P<range>{YEAR}{DASH}(?:{YEAR}|\d\d)(?![\w%\u00b0-]|[.,/]\d))"
    rf"|(?P<year>{YEAR}(?:/\d\d)?(?![\w%\u00b0]|[.,/:]\d|[-\u2010-\u2015]\d))"
    r")"
    r"|(?<=['\u2019])(?<!\w['\u2019])(?P<short>[2-9]0s\b))"
)

HINT = re.compile(r"\d+|centur|millenni")
BEFORE, BEFORE_CENTURY, BEHIND = 26, 40, 26  # characters; "twenty-first and twenty-second " has 31, and a day's month
# stands at most "September-December of " before a digit or ", September" behind one

# A bare year is no year if these stand before or behind it.
COUNTING = re.compile(
    r"(?:\b(?:about|around|approximately|roughly|nearly|almost|over|some|than|least|most|exactly|only|another|all|these|"
    r"those|No|no|nos|Nos|number|numbered|page|pages|pp|p|verse|line|lines|model|Model|Route|route|Highway|Flight|flight"
    r"|section|asteroid|of the|up to|with|total of|times|class|Class)\.?|[=+*/x\u00d7<>~])[ \u00a0]$"
)
COUNTED = re.compile(
    r"[ \u00a0](?:(?:square|cubic|metric|short|long|nautical|British|French|German|American|new|other|more|different"
    r"|small|large|foreign|young|armed|additional)[ \u00a0])?"
    r"(?:km|m|cm|mm|ft|mi|kg|g|lb|lbs|oz|mph|hp|kW|MW|W|V|Hz|kHz|MHz|GHz|kB|MB|GB|cc|bhp|rpm|BTU|K|nm|ha|bp|kcal|"
    r"kilomet|met(?:re|er)s?\b|mil(?:e|es|li)\b|feet|foot|inches|yards?\b|acres?\b|hectares?\b|tons?\b|tonnes?\b|pounds?\b|"
    r"dollars|euros|francs|marks|people|persons|men\b|women|children|boys|girls|soldiers|troops|sailors|inhabitants|residents"
    r"|members|students|pupils|seats|votes|copies|words|pages|times\b|years|days|hours|minutes|seconds|months|weeks|degrees|"
    r"ships|guns|horses|cars|aircraft|planes|houses|homes|families|households|workers|employees|prisoners|species|stores|"
    r"points|runs|goals|yards|games|matches|volts|watts|bits|bytes|lines|items|others|units|patients|islands|villages|"
    r"schools|books|songs|films|works|volumes|paintings|objects|stars|barrels|gallons|lit(?:re|er)s|calories|individuals|"
    r"spectators|refugees|civilians|casualties|deaths|dead|killed|wounded|or so|percent|per cent|million|billion|more)"
)


def dates(text: str) -> list[tuple[int, int]]:
    """(first character, character behind the last) of each date, in order and apart."""
    found = []
    for begin, stop in windows(text):
        for match in DATE.finditer(text, begin, stop):
            start, end = match.span()
            if match.lastgroup == "year" and counts_something(text, start, end):
                continue
            if text[end - 1] == "." and match.lastgroup in ("day", "month_day"):  # "12 Mar." at a sentence's end
                end -= 1
            found.append((start, end))
    return found


def windows(text: str) -> list[tuple[int, int]]:
    """The stretches of text that can hold a date: what stands near a digit or a century. The rest need not be read."""
    stretches: list[tuple[int, int]] = []
    begin = stop = -1
    for match in HINT.finditer(text):
        start, end = match.span()
        first = max(start - (BEFORE if text[start].isdigit() else BEFORE_CENTURY), 0)
        if first > stop:
            if stop >= 0:
                stretches.append((begin, stop))
            begin = first
        elif first < begin:  # a century behind a digit looks further back than the digit
            begin = max(first, stretches[-1][1] if stretches else 0)
        stop = end + BEHIND
    return [*stretches, (begin, stop)] if stop >= 0 else stretches


def counts_something(text: str, start: int, end: int) -> bool:
    """Whether a number of four digits stands where one counts, rather than where one dates."""
    return COUNTED.match(text, end) is not None or COUNTING.search(text, max(0, start - 16), start) is not None
