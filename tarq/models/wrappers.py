"""Unwraps models; wrappers whose effect quantizing would silently drop are refused by name."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from torch import nn
from torch._dynamo.eval_frame import OptimizedModule
from torch.nn.parallel import DataParallel, DistributedDataParallel
from transformers.utils.peft_utils import find_adapter_config_file

from tarq.errors import ModelError

MERGE = "merge them into the weights first (model = model.merge_and_unload(), then save that)"


def unwrapped(model: Any) -> Any:
    """The model inside ``torch.compile``, ``DataParallel`` or ``DistributedDataParallel``, which share its weights.

    Raises:
        ModelError: it carries adapters, another library's quantization, hooks or compiled parts that would be lost, is
            sharded, or has weights without values.
    """
    while True:
        if isinstance(model, OptimizedModule):
            model = model._orig_mod
        elif isinstance(model, DataParallel | DistributedDataParallel):
            model = model.module
        else:
            break
    if isinstance(model, nn.Module):
        _check_plain(model)
    return model


def _check_plain(model: nn.Module) -> None:
    kind = type(model).__name__
    if hasattr(model, "peft_config") or getattr(model, "_hf_peft_config_loaded", False):
        raise ModelError(f"{kind} carries PEFT adapters: {MERGE}")
    if getattr(model, "hf_quantizer", None) is not None:
        quantized = getattr(model, "quantization_method", None) or type(model.hf_quantizer).__name__
        raise ModelError(f"{kind} is quantized already, by {quantized}: load the full-precision one, or with tarq.load")
    for name, module in model.named_modules():
        what = type(module).__name__
        if isinstance(module, OptimizedModule):
            raise ModelError(f"{name} is compiled (torch.compile): give the model before its parts are compiled")
        if what in ("FullyShardedDataParallel", "FSDPModule") or what.startswith("FSDP"):
            raise ModelError(f"{name or kind} is sharded ({what}): load the model whole; tarq shares the work itself")
        if hasattr(module, "_hf_hook"):
            raise ModelError(
                f"{name or kind} has accelerate's hooks (device_map): load the model without device_map, or remove "
                "them (accelerate.hooks.remove_hook_from_module(model, recurse=True))"
            )
        if isinstance(module, nn.Linear) and (module._forward_hooks or module._forward_pre_hooks):
            raise ModelError(f"{name} has forward hooks, which would be lost with the layer: remove them first")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise ModelError(f"{name} is on the meta device, without values: load the model with its weights")
        if type(tensor).__name__ == "DTensor" or type(tensor.data).__name__ == "DTensor":
            raise ModelError(f"{name} is sharded (DTensor): load the model whole; tarq shares the work itself")
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.numel() and not all(map(math.isfinite, tensor.aminmax())):
            raise ModelError(f"{name} holds NaN or infinity: the checkpoint is damaged, take it from its source again")


def check_no_adapter(source: str | Path) -> None:
    """Check that there is no adapter beside a model on disk: transformers would load it if peft is installed.

    Raises:
        ModelError: one does.
    """
    try:
        found = find_adapter_config_file(str(source))
    except OSError:  # no such repository, or no network: loading gives the better error
        return
    if found:
        raise ModelError(f"{source}: {Path(found).name} lies beside the model, a PEFT adapter: {MERGE}")
