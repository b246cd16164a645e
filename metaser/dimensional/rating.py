"""Models that predict ratings, of a clip as a whole or over time, and how they learn."""

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
    """Ratings of every frame: layers over time, and the same dense layer on each frame.

    Parameters
    ----------
    channels : int
        Channels of the front end.
    ratings : int
        Ratings a frame, for example 2 for arousal and valence.
    widths : sequence of int
        Units of the layers; the paper's are 256, 128 and 64.
    dropout : float
        Share of units dropped after each layer while training, in [0, 1).
    layers : {"lstm", "dense"}
        The paper's LSTM stack, or dense layers with ReLU, which see one frame alone.
    pool : int
        Neighbouring frames of which the mean is taken first.

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
            raise ValueError(f"layers must be 'lstm' or 'dense', not {layers!r}")
        pairs = zip([channels, *widths], widths)
        if layers == "lstm":
            made = [nn.LSTM(before, after, batch_first=True) for before, after in pairs]
        else:
            made = [nn.Sequential(nn.Linear(*pair), nn.ReLU()) for pair in pairs]
        self.layers = nn.ModuleList(made)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(widths[-1], ratings)
        self.pool = pool

    def forward(self, modalities: dict[str, Padded]) -> Padded:
        """Return ratings (clips, frames, ratings), zero after a clip's last frame."""
        audio = shortened(modalities["audio"], self.pool)
        values = audio.values
        for layer in self.layers:
            lstm = isinstance(layer, nn.LSTM)
            values = recurrent(layer, values, audio.mask) if lstm else layer(values)
            values = self.dropout(values)
        return Padded(self.head(values) * audio.mask.unsqueeze(-1), audio.mask)


def tuned(
    model: nn.Module,
    audio: Padded,
    ratings: Tensor,
    loss: str = "ccc",
    weights: Tensor | None = None,
    steps: int = 300,
    rate: float = 3e-3,
    batch_size: int = 64,
    seed: int = 0,
) -> nn.Module:
    """A copy of a model that has learnt from rated clips, by Adam with a cyclic rate.

    Used to train from the start and, with few steps, to adapt to the few rated clips of a new
    language.

    Parameters
    ----------
    model : nn.Module
        Returns ratings (clips, ratings), such as ``Model``, or over time, such as ``FrameRater``.
        It stays as it is.
    audio : Padded
        (clips, frames, channels).
    ratings : Tensor
        (clips, ratings) of each clip, or (clips, frames, ratings) over time, one for each frame
        that the model returns; NaN where there is none. A model that rates over time is held by its
        mean over time against ratings of clips.
    loss : {"ccc", "mse"}
        See ``metaser.losses``. The CCC of a batch needs several clips that are rated differently.
    weights : Tensor, optional
        (ratings,) weight of each in the loss; with more than one rating the model is multitask.
    steps, rate, batch_size, seed
        See ``fine_tune``; the seed also decides which units are dropped.

    Raises
    ------
    ValueError
        If the loss is not known, no clip is rated, or the training has diverged.
    """
    if loss not in RATING_LOSSES:
        raise ValueError(f"loss must be one of {sorted(RATING_LOSSES)}, not {loss!r}")
    if ratings.isnan().all():
        raise ValueError(f"none of the {len(ratings)} clips is rated: there is nothing to learn")
    new = copy.deepcopy(model).train()

    def objective(parameters: dict[str, Tensor], rows: Tensor) -> Tensor:
        output = functional_call(new, parameters, ({"audio": _trimmed(audio[rows])},))
        return RATING_LOSSES[loss](*_aligned(output, ratings[rows]), weights)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        learnt = fine_tune(objective, adaptable(new), len(ratings), steps, rate, batch_size, seed)
    if not all(value.isfinite().all() for value in learnt.values()):
        raise ValueError(
            f"the training has diverged (rate = {rate}, loss = {loss!r}): take a smaller rate"
        )
    new.load_state_dict({name: value.detach() for name, value in learnt.items()}, strict=False)
    return new.eval()


@torch.no_grad()
def predicted(model: nn.Module, audio: Padded, chunk: int = 256) -> Tensor:
    """Ratings (clips, ratings) of each clip; of a model that rates over time, their mean."""
    outputs = []
    for start in range(0, len(audio), chunk):
        output = model({"audio": _trimmed(audio[start : start + chunk])})
        outputs.append(output.mean() if isinstance(output, Padded) else output)
    return torch.cat(outputs)


def _trimmed(audio: Padded) -> Padded:
    """Without the frames that no clip has."""
    frames = int(audio.mask.sum(dim=1).max())
    return Padded(audio.values[:, :frames], audio.mask[:, :frames])


def _aligned(output: Tensor | Padded, ratings: Tensor) -> tuple[Tensor, Tensor]:
    """Predictions and ratings (n, ratings): of clips, or of all real frames of all clips."""
    if isinstance(output, Tensor):
        return output, ratings
    if ratings.dim() == 2:
        return output.mean(), ratings
    frames = output.mask.shape[1]
    known = ratings[:, :frames].masked_fill(~output.mask.unsqueeze(-1), float("nan"))
    return output.values.flatten(0, 1), known.flatten(0, 1)
