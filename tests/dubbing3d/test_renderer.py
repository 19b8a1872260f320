"""The renderer as a whole: one reference is the paper, caches and ablations change what they should and no more."""

from typing import Any

import pytest
import torch
from torch import Tensor

from dubbing3d.networks import References, Renderer, RenderOutput, warp
from tests.dubbing3d.toy_networks import images, randomise, without_gradient

WIDTH, SIZE = 0.04, 64
GUIDE, REFERENCE, CROP = (images(2, 3, SIZE, SIZE, seed=seed) for seed in range(3))


def build(**options: Any) -> Renderer:
    torch.manual_seed(0)
    net = Renderer(width=WIDTH, image_size=SIZE, **options)
    randomise(net)
    return net.eval()


def draw(net: Renderer, *inputs: Any, **named: Any) -> RenderOutput:
    with torch.no_grad():
        return net(*inputs, **named)


def same(first: RenderOutput, second: RenderOutput) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None)


def test_it_is_the_equations_14_to_18() -> None:
    net = build()
    out = draw(net, GUIDE, REFERENCE, CROP)
    assert net.sfm is not None
    assert net.tmn is not None
    with torch.no_grad():
        flow = net.sfm(GUIDE, REFERENCE).flow
        warped = warp(REFERENCE, flow)
        (c_e, a_e), features = net.tmn(warped, GUIDE)
        c_i, a_i = net.rbfin(warped, GUIDE, CROP, features)
    expected = (flow[:, None], torch.ones(2, 1, 1, SIZE, SIZE), warped, c_e, a_e, a_e * c_e + (1 - a_e) * warped)
    expected = (*expected, c_i, a_i, a_i * c_i + (1 - a_i) * CROP)
    for name, got, wanted in zip(out._fields, out, expected, strict=True):
        assert got is not None
        assert torch.allclose(got, wanted, atol=1e-6), name


def test_one_reference_is_the_paper_to_the_bit() -> None:
    single, several = build(), build(multi_reference=True)
    several.load_state_dict(single.state_dict(), strict=False)
    assert same(draw(single, GUIDE, REFERENCE, CROP), draw(several, GUIDE, REFERENCE[:, None], CROP))


def test_equal_references_are_one() -> None:
    net = build(multi_reference=True)
    several = draw(net, GUIDE, REFERENCE[:, None].expand(-1, 3, -1, -1, -1), CROP)
    one = draw(net, GUIDE, REFERENCE, CROP)
    assert several.flow is not None
    assert several.flow.shape == (2, 3, 2, SIZE, SIZE)
    assert torch.allclose(several.image_i, one.image_i, atol=1e-5)


def test_weights_share_out_each_pixel() -> None:
    net = build(multi_reference=True)
    out = draw(net, GUIDE, images(2, 3, 3, SIZE, SIZE), CROP)
    assert out.weights is not None
    assert out.weights.shape == (2, 3, 1, SIZE, SIZE)
    assert torch.allclose(out.weights.sum(dim=1), torch.ones(2, 1, SIZE, SIZE))
    assert out.weights.std() > 0


def test_references_may_be_encoded_once_for_a_clip() -> None:
    net = build(multi_reference=True)
    references = images(1, 2, 3, SIZE, SIZE)
    with torch.no_grad():
        cached = net.encode_references(references)
    assert isinstance(cached, References)
    whole = draw(net, GUIDE, references.expand(2, -1, -1, -1, -1), CROP)
    assert torch.allclose(draw(net, GUIDE, cached, CROP).image_i, whole.image_i, atol=1e-6)
    for index in range(2):
        frame = draw(net, GUIDE[index : index + 1], cached, CROP[index : index + 1])
        assert torch.allclose(frame.image_i, whole.image_i[index : index + 1], atol=1e-5)


def test_the_untrained_network_shows_the_reference_where_it_is() -> None:
    torch.manual_seed(0)
    net = Renderer(width=WIDTH, image_size=SIZE).eval()
    out = draw(net, GUIDE, REFERENCE, CROP)
    assert torch.equal(out.warp, REFERENCE)


def test_the_recurrent_input_off_is_the_paper() -> None:
    plain = build()
    torch.manual_seed(0)
    recurrent = Renderer(width=WIDTH, image_size=SIZE, recurrent=True).eval()
    recurrent.load_state_dict(plain.state_dict(), strict=False)
    expected = draw(plain, GUIDE, REFERENCE, CROP)
    assert same(expected, draw(recurrent, GUIDE, REFERENCE, CROP))
    assert same(expected, draw(recurrent, GUIDE, REFERENCE, CROP, previous=CROP))


ABLATIONS: dict[str, dict[str, Any]] = {
    "full": {},
    "base": {"flow": False, "enhancement": False},
    "no flow": {"flow": False},
    "no enhancement": {"enhancement": False},
    "no msaf": {"msaf": False},
    "low": {"scales": ("low",)},
    "high": {"scales": ("high",)},
    "scale 0": {"scale": 0.0},
    "scale 1": {"scale": 1.0},
    "sigmoid": {"scale": "sigmoid"},
    "full convolutions": {"depthwise": False},
    "everything": {"multi_reference": True, "reference_guide": True, "recurrent": True, "guide_channels": 4},
}


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_form_learns_everywhere(name: str) -> None:
    options = ABLATIONS[name]
    net = build(**options).train()
    references: Tensor | References = REFERENCE
    guide = GUIDE
    if name == "everything":
        guide = images(2, 4, SIZE, SIZE)
        references = net.encode_references(images(2, 2, 3, SIZE, SIZE), images(2, 2, 4, SIZE, SIZE, seed=5))
    out = net(guide, references, CROP, CROP if net.recurrent else None)
    for image in (out.warp, out.image_e, out.image_i):
        assert image.shape == (2, 3, SIZE, SIZE)
    assert (out.colour_e is None) == (not options.get("enhancement", True))
    assert (out.flow is None) == (not options.get("flow", True))
    (out.image_i.square().sum() + out.image_e.square().sum()).backward()
    unused = {name for name in without_gradient(net) if not (options.get("scale") == 0 and ".fuse." in name)}
    assert unused == set()


def test_textures_alone_need_no_crop() -> None:
    net = build()
    with torch.no_grad():
        textured = net.texture(GUIDE, REFERENCE)
    out = draw(net, GUIDE, REFERENCE, CROP)
    assert torch.equal(textured.image_e, out.image_e)
    assert textured._fields[:-1] == out._fields[:6]


def test_bfloat16_stays_near() -> None:
    net = build()
    exact = draw(net, GUIDE, REFERENCE, CROP)
    with torch.autocast("cpu", torch.bfloat16):
        half = draw(net, GUIDE, REFERENCE, CROP)
    assert half.flow is not None
    assert half.flow.dtype == half.image_i.dtype == torch.float32
    assert (half.image_i - exact.image_i).abs().mean() < 0.05


def test_wrong_use_is_named() -> None:
    net = build()
    with pytest.raises(ValueError, match="takes one reference, got 2"):
        net(GUIDE, images(2, 2, 3, SIZE, SIZE), CROP)
    with pytest.raises(ValueError, match="expected references"):
        net(GUIDE, REFERENCE[..., :32], CROP)
    with pytest.raises(ValueError, match="expected renders"):
        net(images(2, 4, SIZE, SIZE), REFERENCE, CROP)
    with pytest.raises(ValueError, match="reference_guide"):
        net.encode_references(REFERENCE, GUIDE)
    with pytest.raises(ValueError, match="need the flow network"):
        Renderer(flow=False, multi_reference=True)
    with pytest.raises(ValueError, match="multiple of 32"):
        Renderer(image_size=100)
