"""How a model is spread over processes: copies, ZeRO, FSDP2, tensor parallelism."""
