"""What a result says of inputs that can be used and still may be the wrong ones."""

from dataclasses import replace

import numpy as np
import pytest

from weaktumour import pipeline
from weaktumour.deformation import Affine
from weaktumour.labels import LIVER, TUMOUR, Label, LabelMap
from weaktumour.volumes import Grid, Volume

MR = Grid((40, 30, 20), (5.0, 5.0, 5.0), (0.0, 0.0, 0.0))
CT = Grid((50, 50, 20), (4.0, 4.0, 5.0), (0.0, 0.0, 0.0))


def inputs(grid: Grid = MR, edge: int = 18, found: tuple[str, ...] = (), ct_liver: Grid | None = None):
    """A cube of liver, edge voxels of 0.125 ml wide, with a tumour in it."""
    array = np.zeros(grid.shape, dtype=np.uint8)
    array[1 : edge + 1, 1 : edge + 1, 1 : edge + 1] = 1
    array[5:8, 5:8, 5:8] = 2
    labels = LabelMap(Volume(array, grid), (Label(1, "liver", LIVER), Label(2, "tumour 1", TUMOUR)))
    mask = None if ct_liver is None else Volume(np.ones(ct_liver.shape, dtype=bool), ct_liver)
    images = (Volume(np.zeros(g.shape, dtype=np.float32), g) for g in (MR, CT))
    return pipeline.Inputs(*images, labels, mask, Affine.identity(), found)


GIVEN = pipeline.RegisterArguments("mr.nii.gz", "ct.nii.gz", "out", mr_labels="labels.nii.gz")


@pytest.mark.parametrize(
    ("arguments", "given", "words"),
    [
        (GIVEN, inputs(), None),
        (GIVEN, inputs(ct_liver=CT, found=("ct",)), None),
        (GIVEN, inputs(CT), "MRI labels: drawn on another grid than the MRI (50x50x20 instead of 40x30x20 voxels)"),
        (GIVEN, inputs(replace(MR, origin=(3.0, 0.0, 0.0))), "the same size in another place"),
        (GIVEN, inputs(edge=12), "has 216 ml, little for a liver"),
        (GIVEN, inputs(edge=12, found=("mr",)), None),  # only tumours were given
        (replace(GIVEN, mr_labels=None), inputs(found=("mr",)), "Nobody drew these tumours"),
        (replace(GIVEN, ct_liver="l.nii.gz"), inputs(ct_liver=CT), None),
        (replace(GIVEN, ct_liver="l.nii.gz"), inputs(ct_liver=MR), "CT liver: drawn on another grid than the CT"),
    ],
)
def test_what_is_said_of_inputs(arguments, given, words):
    said = pipeline._remarks(arguments, given)
    if words is None:
        assert said == []
    else:
        (sentence,) = said
        assert words in sentence
