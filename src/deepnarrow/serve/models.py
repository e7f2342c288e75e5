"""The names that are served. A request can name these and nothing else: no name of it ever reaches the file system."""

from collections.abc import Sequence
from typing import NamedTuple

from deepnarrow.errors import nearest
from deepnarrow.serve.refusals import RefusalError
from deepnarrow.serve.workers import Worker
from deepnarrow.text.vocabulary import Tokenizer


class Model(NamedTuple):
    """A model, or a soft prompt over one."""

    id: str
    worker: Worker
    prompt: str | None = None

    @property
    def tokenizer(self) -> Tokenizer | None:
        return self.worker.ready.tokenizer if self.worker.ready else None

    @property
    def prompt_length(self) -> int:
        ready = self.worker.ready
        return ready.prompts[self.prompt] if self.prompt is not None and ready else 0

    @property
    def kind(self) -> str:
        if self.prompt is not None:
            return "prompt"
        ready = self.worker.ready
        return "encoder" if ready and not ready.shape.decoder_layers else "encoder-decoder"


class Models:
    """By name, in the order they were given; the first is meant where a request names none."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self.workers = list(workers)
        self.all: dict[str, Model] = {}
        for worker in workers:
            self.all[worker.name] = Model(worker.name, worker)
        for worker in workers:
            for prompt in worker.spec.prompts:
                self.all[prompt] = Model(prompt, worker, prompt)

    @property
    def first(self) -> Model:
        return next(iter(self.all.values()))

    def get(self, name: str | None) -> Model:
        if name is None:
            return self.first
        if name not in self.all:
            raise RefusalError(
                "model", f"The model {name[:80]!r} does not exist; {nearest(name[:80], self.all)}", param="model"
            )
        return self.all[name]
