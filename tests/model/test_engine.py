"""TorchEngine: rows of any lengths, stepped together and apart, give what the model gives each alone."""

import gc
from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.random import Generator, default_rng

from deepnarrow.errors import UserError
from deepnarrow.model.choosing import likeliest
from deepnarrow.model.decode import Greedy, Sample, generate
from deepnarrow.model.engine import TorchEngine
from deepnarrow.model.init import initialise
from deepnarrow.model.t5 import T5
from deepnarrow.runtime.engine import Draw, Engine
from deepnarrow.shapes.shape import parse

SHAPES = [
    "tiny-nl2-dm64-ff128-kv16-v96",
    "v1_1-small-nl2-dm48-ff96-kv8-v64",
    "tiny-el3-dl1-dm64-ff96-kv16-kh2-skv-v80",
    "tiny-nl2-dm32-ff64-kv8-sh-v70",
]
LONG = 90  # tokens of the longest target: beyond the first two sizes of a pool


def model_of(shape: str, seed: int = 0) -> T5:
    model = T5(parse(shape))
    initialise(model, seed=seed)
    return model.eval()


@pytest.fixture(scope="module", params=SHAPES)
def model(request: pytest.FixtureRequest) -> T5:
    return model_of(request.param)


def ids(rng: Generator, length: int) -> list[int]:
    return rng.integers(3, 60, length).tolist()


def forced(model: T5, source: list[int], target: list[int], prompt: torch.Tensor | None = None) -> np.ndarray:
    """Logits of each target token, from the model's own forward pass."""
    with torch.no_grad():
        return model(torch.tensor([source]), torch.tensor([target]))[0].numpy()


def close(found: np.ndarray, wanted: np.ndarray) -> bool:
    return np.allclose(found, wanted, atol=2e-5, rtol=1e-4)


def test_rows_at_random_steps_give_the_forward_pass(model: T5) -> None:
    """Inputs and targets of many lengths, several tokens at once, rows over one memory, another choice each step."""
    rng = default_rng(1)
    engine: Engine = TorchEngine(model)
    sources = [[*ids(rng, length), 1] for length in (5, 40, 0, 150, 33)]
    memories = engine.encode(sources)
    assert [memory.length for memory in memories] == [6, 41, 1, 151, 34]
    over = [0, 1, 2, 3, 4, 1, 1]
    targets = [ids(rng, length) for length in (LONG, 3, 40, 20, 31, 33, 60)]
    rows = [engine.start(memories[source]) for source in over]
    found: list[list[np.ndarray]] = [[] for _ in rows]
    while any(row.length < len(target) for row, target in zip(rows, targets, strict=True)):
        live = [n for n, row in enumerate(rows) if row.length < len(targets[n]) and rng.random() < 0.7]
        chunks = []
        for n in live:
            at = rows[n].length
            chunks.append([0, *targets[n]][at : min(at + int(rng.integers(1, 5)), len(targets[n]))])
        logits = engine.logits([rows[n] for n in live], chunks)
        ends = np.cumsum([len(chunk) for chunk in chunks]).tolist()
        for n, (first, last) in zip(live, pairwise([0, *ends]), strict=True):
            found[n].append(logits[first:last])
    for n, source in enumerate(over):
        assert close(np.concatenate(found[n]), forced(model, sources[source], targets[n]))


def test_greedy_rows_that_join_late_equal_generate(model: T5) -> None:
    rng = default_rng(2)
    sources = [[*ids(rng, length), 1] for length in (9, 30, 4, 70, 12, 50)]
    wanted = [answers[0].ids for answers in generate(model, sources, Greedy(), max_tokens=40, vocab_limit=60)]
    engine = TorchEngine(model, vocab_limit=60)
    open_rows, answers = {}, [[] for _ in sources]
    for step in range(200):
        if step % 3 == 0 and step // 3 < len(sources):
            number = step // 3
            encoding = engine.begin([sources[number]])
            while not encoding.advance(1):
                assert len(answers[number]) == 0
            open_rows[number] = engine.start(encoding.memories()[0])
        if not open_rows:
            break
        chosen = engine.step([*open_rows.values()], [[answers[n][-1] if answers[n] else 0] for n in open_rows])
        for n, id in zip(list(open_rows), chosen.ids[:, 0].tolist(), strict=True):
            if id != 1:
                answers[n].append(id)
            if id == 1 or len(answers[n]) == 40:
                del open_rows[n]
    assert answers == wanted


@pytest.mark.parametrize("search", [Sample(0.8, top_k=9, top_p=0.9, seed=4), Sample(1.3, seed=5), Sample(0.0)])
def test_draws_mean_what_sampling_means(search: Sample) -> None:
    model = model_of(SHAPES[0])
    sources = [[5, 6, 7, 1], [8, 1]]
    wanted = generate(model, sources, search, max_tokens=12, vocab_limit=90)
    engine = TorchEngine(model, vocab_limit=90)
    rows = [engine.start(memory) for memory in engine.encode(sources)]
    uniform = [default_rng([search.seed, row, 0]).random(12) for row in range(2)]
    found: list[list[int]] = [[], []]
    score = np.zeros(2)
    for step in range(12):
        draws = [Draw(u[step], search.temperature, search.top_k or 0, search.top_p or 1.0) for u in uniform]
        chosen = engine.step(rows, [[(answer or [0])[-1]] for answer in found], draws=draws)
        for number, answer in enumerate(found):
            if 1 not in answer:
                answer.append(int(chosen.ids[number, 0]))
                score[number] += chosen.logs[number, 0]
    for number, [output] in enumerate(wanted):
        assert [id for id in found[number] if id != 1][: len(output.ids)] == output.ids
        assert score[number] == pytest.approx(output.score, abs=1e-4)


def test_forks_and_cuts_go_their_own_way(model: T5) -> None:
    rng = default_rng(3)
    source, target = [*ids(rng, 20), 1], ids(rng, 50)
    engine = TorchEngine(model)
    row = engine.start(engine.encode([source])[0])
    engine.logits([row], [[0, *target[:29]]])
    other = engine.fork(row)
    changed = [*target[:29], *ids(rng, 20)]
    both = engine.logits([row, other], [target[29:49], changed[29:48]])
    assert close(both[:20], forced(model, source, [*target[:49], 3])[30:50])
    assert close(both[20:], forced(model, source, [*changed[:48], 3])[30:49])
    engine.cut(row, 10)
    again = [*target[:9], *ids(rng, 5)]
    assert row.length == 10
    assert close(engine.logits([row], [again[9:]]), forced(model, source, [*again, 3])[10:])
    with pytest.raises(ValueError, match="cannot be cut"):
        engine.cut(row, row.length + 1)


def test_masks_top_and_ties() -> None:
    model = model_of(SHAPES[0])
    engine = TorchEngine(model, vocab_limit=90)
    rows = [engine.start(memory) for memory in engine.encode([[5, 1], [5, 1], [5, 1]])]
    plain = forced(model, [5, 1], [7, 8])
    log = plain - np.log(np.exp(plain.astype(float)).sum(-1, keepdims=True))
    allowed = [4, 40, 89]
    mask = np.zeros(3, np.uint32)
    for id in allowed:
        mask[id // 32] |= np.uint32(1 << id % 32)
    nothing = np.zeros(3, np.uint32)
    found = engine.step(rows, [[0, 7], [0], [0]], top=5, masks=[None, mask, mask, nothing])
    best = [id for id in np.argsort(-log[0], kind="stable").tolist() if id < 90][:5]
    assert found.ids[0].tolist() == best
    assert np.allclose(found.logs[0], log[0, best], atol=1e-5)
    for position, at in ((1, 1), (2, 0)):
        order = sorted(allowed, key=lambda id, at=at: -log[at, id])
        assert found.ids[position].tolist() == [*order, -1, -1]
        assert np.allclose(found.logs[position, :3], log[at, order], atol=1e-5)
        assert (found.logs[position, 3:] == -np.inf).all()
    assert found.ids[3].tolist() == [-1] * 5
    equal = torch.tensor([[1.0, 2.0, 2.0, 2.0, 0.0], [3.0, 3.0, 1.0, 2.0, 3.0]])
    assert likeliest(equal, 2)[0].tolist() == [[1, 2], [0, 1]]
    assert likeliest(equal, 4)[0].tolist() == [[1, 2, 3, 0], [0, 1, 4, 3]]


def test_prompts_of_each_input_and_means_of_the_encoder(model: T5) -> None:
    rng = default_rng(4)
    width = model.shape.d_model
    prompts = [rng.normal(size=(3, width)).astype(np.float32), None, rng.normal(size=(7, width)).astype(np.float32)]
    sources = [[*ids(rng, length), 1] for length in (6, 9, 2)]
    tensors = [None if prompt is None else torch.from_numpy(prompt) for prompt in prompts]
    wanted = generate(model, sources, Greedy(), max_tokens=6, prompts=tensors)
    engine = TorchEngine(model)
    memories = engine.encode(sources, prompts)
    assert [memory.length for memory in memories] == [10, 10, 10]
    rows = [engine.start(memory) for memory in memories]
    last, answers = [0, 0, 0], [[], [], []]
    for _ in range(6):
        last = engine.step(rows, [[id] for id in last]).ids[:, 0].tolist()
        for answer, id in zip(answers, last, strict=True):
            answer.append(id)
    assert [answer[: len(output.ids)] for answer, [output] in zip(answers, wanted, strict=True)] == [
        output.ids for [output] in wanted
    ]
    means = engine.embed(sources)
    for source, mean in zip(sources, means, strict=True):
        with torch.no_grad():
            hidden = model.encode(torch.tensor([source]))[0].numpy()
        assert close(mean, hidden.mean(0))
    encoding = engine.begin(sources)
    assert not encoding.advance(1)
    assert encoding.advance(99)
    assert close(encoding.hidden()[2], model.encode(torch.tensor([sources[2]]))[0].detach().numpy())


def test_rows_that_are_gone_leave_nothing() -> None:
    engine = TorchEngine(model_of(SHAPES[0]))
    memory = engine.encode([[5, 1]])[0]
    for _ in range(3):
        rows = [engine.start(memory) for _ in range(30)]
        engine.step(rows, [[0]] * 30)
        assert sum(pool.all.shape[2] for pool in engine._pools.values()) <= 80
        del rows
        gc.collect()
    for pool in engine._pools.values():
        pool.collect()
    assert all(not pool.used and not pool.all.nbytes for pool in engine._pools.values())


def test_mistakes_are_told() -> None:
    engine = TorchEngine(model_of(SHAPES[0]))
    with pytest.raises(UserError, match="no tokens"):
        engine.encode([[]])
    with pytest.raises(UserError, match="vocabulary"):
        engine.encode([[96]])
    with pytest.raises(UserError, match="vocab_limit"):
        TorchEngine(engine.model, vocab_limit=97)
    row = engine.start(engine.encode([[5, 1]])[0])
    with pytest.raises(ValueError, match="twice"):
        engine.step([row, row], [[0], [0]])
    with pytest.raises(ValueError, match="at least one token"):
        engine.step([row], [[]])
    with pytest.raises(ValueError, match="token ids"):
        engine.step([row], [[96]])
    alone = TorchEngine(model_of("tiny-el2-dl0-dm32-ff64-v60"))
    assert alone.embed([[5, 1]]).shape == (1, 32)
    with pytest.raises(UserError, match="encoder alone"):
        alone.encode([[5, 1]])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_as_on_the_cpu(dtype: torch.dtype) -> None:
    rng = default_rng(5)
    model = model_of(SHAPES[0])
    sources = [[*ids(rng, length), 1] for length in (6, 90, 200, 2)]
    targets = [ids(rng, 40) for _ in sources]
    wanted = [forced(model, source, target) for source, target in zip(sources, targets, strict=True)]
    engine = TorchEngine(model.to("cuda", dtype))
    rows = [engine.start(memory) for memory in engine.encode(sources)]
    for step in range(40):
        logits = engine.logits(rows, [[([0, *target])[step]] for target in targets])
        error = max(np.abs(found - want[step]).max() for found, want in zip(logits, wanted, strict=True))
        assert error < (1e-3 if dtype is torch.float32 else 0.3)


def test_behind_a_drawn_id_come_the_likeliest_others() -> None:
    engine = TorchEngine(model_of(SHAPES[0]))
    [memory] = engine.encode([[5, 1]])
    plain = engine.step([engine.start(memory)], [[0]], top=4)
    for uniform in (0.0, 0.3, 0.6, 0.999):
        found = engine.step([engine.start(memory)], [[0]], top=4, draws=[Draw(uniform, 2.0)])
        drawn = found.ids[0, 0]
        assert found.ids[0, 1:].tolist() == [id for id in plain.ids[0].tolist() if id != drawn][:3]
        assert (np.diff(found.logs[0, 1:]) <= 0).all()
