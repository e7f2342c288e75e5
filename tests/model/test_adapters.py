"""Adapters on disk: PEFT reads ours and we read PEFT's, with the same logits; what does not fit is one line."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from deepnarrow.errors import UserError
from deepnarrow.files import read_json, write_json
from deepnarrow.model import adapters
from deepnarrow.model.adapters import Base, read_adapter, save_lora, save_prompt
from deepnarrow.model.folder import open_model, save_model
from deepnarrow.model.lora import Lora, adapted, attach, merge, targets
from deepnarrow.model.t5 import T5
from deepnarrow.text.tokenizer import load

pytest.importorskip("peft", reason="PEFT, the oracle here, is not installed")
warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")

SIZE = "dm32-ff64-kv8-nh4-v384"
PLAIN = f"tiny-nl2-{SIZE}"
GATED = f"tiny-el2-dl1-{SIZE}-untied-geglu"
KNOBS = [f"{PLAIN}-kh2", f"{PLAIN}-shkv", f"{PLAIN}-sh", f"{PLAIN}-kh2-shkv-sh"]
INPUTS = torch.tensor([[5, 9, 30, 7, 1], [8, 40, 1, 0, 0]])
TARGETS = torch.tensor([[12, 6, 1], [90, 1, 0]])


@pytest.fixture
def base(random_model: Callable[..., T5], tmp_path: Path) -> Callable[[str], T5]:
    def build(shape: str) -> T5:
        model = random_model(shape)
        save_model(model, load("bytes"), tmp_path / "base")
        return model

    return build


def learned(model: T5, lora: Lora) -> T5:
    """The model with adapters that do something."""
    attach(model, lora, seed=3)
    with torch.no_grad():
        for number, one in enumerate(adapted(model).values()):
            one.up.weight.normal_(0, 0.1, generator=torch.Generator().manual_seed(number))
    return model


def oracle(folder: Path) -> Any:
    from transformers import T5ForConditionalGeneration

    return T5ForConditionalGeneration.from_pretrained(folder).eval()


def theirs(model: Any) -> torch.Tensor:
    """PEFT's logits. A soft prompt wants the decoder's inputs spelt out."""
    read = torch.cat([torch.zeros(2, 1, dtype=torch.long), TARGETS[:, :-1]], dim=1)
    with torch.no_grad():
        return model(input_ids=INPUTS, attention_mask=(INPUTS != 0).long(), decoder_input_ids=read).logits


@torch.no_grad()
def ours(model: T5) -> torch.Tensor:
    return model(INPUTS, TARGETS)


@pytest.mark.parametrize(
    ("shape", "names"),
    [(PLAIN, "q,v"), (PLAIN, "all"), (GATED, "all"), (GATED, "wi_0,o"), *((shape, "all") for shape in KNOBS)],
)
def test_peft_reads_our_lora(shape: str, names: str, base: Callable, tmp_path: Path) -> None:
    from peft import PeftModel

    lora = Lora(rank=3, alpha=7.0, targets=targets(names))
    model = base(shape)
    plain = ours(model)
    origin = Base.of(model, str(tmp_path / "base"))
    save_lora(learned(model, lora), lora, origin, tmp_path / "lora")
    assert (ours(model) - plain).abs().max() > 0.1
    found = PeftModel.from_pretrained(oracle(tmp_path / "base"), str(tmp_path / "lora")).eval()
    torch.testing.assert_close(theirs(found), ours(model), rtol=0, atol=1e-5)
    opened = open_model(tmp_path / "lora")
    assert opened.adapter == tmp_path / "lora"
    assert opened.tokenizer is not None
    assert not adapted(opened.model)
    torch.testing.assert_close(ours(opened.model), ours(model), rtol=0, atol=1e-5)


def fit(model: Any) -> None:
    """A few steps of PEFT's own training."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(3):
        labels = TARGETS.masked_fill(TARGETS == 0, -100)
        model(input_ids=INPUTS, attention_mask=(INPUTS != 0).long(), labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("names", [["q", "v"], ["q", "k", "v", "o", "wi", "wo"], "all-linear", r".*encoder.*\.wo"])
def test_we_read_what_peft_trained(names: Any, base: Callable, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    before = ours(base(PLAIN))
    exclude = None if isinstance(names, list) else ["lm_head"]
    config = LoraConfig(
        task_type="SEQ_2_SEQ_LM", r=2, lora_alpha=6, lora_dropout=0.1, target_modules=names, exclude_modules=exclude
    )
    model = get_peft_model(oracle(tmp_path / "base"), config)
    fit(model)
    model.save_pretrained(tmp_path / "theirs")
    opened = open_model(tmp_path / "theirs")  # it names its base by path
    torch.testing.assert_close(ours(opened.model), theirs(model.eval()), rtol=0, atol=1e-5)
    assert (ours(opened.model) - before).abs().max() > 0.01


def test_prompts_both_ways(base: Callable, tmp_path: Path) -> None:
    from peft import PeftModel, PromptTuningConfig, get_peft_model

    model = base(PLAIN)
    origin = Base.of(model, str(tmp_path / "base"))
    config = PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=5, num_transformer_submodules=1)
    tuned = get_peft_model(oracle(tmp_path / "base"), config)
    fit(tuned)
    tuned.save_pretrained(tmp_path / "theirs")
    opened = open_model(tmp_path / "theirs")
    torch.testing.assert_close(ours(opened.model), theirs(tuned.eval()), rtol=0, atol=1e-5)
    assert (ours(opened.model) - ours(model)).abs().max() > 0.01

    model.prompt = torch.nn.Parameter(torch.randn(4, 32))
    save_prompt(model, origin, tmp_path / "prompt")
    found = PeftModel.from_pretrained(oracle(tmp_path / "base"), str(tmp_path / "prompt")).eval()
    torch.testing.assert_close(theirs(found), ours(model), rtol=0, atol=1e-5)
    assert torch.equal(ours(open_model(tmp_path / "prompt").model), ours(model))
    assert sum(file.stat().st_size for file in (tmp_path / "prompt").iterdir()) < 3000


def test_merged_in_float32_whatever_the_dtype(base: Callable, tmp_path: Path) -> None:
    lora = Lora(rank=2)
    model = base(PLAIN)
    save_lora(learned(model, lora), lora, Base(origin=str(tmp_path / "base"), fingerprint=None), tmp_path / "lora")
    wanted = {name: weight.bfloat16() for name, weight in merge(model).state_dict().items()}
    found = open_model(tmp_path / "lora", dtype=torch.bfloat16).model.state_dict()
    assert all(torch.equal(found[name], weight) for name, weight in wanted.items())


@pytest.fixture
def lora_folder(base: Callable, tmp_path: Path) -> Path:
    model = base(PLAIN)
    origin = Base.of(model, str(tmp_path / "base"))
    save_lora(learned(model, Lora(rank=2)), Lora(rank=2), origin, tmp_path / "lora")
    return tmp_path / "lora"


def test_another_base_is_refused(lora_folder: Path, random_model: Callable, tmp_path: Path) -> None:
    save_model(random_model(PLAIN, seed=1), None, tmp_path / "other")
    with pytest.raises(UserError, match="trained over other weights than those of"):
        open_model(lora_folder, base=tmp_path / "other")
    assert open_model(lora_folder, base=tmp_path / "base").origin == str(lora_folder)
    with pytest.raises(UserError, match="whole model and needs no base"):
        open_model(tmp_path / "base", base=tmp_path / "other")


def test_a_base_that_moved(lora_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"adapts .*base, which cannot be opened \(no folder .*name its new place"):
        open_model(lora_folder)
    assert open_model(lora_folder, base=tmp_path / "moved").tokenizer is not None
    edit(lora_folder, base_model_name_or_path=str(tmp_path / "moved"))
    assert open_model(lora_folder).tokenizer is not None
    edit(lora_folder, base_model_name_or_path=None)
    with pytest.raises(UserError, match="does not say which model it adapts"):
        open_model(lora_folder)
    edit(lora_folder, base_model_name_or_path=str(lora_folder))
    with pytest.raises(UserError, match="names itself"):
        open_model(lora_folder)


def edit(folder: Path, **changes: object) -> None:
    write_json(folder / adapters.CONFIG, {**read_json(folder / adapters.CONFIG), **changes})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"use_rslora": True}, "uses use_rslora"),
        ({"use_dora": True}, "uses use_dora"),
        ({"rank_pattern": {"q": 4}}, "uses rank_pattern"),
        ({"alpha_pattern": {"q": 4}}, "uses alpha_pattern"),
        ({"modules_to_save": ["shared"]}, "uses modules_to_save"),
        ({"a_method_of_the_future": 3}, "uses a_method_of_the_future"),
        ({"bias": "all"}, "has biases"),
        ({"init_lora_weights": "pissa"}, "changes the base model as well"),
        ({"peft_type": "IA3"}, "is a IA3 adapter"),
        ({"r": 4}, r"needs lora_A \[4, 32\] and lora_B \[32, 4\]"),
        ({"r": 0}, "rank of LoRA must be at least 1"),
    ],
)
def test_what_we_do_not_do_is_one_line(changes: dict, said: str, lora_folder: Path) -> None:
    edit(lora_folder, **changes)
    with pytest.raises(UserError, match=said) as caught:
        open_model(lora_folder)
    assert "\n" not in str(caught.value)


def test_two_prompts_or_a_decoders_are_refused(lora_folder: Path) -> None:
    edit(lora_folder, peft_type="PROMPT_TUNING", num_transformer_submodules=2, r=None, lora_alpha=None)
    for key in ("bias", "target_modules", "lora_dropout"):
        edit(lora_folder, **{key: None} if key != "bias" else {"bias": "none"})
    found = read_json(lora_folder / adapters.CONFIG)
    found.pop("bias")
    write_json(lora_folder / adapters.CONFIG, found)
    with pytest.raises(UserError, match="prompt for the decoder"):
        open_model(lora_folder)
    edit(lora_folder, num_transformer_submodules=1)
    with pytest.raises(UserError, match=r"should hold prompt_embeddings \[length, 32\]"):
        open_model(lora_folder)


def test_tensors_that_do_not_belong(lora_folder: Path) -> None:
    file = lora_folder / adapters.WEIGHTS
    whole = load_file(file)
    first = next(iter(whole))
    for name in ("base_model.model.shared.lora_embedding_A", "base_model.model.lm_head.lora_A.weight"):
        save_file({**whole, name: torch.zeros(2, 32)}, file)
        with pytest.raises(UserError, match="does not have or cannot adapt"):
            open_model(lora_folder)
    save_file({name: tensor for name, tensor in whole.items() if name != first}, file)
    with pytest.raises(UserError, match="needs lora_A"):
        open_model(lora_folder)
    file.unlink()
    with pytest.raises(UserError, match="has no weights"):
        open_model(lora_folder)


def test_one_side_of_a_shared_matrix_is_refused(base: Callable, tmp_path: Path) -> None:
    lora = Lora(rank=2)
    model = base(KNOBS[0])
    save_lora(learned(model, lora), lora, Base.of(base(KNOBS[0]), str(tmp_path / "base")), tmp_path / "lora")
    whole = load_file(tmp_path / "lora" / adapters.WEIGHTS)
    name = next(name for name in whole if ".v.lora_B" in name)
    whole[name][0] += 1  # the first head, but not the second that shares its values
    save_file(whole, tmp_path / "lora" / adapters.WEIGHTS)
    with pytest.raises(UserError, match=r"apart from what a \S*kh2\S* shares it with"):
        open_model(tmp_path / "lora")


def test_a_model_with_adapters_is_not_written_as_a_whole_one(random_model: Callable, tmp_path: Path) -> None:
    model = random_model(PLAIN)
    model.prompt = torch.nn.Parameter(torch.zeros(2, 32))
    for other in (model, learned(random_model(PLAIN), Lora())):
        with pytest.raises(UserError, match="a Hugging Face folder holds whole models"):
            save_model(other, None, tmp_path / "out")


def test_what_is_read_says_where_it_belongs(lora_folder: Path, tmp_path: Path) -> None:
    found = read_adapter(lora_folder)
    assert found.base is not None
    assert found.base.origin == str((tmp_path / "base").resolve())
    assert json.loads((lora_folder / adapters.BASE).read_text())["fingerprint"] == found.base.fingerprint
