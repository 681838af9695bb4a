"""What a run on rewards shows of itself, and when it ends by itself: where nothing is learned, or nothing is left to learn."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from .report import Stop, emit
from .rewards import RIGHT
from .run import StopSignal, cost_usd, run_facts

FLAT_STEPS = 10  # in a row without a difference within any group, before the run ends
NEARLY = 0.98  # a reward that leaves nothing to learn
SAMPLES = 20  # times in a run that completions are shown
SHOWN = 4  # completions of a prompt
SLOW_REWARD = 0.5  # of a step's seconds

FLAT_FIX = (
    "If all are wrong: train answers first with templates/sft.py and pass that adapter as --base-model, give partial credit "
    "(--reward exact=1,format=0.2), or choose easier rows. More completions a prompt (--num-generations) find rarer right ones."
)
CUT_FIX = (
    "Raise --max-completion-length, ask for short answers in --system-prompt, or choose the instruct version of the model: one "
    "that never ends an answer cannot be graded."
)
KL_FIX = "Lower --learning-rate to a third, or hold it closer to its start with --beta 0.04. --max-kl sets this bound."


class RewardWatch:
    """Looks at the figures of each step (figures_of). max_kl: in nats per token; 0 for no bound. max_steps: 0 for no limit; a
    trial of few steps tells as well.
    """

    def __init__(self, max_kl: float, max_steps: int = 0):
        self.max_kl, self.steps = max_kl, min(FLAT_STEPS, max_steps or FLAT_STEPS)
        self.last: deque[Mapping[str, float]] = deque(maxlen=self.steps)
        self.warned: set[str] = set()

    def look(self, step: int, figures: Mapping[str, float], first_failure: str) -> bool:
        """Whether nothing is left to learn. Raises Stop where nothing is learned."""
        self.last.append(figures)
        self.warn_of_rewards(figures, first_failure)
        kl = sum(one["kl"] for one in self.last) / len(self.last)  # of few completions a step: one alone tells little
        if self.max_kl and len(self.last) == self.steps and kl > self.max_kl:
            message = (
                f"At step {step} the model is {kl:.2f} nats per token (KL) from its start, beyond {self.max_kl:g}: "
                f"it is no longer the model that it was. Mean reward {figures['reward']:.3f}."
            )
            raise Stop("kl_too_high", message, KL_FIX)
        if len(self.last) < self.steps:
            return False
        if all(one["clipped"] >= RIGHT for one in self.last):
            message = f"In each of the last {self.steps} steps all completions were cut at the limit: none came to an end."
            raise Stop("all_clipped", message, CUT_FIX)
        if any(one["informative"] for one in self.last):
            return False
        reward = sum(one["reward"] for one in self.last) / self.steps
        if reward >= NEARLY:
            return True
        message = (
            f"In each of the last {self.steps} steps all completions of a prompt had the same reward (mean {reward:.3f}): there is "
            "nothing to tell apart."
        )
        raise Stop("reward_flat", message, FLAT_FIX)

    def warn_of_rewards(self, figures: Mapping[str, float], first_failure: str) -> None:
        """Of a reward that fails, and of one that takes longer than the model: each once."""
        if figures["reward_failures"] and self.once("reward_failed"):
            message = f"A reward failed, which counts as 0: {first_failure}"
            emit("warning", code="reward_failed", message=message, failures=int(figures["reward_failures"]))
        if len(self.last) > 1 and figures["rewarding_s"] > SLOW_REWARD * figures["step_s"] and self.once("reward_slow"):
            message = (
                f"The reward took {figures['rewarding_s']:.1f} s of a step of {figures['step_s']:.1f} s, and writing "
                f"{figures['writing_s']:.1f} s: the GPU waits for it, and is paid for."
            )
            emit("warning", code="reward_slow", message=message)

    def once(self, code: str) -> bool:
        known = code in self.warned
        self.warned.add(code)
        return not known


def watch_callback(trainer: Any, watch: RewardWatch, stop_signal: StopSignal) -> Any:
    """A trainer callback that looks at each step, and shows completions now and then."""
    from transformers import TrainerCallback

    class Watching(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            rollout, step = trainer.rollout, state.global_step
            if step == 1 or step % max(state.max_steps // SAMPLES, 1) == 0:
                show_completions(trainer, step)
            if watch.look(step, trainer.figures[-1], rollout.scores.first_failure) and step < state.max_steps:
                control.should_training_stop, control.should_save, control.should_log = True, True, True
                if stop_signal.reason != "cancelled":
                    stop_signal.reason = "early_stopped"
                emit_solved(step, state.max_steps, trainer.timer.step_s)

    return Watching()


def show_completions(trainer: Any, step: int) -> None:
    """The event `completions`: of the step's prompt whose completions differ most, with the reward of each."""
    shown = completions_of(trainer.rollout, trainer.group)
    emit("completions", step=step, **shown)
    rows = [{"step": step, "prompt": shown["prompt"], "reference": shown["reference"], **one} for one in shown["completions"]]
    trainer.curves.attempt(log_completions, rows)


def completions_of(rollout: Any, group: int) -> dict[str, Any]:
    rewards = rollout.scores.rewards
    differ = lambda start: max(rewards[start : start + group]) - min(rewards[start : start + group])  # noqa: E731
    start = max(range(0, len(rewards), group), key=differ)
    places = sorted(range(start, start + group), key=lambda place: -rewards[place])
    chosen = places if group <= SHOWN else [*places[: SHOWN // 2], *places[-SHOWN // 2 :]]
    question = rollout.questions[start]
    shown = [{"text": rollout.completions[place].text, "reward": round(rewards[place], 4)} for place in chosen]
    return {"prompt": question.asked, "reference": question.reference, "completions": shown}


def log_completions(rows: Sequence[Mapping[str, Any]]) -> None:
    import trackio

    trackio.log({"completions": trackio.Table(data=[dict(row) for row in rows])})


def emit_solved(step: int, of: int, step_s: float | None) -> None:
    seconds, price = None if step_s is None else (of - step) * step_s, run_facts().get("usd_per_minute")
    emit(
        "early_stopped",
        step=step,
        of=of,
        kept_step=step,
        why=f"each completion of the last {FLAT_STEPS} steps had the highest reward",
        steps_saved=of - step,
        seconds_saved=None if seconds is None else round(seconds, 1),
        usd_saved=round(seconds / 60 * price, 4) if seconds is not None and price else None,
    )


def usd_per_point(reward_before: float, reward_after: float) -> float | None:
    """Dollars that each hundredth of mean reward has cost up to now; None where there is no price, or no gain."""
    cost, gained = cost_usd(), 100 * (reward_after - reward_before)
    return None if cost is None or gained <= 0 else round(cost / gained, 4)
