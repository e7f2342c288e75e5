"""Other libraries that run a T5 on a CPU, on the same weights: `transformers` and CTranslate2.

Used by decode.py, quality.py and serve_load.py. Both read a folder that `save_model` wrote. A folder of random weights
has no tokenizer, and CTranslate2 speaks in pieces of text rather than in ids: `name_ids` gives each id a name.
"""

import gc
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

EOS = 1


def name_ids(folder: Path, vocab: int) -> None:
    """A tokenizer that calls id 7 "w7", for a model folder that has none."""
    import tokenizers

    names = ["<pad>", "</s>", "<unk>", *(f"w{id}" for id in range(3, vocab))]
    words = tokenizers.models.WordLevel({name: id for id, name in enumerate(names)}, unk_token="<unk>")
    engine = tokenizers.Tokenizer(words)
    engine.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    engine.save(str(folder / "tokenizer.json"))
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def convert(folder: Path, out: Path, quantization: str | None = None) -> Path:
    """A model of CTranslate2's by its own converter, once: "int8", or None for float32."""
    from ctranslate2.converters import TransformersConverter

    if not out.exists():
        TransformersConverter(str(folder)).convert(str(out), quantization=quantization)
    return out


def convert_encoder(folder: Path, out: Path, quantization: str | None = None) -> Path:
    """The encoder alone as CTranslate2's `Encoder` runs it. Its converter has none for T5, so this sets the same parts
    that the converter sets, with its own methods.
    """
    import torch
    from ctranslate2.converters import transformers as made
    from ctranslate2.specs import transformer_spec
    from transformers import AutoTokenizer, T5EncoderModel

    if out.exists():
        return out
    with torch.no_grad():
        model, loader = T5EncoderModel.from_pretrained(folder), made.T5Loader()
        encoder = transformer_spec.TransformerEncoderSpec(
            model.config.num_layers,
            model.config.num_heads,
            pre_norm=True,
            activation=made._SUPPORTED_ACTIVATIONS[model.config.dense_act_fn],
            ffn_glu=model.config.is_gated_act,
            relative_attention_bias=True,
            rms_norm=True,
        )
        spec = transformer_spec.TransformerEncoderModelSpec(encoder)
        loader.set_stack(encoder, model.encoder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        spec.register_vocabulary(loader.get_vocabulary(model, tokenizer))
        spec.config.unk_token = tokenizer.unk_token
    spec.validate()
    spec.optimize(quantization=quantization)
    out.mkdir()
    spec.save(str(out))
    return out


class Transformers:
    """`transformers`' own model and `generate`, eager or with its static cache and `torch.compile`."""

    def __init__(self, folder: Path, dtype: str, *, compiled: bool = False, encoder: bool = False) -> None:
        import torch
        from transformers import T5EncoderModel, T5ForConditionalGeneration
        from transformers.utils import logging

        logging.set_verbosity_error()
        kind = T5EncoderModel if encoder else T5ForConditionalGeneration
        self.model = kind.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
        self.more: dict[str, Any] = {}
        if compiled and encoder:
            self.model.forward = torch.compile(self.model.forward)
        elif compiled:  # its own gate lets only accelerators compile
            from transformers.generation.configuration_utils import CompileConfig

            asked = CompileConfig(mode="default", fullgraph=False)
            asked._compile_all_devices = True
            self.more = {"cache_implementation": "static", "compile_config": asked}

    def generate(self, inputs: Sequence[Sequence[int]], *, most: int, least: int = 0, beam: int = 1) -> list[list[int]]:
        """Ids without the decoder's first 0; inputs of one length, or padded at the end."""
        import torch

        input_BL, mask_BL = padded(inputs)
        with torch.inference_mode():
            found = self.model.generate(
                input_ids=input_BL, attention_mask=mask_BL, max_new_tokens=most, min_new_tokens=least, num_beams=beam,
                do_sample=False, **self.more,
            )  # fmt: skip
        return [without_end(row[1:]) for row in found.tolist()]

    def logits(self, inputs: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> list[Any]:
        """[T, V] of each target, teacher-forced."""
        import torch

        input_BL, mask_BL = padded(inputs)
        target_BT, _ = padded(targets)
        with torch.inference_mode():
            logits_BTV = self.model(input_ids=input_BL, attention_mask=mask_BL, labels=target_BT).logits.float()
        return [row[: len(target)].numpy() for row, target in zip(logits_BTV, targets, strict=True)]

    def embed(self, inputs: Sequence[Sequence[int]]) -> Any:
        """Mean of the encoder's output over each input's tokens, [number, D]."""
        import torch

        input_BL, mask_BL = padded(inputs)
        with torch.inference_mode():
            hidden_BLD = self.model(input_ids=input_BL, attention_mask=mask_BL).last_hidden_state.float()
            weight_BL1 = mask_BL[:, :, None].float()
            return ((hidden_BLD * weight_BL1).sum(1) / weight_BL1.sum(1)).numpy()

    def close(self) -> None:
        del self.model
        gc.collect()


class CTranslate2:
    """CTranslate2's `Translator`, or its `Encoder`."""

    def __init__(self, model: Path, names: Sequence[str], *, compute: str, threads: int, encoder: bool = False) -> None:
        import ctranslate2

        kind = ctranslate2.Encoder if encoder else ctranslate2.Translator
        self.engine = kind(str(model), device="cpu", compute_type=compute, intra_threads=threads, inter_threads=1)
        self.names = names
        self.ids = {name: id for id, name in enumerate(names)}

    def named(self, rows: Sequence[Sequence[int]]) -> list[list[str]]:
        return [[self.names[id] for id in row] for row in rows]

    def generate(self, inputs: Sequence[Sequence[int]], *, most: int, least: int = 0, beam: int = 1) -> list[list[int]]:
        found = self.engine.translate_batch(
            self.named(inputs), beam_size=beam, max_decoding_length=most, min_decoding_length=least,
        )  # fmt: skip
        return [without_end([self.ids[name] for name in one.hypotheses[0]]) for one in found]

    def next_ids(self, inputs: Sequence[Sequence[int]], prefixes: Sequence[Sequence[int]]) -> list[int]:
        """The likeliest id behind each beginning of an answer."""
        found = [0] * len(prefixes)
        for length in sorted({len(prefix) for prefix in prefixes}):  # each batch is one token longer than it is told
            places = [place for place, prefix in enumerate(prefixes) if len(prefix) == length]
            answers = self.engine.translate_batch(
                self.named([inputs[place] for place in places]),
                target_prefix=self.named([prefixes[place] for place in places]),
                beam_size=1,
                max_decoding_length=length + 1,
            )
            for place, one in zip(places, answers, strict=True):
                ids = [self.ids[name] for name in one.hypotheses[0]]
                found[place] = [*ids, EOS][length]
        return found

    def embed(self, inputs: Sequence[Sequence[int]]) -> Any:
        import numpy as np

        hidden_BLD = np.array(self.engine.forward_batch(self.named(inputs)).last_hidden_state)
        return np.stack([row[: len(ids)].mean(0) for row, ids in zip(hidden_BLD, inputs, strict=True)])

    def close(self) -> None:
        del self.engine
        gc.collect()


def padded(rows: Sequence[Sequence[int]]) -> tuple[Any, Any]:
    """Ids [B, L], zeros behind each row, and the mask that is 1 before them."""
    import torch

    longest = max(map(len, rows))
    ids_BL = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
    mask_BL = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return ids_BL, mask_BL


def without_end(ids: Sequence[int]) -> list[int]:
    """What stands before the first EOS, less padding at the end.

    >>> without_end([7, 8, 1, 0, 0]), without_end([7, 8])
    ([7, 8], [7, 8])
    """
    ids = list(ids)
    return ids[: ids.index(EOS)] if EOS in ids else ids
