"""The networks of both stages. They know torch and common only."""

from dubbing3d.networks.expression import ExpressionNet

__all__ = ["ExpressionNet"]
