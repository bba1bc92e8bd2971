"""Align an SFT adapter with preference pairs (DPO); the SFT adapter is the reference.

    python examples/sft.py
    python examples/dpo.py --resume save_model/sft_example/Llama_150
    accelerate launch --num_processes 2 examples/dpo.py --resume ...   # no GPUs: add --multi_gpu

Other losses: `--loss ipo`, 'simpo', 'orpo', 'kto', ... (main/trainer/dpo/losses.py).
"""

import argparse

from main.trainer.dpo import Trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="models/SmolLM2-135M-Instruct")
    parser.add_argument("--data", default="ticket_en_dpo", help="a name in data/present.json")
    parser.add_argument("--loader", default="LLM_DPO", help="LLM_DPO, LLM_RLHF or LLM_KTO")
    parser.add_argument("--resume", help="the SFT adapter to start from; without it, the base")
    parser.add_argument("--task", default="dpo_example")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--lr", type=float, default=5e-5)
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--loss", default="sigmoid")
    arguments = parser.parse_args()
    trainer = Trainer(
        from_pretrained=arguments.model,
        resume_path=arguments.resume,
        loader_name=arguments.loader,
        data_path=arguments.data,
        max_length=384,
        batch_size=arguments.batch_size,
        task_name=arguments.task,
    )
    for result in trainer(
        num_epochs=arguments.epochs,
        lr=arguments.lr,
        beta=arguments.beta,
        loss_type=arguments.loss,
    ):
        print(result)


if __name__ == "__main__":
    main()
