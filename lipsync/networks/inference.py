"""The generator as it runs in production: folded, channels last, and without the rows that nobody looks at."""

import torch
from torch import Tensor, nn

from lipsync.networks.blocks import channels_last, fold_batch_norm
from lipsync.networks.generator import Wav2Lip, over_time


class InferenceGenerator(nn.Module):
    """A frozen copy of a generator, called as the generator is, always in eval mode; see `prepare_for_inference`."""

    def __init__(self, generator: Wav2Lip, *, first_row: int, dtype: torch.dtype) -> None:
        super().__init__()
        if not 0 <= first_row < generator.size:
            raise ValueError(f"first_row {first_row} is not a row of faces of {generator.size} px")
        self.rows, self.size, self.first_row, self.dtype = generator.rows, generator.size, first_row, dtype
        self.generator = channels_last(fold_batch_norm(generator).requires_grad_(False).to(dtype))
        self._starts = _first_rows(generator, first_row)

    def train(self, mode: bool = True) -> "InferenceGenerator":
        return super().train(False)

    def forward(self, audio: Tensor, faces: Tensor) -> Tensor:
        """As `Wav2Lip.forward`; float32. Rows above `first_row` are those of the target, channels 0 to 2."""
        return over_time(self._draw, audio, faces)

    def _draw(self, audio: Tensor, faces: Tensor) -> Tensor:
        self.generator.check(audio, faces)
        x = self.generator.hear(audio.to(self.dtype))
        skips = self.generator.look(faces.to(self.dtype))
        top = 0  # the row of the whole map that is the first of x
        for block, start in zip(self.generator.face_decoder_blocks, self._starts, strict=True):
            drawn = block(x)[:, :, start - 2 * top :]
            x = torch.cat([drawn, skips.pop()[:, :, start:]], dim=1)
            top = start
        lower = self.generator.output_block(x)[:, :, self.first_row - top :].float()
        return torch.cat([faces[:, :3, : self.first_row].float(), lower], dim=2) if self.first_row else lower


def prepare_for_inference(
    generator: Wav2Lip, *, first_row: int = 0, dtype: torch.dtype = torch.float32
) -> InferenceGenerator:
    """A frozen copy for eval: norms and sums folded into the convolutions, weights in channels-last order.

    Results equal the generator's in eval mode to 1e-5 in float32, and to some 1e-2 in bfloat16, which is about twice
    as fast where the device has it. Call it under `torch.inference_mode()`, with batches of 8 to 32 frames on a CPU
    and of 128 on a GPU.

    Args:
        generator: in any mode, on its device; not changed.
        first_row: of the faces that is looked at. A caller that pastes the lower face alone, below row 40 of 96, saves
            a quarter of the arithmetic: the decoder leaves out what does not reach these rows. The rows that are drawn
            do not depend on it.
        dtype: of weights and maps; results are float32.
    """
    return InferenceGenerator(generator, first_row=first_row, dtype=dtype)


def _first_rows(generator: Wav2Lip, first_row: int) -> list[int]:
    """The first row of the map behind each decoder block on which drawn rows from `first_row` on depend.

    A 3x3 convolution looks one row up. Row y of a doubling convolution depends on rows y // 2 and on; behind a cut its
    first row and those below are right.
    """
    start = max(0, first_row - 1)
    starts = [start]
    for block in list(generator.face_decoder_blocks)[:1:-1]:
        assert isinstance(block, nn.Sequential)
        start = max(0, start - (len(block) - 1)) // 2
        starts.append(start)
    return [0, *starts[::-1]]
