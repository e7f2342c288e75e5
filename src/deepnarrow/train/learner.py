"""What a run trains, and how it is kept: the seam between the loop and the kinds of training.

The loop knows steps, ranks and checkpoints; a learner knows what a batch's loss is and what of the model is worth
keeping. A learner holds no state: everything that changes is in the model's parameters that require a gradient.
"""

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from deepnarrow.model.folder import read_model, save_model
from deepnarrow.text.batches import Batch
from deepnarrow.text.tokenizer import Tokenizer
from deepnarrow.train import loss
from deepnarrow.train.loss import Sums


class Learner(Protocol):
    """One kind of training. `model` is a T5, or what stands in its place: it has a `.shape`."""

    def accumulate(
        self, model: Any, batch: Batch, *, divisor: int, device: torch.device, dtype: torch.dtype, z_loss: float
    ) -> Sums:
        """Add the gradient of the batch's summed loss over `divisor` to the parameters' gradients."""
        ...

    def sums(self, model: Any, batch: Batch, *, device: torch.device, dtype: torch.dtype) -> Sums:
        """The same loss, summed, without gradient or regularisation: what a held-out loss is made of."""
        ...

    def save(self, model: Any, tokenizer: Tokenizer | None, folder: Path) -> None:
        """Write what a checkpoint holds beside `optimizer.safetensors` and `state.json`."""
        ...

    def restore(self, folder: Path) -> dict[str, Tensor]:
        """The trained parameters, by their names in the model, out of such a folder."""
        ...


class TextToText:
    """Every weight of a T5, by the likelihood of its targets."""

    def accumulate(
        self, model: Any, batch: Batch, *, divisor: int, device: torch.device, dtype: torch.dtype, z_loss: float
    ) -> Sums:
        return loss.accumulate(model, batch, divisor=divisor, device=device, dtype=dtype, z_loss=z_loss)

    def sums(self, model: Any, batch: Batch, *, device: torch.device, dtype: torch.dtype) -> Sums:
        return loss.sums(model, batch, device=device, dtype=dtype)

    def save(self, model: Any, tokenizer: Tokenizer | None, folder: Path) -> None:
        save_model(model, tokenizer, folder)

    def restore(self, folder: Path) -> dict[str, Tensor]:
        return read_model(folder).state_dict()


TEXT_TO_TEXT = TextToText()
