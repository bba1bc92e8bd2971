"""The guide's GRPO run with completions from a vLLM server in another terminal.

    CUDA_VISIBLE_DEVICES=0 trl vllm-serve --model <base model>
    CUDA_VISIBLE_DEVICES=1 accelerate launch --num_processes 1 examples/run.py --vllm_device 0

`--vllm_device` names the device that the server has, so that the run can refuse to share it;
without it transformers draws the completions in this process.
"""

import argparse
import os

from main.errors import ConfigError
from main.trainer.llm_grpo import Trainer
from main.utils.reward_func import reward_len


def check_devices(vllm_device: str) -> None:
    """The training must not see the server's device: both would fill its memory."""
    ours = [d.strip() for d in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if d.strip()]
    if vllm_device in ours:
        raise ConfigError(
            f"--vllm_device {vllm_device} is among this run's CUDA_VISIBLE_DEVICES="
            f"{','.join(ours)}: give training and server devices of their own."
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vllm_device", help="device of the running `trl vllm-serve`, e.g. 0")
    parser.add_argument("--vllm_url", default="http://127.0.0.1:8000")
    parser.add_argument("--model", default="models/SmolLM2-135M-Instruct")
    parser.add_argument("--adapter", help="an adapter directory to start from")
    parser.add_argument("--data", default="ticket_en_grpo", help="a name in data/present.json")
    arguments = parser.parse_args()
    vllm = {}
    if arguments.vllm_device is not None:
        check_devices(arguments.vllm_device)
        vllm = {"use_vllm": True, "vllm_server_base_url": arguments.vllm_url}
    trainer = Trainer(
        from_pretrained=arguments.model,
        resume_path=arguments.adapter,
        data_path=arguments.data,
        max_length=256,
        task_name="grpo_vllm",
    )
    for result in trainer(
        reward_func=[reward_len],
        lr=5e-6,
        weight_decay=0.1,
        warmup_ratio=0.2,
        logging_steps=20,
        gradient_accumulation_steps=2,
        max_completion_length=64,
        per_device_train_batch_size=8,
        num_generations=4,
        num_train_epochs=1,
        save_strategy="epoch",
        eval_strategy="epoch",
        logging_strategy="epoch",
        report_to=["tensorboard"],
        **vllm,
    ):
        print(result)


if __name__ == "__main__":
    main()
