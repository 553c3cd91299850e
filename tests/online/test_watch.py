"""The rules over simulated trainings: each one at its step and not before, and none on a sound training."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Mapping
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from rlaif.evaluation.win_rate import length_controlled
from rlaif.rl.config import MonitorLimits, Rule
from rlaif.rl.experience import RESPONSE_METRICS
from rlaif.rl.heldout import HeldOut
from rlaif.rl.monitor import TRAINER_METRICS, Alarm, RewardHackingMonitor
from rlaif.stats import mean, sigmoid

SOUND = {
    "responses": 1e9, "length": 100.0, "truncated": 0.1, "empty": 0.0, "distinct_1": 0.5, "distinct_2": 0.8,
    "distinct_3": 0.9, "repetition": 0.05, "openings": 0.1, "refusals": 0.1, "entropy": 1.0, "kl": 2.0, "reward": 0.0,
}  # fmt: skip
"""So many answers that a share of them is certain."""

Look = tuple[int, Mapping[str, float], HeldOut | None]


def held_out(step: int, rate: float, error: float = 0.03) -> HeldOut:
    return HeldOut(
        step=step, win_rate=rate, win_rate_error=error,
        length_controlled=rate, interval=(rate - 2 * error, rate + 2 * error), error=error,
        wins=0, ties=0, losses=0, compared=100, identical=0, failed=0, unreadable=0, flips=0.0, length=100.0,
        start_length=100.0, judge="judge",
    )  # fmt: skip


def looked(watch: RewardHackingMonitor, looks: list[Look]) -> list[Alarm]:
    return [alarm for step, figures, held in looks for alarm in watch.look(step, figures, held)]


def rates(*values: float, rewards: tuple[float, ...] = (), error: float = 0.03) -> list[Look]:
    """One evaluation every ten steps, and a reward that stands still, or one an evaluation."""
    return [
        (10 * at + within, SOUND | {"reward": rewards[at] if rewards else 0.0},
         held_out(10 * at + within, rate, error) if within == 9 else None)
        for at, rate in enumerate(values)
        for within in range(10)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "figure", "inside", "beyond", "said"),
    [
        ("kl", "kl", 10.0, 10.1, "10.1 nats per response away from its reference (bound 10.0)"),
        ("length", "length", 150.0, 151.0, "responses have 151 tokens, at the start 100 (bound 150)"),
        ("distinct", "distinct_2", 0.561, 0.559, "is 0.56, at the start 0.80 (bound 0.56)"),
        ("entropy", "entropy", 0.301, 0.299, "the entropy is 0.30 nats per token"),
        ("truncated", "truncated", 0.299, 0.301, "30% of the responses are cut at the token limit, at the start 10%"),
        ("repetition", "repetition", 0.149, 0.151, "15% of a response repeats earlier text"),
        ("openings", "openings", 0.299, 0.301, "30% of the responses open with the same words"),
        ("refusals", "refusals", 0.299, 0.301, "30% of the responses open like a refusal"),
        ("empty", "empty", 0.099, 0.101, "10% of the responses are empty, at the start 0% (bound 10%)"),
    ],
)
def test_each_rule_at_its_bound(rule: str, figure: str, inside: float, beyond: float, said: str) -> None:
    """Ten sound steps, then for good beyond the bound: the median of three is there at the second, that of twelve,
    which variety and entropy take, at the seventh."""
    watch = RewardHackingMonitor(MonitorLimits())
    assert looked(watch, [(step, SOUND, None) for step in range(10)]) == []
    assert looked(watch, [(step, SOUND | {figure: inside}, None) for step in range(10, 20)]) == []
    (alarm,) = looked(watch, [(step, SOUND | {figure: beyond}, None) for step in range(20, 40)])
    assert (alarm.rule, alarm.step) == (rule, 26 if rule in ("distinct", "entropy") else 21)
    assert said in alarm.message
    assert alarm.stop == (rule in ("length", "distinct"))
    assert "\n" not in alarm.message and ": " in alarm.message, "what to do comes after what was seen"


def test_far_away_the_training_stops() -> None:
    found = looked(
        RewardHackingMonitor(MonitorLimits()), [(step, SOUND | {"kl": 5.0 * step}, None) for step in range(5)]
    )
    assert [(alarm.rule, alarm.step, alarm.stop) for alarm in found] == [("kl", 4, False)], "15 is not above 15"
    found = looked(
        RewardHackingMonitor(MonitorLimits()), [(step, SOUND | {"kl": 5.1 * step}, None) for step in range(5)]
    )
    assert [(alarm.rule, alarm.step, alarm.stop) for alarm in found] == [("kl", 3, False), ("kl_stop", 4, True)]


def test_one_spike_is_no_alarm() -> None:
    wild = {"kl": 90.0, "length": 900.0, "distinct_2": 0.01, "entropy": 0.0, "truncated": 1.0, "empty": 1.0,
            "openings": 1.0, "refusals": 1.0, "repetition": 1.0}  # fmt: skip
    looks: list[Look] = [(step, SOUND | wild if step % 3 == 2 else SOUND, None) for step in range(60)]
    assert looked(RewardHackingMonitor(MonitorLimits()), looks) == []
    assert {alarm.step for alarm in looked(RewardHackingMonitor(MonitorLimits(recent=1)), looks[:3])} == {2}


def test_the_start_of_a_small_batch_has_a_wider_bound() -> None:
    """A share of 0.1 of 64: (6.4 + 1) / 66 = 0.1121, whose standard error is sqrt(0.1121 * 0.8879 / 64) = 0.0394.

    So the bound is 0.1 + 0.2 + 3 * 0.0394 = 0.4183. Lengths of mean 100, 95 in 100 below 200: their deviation is
    100 / 1.645 = 60.8, the mean's 60.8 / 8 = 7.6, and the bound 1.5 * 100 + 3 * 7.6 = 172.8.
    """
    few = SOUND | {"responses": 64.0, "length_p95": 200.0}
    for figure, inside, beyond in (("truncated", 0.417, 0.419), ("length", 172.7, 172.9)):
        for value, alarms in ((inside, 0), (beyond, 1)):
            looks: list[Look] = [(0, few, None), *((step, few | {figure: value}, None) for step in (1, 2, 3))]
            assert len(looked(RewardHackingMonitor(MonitorLimits()), looks)) == alarms
    bare: list[Look] = [(0, {"truncated": 0.1}, None), *((step, {"truncated": 0.301}, None) for step in (1, 2, 3))]
    assert len(looked(RewardHackingMonitor(MonitorLimits()), bare)) == 1, (
        "without the number of answers there is no margin"
    )


def test_an_alarm_is_given_once_until_it_clears() -> None:
    """F is far, N is near; the median of three is far at the second F of a row, and near at the second N.

    It is far from 2 to 5, near from 6 to 14 (nine looks, too few to clear), far at 15 and 16, near from 17 to 26 (ten),
    and far at 27.
    """
    letters = "NFFFF" + "N" * 9 + "FF" + "N" * 10 + "FF"
    looks: list[Look] = [
        (at, SOUND | {"kl": 12.0 if letter == "F" else 2.0}, None) for at, letter in enumerate(letters)
    ]
    assert [alarm.step for alarm in looked(RewardHackingMonitor(MonitorLimits()), looks)] == [2, 27]


def test_the_judges_alarm_clears_by_evaluations() -> None:
    """Fallen at the fifth; by the mean of two it is well again from the sixth on, and three times clear it."""
    fallen = looked(RewardHackingMonitor(MonitorLimits()), rates(0.7, 0.7, 0.7, 0.6, 0.6, 0.7, 0.7, 0.7, 0.6, 0.6))
    assert [alarm.step for alarm in fallen] == [49, 99]
    shorter = looked(RewardHackingMonitor(MonitorLimits()), rates(0.7, 0.7, 0.7, 0.6, 0.6, 0.7, 0.6, 0.6))
    assert [alarm.step for alarm in shorter] == [49]


def test_a_number_that_is_none() -> None:
    watch = RewardHackingMonitor(MonitorLimits())
    looks: list[Look] = [
        (0, SOUND, held_out(0, 0.5)),
        (1, SOUND, None),
        (2, SOUND | {"kl": math.nan, "x": math.inf}, None),
    ]
    (alarm,) = looked(watch, looks)
    assert (alarm.rule, alarm.step, alarm.stop) == ("not_finite", 2, True)
    assert "not a finite number: kl; go back" in alarm.message
    json.dumps(watch.state(), allow_nan=False)


def test_the_win_rate_falls_twice() -> None:
    """Errors of 0.03: the difference's is 0.0424, three of them 0.1273. From 70% to 56% it is more, to 58% less."""
    (alarm,) = looked(RewardHackingMonitor(MonitorLimits(win_rate_falls=2)), rates(0.5, 0.7, 0.62, 0.56))
    assert (alarm.rule, alarm.step, alarm.stop) == ("win_rate", 39, True)
    assert "(length-controlled) fell 2 times in a row, from 70.0% to 56.0% (bound 12.7%)" in alarm.message
    assert "the weights of step 19, the best by the held-out judge" in alarm.message
    assert looked(RewardHackingMonitor(MonitorLimits()), rates(0.5, 0.7, 0.62, 0.58)) == []
    assert looked(RewardHackingMonitor(MonitorLimits()), rates(0.5, 0.7, 0.70, 0.56)) == [], "that is one fall"
    assert looked(RewardHackingMonitor(MonitorLimits(win_rate_falls=None)), rates(0.5, 0.7, 0.62, 0.56)) == []
    assert len(looked(RewardHackingMonitor(MonitorLimits(win_rate_falls=1)), rates(0.5, 0.7, 0.70, 0.56))) == 1


def test_the_win_rate_lies_below_its_best() -> None:
    """The mean of two has an error of 0.0212, the difference 0.03, three of them 0.09: from 70% to 60.5% is more."""
    (alarm,) = looked(RewardHackingMonitor(MonitorLimits()), rates(0.5, 0.7, 0.7, 0.60, 0.61, 0.6))
    assert (alarm.rule, alarm.step) == ("win_rate", 49)
    assert "fell, in the mean of 2 evaluations, from 70.0% to 60.5% (bound 9.0%)" in alarm.message
    assert looked(RewardHackingMonitor(MonitorLimits()), rates(0.5, 0.7, 0.7, 0.62, 0.63, 0.62)) == []
    assert looked(RewardHackingMonitor(MonitorLimits()), rates(0.5, 0.7, 0.7, 0.55, 0.7)) == [], (
        "one bad evaluation counts by half"
    )
    assert looked(RewardHackingMonitor(MonitorLimits(win_rate_errors=None)), rates(0.5, 0.7, 0.7, 0.2, 0.1)) == []


def test_reward_against_judge() -> None:
    """The same fall, with a reward that rises, and with one that falls along."""
    fallen = (0.5, 0.7, 0.7, 0.60, 0.60)
    found = looked(RewardHackingMonitor(MonitorLimits()), rates(*fallen, rewards=(0.0, 0.5, 1.0, 1.5, 2.25)))
    assert [(alarm.rule, alarm.step) for alarm in found] == [("win_rate", 49), ("reward_hacking", 49)]
    assert "since step 29 the reward rose from 1 to 2.25, but the held-out win rate" in found[1].message
    assert "reward hacking" in found[1].message and found[1].stop
    assert len(looked(RewardHackingMonitor(MonitorLimits()), rates(*fallen, rewards=(0.0, 0.5, 1.0, 0.8, 0.6)))) == 1
    risen = looked(
        RewardHackingMonitor(MonitorLimits()), rates(0.5, 0.6, 0.7, 0.7, 0.7, rewards=(0.0, 0.5, 1.0, 1.5, 2.25))
    )
    assert risen == []


def test_the_best_checkpoint_is_the_judges() -> None:
    watch = RewardHackingMonitor(MonitorLimits())
    assert watch.best() is None
    looked(watch, rates(0.5, 0.64, 0.66, 0.66, 0.6, rewards=(0.0, 1.0, 2.0, 3.0, 4.0)))
    assert watch.best() == 29, "the reward is highest at step 49; of equals the earlier one is nearer to the start"


def test_a_rule_can_be_left_out_or_made_to_warn() -> None:
    bad = SOUND | {"length": 400.0, "kl": 50.0}
    looks: list[Look] = [(0, SOUND, None), *((step, bad, None) for step in range(1, 5))]

    def told(**limits: Any) -> dict[str, bool]:
        return {alarm.rule: alarm.stop for alarm in looked(RewardHackingMonitor(MonitorLimits(**limits)), looks)}

    assert told() == {"kl": False, "kl_stop": True, "length": True}
    assert told(length=None, kl_stop=None) == {"kl": False}
    assert told(on_alarm="warn") == {"kl": False, "kl_stop": False, "length": False}
    assert told(stops=("kl",)) == {"kl": True, "kl_stop": False, "length": False}
    assert told(length=5.0)["kl_stop"]


def test_the_limits_are_a_group_of_settings() -> None:
    assert all(field.description for field in MonitorLimits.model_fields.values())
    assert MonitorLimits.model_validate(MonitorLimits(kl=None, stops=("kl",)).model_dump(mode="json")).stops == ("kl",)
    for wrong in ({"lenght": 2}, {"stops": ["wealth"]}, {"length": 0.9}, {"distinct": 1.5}, {"on_alarm": "shout"}):
        with pytest.raises(ValidationError):
            MonitorLimits.model_validate(wrong)
    bounds = set(get_args(Rule)) - {"win_rate", "reward_hacking", "not_finite"}
    assert bounds <= set(MonitorLimits.model_fields)


def test_the_figures_that_are_watched_exist() -> None:
    watch = RewardHackingMonitor(MonitorLimits())
    watch.look(0, {name: 0.5 for name in RESPONSE_METRICS | TRAINER_METRICS})
    assert set(watch.state()["start"]) <= set(RESPONSE_METRICS | TRAINER_METRICS)  # type: ignore[arg-type]
    assert {"kl", "reward", "length", "distinct_2", "openings", "responses"} <= set(watch.state()["start"])  # type: ignore[arg-type]


def test_missing_figures_say_nothing() -> None:
    looks: list[Look] = [(step, {}, held_out(step, 0.5)) for step in range(5)]
    assert looked(RewardHackingMonitor(MonitorLimits()), looks) == []


class Training:
    """A simulated training: 64 answers a step, and every ten steps a judge on 128 prompts that stay the same.

    The judge compares merits: the start's are drawn once, the policy's anew at every evaluation and better by `gain`;
    it likes length a little. Every 25th step or so is a spike.
    """

    def __init__(self, seed: int, *, games: int | None = None, steps: int = 200) -> None:
        self.rng, self.games, self.steps = random.Random(seed), games, steps
        self.start = [(self.rng.gauss(0, 1), self.rng.gauss(100, 40)) for _ in range(128)]
        self.spikes = {at + self.rng.randrange(20) for at in range(5, steps, 25)}

    def looks(self) -> Iterator[Look]:
        for step in range(self.steps):
            risen = min(1.0, step / 100)
            gamed = 0.0 if self.games is None else max(0.0, (step - self.games) / 60)
            yield step, self._figures(step, risen, gamed), self._held_out(step, risen, gamed)

    def _figures(self, step: int, risen: float, gamed: float) -> dict[str, float]:
        rng, spike = self.rng, 3.0 if step in self.spikes else 1.0
        length = (100 + 20 * risen) * (1 + gamed)
        lengths = sorted(max(1.0, rng.gauss(length, 0.6 * length)) for _ in range(64))
        return {
            "responses": 64.0,
            "length": mean(lengths) * spike,
            "length_p95": lengths[60] * spike,
            "distinct_2": rng.gauss(0.8 - 0.08 * risen - 0.2 * gamed, 0.02) / spike,
            "entropy": rng.gauss(1.2 - 0.5 * risen, 0.05) / spike,
            "truncated": self._share((0.05 + 0.3 * gamed) * spike),
            "openings": self._share((0.2 + 0.05 * risen + 0.3 * gamed) * spike),
            "refusals": self._share(0.1 * spike),
            "empty": self._share(0.01),
            "repetition": rng.gauss(0.03 + 0.05 * gamed, 0.01) * spike,
            "kl": mean([rng.gauss(6 * risen + 4 * gamed, 5) for _ in range(64)]) * spike,
            "reward": rng.gauss(risen + gamed, 0.1),
        }

    def _share(self, chance: float) -> float:
        return mean([float(self.rng.random() < chance) for _ in range(64)])

    def _held_out(self, step: int, risen: float, gamed: float) -> HeldOut | None:
        if step % 10:
            return None
        said, gaps = [], []
        for merit, length in self.start:
            gap = self.rng.gauss(100 + 20 * risen + 20 * gamed, 40) - length
            gain = 0.7 * risen - 1.2 * gamed
            said.append(sigmoid(3 * (self.rng.gauss(gain, 1) - merit) + 0.01 * gap))
            gaps.append(gap)
        found = length_controlled(said, gaps, resamples=200)
        return held_out(step, found.raw, found.raw_error).model_copy(
            update={"length_controlled": found.length_controlled, "interval": found.interval, "error": found.error}
        )


@pytest.mark.parametrize("seed", range(12))
def test_a_sound_training_is_left_in_peace(seed: int) -> None:
    watch = RewardHackingMonitor(MonitorLimits())
    assert looked(watch, list(Training(seed).looks())) == []
    best = watch.best()
    assert best is not None and best >= 50, "it got better"


@pytest.mark.parametrize("seed", range(6))
def test_a_training_that_games_its_reward_is_stopped(seed: int) -> None:
    """It begins at step 120; the reward goes on rising to the end, and at equal length the judge turns away."""
    watch = RewardHackingMonitor(MonitorLimits(length=None, distinct=None))
    found = looked(watch, list(Training(seed, games=120).looks()))
    first = min(alarm.step for alarm in found if alarm.stop)
    assert 120 < first <= 170
    stopped = {alarm.rule for alarm in found if alarm.stop}
    assert {"win_rate", "reward_hacking"} <= stopped
    best = watch.best()
    assert best is not None and 50 <= best <= 130
    by_length = looked(
        RewardHackingMonitor(MonitorLimits(win_rate_errors=None)), list(Training(seed, games=120).looks())
    )
    assert {"length", "distinct"} <= {alarm.rule for alarm in by_length if alarm.step > 120}
    assert not [alarm for alarm in by_length if alarm.step <= 120]


@pytest.mark.parametrize("every", [1, 7])
def test_a_resumed_watch_goes_on_exactly(every: int) -> None:
    """Its state goes through JSON every few steps; alarms, best and state are those of the watch that ran through."""
    looks = list(Training(3, games=90).looks())
    through = RewardHackingMonitor(MonitorLimits())
    wanted = [through.look(*look) for look in looks]
    assert sum(len(alarms) for alarms in wanted) >= 4
    watch, found = RewardHackingMonitor(MonitorLimits()), []
    for at, look in enumerate(looks):
        if at % every == 0:
            text = json.dumps(watch.state(), allow_nan=False)
            watch = RewardHackingMonitor(MonitorLimits())
            watch.restore(json.loads(text))
        found.append(watch.look(*look))
    assert found == wanted
    assert (watch.best(), watch.state()) == (through.best(), through.state())


def test_a_state_is_a_copy() -> None:
    watch = RewardHackingMonitor(MonitorLimits())
    watch.look(0, SOUND, held_out(0, 0.5))
    kept = json.dumps(watch.state())
    state = watch.state()
    other = RewardHackingMonitor(MonitorLimits())
    other.restore(state)
    looked(other, rates(0.6, 0.7))
    assert json.dumps(watch.state()) == json.dumps(state) == kept


def withheld(step: int, rate: float, error: float = 0.03) -> HeldOut:
    return held_out(step, rate, error).model_copy(
        update={"length_controlled": None, "interval": None, "error": None, "note": "would be extrapolated"}
    )


@pytest.mark.finding(3)
def test_a_policy_of_collapsed_answers_is_never_the_best() -> None:
    """Its answers shrink to a tenth, and a judge that likes length gives them little. Read off far from where the data
    are, that is a win rate at equal length above all earlier ones; it is withheld, and the plain one alarms."""
    rng, watch = random.Random(2), RewardHackingMonitor(MonitorLimits())
    start = [max(20.0, rng.gauss(200, 60)) for _ in range(128)]

    def look(step: int, factor: float, merit: float) -> list[Alarm]:
        gaps = [factor * rng.gauss(200, 60) - length for length in start]
        ease = [rng.gauss(0, 1) for _ in gaps]
        said = [sigmoid(merit + 0.02 * gap + each) for gap, each in zip(gaps, ease, strict=True)]
        found = length_controlled(said, gaps, resamples=100)
        assert (found.length_controlled is None) == (factor < 0.5)
        held = held_out(step, found.raw, found.raw_error).model_copy(
            update={"length_controlled": found.length_controlled, "interval": found.interval, "error": found.error}
        )
        return watch.look(step, SOUND, held)

    assert look(9, 1.0, 0.3) == look(19, 1.0, 0.8) == look(29, 1.0, 0.8) == []
    best = watch.best()
    alarms = look(39, 0.1, 0.8) + look(49, 0.1, 0.8)
    assert watch.best() == best and best in (19, 29)
    assert [alarm.rule for alarm in alarms] == ["win_rate"]
    assert "length-controlled" not in alarms[0].message and f"the weights of step {best}" in alarms[0].message


@pytest.mark.sibling("no-best-where-nothing-is-told-of-equal-length")
def test_without_any_figure_at_equal_length_there_is_no_best() -> None:
    watch = RewardHackingMonitor(MonitorLimits())
    looks: list[Look] = [
        (step, SOUND, withheld(step, rate)) for step, rate in ((9, 0.7), (19, 0.7), (29, 0.4), (39, 0.4))
    ]
    (alarm,) = looked(watch, looks)
    assert watch.best() is None
    assert alarm.message == (
        "the held-out win rate fell, in the mean of 2 evaluations, from 70.0% to 55.0% (bound 9.0%): "
        "go back to an earlier checkpoint"
    )
    again = RewardHackingMonitor(MonitorLimits())
    again.restore(json.loads(json.dumps(watch.state())))
    assert again.state() == watch.state()
