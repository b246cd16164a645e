"""Models that predict ratings, per clip or per frame, and how they learn."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metaser.backbones.layers import shortened
from metaser.backbones.recurrence import recurrent
from metaser.batch import Padded
from metaser.losses import RATING_LOSSES
from metaser.methods.fine_tune import fine_tune
from metaser.methods.inner_loop import adaptable


class FrameRater(nn.Module):
    """Rates every frame: layers over time, then the same dense layer on each frame.

    Parameters
    ----------
    channels : int
        Channels of the front end.
    ratings : int
        Ratings per frame, for example 2 for arousal and valence.
    widths : sequence of int
        Units of each layer; the paper's are 256, 128 and 64.
    dropout : float
        Share of units dropped after each layer while training, in [0, 1).
    layers : {"lstm", "dense"}
        The paper's LSTM layers, or dense layers with ReLU, which see each frame alone.
    pool : int
        Number of neighbouring frames that are averaged before the first layer.

    Raises
    ------
    ValueError
        If ``layers`` is neither of the two.

    References
    ----------
    Atmaja and Akagi, "Multitask Learning and Multistage Fusion for Dimensional Audiovisual Emotion
    Recognition", ICASSP 2020, arXiv:2002.11312, section 3.
    """

    def __init__(
        self,
        channels: int,
        ratings: int,
        widths: Sequence[int] = (256, 128, 64),
        dropout: float = 0.4,
        layers: str = "lstm",
        pool: int = 1,
    ) -> None:
        super().__init__()
        if layers not in ("lstm", "dense"):
            raise ValueError(f"layers must be 'lstm' or 'dense', not {layers!r}: choose one")
        self.layers = nn.ModuleList(
            nn.LSTM(before, after, batch_first=True)
            if layers == "lstm"
            else nn.Sequential(nn.Linear(before, after), nn.ReLU())
            for before, after in zip([channels, *widths], widths)
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(widths[-1], ratings)
        self.pool = pool

    def forward(self, modalities: dict[str, Padded]) -> Padded:
        """Return ratings (clips, frames, ratings), zero after a clip's last frame.

        There is one frame per ``pool`` frames of the modality "audio".
        """
        audio = shortened(modalities["audio"], self.pool)
        values = audio.values
        for layer in self.layers:
            if isinstance(layer, nn.LSTM):
                values = recurrent(layer, values, audio.mask)
            else:
                values = layer(values)
            values = self.dropout(values)
        return Padded(self.head(values) * audio.mask.unsqueeze(-1), audio.mask)


def _check(loss: str, ratings: Tensor) -> None:
    """Refuse an unknown loss, and clips of which none is rated."""
    if loss not in RATING_LOSSES:
        known = ", ".join(sorted(RATING_LOSSES))
        raise ValueError(f"loss must be one of {known}, not {loss!r}: choose one of these")
    if ratings.isnan().all():
        raise ValueError(
            f"at least 1 clip must be rated, not 0 of {len(ratings)}: pass clips with ratings"
        )


def tuned(
    model: nn.Module,
    audio: Padded,
    ratings: Tensor,
    *,
    loss: str = "ccc",
    weights: Tensor | None = None,
    steps: int = 300,
    rate: float = 3e-3,
    batch_size: int = 64,
    seed: int = 0,
) -> nn.Module:
    """Return a copy of a model that has learnt from rated clips, by Adam with a cyclic rate.

    This trains a new model and, with few steps, adapts a trained one to a few rated clips of a
    new language.

    Parameters
    ----------
    model : nn.Module
        Returns ratings per clip, such as ``Model``, or per frame, such as ``FrameRater``. It stays
        as it is.
    audio : Padded
        (clips, frames, channels) features.
    ratings : Tensor
        (clips, ratings) per clip, or (clips, frames, ratings) per frame that the model returns; NaN
        where there is none. If the model rates frames and the ratings are per clip, the mean over
        the frames counts.
    loss : {"ccc", "mse"}
        See ``metaser.losses``. For "ccc" a batch needs several clips that are rated differently.
    weights : Tensor, optional
        (ratings,) weight of each rating in the loss; all 1 by default.
    steps : int
        Steps of Adam, at least 0.
    rate : float
        Highest learning rate.
    batch_size : int
        Clips per step, at most.
    seed : int
        Decides the order of the clips and which units are dropped.

    Returns
    -------
    nn.Module
        The copy, in evaluation mode.

    Raises
    ------
    ValueError
        If the loss is not known, no clip is rated, or the training has diverged.
    """
    _check(loss, ratings)
    new = copy.deepcopy(model).train()

    def objective(parameters: dict[str, Tensor], rows: Tensor) -> Tensor:
        output = functional_call(new, parameters, ({"audio": _trimmed(audio[rows])},))
        return RATING_LOSSES[loss](*_aligned(output, ratings[rows]), weights)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        learnt = fine_tune(
            objective,
            adaptable(new),
            len(ratings),
            steps=steps,
            rate=rate,
            batch_size=batch_size,
            seed=seed,
        )
    if not all(value.isfinite().all() for value in learnt.values()):
        raise ValueError(
            "parameters must be finite after the training, but it has diverged with rate = "
            f"{rate} and loss = {loss!r}: take a smaller rate"
        )
    new.load_state_dict({name: value.detach() for name, value in learnt.items()}, strict=False)
    return new.eval()


@torch.no_grad()
def predicted(model: nn.Module, audio: Padded, chunk: int = 256) -> Tensor:
    """Return the ratings (clips, ratings) that a model predicts.

    Parameters
    ----------
    model : nn.Module
        As in ``tuned``. If it rates frames, the mean over a clip's frames is its rating.
    audio : Padded
        (clips, frames, channels) features.
    chunk : int
        Clips that are computed at a time.
    """
    outputs = []
    for start in range(0, len(audio), chunk):
        output = model({"audio": _trimmed(audio[start : start + chunk])})
        outputs.append(output.mean() if isinstance(output, Padded) else output)
    return torch.cat(outputs)


def _trimmed(audio: Padded) -> Padded:
    """Return the same clips without the frames that no clip has."""
    frames = int(audio.mask.sum(dim=1).max())
    return Padded(audio.values[:, :frames], audio.mask[:, :frames])


def _aligned(output: Tensor | Padded, ratings: Tensor) -> tuple[Tensor, Tensor]:
    """Return predictions and ratings, both (n, ratings): per clip, or per frame of any clip.

    Ratings of frames that are not real become NaN, so they do not count.
    """
    if isinstance(output, Tensor):
        return output, ratings
    if ratings.dim() == 2:
        return output.mean(), ratings
    frames = output.mask.shape[1]
    known = ratings[:, :frames].masked_fill(~output.mask.unsqueeze(-1), float("nan"))
    return output.values.flatten(0, 1), known.flatten(0, 1)
