"""Each rule of C4 on a page before and after, and the order they are in."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from deepnarrow.errors import UserError
from deepnarrow.text.cleaning import C4, Settings, bad_words, clean, language, sentences
from deepnarrow.text.cleaning.rule import Rule

FILLER = "The river runs past the old mill.\nIt has done so for ages.\nNobody can say why it does."


def cleaned(page: str, rules: tuple[Rule, ...] = C4) -> tuple[str | None, dict[tuple[str, str], int]]:
    counts: Counter[tuple[str, str]] = Counter()
    return clean(page, rules, counts), dict(counts)


def test_a_good_page_is_left_alone() -> None:
    assert cleaned(FILLER) == (FILLER, {})


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("word " * 5 + "x" * 1001 + ".", "long words"),
        ("Home and news and sport and weather", "no end mark"),
        ("Read the rest of this story...", "no end mark"),
        ("We ate bread today.", "short lines"),
        ("Please turn on JavaScript to see this page.", "javascript"),
        ("By reading on you accept our Privacy Policy today.", "policy and cookies"),
        ("This site uses cookies to remember its readers.", "policy and cookies"),
    ],
)
def test_a_bad_line_is_dropped(line: str, rule: str) -> None:
    assert cleaned(f"{line}\n{FILLER}") == (FILLER, {(rule, "lines"): 1})
    assert cleaned(f"{FILLER}\n  {line}  \n") == (FILLER, {(rule, "lines"): 1})


@pytest.mark.parametrize(
    ("page", "rule"),
    [
        (FILLER + "\nHere stands Lorem ipsum dolor sit amet.", "lorem ipsum"),
        (FILLER + "\nThe function is f = { return 1 } there.", "curly bracket"),
        ("The river runs past the old mill. It has done so for ages.", "few sentences"),
        (FILLER + "\n" + "It rained all day long, again. " * 6200, "long pages"),
    ],
)
def test_a_bad_page_is_dropped(page: str, rule: str) -> None:
    assert cleaned(page) == (None, {(rule, "documents"): 1})


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("Rome was founded on seven hills.[1][23]", "Rome was founded on seven hills."),
        ("Rome[edit] was founded on hills.[citation needed]", "Rome was founded on hills."),
        ("Rome [sic] was founded on hills [a].[]", "Rome [sic] was founded on hills [a]."),
    ],
)
def test_citation_markers_are_cut_out(before: str, after: str) -> None:
    assert cleaned(f"{before}\n{FILLER}") == (f"{after}\n{FILLER}", {("citation markers", "changed"): 1})


def test_a_rule_sees_what_the_rules_before_it_left() -> None:
    """As in c4_utils: a bracket or "lorem ipsum" in a line without an end mark costs the line alone."""
    assert cleaned("menu { } lorem ipsum\n" + FILLER)[0] == FILLER
    # A citation behind the full stop does not hide it.
    assert cleaned("The hills of Rome are seven.[7]\n" + FILLER)[0] == "The hills of Rome are seven.\n" + FILLER


def test_all_end_marks_and_exact_borders() -> None:
    page = 'Did it rain all day?\nYes, it rained all day!\n"It rained all day, yes."'
    assert cleaned(page) == (page, {})
    edge = f"one two three four {'x' * 999}."
    assert cleaned(f"{FILLER}\n{edge}")[0] == f"{FILLER}\n{edge}"
    assert cleaned(f"{FILLER}\n{edge[:-1]}x.")[1] == {("long words", "lines"): 1}


@pytest.mark.parametrize(
    ("page", "kept"),
    [
        ("A classy person wrote this page about Scunthorpe.", True),
        ("He said darn and left.", False),
        ("Darn! He left.", False),
        ("What a dirty  word.", True),
        ("What a dirty word.", False),
        ("darned", True),
    ],
)
def test_bad_words_stand_alone(page: str, kept: bool) -> None:
    rule = bad_words.rule(("darn", "Dirty word", "ass"))
    assert cleaned(page, (rule,)) == (page if kept else None, {} if kept else {("bad words", "documents"): 1})


def test_languages_without_spaces_find_words_inside() -> None:
    assert cleaned("\u4e00\u4e8c\u4e09", (bad_words.rule(("\u4e8c",), "zh-cn"),))[0] is None


def test_lists_of_bad_words(tmp_path: Path) -> None:
    (tmp_path / "en.txt").write_text("one\n\ntwo words \n")
    assert bad_words.read(tmp_path / "en.txt") == ("one", "two words")
    (tmp_path / "empty.txt").write_text("\n")
    for name, message in (("none.txt", "no such file"), ("empty.txt", "holds no words"), (".", "is no list")):
        with pytest.raises(UserError, match=message):
            bad_words.read(tmp_path / name)


GERMAN = "Der Fluss flie\u00dft hinter der Kirche vorbei. Das tut er seit vielen Jahren. Niemand wei\u00df, warum."


def test_language() -> None:
    pytest.importorskip("langdetect", reason="langdetect is in the extra `data`")
    english, german = language.rule("en"), language.rule("de")
    assert cleaned(FILLER, (english,)) == (FILLER, {})
    assert cleaned(GERMAN, (english,)) == (None, {("language is not en", "documents"): 1})
    assert cleaned(GERMAN, (german,)) == (GERMAN, {})
    assert cleaned("123 456 !!", (english,))[0] is None
    mixed = FILLER + " " + GERMAN
    assert len({cleaned(mixed, (english,))[0] for _ in range(10)}) == 1  # the seed makes it certain
    with pytest.raises(UserError, match="knows no language 'xx'; it knows af, ar"):
        language.rule("xx")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It rained. It stopped.", 2),
        ("Mr. Smith met J. R. Jones, e.g. at noon. They spoke.", 2),
        ('He asked "Why?" and left. (Nobody knew.) So be it.', 3),
        ("one\ntwo\n\nthree", 3),
        ("Version 3.5 is out!!! Really?", 2),
        ("", 0),
        (" \n ", 0),
    ],
)
def test_sentences(text: str, expected: int) -> None:
    assert sentences.count(text) == expected
    places = sentences.spans(text)
    assert all(left < right for left, right in places)
    assert all(one[1] <= other[0] for one, other in pairwise(places))
    assert " ".join(text[left:right] for left, right in places).split() == text.split()


def test_an_unknown_pipeline() -> None:
    with pytest.raises(UserError, match=r"no pipeline named c5; .*c4"):
        Settings(pipeline="c5").before()
