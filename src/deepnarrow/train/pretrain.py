"""Pretraining: a shape, a corpus, a config in; a run out."""

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from deepnarrow.errors import UserError
from deepnarrow.model.folder import Opened, resolve_device
from deepnarrow.model.init import initialise
from deepnarrow.model.t5 import T5
from deepnarrow.model.weights import fingerprint
from deepnarrow.shapes import parse
from deepnarrow.text.batches import Batch, CorpusBatches, fixed_batches
from deepnarrow.text.corpus import Corpus
from deepnarrow.train.config import PAIRS, Config
from deepnarrow.train.loop import Began, Evaluate, Result, train
from deepnarrow.train.parallel import Execution

T5_VOCAB = 32_128
HELD_OUT_BATCH = 16  # examples at once; the held-out loss does not depend on it


def pretrain(
    config: Config,
    corpus: Corpus | Sequence[Corpus],
    out: Path,
    *,
    device: str = "auto",
    initial: Opened | None = None,
    evaluate: Evaluate | None = None,
    peak_flops: float | None = None,
    tensorboard: bool = True,
    quiet: bool = False,
    began: Began | None = None,
    execution: Execution | None = None,
) -> Result:
    """Train `config.shape` on a corpus, from weights drawn by `config.seed` or from those of `initial`.

    Several corpora are mixed as `config.mixture` says. Their held-out parts, where they have one, give the loss that
    marks the best checkpoint. Goes on where a run of the same config was left in `out`. Raises `UserError` where shape,
    tokenizer, corpus and `initial` do not fit together.
    """
    where = resolve_device(device)
    if config.objective == PAIRS:
        raise UserError('pretraining needs an objective that makes its own targets, such as "span", not "pairs"')
    corpora = list(corpus) if isinstance(corpus, Sequence) else [corpus]
    batches = CorpusBatches(
        corpus=corpora,
        seed=config.seed,
        batch=config.batch,
        input_length=config.input_length,
        target_length=config.target_length,
        objective=config.objective,
        options=config.options(),
        mixture=config.mixture,
        batching=config.batching,
    )
    check_vocab(config, corpora[0])
    model = model_of(config)
    if initial is None:
        initialise(model, config.seed)
    else:
        check_initial(config, corpora[0], initial)
        model.load_state_dict(initial.model.state_dict())
    return train(
        config,
        model,
        batches,
        out,
        tokenizer=corpora[0].tokenizer(),
        device=where,
        held_out=held_out_batches(config, corpora, quiet=quiet),
        evaluate=evaluate,
        kind="pretrain",
        origin=origin(corpora, initial),
        peak_flops=peak_flops,
        tensorboard=tensorboard,
        quiet=quiet,
        began=began,
        execution=execution,
    )


def model_of(config: Config) -> T5:
    """The model of a config, its weights not yet set."""
    shape = parse(config.shape)
    return T5(shape, dropout=config.dropout, dropout_shared=config.dropout_shared, recompute=config.recompute)


def fit_vocab(config: Config, corpus: Corpus) -> Config:
    """A shape with T5's vocabulary gets the rows that this corpus' tokenizer needs; any other was chosen, and stays.

    The number is rounded up to a multiple of 128, as T5's 32,100 ids are to 32,128 rows.
    """
    shape = parse(config.shape)
    if shape.vocab != T5_VOCAB:
        return config
    return config.override({"shape": str(replace(shape, vocab=rounded(corpus.vocab)))})


def rounded(ids: int) -> int:
    """
    >>> rounded(32_100)
    32128
    """
    return -(-ids // 128) * 128


def check_vocab(config: Config, corpus: Corpus) -> None:
    shape = parse(config.shape)
    if shape.vocab < corpus.vocab:
        raise UserError(
            f"shape {config.shape} has {shape.vocab:,} rows of vocabulary, but the corpus' tokenizer has "
            f"{corpus.vocab:,} ids; end the shape with -v{rounded(corpus.vocab)}, or name no vocabulary"
        )


def check_initial(config: Config, corpus: Corpus, initial: Opened) -> None:
    """Weights to start from must be of this shape, and mean the same tokens."""
    if initial.shape != parse(config.shape):
        raise UserError(
            f"{initial.origin} is a {initial.shape}, not a {config.shape}; pretrain with --shape {initial.shape}"
        )
    if initial.tokenizer is not None and initial.tokenizer.fingerprint != corpus.fingerprint:
        raise UserError(
            f"{initial.origin} and the corpus {corpus.folder} have different tokenizers, so its weights mean other "
            f"tokens; build the corpus with --tokenizer {initial.origin}"
        )


def held_out_batches(config: Config, corpora: Sequence[Corpus], *, quiet: bool) -> list[Batch]:
    """The same examples under the same noise at every evaluation, whatever the run's seed and batch."""
    parts = [held_out for corpus in corpora if (held_out := corpus.held_out()) is not None]
    if not parts:
        return []
    try:
        return fixed_batches(
            parts,
            batch=HELD_OUT_BATCH,
            input_length=config.input_length,
            target_length=config.target_length,
            objective=config.objective,
            options=config.options(),
            mixture=config.mixture if len(parts) == len(corpora) else "size",
            limit=config.eval_examples,
        )
    except UserError as error:  # what could not be trained on was refused before; this part is only too short
        if not quiet:
            print(f"deepnarrow: there will be no held-out loss: {error}", file=sys.stderr)
        return []


def origin(corpora: Sequence[Corpus], initial: Opened | None) -> dict[str, Any]:
    shards = " ".join(shard.sha256 for corpus in corpora for shard in corpus.shards)
    return {
        "corpus": ", ".join(str(corpus.folder) for corpus in corpora),
        "sources": [source.source for corpus in corpora for source in corpus.sources],
        "tokens": sum(corpus.tokens for corpus in corpora),
        "initial": initial.origin if initial else None,
        "fingerprints": {
            "tokenizer": corpora[0].fingerprint,
            "corpus": hashlib.sha256(shards.encode()).hexdigest(),
            "initial weights": weights_fingerprint(initial.model) if initial else None,
        },
    }


def weights_fingerprint(model: T5) -> str:
    """SHA-256 of all weights in float32."""
    return fingerprint(model.state_dict())
