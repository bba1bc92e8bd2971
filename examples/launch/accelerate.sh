#!/usr/bin/env bash
# One machine:        examples/launch/accelerate.sh examples/sft.py
# Several machines:   on each of them, with NODES, NODE_RANK (0, 1, ...) and MASTER (the address
#                     of machine 0) set. Checkpoints and data lie on a disk that all machines see.
# PROCESSES are those of one machine. `--multi_gpu` also starts several processes without a GPU;
# `--cpu` starts one, whatever `--num_processes` says.
set -euo pipefail
: "${PROCESSES:=2}" "${NODES:=1}" "${NODE_RANK:=0}" "${MASTER:=127.0.0.1}" "${PORT:=29500}"
exec "${PYTHON:-python}" -m accelerate.commands.launch --multi_gpu \
    --num_machines "$NODES" --machine_rank "$NODE_RANK" --num_processes "$((PROCESSES * NODES))" \
    --main_process_ip "$MASTER" --main_process_port "$PORT" \
    --mixed_precision no --dynamo_backend no "$@"
