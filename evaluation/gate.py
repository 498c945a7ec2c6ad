"""Gate: rules that scores must keep, each decided beyond the noise or not at all; what lets a pipeline say no.

A rule is one of three. A limit: the mean `at_least` or `at_most` so much. A margin: tuned minus base, paired, `at_least`
so much. A fall: against another document's scores, none as large as `catch`. A mean that misses its limit by less than
the noise band is undecided, not failed. A fall fails where it is larger than both the band and half of `catch`, and
passes only where a fall of `catch` would have been caught 19 times in 20. The bands of all rules together let equal
models fail one time in twenty at most (Bonferroni).
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from csm.errors import CsmError
from evaluation.compare import FEWEST_TEXTS
from evaluation.directions import DIRECTIONS
from evaluation.noise import Noise
from evaluation.score import Scores, SystemScores

Verdict = Literal["passed", "failed", "undecided"]
FALSE_ALARMS, MISSES = 0.04, 0.05


@dataclass(frozen=True)
class Rule:
    """One thing that must hold.

    Args:
        metric: one of `evaluation.directions.DIRECTIONS`.
        at_least, at_most: the limit of the system's mean, or of its margin over the base where `over_base`.
        over_base: whether limits hold for tuned minus base rather than for the mean.
        catch: the fall against the baseline that must not pass; a change either way where no way is better.
        system: whose scores: `best`, or a system's name.
        band: the noise of the rule's figure, in place of a calibrated one.
    """

    metric: str
    at_least: float | None = None
    at_most: float | None = None
    over_base: bool = False
    catch: float | None = None
    system: str = "best"
    band: float | None = None

    @property
    def title(self) -> str:
        """The rule in a few words."""
        if self.catch is not None:
            return f"{self.metric}: no {'fall' if DIRECTIONS[self.metric] else 'change'} of {self.catch:g}"
        what = f"{self.metric} over the base" if self.over_base else self.metric
        limits = [("at least", self.at_least), ("at most", self.at_most)]
        return f"{what}: {' and '.join(f'{name} {value:g}' for name, value in limits if value is not None)}"


@dataclass(frozen=True)
class Result:
    """How a rule went, in one line."""

    rule: Rule
    verdict: Verdict
    line: str


def read_rules(path: str | Path) -> list[Rule]:
    """The `[[rule]]` tables of a TOML file.

    Raises:
        CsmError: the file is missing or no TOML, holds no rule, or a rule that says nothing that can be decided.
    """
    path = Path(path)
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise CsmError(f"{path} is not there.", "Write [[rule]] tables into a TOML file.") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise CsmError(f"{path} cannot be read as TOML ({error}).") from error
    tables = document.get("rule")
    if not isinstance(tables, list) or not tables or set(document) != {"rule"}:
        raise CsmError(f"{path} holds no rules, or more than rules.", "Write one [[rule]] table for each.")
    return [_rule(path, number, table) for number, table in enumerate(tables, 1)]


def _rule(path: Path, number: int, table: Any) -> Rule:
    known = {spec.name: str(spec.type) for spec in fields(Rule)}
    place = f"{path}, rule {number},"
    if not isinstance(table, dict):
        raise CsmError(f"{place} is no table.")
    if unknown := sorted(set(table) - set(known)):
        raise CsmError(f"{place} has the unknown key {unknown[0]}.", f"Known are {', '.join(known)}.")
    for key, value in table.items():
        kind = known[key]
        fits = isinstance(value, bool if kind == "bool" else str if kind == "str" else (int, float))
        if (
            not fits
            or (isinstance(value, bool) and kind != "bool")
            or (kind.startswith("float") and not np.isfinite(value))
        ):
            raise CsmError(f"{place} sets {key} to {value!r}.", "Numbers are plain, words stand in quotes.")
    if table.get("metric") not in DIRECTIONS:
        raise CsmError(f"{place} names no known metric.", f"Known are {', '.join(DIRECTIONS)}.")
    rule = Rule(**table)
    if rule.at_least is not None and rule.at_most is not None and rule.at_least > rule.at_most:
        raise CsmError(f"{place} asks for at least {rule.at_least:g} and at most {rule.at_most:g}: nothing is both.")
    limits = rule.at_least is not None or rule.at_most is not None
    if limits == (rule.catch is not None) or (rule.over_base and not limits):
        raise CsmError(f"{place} needs either at_least or at_most, or catch.")
    if (rule.catch is not None and rule.catch <= 0) or (rule.band is not None and rule.band < 0):
        raise CsmError(f"{place} has a size below 0.", "catch and band are sizes.")
    return rule


def judge(
    rules: Sequence[Rule], scores: Scores, baseline: Scores | None = None, noise: Mapping[str, Noise] | None = None
) -> list[Result]:
    """Every rule against the scores.

    Args:
        rules: what must hold.
        scores: what is judged.
        baseline: earlier scores, for rules that catch a fall.
        noise: from `evaluation.noise.calibrate`, by metric.

    Raises:
        CsmError: a rule catches a fall and there is no baseline, asks for a margin over a base that was not scored or
            is what is judged, or names a system that was not scored.
    """
    tail = FALSE_ALARMS / max(len(rules), 1)
    found = []
    for rule in rules:
        system = system_of(scores, rule.system)
        known = (noise or {}).get(rule.metric)
        if rule.catch is None:
            verdict, why = _limit(rule, scores, system, known, tail)
        elif baseline is None:
            raise CsmError(f"The rule {rule.title!r} needs earlier scores.", "Give them with --baseline.")
        else:
            verdict, why = _fall(rule, system, system_of(baseline, rule.system), known, tail)
        found.append(Result(rule, verdict, f"{verdict.upper()}  {rule.title}  ({system.name}: {why})"))
    return found


def exit_code(results: Sequence[Result]) -> int:
    """0 where all passed, 3 where one failed, 4 where none failed and one could not be decided."""
    verdicts = {result.verdict for result in results}
    return 3 if "failed" in verdicts else 4 if "undecided" in verdicts else 0


def system_of(scores: Scores, name: str) -> SystemScores:
    """The system of a name; `best` is the best one, or the only one.

    Raises:
        CsmError: there is none.
    """
    wanted = scores.best if name == "best" else name
    if name == "best" and wanted is None and len(scores.systems) == 1:
        return scores.systems[0]
    for system in scores.systems:
        if system.name == wanted:
            return system
    names = ", ".join(system.name for system in scores.systems)
    raise CsmError(f"The scores hold no system {name!r}.", f"They hold {names}." if names else None)


def _values(system: SystemScores, metric: str) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for row in system.samples:
        if row.get(metric) is not None:
            found.setdefault((row["text"] or row["name"]).strip(), []).append(row[metric])
    return found


def _mean(values: Mapping[str, list[float]]) -> tuple[float, float]:
    flat = [value for each in values.values() for value in each]
    return float(np.mean(flat)), len(flat)


def _mean_of_texts(values: Mapping[str, list[float]], texts: Sequence[str]) -> tuple[float, float]:
    """The mean, each text counted once, and over how many samples, evenly spread, a mean is as noisy.

    So two sides that lack other samples of a text do not differ by how hard the texts are.
    """
    means, shares = [np.mean(values[text]) for text in texts], [1 / len(values[text]) for text in texts]
    return float(np.mean(means)), len(texts) ** 2 / sum(shares)


def _limit(rule: Rule, scores: Scores, system: SystemScores, noise: Noise | None, tail: float) -> tuple[Verdict, str]:
    values = _values(system, rule.metric)
    if len(values) < FEWEST_TEXTS:
        return "undecided", f"{len(values)} texts have this score, and it takes {FEWEST_TEXTS}"
    value, samples = _mean(values)
    deviation = noise.of_mean(samples) if noise else None
    if rule.over_base:
        base = next((one for one in scores.systems if one.kind == "base"), None)
        if base is None or base is system:
            what = "the scores hold no base" if base is None else f"{system.name} is the base"
            raise CsmError(f"The rule {rule.title!r} has nothing to compare with: {what}.")
        theirs = _values(base, rule.metric)
        shared = sorted(set(theirs) & set(values))
        if len(shared) < FEWEST_TEXTS:
            return "undecided", f"{len(shared)} texts have this score on both sides, and it takes {FEWEST_TEXTS}"
        (mine, samples), (other, others) = (_mean_of_texts(part, shared) for part in (values, theirs))
        value, deviation = mine - other, noise.of_difference(samples, others) if noise else None
    band = rule.band if rule.band is not None else _band(noise, deviation, tail)
    miss = max((rule.at_least - value) if rule.at_least is not None else -np.inf,
               (value - rule.at_most) if rule.at_most is not None else -np.inf)  # fmt: skip
    shown = f"{value:.4g}"
    if miss <= 0:
        return "passed", shown
    if band is None:
        return "undecided", f"{shown} misses it by {miss:.3g}, and the noise is not known: run csm evaluate calibrate"
    if miss > band:
        return "failed", f"{shown} misses it by {miss:.3g}, more than the noise band of {band:.3g}"
    return "undecided", f"{shown} misses it by {miss:.3g}, within the noise band of {band:.3g}: take more samples"


def _fall(
    rule: Rule, system: SystemScores, earlier: SystemScores, noise: Noise | None, tail: float
) -> tuple[Verdict, str]:
    assert rule.catch is not None
    values, before = _values(system, rule.metric), _values(earlier, rule.metric)
    shared = sorted(set(values) & set(before))
    if len(shared) < FEWEST_TEXTS:
        return "undecided", f"{len(shared)} texts have this score on both sides, and it takes {FEWEST_TEXTS}"
    (now, samples), (then, others) = (_mean_of_texts(part, shared) for part in (values, before))
    direction = DIRECTIONS[rule.metric]
    fall = direction * (then - now) if direction else abs(now - then)
    deviation = noise.of_difference(samples, others) if noise else None
    band = rule.band if rule.band is not None else _band(noise, deviation, tail if direction else tail / 2)
    shown = f"{now:.4g} after {then:.4g}"
    if band is None:
        return "undecided", f"{shown}, and the noise is not known: run csm evaluate calibrate"
    threshold = max(band, rule.catch / 2)
    if fall > threshold:
        return "failed", f"{shown}: {'a fall' if direction else 'a change'} of {fall:.3g}, more than {threshold:.3g}"
    spare = noise.quantile(MISSES) * deviation if noise and deviation is not None and rule.band is None else 0.0
    if threshold + spare > rule.catch:
        need = int(np.ceil(samples * ((band + spare) / rule.catch) ** 2))
        return "undecided", f"{shown}: {samples:.0f} samples would miss a fall of {rule.catch:g}; take about {need}"
    return "passed", f"{shown}, noise band {band:.3g}"


def _band(noise: Noise | None, deviation: float | None, tail: float) -> float | None:
    return None if noise is None or deviation is None else noise.quantile(tail) * deviation
