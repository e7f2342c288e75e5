"""The native library gives what the model gives, with every set of instructions, however rows join, fork and leave."""

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.random import Generator, default_rng

from deepnarrow.errors import UserError
from deepnarrow.model.engine import TorchEngine
from deepnarrow.model.init import initialise
from deepnarrow.model.sample import draw, shares
from deepnarrow.model.t5 import T5
from deepnarrow.runtime import native
from deepnarrow.runtime.engine import Draw
from deepnarrow.runtime.format import write
from deepnarrow.runtime.native import NativeEngine, open_engine
from deepnarrow.shapes.shape import Shape, parse

if not native.usable():
    pytest.skip("the native library is not built", allow_module_level=True)

SHAPES = [  # every knob, and sizes that are no multiple of anything
    "tiny-nl2-dm64-ff128-kv16-v96",
    "v1_1-small-nl2-dm48-ff96-kv8-v64",
    "tiny-el3-dl1-dm64-ff96-kv16-kh2-skv-v80",
    "tiny-nl2-dm32-ff64-kv8-sh-v70",
    "tiny-nl2-dm100-ff=150-kv12-nh3-gelu-untied-v333",
    "tiny-el1-dl3-dm=132-ff=1000-nh4-kv64-swiglu-v1000",
    "tiny-nl1-dm=33-ff=31-kv3-nh5-kh1-silu-v51",
    "tiny-nl1-dm64-ff64-kv80-nh2-reglu-shkv-v64-rb8-rd20",
]
# The largest error of a logit, in deviations of the logits. bfloat16 has 8 bits, a weight of int8 7 and a sign, its
# activations on AVX2 one less.
ERRORS = {"float32": 1e-5, "bfloat16": 0.05, "int8": 0.3}
PLAIN = SHAPES[0]


def model_of(shape: str, seed: int = 0) -> T5:
    """Norms and position biases at random too, which `initialise` leaves at round values."""
    model = T5(parse(shape)).eval()
    initialise(model, seed=seed)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.copy_(1 + 0.3 * torch.randn_like(weight))
            if "table" in name:
                weight.copy_(torch.randn_like(weight))
    return model


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory):
    """`opened(shape, precision, **options)`: the model and an engine over its conversion."""
    made: dict[tuple[str, str], Path] = {}

    def engine(shape: str, precision: str = "float32", **options) -> tuple[T5, NativeEngine]:
        model = model_of(shape)
        if (shape, precision) not in made:
            path = tmp_path_factory.mktemp("native") / "model.dn"
            write(path, model.shape, precision, {name: tensor.numpy() for name, tensor in model.state_dict().items()})
            made[shape, precision] = path
        return model, open_engine(made[shape, precision], **{"threads": 1, **options})

    return engine


def ids(rng: Generator, shape: Shape, length: int) -> list[int]:
    return rng.integers(3, shape.vocab, length).tolist()


def forced(model: T5, source: list[int], target: list[int]) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor([source]), torch.tensor([target]))[0].numpy()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kernels", native.kernels())
@pytest.mark.parametrize("precision", ERRORS)
@pytest.mark.parametrize("shape", SHAPES)
def test_logits_are_the_models(opened, shape: str, precision: str, kernels: str, threads: int) -> None:
    """Inputs of one token, of less and more than a panel, and so many together that threads share rows, not columns."""
    model, engine = opened(shape, precision, kernels=kernels, threads=threads)
    assert (engine.kernels, engine.precision, engine.threads) == (kernels, precision, threads)
    rng = default_rng(0)
    sources = [[*ids(rng, model.shape, length), 1] for length in (0, 5, 40, 150)]
    targets = [ids(rng, model.shape, length) for length in (3, 50, 1, 17)]
    wanted = np.concatenate([forced(model, *pair) for pair in zip(sources, targets, strict=True)])
    memories = engine.encode(sources)
    assert [memory.length for memory in memories] == [1, 6, 41, 151]

    at_once = engine.logits([engine.start(memory) for memory in memories], [[0, *target[:-1]] for target in targets])
    rows = [engine.start(memory) for memory in memories]
    by_steps: list[list[np.ndarray]] = [[] for _ in rows]
    for step in range(50):
        active = [place for place, target in enumerate(targets) if step < len(target)]
        tokens = [[targets[place][step - 1] if step else 0] for place in active]
        for place, line in zip(active, engine.logits([rows[place] for place in active], tokens), strict=True):
            by_steps[place].append(line)
    stepped = np.concatenate([np.stack(lines) for lines in by_steps])

    bound = ERRORS[precision] * wanted.std()
    assert np.abs(at_once - wanted).max() < bound
    assert np.abs(stepped - wanted).max() < bound
    assert np.abs(stepped - at_once).max() < bound


@pytest.mark.parametrize("precision", ERRORS)
def test_the_encoders_output_is_the_models(opened, precision: str) -> None:
    model, engine = opened(PLAIN, precision)
    rng = default_rng(1)
    sources = [[*ids(rng, model.shape, length), 1] for length in (3, 90, 17)]
    encoding = engine.begin(sources)
    encoding.advance(engine.shape.encoder_layers)
    vectors = engine.embed(sources)
    for source, found, vector in zip(sources, encoding.hidden(), vectors, strict=True):
        with torch.no_grad():
            wanted = model.encode(torch.tensor([source])).numpy()[0]
        assert np.abs(found - wanted).max() < ERRORS[precision] * wanted.std()
        assert np.allclose(vector, found.mean(0), atol=1e-6)


def test_an_encoder_alone_encodes_and_says_that_it_cannot_answer(opened) -> None:
    model, engine = opened("tiny-el2-dl0-dm32-ff64-kv8-v70", "int8")
    with torch.no_grad():
        wanted = model.encode(torch.tensor([[5, 6, 1]])).mean(1).numpy()
    assert np.abs(engine.embed([[5, 6, 1]]) - wanted).max() < 0.1
    with pytest.raises(UserError, match="encoder alone"):
        engine.encode([[5, 6, 1]])


def test_prompts_stand_before_the_input(opened) -> None:
    model, engine = opened(PLAIN)
    other = TorchEngine(model)
    rng = default_rng(2)
    prompts = [rng.standard_normal((length, 64), np.float32) if length else None for length in (4, 0, 20)]
    sources = [[*ids(rng, model.shape, length), 1] for length in (5, 6, 7)]
    found = engine.encode(sources, prompts)
    assert [memory.length for memory in found] == [10, 7, 28]
    lines = [e.logits([e.start(memory) for memory in e.encode(sources, prompts)], [[0]] * 3) for e in (engine, other)]
    assert np.abs(lines[0] - lines[1]).max() < 1e-5
    with pytest.raises(UserError, match="vectors of 64"):
        engine.encode(sources[:1], [np.zeros((3, 63), np.float32)])


def test_encoding_goes_layer_by_layer_while_others_step(opened) -> None:
    model, engine = opened("tiny-el3-dl2-dm64-ff96-kv16-v80")
    rng = default_rng(3)
    first, second = ([*ids(rng, model.shape, length), 1] for length in (9, 60))
    row = engine.start(engine.encode([first])[0])
    encoding = engine.begin([second])
    with pytest.raises(RuntimeError, match="not encoded yet"):
        encoding.memories()
    lines, advanced = [], []
    for token in (0, 7, 8, 9, 10):
        advanced.append(encoding.advance(1))
        lines.append(engine.logits([row], [[token]])[0])
    assert advanced == [False] * 4 + [True]
    assert np.abs(np.stack(lines) - forced(model, first, [7, 8, 9, 10, 11])).max() < 1e-5
    [memory] = encoding.memories()
    assert np.abs(engine.logits([engine.start(memory)], [[0]])[0] - forced(model, second, [5])).max() < 1e-5


def test_forks_share_and_part_and_cuts_forget(opened) -> None:
    """Forks and cuts at every place of a piece of 16 positions: a row never sees what another wrote."""
    model, engine = opened(PLAIN, threads=2)
    rng = default_rng(4)
    source = [*ids(rng, model.shape, 12), 1]
    [memory] = engine.encode([source])
    stem = ids(rng, model.shape, 40)
    for at in (1, 15, 16, 17, 31, 32, 40):
        row = engine.start(memory)
        engine.logits([row], [[0, *stem[: at - 1]]])
        fork = engine.fork(row)
        ends = [ids(rng, model.shape, 20) for _ in range(3)]
        found = engine.logits([row, fork], [ends[0], ends[1]])
        for place in (0, 1):
            wanted = forced(model, source, [*stem[: at - 1], *ends[place], 5])[at:]
            assert np.abs(found[20 * place : 20 * place + 20] - wanted).max() < 1e-5
        engine.cut(fork, at)
        assert (row.length, fork.length) == (at + 20, at)
        again = engine.logits([fork], [ends[2]])
        assert np.abs(again - forced(model, source, [*stem[: at - 1], *ends[2], 5])[at:]).max() < 1e-5
        assert (
            np.abs(engine.logits([row], [[9]]) - forced(model, source, [*stem[: at - 1], *ends[0], 9, 5])[-1]).max()
            < 1e-5
        )


def test_an_answer_does_not_depend_on_its_neighbours_nor_on_threads(opened) -> None:
    """But for the last digits of sums, which are made in another order where a row is alone."""
    rng = default_rng(5)
    for precision in ERRORS:
        model, engine = opened(PLAIN, precision)
        sources = [[*ids(rng, model.shape, length), 1] for length in (30, 3, 70)]
        alone = engine.logits([engine.start(engine.encode(sources[:1])[0])], [[0]])
        for threads in (1, 2, 3):
            _, other = opened(PLAIN, precision, threads=threads)
            rows = [other.start(memory) for memory in other.encode(sources)]
            together = other.logits(rows, [[0], [0], [0]])[0]
            assert np.abs(together - alone[0]).max() < ERRORS[precision] * 0.1 * alone.std()


@pytest.mark.parametrize("kernels", native.kernels())
@pytest.mark.parametrize("precision", ERRORS)
def test_without_log_probabilities_the_ids_are_the_same(opened, precision: str, kernels: str) -> None:
    """A vocabulary so large that it is looked at in 4 bits first, with masks that allow much, little and nothing."""
    model, engine = opened("tiny-nl1-dm=200-ff64-kv16-v4100", precision, threads=2, kernels=kernels, vocab_limit=4090)
    rng = default_rng(7)
    few, none = (np.zeros(129, np.uint32) for _ in range(2))
    few[rng.integers(0, 129, 9)] = rng.integers(1, 2**32, 9, np.uint32)
    wide = np.full(129, 0xFFFFFFFF, np.uint32)
    wide[0] ^= np.uint32(2)
    seen, narrowed = set(), 0
    for rows in (1, 3, 8):
        memories = engine.encode([[*ids(rng, model.shape, 20), 1] for _ in range(rows)])
        with_logs, without = ([engine.start(memory) for memory in memories] for _ in range(2))
        tokens = [[0]] * rows
        for step in range(40):
            masks = [[None, wide, few, none][(step + row) % 4] for row in range(rows)]
            wanted = engine.step(with_logs, tokens, masks=masks)
            found = engine.step(without, tokens, masks=masks, logs=False)
            assert found.ids.tolist() == wanted.ids.tolist()
            narrowed += int(np.isnan(found.logs).all())
            seen.update(wanted.ids[:, 0].tolist())
            tokens = [[int(id)] for id in ids(rng, model.shape, rows)]
    assert narrowed == 120  # none of them was written
    assert len(seen) > 30
    assert -1 in seen


@pytest.mark.parametrize("top", [1, 3, 200])
def test_the_likeliest_and_their_log_probabilities(opened, top: int) -> None:
    model, engine = opened("tiny-nl2-dm100-ff=150-kv12-nh3-gelu-untied-v333", threads=2, vocab_limit=300)
    other = TorchEngine(model, vocab_limit=300)
    rng = default_rng(6)
    sources = [[*ids(rng, model.shape, length), 1] for length in (8, 20)]
    masks = [None, np.zeros(11, np.uint32), np.full(11, 0xFFFFFFFF, np.uint32)]
    for id in (3, 32, 63, 64, 299, 310):
        masks[1][id // 32] |= np.uint32(1 << id % 32)
    found, wanted = (
        e.step([e.start(memory) for memory in e.encode(sources)], [[0, 5], [0]], top=top, masks=masks)
        for e in (engine, other)
    )
    assert np.array_equal(found.ids, wanted.ids)
    assert found.ids.max() < 300
    if top == 200:
        assert sorted(found.ids[1, :5].tolist()) == [3, 32, 63, 64, 299]  # 310 is allowed, but no id has it
        assert found.ids[1, 5:].max() == -1
        assert set(found.logs[1, 5:].tolist()) == {-math.inf}
    there = np.isfinite(wanted.logs)
    assert np.allclose(found.logs[there], wanted.logs[there], atol=1e-5)


def test_draws_are_those_of_sampling(opened) -> None:
    model, engine = opened("tiny-nl2-dm100-ff=150-kv12-nh3-gelu-untied-v333", threads=2)
    rng = default_rng(7)
    [memory] = engine.encode([[*ids(rng, model.shape, 9), 1]])
    logits = torch.from_numpy(engine.logits([engine.start(memory)], [[0]]))
    kinds = [(1.0, 0, 1.0), (0.7, 5, 1.0), (1.5, 0, 0.6), (1.2, 40, 0.9), (3.0, 0, 0.05), (0.0, 0, 1.0)]
    for temperature, top_k, top_p in kinds:
        uniforms = rng.random(40)
        draws = [Draw(uniform, temperature, top_k, top_p) for uniform in uniforms]
        rows = [engine.start(memory) for _ in draws]
        found = engine.step(rows, [[0]] * 40, draws=draws).ids[:, 0]
        if temperature == 0:
            assert set(found.tolist()) == {int(logits.argmax())}
            continue
        share = shares(logits, temperature, top_k or None, top_p).double()
        edges = share.cumsum(-1)[0] / share.sum()
        safe = (edges[None] - torch.from_numpy(uniforms)[:, None]).abs().min(-1).values > 1e-6
        wanted = draw(share.repeat(40, 1), torch.from_numpy(uniforms))
        assert safe.sum() > 35
        assert np.array_equal(found[safe.numpy()], wanted.numpy()[safe.numpy()])


def test_rows_and_memories_are_given_back(opened) -> None:
    """Long use takes no more memory than short use: measured by the process."""
    _, engine = opened(PLAIN)
    resident = Path("/proc/self/statm")
    if not resident.exists():
        pytest.skip("this system does not tell a process's memory in /proc")

    def use() -> int:
        for _ in range(20):
            rows = [engine.start(memory) for memory in engine.encode([[5] * 300 + [1]] * 4)]
            for _ in range(3):
                engine.step(rows, [[0] * 20] * 4)
                rows = [engine.fork(row) for row in rows]
        return int(resident.read_text().split()[1]) * 4096

    held = [use() for _ in range(6)]
    assert held[-1] - held[1] < 4e6, [b - a for a, b in pairwise(held)]


def test_mistakes_are_told(opened) -> None:
    _, engine = opened(PLAIN)
    [memory] = engine.encode([[5, 1]])
    row = engine.start(memory)
    for wrong, message in (
        ([[]], "no tokens"),
        ([[5, 96]], "vocabulary has the ids 0 to 95"),
        ([[-1, 1]], "token id -1"),
    ):
        with pytest.raises(UserError, match=message):
            engine.encode(wrong)
    with pytest.raises(ValueError, match="stands twice"):
        engine.step([row, row], [[0], [0]])
    with pytest.raises(ValueError, match="outside the vocabulary"):
        engine.step([row], [[96]])
    with pytest.raises(ValueError, match="at least one token"):
        engine.step([row], [[]])
    with pytest.raises(ValueError, match="3 words"):
        engine.step([row], [[0]], masks=[np.zeros(2, np.uint32)])
    with pytest.raises(ValueError, match="more than it holds"):
        engine.cut(row, 1)
    assert row.length == 0
    with pytest.raises(UserError, match="no kernels 'sse9'"):
        opened(PLAIN, kernels="sse9")
    with pytest.raises(UserError, match="at least 1"):
        opened(PLAIN, threads=0)


def test_without_the_library_one_line_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    native.library.cache_clear()
    monkeypatch.setenv("DEEPNARROW_NATIVE", "0")
    try:
        assert not native.usable()
        with pytest.raises(native.NotBuiltError, match="DEEPNARROW_NATIVE=0"):
            native.library()
    finally:
        native.library.cache_clear()
    monkeypatch.setenv("DEEPNARROW_LIBRARY", __file__)
    monkeypatch.delenv("DEEPNARROW_NATIVE")
    try:
        with pytest.raises(native.NotBuiltError, match="cannot be loaded"):
            native.library()
    finally:
        native.library.cache_clear()
