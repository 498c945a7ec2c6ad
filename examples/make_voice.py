"""Make the example voice: a synthetic speaker whom csm-tiny has never heard, reading the sentences below.

    pip install "csm-finetune[teacher]"
    python examples/make_voice.py [--output examples/voice]

The text-to-speech model `hibari` (Apache-2.0) gives spectra and a pitch curve for each sentence; its formants are moved
by stretching the frequency axis, its pitch by a factor and its pitch range by an exponent. csm-tiny learned from eight
such bends of the same model, none of them a high voice with low formants, as this one is. Writes `audio/NNN.flac`
(24 kHz, mono, 16 bits) and `transcripts/NNN.txt`. Running it again writes the same sound.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from hibari import Hibari, dsp

from csm.audio import SAMPLE_RATE, normalise_loudness, trim, write_wave


@dataclass(frozen=True)
class Bend:
    """How the teacher's voice is bent: factors of 1 and an exponent of 1 leave it as it is."""

    pitch: float  # factor of the median pitch
    formant: float  # factor of the resonances' frequencies; above 1 the speaker sounds smaller
    speed: float  # above 1 is faster
    spread: float  # exponent of pitch over its median: below 1 is flatter


VOICE = Bend(pitch=1.20, formant=0.88, speed=1.00, spread=1.0)
SEED = 20
LOWEST_PITCH = 55.0  # Hz; below it the teacher's pulses become audible one by one
VOICED = 40.0  # Hz; the teacher marks unvoiced frames with less

# The last eight are for judging: `csm` holds out the end of the folder.
SENTENCES = """
The kettle is warm, and the cups are on the shelf.
Could you bring me the blue jacket from the chair?
We walked along the river until it was dark.
My sister plays the violin every Thursday evening.
There is fresh bread in the kitchen.
I forgot to water the plants again.
The children are running across the yard.
He put the key under a flat stone.
Shall we take the early train to the coast?
A small boat was moving slowly toward the shore.
Please leave your shoes by the front door.
The judge asked a very simple question.
Nobody knew why the old clock had stopped.
She drew a yellow house with a red roof.
It might rain later, so take an umbrella.
The soup needs a little more salt.
Our neighbor keeps five chickens and a goose.
I would rather stay home and read.
What did the doctor say about your shoulder?
They painted the fence last weekend.
The museum opens at nine in the morning.
You can borrow my bicycle if you like.
A cold wind blew through the broken window.
I heard music coming from the next room.
The farmer sold his last horse in the spring.
Do not touch the stove, it is still hot.
Her voice was quiet, but everyone listened.
We need two lemons and a bag of sugar.
The bridge was closed for most of the summer.
Turn off the light when you leave, please.
I think the answer is on the second page.
The dog always sleeps near the fire.
Can you hear the church bells from here?
My father fixed the engine in half an hour.
There were seven people waiting for the bus.
The paper says that the weather will change.
Choose a color that you really enjoy.
He laughed and threw the ball back.
The garden smells wonderful after the rain.
We should measure the table before we buy it.
I usually drink tea without milk.
The teacher wrote three words on the board.
Who left the gate open last night?
A yellow leaf fell onto the path.
She measured the cloth and cut it with care.
The train was late, but nobody seemed to mind.
Put the heavy boxes on the lower shelf.
I am looking for a quiet place to work.
The shop around the corner sells good cheese.
His brother joined the navy at nineteen.
The snow covered every roof in the village.
Thank you for helping me move the piano.
Is this the right way to the station?
The judge and the lawyer shook hands.
I would like a room with a view of the lake.
They found a pair of gloves behind the couch.
The picture over the fireplace is new.
My cousin is a nurse in a large hospital.
You should never feed bread to the ducks.
The boys built a bridge out of rope and wood.
A strange noise woke me in the night.
Our team won the game by one point.
The baker gets up long before the sun.
I will call you as soon as I arrive.
Please put the letters on the kitchen table.
The old man walks his dog in the park every day.
We had dinner together at a small place near the water.
She said that the road was closed on Monday.
Could you tell me where the nearest bank is?
I was reading a book about the history of the city.
There is a green chair beside the window in my office.
He wants to leave early because the weather is bad.
""".strip().splitlines()


def speak(teacher: Hibari, text: str, bend: Bend, rng: np.random.Generator) -> np.ndarray:
    """One sentence in the bent voice, `(samples,)` at 24 kHz, at -23 LUFS, quiet ends cut to 0.1 s."""
    ids = teacher.ids(" ".join(teacher.phonemize(text)))
    pace = bend.speed * rng.uniform(0.95, 1.05)
    given = {"ids": np.array([ids], np.int64), "speed": np.array([pace], np.float32)}
    harmonic, turn, noise, free, phase, pitch = (part[0] for part in teacher.sess.run(None, given))
    stretched = [stretch(part, bend.formant) for part in (harmonic, noise, free)]
    nearest = source_bins(len(phase), bend.formant).round().astype(int)  # phases have no average
    wave = dsp.synth(
        stretched[0], turn[nearest], stretched[1], stretched[2], phase[nearest], bend_pitch(pitch, bend), rng
    )
    return normalise_loudness(trim(wave, SAMPLE_RATE), SAMPLE_RATE)


def source_bins(bins: int, formant: float) -> np.ndarray:
    """Where on the teacher's frequency axis each bin of the bent voice comes from, `(bins,)`."""
    return np.clip(np.arange(bins) / formant, 0, bins - 1)


def stretch(spectrum: np.ndarray, formant: float) -> np.ndarray:
    """`(bins, frames)` of log magnitudes with the frequency axis stretched by `formant`."""
    at = source_bins(len(spectrum), formant)
    low = at.astype(int)
    part = (at - low).astype(np.float32)[:, None]
    return spectrum[low] * (1 - part) + spectrum[np.minimum(low + 1, len(spectrum) - 1)] * part


def bend_pitch(pitch: np.ndarray, bend: Bend) -> np.ndarray:
    """`(frames,)` in Hz: the median moved, the range around it widened or narrowed, unvoiced frames left."""
    voiced = pitch > VOICED
    if not voiced.any():
        return pitch
    middle = np.median(pitch[voiced])
    bent = bend.pitch * middle * (np.maximum(pitch, VOICED) / middle) ** bend.spread
    return np.where(voiced, np.maximum(bent, LOWEST_PITCH), pitch).astype(np.float32)


def main(folder: Path) -> None:
    """Write every sentence's clip and transcript into `folder`."""
    teacher, seconds = Hibari(), 0.0
    (folder / "transcripts").mkdir(parents=True, exist_ok=True)
    for number, text in enumerate(SENTENCES, 1):
        wave = speak(teacher, text, VOICE, np.random.default_rng([SEED, number]))
        write_wave(folder / "audio" / f"{number:03d}.flac", wave)
        (folder / "transcripts" / f"{number:03d}.txt").write_text(text + "\n")
        seconds += len(wave) / SAMPLE_RATE
    print(f"{len(SENTENCES)} clips, {seconds:.0f} s, in {folder}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make the example voice.")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "voice", help="folder to write into")
    main(parser.parse_args().output)
