"""Encoders with a head in other libraries' formats. Each writes a folder whole or not at all.

classify   our own folder: T5EncoderModel loads the encoder, head.json and head.safetensors hold the rest.
           transformers' T5ForSequenceClassification is no encoder: it runs a decoder over the input once more.
tag        transformers' T5ForTokenClassification: the same encoder under `transformer.`, the head as `classifier`
embed      a `sentence-transformers` folder: the encoder, the mean, and a normalisation where the head has one
"""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from deepnarrow.errors import UserError
from deepnarrow.files import whole_folder, write_json
from deepnarrow.model.folder import check_replaceable, save_model
from deepnarrow.model.heads import FILE, WEIGHTS, OpenedHead, read_head, save_head
from deepnarrow.model.published import write_config
from deepnarrow.model.tensors import read_tensors
from deepnarrow.model.weights import to_published

POOLING, NORMALISE = "1_Pooling", "2_Normalize"
EXTRA = ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json", POOLING, NORMALISE)


def to_hugging_face(opened: OpenedHead, out: Path) -> None:
    """What transformers has a class for becomes that class's folder; a classifier becomes our own folder."""
    if opened.head.kind == "tag":
        to_token_classification(opened, out)
    else:
        to_own(opened, out)


def to_own(opened: OpenedHead, out: Path) -> None:
    save_head(opened.model, opened.tokenizer, out)
    again = read_head(out, dtype=opened.model.body.embedding.weight.dtype).state_dict()
    compare({name: tensor.cpu() for name, tensor in opened.model.state_dict().items()}, again, out)


def to_token_classification(opened: OpenedHead, out: Path) -> None:
    """A folder for T5ForTokenClassification, which tags as we do where a word's first piece is asked.

    Its dropout before the classifier is ours; of the encoder's own the rate is in config.json as ever.
    """
    linear = opened.model.linear
    if opened.head.kind != "tag" or linear is None:
        raise UserError(
            f"{opened.origin} does not tag words, which T5ForTokenClassification does; export it with --to hf"
        )
    check_replaceable(out, also=(FILE, WEIGHTS))
    model, labels = opened.model, opened.head.labels
    state = {name: tensor.detach() for name, tensor in model.body.state_dict().items()}
    tensors = {f"transformer.{name}": tensor for name, tensor in to_published(state, model.shape).items()}
    tensors |= {f"classifier.{name}": tensor for name, tensor in linear.state_dict().items()}
    own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    dtype = str(model.body.embedding.weight.dtype).removeprefix("torch.")
    config = write_config(model.shape, dtype=dtype, dropout=model.body.dropout, eos=opened.tokenizer.eos)
    config.pop("deepnarrow")  # our loader reads T5s alone
    config |= {
        "architectures": ["T5ForTokenClassification"],
        "classifier_dropout": model.dropout,
        "id2label": {str(number): label for number, label in enumerate(labels)},
        "label2id": {label: number for number, label in enumerate(labels)},
    }
    with whole_folder(out) as temporary:
        opened.tokenizer.save(temporary)
        save_file(own, temporary / "model.safetensors", metadata={"format": "pt"})
        write_json(temporary / "config.json", config)
    compare(own, read_tensors(out, model.body.embedding.weight.dtype), out)


def to_sentence_transformers(opened: OpenedHead, out: Path) -> None:
    """A folder that `SentenceTransformer(out).encode` makes the same vectors with."""
    if opened.head.kind != "embed":
        raise UserError(
            f"{opened.origin} has a head that was trained to {opened.head.kind}; sentence-transformers takes vectors, "
            "of `finetune --head embed`"
        )
    check_replaceable(out, also=(FILE, WEIGHTS, *EXTRA))
    module = "sentence_transformers.models"
    modules = [("", "Transformer"), (POOLING, "Pooling")] + [(NORMALISE, "Normalize")] * opened.head.normalise
    with whole_folder(out) as temporary:
        save_model(opened.model.body, opened.tokenizer, temporary)
        write_json(
            temporary / "modules.json",
            [
                {"idx": place, "name": str(place), "path": path, "type": f"{module}.{kind}"}
                for place, (path, kind) in enumerate(modules)
            ],
        )
        longest = {"max_seq_length": opened.head.input_tokens, "do_lower_case": False}
        write_json(temporary / "sentence_bert_config.json", longest)
        width = opened.shape.d_model
        write_json(
            temporary / POOLING / "config.json",
            {
                "word_embedding_dimension": width,
                "pooling_mode_cls_token": False,
                "pooling_mode_mean_tokens": True,
                "pooling_mode_max_tokens": False,
                "pooling_mode_mean_sqrt_len_tokens": False,
            },
        )
        if opened.head.normalise:
            (temporary / NORMALISE).mkdir()
        write_json(temporary / "config_sentence_transformers.json", {"similarity_fn_name": "cosine"})


FORMATS: dict[str, Callable[[OpenedHead, Path], None]] = {
    "hf": to_hugging_face,
    "sentence-transformers": to_sentence_transformers,
}


def write(opened: OpenedHead, out: Path, to: str) -> OpenedHead:
    """Write the folder in one of `FORMATS`, and give back what was written."""
    if to not in FORMATS:
        raise UserError(f"{opened.origin} has a head; its formats are {' and '.join(FORMATS)}")
    FORMATS[to](opened, out)
    return opened


def compare(written: dict[str, torch.Tensor], read: dict[str, torch.Tensor], out: Path) -> None:
    for name, tensor in written.items():
        if not torch.equal(read[name], tensor):
            raise OSError(f"{out} does not hold what was written to it ({name} differs); check the disk")
