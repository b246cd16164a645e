"""The domain-adversarial autoencoder: reconstruction, attention, and its term of the loss."""

import numpy as np
import pytest
import torch
from builders import draw_clips

from metaser.backbones import MLP
from metaser.backbones.autoencoder import Autoencoder
from metaser.batch import Batch, EpisodeBatch, Padded
from metaser.methods import METHODS
from metaser.model import Model

CHANNELS = 5


def _backbone(**sizes) -> Autoencoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Autoencoder(CHANNELS, **({"width": 4, "tokens": 2, "heads": 2} | sizes)).double()


def _clips(lengths, frames=None, seed=0) -> Padded:
    return draw_clips(lengths, CHANNELS, seed=seed, frames=frames)


def test_attention_is_pytorch_s():
    """Q from the deep features, K from the latent ones, V from the fused ones."""
    backbone, audio = _backbone(), _clips([3, 5])
    tokens = backbone._as_tokens
    latent = tokens(backbone._branch(backbone.encoder, audio))
    deep = tokens(torch.relu(backbone._branch(backbone.deep, audio)))
    fused = torch.relu(backbone.fuse(torch.cat([latent, deep], dim=-1)))
    attention = torch.nn.MultiheadAttention(4, 2, bias=False, batch_first=True).double()
    layers = (backbone.query, backbone.key, backbone.value)
    attention.in_proj_weight.data = torch.cat([layer.weight for layer in layers]).data
    attention.out_proj.weight.data = torch.eye(4, dtype=torch.float64)
    mask = audio.mask.repeat_interleave(2, dim=1)
    taken, _ = attention(deep, latent, fused, key_padding_mask=~mask)
    expected = torch.stack([(fused + taken)[i][mask[i]].mean(dim=0) for i in range(2)])
    torch.testing.assert_close(backbone(audio), expected)


def test_on_one_vector_a_clip_the_decoder_is_the_encoder_transposed():
    backbone, audio = _backbone(kernel=1), _clips([1, 1, 1])
    one, two = backbone.encoder
    (w1, b1), (w2, b2) = (
        (c.weight[:, :, 0].detach().numpy(), c.bias.detach().numpy()) for c in (one, two)
    )
    x = audio.values[:, 0].numpy()
    code = np.maximum(x @ w1.T + b1, 0) @ w2.T + b2
    made = np.maximum(code @ w2, 0) @ w1
    np.testing.assert_allclose(
        backbone.reconstruction_error(audio).detach(), ((made - x) ** 2).mean(axis=1)
    )


def test_padding_never_changes_the_reconstruction_error():
    backbone = _backbone()
    short, long = (backbone.reconstruction_error(_clips([3, 5], frames)) for frames in (5, 11))
    torch.testing.assert_close(short, long)


def _episode() -> EpisodeBatch:
    def batch(seed):
        targets = torch.arange(8) % 4
        return Batch({"audio": _clips([2] * 8, seed=seed)}, targets, torch.ones(4, dtype=bool))

    return EpisodeBatch(batch(0), batch(1))


@pytest.mark.parametrize("name", ["fine_tuning", "maml"])
def test_the_term_teaches_to_reconstruct(name):
    """The loss falls under it; with weight 0 it does not."""
    errors = {}
    for weight in (0.0, 5.0):
        terms = {"adversary": 0.0, "reconstruction": weight}
        method = METHODS[name](Model(_backbone(), 4).double(), terms=terms)
        optimiser = torch.optim.Adam(method.parameters(), lr=0.02)
        for _ in range(60):
            optimiser.zero_grad()
            method.loss(_episode()).backward()
            optimiser.step()
        audio = _episode().joined().modalities["audio"]
        errors[weight] = float(method.model.backbone.reconstruction_error(audio).mean().detach())
    assert errors[5.0] < 0.8 * errors[0.0]


def test_the_term_is_weight_times_the_mean_error_and_other_backbones_go_without():
    episode, values = _episode(), {}
    for weight in (0.0, 3.0):
        method = METHODS["fine_tuning"](
            Model(_backbone(), 4).double(), terms={"reconstruction": weight}
        )
        for value in method.model.head.parameters():
            torch.nn.init.zeros_(value)
        values[weight] = float(method.loss(episode).detach())
    error = _backbone().reconstruction_error(episode.joined().modalities["audio"]).mean()
    assert values[3.0] - values[0.0] == pytest.approx(3 * float(error.detach()))
    method = METHODS["fine_tuning"](
        Model(MLP(CHANNELS, (3,)), 4).double(), terms={"reconstruction": 3.0}
    )
    torch.testing.assert_close(method.loss(episode), method.validation_loss(episode))


@pytest.mark.parametrize(
    "sizes, words",
    [
        ({"kernel": 4}, "odd.*not 4"),
        ({"width": 6, "heads": 4}, "multiple of the 4 heads, not 6"),
        ({"tokens": 0}, "tokens must be at least 1, not 0"),
    ],
)
def test_strange_sizes_are_refused(sizes, words):
    with pytest.raises(ValueError, match=words):
        _backbone(**sizes)
