"""Fine-tune a LoRA adapter; the same script on one process or several.

    python examples/sft.py
    accelerate launch --num_processes 2 examples/sft.py          # on 2 GPUs
    accelerate launch --multi_gpu --num_processes 2 examples/sft.py      # without GPUs, too

`batch_size` counts the rows of one process: twice the processes, twice the rows of a step.
"""

import argparse

from main.trainer.lora import Trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="models/SmolLM2-135M-Instruct")
    parser.add_argument("--data", default="ticket_en", help="a name in data/present.json")
    parser.add_argument("--loader", default="LLM_Chat")
    parser.add_argument("--task", default="sft_example")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--resume", help="a checkpoint directory, or 'auto'")
    arguments = parser.parse_args()
    trainer = Trainer(
        from_pretrained=arguments.model,
        loader_name=arguments.loader,
        data_path=arguments.data,
        max_length=256,
        batch_size=arguments.batch_size,
        task_name=arguments.task,
    )
    for result in trainer(
        num_epochs=arguments.epochs, lr=1e-3, resume_from_checkpoint=arguments.resume
    ):
        print(result)


if __name__ == "__main__":
    main()
