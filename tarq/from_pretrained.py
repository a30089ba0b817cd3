"""``from_pretrained(…, quantization_config=tarq.TarqQuantConfig(…))``: transformers loads a model, tarq quantizes it.

Importing this module registers both classes with transformers under the name ``tarq``. A model that comes from it is
what :func:`tarq.quantize` leaves: write it with :func:`tarq.save`. Checkpoints name ``compressed-tensors``, so that
they load without tarq.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel
from transformers.quantizers import HfQuantizer
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from tarq.config import TarqConfig, given_config
from tarq.quantization import quantize

NAME = "tarq"


@register_quantization_config(NAME)
class TarqQuantConfig(QuantizationConfigMixin):
    """What transformers hands to :func:`tarq.quantize` once a model's weights are loaded.

    Args:
        calibration: as :func:`tarq.quantize` takes it: a corpus's path or name, utterances, a ``datasets.Dataset``.
        config: of the run; the method ``refined`` at W4G128 by default.
        options: further arguments of :func:`tarq.quantize` by name: ``tokenizer``, ``reporter``, ``resume``, ….

    The model that ``from_pretrained`` returns has the run's report as ``tarq_report``.
    """

    def __init__(self, calibration: Any = None, config: TarqConfig | None = None, **options: Any) -> None:
        self.quant_method: Any = NAME
        self.calibration, self.config, self.options = calibration, given_config(config), options

    def to_dict(self) -> dict[str, Any]:
        """Plain values: the configuration, without the speech."""
        return {"quant_method": self.quant_method, **self.config.to_dict()}


@register_quantizer(NAME)
class TarqQuantizer(HfQuantizer):
    """Quantizes a model after its weights were loaded, in full precision."""

    requires_calibration = False  # it calibrates itself

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> PreTrainedModel:
        # So far nothing is quantized, and afterwards it is compressed-tensors, which tarq's own loader knows.
        model.hf_quantizer, model.is_quantized, model.config.quantization_config = None, False, None
        del model.quantization_method
        given: Any = self.quantization_config
        model.tarq_report = quantize(model, given.calibration, given.config, **given.options)
        loaded: PreTrainedModel = model
        return loaded

    def is_serializable(self) -> bool:
        """It is, by :func:`tarq.save`."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Packed weights have no gradients."""
        return False
