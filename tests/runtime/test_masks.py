"""Masks are sets of ids, and tries are sets of sequences."""

from hypothesis import given
from hypothesis import strategies as st

from deepnarrow.runtime.masks import all_but, allows, ids_of, only
from deepnarrow.runtime.trie import Trie

ids = st.sets(st.integers(0, 99))


@given(ids)
def test_a_mask_is_a_set_of_ids(some: set[int]) -> None:
    mask_W = only(some, 100)
    assert mask_W.shape == (4,)
    assert set(ids_of(mask_W).tolist()) == some
    assert {id for id in range(100) if allows(mask_W, id)} == some
    rest = {id for id in ids_of(all_but(tuple(sorted(some)), 100)).tolist() if id < 100}
    assert rest == set(range(100)) - some
    assert allows(None, 7)


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5), min_size=1, max_size=8))
def test_a_trie_holds_the_sequences_and_knows_how_far_their_ends_are(sequences: list[list[int]]) -> None:
    root = Trie.of(sequences)
    for number, sequence in enumerate(sequences):
        node = root
        for at in range(len(sequence) + 1):
            ends = [len(other) - at for other in sequences if other[:at] == sequence[:at]]
            assert (node.shortest, node.longest) == (min(ends), max(ends))
            if at < len(sequence):
                node = node.next[sequence[at]]
        assert number in node.ends
    assert sum(len(node.ends) for node in root.nodes()) == len(sequences)
