"""Visual dubbing through a 3D morphable model: speech to expression coefficients, and those to pictures (paper 4)."""
