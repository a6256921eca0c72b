"""mmsweep: which configuration keeps working when a modality is missing."""

__version__ = "0.1.0"
