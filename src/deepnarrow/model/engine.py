"""A T5 of PyTorch as an engine (runtime/engine.py): any device, rows that join and leave at every step.

Keys and values stand in pools, one tensor for all rows of about one length, so that a row joins or leaves by taking or
giving back a place and nothing else is moved. Matrix products run over all rows of a step at once; attention runs pool
by pool. Rows over one memory (beams, several answers) are more queries of one place in its pool.

Shape key   B rows   T new tokens   N positions, the sum of what is new   V vocabulary   D d_model   G key/value heads
            H heads   K d_kv   I = H K   C places for tokens in a pool   S places for sequences   E of these in use
            Y layers   M memory length   L input length   Q queries of one place
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from deepnarrow.errors import UserError
from deepnarrow.model import native
from deepnarrow.model.choosing import choose
from deepnarrow.model.inference import PIECE, batches_by_length, budget, check_rows, pad
from deepnarrow.model.layers import Attention, KeysValues
from deepnarrow.model.pools import Pool, TorchMemory, TorchRow
from deepnarrow.model.position import MASKED, position_bucket
from deepnarrow.model.prompt import side_by_side
from deepnarrow.model.t5 import T5, Block, Stack
from deepnarrow.runtime.engine import Chosen, Draw

FIRST = {"cpu": (32, 2), "cuda": (128, 4)}  # places for tokens in the smallest pool, and how much larger the next is


class Part(NamedTuple):
    """Inputs that go through the encoder together."""

    places: list[int]  # of the inputs in the call
    mask_BL: Tensor
    lengths: list[int]  # of input alone, and of
    prompts: list[int]  # prompt alone
    bias: object


class TorchEncoding:
    """Inputs on their way through the encoder's blocks."""

    def __init__(self, engine: "TorchEngine", parts: list[tuple[Part, Tensor]], inputs: int) -> None:
        self._engine, self._inputs = engine, inputs
        self._parts = [part for part, _ in parts]
        self._x = [x_BLD for _, x_BLD in parts]
        self._layer = 0
        self._done = False

    def advance(self, layers: int) -> bool:
        engine = self._engine
        stack = engine.model.encoder_stack()
        with engine.turn():
            for _ in range(layers):
                if self._layer == len(stack.blocks):
                    break
                block = cast(Block, stack.blocks[self._layer])
                for number, (part, x_BLD) in enumerate(zip(self._parts, self._x, strict=True)):
                    with engine.kernels(x_BLD):
                        self._x[number] = block(x_BLD, part.bias)
                self._layer += 1
            if self._layer == len(stack.blocks) and not self._done:
                self._x = [stack.norm(x_BLD) for x_BLD in self._x]
                self._done = True
        return self._done

    def memories(self) -> list[TorchMemory]:
        engine = self._engine
        self._check()
        found: list[TorchMemory | None] = [None] * self._inputs
        with engine.turn():
            stack = engine.decoder()
            for part, x_BLD in zip(self._parts, self._x, strict=True):
                looked = [engine.stacked(pair) for pair in stack.look_at(x_BLD)]
                for row, (place, first, last) in enumerate(ranges(part)):
                    found[place] = TorchMemory(torch.stack([pair[:, row, :, first:last] for pair in looked]))
        return cast(list[TorchMemory], found)

    def hidden(self) -> list[np.ndarray]:
        self._check()
        found: list[np.ndarray | None] = [None] * self._inputs
        for part, x_BLD in zip(self._parts, self._x, strict=True):
            wide = x_BLD.float().cpu().numpy()
            for row, (place, first, last) in enumerate(ranges(part)):
                found[place] = wide[row, first:last].copy()
        return cast(list[np.ndarray], found)

    def means(self) -> np.ndarray:
        """The mean over each input's own tokens, [inputs, D] float32."""
        self._check()
        found = np.zeros((self._inputs, self._engine.shape.d_model), np.float32)
        with self._engine.turn():
            for part, x_BLD in zip(self._parts, self._x, strict=True):
                own_BL = part.mask_BL.clone()
                longest = x_BLD.shape[1] - max(part.lengths)
                own_BL[:, :longest] = False
                weight_BL1 = own_BL[:, :, None].float()
                mean_BD = (x_BLD.float() * weight_BL1).sum(1) / weight_BL1.sum(1)
                found[part.places] = mean_BD.cpu().numpy()
        return found

    def _check(self) -> None:
        if not self._done:
            raise ValueError("the encoder has layers left; advance it until it says that all are done")


def ranges(part: Part) -> list[tuple[int, int, int]]:
    """Each row's input, and where in the padded row its prompt begins and its tokens end."""
    front = part.mask_BL.shape[1] - max(part.lengths)  # of the longest prompt; shorter ones touch their input
    return [
        (place, front - prompt, front + length)
        for place, length, prompt in zip(part.places, part.lengths, part.prompts, strict=True)
    ]


class Group(NamedTuple):
    """Rows of one step whose keys stand in one pool, and how their queries are laid out beside those keys.

    rows      [n] their numbers in the step; places [n] where each is among the E * R rows of queries
    keys      which of the pool's sequences: E of them
    each      R: most rows that share one sequence
    bias      [E, 1 or H, R * T, C], `MASKED` where a query sees nothing
    straight  the group is all rows of the step, and their queries already stand as the keys do
    """

    pool: Pool
    rows: Tensor
    places: Tensor
    keys: slice | Tensor
    extent: int
    each: int
    tokens: int
    bias: Tensor
    straight: bool


class TorchEngine:
    """See `runtime.engine.Engine`. The model is put in evaluation mode and used where it is."""

    def __init__(self, model: T5, *, vocab_limit: int | None = None) -> None:
        if vocab_limit is not None and not 1 < vocab_limit <= model.shape.vocab:
            raise UserError(f"vocab_limit must be from 2 to the model's {model.shape.vocab}, not {vocab_limit}")
        self.model, self.shape = model.eval(), model.shape
        self.vocab_limit = vocab_limit or model.shape.vocab
        self.threads = torch.get_num_threads()
        weight = model.embedding.weight
        self.device, self.dtype = weight.device, weight.dtype
        self.name = f"torch {str(self.dtype).removeprefix('torch.')} {self.device.type}"
        self._lock = threading.RLock()
        self._pools: dict[tuple[str, int], Pool] = {}

    @contextmanager
    def turn(self) -> Iterator[None]:
        """One caller at a time, without gradients."""
        with self._lock, torch.inference_mode():
            yield

    def kernels(self, x_BLD: Tensor) -> AbstractContextManager[None]:
        """The kernels of training for large batches on a CPU, as `inference.encode_rows` uses them."""
        large = x_BLD.device.type == "cpu" and x_BLD.shape[0] * x_BLD.shape[1] > PIECE
        return native.without_gradient() if large and self.dtype is torch.float32 else nullcontext()

    def decoder(self) -> Stack:
        if self.model.decoder is None:
            raise UserError(f"{self.shape} is an encoder alone: it can embed, but it has no decoder to answer with")
        return self.model.decoder

    def stacked(self, pair: KeysValues) -> Tensor:
        """[2 or 1, B, G, M, K]"""
        return pair.key_BGMK[None] if self.shape.tie_kv else torch.stack([*pair])

    # the encoder

    def begin(
        self, inputs: Sequence[Sequence[int]], prompts: Sequence[np.ndarray | None] | None = None
    ) -> TorchEncoding:
        check_rows(inputs, self.shape.vocab, "input")
        if prompts is not None and len(prompts) != len(inputs):
            raise UserError(f"there must be one prompt for each input, but there are {len(prompts)} for {len(inputs)}")
        parts = []
        with self.turn():
            for places in batches_by_length(inputs, None, budget(self.device)):
                parts.append(self._front(inputs, prompts, places))
        return TorchEncoding(self, parts, len(inputs))

    def _front(
        self, inputs: Sequence[Sequence[int]], prompts: Sequence[np.ndarray | None] | None, places: list[int]
    ) -> tuple[Part, Tensor]:
        rows = [inputs[place] for place in places]
        lengths = [len(row) for row in rows]
        input_BL = pad(rows, self.device)
        at_L = torch.arange(input_BL.shape[1], device=self.device)
        mask_BL = at_L < torch.tensor(lengths, device=self.device)[:, None]
        front, own = None, self.model.prompt
        fronts = [0 if own is None else len(own)] * len(rows)
        if prompts is not None:
            chosen = [prompts[place] for place in places]
            fronts = [0 if prompt is None else len(prompt) for prompt in chosen]
            tensors = [None if prompt is None else torch.from_numpy(prompt) for prompt in chosen]
            front = side_by_side(tensors, self.shape.d_model, self.device)
        x_BLD, whole_BL, _ = self.model.front(input_BL, mask_BL, None, front)
        assert whole_BL is not None
        with self.kernels(x_BLD):
            bias = self.model.encoder_bias(x_BLD, whole_BL)
        return Part(places, whole_BL, lengths, fronts, bias), x_BLD

    def encode(
        self, inputs: Sequence[Sequence[int]], prompts: Sequence[np.ndarray | None] | None = None
    ) -> list[TorchMemory]:
        encoding = self.begin(inputs, prompts)
        encoding.advance(self.shape.encoder_layers)
        return encoding.memories()

    def embed(self, inputs: Sequence[Sequence[int]]) -> np.ndarray:
        encoding = self.begin(inputs)
        encoding.advance(self.shape.encoder_layers)
        return encoding.means()

    # rows

    def start(self, memory: TorchMemory) -> TorchRow:
        with self.turn():
            if memory.pool is None:
                pool = self._pool("memory", memory.length)
                memory.pool, memory.place = pool, pool.take()
                pool.put(memory.place, memory.keys_values, memory.length)
            pool = self._pool("row", 1)
            return TorchRow(memory, pool, pool.take())

    def fork(self, row: TorchRow) -> TorchRow:
        with self.turn():
            place = row.pool.take()
            row.pool.put(place, row.pool.all[:, :, row.place], row.length)
            return TorchRow(row.memory, row.pool, place, row.length)

    def cut(self, row: TorchRow, length: int) -> None:
        if not 0 <= length <= row.length:
            raise ValueError(f"a row of {row.length} tokens cannot be cut to {length}")
        row._length = length

    def _pool(self, kind: str, tokens: int) -> Pool:
        """The pool of the least length that holds so many tokens."""
        size, factor = FIRST.get(self.device.type, FIRST["cpu"])
        while size < tokens:
            size *= factor
        if (kind, size) not in self._pools:
            self._pools[kind, size] = Pool(size, self._keys_values)
        return self._pools[kind, size]

    def _keys_values(self, sequences: int, tokens: int) -> Tensor:
        """Zeros, since what is masked is still multiplied, and must be finite."""
        heads = self.shape.kv_heads or self.shape.num_heads
        layers, both = self.shape.decoder_layers, 1 if self.shape.tie_kv else 2
        size = (layers, both, sequences, heads, tokens, self.shape.d_kv)
        return torch.zeros(size, device=self.device, dtype=self.dtype)

    def _grow(self, row: TorchRow, tokens: int) -> None:
        """Move a row that its pool cannot hold any longer to one that can."""
        if tokens <= row.pool.tokens:
            return
        pool = self._pool("row", tokens)
        place = pool.take()
        pool.put(place, row.pool.all[:, :, row.place], row.length)
        row.pool.give_back(row.place)
        row.pool, row.place = pool, place

    # steps

    def step(
        self,
        rows: Sequence[TorchRow],
        tokens: Sequence[Sequence[int]],
        *,
        top: int = 1,
        masks: Sequence[np.ndarray | None] | None = None,
        draws: Sequence[Draw | None] | None = None,
        logs: bool = True,
    ) -> Chosen:
        positions = sum(len(ids) for ids in tokens)
        for name, given in (("mask", masks), ("draw", draws)):
            if given is not None and len(given) != positions:
                raise ValueError(f"{positions} positions need so many {name}s, not {len(given)}")
        if top < 1:
            raise ValueError(f"top must be at least 1, not {top}")
        if not rows:
            return Chosen(np.zeros((0, top), np.int32), np.zeros((0, top), np.float32))
        with self.turn():
            logits_NV = self._logits(rows, tokens)
            return choose(logits_NV, self.vocab_limit, top, masks, draws)

    def logits(self, rows: Sequence[TorchRow], tokens: Sequence[Sequence[int]]) -> np.ndarray:
        if not rows:
            return np.zeros((0, self.shape.vocab), np.float32)
        with self.turn():
            return self._logits(rows, tokens).cpu().numpy()

    def _logits(self, rows: Sequence[TorchRow], tokens: Sequence[Sequence[int]]) -> Tensor:
        """[N, V] float32"""
        self._check(rows, tokens)
        stack = self.decoder()
        lengths = [len(ids) for ids in tokens]
        new = max(lengths)
        for row in rows:
            self._grow(row, row.length + new)
        start_B = torch.tensor([row.length for row in rows], device=self.device)
        own, memory = self._own_groups(rows, start_B, new), self._memory_groups(rows, new)
        ids_BT = pad(tokens, self.device) if new > 1 else torch.tensor(tokens, device=self.device)
        x_BTD = self.model._embed(ids_BT)
        at_T = torch.arange(new, device=self.device)
        for number, block in enumerate(stack.blocks):
            x_BTD = self._block(cast(Block, block), number, x_BTD, own, memory, start_B[:, None] + at_T)
        x_BTD = stack.norm(x_BTD)
        for row, length in zip(rows, lengths, strict=True):
            row._length += length
        length_B1 = torch.tensor(lengths, device=self.device)[:, None]
        hidden_ND = x_BTD[:, 0] if new == 1 else x_BTD[at_T < length_B1]
        return self.model.logits(hidden_ND).float()

    def _check(self, rows: Sequence[TorchRow], tokens: Sequence[Sequence[int]]) -> None:
        if len(rows) != len(tokens) or not all(len(ids) for ids in tokens):
            raise ValueError("every row needs at least one token")
        if len({id(row) for row in rows}) != len(rows):
            raise ValueError("a row stands twice in one step; fork it to go on in two ways")
        least, most = min(min(ids) for ids in tokens), max(max(ids) for ids in tokens)
        if least < 0 or most >= self.shape.vocab:
            raise ValueError(f"token ids are from 0 to {self.shape.vocab - 1}, not {least if least < 0 else most}")

    def _block(
        self, block: Block, number: int, x_BTD: Tensor, own: list[Group], memory: list[Group], at_BT: Tensor
    ) -> Tensor:
        attention, normed_BTD = block.self_attention, block.self_norm(x_BTD)
        new = [pair.transpose(1, 2) for pair in attention.look_at(normed_BTD)]  # [B, T, G, K]
        for group in own:
            self._write(group, number, new, at_BT)
        x_BTD = x_BTD + self._attend(attention, normed_BTD, number, own)
        x_BTD = x_BTD + self._attend(block.cross_attention, block.cross_norm(x_BTD), number, memory)
        return x_BTD + block.feed_forward(block.feed_norm(x_BTD))

    def _write(self, group: Group, number: int, new: list[Tensor], at_BT: Tensor) -> None:
        places = group.places if isinstance(group.keys, slice) else group.keys[group.places]
        both = group.pool.all[number]
        for side, x_BTGK in zip(both, new, strict=False):  # tied: one side, and the values are the keys
            side[places[:, None], :, at_BT[group.rows]] = x_BTGK[group.rows]

    def _attend(self, attention: Attention, x_BTD: Tensor, number: int, groups: list[Group]) -> Tensor:
        query_BTI = attention.query(x_BTD)
        mixed_BTI = torch.empty_like(query_BTI)
        for group in groups:
            found = self._attend_group(query_BTI, number, group)
            if group.straight:
                mixed_BTI = found
            else:
                mixed_BTI[group.rows] = found
        return attention.output(mixed_BTI)

    def _attend_group(self, query_BTI: Tensor, number: int, group: Group) -> Tensor:
        """[n, T, I] of the group's rows."""
        _, new, inner = query_BTI.shape
        heads, kv_heads = self.shape.num_heads, self.shape.kv_heads or self.shape.num_heads
        own_nTI = query_BTI if group.straight else query_BTI[group.rows]
        if not group.straight:
            laid = own_nTI.new_zeros(group.extent * group.each, new, inner)
            laid[group.places] = own_nTI
            own_nTI = laid
        queries = group.each * new
        query_EHQK = own_nTI.view(group.extent, queries, heads, -1).transpose(1, 2)
        bias = group.bias
        if kv_heads != heads:  # as in layers.py: heads that share keys become more queries of one head
            query_EHQK = query_EHQK.reshape(group.extent, kv_heads, -1, query_EHQK.shape[-1])
            if bias.shape[1] == 1:
                bias = bias.repeat(1, 1, heads // kv_heads, 1)
            else:
                bias = bias.reshape(group.extent, kv_heads, -1, bias.shape[-1])
        key, value = group.pool.layer(number, group.keys, group.tokens)
        mixed = F.scaled_dot_product_attention(query_EHQK, key, value, attn_mask=bias, scale=1.0)
        mixed = mixed.reshape(group.extent, heads, queries, -1).transpose(1, 2)
        mixed = mixed.reshape(group.extent * group.each, new, inner)
        return mixed if group.straight else mixed[group.places]

    def _own_groups(self, rows: Sequence[TorchRow], start_B: Tensor, new: int) -> list[Group]:
        """Where the rows' own keys stand, and the bias of position that hides what is still to come."""
        table_HN = self._by_distance(int(max(row.length for row in rows)) + new)
        found = []
        for pool, members in by_pool([row.pool for row in rows]).items():
            layout = self._layout(pool, [rows[number].place for number in members], members, len(rows))
            longest = max(rows[number].length for number in members) + new
            tokens = min(pool.tokens, -(-longest // 16) * 16)  # few widths, and aligned rows
            start_E = torch.zeros(layout.extent, dtype=torch.long, device=self.device)
            start_E[layout.places] = start_B[layout.rows]
            at_T = torch.arange(new, device=self.device)
            past_ETN = (start_E[:, None] + at_T)[:, :, None] - torch.arange(tokens, device=self.device)
            # negative distances, which lie ahead, are masked
            bias = table_HN[:, past_ETN.clamp(min=0, max=table_HN.shape[1] - 1)].transpose(0, 1)
            bias = bias.masked_fill((past_ETN < 0)[:, None], MASKED)
            found.append(layout._replace(tokens=tokens, bias=bias.to(self.dtype).contiguous()))
        return found

    def _memory_groups(self, rows: Sequence[TorchRow], new: int) -> list[Group]:
        found = []
        for pool, members in by_pool([cast(Pool, row.memory.pool) for row in rows]).items():
            layout = self._layout(pool, [rows[number].memory.place for number in members], members, len(rows))
            lengths = [rows[number].memory.length for number in members]
            tokens = min(pool.tokens, -(-max(lengths) // 16) * 16)
            length_E = torch.ones(layout.extent, dtype=torch.long, device=self.device)
            length_E[layout.places // layout.each] = torch.tensor(lengths, device=self.device)
            hidden_EN = torch.arange(tokens, device=self.device) >= length_E[:, None]
            bias = torch.zeros(hidden_EN.shape, device=self.device, dtype=self.dtype).masked_fill(hidden_EN, MASKED)
            bias = bias[:, None, None].expand(-1, 1, layout.each * new, -1)
            found.append(layout._replace(tokens=tokens, bias=bias))
        return found

    def _layout(self, pool: Pool, places: list[int], members: list[int], rows: int) -> Group:
        """Rows beside the sequences they look at: all of the pool up to the last in use if most are asked for."""
        asked = sorted(set(places))
        keys: slice | Tensor
        if 2 * len(asked) > pool.extent:
            first = {place: place for place in asked}
            keys, extent = slice(0, asked[-1] + 1), asked[-1] + 1
        else:
            first = {place: number for number, place in enumerate(asked)}
            keys, extent = torch.tensor(asked, device=self.device), len(asked)
        ranks: dict[int, int] = {}
        rank = []
        for place in places:
            rank.append(ranks.get(place, 0))
            ranks[place] = rank[-1] + 1
        each = max(ranks.values())
        laid = [first[place] * each + number for place, number in zip(places, rank, strict=True)]
        straight = laid == list(range(extent * each)) and members == list(range(rows))
        rows_n, places_n = torch.tensor([members, laid], device=self.device)
        return Group(pool, rows_n, places_n, keys, extent, each, 0, rows_n, straight)

    def _by_distance(self, distances: int) -> Tensor:
        """[H, N]: the decoder's bias of a key so many tokens back."""
        position = self.decoder().position
        back_N = -torch.arange(distances, device=self.device)
        bucket_N = position_bucket(back_N, causal=True, buckets=position.buckets, far=position.far)
        return F.embedding(bucket_N, position.table).T

    def close(self) -> None:
        self._pools.clear()


def by_pool(pools: Sequence[Pool]) -> dict[Pool, list[int]]:
    """The numbers of the rows in each pool."""
    found: dict[Pool, list[int]] = {}
    for number, pool in enumerate(pools):
        found.setdefault(pool, []).append(number)
    return found
