"""What the methods share that train on completions of their own policy: GRPO and PPO."""
