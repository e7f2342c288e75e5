"""The `Seq2SeqTrainer` of `transformers`, set up as somebody would who wants it fast on a processor.

Texts are tokenised beforehand, padding is dynamic (DataCollatorForSeq2Seq, to the longest of the batch), nothing is
evaluated, saved, logged or reported on the way, the training forward pass keeps no cache, the gradient is not clipped.
Its random and its length-grouped order are laid out beforehand, so that one knows which examples an update reads.
"""

import os
from pathlib import Path
from typing import Any

import torch

Ids = list[tuple[list[int], list[int]]]


def quiet() -> None:
    """No bars, no advice; before `transformers` is imported."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    import transformers

    transformers.utils.logging.disable_progress_bar()


def grouped_by_length(pairs: Ids, batch: int, updates: int, seed: int) -> Ids:
    """`updates` batches as `train_sampling_strategy="group_by_length"` makes them of all pairs.

    The Trainer's own sampler runs over the whole training file, since a small part of it would hold fewer examples of
    one length, and need more padding. It sorts megabatches, long ones first, so consecutive batches are not typical:
    those taken lie evenly in megabatches.
    """
    from transformers.trainer_pt_utils import LengthGroupedSampler

    lengths = [len(inputs) for inputs, _ in pairs]
    order = list(LengthGroupedSampler(batch, lengths=lengths, generator=torch.Generator().manual_seed(seed)))
    sorted_together = min(len(pairs) // (batch * 4), 50)  # batches; as in its get_length_grouped_indices
    span = min(len(order) // batch, max(1, sorted_together) * -(-updates // max(1, sorted_together)))
    chosen = sorted({int((n + 0.5) * span / updates) for n in range(updates)})
    return [pairs[example] for n in chosen for example in order[n * batch : (n + 1) * batch]]


def rows(pairs: Ids) -> list[dict[str, Any]]:
    """A data set, as a list; the mask of ones is what a tokenizer gives."""
    return [{"input_ids": inputs, "attention_mask": [1] * len(inputs), "labels": targets} for inputs, targets in pairs]


def open_reference(folder: Path, attention: str, dropout: float = 0.0) -> Any:
    from transformers import T5ForConditionalGeneration

    return T5ForConditionalGeneration.from_pretrained(folder, attn_implementation=attention, dropout_rate=dropout)


def open_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def make(model: Any, folder: Path, scratch: Path, data: list[dict[str, Any]], **settings: Any) -> Any:
    """A Trainer over `data`, read in its order. `settings` are those of Seq2SeqTrainingArguments."""
    from transformers import DataCollatorForSeq2Seq, Seq2SeqTrainer, Seq2SeqTrainingArguments

    tokenizer = open_tokenizer(folder)
    usual = {
        "output_dir": str(scratch), "use_cpu": True, "report_to": "none", "save_strategy": "no", "eval_strategy": "no",
        "logging_strategy": "no", "disable_tqdm": True, "lr_scheduler_type": "constant", "max_grad_norm": 0.0,
        "weight_decay": 0.0, "num_train_epochs": 1, "train_sampling_strategy": "sequential",
        "optim": "adamw_torch_fused", "dataloader_pin_memory": False,
    }  # fmt: skip
    optimizers = (None, None)
    if settings.get("optim") == "adafactor":  # the Trainer's own setting is not T5's, so T5's is handed to it
        from transformers import get_constant_schedule
        from transformers.optimization import Adafactor

        rate = settings["learning_rate"]
        adafactor = Adafactor(model.parameters(), lr=rate, scale_parameter=True, relative_step=False, warmup_init=False)
        optimizers = (adafactor, get_constant_schedule(adafactor))
    return Seq2SeqTrainer(
        model=model,
        args=Seq2SeqTrainingArguments(**usual | settings),
        train_dataset=data,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
        processing_class=tokenizer,
        optimizers=optimizers,
    )
