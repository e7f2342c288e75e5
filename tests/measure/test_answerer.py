"""An engine answers a judge as the model itself does: texts, labels, likelihoods, with a soft prompt or without."""

from copy import deepcopy
from typing import cast

import pytest
import torch

from deepnarrow import tasks
from deepnarrow.measure.answerer import ByEngine, ByTorch
from deepnarrow.measure.evaluate import evaluate
from deepnarrow.model.decode import Beam, Sample
from deepnarrow.model.engine import TorchEngine
from deepnarrow.model.folder import Opened
from deepnarrow.model.init import initialise
from deepnarrow.model.t5 import T5
from deepnarrow.runtime.engine import Engine
from deepnarrow.shapes import parse
from deepnarrow.tasks import Pair
from deepnarrow.text.tokenizer import ByteTokenizer

SHAPE = parse("tiny-nl1-dm32-ff64-nh2-kv16-v384")
QUESTIONS = [Pair(f"question {'so ' * (n % 5)}{n}", [str(n)]) for n in range(40)]
LABELS = [Pair(f"film {'good ' * (n % 5)}{n}", ["positive"]) for n in range(40)]


@pytest.fixture(scope="module", params=[0, 3], ids=["plain", "prompt"])
def both(request: pytest.FixtureRequest) -> tuple[Opened, ByEngine]:
    model, tokenizer = T5(SHAPE), ByteTokenizer()
    initialise(model, seed=1)
    engine = cast(Engine, TorchEngine(deepcopy(model).eval(), vocab_limit=tokenizer.size))
    if request.param:
        vectors = torch.randn(request.param, 32, generator=torch.Generator().manual_seed(0))
        model.prompt = torch.nn.Parameter(vectors)
        return Opened(model.eval(), tokenizer, SHAPE, "here"), ByEngine(engine, tokenizer, "here", vectors.numpy())
    return Opened(model.eval(), tokenizer, SHAPE, "here"), ByEngine(engine, tokenizer, "here")


@pytest.mark.parametrize("search", [None, Beam(2), Sample(seed=3)], ids=["plain", "beam", "sample"])
def test_answers_are_the_models(both: tuple[Opened, ByEngine], search: Beam | None) -> None:
    opened, engine = both
    for name, pairs in (("nq_open", QUESTIONS), ("sst2", LABELS)):
        asked = {"search": search, "as_t5": search is not None, "likelihood": True, "max_tokens": 6, "samples": 20}
        wanted, found = (
            evaluate(one, tasks.get(name), pairs, progress=False, **asked)  # type: ignore[arg-type]
            for one in (opened, engine)
        )
        assert [one.prediction for one in found.predictions] == [one.prediction for one in wanted.predictions]
        assert (found.scores, found.search) == (wanted.scores, wanted.search)
        for mine, theirs in zip(found.predictions, wanted.predictions, strict=True):
            assert mine.log_probability == pytest.approx(theirs.log_probability, abs=1e-4)
            assert mine.log_likelihood == pytest.approx(theirs.log_likelihood, abs=1e-4)
            assert mine.probabilities == (theirs.probabilities and pytest.approx(theirs.probabilities, abs=1e-5))


def test_it_is_described_alike(both: tuple[Opened, ByEngine]) -> None:
    opened, engine = both
    model = ByTorch(opened)
    assert (engine.parameters, engine.shape, engine.origin) == (model.parameters, model.shape, model.origin)
    assert (model.runtime, model.device) == ("torch float32 cpu", "cpu")
