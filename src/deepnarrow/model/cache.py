"""What a decoder remembers between tokens, so that each new token costs one token's work.

Shape key   B rows   G key/value heads   N most tokens   M memory length   K d_kv   H heads   L new tokens   O offsets
"""

from dataclasses import dataclass

from torch import Tensor

from deepnarrow.model.layers import KeysValues
from deepnarrow.model.position import along_diagonals


@dataclass
class Cache:
    """Made by `T5.start_cache`, filled by `T5.decode`.

    `memory` holds each layer's keys and values of the encoder's output, computed once; `past` holds those of the
    tokens read so far, [B, G, N, K], of which the first `position` are filled. With tied projections both keep one
    tensor a layer, not two. `bias_HO` is the position bias of every offset within N.
    """

    memory: list[KeysValues]
    memory_bias: Tensor | None  # broadcasts to [B, H, L, M]
    past: list[KeysValues]
    bias_HO: Tensor
    position: int = 0

    @property
    def length(self) -> int:
        """The most tokens this cache can hold."""
        return self.past[0].key_BGMK.shape[2]

    @property
    def rows(self) -> int:
        return self.past[0].key_BGMK.shape[0]

    @property
    def bytes(self) -> int:
        """Memory taken, each tensor counted once."""
        held = {tensor.data_ptr(): tensor.nbytes for pair in [*self.memory, *self.past] for tensor in pair}
        return sum(held.values())

    def bias(self, tokens: int) -> Tensor:
        """Position bias [1, H, tokens, position + tokens] of the next tokens; it hides later ones from earlier ones."""
        keys, zero = self.position + tokens, self.length - 1  # `zero` is where offset 0 stands
        # laid out afresh, since CUDA kernels want rows that start on aligned addresses
        return along_diagonals(self.bias_HO[:, zero + 1 - keys : zero + tokens], tokens, keys).contiguous()

    def extend(self, layer: int, new: KeysValues) -> KeysValues:
        """Write the new tokens' keys and values of one layer; return those of all tokens so far."""
        past, end = self.past[layer], self.position + new.key_BGMK.shape[2]
        past.key_BGMK[:, :, self.position : end] = new.key_BGMK
        if not past.tied:
            past.value_BGMK[:, :, self.position : end] = new.value_BGMK
        return past.each(lambda x: x[:, :, :end])

    def reorder(self, rows: Tensor, *, same_memory: bool = False) -> None:
        """Row b becomes what row `rows[b]` was; rows may be dropped or repeated, so their number may change.

        `same_memory` promises that every row stays with its own input, as the beams of one input do when their number
        stays; then the encoder's keys and values, by far the larger part, are left where they are.
        """
        self.past = [pair.each(lambda x: self._pick(x, rows)) for pair in self.past]
        if same_memory:
            return
        self.memory = [pair.each(lambda x: x.index_select(0, rows)) for pair in self.memory]
        if self.memory_bias is not None:
            self.memory_bias = self.memory_bias.index_select(0, rows)

    def _pick(self, x_BGNK: Tensor, rows: Tensor) -> Tensor:
        kept = x_BGNK[:, :, : self.position].index_select(0, rows)
        if rows.shape[0] != x_BGNK.shape[0]:
            x_BGNK = x_BGNK.new_empty(rows.shape[0], *x_BGNK.shape[1:])
        x_BGNK[:, :, : self.position] = kept
        return x_BGNK
