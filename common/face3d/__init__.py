"""Linear 3D face models, a camera, spherical-harmonics light and a pure-torch rasteriser.

Units are decimetres: x to the image's right, y up, z towards the camera; the head is centred at the origin.
"""
