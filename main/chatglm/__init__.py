"""ChatGLM2, ChatGLM3 and glm-4-9b-chat on transformers' own Glm classes.

Such a folder brings Python code for an older transformers. Nothing of it runs: config.json, the
weights and tokenizer.model are read as data and mapped. Used by `main.models`.
"""

from main.chatglm.kind import is_chatglm, is_chatglm_tokenizer

__all__ = ["is_chatglm", "is_chatglm_tokenizer"]
