"""What two of the packages need: audio, faces, 3D faces, metrics, data, training."""

__version__ = "0.1.0"
