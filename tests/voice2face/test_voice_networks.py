import torch
from torch.nn import functional as F

from common.audio.features import MFCC
from voice2face.networks.encoder import VoiceEncoder
from voice2face.networks.voice import VoiceNetwork, voice_latent
from voice2face.networks.w_plus import WPlusHead


def test_embeddings_are_unit_vectors_of_any_length_of_speech() -> None:
    torch.manual_seed(0)
    network = VoiceNetwork(MFCC(), VoiceEncoder(embedding_dim=8, width=16)).eval()
    for samples in (100, 16_001, 40_000):
        embedding = network(0.1 * torch.randn(2, samples))
        torch.testing.assert_close(embedding.norm(dim=1), torch.ones(2))


def test_several_recordings_fuse_into_the_mean_direction() -> None:
    torch.manual_seed(0)
    network = VoiceNetwork(MFCC(), VoiceEncoder(embedding_dim=8, width=16)).eval()
    waves = [0.1 * torch.randn(n) for n in (16_000, 9_000, 30_000)]
    parts = torch.stack([network(wave[None])[0] for wave in waves])
    torch.testing.assert_close(network.embed_speaker(waves), F.normalize(parts.mean(0), dim=0))
    torch.testing.assert_close(network.embed_speaker(waves[:1]), parts[0])


def test_latent_noise_is_renormalised() -> None:
    torch.manual_seed(0)
    embedding, noise = F.normalize(torch.randn(3, 512), dim=1), torch.randn(3, 512)
    torch.testing.assert_close(voice_latent(embedding, noise, 0.0), embedding)
    noisy = voice_latent(embedding, noise, 0.05)
    expected = embedding + 0.05 * noise
    torch.testing.assert_close(noisy, expected / expected.norm(dim=1, keepdim=True))


def test_w_plus_head_starts_at_the_average_and_truncates_towards_it() -> None:
    average = torch.arange(6.0)
    head = WPlusHead(4, average, 5)
    z = F.normalize(torch.randn(2, 4), dim=1)
    torch.testing.assert_close(head(z), average.expand(2, 5, 6))
    torch.nn.init.normal_(head.delta.weight)
    free = head(z)
    torch.testing.assert_close(head(z, truncation=0.5), average + 0.5 * (free - average))
    part = head(z, truncation=0.0, truncation_cutoff=2)
    torch.testing.assert_close(part[:, :2], average.expand(2, 2, 6))
    torch.testing.assert_close(part[:, 2:], free[:, 2:])
