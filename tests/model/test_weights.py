"""Published configurations and tensor names: every style of config.json, knobs written out and read back."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deepnarrow.errors import UserError
from deepnarrow.model.published import read_config, write_config
from deepnarrow.model.t5 import T5
from deepnarrow.model.weights import (
    as_tied,
    collapse,
    expand,
    from_published,
    plain,
    published_name,
    sizes,
    to_published,
)
from deepnarrow.shapes import Shape, parse

PUBLISHED = {  # file in shared/data/hf_configs -> (shape, whether the decoder's output is scaled)
    "byt5-large": ("v1_1-large-dm1536-ff3840-el36-dl12-v384", False),
    "byt5-small": ("v1_1-small-dm1472-ff3584-el12-dl4-v384", False),
    "codet5-small_derived": ("small-v32100", True),
    "envit5-base": ("v1_1-base-v50048", False),
    "flan-t5-base": ("v1_1-base", False),
    "flan-t5-large": ("v1_1-large", False),
    "legal_t5_small_trans_fr_en": ("small", True),
    "mt5-small": ("v1_1-small-v250112", False),
    "mt5-xl_encoder": ("v1_1-xl-v250112-dl0", False),
    "t5-base": ("base", True),
    "t5-large": ("large", True),
    "t5-small": ("small", True),
    "t5-small_finetuned_squad": ("small", True),
    "t5-v1_1-base": ("v1_1-base", False),
    "t5-v1_1-xxl": ("v1_1-xxl", False),
    "t5-v1_1-xxl_encoder": ("v1_1-xxl-dl0", False),
    "t5-v1_1-xxl_encoder_sd3": ("v1_1-xxl-dl0", False),
}
SMALLEST = {"d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 32}
TINY = "tiny-nl2-dm32-ff64-kv8-nh4-v90"
KNOBS = [f"{TINY}-skv", f"{TINY}-kh2", f"{TINY}-kh1", f"{TINY}-sh", f"{TINY}-kh2-shkv", f"{TINY}-geglu-untied-kh1-sh"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations(name: str, shared: Path) -> None:
    found = read_config(json.loads((shared / f"data/hf_configs/{name}.json").read_text()), where=name)
    shape, scaled = PUBLISHED[name]
    assert found.shape == parse(shape)
    assert found.scaled is scaled


def test_no_published_configuration_is_forgotten(shared: Path) -> None:
    there = {path.stem for path in (shared / "data/hf_configs").glob("*.json")}
    assert there == {*PUBLISHED, "INDEX", "t5-efficient_partial"}


def test_efficient_dimensions(shared: Path) -> None:
    stated = json.loads((shared / "data/hf_configs/t5-efficient_partial.json").read_text())
    for name, config in stated.items():
        assert read_config(config, where=name).shape == parse(name.removeprefix("google/t5-efficient-"))


@pytest.mark.parametrize(
    "shape", [TINY, f"{TINY}-untied", f"{TINY}-swiglu-rb8-rd20", f"{TINY}-dl0", f"{TINY}-kh2-shkv", "v1_1-xl", "xxl"]
)
def test_written_configuration_reads_back(shape: str) -> None:
    parsed = parse(shape)
    config = json.loads(json.dumps(write_config(parsed, dtype="float32", dropout=0.1)))
    assert read_config(config, where="config.json").shape == parsed
    del config["deepnarrow"]
    assert read_config(config, where="config.json").shape == plain(parsed)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["T5ForConditionalGeneration", "T5EncoderModel"])
def test_what_transformers_writes_reads_back(tied: bool, kind: str, tmp_path: Path) -> None:
    """Version 5 writes tie_word_embeddings true whatever it was; scale_decoder_outputs says what it was."""
    import transformers

    config = transformers.T5Config(**SMALLEST, tie_word_embeddings=tied, feed_forward_proj="gated-gelu")
    getattr(transformers, kind)(config).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["tie_word_embeddings"] is True
    found = read_config(written, where="config.json")
    assert found.scaled is tied
    assert found.shape.tied is tied
    assert found.shape.decoder_layers == (0 if kind == "T5EncoderModel" else 1)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_type": "umt5"}, "of type 'umt5'; this program reads T5"),
        ({"model_type": "bert"}, "of type 'bert'"),
        ({"d_model": None}, "d_model must be a whole number from 1"),
        ({"d_kv": "64"}, "d_kv must be a whole number"),
        ({"num_heads": True}, "num_heads must be a whole number"),
        ({"num_layers": 0}, "encoder_layers must be a whole number from 1"),
        ({"num_layers": -3}, "encoder_layers must be"),
        ({"vocab_size": 10.5}, "vocab must be a whole number"),
        ({"feed_forward_proj": "gated-geul"}, "unknown feed_forward_proj 'gated-geul'; did you mean gated-gelu"),
        ({"feed_forward_proj": ["relu"]}, "unknown feed_forward_proj"),
        ({"feed_forward_proj": "gelu_new"}, "unknown feed_forward_proj"),  # ungated, tanh: no Shape says that
        ({"layer_norm_epsilon": 1e-5}, "layer_norm_epsilon is 1e-05"),
        ({"pad_token_id": 5}, "pad_token_id is 5"),
        ({"decoder_start_token_id": 250}, "decoder_start_token_id is 250"),
        ({"deepnarrow": {"shape": "tiny", "format": 2}}, "perhaps of a newer version"),
        ({"deepnarrow": "tiny"}, "cannot read its entry"),
        ({"deepnarrow": {"shape": "tiny-kh1", "format": 1}}, "says tiny-kh1 in its entry"),
        ({"deepnarrow": {"shape": "tinny-kh1", "format": 1}}, "unknown base 'tinny'"),
    ],
)
def test_what_no_t5_can_be(change: dict, says: str) -> None:
    with pytest.raises(UserError) as caught:
        read_config({**SMALLEST, **change}, where="models/x/config.json")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_dimensions_are_named() -> None:
    with pytest.raises(UserError, match="lacks d_kv, num_heads; a T5 cannot be built"):
        read_config({key: SMALLEST[key] for key in ("d_model", "d_ff", "num_layers")}, where="config.json")
    with pytest.raises(UserError, match="holds a list"):
        read_config([1], where="config.json")  # type: ignore[arg-type]


def test_an_edited_plain_configuration_wins_over_our_note() -> None:
    """Someone grew the vocabulary with another library, which kept our entry: it has nothing to add, so it yields."""
    config = write_config(parse(TINY), dtype="float32", dropout=0.0) | {"vocab_size": 100}
    assert read_config(config, where="config.json").shape == replace(parse(TINY), vocab=100)


@pytest.mark.parametrize("shape", [TINY, f"{TINY}-geglu-untied-el3", f"{TINY}-dl0"])
def test_names_are_those_of_transformers(shape: str, oracle) -> None:
    parsed = parse(shape)
    tied = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"} | (
        {"lm_head.weight"} if parsed.tied else set()
    )
    wanted = {name: tensor.shape for name, tensor in oracle(parsed).state_dict().items() if name not in tied}
    assert {published_name(name): size for name, size in sizes(parsed).items()} == wanted


@pytest.mark.parametrize("shape", KNOBS)
def test_expanding_and_collapsing_are_inverse_and_compute_the_same(shape: str, random_model, ids) -> None:
    model = random_model(shape)
    whole = expand(model.state_dict(), model.shape)
    assert {name: tensor.shape for name, tensor in whole.items()} == sizes(plain(model.shape))
    back = collapse(whole, model.shape, where="here")
    assert back.keys() == model.state_dict().keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in model.state_dict().items())
    larger = T5(plain(model.shape)).eval()
    larger.load_state_dict(whole)
    inputs, targets = ids([9, 4], 9, 90), ids([5, 2], 5, 90)
    torch.testing.assert_close(larger(inputs, targets), model(inputs, targets), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", KNOBS)
def test_parts_that_are_no_longer_equal_are_refused(shape: str, random_model) -> None:
    model = random_model(shape)
    published = {name: tensor.clone() for name, tensor in to_published(model.state_dict(), model.shape).items()}
    published["encoder.block.1.layer.0.SelfAttention.k.weight"][-1, 0] += 1  # trained elsewhere
    with pytest.raises(UserError, match=r'delete the entry "deepnarrow" from config\.json to read it as a'):
        load(published, model.shape)


def load(tensors: dict[str, torch.Tensor], shape: Shape, *, scaled: bool | None = None, may_lack_output: bool = False):
    scaled = shape.tied if scaled is None else scaled
    return from_published(tensors, shape, scaled=scaled, may_lack_output=may_lack_output, where="models/x")


def test_missing_unknown_and_misshaped_tensors_are_named(random_model) -> None:
    model = random_model(TINY)
    whole = to_published(model.state_dict(), model.shape)
    final = "decoder.final_layer_norm.weight"
    with pytest.raises(UserError, match=f"models/x does not hold the {model.shape} .*lacks {final}$"):
        load({name: tensor for name, tensor in whole.items() if name != final}, model.shape)
    with pytest.raises(UserError, match=r"also has adapter\.weight$"):
        load(whole | {"adapter.weight": torch.zeros(1)}, model.shape)
    with pytest.raises(UserError, match=r"shared.weight is \(80, 32\), but config.json .* makes it \(90, 32\)"):
        load(whole | {"shared.weight": torch.zeros(80, 32)}, model.shape)
    with pytest.raises(UserError, match=r"lacks .* and \d+ more"):
        load(whole, parse(f"{TINY}-nl4"))
    with pytest.raises(UserError, match=r"but config.json .* asks for \d"):
        load(whole, replace(model.shape, encoder_layers=2**31 - 1, d_kv=2**31 - 1))


def test_known_redundancies_are_passed_over(random_model) -> None:
    model = random_model(TINY)
    whole = to_published(model.state_dict(), model.shape)
    embedding = whole["shared.weight"]
    repeated = dict.fromkeys(
        ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"), embedding.clone()
    )
    stray = {"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": torch.zeros(32, 4)}
    found = load(whole | repeated | stray, model.shape)
    assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())
    for only in repeated:  # the embedding under one of its other names
        renamed = {name: tensor for name, tensor in whole.items() if name != "shared.weight"} | {only: embedding}
        assert torch.equal(load(renamed, model.shape)["embedding.weight"], embedding)


def test_two_different_embeddings_are_refused(random_model) -> None:
    model = random_model(TINY)
    whole = to_published(model.state_dict(), model.shape)
    with pytest.raises(UserError, match=r"decoder\.embed_tokens\.weight differs from shared\.weight"):
        load(whole | {"decoder.embed_tokens.weight": torch.zeros(90, 32)}, model.shape)


def test_a_decoder_beside_a_wanted_encoder_is_passed_over(random_model) -> None:
    model = random_model(f"{TINY}-untied")
    alone = replace(model.shape, decoder_layers=0)
    found = load(to_published(model.state_dict(), model.shape), alone)
    assert found.keys() == sizes(alone).keys()


def test_untied_output_may_be_absent_only_where_transformers_5_left_it_out(random_model) -> None:
    model = random_model(f"{TINY}-untied")
    whole = to_published(model.state_dict(), model.shape)
    del whole["lm_head.weight"]
    with pytest.raises(UserError, match=r"lacks lm_head\.weight"):
        load(whole, model.shape)
    found = load(whole, model.shape, may_lack_output=True)
    assert torch.equal(found["output.weight"], whole["shared.weight"])
    assert found["output.weight"].data_ptr() != whole["shared.weight"].data_ptr()  # free to differ in training


def test_a_file_with_its_own_output_matrix_is_untied_whatever_its_config_says(oracle, ids, tmp_path: Path) -> None:
    """As transformers 5 decides: the matrix is used, and the output still scaled."""
    from transformers import T5ForConditionalGeneration

    from deepnarrow.model.folder import open_model

    reference = oracle(parse(TINY))
    reference.lm_head.weight = torch.nn.Parameter(torch.randn(90, 32))
    reference.save_pretrained(tmp_path)
    again = T5ForConditionalGeneration.from_pretrained(tmp_path).eval()
    opened = open_model(tmp_path)
    assert opened.shape == parse(f"{TINY}-untied")
    inputs, targets = ids([7, 3], 7, 90), ids([4, 4], 4, 90)
    decoder_inputs = torch.nn.functional.pad(targets[:, :-1], (1, 0))
    with torch.no_grad():
        expected = again(input_ids=inputs, attention_mask=(inputs != 0).long(), decoder_input_ids=decoder_inputs).logits
        torch.testing.assert_close(opened.model(inputs, targets), expected, rtol=1e-4, atol=1e-4)
    assert as_tied(parse(TINY), {"lm_head.weight": torch.ones(2, 2)}) == parse(TINY)  # nothing to differ from


def test_mt5_never_scales() -> None:
    """transformers 5's MT5 has no scaling; its published files say tie_word_embeddings false, its own say true."""
    for tied in (True, False):
        config = {**SMALLEST, "model_type": "mt5", "tie_word_embeddings": tied, "feed_forward_proj": "gated-gelu"}
        found = read_config(config, where="config.json")
        assert (found.scaled, found.shape.tied, found.may_lack_output) == (False, False, tied)


def test_mt5_as_transformers_writes_it(ids, tmp_path: Path) -> None:
    from transformers import MT5Config, MT5ForConditionalGeneration

    from deepnarrow.model.folder import open_model

    torch.manual_seed(0)
    reference = MT5ForConditionalGeneration(MT5Config(**SMALLEST)).eval()
    reference.save_pretrained(tmp_path)
    opened = open_model(tmp_path)
    inputs, targets = ids([7, 3], 7, 32), ids([4, 4], 4, 32)
    decoder_inputs = torch.nn.functional.pad(targets[:, :-1], (1, 0))
    with torch.no_grad():
        expected = reference(input_ids=inputs, attention_mask=(inputs != 0).long(), decoder_input_ids=decoder_inputs)
        torch.testing.assert_close(opened.model(inputs, targets), expected.logits, rtol=1e-4, atol=1e-4)
