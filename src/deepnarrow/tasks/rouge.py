"""ROUGE (Lin 2004, "ROUGE: a package for automatic evaluation of summaries"): overlap of a summary with a reference.

Words are runs of a-z and 0-9 in lower case, without stemming and with every word kept, which are T5's settings (the
defaults of the `rouge-score` package). Published tables often stem, which raises scores by some points: ask before
comparing. All functions give the F-measure, 0 to 1.

ROUGE-N counts common n-grams, ROUGE-L the longest common subsequence of words. ROUGE-Lsum takes the union of such
subsequences over sentences (section 3.2), a word counted no more often than it occurs; a sentence ends at a line
break or, T5's habit, at a full stop set between spaces.

The subsequence is found with one big integer per row, a bit per reference word (Hyyro 2004, "Bit-parallel LCS-length
computation revisited"): a row costs a few machine operations where the textbook's table costs one per word.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence

WORD = re.compile("[a-z0-9]+")


def rouge_n(prediction: str, reference: str, n: int) -> float:
    """F-measure over common n-grams.

    >>> rouge_n("the cat sat", "the cat ran", 2)
    0.5
    """
    found, wanted = ngrams(words(prediction), n), ngrams(words(reference), n)
    return f_measure((found & wanted).total(), found.total(), wanted.total())


def rouge_l(prediction: str, reference: str) -> float:
    """F-measure over the longest common subsequence of words.

    >>> rouge_l("police kill the gunman", "police killed the gunman")
    0.75
    """
    found, wanted = words(prediction), words(reference)
    return f_measure(common_length(found, wanted), len(found), len(wanted))


def rouge_l_sum(prediction: str, reference: str) -> float:
    r"""ROUGE-L over summaries of several sentences; of one sentence it is ROUGE-L.

    >>> rouge_l_sum("it rained\nwe stayed in", "we stayed in\nit rained")
    1.0
    """
    found, wanted = sentences(prediction), sentences(reference)
    left_found, left_wanted = Counter(w for s in found for w in s), Counter(w for s in wanted for w in s)
    sizes = left_found.total(), left_wanted.total()
    hits = 0
    for sentence in wanted:
        union = sorted({place for other in found for place in common_places(other, sentence)})
        for word in (sentence[place] for place in union):
            if left_found[word] and left_wanted[word]:
                hits += 1
                left_found[word] -= 1
                left_wanted[word] -= 1
    return f_measure(hits, *sizes)


def words(text: str) -> list[str]:
    """
    >>> words("Don't stop -- it's 7 o'clock.")
    ['don', 't', 'stop', 'it', 's', '7', 'o', 'clock']
    """
    return WORD.findall(text.lower())


def sentences(text: str) -> list[list[str]]:
    return [words(line) for line in text.replace(" . ", " .\n").split("\n") if line]


def ngrams(tokens: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1))


def f_measure(common: int, found: int, wanted: int) -> float:
    """Harmonic mean of common/found and common/wanted; 0 where nothing is common."""
    return 2 * common / (found + wanted) if common else 0.0


def common_length(found: Sequence[str], wanted: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    last = [(1 << len(wanted)) - 1, *rows(found, wanted)][-1]
    return len(wanted) - last.bit_count()


def common_places(found: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """Places in `wanted` of one longest common subsequence, last first; ties as in the `rouge-score` package.

    Bit i of row j is 0 exactly where the best length of `wanted[: i + 1]` against `found[: j + 1]` exceeds that of
    `wanted[:i]`. At words that differ, a 0 therefore says that the gain came with an earlier word of `found`.
    """
    table = list(rows(found, wanted))
    places = []
    i, j = len(wanted) - 1, len(found) - 1
    while i >= 0 and j >= 0:
        if wanted[i] == found[j]:
            places.append(i)
            i, j = i - 1, j - 1
        elif table[j] >> i & 1:
            i -= 1
        else:
            j -= 1
    return places


def rows(found: Sequence[str], wanted: Sequence[str]) -> Iterator[int]:
    """One integer per word of `found`; its zeros count the common subsequence so far."""
    places: dict[str, int] = {}
    for place, word in enumerate(wanted):
        places[word] = places.get(word, 0) | 1 << place
    full = (1 << len(wanted)) - 1
    row = full
    for word in found:
        matched = row & places.get(word, 0)
        row = (row + matched | row - matched) & full
        yield row
