"""Teach a fresh adapter what another one knows, on the answers that it gives itself.

    python examples/sft.py
    python examples/distill.py --teacher save_model/sft_example/Llama_<step>

No gold answer is read: the teacher says of each token that the student draws how likely it finds
it (on-policy distillation, main/trainer/grpo/teacher.py). So a completion teaches as many things as
it has tokens, where a reward teaches one.
"""

import argparse

from main.trainer.grpo import Trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="models/SmolLM2-135M-Instruct")
    parser.add_argument("--teacher", required=True, help="an adapter directory on this model")
    parser.add_argument("--data", default="ticket_en_grpo", help="a name in data/present.json")
    parser.add_argument("--task", default="distill_example")
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--lr", type=float, default=5e-4)
    arguments = parser.parse_args()
    trainer = Trainer(
        from_pretrained=arguments.model,
        teacher_peft_path=arguments.teacher,
        data_path=arguments.data,
        max_length=256,
        task_name=arguments.task,
    )
    for result in trainer(
        per_device_train_batch_size=32,
        num_generations=2,
        max_completion_length=32,
        num_epochs=arguments.epochs,
        lr=arguments.lr,
    ):
        print(result)


if __name__ == "__main__":
    main()
