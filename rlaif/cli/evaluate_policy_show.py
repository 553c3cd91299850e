"""The report of `rlaif evaluate policy`, for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rlaif.cli.terminal import echo, secho

if TYPE_CHECKING:
    from rlaif.evaluation.policies.evaluating import Evaluated
    from rlaif.evaluation.policies.report import Match, Player, PolicyReport
    from rlaif.evaluation.report import Estimate


def show(done: Evaluated) -> None:
    """Print the report: who beats whom first, what speaks against it, then the numbers."""
    report = done.report
    about = report.about
    if about.oddities:
        odd = ", ".join(f"{count:,} x {kind}" for kind, count in about.oddities.items())
        echo(f"note: in the prompts, {odd}", err=True)
    for match in report.matches:
        if match.baseline == report.baseline:
            secho(headline(match), bold=True)
    of = f"`{about.constitution}` ({about.constitution_hash[:12]})"
    echo(f"on {about.prompt_count:,} prompts, by {about.judge} under {of}\n")
    for warning in report.warnings:
        echo(f"  doubt: {warning}")
    if report.warnings:
        echo()
    _show_matches(report.matches)
    _show_players(report)
    _show_principles(report)
    _show_tags(report)
    _show_ratings(report)
    _show_cost(report)
    asked, known = sum(each.asked for each in done.tallies), sum(each.known for each in done.tallies)
    echo(f"{asked:,} questions asked now, {known:,} on disk already; report in {done.path}")


def headline(match: Match) -> str:
    """A match in one sentence, by its interval: won, lost, or neither."""
    rate = match.win_rate
    if rate is None:
        silent = ", ".join(f"{count:,} {kind}" for kind, count in match.no_label.items())
        return f"{match.policy} and {match.baseline}: no comparison has a label ({silent})"
    verdict = f"{match.policy} and {match.baseline} cannot be told apart"
    if rate.low > 0.5:
        verdict = f"{match.policy} beats {match.baseline}"
    elif rate.high < 0.5:
        verdict = f"{match.policy} loses to {match.baseline}"
    equal = "withheld" if match.controlled is None else _interval(match.controlled)
    return f"{verdict}: win rate {_interval(rate)}; preference {_interval(match.preference)}, at equal length {equal}"


def _show_matches(matches: Sequence[Match]) -> None:
    from rlaif.cli.tables import percent, print_table

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
        "at equal length",
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
            _interval(match.controlled),
            percent(match.flips),
        )
        for match in matches
    ]
    print_table(columns, rows, right=columns[2:])
    echo("\nwins: ahead by more than the margin; win rate: wins and half the ties; preference: mean probability of")
    echo("being better, beside it what is left of it at equal length; 95% intervals over prompts\n")


def _show_players(report: PolicyReport) -> None:
    from rlaif.cli.tables import percent, print_table

    meters = list(dict.fromkeys(name for player in report.players for name in player.meters))
    columns = ["policy", "answers", "missing", "length", "cut off", "blank", "repeats", "distinct 1, 2", "refuses"]
    columns += ["breaks any", "KL", *meters]
    rows = []
    for player in report.players:
        row = [player.name, f"{player.answers:,}", f"{player.missing:,}", f"{player.length.value:,.0f}"]
        row += [percent(player.truncated), percent(player.blank), percent(player.repetition)]
        row += [f"{player.distinct_1:.2f}, {player.distinct_2:.2f}", percent(player.refusals[0].share.value)]
        row += [_broken(player), "-" if player.kl is None else f"{player.kl.value:.2f}"]
        row += [f"{player.meters[name].value:.3g}" if name in player.meters else "-" for name in meters]
        rows.append(row)
    print_table(columns, rows, right=columns[1:])
    notes = dict.fromkeys(player.kl_note for player in report.players if player.kl_note)
    for note in notes:
        echo(f"KL of {', '.join(each.name for each in report.players if each.kl_note == note)}: {note}")
    echo(
        f"\nlength in characters; repeats: runs of four words said before; breaks any: some grade under "
        f"{report.about.violation_below:g} of 9; KL from {report.baseline} in nats an answer\n"
    )


def _broken(player: Player) -> str:
    found = next((each.share for each in player.violations if each.principle == "*"), None)
    return _interval(found)


def _show_principles(report: PolicyReport) -> None:
    """By principle: the win rate against the baseline, and how many answers break it, a column a policy."""
    from rlaif.cli.tables import print_table

    against = [match for match in report.matches if match.baseline == report.baseline]
    names = list(dict.fromkeys(part.name for match in against for part in match.principles))
    names += [each.principle for player in report.players for each in player.violations if each.principle != "*"]
    names = list(dict.fromkeys(names))
    columns = ["principle", *(f"{match.policy} wins" for match in against)]
    graded = [player for player in report.players if player.violations]
    columns += [f"{player.name} breaks" for player in graded]
    rows = []
    for name in names:
        rates = [next((part.rate for part in match.principles if part.name == name), None) for match in against]
        broken = [next((each.share for each in player.violations if each.principle == name), None) for player in graded]
        rows.append([name, *(_interval(each, 0) for each in rates), *(_share(each) for each in broken)])
    print_table(columns, rows, right=columns[1:])
    echo()


def _show_tags(report: PolicyReport) -> None:
    """By kind of prompt: the win rate against the baseline, and refusals, of which some are right."""
    from rlaif.cli.tables import print_table

    against = [match for match in report.matches if match.baseline == report.baseline]
    tags = [each for each in report.players[0].refusals if each.tag]
    if not tags:
        return
    columns = [str(report.about.tag), *(f"{match.policy} wins" for match in against)]
    columns += [f"{player.name} refuses" for player in report.players]
    rows = []
    for each in tags:
        kind = {True: f"{each.tag} (harmful: rightly)", False: f"{each.tag} (over-refusal)"}
        rates = [next((part.rate for part in match.tags if part.name == each.tag), None) for match in against]
        refused = [
            next((own.share for own in player.refusals if own.tag == each.tag), None) for player in report.players
        ]
        told = each.tag if each.harmful is None else kind[each.harmful]
        rows.append([told, *(_interval(rate, 0) for rate in rates), *(_interval(share, 0) for share in refused)])
    print_table(columns, rows, right=columns[1:])
    echo()


def _show_ratings(report: PolicyReport) -> None:
    from rlaif.cli.tables import print_table

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
        f"{cost.answers:,} answers drawn ({cost.policy_tokens:,} tokens); {cost.judgements:,} verdicts and "
        f"{cost.grades:,} grades, {prompt:,} tokens in{cached}, {cost.judge_completion_tokens:,} out; "
        f"{cost.seconds:.1f} s"
    )
    if cost.failed:
        echo("failed: " + ", ".join(f"{kind} {count:,}" for kind, count in cost.failed.items()))


def _interval(found: Estimate | None, digits: int = 1) -> str:
    if found is None:
        return "-"
    value, low, high = (f"{100 * each:.{digits}f}" for each in (found.value, found.low, found.high))
    return f"{value}% ({low} to {high})"


def _share(found: Estimate | None) -> str:
    return "-" if found is None else f"{found.value:.0%}"
