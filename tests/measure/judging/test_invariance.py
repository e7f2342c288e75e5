"""Answers do not depend on the batch, and where something does, it is found."""

from collections.abc import Callable
from pathlib import Path

import pytest

from deepnarrow import tasks
from deepnarrow.measure.answerer import ByTorch
from deepnarrow.measure.judging import invariance
from deepnarrow.measure.judging.invariance import PADDED, USUAL, Change, Invariance, apart, check
from deepnarrow.measure.judging.judge import Wanted
from deepnarrow.model.decode import Beam, Greedy
from deepnarrow.model.folder import Opened, open_model
from deepnarrow.model.likelihood import score

Ask = Callable[..., Wanted]


@pytest.fixture(scope="module")
def opened(runs: Path) -> Opened:
    return open_model(runs / "seeds" / "seed-0")


@pytest.mark.parametrize("how", [{}, {"as_t5": True}, {"as_t5": True, "search": Beam(3)}], ids=["labels", "t5", "beam"])
def test_a_model_answers_the_same_in_any_batch(opened: Opened, wanted: Ask, how: dict) -> None:
    found = check(opened, wanted(**how))
    assert (found.n, found.changes, found.differing) == (24, [], 0)
    assert 0 <= found.largest < 1e-4
    [line] = found.lines()
    assert line.startswith("sst2: the 24 answers do not depend on the batch; ")


def test_a_batch_that_matters_is_found(opened: Opened, wanted: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    """Padding that is read: the kind of fault the check is for."""
    rank = ByTorch.rank

    def careless(model: ByTorch, rows: list, choices: list, *, batch: int | None, progress: bool) -> object:
        return rank(model, [[id or 60 for id in row] for row in rows], choices, batch=batch, progress=progress)

    honest = check(opened, wanted())
    monkeypatch.setattr(ByTorch, "rank", careless)
    found = check(opened, wanted())
    assert found.largest > 1000 * honest.largest
    assert {change.way for change in found.changes} <= {PADDED}


def test_margins_of_changed_answers(opened: Opened) -> None:
    """Of greedy answers at the first difference, of labels and beams over the whole."""
    row, a, b = [70, 71, 1], invariance.Answer((80, 81, 82), 0.0), invariance.Answer((80, 90), 0.0)
    first = score(opened.model, [row] * 2, [[80, 81], [80, 90]])
    assert apart(ByTorch(opened), row, a, b, Greedy()) == pytest.approx(abs(first[0] - first[1]), abs=1e-5)
    whole = score(opened.model, [row] * 2, [[80, 81, 82, 1], [80, 90, 1]])
    assert apart(ByTorch(opened), row, a, b, None) == pytest.approx(abs(whole[0] - whole[1]), abs=1e-5)
    assert apart(ByTorch(opened), row, a, b, Beam(2)) == pytest.approx(abs(whole[0] - whole[1]), abs=1e-5)
    shorter = invariance.Answer((80,), 0.0)  # which ends where the other goes on
    ended = score(opened.model, [row] * 2, [[80, 81], [80, 1]])
    assert apart(ByTorch(opened), row, a, shorter, Greedy()) == pytest.approx(abs(ended[0] - ended[1]), abs=1e-5)


def test_ties_are_called_ties() -> None:
    changes = [
        Change(3, USUAL, "yes", "no", 1e-6),
        Change(3, PADDED, "yes", "no", 1e-6),
        Change(5, PADDED, "a", "b", 2),
    ]
    found = Invariance("t", 9, changes, 1e-6)
    assert found.differing == 2
    assert "2 of 9 answers depend on the batch (2 of 3 changes are ties" in found.lines()[0]
    assert "all of them ties" in Invariance("t", 9, changes[:2], 1e-6).lines()[0]
    assert found.to_json()["changes"][0]["margin"] == 1e-6


def test_generation_is_checked_too(opened: Opened, wanted: Ask, runs: Path, tmp_path: Path) -> None:
    rows = "".join(f'{{"question": "who {"and who " * n}", "answer": "Ada"}}\n' for n in range(12))
    (tmp_path / "q.jsonl").write_text(rows)
    found = check(opened, wanted(task=tasks.get("nq_open"), data=tmp_path / "q.jsonl"))
    assert (found.n, found.differing) == (12, 0)
