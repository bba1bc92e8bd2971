"""Completions of the current policy: by transformers, vLLM or a server."""
