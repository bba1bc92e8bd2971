"""Between messages and token ids: one rendering for training and for inference."""
