"""PPO from an SFT adapter: offline (gold answers stand for samples), online (sampled), or mixed.

    python examples/sft.py --task sft_example
    python examples/ppo.py --adapter save_model/sft_example/<checkpoint> --form offline
    python examples/ppo.py --adapter save_model/sft_example/<checkpoint> --form online
    python examples/ppo.py --adapter ... --form online --reward model       # a trained reward model

Without --adapter the base model itself is the start. The reward is the similarity to a row's gold
and bad answers by a sentence encoder; or a reward model that this script first trains on them.
"""

import argparse
import json
import random
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from main.trainer.ppo import Trainer

FORMS = {"offline": -1.0, "mixed": 0.5, "online": 1.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="models/SmolLM2-135M-Instruct")
    parser.add_argument("--encoder", default="models/all-MiniLM-L6-v2")
    parser.add_argument("--adapter", help="the SFT checkpoint to start from")
    parser.add_argument("--data", default="ticket_en_rlhf", help="a name in data/present.json")
    parser.add_argument("--form", choices=list(FORMS), default="online")
    parser.add_argument("--reward", choices=["similarity", "model"], default="similarity")
    parser.add_argument("--task", default="ppo_example")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--resume", help="a checkpoint directory, or 'auto'")
    arguments = parser.parse_args()
    reward = arguments.encoder
    if arguments.reward == "model":
        reward = train_reward_model(arguments.encoder, arguments.data, arguments.task)
    trainer = Trainer(
        from_pretrained=arguments.model,
        actor_resume_path=arguments.adapter,
        reward_from_pretrained=reward,
        loader_name="LLM_RLHF",
        data_path=arguments.data,
        ratio_for_rlhf=FORMS[arguments.form],
        max_length=256,
        batch_size=arguments.batch_size,
        task_name=arguments.task,
    )
    for result in trainer(
        num_epochs=arguments.epochs,
        weight_for_cos_and_jaccard=[0.5, 0.5],
        ppo_epsilon=0.15,
        lr=4e-4,
        ppo_epochs=3,
        alpha=0.5,
        beta=0.5,
        gamma=0,
        max_completion_length=48,
        resume_from_checkpoint=arguments.resume,
    ):
        print(result)


def train_reward_model(encoder: str, data: str, task: str, steps: int = 40) -> str:
    """A classifier with one output on the encoder's weights, trained on pairs of answers.

    loss = -log sigmoid(r(gold) - r(bad)): Bradley and Terry (1952), as in arXiv 2203.02155, eq. 1.
    """
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    model = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    rng, pairs = random.Random(0), answer_pairs(data)
    for step in range(1, steps + 1):
        batch = rng.sample(pairs, 16)
        texts = [gold for gold, _ in batch] + [bad for _, bad in batch]
        inputs = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        gold, bad = model(**inputs).logits[:, 0].chunk(2)
        loss = -torch.nn.functional.logsigmoid(gold - bad).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 0:
            right = float((gold > bad).float().mean())
            print(f"reward model, step {step}: loss {loss.item():.3f}, pairs right {right:.2f}")
    folder = Path("save_model") / task / "reward_model"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def answer_pairs(data: str) -> list[tuple[str, str]]:
    """(dialogue with a gold answer, the same with a bad one), a line each turn."""
    present = Path("data/present.json")
    files = json.loads(present.read_text(encoding="utf-8"))[data]
    pairs = []
    for line in (present.parent / files["train"]).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        question = "\n".join(turn["content"] for turn in row["conversations"])
        pairs += [
            (f"{question}\n{gold}", f"{question}\n{bad}")
            for gold in row["gold_answers"]
            for bad in row["bad_answers"]
        ]
    return pairs


if __name__ == "__main__":
    main()
