"""Generation: token ids in, answers out. Ways to search: `Greedy`, `Beam`, `Sample`.

The encoder runs once for each input and its keys and values are computed once. Inputs of like length share a batch,
as many as a budget of tokens allows (inference.py); those that are finished leave it. An answer does not depend on the
other inputs or on the size of the batch, but for the last digits of floating-point sums.
"""

from collections.abc import Iterator, Sequence

from torch import Tensor

from deepnarrow.errors import UserError
from deepnarrow.model.beam import Beam
from deepnarrow.model.greedy import Greedy
from deepnarrow.model.inference import batches_by_length, budget, check_batch, check_rows, encode_rows, inference, pad
from deepnarrow.model.limits import Limits, Output, Search, Stop, Tell, cut, until
from deepnarrow.model.prompt import side_by_side
from deepnarrow.model.sample import Sample
from deepnarrow.model.t5 import T5
from deepnarrow.progress import progress as show_progress

__all__ = ["Beam", "Greedy", "Output", "Sample", "Search", "Stop", "cut", "generate", "generate_each", "until"]


def generate(
    model: T5,
    inputs: Sequence[Sequence[int]],
    search: Search,
    *,
    max_tokens: int = 64,
    min_tokens: int = 0,
    batch: int | None = None,
    eos: int = 1,
    stop: Sequence[Stop] = (),
    vocab_limit: int | None = None,
    progress: bool = False,
    on_token: Tell | None = None,
    prompts: Sequence[Tensor | None] | None = None,
) -> list[list[Output]]:
    """Answers for each input, in the inputs' order; of one input the best first, one with `Greedy`.

    inputs       token ids as the encoder reads them, EOS included; 0 is padding and not read
    max_tokens   the most tokens of an answer, its EOS counted; it ends there if it has not ended before
    min_tokens   the fewest tokens before the EOS
    batch        inputs at once; a beam of 4 has four rows of the model for each. None: as many as is quick
    stop         further ends: ids, runs of ids, or functions of the ids so far (`until` makes one from texts)
    vocab_limit  ids from here on are never generated; pass `tokenizer.size`
    on_token     called as `on_token(index of the input, id)` when an id is chosen, EOS left out; not with `Beam`
    prompts      a soft prompt [P, D] for each input, of any length, or None for an input without one; in place of the
                 model's own, if it has one. One prompt serves many inputs, and many prompts share a batch

    Raises `UserError` for an input without tokens, for an id outside the model's vocabulary, for impossible limits.

    >>> from deepnarrow.model.init import initialise
    >>> from deepnarrow.shapes import parse
    >>> model = T5(parse("tiny-nl1-dm32-ff64-v96"))
    >>> initialise(model, seed=0)
    >>> [[answer]] = generate(model, [[5, 6, 1]], Greedy(), max_tokens=3)
    >>> len(answer.ids), answer.score < 0
    (3, True)
    """
    each = generate_each(
        model,
        inputs,
        search,
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        batch=batch,
        eos=eos,
        stop=stop,
        vocab_limit=vocab_limit,
        on_token=on_token,
        prompts=prompts,
    )
    if not progress:
        found = dict(each)
    else:
        found = {}
        with show_progress("generate", len(inputs)) as bar:
            for index, outputs in each:
                found[index] = outputs
                bar.advance()
    return [found[index] for index in range(len(inputs))]


def generate_each(
    model: T5,
    inputs: Sequence[Sequence[int]],
    search: Search,
    *,
    max_tokens: int = 64,
    min_tokens: int = 0,
    batch: int | None = None,
    eos: int = 1,
    stop: Sequence[Stop] = (),
    vocab_limit: int | None = None,
    on_token: Tell | None = None,
    prompts: Sequence[Tensor | None] | None = None,
) -> Iterator[tuple[int, list[Output]]]:
    """As `generate`, but each input's index and answers as soon as its batch is done, so in another order.

    The arguments are checked at once, before the first answer is asked for.
    """
    check_batch(batch)
    check_rows(inputs, model.shape.vocab, "input")
    check_prompts(prompts, len(inputs), model.shape.d_model)
    limits = Limits(max_tokens, min_tokens, eos, tuple(stop), vocab_limit)
    tokens = budget(next(model.parameters()).device, getattr(search, "width", 1))
    return (
        answered
        for rows in batches_by_length(inputs, batch, tokens)
        for answered in zip(rows, answer(model, inputs, rows, search, limits, on_token, prompts), strict=True)
    )


def answer(
    model: T5,
    inputs: Sequence[Sequence[int]],
    rows: Sequence[int],
    search: Search,
    limits: Limits,
    tell: Tell | None,
    prompts: Sequence[Tensor | None] | None = None,
) -> list[list[Output]]:
    """Answers for one batch, the inputs whose indices are `rows`."""
    with inference(model) as device:
        front = None if prompts is None else side_by_side([prompts[row] for row in rows], model.shape.d_model, device)
        memory_BLD, mask_BL = encode_rows(model, pad([inputs[row] for row in rows], device), front)
        cache = model.start_cache(memory_BLD, mask_BL, limits.max_tokens)
        return search.answers(model, cache, limits, rows, tell)


def check_prompts(prompts: Sequence[Tensor | None] | None, inputs: int, width: int) -> None:
    if prompts is None:
        return
    if len(prompts) != inputs:
        raise UserError(f"there must be one prompt for each input, but there are {len(prompts)} for {inputs}")
    for number, prompt in enumerate(prompts, start=1):
        if prompt is not None and (prompt.ndim != 2 or prompt.shape[1] != width):
            raise UserError(f"prompt {number} is {list(prompt.shape)}, but the model reads vectors of {width}")
