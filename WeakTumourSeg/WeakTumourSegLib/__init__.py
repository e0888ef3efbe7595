"""The Slicer side of WeakTumourSeg: scene adapter, worker process, table, review, installation.

Imports slicer, vtk, numpy and the engine's light rooms (volumes, labels, cases), never torch: the engine's work is done
by a worker process, see `worker_process`. SimpleITK is imported where it is used, so that the module opens at once.
"""
