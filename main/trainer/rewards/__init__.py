"""Scores of completions: functions, a reward model, likeness to given answers."""
