"""The methods, each in the file of its name; importing this package registers them."""

from mmsweep.methods import cmpt, linear_projection, mmp, modality_dropout, plain
from mmsweep.methods.method import METHODS, Method

__all__ = ["METHODS", "Method", "cmpt", "linear_projection", "mmp", "modality_dropout", "plain"]
