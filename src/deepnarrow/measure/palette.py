"""The colours of plots and page, once for light paper and once for dark.

A plot is drawn in the light colours. In the page each of them becomes a variable (`var(--accent)`), so that one drawing
serves both; therefore no two light colours may be equal. Text colours have a contrast of at least 4.5 against the paper
of their theme (WCAG 2.2, 1.4.3), marks of at least 3 (1.4.11); tests/measure/test_plots.py holds that.
"""

LIGHT = {
    "paper": "#fdfcfa",
    "card": "#fffefd",
    "ink": "#1c2128",
    "soft": "#59626e",  # secondary text
    "grid": "#e6e3dc",
    "accent": "#0b6e69",  # the frontier
    "glow": "#d8ebe8",  # behind the frontier
    "pick": "#b4430f",  # the recommended shape
    "faint": "#8a929c",  # dominated marks
    "series0": "#0d6f9e",
    "series1": "#b45309",
    "series2": "#5b4bb7",
    "series3": "#2f7d32",
    "series4": "#b3266b",
    "series5": "#6b5b1f",
    "series6": "#0f7f7a",
    "series7": "#7a3e8e",
}
DARK = {
    "paper": "#13161b",
    "card": "#1a1e25",
    "ink": "#eceae5",
    "soft": "#a7afba",
    "grid": "#2c323b",
    "accent": "#5ccbc0",
    "glow": "#17302f",
    "pick": "#ff9a62",
    "faint": "#757d89",
    "series0": "#62b8e8",
    "series1": "#f0a04b",
    "series2": "#a99bf5",
    "series3": "#7ccb7f",
    "series4": "#f07fb3",
    "series5": "#cdbb6a",
    "series6": "#5fd0c8",
    "series7": "#cf92e0",
}
TEXT = ("ink", "soft", "accent", "pick", *(f"series{n}" for n in range(8)))
MARKS = ("faint",)
SERIES = 8


def css(theme: dict[str, str]) -> str:
    """The theme as declarations for a style sheet.

    >>> css({"ink": "#000001"})
    '--ink: #000001;'
    """
    return " ".join(f"--{name}: {value};" for name, value in theme.items())


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours, 1 to 21 (WCAG 2.2).

    >>> round(contrast("#000000", "#ffffff"))
    21
    """
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    """Relative luminance of `#rrggbb` (WCAG 2.2), from 0 to 1."""

    def linear(channel: float) -> float:
        return channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4

    red, green, blue = (linear(int(colour[at : at + 2], 16) / 255) for at in (1, 3, 5))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
