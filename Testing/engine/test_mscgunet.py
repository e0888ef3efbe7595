"""MSCGUNet: the published numbers, where a published checkpoint is at hand, and what ours promises beyond them."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from weaktumour import deformation
from weaktumour.errors import ModelError
from weaktumour.networks import ARCHITECTURES, build
from weaktumour.networks.mscgunet import MSCGUNet, Prediction, is_published_layout, load_published

SMALL = {"widths": (4, 8, 8, 8), "decoder_width": 4}  # pads to multiples of 8


def images(shape=(32, 24, 32), *, batch=1, channels=1, seed=0) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth random images in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand((2 * batch, channels, 6, 6, 6), generator=generator)
    fixed, moving = torch.nn.functional.interpolate(coarse, size=shape, mode="trilinear").chunk(2)
    return fixed, moving


def moving_network(largest: float = 2.0, **arguments) -> MSCGUNet:
    """A network in eval mode whose heads are not zero: velocities reach `largest` voxels on `images()`."""
    torch.manual_seed(1)
    network = MSCGUNet(**{**SMALL, **arguments}).eval()
    heads = [head[-1].weight for head in (network.half_head, network.full_head) if head is not None]
    with torch.no_grad():
        for weight in heads:
            weight.normal_()
        found = network(*images(channels=network.image_channels)).velocity.abs().max()
        for weight in heads:
            weight.mul_(largest / found)
    return network


def interior(field: torch.Tensor, margin: int) -> torch.Tensor:
    return field[..., margin:-margin, margin:-margin, margin:-margin]


# -- ours -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("full_head", [False, True])
@pytest.mark.parametrize("norm", ["none", "instance", "group"])
def test_the_first_prediction_is_no_motion(norm, full_head):
    prediction = MSCGUNet(**SMALL, norm=norm, full_head=full_head)(*images())
    assert torch.equal(prediction.displacement, torch.zeros(1, 3, 32, 24, 32))
    assert torch.equal(prediction.inverse_displacement(), torch.zeros(1, 3, 32, 24, 32))
    assert torch.isfinite(prediction.scg_loss)


@pytest.mark.parametrize("shape", [(8, 8, 8), (33, 17, 40), (5, 31, 12), (1, 9, 9)])
@pytest.mark.parametrize("arguments", [{}, {"full_head": True, "norm": "instance"}, {"extra_channels": 2}])
def test_any_grid_and_extra_channels(shape, arguments):
    network = moving_network(**arguments)
    with torch.no_grad():
        prediction = network(*images(shape, channels=network.image_channels))
    assert prediction.displacement.shape == (1, 3, *shape)
    assert prediction.inverse_displacement().shape == (1, 3, *shape)
    assert prediction.half_displacement.shape[2:] == tuple(-(-n // 2) for n in shape)
    assert prediction.adjacency.shape == (1, 64, 64)
    assert all(torch.isfinite(value).all() for value in prediction if isinstance(value, torch.Tensor))


def test_padding_does_not_move_the_voxels():
    # The near corner of an image keeps its displacement when the far end is continued by hand instead.
    network = moving_network()
    fixed, moving = images((27, 24, 32))
    continued = [torch.nn.functional.pad(i, (0, 0, 0, 0, 0, 5), mode="replicate") for i in (fixed, moving)]
    with torch.no_grad():
        padded, by_hand = network(fixed, moving), network(*continued)
    assert torch.equal(padded.displacement, by_hand.displacement[:, :, :27])


def test_images_that_do_not_fit_are_refused():
    fixed, moving = images()
    with pytest.raises(ValueError, match="alike"):
        MSCGUNet(**SMALL)(fixed, moving[:, :, 1:])
    with pytest.raises(ValueError, match="alike"):
        MSCGUNet(**SMALL, extra_channels=1)(fixed, moving)


def test_a_constant_velocity_is_twice_as_many_full_voxels():
    prediction = MSCGUNet(**SMALL)(*images((40, 31, 26)))
    velocity = torch.tensor([1.5, -0.25, 0.75]).reshape(1, 3, 1, 1, 1).expand_as(prediction.velocity)
    displacement = prediction.exponential(velocity)
    assert displacement.shape == (1, 3, 40, 31, 26)
    expected = torch.tensor([3.0, -0.5, 1.5]).reshape(1, 3, 1, 1, 1)
    assert (displacement - expected).abs().max() < 1e-5


def test_a_stretch_lies_where_the_full_grid_has_it():
    # v(x) = a (x - c) flows to u(x) = (exp(a) - 1) (x - c): grid and unit must both change by the true ratio.
    rate, count = 0.05, 48
    prediction = MSCGUNet(**SMALL)(*images((count,) * 3))
    half, full = torch.arange(count // 2), torch.arange(count)
    centre = (count / 2 - 1) / 2
    velocity = torch.zeros_like(prediction.velocity)
    velocity[:, 0] = rate * (half - centre)  # along x
    found = prediction.exponential(velocity)[0, 0, count // 2, count // 2]
    place = (full + 0.5) / 2 - 0.5  # of each full voxel on the half grid
    expected = 2 * (np.exp(rate) - 1) * (place - centre)
    assert (found - expected)[6:-6].abs().max() < 5e-3


def test_the_full_head_speaks_in_full_voxels():
    network = MSCGUNet(**SMALL, full_head=True)
    network.full_head[-1].register_forward_hook(lambda module, inputs, output: torch.full_like(output, 3.0))
    prediction = network(*images())
    assert (prediction.velocity - 1.5).abs().max() < 1e-6  # half voxels
    assert (prediction.displacement - 3.0).abs().max() < 1e-5


def test_displacement_and_half_displacement_agree():
    with torch.no_grad():
        prediction = moving_network()(*images())
    averaged = torch.nn.functional.avg_pool3d(prediction.displacement, 2) / 2
    smooth = (averaged - prediction.half_displacement).abs().mean()
    assert smooth < 0.2 * prediction.half_displacement.abs().mean()


@pytest.mark.parametrize("full_head", [False, True])
def test_no_folds_and_the_inverse_undoes(full_head):
    with torch.no_grad():
        prediction = moving_network(1.0, full_head=full_head)(*images((48, 40, 48)))
        inverse = prediction.inverse_displacement()
    assert prediction.displacement.abs().max() > 0.5
    assert deformation.jacobian_determinant(prediction.displacement).min() > 0
    assert deformation.jacobian_determinant(inverse).min() > 0
    there_and_back = deformation.compose(prediction.displacement, inverse)
    assert interior(there_and_back, 4).abs().max() < 0.1 * prediction.displacement.abs().max()


@pytest.mark.parametrize("full_head", [False, True])
def test_a_batch_is_its_images_one_by_one(full_head):
    network = moving_network(full_head=full_head)
    fixed, moving = images(batch=2)
    with torch.no_grad():
        both = network(fixed, moving)
        for i in range(2):
            one = network(fixed[i : i + 1], moving[i : i + 1])
            for name in ("displacement", "half_displacement", "velocity", "latent", "adjacency"):
                assert (getattr(both, name)[i] - getattr(one, name)[0]).abs().max() < 1e-4, name
        losses = [network(fixed[i : i + 1], moving[i : i + 1]).scg_loss for i in range(2)]
    assert both.scg_loss == pytest.approx(sum(losses).item() / 2, rel=1e-4)


@pytest.mark.parametrize("threads", [1, 3])
def test_integration_of_a_batch(threads):
    torch.manual_seed(0)
    velocity = torch.randn(2, 3, 5, 7, 6)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        both = deformation.integrate(velocity)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(both, torch.cat([deformation.integrate(one[None]) for one in velocity]))


def test_evaluation_repeats_itself_and_drawing_is_on_purpose():
    network = moving_network()
    pair = images()
    with torch.no_grad():
        first, again = network(*pair), network(*pair)
        drawn, other = network(*pair, draw=True), network(*pair, draw=True)
        network.train()
        trained, once_more = network(*pair), network(*pair)
    assert torch.equal(first.displacement, again.displacement)
    assert not torch.equal(drawn.adjacency, other.adjacency)
    assert not torch.equal(trained.adjacency, once_more.adjacency)


@pytest.mark.parametrize("arguments", [{}, {"full_head": True, "norm": "group"}, {"norm": "instance"}])
def test_the_gradient_reaches_every_parameter(arguments):
    network = moving_network(**arguments).train()
    prediction = network(*images(batch=2))
    loss = prediction.displacement.square().mean() + prediction.half_displacement.square().mean() + prediction.scg_loss
    loss.backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


def test_a_few_steps_find_a_shift():
    torch.manual_seed(0)
    network = MSCGUNet(**SMALL)
    fixed, _ = images((32, 32, 32))
    moving = deformation.warp(fixed, torch.full((1, 3, 32, 32, 32), -2.0))  # so u = 2 brings it back
    optimiser = torch.optim.Adam(network.parameters(), 1e-3)
    errors = []
    for _ in range(25):
        prediction = network(fixed, moving)
        loss = (deformation.warp(moving, prediction.displacement) - fixed).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        errors.append(loss.item())
    assert errors[-1] < 0.5 * errors[0]


def latent_of(network: MSCGUNet, features: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return network._graph_latent(features, draw=False)[0]


def position_blind(published: bool) -> MSCGUNet:
    """A network whose graph treats all nodes alike: the mean of the latent variables sees its own node only."""
    torch.manual_seed(0)
    network = MSCGUNet(published=published).eval()
    with torch.no_grad():
        centre = network.scg.mu.weight[:, :, 1:2, 1:2, 1:2].clone()
        network.scg.mu.weight.zero_()
        network.scg.mu.weight[:, :, 1:2, 1:2, 1:2] = centre
    return network


@pytest.mark.parametrize("swapped", [(4, 3, 2), (2, 4, 3)])
def test_nodes_and_channels_are_kept_apart(swapped):
    # Where nodes are alike but for what they hold, shuffling them shuffles the answer.
    features = torch.rand(2, 32, 4, 4, 4, generator=torch.Generator().manual_seed(3))
    order = (0, 1, *swapped)
    ours, published = position_blind(False), position_blind(True)
    difference = latent_of(ours, features.permute(order).contiguous()) - latent_of(ours, features).permute(order)
    assert difference.abs().max() < 1e-5
    mixed = latent_of(published, features.permute(order).contiguous()) - latent_of(published, features).permute(order)
    assert mixed.abs().max() > 1e-3  # the published order fails this: the check can fail


def test_the_graph_survives_nothing_to_see():
    network = moving_network()
    with torch.no_grad():
        for parameter in network.scg.parameters():
            parameter.zero_()
        prediction = network(*images())
    assert torch.isfinite(prediction.displacement).all()
    assert torch.isfinite(prediction.scg_loss)


def test_autocast_keeps_fields_in_float32():
    network = moving_network()
    pair = images()
    with torch.no_grad():
        exact = network(*pair)
        with torch.autocast("cpu", torch.bfloat16):
            rough = network(*pair)
    assert {rough.displacement.dtype, rough.velocity.dtype, rough.scg_loss.dtype} == {torch.float32}
    assert (rough.displacement - exact.displacement).abs().mean() < 0.1 * exact.displacement.abs().mean()


def test_a_training_wrapper_can_rebuild_the_prediction():
    prediction = MSCGUNet(**SMALL)(*images())
    rebuilt = type(prediction)(*(value for value in prediction))
    assert isinstance(rebuilt, Prediction)
    assert torch.equal(rebuilt.inverse_displacement(), prediction.inverse_displacement())


# -- architectures --------------------------------------------------------------------------------------------------
def parameters(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def test_sizes():
    assert parameters(MSCGUNet(published=True)) == 421_373
    assert parameters(MSCGUNet()) < 1_000_000


def test_build():
    assert set(ARCHITECTURES) == {"mscgunet", "unet", "attention_unet"}
    network = build("mscgunet", {"widths": [4, 8, 8], "extra_channels": 1})
    assert isinstance(network, MSCGUNet)
    assert network.image_channels == 2


@pytest.mark.parametrize(
    ("architecture", "arguments", "words"),
    [
        ("resnet", {}, "unknown; this version has mscgunet, unet"),
        ("mscgunet", {"depth": 3}, "depth"),
        ("mscgunet", {"widths": [16]}, "three levels"),
        ("mscgunet", {"widths": "wide"}, "do not fit"),
        ("mscgunet", {"norm": "batch"}, "none, instance, group"),
        ("mscgunet", {"nodes": [4, 4]}, "three numbers"),
        ("mscgunet", {"extra_channels": -1}, "not negative"),
        ("mscgunet", ["widths"], "do not fit"),
    ],
)
def test_build_refuses(architecture, arguments, words):
    with pytest.raises(ModelError, match=words) as caught:
        build(architecture, arguments)
    assert caught.value.kind == "model"
    assert "\n" not in str(caught.value)


# -- the published network --------------------------------------------------------------------------------------------
def foreign_checkpoint() -> dict[str, dict[str, torch.Tensor]]:
    """The layout of a published checkpoint (names and shapes as read from one), with random values."""
    torch.manual_seed(5)

    def conv(after: int, before: int) -> torch.Tensor:
        return 0.05 * torch.randn(after, before, 3, 3, 3)

    def graph(after: int, before: int) -> dict[str, torch.Tensor]:
        return {
            "fc.0.weight": torch.randn(after, before),
            "fc.0.bias": torch.randn(after),
            "fc.1.weight": torch.rand(after),
            "fc.1.bias": torch.rand(after),
            "fc.1.running_mean": torch.rand(after),
            "fc.1.running_var": torch.rand(after) + 0.5,
            "fc.1.num_batches_tracked": torch.tensor(7),
        }

    encoder = zip((16, 32, 32, 32, 32, 32), (2, 16, 32, 32, 32, 32), strict=True)
    checkpoint = {
        "feature_extractor_training": {f"en{i}.0.weight": conv(*c) for i, c in enumerate(encoder, start=1)},
        "scg_training": {
            "mu.0.weight": conv(9, 32),
            "mu.0.bias": torch.randn(9),
            "logvar.0.weight": 0.05 * torch.randn(9, 32, 1, 1, 1),
            "logvar.0.bias": torch.randn(9),
        },
        "graph_layers1_training": graph(16, 32),
        "graph_layers2_training": graph(9, 16),
    }
    for i, before in enumerate((41, 64, 64, 64, 48), start=1):
        checkpoint[f"upsampler{i}_training"] = {"op.0.weight": conv(32, before)}
    for i, (after, before) in enumerate(((16, 33), (16, 16), (3, 16), (16, 32), (16, 16), (3, 16)), start=1):
        checkpoint[f"conv_decoder{i}_training"] = {"op.0.weight": conv(after, before)}
    return checkpoint


def test_a_published_checkpoint_loads_whole():
    checkpoint = foreign_checkpoint()
    assert is_published_layout(checkpoint)
    network = load_published(checkpoint)
    assert not network.training
    loaded = sorted(float(v.double().sum()) for v in network.state_dict().values())
    given = sorted(float(v.double().sum()) for part in checkpoint.values() for v in part.values())
    assert np.allclose(loaded, given)
    assert torch.equal(network.half_head[0][0].weight, checkpoint["conv_decoder4_training"]["op.0.weight"])


def test_other_things_are_no_published_checkpoint():
    assert not is_published_layout({"state_dict": {}})
    assert not is_published_layout([1, 2])
    assert not is_published_layout(MSCGUNet(published=True).state_dict())


@pytest.mark.parametrize("part", foreign_checkpoint())
def test_a_missing_part_is_named(part):
    checkpoint = foreign_checkpoint()
    del checkpoint[part]
    assert is_published_layout(checkpoint)
    with pytest.raises(ModelError, match=f'no part "{part}"'):
        load_published(checkpoint)


def test_parts_that_differ_are_refused():
    def changed(part, name, value):
        checkpoint = copy.deepcopy(foreign_checkpoint())
        checkpoint[part][name] = value
        return checkpoint

    without = foreign_checkpoint()
    del without["scg_training"]["mu.0.bias"]
    for checkpoint, words in (
        (without, 'no tensor "mu.0.bias"'),
        (changed("scg_training", "mu.0.bias", [0.0] * 9), 'no tensor "mu.0.bias"'),
        (changed("scg_training", "mu.0.bias", torch.zeros(8)), r"shape \(8,\) where MSCGUNet has \(9,\)"),
        (changed("scg_training", "mu.0.bias", torch.full((9,), torch.nan)), "not finite"),
        (changed("upsampler5_training", "op.1.weight", torch.zeros(32)), '"op.1.weight" in part "upsampler5_training"'),
        ({**foreign_checkpoint(), "scg_training": None}, 'no part "scg_training"'),
        ([], "no part"),
    ):
        with pytest.raises(ModelError, match=words):
            load_published(checkpoint)


def test_published_component_0_goes_along_z():
    checkpoint = foreign_checkpoint()
    checkpoint["conv_decoder3_training"]["op.0.weight"][1:] = 0
    with torch.no_grad():
        prediction = load_published(checkpoint)(*images((32, 32, 32)))
    largest = prediction.displacement.abs().amax(dim=(0, 2, 3, 4))  # x, y, z
    assert largest[2] > 0
    assert torch.equal(largest[:2], torch.zeros(2))


@pytest.mark.parametrize("shape", [(32, 32, 64), (33, 40, 31)])
def test_published_behaviour_on_other_grids_and_in_training(shape):
    network = load_published(foreign_checkpoint())
    with torch.no_grad():
        prediction = network(*images(shape))
        assert prediction.half_displacement is None
        trained = network.train()(*images(shape))
    assert prediction.displacement.shape == prediction.velocity.shape == (1, 3, *shape)
    assert trained.half_displacement.shape == (1, 3, *(-(-n // 2) for n in shape))


def test_parity_with_the_published_network(shared_data):
    folder = shared_data.parent / "reference"
    weights, numbers = folder / "mscgunet_published.pth", folder / "parity_small_32x64x64.npz"
    if not weights.exists() or not numbers.exists():
        pytest.skip(f"needs the published checkpoint and its numbers in {folder}")
    network = load_published(torch.load(weights, map_location="cpu", weights_only=True))
    with np.load(numbers) as file:
        expected = {name: torch.from_numpy(file[name]) if file[name].ndim else float(file[name]) for name in file}
    with torch.no_grad():
        prediction = network(expected["fixed"][None, None], expected["moving"][None, None])

    def error(ours: torch.Tensor, name: str) -> float:
        return float((ours - expected[name]).abs().max())

    # There component 0 goes along the first array axis; ours are x, y, z.
    assert error(prediction.displacement[0].flip(0), "flow") < 1e-3
    assert error(prediction.velocity[0].flip(0), "velocity") < 1e-3
    assert error(prediction.latent[0], "latent") < 1e-4
    assert error(prediction.adjacency[0], "adjacency") < 1e-5
    assert float(prediction.scg_loss) == pytest.approx(expected["scg_loss"], rel=1e-3)
