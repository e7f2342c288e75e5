"""Pretraining on a real, small corpus."""

import json
from pathlib import Path

import pytest
import torch

from deepnarrow.errors import UserError
from deepnarrow.files import read_json, read_json_lines
from deepnarrow.model.folder import open_model
from deepnarrow.text.building import build
from deepnarrow.text.corpus import Corpus
from deepnarrow.text.tokenizer import load
from deepnarrow.train import checkpoint
from deepnarrow.train.config import Config
from deepnarrow.train.pretrain import fit_vocab, model_of, pretrain, weights_fingerprint
from deepnarrow.train.recipes import miniature

SHAPE = "tiny-dm32-ff64-kv16-nh2-nl2"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    rows = [{"text": f"the cat number {n} sat on the mat and saw {n * n} dogs. "} for n in range(1200)]
    (folder / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return build([folder / "text.jsonl"], load("bytes"), folder / "corpus", held_out=0.05)


def config(corpus: Corpus, **values: object) -> Config:
    usual = {"steps": 20, "batch": 4, "input_length": 64, "save_every": 5, "eval_every": 10, "eval_examples": 8}
    return fit_vocab(miniature(SHAPE, **{**usual, **values}), corpus)


def run(made: Config, corpus: Corpus, out: Path, **options: object) -> object:
    return pretrain(made, corpus, out, device="cpu", tensorboard=False, quiet=True, **options)  # type: ignore[arg-type]


def test_learns_and_marks_the_best_by_held_out_loss(corpus: Corpus, tmp_path: Path) -> None:
    made = config(corpus, steps=60, batch=8, eval_every=20)
    result = pretrain(made, corpus, tmp_path / "run", device="cpu", tensorboard=False, quiet=True)
    losses = [row["held_out_loss"] for row in read_json_lines(tmp_path / "run" / "log.jsonl") if "held_out_loss" in row]
    assert len(losses) == 3
    assert losses[-1] < losses[0] < 6  # a uniform guess over 384 ids is 5.95
    assert result.best is not None
    assert (result.best.metric, result.best.value) == ("held_out_loss", min(losses))
    origin = read_json(tmp_path / "run" / "run.json")["origin"]
    assert origin["tokens"] == corpus.tokens
    assert origin["fingerprints"]["tokenizer"] == corpus.fingerprint
    opened = open_model(tmp_path / "run")
    assert opened.tokenizer is not None
    assert opened.tokenizer.fingerprint == corpus.fingerprint


@pytest.mark.parametrize("accumulate", [1, 2])
def test_ten_and_ten_equal_twenty(corpus: Corpus, tmp_path: Path, accumulate: int) -> None:
    rest = {"schedule": "constant", "warmup": 2, "dropout": 0.1, "accumulate": accumulate, "log_every": 5}
    run(config(corpus, **rest), corpus, tmp_path / "twenty")
    run(config(corpus, **{**rest, "steps": 10}), corpus, tmp_path / "ten")
    run(config(corpus, **rest), corpus, tmp_path / "ten")
    files = [tmp_path / name / "checkpoints" / checkpoint.name(20) for name in ("twenty", "ten")]
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (files[0] / name).read_bytes() == (files[1] / name).read_bytes()


def test_another_seed_is_another_run(corpus: Corpus, tmp_path: Path) -> None:
    run(config(corpus, steps=2), corpus, tmp_path / "a")
    run(config(corpus, steps=2, seed=1), corpus, tmp_path / "b")
    assert weights_fingerprint(open_model(tmp_path / "a").model) != weights_fingerprint(
        open_model(tmp_path / "b").model
    )


def test_vocabulary_is_fitted_or_refused(corpus: Corpus, tmp_path: Path) -> None:
    assert config(corpus).shape == f"{SHAPE}-v384"
    chosen = miniature(f"{SHAPE}-v1000", steps=2)
    assert fit_vocab(chosen, corpus) == chosen
    with pytest.raises(
        UserError, match="has 200 rows of vocabulary, but the corpus' tokenizer has 384 ids; end the shape"
    ):
        run(miniature(f"{SHAPE}-v200", steps=2), corpus, tmp_path / "run")


def test_goes_on_from_other_weights(corpus: Corpus, tmp_path: Path) -> None:
    run(config(corpus), corpus, tmp_path / "first")
    initial = open_model(tmp_path / "first")
    made = config(corpus, steps=1, learning_rate=1e-9, warmup=0)
    run(made, corpus, tmp_path / "second", initial=initial)
    pairs = zip(initial.model.parameters(), open_model(tmp_path / "second").model.parameters(), strict=True)
    assert all(torch.allclose(one, two, atol=1e-6) for one, two in pairs)
    changed = open_model(tmp_path / "second")
    with pytest.raises(UserError, match="the initial weights changed since"):
        run(made, corpus, tmp_path / "second", initial=changed)
    with pytest.raises(UserError, match=r"is a .*, not a .*; pretrain with --shape"):
        run(config(corpus).override({"shape": f"{SHAPE}-v512"}), corpus, tmp_path / "third", initial=initial)


def test_held_out_text_shorter_than_a_row_is_left_out_with_a_word(
    corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held_out = corpus.held_out()
    assert held_out is not None
    made = config(corpus, steps=1, batch=1, input_length=held_out.tokens, mean_span=20)
    result = pretrain(made, corpus, tmp_path / "run", device="cpu", tensorboard=False)
    assert result.held_out_loss is None
    assert "there will be no held-out loss" in capsys.readouterr().err


def test_pairs_are_no_pretraining(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="makes its own targets"):
        run(config(corpus, objective="pairs"), corpus, tmp_path / "run")


def test_bfloat16_learns_and_keeps_float32_weights(corpus: Corpus, tmp_path: Path) -> None:
    result = pretrain(
        config(corpus, dtype="bfloat16", steps=30),
        corpus,
        tmp_path / "run",
        device="cpu",
        tensorboard=False,
        quiet=True,
    )
    assert result.held_out_loss is not None
    assert result.held_out_loss < 5.5
    assert {p.dtype for p in open_model(tmp_path / "run").model.parameters()} == {torch.float32}


def test_the_config_says_how_the_model_is_built() -> None:
    plain = Config(shape="tiny-nl1-v128", steps=1, batch=1, input_length=8)
    other = plain.override({"dropout": 0.2, "dropout_shared": False, "recompute": True})
    for config in (plain, other):
        model = model_of(config)
        assert model.dropout == config.dropout
        assert model.encoder is not None
        assert model.encoder.dropout_shared is config.dropout_shared
        assert model.encoder.recompute is config.recompute
