"""Light adaptation: what learns is LoRA or a soft prompt, the model under it is frozen and not kept again.

A checkpoint is the adapter in PEFT's format (model/adapters.py) and the optimizer's memory of it: kilobytes. A run is
opened like any other, by the base that its checkpoints name.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from deepnarrow.errors import UserError
from deepnarrow.model.adapters import Base, read_trained, save_lora, save_prompt
from deepnarrow.model.folder import Opened
from deepnarrow.model.lora import Lora, attach, targets
from deepnarrow.model.prompt_init import check_kind, first_vectors
from deepnarrow.model.t5 import T5
from deepnarrow.shapes import Shape
from deepnarrow.text.tokenizer import Tokenizer
from deepnarrow.train.config import Config
from deepnarrow.train.learner import Learner, TextToText
from deepnarrow.train.parallel import Execution
from deepnarrow.train.pretrain import model_of


@dataclass(frozen=True)
class LowRank(TextToText):
    """LoRA beside the matrices of a frozen T5."""

    lora: Lora
    base: Base
    shape: Shape

    def save(self, model: Any, tokenizer: Tokenizer | None, folder: Path) -> None:
        save_lora(model, self.lora, self.base, folder)

    def restore(self, folder: Path) -> dict[str, Tensor]:
        return read_trained(folder, self.shape)


@dataclass(frozen=True)
class SoftPrompt(TextToText):
    """Vectors in front of the inputs of a frozen T5."""

    base: Base
    shape: Shape

    def save(self, model: Any, tokenizer: Tokenizer | None, folder: Path) -> None:
        save_prompt(model, self.base, folder)

    def restore(self, folder: Path) -> dict[str, Tensor]:
        return read_trained(folder, self.shape)


def subject(config: Config, opened: Opened, labels: Sequence[str] = ()) -> tuple[T5, Learner]:
    """A frozen copy of the opened model with something over it to learn, and how that is kept.

    `labels` are the class labels of the tasks, which a prompt may start from. First values depend on the config's seed
    alone.
    """
    if opened.adapter is not None:
        raise UserError(
            f"{opened.origin} is an adapter over another model already; adapt its base, or export it first: deepnarrow "
            f"export {opened.origin} --out FOLDER"
        )
    model = model_of(config)
    model.load_state_dict(opened.model.state_dict())
    base = Base.of(opened.model, opened.origin)
    if config.adapt == "lora":
        lora = lora_of(config)
        return attach(model, lora, seed=config.seed), LowRank(lora, base, model.shape)
    check_kind(config.prompt_init)
    vectors_PD = first_vectors(
        model.embedding.weight, config.prompt_length, config.prompt_init, seed=config.seed,
        tokenizer=opened.tokenizer, labels=labels,
    )  # fmt: skip
    model.requires_grad_(False)
    model.prompt = nn.Parameter(vectors_PD)
    return model, SoftPrompt(base, model.shape)


def lora_of(config: Config) -> Lora:
    return Lora(
        rank=config.lora_rank, alpha=config.lora_alpha, dropout=config.lora_dropout,
        targets=targets(config.lora_targets),
    )  # fmt: skip


def check(config: Config, execution: Execution | None = None) -> None:
    """Mistakes that need no model to be told."""
    if config.adapt == "full":
        return
    lora_of(config)
    check_kind(config.prompt_init)
    if execution is not None and (execution.parallel != "ddp" or execution.tensor_parallel > 1):
        raise UserError(
            f"adapt {config.adapt!r} trains too little to be spread over devices; use --parallel ddp and no "
            "--tensor-parallel"
        )
