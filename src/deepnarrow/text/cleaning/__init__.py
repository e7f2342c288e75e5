"""Cleaning text in named pipelines: a pipeline is a list of rules, each rule one idea and one file of this folder.

    page      Menu
              The cat sat on the mat all day.[1] It slept. It woke.
              Please enable JavaScript to see this page.
    cleaned   The cat sat on the mat all day. It slept. It woke.

`before` runs page by page; then the corpus is searched for duplicates; then `after` judges what is left. That order,
and the order of the rules, is C4's: a rule sees only what the rules before it left, so that a bracket in a menu costs
the menu's line and not the page.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from deepnarrow.errors import UserError, nearest
from deepnarrow.text.cleaning import (
    bad_words,
    citations,
    curly_brackets,
    few_sentences,
    javascript,
    language,
    long_pages,
    long_words,
    lorem_ipsum,
    policy,
    short_lines,
    terminal_punctuation,
)
from deepnarrow.text.cleaning.rule import Drop, Rule

C4 = (
    long_pages.RULE,
    long_words.RULE,
    citations.RULE,
    terminal_punctuation.RULE,
    short_lines.RULE,
    lorem_ipsum.RULE,
    javascript.RULE,
    curly_brackets.RULE,
    policy.RULE,
    few_sentences.RULE,
)
PIPELINES = {"c4": C4, "none": ()}
Counts = Counter[tuple[str, str]]  # (rule, "lines" or "documents" dropped, or "changed")


@dataclass(frozen=True)
class Settings:
    """What a user chooses. Two equal settings clean alike."""

    pipeline: str = "c4"
    language: str | None = "en"  # None keeps every language
    bad_words: tuple[str, ...] = ()
    dedup: str = "sentences"  # of deduplication.KINDS

    def before(self) -> tuple[Rule, ...]:
        """The rules that look at one page."""
        if self.pipeline not in PIPELINES:
            raise UserError(f"no pipeline named {self.pipeline}; {nearest(self.pipeline, PIPELINES)}")
        return PIPELINES[self.pipeline]

    def after(self) -> tuple[Rule, ...]:
        """The rules that look at what deduplication left."""
        rules: tuple[Rule, ...] = (language.rule(self.language),) if self.language else ()
        if self.bad_words:
            rules += (bad_words.rule(self.bad_words, self.language or "en"),)
        return rules


def read_words(path: Path | None) -> tuple[str, ...]:
    return bad_words.read(path) if path else ()


def clean(text: str, rules: Iterable[Rule], counts: Counts) -> str | None:
    """The text that the rules leave, or None; what each dropped or changed is added to `counts`."""
    for unit, group in groupby(rules, key=lambda rule: rule.unit):
        cleaned = (clean_lines if unit == "line" else clean_page)(text, tuple(group), counts)
        if cleaned is None:
            return None
        text = cleaned
    return text


def clean_page(text: str, rules: tuple[Rule, ...], counts: Counts) -> str | None:
    for rule in rules:
        verdict = rule.judge(text)
        if isinstance(verdict, Drop):
            counts[rule.name, Drop.PAGE.value] += 1
            return None
        text = verdict
    return text


def clean_lines(text: str, rules: tuple[Rule, ...], counts: Counts) -> str | None:
    kept = []
    for raw in text.splitlines():
        line = raw.strip()
        if not line:
            continue
        for rule in rules:
            verdict = rule.judge(line)
            if isinstance(verdict, Drop):
                counts[rule.name, verdict.value] += 1
                if verdict is Drop.PAGE:
                    return None
                break
            if verdict is not line and verdict != line:
                counts[rule.name, "changed"] += 1
                line = verdict
        else:
            kept.append(line)
    return "\n".join(kept).strip()
