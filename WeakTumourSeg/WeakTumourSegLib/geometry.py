"""Where nodes lie in the world: the only place where IJK, RAS and LPS meet.

Matrices are (4, 4) numpy arrays named from -> to; they move points. Arrays of voxels are indexed (k, j, i).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _
from vtk.util.numpy_support import get_vtk_array_type, vtk_to_numpy

from weaktumour.errors import InputError

if TYPE_CHECKING:
    from weaktumour.volumes import Grid

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def matrixToArray(matrix: vtk.vtkMatrix4x4) -> np.ndarray:
    return np.array([[matrix.GetElement(row, column) for column in range(4)] for row in range(4)])


def arrayToMatrix(array: np.ndarray) -> vtk.vtkMatrix4x4:
    matrix = vtk.vtkMatrix4x4()
    matrix.DeepCopy(np.asarray(array, dtype=float).ravel())
    return matrix


def nodeToWorld(node: slicer.vtkMRMLTransformableNode) -> np.ndarray:
    """The node's own coordinates -> RAS world, through all its parent transforms.

    Raises InputError where one of them is not linear.
    """
    parent = node.GetParentTransformNode()
    if parent is None:
        return np.eye(4)
    if not parent.IsTransformToWorldLinear():
        raise InputError(
            _(
                '"{name}" lies under a non-linear transform ("{transform}"): harden it, or take the node out of it.'
            ).format(name=node.GetName(), transform=parent.GetName())
        )
    matrix = vtk.vtkMatrix4x4()
    parent.GetMatrixTransformToWorld(matrix)
    return matrixToArray(matrix)


def ijkToNode(volumeNode: slicer.vtkMRMLVolumeNode) -> np.ndarray:
    """Voxel index -> the volume's own RAS, parent transforms left out."""
    matrix = vtk.vtkMatrix4x4()
    volumeNode.GetIJKToRASMatrix(matrix)
    return matrixToArray(matrix)


def ijkToWorld(volumeNode: slicer.vtkMRMLVolumeNode) -> np.ndarray:
    """Voxel index -> RAS world. Raises InputError under a non-linear transform."""
    return nodeToWorld(volumeNode) @ ijkToNode(volumeNode)


def sizeOf(volumeNode: slicer.vtkMRMLVolumeNode) -> tuple[int, int, int]:
    """Voxels along i, j, k."""
    return tuple(volumeNode.GetImageData().GetDimensions())


def worldGrid(volumeNode: slicer.vtkMRMLVolumeNode) -> Grid:
    """The volume's lattice in the world as the engine knows it (LPS mm). Raises InputError where it is none."""
    from weaktumour.volumes import Grid

    toLPS = RAS_TO_LPS @ ijkToWorld(volumeNode)
    spacing = np.linalg.norm(toLPS[:3, :3], axis=0)
    if not spacing.all():
        raise InputError(_('"{name}" has no extent along one of its axes.').format(name=volumeNode.GetName()))
    return Grid(sizeOf(volumeNode), tuple(spacing), tuple(toLPS[:3, 3]), tuple((toLPS[:3, :3] / spacing).ravel()))


def orientedImage(array: np.ndarray, imageToWorld: np.ndarray, start: tuple[int, int, int] = (0, 0, 0)):
    """A vtkOrientedImageData of its own from an array (k, j, i), whose first voxel has the index `start` (i, j, k)."""
    image = slicer.vtkOrientedImageData()
    extent = []
    for first, count in zip(start, array.shape[::-1], strict=True):
        extent += [int(first), int(first) + count - 1]
    image.SetExtent(extent)
    image.AllocateScalars(get_vtk_array_type(array.dtype), 1)
    imageArray(image)[:] = array
    image.SetGeometryFromImageToWorldMatrix(arrayToMatrix(imageToWorld))
    return image


def imageArray(image: vtk.vtkImageData) -> np.ndarray:
    """The voxels (k, j, i) of an image of one component; not a copy."""
    scalars = image.GetPointData().GetScalars()
    if scalars is None:
        return np.zeros(image.GetDimensions()[::-1], np.uint8)
    return vtk_to_numpy(scalars).reshape(image.GetDimensions()[::-1])


def imageToWorld(image: slicer.vtkOrientedImageData) -> np.ndarray:
    matrix = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    return matrixToArray(matrix)


def transformPoints(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(..., 3) points moved by a matrix."""
    return np.asarray(points, dtype=float) @ matrix[:3, :3].T + matrix[:3, 3]


def plainImage(array: np.ndarray) -> vtk.vtkImageData:
    """A vtkImageData of its own from an array (k, j, i), as volume nodes want it (their geometry is in the node)."""
    image = vtk.vtkImageData()
    image.SetDimensions(array.shape[::-1])
    image.AllocateScalars(get_vtk_array_type(array.dtype), 1)
    imageArray(image)[:] = array
    return image
