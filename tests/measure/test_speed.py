"""Timing runs the real thing, leaves models as they were, and counts what it promises. No speed is asserted."""

import pytest
import torch

from deepnarrow.errors import UserError
from deepnarrow.measure import speed
from deepnarrow.measure.speed import Entry, Subject, conditions_here, decode_step_bytes, time_model, time_models
from deepnarrow.measure.timing import Conditions
from deepnarrow.model.init import initialise
from deepnarrow.model.t5 import T5
from deepnarrow.shapes import counts, parse

SMALL = "tiny-dm32-ff64-nh2-nl2-v128"
LENGTHS = {"input_length": 12, "target_length": 5}
AT = Conditions(**LENGTHS, batch=2, threads=torch.get_num_threads())


def test_every_part_is_timed_and_counted() -> None:
    timing = time_model(SMALL, **LENGTHS, batch=3, repeats=2)
    shape = parse(SMALL)
    assert timing.shape == str(shape)
    assert timing.parameters == counts.parameters(shape).total
    for name, phase in timing.phases():
        assert phase.outcome == "ok", name
        assert phase.milliseconds is not None
        assert phase.milliseconds.n == 2
        assert 0 < phase.milliseconds.low <= phase.milliseconds.median <= phase.milliseconds.high
        assert phase.gemm_share is not None
    assert timing.encode.flops == counts.encode_flops(shape, input_length=12, batch=3)
    whole = counts.generate_flops(shape, **LENGTHS, batch=3)
    assert timing.first_token.flops + 4 * timing.per_token.flops == pytest.approx(whole, rel=1e-3)
    assert timing.end_to_end.flops == counts.generate_flops(shape, **LENGTHS)
    assert timing.train_step is not None
    assert timing.train_step.flops == counts.training_step_flops(shape, **LENGTHS, batch=3)
    assert timing.per_token.bandwidth_share is not None
    assert timing.weights_mb == pytest.approx(timing.parameters * 4 / 1e6)
    assert timing.conditions.threads == torch.get_num_threads()


def test_memory_is_at_least_what_must_be_held() -> None:
    shape = parse("tiny-nl1-v4096")
    timing = time_model(shape, **LENGTHS, repeats=1)
    if timing.peak_memory_mb is None or timing.train_peak_memory_mb is None:
        return  # not Linux
    assert timing.peak_memory_mb >= timing.weights_mb
    held = counts.training_bytes(shape, "adafactor").total / 1e6
    assert held < timing.train_peak_memory_mb < 6 * held


def test_the_callers_model_is_left_as_it_was() -> None:
    model = T5(parse(SMALL), dropout=0.1)
    initialise(model, 3)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    timing = time_model(model, name="mine", **LENGTHS, dtype="bfloat16", repeats=1)
    assert timing.name == "mine"
    assert model.training
    for name, value in model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, before[name])


def test_an_answer_has_the_length_asked_for() -> None:
    subject = Subject(Entry("a", parse(SMALL)), AT)
    steps = []
    assert subject.model is not None
    decode = subject.model.decode

    def counted(*arguments: object) -> torch.Tensor:
        steps.append(1)
        return decode(*arguments)  # type: ignore[arg-type]

    subject.model.decode = counted  # type: ignore[method-assign,assignment]
    subject.answer(subject.inputs_BL)
    assert len(steps) == 5
    assert subject.cache.position == 5


def test_models_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    answer_once = Subject.answer_once

    def noted(self: Subject) -> None:
        order.append(self.name)
        answer_once(self)

    monkeypatch.setattr(Subject, "answer_once", noted)
    time_models([Entry("a", parse(SMALL)), Entry("b", parse(SMALL))], AT, repeats=2, train=False)
    assert order == ["a", "b", "a", "b", "a", "b"]  # the first round warms up


def test_a_model_that_does_not_fit_is_an_outcome_and_others_go_on() -> None:
    huge, small = time_models([Entry("huge", parse("xxl-nl48")), Entry("small", parse(SMALL))], AT, repeats=1)
    assert {phase.outcome for _, phase in huge.phases()} == {"OOM"}
    assert huge.peak_memory_mb is None
    assert {phase.outcome for _, phase in small.phases()} == {"ok"}


def test_memory_that_runs_out_midway_is_an_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: speed.Trainer) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 10 bytes")

    monkeypatch.setattr(speed.Trainer, "step", full)
    timing = time_model(SMALL, **LENGTHS, repeats=1)
    assert timing.train_step is not None
    assert timing.train_step.outcome == "OOM"
    assert timing.train_tokens_per_second is None
    assert timing.encode.outcome == "ok"


def test_any_other_error_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Subject) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(Subject, "encode", broken)
    with pytest.raises(RuntimeError, match="mat1"):
        time_model(SMALL, **LENGTHS, repeats=1)


def test_an_encoder_alone_is_timed_as_one() -> None:
    timing = time_model("tiny-dm32-ff64-nh2-el2-dl0-v128", **LENGTHS, repeats=1)
    assert timing.encode.outcome == "ok"
    assert {phase.outcome for name, phase in timing.phases() if name != "encode"} == {"no decoder"}


@pytest.mark.parametrize("shape", [SMALL, f"{SMALL}-skv", f"{SMALL}-sh", f"{SMALL}-untied-geglu", f"{SMALL}-kh1"])
def test_a_steps_bytes_are_the_decoders_weights_and_caches(shape: str) -> None:
    parsed = parse(shape)
    model = T5(parsed)
    assert model.decoder is not None
    unread = [
        layer for block in model.decoder.blocks for layer in (block.cross_attention.key, block.cross_attention.value)
    ]
    before = sum(weight.numel() for layer in unread if layer is not None for weight in layer.parameters())
    output = model.embedding.weight if model.output is None else model.output.weight
    read = sum(weight.numel() for weight in model.decoder.parameters()) - before + output.numel()
    memory = torch.zeros(2, 12, parsed.d_model)
    held = model.start_cache(memory, None, 3).bytes  # half of five tokens, rounded up
    assert decode_step_bytes(parsed, AT) == 4 * read + held


@pytest.mark.parametrize(
    ("change", "words"),
    [({"input_length": 1}, "input length"), ({"target_length": 1}, "target length"), ({"batch": 0}, "batch"),
     ({"dtype": "float16"}, "float32 or bfloat16")],
)  # fmt: skip
def test_senseless_conditions_teach(change: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        conditions_here(**{**LENGTHS, "batch": 1, "dtype": "float32", "device": "cpu", **change})  # type: ignore[arg-type]
    with pytest.raises(UserError, match="repeats"):
        time_model(SMALL, **LENGTHS, repeats=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_a_gpu(dtype: str) -> None:
    timing = time_model(SMALL, **LENGTHS, device="cuda", dtype=dtype, repeats=2)
    assert {phase.outcome for _, phase in timing.phases()} == {"ok"}
    assert timing.peak_memory_mb is not None
    assert timing.peak_memory_mb >= timing.weights_mb
