"""What main.predictor.hf accepts: who answers; `GenerationOptions` says how."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from main.models.load import Quantization


@dataclass
class PredictorOptions:
    """Keyword arguments of `main.predictor.hf.Predictor`.

    model_from_pretrained: folder of the base model, or its name on the hub.
    peft_path (also resume_path): folder of an adapter to put on it.
    dtype: 'auto' = as the checkpoint is stored, or float32 where the device runs that badly; or a
        name such as 'bfloat16'.
    device: where the model is; by default the process's own GPU, or the CPU.
    device_map: accelerate's map of layers to devices, or 'auto', in its place.
    quantization: '4bit' or '8bit' loads the model so (extra `qlora`).
    attn_implementation: transformers' name of an attention, e.g. 'sdpa'; by default its choice.
    trust_remote_code: run code that lies in the model's folder; never needed for our families.
    batch_size: most requests that run at once.
    max_batch_tokens: most tokens, prompts and answers together, that a batch may grow to; None =
        32768 on a CPU and 262144 on a GPU.
    system_prompt: opens every dialogue that has no system message.
    """

    model_from_pretrained: str | Path
    peft_path: str | Path | None = None
    dtype: Any = "auto"
    device: Any = None
    device_map: Any = None
    quantization: Quantization | None = None
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    batch_size: int = 64
    max_batch_tokens: int | None = None
    system_prompt: str | None = None

    def problems(self) -> list[str]:
        """One sentence for every value that cannot work."""
        found = []
        if self.batch_size < 1:
            found.append(f"batch_size={self.batch_size} must be >= 1.")
        if self.max_batch_tokens is not None and self.max_batch_tokens < 1:
            found.append(f"max_batch_tokens={self.max_batch_tokens} must be >= 1.")
        return found
