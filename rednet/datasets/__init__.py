"""The small data sets behind the demos, and a reader that names an image it cannot read."""

from rednet.datasets.digits import Digits
from rednet.datasets.loading import LoadImage

__all__ = ["Digits", "LoadImage"]
