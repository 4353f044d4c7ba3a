"""Small models with complex parameters, in complex128, each with an input."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

COMPLEX = torch.complex128


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape, dtype=COMPLEX))


class ModReLU(nn.Module):
    """Linear layers around an activation of the modulus with a real threshold, and a real head."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(5, 8, dtype=COMPLEX), nn.Linear(8, 6, dtype=COMPLEX)
        self.threshold, self.head = nn.Parameter(torch.randn(8).double()), nn.Linear(6, 2, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x)
        modulus = h.abs()
        return self.head(self.down(F.relu(modulus + self.threshold) * h / (modulus + 1e-3)).abs())


class Residual(nn.Module):
    """Two branches, real parts of what complex linear layers give; the output is complex."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(5, 6, dtype=COMPLEX), nn.Linear(6, 3, dtype=COMPLEX)
        self.ups = nn.ModuleList(nn.Linear(6, 8, dtype=COMPLEX) for _ in range(2))
        self.downs = nn.ModuleList(nn.Linear(8, 6, dtype=COMPLEX) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x).real
        for up, down in zip(self.ups, self.downs, strict=True):
            y = y + down(torch.tanh(up(y.to(COMPLEX)))).real
        return self.head(torch.complex(y, y.square()))


class Convolutions(nn.Module):
    """Plain, strided, in groups, depthwise, transposed and of one dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(2, 8, 3, padding="same", dtype=COMPLEX)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False, dtype=COMPLEX)
        self.grouped = nn.Conv2d(8, 8, 3, stride=2, groups=4, dtype=COMPLEX)
        self.upwards = nn.ConvTranspose2d(8, 6, 3, stride=2, output_padding=1, dtype=COMPLEX)
        self.line = nn.Conv1d(6, 6, 3, dilation=2, padding=2, dtype=COMPLEX)
        self.out = nn.Conv1d(6, 2, 1, dtype=COMPLEX)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.grouped(torch.tanh(self.depthwise(torch.tanh(self.expand(x))))))
        return self.out(torch.tanh(self.line(torch.tanh(self.upwards(x)).flatten(2))))


class Volumes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv3d(1, 6, 2, dtype=COMPLEX), nn.Conv3d(6, 2, 2, padding=1, dtype=COMPLEX)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x))).abs()


class Products(nn.Module):
    """Stored matrices in addmm, matmul, bmm and einsum, plain, transposed and conjugated."""

    def __init__(self) -> None:
        super().__init__()
        self.stored, self.offset, self.back = parameter(5, 8), parameter(8), parameter(5, 8)
        self.experts, self.mix, self.scale = parameter(3, 5, 6), parameter(3, 6, 4), parameter(6)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(torch.addmm(self.offset, x, self.stored)) @ self.back.mH
        experts = torch.tanh(torch.bmm(h.expand(3, *h.shape), self.experts)) * self.scale.conj()
        return torch.einsum("ebh,eho->bo", experts, self.mix)


class Attention(nn.Module):
    """Heads with Hermitian scores; softmax of their real part."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(6, 24, bias=False, dtype=COMPLEX), nn.Linear(8, 6, dtype=COMPLEX)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 4, 2).permute(2, 0, 3, 1, 4).unbind(0)
        weights = torch.softmax((q @ k.mH).real, -1).to(v.dtype)
        return x + self.out((weights @ v).transpose(1, 2).flatten(2))


class Spectral(nn.Module):
    """A Fourier layer: complex weights for each frequency of a real signal."""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.project = nn.Linear(2, 6).double(), nn.Linear(6, 2).double()
        self.modes = parameter(6, 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.lift(x).movedim(-1, 1)
        spectrum = torch.fft.rfft(h)[..., :3]
        mixed = torch.fft.irfft(torch.einsum("bix,iox->box", spectrum, self.modes), n=h.shape[-1])
        return self.project(torch.tanh(mixed).movedim(1, -1))


class Table(nn.Module):
    """A complex table looked up by index, and its real and imaginary parts in a real layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.mix = parameter(7, 6), nn.Linear(6, 8, dtype=COMPLEX)
        self.down, self.head = nn.Linear(8, 6, dtype=COMPLEX), nn.Linear(12, 2).double()

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.down(torch.tanh(self.mix(self.table[tokens])))
        return self.head(torch.view_as_real(h).flatten(-2))


def _draw(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=COMPLEX, generator=torch.Generator().manual_seed(0))


MODELS = {
    "modReLU": (ModReLU, _draw(3, 5)),
    "residual": (Residual, _draw(3, 5)),
    "convolutions": (Convolutions, _draw(2, 2, 5, 5)),
    "volumes": (Volumes, _draw(2, 1, 3, 3, 3)),
    "products": (Products, _draw(3, 5)),
    "attention": (Attention, _draw(2, 3, 6)),
    "spectral": (Spectral, _draw(3, 8, 2).real.clone()),
    "table": (Table, torch.tensor([[1, 4], [0, 6], [3, 2]])),
}
