"""Optimizers by name, and their states as named tensors that safetensors can hold."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from deepnarrow.errors import UserError
from deepnarrow.train.adafactor import Adafactor
from deepnarrow.train.adamw_scale import AdamWScale
from deepnarrow.train.config import Config
from deepnarrow.train.muon import Muon

SEPARATOR = "/"  # parameter names have dots, never slashes: "decoder.final_norm.weight/row"


def build(config: Config, model: nn.Module) -> Optimizer:
    """The config's optimizer over what is trained of the model; weight decay, if any, touches matrices only."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    fused = all(parameter.device.type in ("cpu", "cuda") for _, parameter in named)
    kinds: dict[str, list[nn.Parameter]] = {"hidden": [], "outer": [], "vector": []}
    for name, parameter in named:
        kinds["vector" if parameter.ndim < 2 else "hidden" if is_hidden(name) else "outer"].append(parameter)
    if config.optimizer != "muon":  # for the others all matrices are alike, and in the order of the model
        kinds = {"matrix": [p for _, p in named if p.ndim >= 2], "vector": kinds["vector"]}
    groups: list[dict[str, Any]] = [
        {"params": found, "weight_decay": 0.0 if kind == "vector" else config.weight_decay}
        | ({"matrices": kind == "hidden"} if config.optimizer == "muon" else {})
        for kind, all_found in kinds.items()
        for found in by_layout(all_found)
    ]
    if config.optimizer == "adafactor":
        return Adafactor(
            groups, lr=config.learning_rate, factored_from=config.factored_from, scaled=config.parameter_scale
        )
    adam: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": (config.beta1, config.beta2),
        "eps": config.epsilon,
    }
    if config.optimizer == "adamw_scale":
        return AdamWScale(groups, **adam)
    if config.optimizer == "muon":
        return Muon(groups, **adam, momentum=config.momentum, fused=fused)
    return AdamW(groups, **adam, fused=fused)


def by_layout(parameters: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    """One list for plain tensors, and one for each mesh that tensors are spread over: fused kernels mix neither."""
    layouts: dict[Any, list[nn.Parameter]] = {}
    for parameter in parameters:
        layouts.setdefault(getattr(parameter, "device_mesh", None), []).append(parameter)
    return list(layouts.values())


def is_hidden(name: str) -> bool:
    """Whether a matrix maps one hidden space to another; embedding, output and position tables do not.

    >>> is_hidden("encoder.blocks.0.self_attention.output.weight"), is_hidden("output.weight")
    (True, False)
    """
    return ".blocks." in name and not name.endswith("position.table")


def set_rate(optimizer: Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def state_tensors(optimizer: Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The optimizer's memory, `parameter/state -> tensor`. Parameters that never had a gradient have none."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}{SEPARATOR}{key}": value.detach().contiguous()
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def load_state(optimizer: Optimizer, model: nn.Module, tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Undo `state_tensors`. A name or a size that does not fit the model is a `UserError` that names `source`."""
    parameters = dict(model.named_parameters())
    for name, tensor in tensors.items():
        owner, _, key = name.rpartition(SEPARATOR)
        parameter = parameters.get(owner)
        if parameter is None:
            raise UserError(f"{source} holds optimizer state for {owner!r}, which this model does not have")
        if (
            key in ("moment", "momentum", "first", "second", "exp_avg", "exp_avg_sq")
            and tensor.shape != parameter.shape
        ):
            raise UserError(
                f"{source}: {name!r} has shape {list(tensor.shape)}, the parameter has {list(parameter.shape)}"
            )
        # Step counts are read by the processor at every update, except by torch's fused kernels on a GPU.
        stays = key == "step" and not isinstance(optimizer, AdamW | Muon)
        optimizer.state[parameter][key] = tensor.to("cpu" if stays else parameter.device, torch.float32, copy=True)


def gradient_norm(model: nn.Module) -> Tensor:
    """Euclidean length of all gradients together, on the model's device."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))


def scale_gradients(model: nn.Module, factor: float) -> None:
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    torch._foreach_mul_(gradients, factor)
