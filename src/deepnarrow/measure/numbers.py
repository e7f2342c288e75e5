"""How numbers are written in tables, plots and cards: three digits that mean something, and a unit."""

STEPS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "K"))
MISSING = "not measured"


def significant(value: float, digits: int = 3) -> str:
    """A number with that many significant digits, never in the form 1e+03; whole digits are not rounded away.

    >>> significant(0.059012), significant(12.345), significant(123456.7), significant(0)
    ('0.0590', '12.3', '123,457', '0')
    """
    if value == 0:
        return "0"
    size = f"{abs(value):.{digits - 1}e}"
    exponent = int(size.split("e")[1])
    return f"{value:,.{max(0, digits - 1 - exponent)}f}"


def short(value: float, digits: int = 3) -> str:
    """A large number with K, M, G or T.

    >>> short(15_570_688), short(2.1e9), short(999), short(999_999)
    ('15.6 M', '2.10 G', '999', '1.00 M')
    """
    for size, letter in STEPS:
        if abs(value) >= size * (1 - 0.5 * 10 ** (-digits)):
            return f"{significant(value / size, digits)} {letter}"
    return significant(value, digits)


def tick(value: float) -> str:
    """The same for an axis, without digits that say nothing.

    >>> tick(20e6), tick(1.5e9), tick(0.5), tick(50)
    ('20 M', '1.5 G', '0.5', '50')
    """
    for size, letter in STEPS:
        if abs(value) >= size:
            return f"{value / size:g} {letter}"
    return f"{value:g}"


def percent(share: float | None) -> str:
    """
    >>> percent(0.123), percent(None)
    ('12 %', 'not measured')
    """
    return MISSING if share is None else f"{100 * share:.0f} %"


def interval(value: float, low: float | None, high: float | None, places: int = 1) -> str:
    """A value with its interval.

    >>> interval(41.26, 38.0, 44.51), interval(41.26, None, None)
    ('41.3 (38.0 to 44.5)', '41.3')
    """
    text = f"{value:.{places}f}"
    return text if low is None or high is None else f"{text} ({low:.{places}f} to {high:.{places}f})"


def counted(number: int, noun: str) -> str:
    """
    >>> counted(1, "shape"), counted(2, "shape")
    ('1 shape', '2 shapes')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
