"""Findings: what a person should hear of the data, each once, with the clips it is about.

An error is what training would skip or stop at; a warning is what it would learn without a word.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from csm.data.doctor.duplicates import same_sounds
from csm.data.doctor.outliers import length_outliers, voice_outliers
from csm.data.doctor.survey import Record, Survey, place
from csm.data.faults import of_row, printable, render
from csm.data.row import Row

CLIPPED_SHARE = 0.001
NOISY_DB = 15.0
SILENT_END_SECONDS = 1.0
OFFSET = 0.02
NARROW_HZ = 5_500.0
LOWEST_RATE = 16_000
LEVEL_LU = 10.0
WRONG_LETTERS = 0.5  # of the transcript's; a recogniser's own errors stay well below, another sentence is above
SHARED = 0.5  # a fault of more than this share of the clips is one of the data


@dataclass(frozen=True)
class Finding:
    """One thing to know. `clips` are numbers of `Survey.records`; empty where it is about the data or a file."""

    kind: str
    message: str
    clips: tuple[int, ...] = ()
    is_error: bool = False


def find(survey: Survey, plain: Callable[[str], str] = str.casefold) -> list[Finding]:
    """All findings about clips: errors first, then warnings by kind; a clip is named once for one cause.

    Args:
        survey: what was measured.
        plain: a text as its sound says it (numbers as words), for the comparison with what was heard.
    """
    found = [Finding("unusable", line, is_error=True) for line in render(survey.faults).splitlines()]
    found += _unusable(survey.records)
    used = [(number, record) for number, record in enumerate(survey.records) if not record.fault]
    duplicates = list(_same_sound(used))
    alone = [finding for number, record in used for finding in _of_sound(number, record)]
    spoilt = {number for finding in alone if finding.kind in ("noisy", "clipped") for number in finding.clips}
    alone += [finding for finding in _levels(used) if not spoilt & {*finding.clips}]
    misread = list(_misheard(used, plain))
    misread += [f for f in _lengths(used) if not {*f.clips} & {n for m in misread for n in m.clips}]
    strangers = [finding for finding in _strangers(used) if not spoilt & {*finding.clips}]
    copied = {number for finding in duplicates for number in finding.clips}
    texts = list(_same_text(used, copied))
    return found + _gathered(alone, len(used)) + duplicates + texts + misread + strangers


def _unusable(records: Sequence[Record]) -> Iterator[Finding]:
    told: dict[str, Finding] = {}
    for number, record in enumerate(records):
        if record.fault:
            says = of_row(record.fault, record.row).text
            first = told.get(record.fault.text, Finding("unusable", says, (), True))
            told[record.fault.text] = replace(first, clips=(*first.clips, number))
    yield from told.values()


def _of_sound(number: int, record: Record) -> Iterator[Finding]:
    sound, name = record.sound, place(record.row)
    if sound is None:
        return
    if sound.clipped > CLIPPED_SHARE:
        yield Finding("clipped", f"{name} is clipped: {sound.clipped:.2%} of it stands at its peak.", (number,))
    elif sound.snr is not None and sound.snr < NOISY_DB:
        yield Finding("noisy", f"{name} is noisy: speech is {sound.snr:.0f} dB above the noise.", (number,))
    if abs(sound.offset) > OFFSET:
        yield Finding("offset", f"{name} has an offset of {sound.offset:+.2f} of full scale; take it out.", (number,))
    if max(sound.leading, sound.trailing) > SILENT_END_SECONDS:
        ends = f"{sound.leading:.1f} s before and {sound.trailing:.1f} s after the speech"
        yield Finding("silent ends", f"{name} is quiet at its ends: {ends}; training cuts them off.", (number,))
    if sound.rate < LOWEST_RATE:
        yield Finding("narrow", f"{name} has a sample rate of {sound.rate} Hz; speech wants {LOWEST_RATE}.", (number,))
    elif sound.bandwidth is not None and sound.bandwidth < NARROW_HZ:
        says = f"holds nothing above {sound.bandwidth:.0f} Hz, although its rate is {sound.rate} Hz"
        yield Finding("narrow", f"{name} {says}: was it recorded at a lower rate?", (number,))


def _levels(used: Sequence[tuple[int, Record]]) -> Iterator[Finding]:
    for group in _by_speaker(used).values():
        levels = {number: record.level for number, record in group if record.level is not None}
        median = float(np.median(list(levels.values()))) if levels else 0.0
        for number, record in group:
            off = levels.get(number, median) - median
            if abs(off) > LEVEL_LU:
                how = (
                    f"{abs(off):.0f} LU {'louder' if off > 0 else 'quieter'} than its speaker's usual {median:.0f} LUFS"
                )
                yield Finding("level", f"{place(record.row)} is {how}.", (number,))


def _same_sound(used: Sequence[tuple[int, Record]]) -> Iterator[Finding]:
    for group, equal in same_sounds([r.digest for _, r in used], [r.words for _, r in used]):
        rows = [used[i][1].row for i in group]
        files = list(dict.fromkeys(map(place, rows)))
        says = "is the same sound" if equal else "is nearly the same sound"
        words = "" if len({_letters(row.text) for row in rows}) == 1 else ", with other words"
        if len(files) == 1:
            message = f"{files[0]} stands in the data {len(rows)} times{words}."
        else:
            message = f"{files[0]} {says} as {', '.join(files[1:])}{words}."
        yield Finding("same sound", message, tuple(used[i][0] for i in group))


def _same_text(used: Sequence[tuple[int, Record]], copied: set[int]) -> Iterator[Finding]:
    groups: dict[tuple[int, str], list[tuple[int, Row]]] = {}
    for number, record in used:
        if number not in copied:
            groups.setdefault((record.row.speaker, _letters(record.row.text)), []).append((number, record.row))
    for (speaker, _), group in groups.items():
        if len(group) > 1:
            files = ", ".join(place(row) for _, row in group)
            says = f"{printable(group[0][1].text)!r} is the text of {len(group)} clips of speaker {speaker}: {files}."
            yield Finding("same text", says, tuple(number for number, _ in group))


def _lengths(used: Sequence[tuple[int, Record]]) -> Iterator[Finding]:
    for group in _by_speaker(used).values():
        ratios = length_outliers([r.speech for _, r in group], [len(r.row.text) for _, r in group])
        for i, ratio in ratios.items():
            number, record = group[i]
            size = f"{len(record.row.text)} characters in {record.speech:.1f} s"
            times = f"{ratio:.1f} times as long as" if ratio > 1 else f"{1 / ratio:.1f} times shorter than"
            pace = f"{times} the others' pace makes it"
            if 0.9 < ratio < 1.1:  # all clips are as far off: the bounds of speech found it, not the others
                pace = f"{len(record.row.text) / record.speech:.1f} a second"
            says = f"{size}, {pace}; do text and sound belong together?"
            yield Finding("pace", f"{place(record.row)} has {says}", (number,))


def _misheard(used: Sequence[tuple[int, Record]], plain: Callable[[str], str]) -> Iterator[Finding]:
    for number, record in used:
        if record.heard is None:
            continue
        wrong = letter_errors(_letters(plain(record.row.text)), _letters(plain(record.heard)))
        if wrong > WRONG_LETTERS:
            heard = printable(record.heard.strip())[:120]
            says = f"does not say {printable(record.row.text)!r}: the recogniser hears {heard!r} ({wrong:.0%} wrong)"
            yield Finding("transcript", f"{place(record.row)} {says}.", (number,))


def _strangers(used: Sequence[tuple[int, Record]]) -> Iterator[Finding]:
    for speaker, group in _by_speaker(used).items():
        known = [(number, record) for number, record in group if record.voice is not None]
        if not known:
            continue
        voices = np.stack([record.voice for _, record in known if record.voice is not None])
        for i, similarity in voice_outliers(voices, [record.speech for _, record in known]).items():
            number, record = known[i]
            says = f"sounds unlike speaker {speaker}: similarity {similarity:.2f} to the others"
            yield Finding("speaker", f"{place(record.row)} {says}.", (number,))


def _by_speaker(used: Sequence[tuple[int, Record]]) -> dict[int, list[tuple[int, Record]]]:
    groups: dict[int, list[tuple[int, Record]]] = {}
    for number, record in used:
        groups.setdefault(record.row.speaker, []).append((number, record))
    return groups


def _gathered(findings: Sequence[Finding], clips: int) -> list[Finding]:
    """One finding in place of many where more than half of the clips share a fault."""
    many = {kind for kind, count in Counter(f.kind for f in findings).items() if count > max(SHARED * clips, 4)}
    out = sorted((f for f in findings if f.kind not in many), key=lambda finding: finding.kind)
    for kind in sorted(many):
        numbers = tuple(n for finding in findings if finding.kind == kind for n in finding.clips)
        first = next(finding.message for finding in findings if finding.kind == kind)
        out.append(
            Finding(kind, f"{len(numbers)} of {clips} clips: {first.rstrip('.')}, and so are the others.", numbers)
        )
    return out


def _letters(text: str) -> str:
    """The text's letters and digits in one case, single spaces between words."""
    return " ".join(re.findall(r"\w+", text.casefold().replace("'", "").replace("’", "")))


def letter_errors(said: str, heard: str) -> float:
    """Levenshtein's distance over the length of `said`, at most 1."""
    a, b = np.array(list(said)), np.array(list(heard))
    if not len(a):
        return float(len(b) > 0)
    before = np.arange(len(b) + 1)
    for i, letter in enumerate(a, 1):
        best = np.minimum(before[1:] + 1, before[:-1] + (b != letter))
        row = np.concatenate([[i], best])
        before = np.minimum.accumulate(row - np.arange(len(row))) + np.arange(len(row))  # insertions
    return min(1.0, float(before[-1]) / len(a))
