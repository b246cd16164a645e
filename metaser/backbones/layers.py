"""Layers that backbones share."""

import torch
from torch import Tensor


def statistics_pooling(values: Tensor, mask: Tensor) -> Tensor:
    """Maximum, mean and standard deviation over the real frames.

    Parameters
    ----------
    values : Tensor
        (clips, channels, frames).
    mask : Tensor
        (clips, frames) bool.

    Returns
    -------
    Tensor
        (clips, 3 x channels).
    """
    mask = mask.unsqueeze(1)
    count = mask.sum(dim=-1)
    top = values.masked_fill(~mask, float("-inf")).amax(dim=-1)
    mean = (values * mask).sum(dim=-1) / count
    variance = ((values - mean.unsqueeze(-1)).square() * mask).sum(dim=-1) / count
    # The square root has no finite slope at 0, where a channel that is silent in a clip sits.
    return torch.cat([top, mean, (variance + 1e-5).sqrt()], dim=-1)
