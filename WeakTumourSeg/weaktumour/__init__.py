"""WeakTumourSeg's engine: carries liver and tumour labels from an MRI onto a CT. Start reading at `pipeline`."""

__version__ = "0.1.0"
