"""The reports of `rlaif evaluate judge`, `policy` and `reward` as text on the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rlaif.cli.terminal import echo, secho

if TYPE_CHECKING:
    from rlaif.evaluation.judge import EvaluatedJudge
    from rlaif.evaluation.policy import EvaluatedPolicies
    from rlaif.evaluation.reports import (
        BestOf,
        BestOfN,
        Canary,
        Gold,
        Group,
        JudgeReport,
        Match,
        Measures,
        PolicyMetrics,
        PolicyReport,
        RewardReport,
    )
    from rlaif.evaluation.reward_model import EvaluatedReward
    from rlaif.stats import Estimate

_COLOURS = {"fit": "green", "doubtful": "yellow", "unfit": "red"}
_WIDTH = 21


def show_judge(done: EvaluatedJudge) -> None:
    """Print the report: the verdict first, its reasons, then the numbers."""
    report = done.report
    about, measures = report.about, report.measures
    if about.input_issues:
        issues = ", ".join(f"{count:,} x {kind}" for kind, count in about.input_issues.items())
        echo(f"note: in the gold pairs, {issues}", err=True)
    echo(f"{about.judge} by `{about.constitution}` ({about.constitution_hash[:12]}) on {about.gold}\n")
    secho(report.verdict.level.upper(), fg=_COLOURS[report.verdict.level], bold=True)
    for reason in report.verdict.reasons:
        echo(f"  {reason.level}: {reason.text}")
    echo()
    for name, text in _numbers(measures):
        echo(f"{name:<{_WIDTH}} {text}")
    _show_groups("subset", measures.subsets)
    _show_groups("principle", measures.principles)
    _show_canaries(measures.canaries)
    _show_temperature(report)
    _show_errors(report)
    asked, known = sum(each.asked for each in done.tallies), sum(each.known for each in done.tallies)
    echo(f"\n{asked:,} calls, {known:,} cached; report in {done.path}")


def _numbers(measures: Measures) -> Iterator[tuple[str, str]]:
    unlabeled = ", ".join(f"{count:,} {kind}" for kind, count in measures.no_label.items())
    yield (
        "pairs with a label",
        f"{measures.labelled:,} of {measures.pairs:,}" + (f" ({unlabeled})" if unlabeled else ""),
    )
    if measures.accuracy is None:
        return
    yield "accuracy", str(measures.accuracy)
    for each in measures.baselines:
        yield (
            f"  {each.name}",
            str(each.accuracy)
            + (
                "  by construction, in both orders"
                if each.name.startswith("first") and measures.flips is not None
                else ""
            ),
        )
    if measures.gain is not None and measures.best_baseline is not None:
        gain = measures.gain
        points = f"{100 * gain.value:+.1f} ({100 * gain.low:+.1f} to {100 * gain.high:+.1f}) points"
        yield f"  over `{measures.best_baseline.name}`", points
    yield "one order alone", str(measures.single_order)
    yield from _ties(measures)
    if measures.kept is not None:
        yield "labels a run keeps", f"{measures.kept.pairs:,}, of them right {measures.kept}"
    yield from _leanings(measures)
    yield from _trust(measures)
    yield "cost", _cost(measures)


def _ties(measures: Measures) -> Iterator[tuple[str, str]]:
    three = measures.three_way
    if three is not None:
        kappa = "" if three.kappa is None else f", kappa {three.kappa:.3f}"
        yield f"with {three.ties:,} gold ties", f"{three.agreement} of {three.agreement.pairs:,} the same{kappa}"


def _leanings(measures: Measures) -> Iterator[tuple[str, str]]:
    if measures.flips is not None:
        yield "flips", str(measures.flips)
    if measures.slot is not None:
        bias = measures.slot.bias
        text = "" if bias is None else f"; bias {bias.value:+.2f} ({bias.low:+.2f} to {bias.high:+.2f}) logits"
        yield "verdicts for slot 1", f"{measures.slot.first}{text}"
    if measures.length.shorter is not None:
        yield "better is shorter", f"right {measures.length.shorter} of {measures.length.shorter.pairs:,}"
    if measures.length.longer is not None:
        yield "better is longer", f"right {measures.length.longer} of {measures.length.longer.pairs:,}"
    slope = measures.length.slope
    if slope is not None:
        yield "length slope", f"{slope.value:+.2f} ({slope.low:+.2f} to {slope.high:+.2f}) logits per log length ratio"


def _trust(measures: Measures) -> Iterator[tuple[str, str]]:
    if measures.calibration is not None:
        each = measures.calibration
        text = f"Brier {each.brier:.3f}, log loss {each.log_loss:.3f} (one half: 0.25, 0.693)"
        yield "calibration", f"error {each.error_beside_chance}, {text}"
    if measures.mass is not None:
        yield (
            "label mass",
            f"{measures.mass.mean:.3f}; {measures.mass.below:.1%} of judgements under {measures.mass.least:g}",
        )


def _cost(measures: Measures) -> str:
    cost = measures.cost
    # vLLM's batch route does not report cached tokens: the text then leaves them out.
    cached = f" ({cost.cached_tokens / cost.prompt_tokens:.0%} cached)" if cost.cached_tokens else ""
    text = f"{cost.calls:,} calls, {cost.prompt_tokens:,} tokens in{cached}, {cost.completion_tokens:,} out"
    if cost.calls_per_1000 is None or cost.prompt_tokens_per_1000 is None:
        return text
    seconds = "" if cost.seconds_per_1000 is None else f", {cost.seconds_per_1000:,.0f} s"
    return f"{text}; 1,000 labels: {cost.calls_per_1000:,.0f} calls, {cost.prompt_tokens_per_1000:,.0f} tokens{seconds}"


def _show_groups(name: str, groups: Sequence[Group]) -> None:
    from rlaif.cli.terminal import print_table

    if not groups:
        return
    more = ("flips", "slot 1") if name == "subset" else ()
    columns = (name, "pairs", "accuracy", "95%", *more)
    echo()
    print_table(columns, [_row(each)[: len(columns)] for each in groups], right=columns[1:])


def _row(group: Group) -> tuple[str, ...]:
    from rlaif.cli.terminal import percent

    first = None if group.first is None else group.first.value
    return group.name, f"{group.pairs:,}", *_with_interval(group.accuracy), percent(group.flips), percent(first)


def _with_interval(estimate: Estimate | None) -> tuple[str, str]:
    """The value and its interval, a word each, so that no column breaks them."""
    return ("-", "-") if estimate is None else (f"{estimate.value:.0%}", f"{estimate.low:.0%}-{estimate.high:.0%}")


def _show_canaries(canaries: Sequence[Canary]) -> None:
    from rlaif.cli.terminal import percent, print_table

    if not canaries:
        return
    bare = {each.kind: each.wins for each in canaries if not each.fenced}
    rows = []
    for each in canaries:
        if each.fenced:
            first, second = (None if side is None else side.value for side in (each.first, each.second))
            unfenced = _with_interval(bare[each.kind]) if each.kind in bare else ("", "")
            rows.append((each.kind, *_with_interval(each.wins), percent(first), percent(second), *unfenced))
    echo(f"\nVerdicts won against the better response of {canaries[0].pairs} pairs by responses that must not win:\n")
    columns = ("canary", "wins", "95%", "1st", "2nd", "unfenced", "95% ")
    print_table(columns, rows, right=columns[1:])
    echo("\n1st, 2nd: in that slot; unfenced: the responses without the delimiters that a run puts around them")


def _show_errors(report: JudgeReport) -> None:
    for each in report.shared_errors:
        echo(
            f"\nErrors go together with those of {each.judge} by {each.correlation:+.2f} ({each.pairs:,} pairs): both "
            f"are worth {each.worth:.1f} independent judges."
        )


def _show_temperature(report: JudgeReport) -> None:
    fit = report.measures.temperature
    if fit is None:
        return
    echo(
        f"\nA temperature fitted on one half of the pairs and measured on the other, both ways: calibration error "
        f"{fit.error_before:.3f} -> {fit.error_after:.3f}, log loss {fit.log_loss_before:.3f} -> "
        f"{fit.log_loss_after:.3f}."
    )
    if fit.bounded:
        echo("On all pairs together the best one is beyond any bound: there is nothing to set.")
    elif fit.helps:
        echo(f"For the run file:\n\ncompare: {{temperature: {fit.temperature:.3g}}}")
    else:
        echo("It does not help: leave `compare.temperature` as it is.")


def show_policies(done: EvaluatedPolicies) -> None:
    """Print the report: the headline of each match, the warnings, then the numbers."""
    report = done.report
    about = report.about
    if about.input_issues:
        issues = ", ".join(f"{count:,} x {kind}" for kind, count in about.input_issues.items())
        echo(f"note: in the prompts, {issues}", err=True)
    for match in report.matches:
        if match.baseline == report.baseline:
            secho(headline(match), bold=True)
    of = f"`{about.constitution}` ({about.constitution_hash[:12]})"
    echo(f"on {about.prompt_count:,} prompts, by {about.judge} under {of}\n")
    for warning in report.warnings:
        echo(f"  warning: {warning}")
    if report.warnings:
        echo()
    _show_matches(report.matches)
    _show_metrics(report)
    _show_principles(report)
    _show_tags(report)
    _show_ratings(report)
    _show_cost(report)
    asked, known = sum(each.asked for each in done.tallies), sum(each.known for each in done.tallies)
    echo(f"{asked:,} calls, {known:,} cached; report in {done.path}")


def headline(match: Match) -> str:
    """A match in one sentence, by its interval: won, lost, or neither."""
    rate = match.win_rate
    if rate is None:
        unlabeled = ", ".join(f"{count:,} {kind}" for kind, count in match.no_label.items())
        return f"{match.policy} and {match.baseline}: no comparison has a label ({unlabeled})"
    verdict = f"{match.policy} and {match.baseline} do not differ significantly"
    if rate.low > 0.5:
        verdict = f"{match.policy} beats {match.baseline}"
    elif rate.high < 0.5:
        verdict = f"{match.policy} loses to {match.baseline}"
    controlled = "withheld" if match.length_controlled is None else _interval(match.length_controlled)
    rates = f"win rate {_interval(rate)}; preference {_interval(match.preference)}"
    return f"{verdict}: {rates}, length-controlled win rate {controlled}"


def _show_matches(matches: Sequence[Match]) -> None:
    from rlaif.cli.terminal import percent, print_table

    columns = (
        "policy",
        "against",
        "pairs",
        "no label",
        "wins",
        "ties",
        "losses",
        "win rate",
        "preference",
        "LC win rate",
        "flips",
    )
    rows = [
        (
            match.policy,
            match.baseline,
            f"{match.compared:,}",
            f"{sum(match.no_label.values()):,}",
            *(percent(each.value if each else None) for each in (match.wins, match.ties, match.losses)),
            _interval(match.win_rate),
            _interval(match.preference),
            _interval(match.length_controlled),
            percent(match.flips),
        )
        for match in matches
    ]
    print_table(columns, rows, right=columns[2:])
    echo("\nwins: ahead by more than the margin; win rate: wins and half the ties; preference: mean probability of")
    echo("being better; LC win rate: length-controlled preference; 95% intervals over prompts\n")


def _show_metrics(report: PolicyReport) -> None:
    from rlaif.cli.terminal import percent, print_table

    metrics = list(dict.fromkeys(name for policy in report.policies for name in policy.metrics))
    columns = ["policy", "responses", "missing", "length", "truncated", "blank", "repeats", "distinct 1, 2", "refuses"]
    columns += ["violation rate", "KL", *metrics]
    rows = []
    for policy in report.policies:
        row = [policy.name, f"{policy.answers:,}", f"{policy.missing:,}", f"{policy.length.value:,.0f}"]
        row += [percent(policy.truncated), percent(policy.blank), percent(policy.repetition)]
        row += [f"{policy.distinct_1:.2f}, {policy.distinct_2:.2f}", percent(policy.refusals[0].share.value)]
        row += [_violations(policy), "-" if policy.kl is None else f"{policy.kl.value:.2f}"]
        row += [f"{policy.metrics[name].value:.3g}" if name in policy.metrics else "-" for name in metrics]
        rows.append(row)
    print_table(columns, rows, right=columns[1:])
    notes = dict.fromkeys(policy.kl_note for policy in report.policies if policy.kl_note)
    for note in notes:
        echo(f"KL of {', '.join(each.name for each in report.policies if each.kl_note == note)}: {note}")
    echo(
        f"\nlength in characters; repeats: four-word sequences that occurred before; violation rate: some grade under "
        f"{report.about.violation_below:g} of 9; KL to {report.baseline} in nats per response\n"
    )


def _violations(policy: PolicyMetrics) -> str:
    rate = next((each.share for each in policy.violations if each.principle == "*"), None)
    return _interval(rate)


def _show_principles(report: PolicyReport) -> None:
    """By principle: the win rate against the baseline and the violation rate, a column per policy."""
    from rlaif.cli.terminal import print_table

    against = [match for match in report.matches if match.baseline == report.baseline]
    names = list(dict.fromkeys(part.name for match in against for part in match.principles))
    names += [each.principle for policy in report.policies for each in policy.violations if each.principle != "*"]
    names = list(dict.fromkeys(names))
    columns = ["principle", *(f"{match.policy} wins" for match in against)]
    graded = [policy for policy in report.policies if policy.violations]
    columns += [f"{policy.name} violates" for policy in graded]
    rows = []
    for name in names:
        rates = [next((part.rate for part in match.principles if part.name == name), None) for match in against]
        broken = [next((each.share for each in policy.violations if each.principle == name), None) for policy in graded]
        rows.append([name, *(_interval(each, 0) for each in rates), *(_share(each) for each in broken)])
    print_table(columns, rows, right=columns[1:])
    echo()


def _show_tags(report: PolicyReport) -> None:
    """By kind of prompt: the win rate against the baseline, and refusals, of which some are right."""
    from rlaif.cli.terminal import print_table

    against = [match for match in report.matches if match.baseline == report.baseline]
    tags = [each for each in report.policies[0].refusals if each.tag]
    if not tags:
        return
    columns = [str(report.about.tag), *(f"{match.policy} wins" for match in against)]
    columns += [f"{policy.name} refuses" for policy in report.policies]
    rows = []
    for each in tags:
        kind = {True: f"{each.tag} (harmful: rightly)", False: f"{each.tag} (over-refusal)"}
        rates = [next((part.rate for part in match.tags if part.name == each.tag), None) for match in against]
        refused = [
            next((refusal.share for refusal in policy.refusals if refusal.tag == each.tag), None)
            for policy in report.policies
        ]
        text = each.tag if each.harmful is None else kind[each.harmful]
        rows.append([text, *(_interval(rate, 0) for rate in rates), *(_interval(share, 0) for share in refused)])
    print_table(columns, rows, right=columns[1:])
    echo()


def _show_ratings(report: PolicyReport) -> None:
    from rlaif.cli.terminal import print_table

    if not report.ratings:
        return
    columns = ("rating", "log-strength", "95%", "Elo")
    rows = [
        (
            each.name,
            f"{each.strength.value:+.2f}",
            f"{each.strength.low:+.2f} to {each.strength.high:+.2f}",
            f"{each.elo:.0f}",
        )
        for each in report.ratings
    ]
    print_table(columns, rows, right=columns[1:])
    echo()


def _show_cost(report: PolicyReport) -> None:
    cost = report.cost
    prompt = cost.judge_prompt_tokens
    cached = f" ({cost.judge_cached_tokens / prompt:.0%} cached)" if cost.judge_cached_tokens else ""
    echo(
        f"{cost.answers:,} responses sampled ({cost.policy_tokens:,} tokens); {cost.judgements:,} verdicts and "
        f"{cost.grades:,} grades, {prompt:,} tokens in{cached}, {cost.judge_completion_tokens:,} out; "
        f"{cost.seconds:.1f} s"
    )
    if cost.failed:
        echo("failed: " + ", ".join(f"{kind} {count:,}" for kind, count in cost.failed.items()))


def _interval(estimate: Estimate | None, digits: int = 1) -> str:
    if estimate is None:
        return "-"
    value, low, high = (f"{100 * each:.{digits}f}" for each in (estimate.value, estimate.low, estimate.high))
    return f"{value}% ({low} to {high})"


def _share(estimate: Estimate | None) -> str:
    return "-" if estimate is None else f"{estimate.value:.0%}"


def show_reward(done: EvaluatedReward) -> None:
    """Print the report: the headline, the warnings, then the numbers."""
    report = done.report
    if report.gold is not None and report.gold.input_issues:
        issues = ", ".join(f"{count:,} x {kind}" for kind, count in report.gold.input_issues.items())
        echo(f"note: in the gold pairs, {issues}", err=True)
    for text, colour in _headlines(report):
        secho(text, fg=colour, bold=True)
    for warning in report.warnings:
        echo(f"  warning: {warning}")
    if report.gold is not None:
        echo("")
        for name, text in _reward_numbers(report.gold):
            echo(f"{name:<{_WIDTH}} {text}")
        _show_reward_groups(report.gold.subsets)
    if report.best_of_n is not None:
        _show_best_of(report.best_of_n)
    scored = [each for each in done.tallies if each.stage in ("gold pairs", "rewards")]
    asked = [each for each in done.tallies if each not in scored]
    counts = f"{sum(each.asked for each in scored):,} rewards computed"
    counts += f", {sum(each.asked for each in asked):,} calls" if asked else ""
    known = sum(each.known for each in done.tallies)
    echo(f"\n{counts}, {known:,} cached; report in {done.path}")


def _headlines(report: RewardReport) -> Iterator[tuple[str, str]]:
    gold, best = report.gold, report.best_of_n
    if gold is not None and gold.accuracy is not None:
        over = ""
        if gold.gain is not None and gold.best_baseline is not None:
            over = f", {100 * gold.gain.value:+.1f} points over `{gold.best_baseline.name}`"
        colour = "green" if gold.beats_baselines else "red"
        yield f"{report.model}: right in {gold.accuracy.value:.1%} of {gold.pairs:,} pairs{over}", colour
    if best is not None and best.overoptimised:
        yield f"{report.model}: over-optimized beyond best-of-{best.best_n}", "red"
    elif best is not None:
        yield f"{report.model}: no over-optimization shown up to best-of-{best.points[-1].n}", "green"


def _reward_numbers(gold: Gold) -> Iterator[tuple[str, str]]:
    yield "gold pairs", f"{gold.pairs:,} of {gold.path}"
    yield "accuracy", str(gold.accuracy)
    for each in gold.baselines:
        yield f"  {each.name}", str(each.accuracy)
    if gold.gain is not None and gold.best_baseline is not None:
        gain = gold.gain
        points = f"{100 * gain.value:+.1f} ({100 * gain.low:+.1f} to {100 * gain.high:+.1f}) points"
        yield f"  over `{gold.best_baseline.name}`", points
    if gold.margin is not None:
        yield "margin", _signed(gold.margin)
    yield from _reward_trust(gold)
    yield from _length(gold)


def _reward_trust(gold: Gold) -> Iterator[tuple[str, str]]:
    calibration, fit = gold.calibration, gold.temperature
    if calibration is not None:
        losses = f"Brier {calibration.brier:.3f}, log loss {calibration.log_loss:.3f} (one half: 0.25, 0.693)"
        yield "calibration", f"error {calibration.error_beside_chance}, {losses}"
    if fit is not None and fit.helps:
        text = f"divide rewards by {fit.temperature:.3g}: error {fit.error_before:.3f} -> {fit.error_after:.3f}"
        yield "  to fix it", f"{text} on pairs that it was not fitted on"


def _length(gold: Gold) -> Iterator[tuple[str, str]]:
    if gold.length_correlation is not None:
        yield "reward and length", f"correlation {gold.length_correlation:+.2f}"
    for name, accuracy in (("better is shorter", gold.length.shorter), ("better is longer", gold.length.longer)):
        if accuracy is not None:
            yield name, f"right {accuracy} of {accuracy.pairs:,}"
    if gold.length.slope is not None:
        yield "length slope", f"{_signed(gold.length.slope)} reward per log length ratio"


def _signed(estimate: Estimate) -> str:
    return f"{estimate.value:+.2f} ({estimate.low:+.2f} to {estimate.high:+.2f})"


def _show_reward_groups(groups: Sequence[Group]) -> None:
    from rlaif.cli.terminal import print_table

    if not groups:
        return
    echo("")
    columns = ("subset", "pairs", "accuracy", "95%")
    print_table(columns, [_reward_row(each) for each in groups], right=columns[1:])


def _reward_row(group: Group) -> tuple[str, ...]:
    accuracy = group.accuracy
    text = ("-", "-") if accuracy is None else (f"{accuracy.value:.0%}", f"{accuracy.low:.0%}-{accuracy.high:.0%}")
    return group.name, f"{group.pairs:,}", *text


def _show_best_of(result: BestOfN) -> None:
    from rlaif.cli.terminal import print_table

    echo(
        f"\nBest of n by the reward, over {result.prompts:,} prompts with {result.samples} responses of {result.policy}"
    )
    echo(f"Other measure: {result.measure}")
    if result.left_out:
        echo("Left out: " + ", ".join(f"{count:,} prompts: {why}" for why, count in result.left_out.items()))
    echo("")
    columns = ("n", "KL", "reward", "95%", "other", "95% ", "characters")
    print_table(columns, [_point(each) for each in result.points], right=columns)
    echo("\nKL in nats; reward in standard deviations above the mean response")
    if result.drop is not None:
        fall = f"{result.drop.value:.2f} ({result.drop.low:.2f} to {result.drop.high:.2f})"
        echo(f"From n = {result.best_n} to n = {result.points[-1].n} the other measure falls by {fall}")


def _point(point: BestOf) -> tuple[str, ...]:
    def cells(estimate: Estimate) -> tuple[str, str]:
        return f"{estimate.value:.2f}", f"{estimate.low:.2f} to {estimate.high:.2f}"

    return f"{point.n}", f"{point.kl:.2f}", *cells(point.reward), *cells(point.gold), f"{point.length:.0f}"
