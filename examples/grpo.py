"""Reinforce a model by rewards for its own completions; go on from SFT with --adapter.

python examples/sft.py
python examples/grpo.py --adapter save_model/sft_example/Llama_<step>
python examples/grpo.py --use_vllm --vllm_mode colocate     # vLLM draws, in this process
accelerate launch --num_processes 2 examples/grpo.py        # without GPUs: add --multi_gpu
"""

import argparse

from main.trainer.grpo import Trainer
from main.utils.reward_func import fields_reward, reward_exact


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="models/SmolLM2-135M-Instruct")
    parser.add_argument("--adapter", help="an adapter directory to start from, e.g. after SFT")
    parser.add_argument("--data", default="ticket_en_grpo", help="a name in data/present.json")
    parser.add_argument("--task", default="grpo_example")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--lr", type=float, default=2e-5)
    parser.add_argument("--use_vllm", action="store_true")
    parser.add_argument("--vllm_mode", choices=["server", "colocate"], default="server")
    parser.add_argument("--resume", help="a checkpoint directory, or 'auto'")
    arguments = parser.parse_args()
    vllm = {"use_vllm": True, "vllm_mode": arguments.vllm_mode} if arguments.use_vllm else {}
    trainer = Trainer(
        from_pretrained=arguments.model,
        resume_path=arguments.adapter,
        data_path=arguments.data,
        max_length=256,
        task_name=arguments.task,
    )
    for result in trainer(
        reward_func=[fields_reward("|"), reward_exact],
        per_device_train_batch_size=32,
        num_generations=8,
        max_completion_length=32,
        num_train_epochs=arguments.epochs,
        lr=arguments.lr,
        resume_from_checkpoint=arguments.resume,
        **vllm,
    ):
        print(result)


if __name__ == "__main__":
    main()
