"""Small pictures of a mouth for the made-up speech."""

import numpy as np

from metaser.synthetic.voice import RATE

FPS = 25  # pictures per second
PIXELS = 16  # width and height of a picture
FACE_NOISE = 0.6  # sd of the noise that the face adds to arousal and to valence
MOUTH = (40.0, 150.0)  # grey of the open mouth and of the skin, between 0 and 255


def draw_faces(key: list[int], speakers: int) -> np.ndarray:
    """Draw the mouths of the speakers of a corpus.

    Parameters
    ----------
    key : list of int
        Seed of the corpus.
    speakers : int
        Number of speakers.

    Returns
    -------
    ndarray
        (speakers, 3) float: half the width of each mouth, its height in the picture, and its usual
        opening, all in the units of ``film``.
    """
    rng = np.random.default_rng([*key, 4])
    return rng.normal([0.7, 0.0, 0.2], [0.08, 0.06, 0.03], (speakers, 3))


def film(clip: np.ndarray, arousal: float, valence: float, face: np.ndarray) -> np.ndarray:
    """Draw pictures of a mouth while a clip is spoken.

    The picture is the square [-1, 1]^2, x to the right and y upwards. At time t the mouth is open
    where |y - y0 - valence / 5 (x / w)^2| < a(t) (1 - (x / w)^2), with soft edges; a(t) follows the
    clip's energy, relative to its loudest moment, and grows with the arousal.

    Parameters
    ----------
    clip : ndarray
        (samples,) float at ``voice.RATE``.
    arousal, valence : float
        What the face shows; 0 is neutral.
    face : ndarray
        (3,), a row of ``draw_faces``: w, y0 and the usual opening.

    Returns
    -------
    ndarray
        (pictures, ``PIXELS`` ** 2) uint8, ``FPS`` pictures per second, each row by row.
    """
    width, height, usual = face
    step = RATE // FPS
    energy = np.sqrt(np.mean(clip[: len(clip) // step * step].reshape(-1, step) ** 2, axis=1))
    opening = (usual + 0.08 * np.clip(arousal, -2, 2)) * (0.3 + energy / energy.max())
    place = np.linspace(-1, 1, PIXELS)
    x, y = (place / width) ** 2, place[::-1, None] - height
    distance = np.abs(y - np.clip(valence, -2.5, 2.5) / 5 * x)
    inside = opening[:, None, None] * (1 - x) - distance
    open_, skin = MOUTH
    grey = skin + (open_ - skin) / (1 + np.exp(-inside / 0.05))
    return np.asarray(np.rint(grey).astype(np.uint8).reshape(len(grey), -1))
