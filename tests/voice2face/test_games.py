"""The two parts of the discriminator's loss, and path length as a validation measures it."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from common.losses import discriminator_hinge, discriminator_logistic, generator_hinge, generator_logistic
from common.metrics.path_length import different_pairs
from voice2face.config import EvaluationConfig
from voice2face.games import GAMES
from voice2face.paths import validation_path_length


@pytest.mark.parametrize(
    ("name", "judged", "drawn"),
    [("logistic", discriminator_logistic, generator_logistic), ("hinge", discriminator_hinge, generator_hinge)],
)
def test_the_parts_add_up_to_the_discriminators_loss(name: str, judged: Any, drawn: Any) -> None:
    torch.manual_seed(0)
    real, fake = torch.randn(5, 1) * 3, torch.randn(5, 1) * 3
    game = GAMES[name]
    assert torch.equal(game.fake(fake) + game.real(real), judged(real, fake))
    assert torch.equal(game.drawn(fake), drawn(fake))
    sure = torch.full((3, 1), 30.0)
    assert game.real(sure) < 1e-6
    assert game.fake(-sure) < 1e-6
    assert game.real(-sure).item() == pytest.approx(31 if name == "hinge" else 30)


class Recordings:
    """Recordings of four people whose only content is their number."""

    def __init__(self, people: int = 4) -> None:
        self.rows = [(f"{i}.wav", f"person{i % people}") for i in range(10)]
        self.read: list[int] = []

    def __getitem__(self, draw: Any) -> dict[str, Tensor]:
        self.read.append(draw.index)
        return {"wave": torch.full((4,), float(draw.index))}


class Linear(nn.Module):
    """A generator whose picture is a matrix times the sum of W+; the embedding is the recording's number, squared."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.randn(3 * 8 * 8, 2, generator=torch.Generator().manual_seed(1)) * 1e-3

    def mapping(self, embedding: Tensor) -> Tensor:
        return embedding[:, None].expand(-1, 5, -1)

    def synthesis(self, ws: Tensor, noise_mode: str) -> Tensor:
        assert noise_mode == "const"
        return (ws.mean(dim=1) @ self.weight.T).view(-1, 3, 8, 8)


def voice(wave: Tensor) -> Tensor:
    number = wave[:, 0]
    return torch.stack([number, number.square() / 10], dim=1)


def measure(recordings: Recordings, pairs: int = 6) -> Tensor:
    given: Any = SimpleNamespace(voice=voice, generator=Linear(), recordings=recordings)
    settings = EvaluationConfig(validation_pairs=pairs, batch_size=4)
    return validation_path_length(given.voice, given.generator, given.recordings, settings, torch.device("cpu"))


def test_validation_path_length_is_the_mean_over_the_same_pairs() -> None:
    recordings, random = Recordings(), torch.get_rng_state()
    length = measure(recordings)
    assert torch.equal(random, torch.get_rng_state())
    pairs = different_pairs([person for _, person in recordings.rows], 6)
    assert sorted(recordings.read) == sorted(set(pairs.flatten().tolist()))
    lengths = []
    for first, second in pairs.tolist():
        step = voice(torch.tensor([[float(second)]])) - voice(torch.tensor([[float(first)]]))
        change = (step @ Linear().weight.T).view(3, 8, 8)[:, 3:7, 2:6]  # wend's crop
        lengths.append(change.square().mean().item())
    assert length.item() == pytest.approx(sum(lengths) / len(lengths), rel=1e-2)  # a step of 1e-4 in float32
    assert torch.equal(length, measure(Recordings()))


def test_no_pairs_no_path_length() -> None:
    assert math.isnan(measure(Recordings(people=1)))
    assert math.isnan(measure(Recordings(), pairs=0))
