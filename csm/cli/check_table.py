"""What `csm-finetune check` found, as a table for the terminal and as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from csm.cli.check import Diagnosis
    from csm.data.doctor.summary import Spread

SCHEMA = 1
SHOWN = {  # measure -> name, unit, digits
    "duration_seconds": ("duration", "s", 1),
    "characters_per_second": ("pace", "characters/s", 1),
    "loudness_lufs": ("loudness", "LUFS", 1),
    "peak_dbfs": ("peak", "dBFS", 1),
    "clipped_percent": ("clipping", "%", 2),
    "snr_db": ("speech over noise", "dB", 0),
    "leading_silence_seconds": ("silence before", "s", 2),
    "trailing_silence_seconds": ("silence after", "s", 2),
    "bandwidth_hz": ("highest frequency", "Hz", 0),
}
METHODS = (
    "Loudness: ITU-R BS.1770. Noise: energy percentiles, after NIST's STNR. Silence: 40 dB below the loudest 10 ms. "
    "Duplicates: Haitsma and Kalker's fingerprint. Voices: GE2E embeddings."
)


def table(diagnosis: Diagnosis) -> str:
    """The figures, then every error and every warning, one a line."""
    rows = figures(diagnosis)
    width = max(len(name) for name, _ in rows)
    lines = [f"{name.ljust(width)}  {value}" for name, value in rows]
    lines += ["", *(f"note: {sentence}" for sentence in diagnosis.absent)]
    for title, findings in (("error", diagnosis.errors), ("warning", diagnosis.warnings)):
        lines += ["", f"{_count(len(findings), title)}"]
        lines += [f"  {finding.kind}: {finding.message}" for finding in findings]
    return "\n".join(lines)


def figures(diagnosis: Diagnosis) -> list[tuple[str, str]]:
    """The rows of the table: name and value."""
    summary = diagnosis.summary
    named = f" of {summary.clips_named} named" if summary.clips_named != summary.clips else ""
    amount = f"{summary.hours:.2f} hours" if summary.hours >= 1 else f"{summary.minutes:.1f} minutes"
    talks = "" if summary.conversations == summary.clips else f", {_count(summary.conversations, 'conversation')}"
    rows = [("data", f"{_count(summary.clips, 'clip')}{named}{talks}, {amount} of sound")]
    rows += [_speaker(diagnosis, speaker) for speaker in summary.speakers]
    rows.append(("sample rates", ", ".join(f"{rate} Hz: {count}" for rate, count in summary.rates.items()) or "none"))
    rows += [(name, _spread(summary.spreads.get(key), unit, digits)) for key, (name, unit, digits) in SHOWN.items()]
    rows.append(("phones", _coverage(diagnosis)))
    return rows + projected(diagnosis)


def _speaker(diagnosis: Diagnosis, speaker: int) -> tuple[str, str]:
    clips, minutes = diagnosis.summary.speakers[speaker]
    return f"speaker {speaker}", f"{_count(clips, 'clip')}, {minutes:.1f} minutes{asked(diagnosis)}"


def asked(diagnosis: Diagnosis) -> str:
    """What the preset asks for, in brackets."""
    if diagnosis.asked is None:
        return ""
    fewest, most = diagnosis.asked
    if most is None:
        return f" ({diagnosis.preset} asks for {fewest:g} or more in all)"
    return f" ({diagnosis.preset} asks for {fewest:g}-{most:g})"


def _spread(spread: Spread | None, unit: str, digits: int) -> str:
    if spread is None:
        return "not measured"
    low, p5, median, p95, high = (f"{value:.{digits}f}" for value in asdict(spread).values())
    if low == high:
        return f"{median} {unit} in all"
    return f"{median} {unit} in the middle, {p5} to {p95} for nine in ten, {low} to {high} for all"


def _coverage(diagnosis: Diagnosis) -> str:
    coverage = diagnosis.coverage
    if coverage is None:
        return "not counted"
    rare = [f"{phone} {count}" for phone, count in sorted(coverage.counts.items(), key=lambda i: i[1]) if 0 < count < 5]
    found = len(coverage.counts) - len(coverage.missing)
    unknown = sum(coverage.unknown.values())
    return (
        f"{found} of {len(coverage.counts)} of English"
        + (f"; rare: {', '.join(rare[:8])}" if rare else "")
        + f"; {unknown} of {coverage.words} words unknown"
    )


def projected(diagnosis: Diagnosis) -> list[tuple[str, str]]:
    """The rows about the run."""
    run = diagnosis.projection
    if run is None:
        return [("run", "cannot be made of this data")]
    rows = [
        (
            "an epoch",
            f"{_count(run.training, 'clip')}, {run.frames} frames, {run.tokens} text tokens, {_count(run.updates, 'update')}",
        ),
        ("run", f"{run.steps} steps in {run.epochs:.3g} epochs; {_count(run.validation, 'clip')} held out"),
    ]
    if run.memory is not None and run.seconds is not None:
        rows += [("memory", f"{run.memory / 1e6:.0f} MB at the peak"), ("time", f"{_time(run.seconds)} of updates")]
    return [*rows, ("memory and time", run.method)]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def as_dict(diagnosis: Diagnosis) -> dict[str, Any]:
    """Everything, clip by clip; every key of a figure ends in its unit."""
    summary, records = diagnosis.summary, diagnosis.survey.records
    return {
        "schema_version": SCHEMA,
        "preset": diagnosis.preset,
        "clips": summary.clips,
        "clips_named": summary.clips_named,
        "conversations": summary.conversations,
        "hours": summary.hours,
        "speakers": [
            {"speaker": speaker, "clips": clips, "minutes": minutes}
            for speaker, (clips, minutes) in summary.speakers.items()
        ],
        "minutes_asked": diagnosis.asked,
        "sample_rates_hz": {str(rate): count for rate, count in summary.rates.items()},
        "languages": summary.languages,
        "spreads": {key: asdict(spread) if spread else None for key, spread in summary.spreads.items()},
        "phones": asdict(diagnosis.coverage) if diagnosis.coverage else None,
        "run": asdict(diagnosis.projection) if diagnosis.projection else None,
        "absent": diagnosis.absent,
        "errors": [_finding(diagnosis, finding) for finding in diagnosis.errors],
        "warnings": [_finding(diagnosis, finding) for finding in diagnosis.warnings],
        "each": [_clip(record) for record in records],
    }


def _finding(diagnosis: Diagnosis, finding: Any) -> dict[str, Any]:
    records = diagnosis.survey.records
    return {
        "kind": finding.kind,
        "message": finding.message,
        "clips": [str(records[number].row.audio) for number in finding.clips],
    }


def _clip(record: Any) -> dict[str, Any]:
    row, sound = record.row, record.sound
    return {
        "audio": str(row.audio), "start": row.start, "end": row.end, "text": row.text, "speaker": row.speaker,
        "usable": record.fault is None, "frames": record.frames, "heard": record.heard,
        "sound": asdict(sound) if sound else None,
    }  # fmt: skip
