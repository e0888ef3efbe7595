"""The UNet: shapes, variants, gradients; what it learns is in test_training.py."""

from __future__ import annotations

import pytest
import torch

from weaktumour.errors import ModelError
from weaktumour.networks import build
from weaktumour.networks.unet import NORMS, UNet

SMALL = (4, 8, 16)


@pytest.fixture(autouse=True)
def one_thread_and_seed():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def weights_in(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("shape", [(16, 16, 16), (13, 7, 9), (5, 20, 3), (1, 1, 1)])
@pytest.mark.parametrize("attention", [False, True])
def test_any_size_in_the_same_size_out(shape, attention):
    network = UNet(2, 3, SMALL, attention=attention).eval()
    assert network(torch.rand(2, 2, *shape)).shape == (2, 3, *shape)


def test_padding_leaves_what_is_far_from_it_alone():
    """An odd image is an even one without its last slices: without normalisation only what is near them may differ."""
    network = UNet(1, 2, (4, 8), norm="none").eval()
    image = torch.rand(1, 1, 32, 8, 8)
    whole, cut = network(image), network(image[:, :, :31])
    torch.testing.assert_close(cut[:, :, :16], whole[:, :, :16])
    assert not torch.allclose(cut[:, :, 30], whole[:, :, 30])


@pytest.mark.parametrize("attention", [False, True])
def test_deep_supervision_gives_a_list_in_training_only(attention):
    network = UNet(1, 3, SMALL, attention=attention, deep_supervision=True)
    image = torch.rand(1, 1, 13, 16, 10)
    found = network.train()(image)
    # The finest is cropped to the image, the coarser ones are on halves of the padded (16, 16, 12).
    assert [tuple(logits.shape) for logits in found] == [(1, 3, 13, 16, 10), (1, 3, 8, 8, 6)]
    plain = network.eval()(image)
    assert isinstance(plain, torch.Tensor)
    torch.testing.assert_close(plain, found[0])  # instance normalisation: no mode of its own
    assert isinstance(UNet(1, 3, SMALL).train()(image), torch.Tensor)


@pytest.mark.parametrize("deep_supervision", [False, True])
@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("norm", NORMS)
def test_gradient_reaches_every_parameter(norm, attention, deep_supervision):
    network = UNet(1, 3, SMALL, norm, attention, deep_supervision).train()
    found = network(torch.rand(2, 1, 8, 12, 8))
    sum(logits.square().mean() for logits in (found if deep_supervision else [found])).backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert silent == []


@pytest.mark.parametrize("norm", NORMS)
def test_each_norm_is_what_it_says(norm):
    network = UNet(1, 2, (8, 16), norm)
    kinds = {"instance": torch.nn.InstanceNorm3d, "batch": torch.nn.BatchNorm3d, "group": torch.nn.GroupNorm}
    layers = [layer for layer in network.modules() if isinstance(layer, tuple(kinds.values()))]
    assert len(layers) == (0 if norm == "none" else 6)
    assert all(isinstance(layer, kinds[norm]) for layer in layers)
    network.eval()
    image = torch.rand(1, 1, 8, 8, 8)
    # Instance and group normalisation take the contrast away, batch normalisation with kept statistics does not.
    changes = (network(image) - network(3 * image)).abs().max()
    assert bool(changes < 1e-3) is (norm in ("instance", "group"))
    assert torch.isfinite(network(torch.rand(1, 1, 2, 2, 2))).all()


def test_group_norm_takes_widths_that_are_no_multiple_of_8():
    assert UNet(1, 2, (6, 12), "group")(torch.rand(1, 1, 4, 4, 4)).shape == (1, 2, 4, 4, 4)


def test_wider_and_deeper_is_more():
    sizes = [weights_in(UNet(1, 3, widths)) for widths in ((4, 8), (8, 16), (16, 32), (16, 32, 64))]
    assert sizes == sorted(set(sizes))
    # By hand: two convolutions a block without bias, their normalisations (scale, shift), a head of 1 x 1 x 1.
    blocks = ((1, 4), (4, 4), (4, 8), (8, 8), (12, 4), (4, 4))
    assert sizes[0] == sum(27 * a * b + 2 * b for a, b in blocks) + 4 * 3 + 3
    assert weights_in(UNet(1, 3, (4, 8), attention=True)) == sizes[0] + 8 * 4 * 2 + (8 * 2 + 2) + (2 + 1)


def test_the_published_configuration():
    network = UNet(1, 1, (32, 64, 128, 256, 512), norm="batch")
    assert len(network.encoder) == 5
    assert network.factor == 16
    assert 15e6 < weights_in(network) < 30e6
    with torch.no_grad():
        probability = torch.sigmoid(network.eval()(torch.rand(1, 1, 16, 16, 16)))
    assert probability.shape == (1, 1, 16, 16, 16)
    assert bool(((probability > 0) & (probability < 1)).all())


def test_gates_lie_between_0_and_1_and_close_when_told():
    network = UNet(1, 3, SMALL, attention=True).eval()
    gate = network.gates[0]
    skip, gating = torch.rand(1, 4, 8, 8, 8) + 0.1, torch.randn(1, 8, 4, 4, 4)
    with torch.no_grad():
        share = gate(skip, gating) / skip
    assert bool(((share > 0) & (share < 1)).all())
    assert float(share.std()) > 1e-4  # one gate for each place, not for all
    torch.testing.assert_close(share[:, :1].expand_as(share), share)  # and the same for all channels
    torch.nn.init.constant_(gate.psi.bias, -50.0)
    assert bool((gate(skip, gating).abs() < 1e-6).all())


@pytest.mark.parametrize(
    "arguments",
    [{"norm": "layer"}, {"widths": [8]}, {"widths": [8, -16]}, {"depth": 4}, {"widths": "wide"}, {"in_channels": 0.5}],
)
def test_what_is_no_unet_is_refused(arguments):
    with pytest.raises(ModelError, match="unet"):
        build("unet", arguments)
