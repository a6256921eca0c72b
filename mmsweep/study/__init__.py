"""The study file: its schema, composed from the components' options, its source with lines, and the search space."""

from mmsweep.study.study import Study

__all__ = ["Study"]
