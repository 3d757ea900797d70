"""Small data sets for the demos, and image loading whose errors name the file."""

from rednet.datasets.digits import Digits
from rednet.datasets.loading import LoadImage

__all__ = ["Digits", "LoadImage"]
