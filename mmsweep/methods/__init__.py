"""The methods, each in the file of its name, with its options."""

from mmsweep.methods.options import METHODS

__all__ = ["METHODS"]
