"""Sequences of ids by their common beginnings."""

from collections.abc import Iterator, Sequence


class Trie:
    """A node: the ids that may follow, and which of the sequences end here.

    >>> trie = Trie.of([[5, 6, 1], [5, 1]])
    >>> trie.next[5].next.keys(), trie.next[5].next[1].ends, trie.longest
    (dict_keys([6, 1]), [1], 3)
    """

    __slots__ = ("ends", "longest", "next", "shortest")

    def __init__(self) -> None:
        self.next: dict[int, Trie] = {}
        self.ends: list[int] = []  # the sequences' numbers: the same one may be given twice
        self.shortest = self.longest = 0  # tokens from here to the nearest and the farthest end

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]]) -> "Trie":
        root = cls()
        for number, sequence in enumerate(sequences):
            node = root
            for id in sequence:
                node = node.next.setdefault(int(id), cls())
            node.ends.append(number)
        for node in list(root.nodes())[::-1]:  # children come behind their parents
            below = list(node.next.values())
            ways = [one.shortest + 1 for one in below] + [0] * bool(node.ends)
            node.shortest, node.longest = min(ways), max([one.longest + 1 for one in below], default=0)
        return root

    def nodes(self) -> Iterator["Trie"]:
        """Every node, parents before their children."""
        level = [self]
        while level:
            yield from level
            level = [below for node in level for below in node.next.values()]
