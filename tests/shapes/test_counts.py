"""The counts, held: against the published cards, the published tables, the built model and torch's FLOP counter."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from deepnarrow.errors import UserError
from deepnarrow.model.t5 import T5
from deepnarrow.shapes import (
    BASES,
    OPTIMIZERS,
    Shape,
    cost,
    cross_cache_bytes,
    cross_keys_values_flops,
    decode_step_flops,
    encode_flops,
    forward_flops,
    generate_flops,
    parameters,
    parse,
    self_cache_bytes,
    shape_of,
    tensors,
    training_bytes,
    training_step_flops,
    weight_bytes,
)
from deepnarrow.shapes.shape import NUMBERS, WORDS

EXOTIC = [  # every knob, alone and together
    "tiny", "mini-nl6", "small-el16-dl2", "base-nh24", "large-kv32", "xl", "v1_1-small", "v1_1-base-tied",
    "small-skv", "small-kh1", "small-kh4", "small-kh2-skv", "small-sh", "small-shkv", "small-kh2-shkv",
    "v1_1-small-sh", "small-dl0", "v1_1-small-dl0", "v1_1-xl-kh8-skv-v4096", "tiny-rb16-rd40-nl3-dl1",
    "tiny-swiglu-sh-untied", "tiny-gelu-dm=1000-ff=3000-kv48-nh5",
]  # fmt: skip
SMALL = [  # the same knobs at a size that runs at once
    "tiny-nl2-v512", "tiny-el3-dl1-dm128-v512", "tiny-nl2-v512-skv", "tiny-nl2-v512-kh1", "tiny-nl2-v512-kh2-skv",
    "tiny-nl2-v512-sh", "tiny-nl2-v512-kh2-shkv", "v1_1-small-nl2-v512", "v1_1-small-nl2-v512-tied-kv32-nh5",
    "tiny-nl2-swiglu-dm96-ff80-v512",
]  # fmt: skip


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def built(shape: Shape) -> T5:
    """The model without storage: `meta` tensors have sizes only, so that even 11B is instant."""
    with torch.device("meta"):
        return T5(shape)


def test_counts_equal_all_96_cards(shared: Path) -> None:
    cards = [row for row in lines(shared / "catalog/seed_models.jsonl") if "shape" in row]
    assert len(cards) == 96
    for row in cards:
        shape = shape_of(row["id"])
        assert {name: getattr(shape, name) for name in row["shape"]} == row["shape"], row["id"]
        total = parameters(shape).total
        assert total == row["params_exact"], row["id"]
        assert total / 1e6 == pytest.approx(row["card"]["params_millions"], rel=1e-3), row["id"]
        # The card's MB are sizes of files, which hold names and padding besides the weights.
        assert weight_bytes(shape) / 1e6 == pytest.approx(row["card"]["fp32_mb"], rel=1.1e-3), row["id"]
        assert weight_bytes(shape, "bfloat16") / 1e6 == pytest.approx(row["card"]["half_mb"], rel=1.1e-3), row["id"]


def test_counts_equal_all_released_names(shared: Path) -> None:
    rows = lines(shared / "catalog/released_checkpoints.jsonl")
    assert len(rows) == 170
    known = [row for row in rows if row["params_exact"] is not None]
    assert len(known) == 160
    for row in known:
        assert parameters(shape_of(row["name"])).total == row["params_exact"], row["name"]


@pytest.mark.parametrize("base", ["tiny", "mini", "small"])
def test_the_printed_d_kv_of_32_is_wrong(base: str) -> None:
    """Cards print d_kv 32 for the three smallest; only 64 gives their totals."""
    card = {"tiny": 15.58, "mini": 31.23, "small": 60.52}[base]
    assert parameters(parse(base)).total / 1e6 == pytest.approx(card, rel=1e-3)
    assert parameters(parse(f"{base}-kv32")).total / 1e6 < 0.92 * card


@pytest.mark.parametrize(
    ("base", "plain", "tied_kv", "multi_query", "shared_stacks"),
    [
        ("tiny", 15.57, 14.78, 14.39, 12.42),
        ("small", 60.51, 55.79, 52.25, 41.63),
        ("base", 222.90, 201.67, 183.98, 137.95),
        ("large", 737.67, 662.17, 596.11, 435.63),
        ("xl", 2851.6, 2549.6, 2266.5, 1643.6),
    ],
)
def test_every_reading_of_sh_and_skv(
    base: str, plain: float, tied_kv: float, multi_query: float, shared_stacks: float
) -> None:
    counted = [parameters(parse(f"{base}{edit}")).total / 1e6 for edit in ("", "-skv", "-kh1", "-sh")]
    assert counted == pytest.approx([plain, tied_kv, multi_query, shared_stacks], abs=0.05 if base == "xl" else 0.005)


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("v1_1-small", 76.96), ("v1_1-base", 247.58), ("v1_1-large", 783.15), ("v1_1-xl", 2849.8),
        ("v1_1-xxl", 11135.3), ("t5-11b", 11307.3), ("google/t5-small-ssm-nq", 77.0),
        ("google/mt5-small", 300), ("google/mt5-base", 582), ("google/mt5-large", 1230), ("google/mt5-xl", 3740),
        ("google/mt5-xxl", 12900), ("google/byt5-small", 300), ("google/byt5-base", 582), ("google/byt5-large", 1230),
        ("google/byt5-xl", 3740), ("google/byt5-xxl", 12900),
    ],
)  # fmt: skip
def test_published_totals_of_the_wider_family(name: str, millions: float) -> None:
    assert parameters(shape_of(name)).total / 1e6 == pytest.approx(millions, rel=2e-3)


@pytest.mark.parametrize("name", EXOTIC)
def test_parameters_equal_the_built_model(name: str) -> None:
    shape = parse(name)
    model = built(shape)
    counted = parameters(shape)
    assert counted.total == sum(weight.numel() for weight in model.parameters())
    assert counted.embedding == model.embedding.weight.numel()
    assert counted.output == (0 if model.output is None else model.output.weight.numel())
    assert counted.non_embedding == counted.encoder + counted.decoder
    listed: Counter[tuple[int, ...]] = Counter()
    for tensor in tensors(shape):
        listed[tuple(sorted(tensor.dims))] += tensor.copies
    assert listed == Counter(tuple(sorted(weight.shape)) for weight in model.parameters())


def test_what_is_shared_is_counted_once_and_cross_attention_is_not_shared() -> None:
    plain, shared = parameters(parse("base")), parameters(parse("base-sh"))
    cross = 12 * (4 * 768 * 768 + 768)
    assert (shared.encoder, shared.decoder) == (plain.encoder, cross)


@pytest.mark.parametrize("name", EXOTIC)
def test_bytes_equal_the_built_model(name: str) -> None:
    shape = parse(name)
    model = built(shape)
    assert weight_bytes(shape) == sum(weight.nbytes for weight in model.parameters())
    assert weight_bytes(shape, "bfloat16") == sum(weight.nbytes for weight in model.to(torch.bfloat16).parameters())


def test_int8_by_hand() -> None:
    shape = Shape(d_model=8, d_ff=16, num_heads=2, d_kv=4, encoder_layers=1, decoder_layers=0, vocab=10)
    high = 2 * (10 * 8) + 4 * (32 * 2 + 3 * 8) + 2 * (8 * 16)  # embedding; bias and norms; wo
    low = 4 * (8 * 8) + 16 * 8 + 4 * (4 * 8 + 16)  # projections, wi, a scale for each output row
    assert weight_bytes(shape, "int8") == high + low


@pytest.mark.parametrize("name", EXOTIC)
def test_training_state_equals_the_rule_on_the_built_model(name: str) -> None:
    shape = parse(name)
    sizes = [tuple(weight.shape) for weight in built(shape).parameters()]
    total = sum(torch.Size(size).numel() for size in sizes)
    factored = sum(sum(s) if len(s) == 2 and min(s) >= 128 else torch.Size(s).numel() for s in sizes)
    assert training_bytes(shape, "adafactor").moments == 4 * factored
    for optimizer in ("adamw", "adamw_scale"):
        state = training_bytes(shape, optimizer)
        assert (state.weights, state.gradients, state.moments) == (4 * total, 4 * total, 8 * total)
        assert state.total == 16 * total


def test_adamw_moments_equal_torch() -> None:
    shape = parse("tiny-nl1-dm64-v128")
    model = with_weights(shape)
    optimizer = torch.optim.AdamW(model.parameters())
    tokens = torch.ones(1, 4, dtype=torch.long)
    model(tokens, tokens).sum().backward()
    optimizer.step()
    held = sum(
        value.nbytes for state in optimizer.state.values() for key, value in state.items() if key.startswith("exp_avg")
    )
    assert held == training_bytes(shape, "adamw").moments


def with_weights(shape: Shape) -> T5:
    model = T5(shape)
    torch.manual_seed(0)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.02)
    return model


INPUT, TARGET, BATCH = 48, 20, 2


@pytest.mark.parametrize("name", SMALL)
def test_flops_equal_torch_counter(name: str) -> None:
    """Measured on the model at work, in training and in cached decoding; the promise is one per cent."""
    shape = parse(name)
    model = with_weights(shape)
    inputs_BL = torch.randint(1, 100, (BATCH, INPUT))
    targets_BT = torch.randint(1, 100, (BATCH, TARGET))
    lengths = {"input_length": INPUT, "target_length": TARGET, "batch": BATCH}

    with FlopCounterMode(display=False) as forward:
        loss = model(inputs_BL, targets_BT).sum()
    assert forward.get_total_flops() == pytest.approx(forward_flops(shape, **lengths), rel=0.01)
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    both = forward.get_total_flops() + backward.get_total_flops()
    assert both == pytest.approx(training_step_flops(shape, **lengths), rel=0.01)

    # The counter does not know the CPU's fused attention; the plain one has the same products.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as encode:
            memory_BLD = model.encode(inputs_BL)
        assert encode.get_total_flops() == pytest.approx(encode_flops(shape, input_length=INPUT, batch=BATCH), rel=0.01)
        with FlopCounterMode(display=False) as cross:
            cache = model.start_cache(memory_BLD, inputs_BL != 0, TARGET)
        expected = cross_keys_values_flops(shape, input_length=INPUT, batch=BATCH)
        assert cross.get_total_flops() == pytest.approx(expected, rel=0.01)
        written = 0
        for position in range(TARGET):
            with FlopCounterMode(display=False) as step:
                model.decode(targets_BT[:, position : position + 1], None, None, cache)
            expected = decode_step_flops(shape, position=position, input_length=INPUT, batch=BATCH)
            assert step.get_total_flops() == pytest.approx(expected, rel=0.01)
            written += step.get_total_flops()
    whole = encode.get_total_flops() + cross.get_total_flops() + written
    assert whole == pytest.approx(generate_flops(shape, **lengths), rel=0.01)

    held = self_cache_bytes(shape, target_length=TARGET, batch=BATCH)
    assert cache.bytes == held + cross_cache_bytes(shape, input_length=INPUT, batch=BATCH)


def test_generating_is_the_sum_of_its_steps() -> None:
    shape = parse("small-el16-dl2")
    for length in (1, 2, 7, 114):
        steps = sum(decode_step_flops(shape, position=t, input_length=512) for t in range(length))
        whole = encode_flops(shape, input_length=512) + cross_keys_values_flops(shape, input_length=512) + steps
        assert generate_flops(shape, input_length=512, target_length=length) == whole


def test_encoder_work_does_not_depend_on_the_decoder() -> None:
    assert encode_flops(parse("base"), input_length=512) == encode_flops(parse("base-dl2"), input_length=512)


def test_an_encoder_alone_costs_its_encoding() -> None:
    alone = cost(parse("small-dl0"))
    assert alone.forward_flops == alone.generate_flops == alone.encode_flops
    assert alone.decode_step_flops == alone.cross_keys_values_flops == 0
    assert alone.parameters.decoder == alone.parameters.output == 0


def test_caches_shrink_with_tied_and_grouped_keys() -> None:
    plain, tied, grouped = (
        self_cache_bytes(parse(name), target_length=64) for name in ("small", "small-skv", "small-kh2")
    )
    assert (tied, grouped) == (plain // 2, plain // 4)
    assert self_cache_bytes(parse("small"), target_length=64, dtype="bfloat16", batch=8) == 4 * plain


def test_cost_gathers_the_single_counts() -> None:
    shape = parse("base-dl2")
    whole = cost(shape, input_length=100, target_length=10, batch=3)
    lengths = {"input_length": 100, "target_length": 10, "batch": 3}
    assert whole.forward_flops == forward_flops(shape, **lengths)
    assert whole.generate_flops == generate_flops(shape, **lengths)
    assert whole.training_step_flops == 3 * whole.forward_flops
    assert whole.decode_step_flops == decode_step_flops(shape, position=9, input_length=100, batch=3)
    assert set(whole.training) == set(OPTIMIZERS)
    assert whole.forward_flops == 3 * cost(shape, input_length=100, target_length=10).forward_flops


def test_the_documentation_speaks_true() -> None:
    """The page's example gives what its comments say, and its tables are the code's."""
    page = (Path(__file__).resolve().parents[2] / "docs/shapes.md").read_text("utf-8")
    example = page.split("```python\n")[1].split("```")[0]
    names: dict[str, object] = {}
    checked = 0
    for line in example.splitlines():
        code, _, comment = line.partition("#")
        if not comment:
            exec(code, names)
            continue
        said = comment.strip().split(",")[0]
        assert repr(eval(code, names)) == said, line
        checked += 1
    assert checked == 3
    for base, shape in BASES.items():
        row = f"| `{base}` | {shape.encoder_layers} + {shape.decoder_layers} | {shape.d_model} | {shape.d_ff} | "
        assert f"{row}{shape.num_heads} x {shape.d_kv} | " in page, base
    for key in (*NUMBERS, *WORDS):
        assert re.search(rf"`{key}[0-9]*`", page), f"{key} is not explained"


def test_mistakes_teach() -> None:
    shape = parse("small")
    with pytest.raises(UserError, match="unknown optimizer 'adam'; did you mean adamw"):
        training_bytes(shape, "adam")
    with pytest.raises(UserError, match="unknown dtype 'float16'; did you mean"):
        weight_bytes(shape, "float16")
    with pytest.raises(UserError, match="unknown dtype 'int8'"):
        self_cache_bytes(shape, target_length=1, dtype="int8")
    with pytest.raises(UserError, match="input_length must be at least 1, not 0"):
        encode_flops(shape, input_length=0)
    with pytest.raises(UserError, match="position must be at least 0, not -1"):
        decode_step_flops(shape, position=-1, input_length=4)
