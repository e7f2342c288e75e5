"""Limits on one sequence are those that model/limits.py puts on whole batches."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepnarrow.errors import UserError
from deepnarrow.model import limits as of_model
from deepnarrow.runtime.limits import Limits, cut, until

small = st.integers(0, 4)  # few ids, so that runs and ends come about


@settings(deadline=None)
@given(
    st.lists(small, min_size=1, max_size=8),
    st.integers(0, 8),
    st.lists(st.one_of(small, st.lists(small, min_size=1, max_size=3)), max_size=3),
    st.booleans(),
)
def test_one_sequence_ends_as_in_a_batch(ids: list[int], least: int, stops: list, test: bool) -> None:
    tests = [lambda ids: sum(ids) > 9] if test else []
    limits = Limits(8, least, eos=1, stop=(*stops, *tests))
    padded = torch.tensor([[*ids, *[0] * (8 - len(ids))]])
    assert limits.ended(ids) == bool(of_model.ended(limits, padded, len(ids) - 1))


def test_what_ended_a_sequence_is_taken_off() -> None:
    limits = Limits(9, stop=(4, [7, 8]))
    for ids, left in (([5, 1], [5]), ([5, 4], [5]), ([5, 7, 8], [5]), ([7, 5], [7, 5]), ([1], []), ([], [])):
        assert limits.without_end(ids) == left
    assert limits.ways_to_end == 3


def test_texts_that_end() -> None:
    stop = until([".", "no"], lambda ids: "".join(map(chr, ids)))
    assert not stop([97])
    assert stop([110, 111])
    assert cut("yes. no", [".", "no"]) == "yes"
    assert cut("yes", ["."]) == "yes"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"max_tokens": 3, "min_tokens": 4}, "min_tokens must be from 0 to max_tokens = 3"),
        ({"max_tokens": 3, "vocab_limit": 1}, "vocab_limit must be above the EOS id 1"),
        ({"max_tokens": 3, "stop": ("x",)}, "run of ids"),
        ({"max_tokens": 3, "stop": ([],)}, "run of ids"),
    ],
)
def test_impossible_limits(wrong: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Limits(**wrong)
