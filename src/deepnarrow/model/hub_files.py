"""A model's files from the Hugging Face hub, by way of its cache. Works offline once they are there."""

from pathlib import Path
from typing import NamedTuple

from deepnarrow.errors import UserError

SETTINGS = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json")
VOCABULARY = ("tokenizer.json", "spiece.model", "sentencepiece.model", "tokenizer.model", "added_tokens.json")
SAFE = ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json")
OLD = ("pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json")
ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")  # PEFT's, beside no model at all

HTTP = ("httpx", "httpx2", "requests")  # what huggingface_hub speaks through, by its version


class Fetched(NamedTuple):
    folder: Path
    origin: str  # "owner/name@commit"


def fetch(name: str, revision: str | None = None) -> Fetched:
    """Bring a hub model's files here, or find them in the cache: the weights as safetensors, as .bin where need be.

    `name` is "owner/name" or "owner/name@revision". HF_HUB_OFFLINE=1 uses the cache alone; HF_HOME and HF_HUB_CACHE say
    where it is. A name that leads nowhere is a `UserError`.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    name, at, said = name.partition("@")
    if at and revision is None:
        revision = said
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise UserError(f"{name!r} is neither a folder nor a hub name such as google/t5-efficient-tiny") from None
    folder = snapshot(name, revision, [*SETTINGS, *VOCABULARY, *SAFE, *ADAPTER])
    if not any(folder.glob("*.safetensors")):
        folder = snapshot(name, revision, [*SETTINGS, *VOCABULARY, *OLD])
    return Fetched(folder, f"{name}@{folder.name}")


def snapshot(name: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except GatedRepoError:
        raise UserError(f"{name} asks for an agreement first: accept it on its hub page and log in") from None
    except RepositoryNotFoundError:
        raise UserError(f"no folder {name}, and no model of that name on the hub (or it is private)") from None
    except RevisionNotFoundError:
        raise UserError(f"the hub's {name} has no revision {revision!r}") from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        partial = getattr(error, "snapshot_path", None)  # some file is not in the cache; perhaps none that is needed
        if partial:
            return Path(partial)
        wanted = f"{name}{f' at {revision}' if revision else ''}"
        why = "the hub cannot be reached; check the network, or give a folder"
        if constants.HF_HUB_OFFLINE:
            why = "HF_HUB_OFFLINE is set; unset it to download, or give a folder"
        raise UserError(f"{wanted} is no folder and not in the cache {constants.HF_HUB_CACHE}, and {why}") from None
    except Exception as error:
        if isinstance(error, OSError) or type(error).__module__.partition(".")[0] in HTTP:
            raise UserError(f"the hub did not give {name}: {type(error).__name__}: {first_line(error)}") from None
        raise


def first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")[:200]
