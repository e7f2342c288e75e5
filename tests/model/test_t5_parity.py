"""Numbers of the whole network against transformers' T5, float32, every weight random, both ways of conversion."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from deepnarrow.model.decode import Beam, Greedy, generate
from deepnarrow.model.folder import open_model, save_model
from deepnarrow.model.t5 import T5, shift_right
from deepnarrow.model.weights import from_published, to_published
from deepnarrow.shapes import parse

SHAPES = {
    "as published": "tiny-nl2-dm64-ff128-kv16-nh4-v160",
    "deep and narrow": "tiny-nl8-dm32-ff64-kv8-nh4-v160",
    "more encoder": "tiny-el5-dl1-dm32-ff64-kv8-nh4-v160",
    "more decoder": "tiny-el1-dl4-dm32-ff64-kv8-nh4-v160",
    "one layer": "tiny-nl1-dm32-ff64-kv8-nh4-v160",
    "odd d_kv": "tiny-nl2-dm32-ff64-kv7-nh4-v160",
    "heads do not divide the width": "tiny-nl2-dm32-ff64-kv8-nh5-v160",
    "one head": "tiny-nl2-dm32-ff64-kv8-nh1-v160",
    "inner wider than the model": "tiny-nl2-dm24-ff64-kv64-nh3-v160",
    "T5 1.1": "v1_1-small-nl2-dm32-ff64-kv8-nh4-v160",
    "gated and tied": "v1_1-small-nl2-dm32-ff64-kv8-nh4-v160-tied",
    "untied relu": "tiny-nl2-dm32-ff64-kv8-nh4-v160-untied",
    "gelu": "tiny-nl2-dm32-ff64-kv8-nh4-v160-gelu",
    "swish in a gate": "tiny-nl2-dm32-ff64-kv8-nh4-v160-swiglu",
    "few buckets, near": "tiny-nl2-dm32-ff64-kv8-nh4-v160-rb8-rd20",
    "odd everything": "tiny-el3-dl2-dm27-ff53-kv5-nh3-v101",
}
KNOBS = {
    "tied keys and values": "tiny-nl2-dm32-ff64-kv8-nh4-v160-skv",
    "multi-query": "tiny-nl2-dm32-ff64-kv8-nh4-kh1-v160",
    "grouped": "tiny-nl2-dm32-ff64-kv8-nh6-kh2-v160",
    "shared stacks": "tiny-nl3-dm32-ff64-kv8-nh4-v160-sh",
    "all knobs": "v1_1-small-nl2-dm32-ff64-kv8-nh4-kh2-v160-shkv",
}
LENGTHS = [13, 40, 1, 27]
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def batch(ids, vocab: int, *, left: bool = False):
    """Inputs longer than the far end of the buckets in use, and targets, both padded."""
    inputs = ids(LENGTHS, 40, vocab, left=left)
    return inputs, (inputs != 0), ids([9, 4, 12, 1], 12, vocab, seed=1)


def theirs(model, inputs, mask, targets):
    return model(input_ids=inputs, attention_mask=mask.long(), decoder_input_ids=shift_right(targets))


def ours_from(reference, shape) -> T5:
    model = T5(shape).eval()
    state = from_published(reference.state_dict(), shape, scaled=shape.tied, may_lack_output=False, where="reference")
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize("left", [False, True], ids=["padded right", "padded left"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_logits_and_encoder_states(shape: str, left: bool, oracle, ids) -> None:
    parsed = parse(shape)
    reference = oracle(parsed)
    model = ours_from(reference, parsed)
    inputs, mask, targets = batch(ids, parsed.vocab, left=left)
    with torch.no_grad():
        expected = theirs(reference, inputs, mask, targets)
        torch.testing.assert_close(model(inputs, targets), expected.logits, **CLOSE)
        memory = model.encode(inputs)
        torch.testing.assert_close(memory[mask], expected.encoder_last_hidden_state[mask], **CLOSE)
        torch.testing.assert_close(model.decode(shift_right(targets), memory, mask), expected.logits, **CLOSE)
    spelt_out = model(inputs, targets)  # with gradients, attention takes the other path
    torch.testing.assert_close(spelt_out, expected.logits, **CLOSE)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_gradients(shape: str, oracle, ids) -> None:
    parsed = parse(shape)
    reference = oracle(parsed)
    model = ours_from(reference, parsed).train()
    inputs, mask, targets = batch(ids, parsed.vocab)
    real = targets != 0
    for logits in (theirs(reference, inputs, mask, targets).logits, model(inputs, targets)):
        torch.nn.functional.cross_entropy(logits[real], targets[real]).backward()
    gradients = to_published({name: weight.grad for name, weight in model.named_parameters()}, parsed)
    wanted = {name: weight.grad for name, weight in reference.named_parameters()}
    assert gradients.keys() == wanted.keys()
    for name, gradient in gradients.items():
        error = (gradient - wanted[name]).norm() / wanted[name].norm()
        assert error < 1e-4, f"{name}: {error:.1e}"


@pytest.mark.parametrize("shape", ["tiny-el3-dl1-dm32-ff64-kv8-nh5-v160", "v1_1-small-nl2-dm32-ff64-kv8-nh4-v160"])
def test_their_folder_opens_here(shape: str, oracle, ids, tmp_path: Path) -> None:
    parsed = parse(shape)
    reference = oracle(parsed)
    reference.save_pretrained(tmp_path)
    opened = open_model(tmp_path)
    assert opened.shape == parsed
    inputs, mask, targets = batch(ids, parsed.vocab)
    with torch.no_grad():
        expected = theirs(reference, inputs, mask, targets).logits
        torch.testing.assert_close(opened.model(inputs, targets), expected, **CLOSE)


@pytest.mark.parametrize("shape", [*SHAPES.values(), *KNOBS.values()], ids=[*SHAPES, *KNOBS])
def test_our_folder_opens_there_and_here(shape: str, random_model, ids, tmp_path: Path) -> None:
    """Knobs that transformers lacks are written out; it must compute the same, and we must get the knobs back."""
    from transformers import T5ForConditionalGeneration

    parsed = parse(shape)
    model = random_model(shape)
    save_model(model, None, tmp_path / "model")
    reference, loading = T5ForConditionalGeneration.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not any(loading.values()), loading
    inputs, mask, targets = batch(ids, parsed.vocab)
    with torch.no_grad():
        expected = theirs(reference.eval(), inputs, mask, targets)
        torch.testing.assert_close(model(inputs, targets), expected.logits, **CLOSE)
        torch.testing.assert_close(model.encode(inputs)[mask], expected.encoder_last_hidden_state[mask], **CLOSE)
    opened = open_model(tmp_path / "model")
    assert opened.shape == parsed
    for name, tensor in model.state_dict().items():
        assert torch.equal(opened.model.state_dict()[name], tensor), name


@pytest.mark.parametrize("shape", ["tiny-dl0-dm32-ff64-kv8-nh4-v160", "v1_1-small-dl0-dm32-ff64-kv8-nh4-kh1-v160"])
def test_encoder_alone_both_ways(shape: str, oracle, random_model, ids, tmp_path: Path) -> None:
    from transformers import T5EncoderModel

    model = random_model(shape)
    save_model(model, None, tmp_path / "ours")
    reference, loading = T5EncoderModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(loading.values()), loading
    inputs, mask, _ = batch(ids, 160)
    with torch.no_grad():
        expected = reference.eval()(input_ids=inputs, attention_mask=mask.long()).last_hidden_state
        torch.testing.assert_close(model.encode(inputs)[mask], expected[mask], **CLOSE)
        reference.save_pretrained(tmp_path / "theirs")
        again = open_model(tmp_path / "theirs")
        torch.testing.assert_close(again.model.encode(inputs)[mask], expected[mask], **CLOSE)
    assert again.shape.decoder_layers == 0


def test_their_generate_runs_on_our_folder(random_model, ids, tmp_path: Path) -> None:
    """It needs the decoder's first token, which a T5 config may leave out."""
    from transformers import T5ForConditionalGeneration

    model = random_model("tiny-nl1-dm32-ff64-kv8-nh4-v160")
    save_model(model, None, tmp_path / "model")
    reference = T5ForConditionalGeneration.from_pretrained(tmp_path / "model").eval()
    inputs = ids([6, 3], 6, 160)
    made = reference.generate(input_ids=inputs, attention_mask=(inputs != 0).long(), max_new_tokens=4, do_sample=False)
    assert made[:, 0].tolist() == [0, 0]
    with torch.no_grad():
        first = model(inputs, torch.zeros(2, 1, dtype=torch.long)).argmax(-1)
    assert torch.equal(made[:, 1:2], first)


STEPS = 14


def answers(reference, inputs: torch.Tensor, eos: int, beams: int) -> list[list[int]]:
    """transformers' answers without the start and what follows the end."""
    written = reference.generate(
        input_ids=inputs, attention_mask=(inputs != 0).long(), max_new_tokens=STEPS, num_beams=beams, do_sample=False,
        eos_token_id=eos, pad_token_id=0, decoder_start_token_id=0, length_penalty=1.0, early_stopping=False,
        use_cache=False,  # transformers 5.23 makes caches for the encoder's depth and fails where the decoder is deeper
    )  # fmt: skip
    rows = [row[1:] for row in written.tolist()]
    return [row[: row.index(eos)] if eos in row else row for row in rows]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_greedy_and_beam_write_the_same_tokens(shape: str, oracle, ids) -> None:
    """Random weights have no idea of an end, so a token that the model likes to write is made the end: rows then stop
    at different lengths, which is where searches differ.
    """
    parsed = parse(shape)
    padded = ids([13, 30, 2, 21, 8, 17], 30, parsed.vocab)
    inputs = [[token for token in row if token] for row in padded.tolist()]
    for seed in range(300):  # some random weights write one token for ever
        reference = oracle(parsed, seed)
        model = ours_from(reference, parsed)
        free = [found[0].ids for found in generate(model, inputs, Greedy(), max_tokens=STEPS, eos=parsed.vocab)]
        ends = Counter(token for row in free for token in set(row[2:9]) if row.index(token) > 0 and token > 1)
        if any(count < len(free) for count in ends.values()):
            break
    eos = min(ends, key=lambda token: abs(ends[token] - len(free) // 2))
    lengths = set()
    for search, beams in ((Greedy(), 1), (Beam(4), 4)):
        found = [best[0].ids for best in generate(model, inputs, search, max_tokens=STEPS, eos=eos)]
        assert found == answers(reference, padded, eos, beams)
        lengths |= {len(row) for row in found}
    assert len(lengths) > 1, "no row ended before another: the end was not tested"
