"""Encodes the points that a hierarchy starts from: where each is, and which it is."""

import math

import torch
from torch import Tensor, nn

# First half: sines of random directions. Second: a table read at the point (published), or a code per point (ours).
POINT_ENCODINGS = ("fourier+table", "fourier+code")


class Fourier(nn.Module):
    """Encodes where points are, by sines of random directions (Fourier features), which learn."""

    def __init__(self, features: int):
        super().__init__()
        linear = nn.Linear(3, features)
        nn.init.uniform_(linear.weight, -math.sqrt(3), math.sqrt(3))
        self.ffm = nn.ModuleDict({"linear": linear})

    def forward(self, points: Tensor) -> Tensor:
        """Returns sin(W p + b) [P, F] of points [P, 3]."""
        return torch.sin(self.ffm["linear"](points))


class _Table(nn.Module):
    """Encodes points by the published table, whose sampling axes are swapped: only two columns are ever read."""

    def __init__(self, features: int, columns: int):
        super().__init__()
        self.const_pe = nn.Parameter(torch.randn(3, features, 1, columns))

    def forward(self, points: Tensor) -> Tensor:
        """Returns the mean over the axes, times sqrt(3), of the middle column faded by each coordinate: [P, F]."""
        middle = self.const_pe.shape[-1] // 2
        planes = self.const_pe[:, :, 0, middle - 1 : middle + 1].mean(dim=-1)  # [3, F]
        return (1 - points.abs() / 2) @ planes / math.sqrt(3)


class _Code(nn.Module):
    """Holds a learned code per point, in place of the table; its rms is that of the sines beside it."""

    def __init__(self, features: int, num_points: int):
        super().__init__()
        self.code = nn.Parameter(torch.randn(num_points, features) * math.sqrt(0.5))

    def forward(self, points: Tensor) -> Tensor:
        """Returns the codes [P, F], wherever the points are."""
        return self.code


class PointEncoding(nn.Module):
    """Makes the transformer's input from the points, the same for every sample."""

    def __init__(self, width: int, kind: str, num_points: int):
        super().__init__()
        features = width // 2
        self.learnable_pe = Fourier(features)
        if kind == "fourier+table":
            self.const_pe = _Table(features, columns=width)
        else:
            self.point_code = _Code(features, num_points)

    def forward(self, points: Tensor) -> Tensor:
        """Encodes points [P, 3] as [P, C], half of it each way."""
        identity = self.const_pe if hasattr(self, "const_pe") else self.point_code
        return torch.cat([self.learnable_pe(points), identity(points)], dim=-1)
