"""Signals that meet the library in a certain phase, each in a child of its own.

    python tests/interrupted.py MODEL ADAPTER FOLDER    # a JSON line for each case

A child does its work until the phase is reached and is sent the signal there, as a user or a
scheduler would. Then the same work is done again: in a new child, or after Ctrl-C in the same one,
as in a notebook.
"""

import functools
import hashlib
import importlib
import itertools
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import four_trainers
import torch

from main.evaluation.inferences import inference_with_data
from main.predictor.hf import Predictor
from main.trainer.loop.saving import read_snapshot
from main.utils.merge_model import merge_model

BOUND = 120  # seconds a child may take, on a machine with other work


class Phase(NamedTuple):
    """work: what is done. place: the function that is entered when the signal comes, "module:name".

    call: the signal comes at this call of it. makes: the phase is in the making of the trainer,
        which every child does for itself; otherwise they have it from their parent.
    """

    work: str
    place: str
    call: int = 1
    makes: bool = False


LOOP = "main.trainer.loop"
PHASES = {
    "reading rows": Phase("lora", "main.loaders.cache:read_rows", makes=True),
    "encoding rows": Phase("lora", "main.loaders.cache:_write", makes=True),
    "keeping encoded rows": Phase("lora", "main.loaders.cache:_write_stamp", makes=True),
    "loading the model": Phase("lora", "main.trainer.base:load_model", makes=True),
    "adding the adapter": Phase("lora", "main.trainer.base:add_adapter", makes=True),
    "taking the folder": Phase("lora", "main.trainer.loop.alone:_take"),
    "looking for a checkpoint": Phase("lora", f"{LOOP}.run:find"),
    "opening": Phase("lora", f"{LOOP}.opening:make_placement"),
    "opening the records": Phase("lora", f"{LOOP}.run:Records"),
    "first step": Phase("lora", f"{LOOP}.step:Stepper.step"),
    "in a step": Phase("lora", "main.trainer.policy.logprobs:LogprobModel.forward", 3),
    "in the optimizer": Phase("lora", "torch.optim:AdamW.step", 2),
    "writing records": Phase("lora", f"{LOOP}.records:Records.write", 2),
    "saving": Phase("lora", f"{LOOP}.checkpoints:Checkpoints.save"),
    "saving tensors": Phase("lora", f"{LOOP}.saving:save_tensors", 2),
    "saving again": Phase("lora", f"{LOOP}.saving:save_tensors", 6),
    "rotating": Phase("lora", f"{LOOP}.saving:rotate", 2),
    "evaluating": Phase("lora", f"{LOOP}.evaluation:Evaluator.metrics"),
    "after the evaluation": Phase("lora", f"{LOOP}.best:compare"),
    "between epochs": Phase("lora", "interrupted:after_an_epoch"),
    "closing": Phase("lora", f"{LOOP}.opening:Opened.close"),
    "closing the records": Phase("lora", f"{LOOP}.records:Records.close"),
    "closing the placement": Phase("lora", f"{LOOP}.opening:Opened._release"),
    "reference of DPO": Phase("dpo", "main.trainer.policy.logprobs:LogprobModel.forward"),
    "drawing": Phase("grpo", "main.trainer.rollout.sampler:HFSampler.sample", 2),
    "judging": Phase("grpo", "four_trainers:letters", 2),
    "drawing of PPO": Phase("ppo", "main.trainer.rollout.sampler:HFSampler.sample", 2),
    "between inner epochs": Phase("ppo", f"{LOOP}.step:Stepper.step", 2),
    "predicting": Phase("predict", "main.predictor.states:State.step", 2),
    "streaming": Phase("stream", "main.predictor.states:State.step", 2),
    "batch inference": Phase("infer", "main.predictor.states:State.step", 6),
    "writing responses": Phase("infer", "main.evaluation.book:Book.enter", 2),
    "finishing responses": Phase("infer", "main.evaluation.outputs:Outputs.finish"),
    "merging": Phase("merge", "main.utils.merge_model:merge"),
    "saving what is merged": Phase("merge", "main.utils.merge_model:_finish"),
    "comparing what is merged": Phase("merge", "main.utils.merge_model:_reopen"),
}


def after_an_epoch() -> None:
    """Called by the caller of a run between two epochs."""


class Worker:
    """What is done in the working directory; each work gives the digest of its result."""

    def __init__(self, model: Path, adapter: Path):
        self.model, self.adapter = model, adapter
        self.kept: dict[str, Any] = {}  # what a notebook would still have

    def make(self, work: str) -> None:
        """What the work is done with."""
        if work in four_trainers.METHODS:
            self._trainer(work)
        elif work != "merge":
            self._predictor()

    def forget(self, work: str) -> None:
        self.kept.pop(work, None)

    def do(self, work: str) -> str:
        if work in four_trainers.METHODS:
            return self._trained(work)
        return getattr(self, f"_{work}")()

    def _trained(self, method: str) -> str:
        trainer = self._trainer(method)
        options = {"save_strategy": "epoch", "save_total_limit": 1} | (
            {"gradient_accumulation_steps": 2} if method == "grpo" else {}
        )
        run = four_trainers.run(trainer, method, resume_from_checkpoint="auto", **options)
        self.kept["run"] = run  # as a variable of a notebook holds it
        for _ in run:
            sys.modules["interrupted"].after_an_epoch()  # type: ignore[attr-defined]
        weights = {n: p for n, p in trainer.policy.named_parameters() if p.requires_grad}
        return digest(b"".join(weights[n].detach().numpy().tobytes() for n in sorted(weights)))

    def _trainer(self, method: str) -> Any:
        if method not in self.kept:
            self.kept[method] = four_trainers.make_trainer(method, self.model, batch_size=2)
        return self.kept[method]

    def _predictor(self) -> Predictor:
        if "predictor" not in self.kept:
            self.kept["predictor"] = Predictor(self.model)
        return self.kept["predictor"]

    def _predict(self) -> str:
        return digest("".join(self._predictor()(["a", "b c d"], max_new_tokens=6)).encode())

    def _stream(self) -> str:
        *_, (_, texts) = self._predictor().predict_stream(["a", "b c d"], max_new_tokens=6)
        return digest("".join(texts).encode())

    def _infer(self) -> str:
        predictor, rows = self._predictor(), [{"query": f"Say {n}."} for n in range(6)]
        inference_with_data(
            rows, lambda batch: predictor(batch["query"], max_new_tokens=4), "out.jsonl", 2
        )
        return digest(Path("out.jsonl").read_bytes())

    def _merge(self) -> str:
        if not Path("merged").exists():
            merge_model(self.model, self.adapter, "merged")
        return digest(Path("merged/model.safetensors").read_bytes())


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def trap(phase: Phase, number: int) -> None:
    """This process is sent the signal at a call of the phase's function."""
    module, _, name = phase.place.partition(":")
    owner: Any = importlib.import_module(module)
    *path, name = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    original, calls = getattr(owner, name), itertools.count(1)

    @functools.wraps(original)
    def entered(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == phase.call:
            os.kill(os.getpid(), number)
        return original(*args, **kwargs)

    setattr(owner, name, entered)


def ended(work: Callable[[], Any]) -> int:
    """The exit status that Python gives for what the work ends with."""
    try:
        work()
    except KeyboardInterrupt:
        return 130
    except SystemExit as error:
        return int(error.code or 0)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def child(work: Callable[[], Any]) -> tuple[int, float]:
    """(how it ended, seconds) of a forked child; one that takes too long is killed: -9."""
    began, process = time.monotonic(), os.fork()
    if process == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        output = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        status = ended(work)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    while time.monotonic() < began + BOUND:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), time.monotonic() - began
        time.sleep(0.02)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return -9, time.monotonic() - began


def damaged() -> list[str]:
    """Checkpoints that do not stand whole."""
    found = []
    for folder in Path("save_model").glob("*/Llama_*"):
        try:
            read_snapshot(folder, 0, 1)
        except Exception as error:
            found.append(f"{folder.name}: {error}")
    return found


def case(worker: Worker, name: str, number: int, same: bool) -> dict[str, Any]:
    """What became of one phase x signal."""
    phase = PHASES[name]

    def again() -> None:
        Path("digest").write_text(worker.do(phase.work), encoding="utf-8")

    def disturbed() -> None:
        if phase.makes:
            worker.forget(phase.work)
        trap(phase, number)
        if not same:
            worker.do(phase.work)
            return
        Path("status").write_text(str(ended(lambda: worker.do(phase.work))), encoding="utf-8")
        again()

    status, seconds = child(disturbed)
    broken = damaged()
    if not same:
        again_status, more = child(again)
        seconds = max(seconds, more)
    else:
        again_status = status
        status = int(Path("status").read_text()) if Path("status").exists() else status
    result = Path("digest").read_text(encoding="utf-8") if Path("digest").exists() else ""
    return {
        "phase": name,
        "signal": signal.Signals(number).name,
        "same": same,
        "status": status,
        "again": again_status,
        "seconds": round(seconds, 1),
        "damaged": broken,
        "digest": result,
        "output": Path("output.txt").read_text(encoding="utf-8", errors="replace")[-1500:],
    }


def main() -> None:
    model, adapter, folder = (Path(word).resolve() for word in sys.argv[1:4])
    names = sys.argv[4:] or list(PHASES)
    torch.set_num_threads(1)
    importlib.import_module("accelerate.utils.deepspeed")  # once, not in every child
    worker, whole = Worker(model, adapter), dict[str, str]()
    cases = [(n, s, False) for n in names for s in (signal.SIGINT, signal.SIGTERM)]
    cases += [(n, signal.SIGINT, True) for n in names]
    for place, (name, number, same) in enumerate(cases):
        work = PHASES[name].work
        for where in [*([] if work in whole else [f"whole_{work}"]), str(place)]:
            home = folder / where
            home.mkdir(parents=True)
            os.chdir(home)
            os.environ["HF_DATASETS_CACHE"] = str(home / "cache")
            importlib.import_module("datasets").config.HF_DATASETS_CACHE = home / "cache"
            four_trainers.write_data(home, train=4, dev=2)
            if where.startswith("whole"):
                worker.make(work)
                status, _ = child(lambda w=work: Path("digest").write_text(worker.do(w)))  # type: ignore[misc]
                whole[work] = Path("digest").read_text(encoding="utf-8") if not status else ""
        found = case(worker, name, number, same)
        print("CASE " + json.dumps(found | {"whole": whole[work]}), flush=True)


if __name__ == "__main__":
    sys.modules["interrupted"] = sys.modules["__main__"]
    main()
