"""Unwraps models; wrappers whose effect quantizing would silently drop are refused by name."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch._dynamo.eval_frame import OptimizedModule
from torch.nn.parallel import DataParallel, DistributedDataParallel
from transformers import PreTrainedConfig

from tarq.errors import ModelError


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
    if not isinstance(model, nn.Module) or not isinstance(getattr(model, "config", None), PreTrainedConfig):
        raise ModelError(f"{type(model).__name__} is no transformers model: give one, a folder or a hub id")
    _check_plain(model)
    return model


def _check_plain(model: nn.Module) -> None:
    kind = type(model).__name__
    if hasattr(model, "peft_config") or getattr(model, "_hf_peft_config_loaded", False):
        raise ModelError(
            f"{kind} carries PEFT adapters: merge them into the weights first (model = model.merge_and_unload(), then "
            "save that)"
        )
    if getattr(model, "hf_quantizer", None) is not None:
        quantized = getattr(model, "quantization_method", None) or type(model.hf_quantizer).__name__
        raise ModelError(f"{kind} is quantized already, by {quantized}: load the full-precision one, or with tarq.load")
    for name, module in model.named_modules():
        what = type(module).__name__
        if isinstance(module, OptimizedModule):
            raise ModelError(f"{name} is compiled (torch.compile): give the model before its parts are compiled")
        if module._compiled_call_impl is not None:
            raise ModelError(f"{name or kind} is compiled in place (compile()): give the model before that")
        if what in ("FullyShardedDataParallel", "FSDPModule") or what.startswith("FSDP"):
            raise ModelError(f"{name or kind} is sharded ({what}): load the model whole; tarq shares the work itself")
        if hasattr(module, "_hf_hook"):
            raise ModelError(
                f"{name or kind} has accelerate's hooks (device_map): load the model without device_map, or remove "
                "them (accelerate.hooks.remove_hook_from_module(model, recurse=True))"
            )
        if isinstance(module, nn.Linear) and (module._forward_hooks or module._forward_pre_hooks):
            raise ModelError(f"{name} has forward hooks, which would be lost with the layer: remove them first")
        # A packed layer computes x Wᵀ + b: whatever else a Linear does would be lost silently (LoRA of other
        # libraries, scaled and noisy layers, wrapped forwards).
        if isinstance(module, nn.Linear) and (
            "forward" in vars(module) or type(module).forward is not nn.Linear.forward
        ):
            raise ModelError(
                f"{name} has a forward of its own ({what}), which would be lost with the layer: fold it into weight "
                "and bias and put a plain nn.Linear there"
            )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise ModelError(f"{name} is on the meta device, without values: load the model with its weights")
        if type(tensor).__name__ == "DTensor" or type(tensor.data).__name__ == "DTensor":
            raise ModelError(f"{name} is sharded (DTensor): load the model whole; tarq shares the work itself")
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor):
            raise ModelError(
                f"{name} is no tensor but {type(tensor).__name__}, as of a layer that is quantized already"
            )
