"""What each tensor of StyleGAN2 is called here, in NVIDIA's ADA-PyTorch code and in rosinality's."""

from collections.abc import Iterator
from dataclasses import dataclass

# How a tensor of ours, of shape s, is shaped in rosinality's files.
SAME, LEADING, PLANE, CHANNELS, SCALAR = "s", "(1, *s)", "(1, 1, *s)", "(1, *s, 1, 1)", "(1,)"


@dataclass(frozen=True)
class Row:
    """One tensor; `rosinality` is None where that code has no such tensor."""

    ours: str
    nvidia: str
    rosinality: str | None
    layout: str = SAME

    def rosinality_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the tensor in rosinality's layout, from ours."""
        shapes = {LEADING: (1, *shape), PLANE: (1, 1, *shape), CHANNELS: (1, *shape, 1, 1), SCALAR: (1,)}
        return shapes.get(self.layout, shape)


def generator_rows(power: int, mapping_layers: int, *, conditional: bool = False) -> list[Row]:
    """Rows of a generator of 2^power pixels."""
    rows = list(_mapping_rows(mapping_layers, conditional=conditional, styles=True))
    rows.append(Row("mapping.w_avg", "mapping.w_avg", None))
    rows.append(Row("synthesis.blocks.0.const", "synthesis.b4.const", "input.input", LEADING))
    planes = 0
    for i in range(power - 1):
        ours, nvidia = f"synthesis.blocks.{i}", f"synthesis.b{4 << i}"
        convs = {"conv1": "conv1"} if i == 0 else {"conv0": f"convs.{2 * i - 2}", "conv1": f"convs.{2 * i - 1}"}
        for name, theirs in convs.items():
            rows += _modulated_rows(f"{ours}.{name}", f"{nvidia}.{name}", theirs)
            rows += [
                Row(f"{ours}.{name}.bias", f"{nvidia}.{name}.bias", f"{theirs}.activate.bias"),
                Row(
                    f"{ours}.{name}.noise_strength",
                    f"{nvidia}.{name}.noise_strength",
                    f"{theirs}.noise.weight",
                    SCALAR,
                ),
                Row(f"{ours}.{name}.noise_const", f"{nvidia}.{name}.noise_const", f"noises.noise_{planes}", PLANE),
            ]
            planes += 1
        head = "to_rgb1" if i == 0 else f"to_rgbs.{i - 1}"
        rows += _modulated_rows(f"{ours}.to_rgb", f"{nvidia}.torgb", head)
        rows.append(Row(f"{ours}.to_rgb.bias", f"{nvidia}.torgb.bias", f"{head}.bias", CHANNELS))
    return rows


def generator_filters(power: int) -> list[str]:
    """rosinality's FIR kernels (gain 4) in a generator of 2^power pixels."""
    doublings = range(power - 2)
    return [f"convs.{2 * j}.conv.blur.kernel" for j in doublings] + [f"to_rgbs.{j}.upsample.kernel" for j in doublings]


def discriminator_rows(power: int, mapping_layers: int, *, conditional: bool = False) -> list[Row]:
    """Rows of a discriminator of 2^power pixels."""
    top = f"b{1 << power}.fromrgb"
    rows = [
        Row("from_rgb.weight", f"{top}.weight", "convs.0.0.weight"),
        Row("from_rgb.bias", f"{top}.bias", "convs.0.1.bias"),
    ]
    for i in range(power - 2):
        ours, nvidia, theirs = f"blocks.{i}", f"b{1 << (power - i)}", f"convs.{i + 1}"
        rows += [
            Row(f"{ours}.conv0.weight", f"{nvidia}.conv0.weight", f"{theirs}.conv1.0.weight"),
            Row(f"{ours}.conv0.bias", f"{nvidia}.conv0.bias", f"{theirs}.conv1.1.bias"),
            Row(f"{ours}.conv1.weight", f"{nvidia}.conv1.weight", f"{theirs}.conv2.1.weight"),
            Row(f"{ours}.conv1.bias", f"{nvidia}.conv1.bias", f"{theirs}.conv2.2.bias"),
            Row(f"{ours}.skip.weight", f"{nvidia}.skip.weight", f"{theirs}.skip.1.weight"),
        ]
    rows += [
        Row("conv.weight", "b4.conv.weight", "final_conv.0.weight"),
        Row("conv.bias", "b4.conv.bias", "final_conv.1.bias"),
    ]
    for name, theirs in (("fc", "final_linear.0"), ("out", "final_linear.1")):
        rows += [Row(f"{name}.{kind}", f"b4.{name}.{kind}", f"{theirs}.{kind}") for kind in ("weight", "bias")]
    return rows + (list(_mapping_rows(mapping_layers, conditional=True, styles=False)) if conditional else [])


def discriminator_filters(power: int) -> list[str]:
    """rosinality's FIR kernels (gain 1) in a discriminator of 2^power pixels."""
    return [f"convs.{i}.{part}.0.kernel" for i in range(1, power - 1) for part in ("conv2", "skip")]


def _mapping_rows(layers: int, *, conditional: bool, styles: bool) -> Iterator[Row]:
    for kind in ("weight", "bias"):
        if conditional:
            yield Row(f"mapping.embed.{kind}", f"mapping.embed.{kind}", None)
        for i in range(layers):
            theirs = f"style.{i + 1}.{kind}" if styles else None
            yield Row(f"mapping.layers.{i}.{kind}", f"mapping.fc{i}.{kind}", theirs)


def _modulated_rows(ours: str, nvidia: str, rosinality: str) -> list[Row]:
    rows = [Row(f"{ours}.conv.weight", f"{nvidia}.weight", f"{rosinality}.conv.weight", LEADING)]
    for kind in ("weight", "bias"):
        rows.append(
            Row(f"{ours}.conv.affine.{kind}", f"{nvidia}.affine.{kind}", f"{rosinality}.conv.modulation.{kind}")
        )
    return rows
