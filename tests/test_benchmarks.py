"""What the benchmarks compute besides time: their data, their siblings, their verdicts."""

import json
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_a_slip_is_one_mistake_and_keeps_the_first_letter() -> None:
    import pair

    chosen = random.Random(0)
    slips = {pair.slip("value,", chosen) for _ in range(200)}
    assert slips - {"value,"} == slips  # always a mistake
    assert {"vlaue,", "vaalue,", "vlue,"} <= slips
    assert all(slip[0] == "v" and slip.endswith(",") and abs(len(slip) - len("value,")) <= 1 for slip in slips)


def test_the_data_of_the_pair_is_the_same_again_and_no_text_is_judged_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pair

    monkeypatch.setattr(pair, "SIZES", {"train": 60, "validation": 20, "test": 20})
    first, second = (pair.make_data(tmp_path / name) for name in ("a", "b"))
    for split, size in pair.SIZES.items():
        rows = [json.loads(line) for line in (first / f"{split}.jsonl").read_text().splitlines()]
        assert len(rows) == size
        assert (first / f"{split}.jsonl").read_text() == (second / f"{split}.jsonl").read_text()
        assert split == "train" or len({row["target"] for row in rows}) == size
        assert any(row["input"] != row["target"] for row in rows)
        assert all(pair.LEAST <= len(row["target"].split()) <= pair.MOST for row in rows)


def test_a_sibling_of_all_layers_is_the_model_and_a_shallow_one_keeps_the_outer_layers(tmp_path: Path) -> None:
    import pair

    from deepnarrow.model.folder import open_model, save_model
    from deepnarrow.model.init import initialise
    from deepnarrow.model.t5 import T5
    from deepnarrow.shapes import parse

    model = T5(parse("tiny-nl3-dm32-ff48-v96"))
    initialise(model, 3)
    save_model(model, None, tmp_path / "deep")
    pair.sibling(tmp_path / "deep", tmp_path / "equal", encoder=3, decoder=3)
    pair.sibling(tmp_path / "deep", tmp_path / "shallow", encoder=2, decoder=1)
    whole, shallow = (open_model(tmp_path / name) for name in ("equal", "shallow"))
    inputs, targets = torch.tensor([[5, 9, 1]]), torch.tensor([[7, 1]])
    with torch.no_grad():
        assert torch.equal(whole.model(inputs, targets), model.eval()(inputs, targets))
        del model.encoder.blocks[1], model.decoder.blocks[:2]  # what is not kept
        assert torch.allclose(shallow.model(inputs, targets), model(inputs, targets), atol=1e-6)


def row(library: str, precision: str, ms: float, what: str = "batch1", shape: str = "small") -> dict:
    return {
        "shape": shape, "what": what, "source": 64, "library": library, "precision": precision, "ms": ms,
        "share_of_limit": 0.5,
    }  # fmt: skip


def test_verdicts_put_the_right_peers_side_by_side() -> None:
    import decode

    rows = [
        row("deepnarrow", "int8", 100.0), row("deepnarrow", "bfloat16", 200.0), row("ctranslate2", "int8", 490.0),
        row("transformers", "bfloat16", 1100.0), row("transformers", "float32", 900.0),
    ]  # fmt: skip
    int8, bfloat16 = decode.verdicts(rows)
    assert (int8["peer"], int8["times"], int8["target"], int8["met"]) == ("ctranslate2 int8", 4.9, 5.0, False)
    assert (bfloat16["peer"], bfloat16["times"], bfloat16["met"]) == ("transformers bfloat16", 5.5, True)
    [base] = decode.verdicts(
        [row("deepnarrow", "int8", 1.0, shape="base"), row("ctranslate2", "int8", 4.0, shape="base")]
    )
    assert base["target"] == 3.5
    assert base["met"]
    embed = [row("deepnarrow", "int8", 9.0, "embed"), row("deepnarrow", "float32", 8.0, "embed")]
    [embed] = decode.verdicts([*embed, row("transformers", "float32", 12.0, "embed")])
    assert embed["ours"] == "deepnarrow float32"
    assert embed["times"] == 1.5
    assert embed["met"]
    assert decode.verdicts([row("deepnarrow", "int8", 1.0)]) == []


def test_the_quickest_variant_of_each_precision_takes_part_but_one_of_ctranslate2() -> None:
    import decode

    tried = {
        decode.Variant("ctranslate2", "int8", 1): 2.0, decode.Variant("ctranslate2", "int8", 2): 1.5,
        decode.Variant("ctranslate2", "float32", 2): 3.0,
    }  # fmt: skip
    assert decode.kept("ctranslate2", list(tried), tried) == [decode.Variant("ctranslate2", "int8", 2)]
    tried = {decode.Variant("transformers", "float32", 2, compiled): 2.0 - compiled for compiled in (False, True)}
    tried[decode.Variant("transformers", "bfloat16", 2)] = 1.5
    assert [one.compiled for one in decode.kept("transformers", list(tried), tried)] == [True, False]


@pytest.mark.parametrize("shape", ["tiny", "small-el16-dl2", "base"])
def test_a_steps_weights_are_the_decoders_without_what_an_input_needs_once(shape: str) -> None:
    import decode

    from deepnarrow.shapes import parse
    from deepnarrow.shapes.counts import parameters

    found, counted = parse(shape), parameters(parse(shape))
    once = 2 * found.decoder_layers * found.d_model * found.inner
    table = found.relative_buckets * found.num_heads
    assert decode.step_weights(found) == counted.decoder + counted.embedding - once - table


def test_agreement_counts_positions_and_measures_in_standard_deviations(monkeypatch: pytest.MonkeyPatch) -> None:
    import quality

    right = np.array([[0.0, 1.0, 2.0], [2.0, 1.0, 0.0], [0.0, 4.0, 2.0], [3.0, 0.0, 0.0]], dtype=np.float32)
    other = right.copy()
    other[2] = [0.0, 2.0, 4.0]
    logits = {"right": right, "other": other}
    monkeypatch.setattr(quality, "forced", lambda engine, inputs, targets: logits[engine])
    found = quality.agreement("right", "other", [[1], [1]], [[5, 1], [6, 1]])
    assert (found.positions, found.same) == (4, 0.75)
    assert found.regret == pytest.approx((4 - 2) / right[2].std() / 4)
    assert found.error == pytest.approx((((other - right) / right.std(axis=1, keepdims=True)) ** 2).mean() ** 0.5)
    theirs = quality.agreement_of_next("right", lambda inputs, prefixes: [2, 0, 1, 1], [[1], [1]], [[5, 1], [6, 1]])
    assert (theirs.positions, theirs.same) == (4, 0.75)


def test_a_bound_that_breaks_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    import quality

    from deepnarrow.tasks.significance import compare

    one = SimpleNamespace(name="m", metric=SimpleNamespace(name="exact"))
    exact = np.array([1.0] * 60 + [0.0] * 40)
    worse = np.array([1.0] * 59 + [0.0] * 41)
    compared = {
        name: compare({name: [items], "float32": [exact]})[name, "float32"]
        for name, items in (("bfloat16", exact), ("int8", worse))
    }
    same = {
        "bfloat16": {"references": quality.Agreement(100, 0.994, 0.0, 0.0)},
        "int8": {"references": quality.Agreement(100, 0.986, 0.0, 0.0)},
    }
    held = [held for held, _ in quality.verdicts(one, 499, 500, compared, same)]
    assert held == [False, True, False, False, True]  # identical; bfloat16: score, agreement; int8: score, agreement
