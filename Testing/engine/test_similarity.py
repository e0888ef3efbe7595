"""MIND-SSC: written anew here, voxel by voxel, as the referee."""

import numpy as np
import pytest
import torch

from weaktumour.registration.similarity import CHANNELS, erode, mind_ssc


def reference_mind(image: np.ndarray, z: int, y: int, x: int, dilation: int, radius: int) -> np.ndarray:
    """The unnormalised twelve patch distances at one inner voxel, from the definition."""
    offsets = np.array([(0, 0, 1), (0, 0, -1), (0, 1, 0), (0, -1, 0), (1, 0, 0), (-1, 0, 0)]) * dilation

    def patch(offset):
        cz, cy, cx = np.array((z, y, x)) + offset
        return image[cz - radius : cz + radius + 1, cy - radius : cy + radius + 1, cx - radius : cx + radius + 1]

    return np.array(
        [
            np.mean((patch(offsets[i]) - patch(offsets[j])) ** 2)
            for i in range(6)
            for j in range(i + 1, 6)
            if offsets[i] @ offsets[j] == 0
        ]
    )


@pytest.mark.parametrize("shape", [(17, 18, 19), (18, 17, 21)])
@pytest.mark.parametrize(("dilation", "radius"), [(1, 1), (2, 1)])
def test_agrees_with_the_definition_for_odd_and_even_sizes(shape, dilation, radius):
    image = np.random.default_rng(0).random(shape).astype(np.float32)
    ours = mind_ssc(torch.from_numpy(image)[None, None], dilation=dilation, radius=radius)[0]
    assert ours.shape == (CHANNELS, *shape)
    for place in [(5, 6, 7), (8, 8, 8), (11, 10, 12)]:
        distance = reference_mind(image.astype(float), *place, dilation, radius)
        distance -= distance.min()
        # exp(-d / variance): the ratios of the logarithms are those of the distances.
        logs = -np.log(ours[(slice(None), *place)].numpy().astype(float))
        assert np.allclose(logs / logs.max(), distance / distance.max(), atol=1e-4)


def test_does_not_change_with_contrast():
    image = torch.rand(1, 1, 16, 17, 18, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(mind_ssc(image), mind_ssc(5 - 3 * image), atol=1e-3)


def test_flipping_the_image_flips_the_features():
    image = torch.rand(1, 1, 15, 16, 17, generator=torch.Generator().manual_seed(2))
    flipped = mind_ssc(image.flip(4)).flip(4)
    # Channels trade places under the flip; their sorted values do not.
    assert torch.allclose(mind_ssc(image).sort(1).values, flipped.sort(1).values, atol=1e-5)


def test_erode_counts_the_border_as_outside():
    mask = torch.ones(1, 1, 6, 7, 8)
    mask[..., 3, 3, 4] = 0
    result = erode(mask, 1)
    assert result[..., 0, :, :].sum() == 0
    assert result[0, 0, 1, 1, 1] == 1
    assert result[0, 0, 2, 2, 3] == 0
