"""What `deepnarrow generate` may be asked for beyond free answers: a form to keep to, and drafts that save steps."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from deepnarrow.errors import UserError

if TYPE_CHECKING:
    from deepnarrow.cli.answering import Answering, Found
    from deepnarrow.runtime.engine import Engine
    from deepnarrow.runtime.limits import Output
    from deepnarrow.runtime.options import AnySearch


class Asked(NamedTuple):
    """The options, as they were typed."""

    choices: str | None = None
    choices_file: str | None = None
    regex: str | None = None
    json_schema: str | None = None
    draft: str | None = None
    copy: bool = False

    @property
    def ranks(self) -> bool:
        return self.choices is not None or self.choices_file is not None

    @property
    def constrains(self) -> bool:
        return self.regex is not None or self.json_schema is not None

    @property
    def drafts(self) -> bool:
        return self.draft is not None or self.copy

    @property
    def anything(self) -> bool:
        return self.ranks or self.constrains or self.drafts


def check(asked: Asked, *, beam: int | None, sampling: bool, num_return: int) -> None:
    """Refuse what does not go together, before anything slow is imported."""
    forms = {
        "--choices": asked.choices,
        "--choices-file": asked.choices_file,
        "--regex": asked.regex,
        "--json-schema": asked.json_schema,
    }
    given = [name for name, value in forms.items() if value is not None]
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)} each say what an answer must be; use one of them")
    if asked.ranks and (beam is not None or sampling):
        raise UserError(f"{given[0]} ranks all of them exactly; leave out --beam, --temperature, --top-k and --top-p")
    if asked.ranks and asked.drafts:
        raise UserError(f"{given[0]} ranks without generating; leave out --draft and --copy")
    if asked.drafts and beam is not None:
        raise UserError("--draft and --copy check one choice for each token, so they do not go with --beam")
    if asked.ranks and num_return < 1:
        raise UserError(f"--num-return must be at least 1, not {num_return}")


class Forms:
    """Answers of an opened model that keep to a form, or that drafts have hastened."""

    def __init__(self, asked: Asked, answering: "Answering", *, runtime: str, device: str, dtype: str | None) -> None:
        self.asked, self.answering = asked, answering
        self.tokenizer = answering.tokenizer
        self.engine: Engine = answering.engine()
        self.cut_short = 0
        self.texts: dict[tuple[int, ...], str] = {}  # of choices, as they were given
        self.shares: dict[tuple[int, ...], float] = {}
        vocab = self.engine.shape.vocab
        self.constraint = None
        if asked.ranks:
            from deepnarrow.runtime.constrain import label_ids

            labels = read_choices(asked)
            self.ids = label_ids(self.tokenizer, labels)
            self.texts = {tuple(ids[:-1]): label for ids, label in zip(self.ids, labels, strict=True)}
        elif asked.regex is not None:
            from deepnarrow.runtime.constrain import regex

            self.constraint = regex(self.tokenizer, asked.regex, vocab)
        elif asked.json_schema is not None:
            from deepnarrow.runtime.constrain import json_schema

            self.constraint = json_schema(self.tokenizer, read_schema(asked.json_schema), vocab)
        self.drafter = drafter(self, runtime, device, dtype) if asked.drafts else None

    def each(
        self,
        inputs: Sequence[Sequence[int]],
        search: "AnySearch",
        *,
        max_tokens: int,
        batch: int,
        on_token: Any,
        prompts: Sequence[Any] | None,
        num_return: int,
    ) -> "Found":
        fronts = self.answering.fronts(prompts, len(inputs))
        if self.asked.ranks:
            return self._ranked(inputs, batch, fronts, num_return)
        from deepnarrow.runtime.search import generate_each

        return generate_each(
            self.engine,
            inputs,
            search,
            max_tokens=max_tokens,
            batch=batch,
            eos=self.tokenizer.eos,
            on_token=on_token,
            prompts=fronts,
            constraints=None if self.constraint is None else [self.constraint] * len(inputs),
            drafter=self.drafter,
        )

    def _ranked(
        self, inputs: Sequence[Sequence[int]], batch: int, fronts: Sequence[Any] | None, number: int
    ) -> "Found":
        """The likeliest choices, best first. Some inputs at a time, so that answers come as they are found."""
        from deepnarrow.runtime.likelihood import probabilities, rank
        from deepnarrow.runtime.limits import Output

        for begin in range(0, len(inputs), batch):
            some = None if fronts is None else fronts[begin : begin + batch]
            logs_NC = rank(self.engine, inputs[begin : begin + batch], self.ids, batch=batch, prompts=some)
            for place, (logs, shares) in enumerate(zip(logs_NC, probabilities(logs_NC), strict=True)):
                best = (-logs).argsort(kind="stable")[:number].tolist()
                # inputs come in their order, so each is shown before the next one is ranked
                self.shares = {tuple(self.ids[choice][:-1]): float(shares[choice]) for choice in best}
                yield begin + place, [Output(self.ids[choice][:-1], float(logs[choice])) for choice in best]

    def text(self, output: "Output") -> str:
        return self.texts.get(tuple(output.ids)) or self.tokenizer.decode(output.ids)

    def more(self, output: "Output") -> dict[str, Any]:
        """What --json says of an answer besides."""
        if self.asked.ranks:
            return {"probability": self.shares[tuple(output.ids)]}
        return {"complete": output.whole} if self.asked.constrains else {}

    def watched(self, each: "Found") -> "Found":
        """Counts the answers that `--max-tokens` cut short."""
        for index, outputs in each:
            self.cut_short += not all(output.whole for output in outputs)
            yield index, outputs

    def finish(self, texts: int, max_tokens: int) -> None:
        """What the drafts saved, on standard error; and whether all answers are what they must be."""
        if self.drafter is not None:
            counts = self.drafter.counts
            print(
                f"deepnarrow: {counts.tokens:,} tokens in {counts.steps:,} steps, {counts.accepted:,} of "
                f"{counts.drafted:,} drafted tokens right ({100 * counts.acceptance:.0f} %)",
                file=sys.stderr,
            )
        if self.cut_short:
            what = "the answer was" if texts == 1 else f"{self.cut_short} of {texts} answers were"
            raise UserError(f"{what} cut off before keeping to the form; raise --max-tokens above {max_tokens}")


def drafter(forms: Forms, runtime: str, device: str, dtype: str | None) -> Any:
    from deepnarrow.cli.answering import ready
    from deepnarrow.runtime.speculative import Both, Copy, Sibling

    if forms.asked.draft is None:
        return Copy()
    its = ready(forms.asked.draft, runtime=runtime, device=device, dtype=dtype)
    if its.tokenizer.fingerprint != forms.tokenizer.fingerprint:
        raise UserError(
            f"{its.origin} has another vocabulary than {forms.answering.origin}, so it cannot draft for it; "
            "a draft is a smaller model of the same vocabulary"
        )
    sibling = Sibling(its.engine(), forms.engine.shape)
    return Both(Copy(), sibling) if forms.asked.copy else sibling


def read_choices(asked: Asked) -> list[str]:
    if asked.choices is not None:
        return [choice.strip() for choice in asked.choices.split(",")]
    from deepnarrow.cli.generating import read_lines

    assert asked.choices_file is not None
    return read_lines(asked.choices_file)


def read_schema(file: str) -> str:
    from pathlib import Path

    try:
        return Path(file).read_text("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{file} is not UTF-8 text, so it holds no JSON schema") from None
