"""Inference: one model behind one call, with transformers or vLLM."""
