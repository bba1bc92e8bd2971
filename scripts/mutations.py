"""Breaks the library, one change at a time in a copy, and sees whether a test notices.

    python scripts/mutations.py              # all of them: a table, exit status 1 if one slips by
    python scripts/mutations.py csv cispo    # those whose name holds one of the words

A change is a text that stands exactly once in main/, whichever file that is, and what takes its
place. Where code was rewritten, edit CHANGES: the text has to be found again, and the change still
has to break what its name says.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PASSED, FAILED = 0, 1  # of pytest; anything else is neither


class Change(NamedTuple):
    """`old` becomes `new`; `test` has to fail then."""

    name: str
    old: str
    new: str
    test: str


CHANGES = [
    Change(
        "nothing due by steps",
        "return step // every > before // every or run_ends",
        "return run_ends",
        "test_lora_runs.py::test_evaluation_by_steps_is_made_inside_an_epoch",
    ),
    Change(
        "due only at exact multiples",
        "return step // every > before // every or run_ends",
        "return step % every == 0 or run_ends",
        "test_due.py::test_every_due_one_is_made_once_whatever_a_draw_is_made_into",
    ),
    Change(
        "the end of a run not due by steps",
        "return step // every > before // every or run_ends",
        "return step // every > before // every",
        "test_due.py::test_the_last_window_and_the_last_weights_are_not_lost",
    ),
    Change(
        "evaluation before saving",
        "        if now.save:\n            self._save()\n"
        "        if now.evaluate:\n            self._evaluate()\n",
        "        if now.evaluate:\n            self._evaluate()\n"
        "        if now.save:\n            self._save()\n",
        "test_due.py::test_what_memory_does_not_suffice_to_evaluate_is_saved_all_the_same",
    ),
    Change(
        "an evaluation of other weights in an epoch's result",
        "evaluation = state.evaluation if state.evaluated == state.step else {}",
        "evaluation = state.evaluation",
        "test_due.py::test_a_result_has_the_evaluation_of_its_own_step_or_none",
    ),
    Change(
        "any best evaluation makes the next checkpoint the best",
        "if saved is not None and _better(value, state.best_saved, options):",
        "if saved is not None and improved:",
        "test_due.py::test_patience_counts_evaluations_and_best_counts_checkpoints",
    ),
    Change(
        "a checkpoint is not told what was found out after it was written",
        "            decide(lambda: saving.write_progress(latest, self._progress()))",
        "            pass",
        "test_lora_runs.py::test_a_resume_knows_the_best_checkpoint_and_how_long_nothing_was_better",
    ),
    Change(
        "rotation through links",
        "if named and path.is_dir() and not path.is_symlink():",
        "if named and path.is_dir():",
        "test_checkpoints.py::test_a_link_is_neither_gone_on_from_nor_followed_where_it_is_in_the_way",
    ),
    Change(
        "a copy under the name of another step taken for a checkpoint",
        'if path == home.checkpoint(progress["step"]):',
        "if True:",
        "test_checkpoints.py::test_what_is_not_ours_stays_and_stops_nothing",
    ),
    Change(
        "later rows of the CSV kept on resume",
        ' if int(row["step"]) <= resume_step',
        "",
        "test_lora_runs.py::test_a_resume_from_an_earlier_checkpoint_takes_the_later_rows_out_of_the_"
        "records",
    ),
    Change(
        "longest batch first in every epoch",
        "if epoch == 1 and len(steps) > 1:",
        "if len(steps) > 1:",
        "test_loaders_order.py::test_after_the_first_epoch_the_longest_row_comes_where_the_draw_"
        "puts_it",
    ),
    Change(
        "CISPO counts negative advantages as clipped",
        "clipped = (ratio > epsilon_high) & (advantages > 0)",
        "clipped = ratio > epsilon_high",
        "test_policy_loss.py::test_cispo_counts_a_bounded_weight_as_clipped_where_the_advantage_is_"
        "positive",
    ),
    Change(
        "second Ctrl-C ignored",
        "elif not launched() or time.monotonic() - self._received_at > self.AGAIN:",
        "elif False:",
        "test_lora_runs.py::test_a_second_ctrl_c_ends_a_real_process_in_the_middle_of_a_step",
    ),
    Change(
        "second Ctrl-C ignored in several processes",
        "time.monotonic() - self._received_at > self.AGAIN",
        "False",
        "test_guards.py::test_of_several_processes_a_second_ctrl_c_acts_once_the_launchers_own_"
        "cannot_be_meant",
    ),
    Change(
        "no error is out of memory",
        "if not is_out_of_memory(error):",
        "if True:",
        "test_lora_runs.py::test_a_real_allocation_that_fails_halves_the_micro_batch_and_keeps_the_"
        "step",
    ),
    Change(
        "a failed allocation of the CPU is no lack of memory",
        '    "can\'t allocate memory",\n',
        "",
        "test_memory.py::test_every_way_in_which_an_allocation_fails_is_known",
    ),
    Change(
        "a refusal of ours taken for a lack of memory",
        "if isinstance(error, MainError) or not isinstance(error, RuntimeError | OSError):",
        "if not isinstance(error, RuntimeError | OSError):",
        "test_memory.py::test_every_way_in_which_an_allocation_fails_is_known",
    ),
    Change(
        "what was computed is computed again in smaller pieces",
        "                self.shrink(error, len(piece))\n                continue",
        "                self.shrink(error, len(piece))\n                start = 0\n"
        "                continue",
        "test_memory.py::test_what_was_computed_stays_and_the_rest_goes_on_in_halves",
    ),
    Change(
        "the gradient of a failed try kept",
        "            return metrics\n        self.opened.placement.zero_grad()",
        "            return metrics",
        "test_memory.py::test_of_a_step_that_is_made_again_no_gradient_counts_twice",
    ),
    Change(
        "the longest row not tried",
        "if longest is not todo[0]:",
        "if False:",
        "test_memory.py::test_the_longest_row_is_tried_before_the_first_step_and_changes_nothing",
    ),
    Change(
        "a trial draws random numbers",
        "            self.stepper.rehearse(update.micro_batches[0])\n"
        "            saving.set_random_state(ours)",
        "            self.stepper.rehearse(update.micro_batches[0])",
        "test_memory.py::test_the_longest_row_is_tried_before_the_first_step_and_changes_nothing",
    ),
    Change(
        "the gradient of a trial kept",
        "            tried = self._computed(pieces, [self.task.collate(pieces[0].items)])\n"
        "        self.opened.placement.zero_grad()",
        "            tried = self._computed(pieces, [self.task.collate(pieces[0].items)])",
        "test_memory.py::test_the_longest_row_is_tried_before_the_first_step_and_changes_nothing",
    ),
    Change(
        "a gradient that is not finite applied",
        'if math.isfinite(norm) or self.opened.run.precision == "fp16":',
        "if True:",
        "test_loop.py::test_a_gradient_that_is_not_finite_stops_and_names_the_rows",
    ),
    Change(
        "rows whose loss is not finite not looked for",
        "if not math.isfinite(float(output.loss)):",
        "if False:",
        "test_finite.py::test_in_the_scores_of_one_row[lora]",
    ),
    Change(
        "weights that are not finite not named",
        "if parameter.is_floating_point() and not parameter.detach().isfinite().all():",
        "if False:",
        "test_finite.py::test_in_the_weights_of_a_model[nan-lora]",
    ),
    Change(
        "tokens drawn of logits that are not finite",
        "    if broken.any():",
        "    if False:",
        "test_finite.py::test_in_the_weights_of_a_model[nan-grpo]",
    ),
    Change(
        "no row named for logits that are not finite",
        "        error.request = row.index",
        "        pass",
        "test_finite.py::test_in_the_weights_of_a_model[nan-grpo]",
    ),
    Change(
        "a reward that is no number taken",
        "or not abs(float(value)) <= LARGEST",
        "or False",
        "test_finite.py::test_in_a_reward[inf-grpo]",
    ),
    Change(
        "a completion that nobody judged taken",
        "if unscored.any():",
        "if False:",
        "test_finite.py::test_in_a_reward[None-grpo]",
    ),
    Change(
        "no step named for a reward that is no number",
        'raise RewardError(f"{self._when()}: {error}") from error',
        "raise RewardError(str(error)) from error",
        "test_finite.py::test_in_a_reward[nan-grpo]",
    ),
    Change(
        "a loss that diverges not told",
        "if memory.high >= RECORDS:",
        "if False:",
        "test_watch.py::test_a_loss_far_above_its_best_is_told_after_three_records_and_once",
    ),
    Change(
        "an adapter that does not move not told",
        "elif step >= STILL:",
        "elif False:",
        "test_watch.py::test_an_adapter_of_which_no_weight_moves_is_told",
    ),
    Change(
        "a drift of lengths not told",
        'if name == "completion_length" and not first / DRIFTED <= now <= first * DRIFTED:',
        "if False:",
        "test_watch.py::test_a_length_that_doubles_or_halves_is_told",
    ),
    Change(
        "an entropy that collapses not told",
        'if name == "entropy" and now < COLLAPSED * first:',
        "if False:",
        "test_watch.py::test_an_entropy_that_collapses_and_a_divergence_that_runs_away_are_told",
    ),
    Change(
        "a policy that runs away not told",
        'if drawn and metrics.get("kl", 0.0) > RUNAWAY:',
        "if False:",
        "test_watch.py::test_an_entropy_that_collapses_and_a_divergence_that_runs_away_are_told",
    ),
    Change(
        "a sign told again and again",
        " if sign not in self.memory.told}",
        "}",
        "test_watch.py::test_a_loss_far_above_its_best_is_told_after_three_records_and_once",
    ),
    Change(
        "a reward function called once",
        "for attempt in range(patience.retries + 1):",
        "for attempt in range(1):",
        "test_reward_patience.py::test_a_judge_that_fails_is_asked_again_for_the_whole_batch",
    ),
    Change(
        "a reward function without a limit of time",
        "return future.result(seconds)",
        "return future.result()",
        "test_reward_patience.py::test_a_function_over_its_time_is_stopped_waiting_for",
    ),
    Change(
        "no checkpoint when a reward function is gone",
        '            self._keep("a reward function failed")\n',
        "",
        "test_reward_patience.py::test_a_run_whose_judge_is_gone_leaves_a_checkpoint_and_goes_on_"
        "from_it",
    ),
    Change(
        "completions of no seed",
        "return random.Random(name).getrandbits(63)",
        "return random.Random().getrandbits(63)",
        "test_determinism.py::test_two_runs_in_one_process_leave_the_same_files[grpo]",
    ),
    Change(
        "base left out of the reference's fingerprint",
        "digest = hashlib.sha256(base_content(self.policy).encode())",
        "digest = hashlib.sha256()",
        "test_dpo.py::test_a_base_that_was_changed_in_its_folder_has_another_reference",
    ),
    Change(
        "best and patience reset on resume",
        "vars(self.state).update(vars(RunState.from_json(progress, directory)))",
        "vars(self.state).update(vars(RunState.from_json(progress, directory)))\n"
        "        self.state.best = self.state.best_checkpoint = None\n"
        "        self.state.stale = 0",
        "test_lora_runs.py::test_a_resume_knows_the_best_checkpoint_and_how_long_nothing_was_better",
    ),
    Change(
        "tokens a second divided by the ranks twice",
        "(tokens, seconds / self.world)",
        "(tokens, seconds / self.world / self.world)",
        "test_lora_runs.py::test_two_processes_report_the_tokens_a_second_of_both_together",
    ),
]


def copy_tree(folder: Path) -> None:
    """The working tree as it is, without what git ignores; models are linked."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.check_output(listed, cwd=ROOT, text=True).splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    (folder / "models").symlink_to(ROOT / "models")


def run_test(folder: Path, test: str) -> int:
    """What pytest ends with in the copy; of anything but passed and failed the output is shown."""
    words = ["-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", f"tests/{test}"]
    changes = {"PYTHONPATH": str(folder), "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder, env=os.environ | changes, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode not in (PASSED, FAILED):
        print(done.stdout[-3000:], done.stderr[-3000:], file=sys.stderr)
    return done.returncode


def places(folder: Path, text: str) -> list[Path]:
    """The file of every place where the text stands."""
    files = sorted((folder / "main").rglob("*.py"))
    return [file for file in files for _ in range(file.read_text(encoding="utf-8").count(text))]


def outcome(folder: Path, change: Change) -> str:
    """'caught' if the test passes, and fails with the change; otherwise what is wrong."""
    found = places(folder, change.old)
    if len(found) != 1:
        return f"NOT APPLIED: main/ holds {change.old!r} {len(found)} times, not once"
    if run_test(folder, change.test) != PASSED:
        return "NOT TRIED: the test does not pass without the change"
    text = found[0].read_text(encoding="utf-8")
    found[0].write_text(text.replace(change.old, change.new), encoding="utf-8")
    try:
        ended = run_test(folder, change.test)
    finally:
        found[0].write_text(text, encoding="utf-8")
    ends = {FAILED: "caught", PASSED: "NOT CAUGHT"}
    return ends.get(ended, f"NOT TRIED: pytest ended with {ended}")


def main() -> int:
    words = [word.lower() for word in sys.argv[1:]]
    chosen = [c for c in CHANGES if not words or any(word in c.name.lower() for word in words)]
    found = []
    with tempfile.TemporaryDirectory() as folder:
        copy_tree(Path(folder))
        for change in chosen:
            found.append(outcome(Path(folder), change))
            print(f"| {change.name:51} | {found[-1]:10} | {change.test} |", flush=True)
    print(f"{found.count('caught')} of {len(found)} caught")
    return int(not found or found.count("caught") < len(found))


if __name__ == "__main__":
    sys.exit(main())
