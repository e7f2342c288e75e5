"""What `deepnarrow generate` does once its arguments are read. Nothing heavy is imported before it is needed."""

import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TextIO

from deepnarrow.cli.forms import Asked, Forms, check
from deepnarrow.errors import UserError

if TYPE_CHECKING:
    from deepnarrow.runtime.limits import Output
    from deepnarrow.runtime.options import AnySearch
    from deepnarrow.text.tokenizer import Tokenizer

# What would break a line or move the cursor is written as an escape; --json has the text as it is.
CONTROL = {code: repr(chr(code))[1:-1] for code in (*range(32), *range(127, 160), 0x2028, 0x2029) if chr(code) != "\t"}
MANY = 4  # texts for which weights are copied into large pages: that takes less than an answer does


def run(
    *,
    model: str,
    text: str | None = None,
    prompt: list[str] | None = None,
    file: str | None = None,
    beam: int | None = None,
    length_penalty: float | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    max_tokens: int = 64,
    num_return: int = 1,
    batch: int = 16,
    device: str = "auto",
    dtype: str | None = None,
    runtime: str = "auto",
    revision: str | None = None,
    choices: str | None = None,
    choices_file: str | None = None,
    regex: str | None = None,
    json_schema: str | None = None,
    draft: str | None = None,
    copy: bool = False,
    as_json: bool = False,
) -> None:
    """Answer texts; the arguments are the options of the verb (generate.py), which says what they mean."""
    wanted = Asked(choices, choices_file, regex, json_schema, draft, copy)
    check(wanted, beam=beam, sampling=samples(temperature, top_k, top_p), num_return=num_return)
    check_options(beam, length_penalty, temperature, top_k, top_p, 1 if wanted.ranks else num_return)
    texts = read_texts(text, file)

    from deepnarrow.cli.answering import ready
    from deepnarrow.progress import progress
    from deepnarrow.runtime.options import Beam, Greedy, Sample

    search: AnySearch = Greedy()
    if beam is not None:
        search = Beam(beam, 1.0 if length_penalty is None else length_penalty, num_return=num_return)
    elif samples(temperature, top_k, top_p):
        warmth = 1.0 if temperature is None else temperature
        search = Sample(warmth, top_k=top_k, top_p=top_p, seed=seed, num_return=num_return)

    names: list[str | None] = [*prompt] if prompt else [None]
    many = len(texts) >= MANY
    answering = ready(model, prompt or (), runtime=runtime, device=device, dtype=dtype, revision=revision, many=many)
    tokenizer, origin = answering.tokenizer, answering.origin
    inputs = [[*ids, tokenizer.eos] for ids in tokenizer.encode_batch(texts) for _ in names]
    asked = [(text, name) for text in texts for name in names]
    out = sys.stdout  # a progress bar would put a stand-in here that writes to standard error
    one = len(asked) == 1 and num_return == 1 and beam is None and not wanted.ranks
    live = one and file is None and not as_json and out.isatty()
    stream = Stream(tokenizer, out) if live else None
    fronts = [*answering.prompts] * len(texts) if prompt else None
    if wanted.anything:
        forms = Forms(wanted, answering, runtime=runtime, device=device, dtype=dtype)
        each = forms.watched(
            forms.each(
                inputs,
                search,
                max_tokens=max_tokens,
                batch=batch,
                on_token=stream,
                prompts=fronts,
                num_return=num_return,
            )
        )
        text_of, more = forms.text, forms.more
    else:
        forms = None
        each = answering.each(
            inputs, search, max_tokens=max_tokens, batch=batch, on_token=stream, prompts=fronts, scores=as_json
        )
        text_of, more = (lambda output: tokenizer.decode(output.ids)), (lambda output: {})
    if stream:
        for _, outputs in each:
            stream.end(text_of(outputs[0]))
    elif file is None or out.isatty():  # on a terminal the lines themselves show the progress
        for index, outputs in in_order(each):
            show(*asked[index], outputs, text_of, more, origin, out, as_json=as_json, named=len(names) > 1)
    else:
        with progress("generate", len(asked)) as bar:
            for index, outputs in in_order(each):
                show(*asked[index], outputs, text_of, more, origin, out, as_json=as_json, named=len(names) > 1)
                bar.advance()
    if forms:
        forms.finish(len(asked), max_tokens)


def samples(temperature: float | None, top_k: int | None, top_p: float | None) -> bool:
    return not (temperature is None and top_k is None and top_p is None)


def check_options(
    beam: int | None,
    length_penalty: float | None,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    num_return: int,
) -> None:
    """Refuse options that contradict each other, before anything slow is imported."""
    sampling = samples(temperature, top_k, top_p)
    if beam is not None and sampling:
        raise UserError("--beam searches, --temperature, --top-k and --top-p sample; use one or the other")
    if beam is None and length_penalty is not None:
        raise UserError("--length-penalty ranks the answers of a beam; add --beam 4 or leave it out")
    if num_return < 1:
        raise UserError(f"--num-return must be at least 1, not {num_return}")
    if num_return > 1 and beam is None and not sampling:
        raise UserError(
            f"greedy decoding has one answer; for --num-return {num_return} add --beam {num_return} or --temperature 1"
        )
    if num_return > 1 and temperature == 0:
        raise UserError("at --temperature 0 all answers are the same one; raise it or leave --num-return out")


def read_texts(text: str | None, file: str | None) -> list[str]:
    """The texts to answer; one that is empty or not UTF-8 is a `UserError` that says where it stands."""
    if text is not None and file is not None:
        raise UserError("give a text or --file, not both")
    if text is not None:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise UserError("the text is not valid UTF-8; write it to a file in UTF-8 and use --file") from None
        if not text.strip():
            raise UserError("the text is empty")
        return [text]
    if file is None:
        raise UserError('nothing to answer: give a text, or --file FILE, or --file "-" for standard input')
    return read_lines(file)


def read_lines(file: str) -> list[str]:
    name = "standard input" if file == "-" else file
    if file == "-":
        data = sys.stdin.buffer.read()
    else:
        with open(file, "rb") as opened:
            data = opened.read()
    try:
        whole = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{name} is not UTF-8 text (line {line}); convert it, for example with iconv -t utf-8"
        ) from None
    lines = [line.removesuffix("\r") for line in whole.removesuffix("\n").split("\n")]
    if not whole.strip():
        raise UserError(f"{name} is empty; it should have one text a line")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            raise UserError(f"{name}: line {number} is empty, and there is no answer to nothing; delete that line")
    return lines


def in_order(each: "Iterator[tuple[int, list[Output]]]") -> "Iterator[tuple[int, list[Output]]]":
    """Answers in the order of their texts, each as soon as all before it are there.

    >>> list(in_order(iter([(2, []), (0, []), (1, [])])))
    [(0, []), (1, []), (2, [])]
    """
    waiting: dict[int, list[Output]] = {}
    first = 0
    for index, outputs in each:
        waiting[index] = outputs
        while first in waiting:
            yield first, waiting.pop(first)
            first += 1


def show(
    text: str,
    prompt: str | None,
    outputs: "list[Output]",
    text_of: "Callable[[Output], str]",
    more: "Callable[[Output], dict[str, Any]]",
    origin: str,
    out: TextIO,
    *,
    as_json: bool,
    named: bool,
) -> None:
    """One text's answers, written at once, so that an interrupt loses none that was found.

    Where there are several prompts each line begins with the name of its own, and a tab.
    """
    answers = [text_of(output) for output in outputs]
    if as_json:
        import json

        found = [
            {"text": answer, "score": output.score, "tokens": len(output.ids)} | more(output)
            for answer, output in zip(answers, outputs, strict=True)
        ]
        row = {"input": text, "outputs": found, "model": origin} | ({"prompt": prompt} if prompt else {})
        print(json.dumps(row, ensure_ascii=False), file=out, flush=True)
    else:
        front = f"{prompt}\t" if named else ""
        print("\n".join(front + one_line(answer) for answer in answers), file=out, flush=True)


def one_line(text: str) -> str:
    r"""
    >>> one_line("two\nlines")
    'two\\nlines'
    """
    return text.translate(CONTROL)


class Stream:
    """Writes one answer while it grows."""

    def __init__(self, tokenizer: "Tokenizer", out: TextIO) -> None:
        self.tokenizer, self.out = tokenizer, out
        self.ids: list[int] = []
        self.shown = ""

    def __call__(self, row: int, id: int) -> None:
        self.ids.append(id)
        self.write(self.tokenizer.decode(self.ids))

    def write(self, text: str) -> None:
        """Add what is new. A character whose last bytes are still to come is not shown in parts."""
        if text.startswith(self.shown) and not text.endswith("\N{REPLACEMENT CHARACTER}"):
            print(one_line(text[len(self.shown) :]), end="", file=self.out, flush=True)
            self.shown = text

    def end(self, text: str) -> None:
        """Finish the line; where a decoder changed its mind about what is already shown, with the right text anew."""
        if text.startswith(self.shown):
            print(one_line(text[len(self.shown) :]), file=self.out, flush=True)
        else:
            print(f"\n{one_line(text)}", file=self.out, flush=True)
