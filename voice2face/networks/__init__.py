"""Voice encoders, generators and discriminators. They know torch, einops and common only."""
