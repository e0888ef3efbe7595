"""Stand-in for ``slicer.parameterNodeWrapper``: typed parameters in a node of the scene, bound to widgets.

It accepts a subset of the types and of the widgets that Slicer's accepts, and nothing that Slicer's would refuse.
Missing: parameter packs, FloatRange, QColor, generated GUIs, nested collections. Lists and dictionaries are stored as
JSON, in Slicer as one parameter per element, so saved scenes do not carry them across.
"""

from .annotations import Choice, Decimals, Default, Exclude, Maximum, Minimum, NotNone, SingleStep, WithinRange
from .wrapper import (
    SlicerParameterNamePropertyName,
    findChildWidgetForParameter,
    isParameterNodeWrapper,
    parameterNodeWrapper,
)

__all__ = [
    "Choice",
    "Decimals",
    "Default",
    "Exclude",
    "Maximum",
    "Minimum",
    "NotNone",
    "SingleStep",
    "SlicerParameterNamePropertyName",
    "WithinRange",
    "findChildWidgetForParameter",
    "isParameterNodeWrapper",
    "parameterNodeWrapper",
]
