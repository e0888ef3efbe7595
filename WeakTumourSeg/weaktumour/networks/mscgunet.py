"""MSCGUNet: a multi-scale self-constructing graph U-Net that predicts a stationary velocity field for two images.

The network is that of MICDIR (Chatterjee et al., arXiv 2203.04317): a strided encoder whose deepest features become
nodes of a graph that builds its own edges (self-constructing graph, Liu et al., arXiv 2009.01599), two graph
convolutions (Kipf and Welling, ICLR 2017), and a decoder that ends in a velocity.

Ours differs from what was published, on purpose: nodes and channels are kept apart, the head is linear and starts at
zero, the velocity lives on the half grid where it is integrated, no statistic is shared between the images of a batch,
and evaluation is deterministic. `MSCGUNet(published=True)` computes what was published instead, for foreign
checkpoints (`load_published`) and comparisons only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from ..deformation import integrate
from ..errors import ModelError

NORMS = ("none", "instance", "group")
SLOPE = 0.2  # of every LeakyReLU, as published
INTEGRATION_STEPS = 7  # as published


class Prediction(NamedTuple):
    """What MSCGUNet says about a pair of images. Displacement components are ordered x, y, z.

    A named tuple, since training wrappers (Lightning Fabric) rebuild outputs and cannot do that to a frozen dataclass.
    """

    displacement: torch.Tensor  # (b, 3, z, y, x): voxels of the images' grid, fixed -> moving
    velocity: torch.Tensor  # (b, 3, ...): half grid of the padded images, in its voxels; published: full grid
    half_displacement: torch.Tensor | None  # (b, 3, half the size, rounded up), its voxels; published: in training only
    scg_loss: (
        torch.Tensor
    )  # scalar: latent variables away from a normal distribution, nodes weakly joined to themselves
    latent: torch.Tensor  # (b, latent channels, ...): the graph's answer on the grid of the deepest features
    adjacency: torch.Tensor  # (b, nodes, nodes): normalised
    exponential: Callable[[torch.Tensor], torch.Tensor]  # velocity as above -> displacement as above

    def inverse_displacement(self) -> torch.Tensor:
        """exp(-velocity), moving -> fixed, as `displacement`; without another pass through the network."""
        return self.exponential(-self.velocity)


class MSCGUNet(nn.Module):
    """Predicts the deformation fixed -> moving of two images that are roughly aligned already, on one grid.

    extra_channels: channels beside the intensity of each image, such as the probability of liver.
    widths: channels of each level of the encoder, the first at full resolution, each next one half as fine.
    decoder_width: channels inside the heads. nodes: cells (z, y, x) into which the deepest features are pooled; grids
    should keep at least that many there (4 x 2^5 = 128 voxels a side for six levels), else cells repeat.
    latent_channels, hidden_channels: of the graph. full_head: a second decoder level and head at full resolution, whose
    velocity is averaged to the half grid; the half-resolution head then serves deep supervision only.
    inputs_to_head: the half-resolution head sees the inputs too, averaged to its grid; worth it where these hold
    directions already.
    norm: none (as published), instance or group (8 channels each) after the convolutions of encoder and decoder.
    dropout: in the graph. steps: of scaling and squaring. published: the published behaviour, see module.

    Raises ValueError for arguments that describe no network.
    """

    def __init__(
        self,
        extra_channels: int = 0,
        widths: Sequence[int] = (16, 32, 32, 32, 32, 32),
        decoder_width: int = 16,
        nodes: Sequence[int] = (4, 4, 4),
        latent_channels: int = 9,
        hidden_channels: int = 16,
        full_head: bool = False,
        inputs_to_head: bool = False,
        norm: str = "none",
        dropout: float = 0.1,
        steps: int = INTEGRATION_STEPS,
        published: bool = False,
    ) -> None:
        super().__init__()
        widths = tuple(widths)
        if len(widths) < 3:
            raise ValueError(f"widths {list(widths)} need at least three levels")
        if published and inputs_to_head:
            raise ValueError("the published network's half-resolution head does not see the inputs")
        if len(nodes) != 3:
            raise ValueError(f"nodes {list(nodes)} need three numbers: z, y, x")
        if norm not in NORMS:
            raise ValueError(f'norm "{norm}" is not one of {", ".join(NORMS)}')
        if extra_channels < 0 or steps < 0 or min(*widths, *nodes, decoder_width, latent_channels, hidden_channels) < 1:
            raise ValueError("widths, nodes and channels have to be positive, extra_channels and steps not negative")
        self.published = published
        self.steps = steps
        self.factor = 2 ** (len(widths) - 1)
        self.image_channels = 1 + extra_channels

        before = (2 * self.image_channels, *widths)
        self.encoder = nn.ModuleList(
            _block(before[level], width, norm, stride=1 if level == 0 else 2) for level, width in enumerate(widths)
        )
        self.scg = _SelfConstructingGraph(widths[-1], latent_channels, tuple(nodes), published)
        self.graph = nn.ModuleList(
            _GraphConvolution(before, after, dropout, published)
            for before, after in ((widths[-1], hidden_channels), (hidden_channels, latent_channels))
        )
        skips = widths[-2:0:-1]  # from coarse to the half grid
        below = (latent_channels, *skips)
        self.up = nn.ModuleList(_block(low + skip, skip, norm) for low, skip in zip(below[:-1], skips, strict=True))
        self.inputs_to_head = inputs_to_head
        seen = 2 * self.image_channels if inputs_to_head else 0
        self.half_head = _head(widths[1] + seen, decoder_width, norm, linear=not published)
        self.up_full = self.full_head = None
        if full_head or published:
            full_width = widths[1] if published else widths[0]
            self.up_full = _block(widths[1] + widths[0], full_width, norm)
            self.full_head = _head(self.image_channels + full_width, decoder_width, norm, linear=not published)
        if not published:
            self.apply(_keep_variance)
            for head in (self.half_head, self.full_head):
                if head is not None:
                    nn.init.zeros_(head[-1].weight)

    def forward(self, fixed: torch.Tensor, moving: torch.Tensor, *, draw: bool | None = None) -> Prediction:
        """fixed, moving: (b, 1 + extra_channels, z, y, x), intensities in [0, 1] first, of any size.

        draw: whether the graph's latent variables are drawn at random rather than set to their mean; by default only
        in training mode. Convolutions may run in lower precision (autocast); graph, velocity and fields never do.
        Raises ValueError when the images do not fit each other or the network.
        """
        if fixed.shape != moving.shape or fixed.ndim != 5 or fixed.shape[1] != self.image_channels:
            raise ValueError(
                f"fixed {tuple(fixed.shape)} and moving {tuple(moving.shape)} have to be "
                f"(batch, {self.image_channels}, z, y, x) alike"
            )
        shape = fixed.shape[2:]
        if not self.published:
            fixed, moving = _padded(fixed, self.factor), _padded(moving, self.factor)
        levels = [torch.cat((fixed, moving), dim=1)]
        for block in self.encoder:
            levels.append(block(levels[-1]))
        _, finest, *skips, deepest = levels
        latent, adjacency, scg_loss = self._graph_latent(deepest, self.training if draw is None else draw)

        x = latent
        for block, skip in zip(self.up, reversed(skips), strict=True):
            x = block(_joined(x, skip))
        if self.published:
            velocity = _velocity(self.full_head, torch.cat((fixed, self.up_full(_joined(x, finest))), dim=1))
            velocity = velocity.flip(1)  # there component 0 goes along the first array axis, z
            exponential = partial(_published_exponential, steps=self.steps)
            # The half-resolution head serves deep supervision only.
            half_displacement = exponential(_velocity(self.half_head, x).flip(1)) if self.training else None
            return Prediction(
                exponential(velocity), velocity, half_displacement, scg_loss, latent, adjacency, exponential
            )

        half_inputs = [F.avg_pool3d(levels[0], 2)] if self.inputs_to_head else []
        velocity = _velocity(self.half_head, torch.cat((x, *half_inputs), dim=1))
        half_displacement = integrate(velocity, self.steps)
        displacement = _on_full_grid(half_displacement, shape)
        exponential = partial(_half_grid_exponential, shape=shape, steps=self.steps)
        if self.full_head is not None:
            fine = _velocity(self.full_head, torch.cat((fixed, self.up_full(_joined(x, finest))), dim=1))
            velocity = F.avg_pool3d(fine, 2) / 2
            displacement = exponential(velocity)
        half_displacement = _cropped(half_displacement, [-(-n // 2) for n in shape])
        return Prediction(displacement, velocity, half_displacement, scg_loss, latent, adjacency, exponential)

    def _graph_latent(self, features: torch.Tensor, draw: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The deepest features -> the graph's answer on their grid, adjacency (b, nodes, nodes), SCG loss."""
        with _full_precision(features.device):
            features = features.float()
            nodes, adjacency, shortcut, loss = self.scg(features, draw)
            for layer in self.graph:
                nodes = layer(nodes, adjacency)
            latent = self.scg.to_grid(adjacency @ nodes + shortcut)
            return _resized(latent, features.shape[2:]), adjacency, loss


class _SelfConstructingGraph(nn.Module):
    """Cells of a feature map become nodes; nodes with alike latent variables are joined (Liu et al. 2020)."""

    def __init__(self, channels: int, latent_channels: int, nodes: tuple[int, int, int], published: bool) -> None:
        super().__init__()
        self.nodes = nodes
        self.published = published
        self.mu = nn.Conv3d(channels, latent_channels, 3, padding=1)
        self.log_std = nn.Conv3d(channels, latent_channels, 1)  # "log_var" there, used as the logarithm of std
        self.dropout = nn.Dropout(0.2 if published else 0.0)

    def to_nodes(self, cells: torch.Tensor) -> torch.Tensor:
        """(b, c, z, y, x) -> (b, nodes, c)."""
        if self.published:
            return cells.reshape(len(cells), -1, cells.shape[1])  # mixes nodes and channels, as trained there
        return cells.flatten(2).transpose(1, 2)

    def to_grid(self, nodes: torch.Tensor) -> torch.Tensor:
        """(b, nodes, c) -> (b, c, z, y, x)."""
        if not self.published:
            nodes = nodes.transpose(1, 2)
        return nodes.reshape(len(nodes), -1, *self.nodes)

    def forward(self, features: torch.Tensor, draw: bool) -> tuple[torch.Tensor, ...]:
        """(b, c, z, y, x) -> nodes (b, n, c), normalised adjacency (b, n, n), shortcut (b, n, latent), scalar loss."""
        cells = F.adaptive_avg_pool3d(features, self.nodes)
        mu, log_std = self.to_nodes(self.dropout(self.mu(cells))), self.to_nodes(self.dropout(self.log_std(cells)))
        z = mu + log_std.exp() * torch.randn_like(mu) if draw else mu  # (b, n, latent)

        # A rectifier without slope, as in Liu et al., keeps every degree positive; the published one has a slope.
        likeness = F.leaky_relu(z @ z.transpose(1, 2), SLOPE if self.published else 0.0)
        own = likeness.diagonal(dim1=1, dim2=2)  # (b, n)
        gamma = (1 + 1 / own.mean(dim=1).clamp_min(1e-8)).sqrt()  # (b,)
        weight = gamma.mean().expand_as(gamma) if self.published else gamma

        count = mu.shape[1]
        weak = torch.where(own < 1, torch.log(own + 1e-7), torch.zeros_like(own)).sum(dim=1)
        diagonal_loss = (weight * weak).mean() / count**2
        divergence = (1 + 2 * log_std - mu.square() - (2 * log_std).exp()).sum(dim=2).mean()
        loss = -0.5 / count * divergence - diagonal_loss

        adjacency = likeness + torch.diag_embed(gamma[:, None] * own + 1)
        scale = (adjacency.sum(dim=1) + 1e-5).clamp_min(1e-5).rsqrt()  # clamped: a slope can make a degree negative
        adjacency = scale[:, :, None] * adjacency * scale[:, None, :]
        return self.to_nodes(cells), adjacency, weight[:, None, None] * mu * (1 - log_std), loss


class _GraphConvolution(nn.Module):
    """act(norm((A x) W + b)): each node takes up what its neighbours hold (Kipf and Welling 2017)."""

    def __init__(self, before: int, after: int, dropout: float, published: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(before, after)
        # Batch statistics of one or two pairs differ from their running means, and between machines: ours has none.
        self.norm = nn.BatchNorm1d(after) if published else nn.LayerNorm(after)
        self.dropout = nn.Dropout(dropout)

    def forward(self, nodes: torch.Tensor, adjacency: torch.Tensor) -> torch.Tensor:
        """(b, n, before), (b, n, n) -> (b, n, after)."""
        x = self.linear(adjacency @ nodes)
        x = self.norm(x.flatten(0, 1)).reshape(x.shape)
        return self.dropout(F.leaky_relu(x, SLOPE))


class _InstanceNorm(nn.InstanceNorm3d):
    """One voxel has no spread to normalise by: there it does nothing (torch's own refuses)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) if x[0, 0].numel() > 1 else x


def _block(before: int, after: int, norm: str, stride: int = 1) -> nn.Sequential:
    """Convolution, normalisation, LeakyReLU."""
    layers: list[nn.Module] = [nn.Conv3d(before, after, 3, stride=stride, padding=1, bias=False)]
    if norm == "instance":
        layers.append(_InstanceNorm(after, affine=True))
    elif norm == "group":
        layers.append(nn.GroupNorm(after // 8 if after % 8 == 0 else 1, after))
    return nn.Sequential(*layers, nn.LeakyReLU(SLOPE, inplace=True))


def _head(before: int, width: int, norm: str, linear: bool) -> nn.Sequential:
    """Three convolutions to a velocity; without `linear` the last one is followed by LeakyReLU too, as published."""
    last = nn.Conv3d(width, 3, 3, padding=1, bias=False) if linear else _block(width, 3, "none")
    return nn.Sequential(_block(before, width, norm), _block(width, width, norm), last)


def _keep_variance(module: nn.Module) -> None:
    """He initialisation: with torch's own, features fade from level to level where nothing normalises them."""
    if isinstance(module, nn.Conv3d) and module.bias is None:
        nn.init.kaiming_normal_(module.weight, a=SLOPE)


def _velocity(head: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
    """The last convolution in float32: bfloat16 would round a velocity of 5 voxels to steps of 0.03."""
    x = head[:-1](x)
    with _full_precision(x.device):
        return head[-1](x.float())


def _full_precision(device: torch.device) -> contextlib.AbstractContextManager:
    on = device.type in ("cpu", "cuda") and torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if on else contextlib.nullcontext()


# -- grids ----------------------------------------------------------------------------------------------------------
def _padded(image: torch.Tensor, factor: int) -> torch.Tensor:
    """Continued at its far ends up to the next multiple of the factor."""
    extra = [-n % factor for n in image.shape[2:]]
    return F.pad(image, (0, extra[2], 0, extra[1], 0, extra[0]), mode="replicate") if any(extra) else image


def _cropped(field: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    return field[:, :, : shape[0], : shape[1], : shape[2]]


def _resized(x: torch.Tensor, shape: Sequence[int], align_corners: bool = False) -> torch.Tensor:
    return F.interpolate(x, size=tuple(shape), mode="trilinear", align_corners=align_corners)


def _joined(x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
    """x brought onto the grid of the skip, and the skip."""
    return torch.cat((_resized(x, skip.shape[2:]).to(skip.dtype), skip), dim=1)


def _on_full_grid(half_displacement: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Voxels of the padded half grid -> voxels of the full grid, cropped to shape.

    A half voxel covers two full voxels (align_corners=False), so both the grid and its unit change by exactly 2.
    """
    doubled = _resized(half_displacement, [2 * n for n in half_displacement.shape[2:]])
    return 2 * _cropped(doubled, shape)


def _half_grid_exponential(velocity: torch.Tensor, shape: Sequence[int], steps: int) -> torch.Tensor:
    return _on_full_grid(integrate(velocity, steps), shape)


def _published_exponential(velocity: torch.Tensor, steps: int) -> torch.Tensor:
    """Full-grid velocity -> full-grid displacement; the factors 1/2 and 2 are those published, not the true ratio."""
    shape = velocity.shape[2:]
    half = _resized(velocity, [max(1, n // 2) for n in shape], align_corners=True) / 2
    return 2 * _resized(integrate(half, steps, padding="zeros"), shape, align_corners=True)


# -- published checkpoints --------------------------------------------------------------------------------------------
# Prefix of our parameters -> part of the checkpoint and prefix in it.
_PUBLISHED_PREFIXES = {
    **{f"encoder.{i}.0.": ("feature_extractor_training", f"en{i + 1}.0.") for i in range(6)},
    "scg.mu.": ("scg_training", "mu.0."),
    "scg.log_std.": ("scg_training", "logvar.0."),
    **{f"graph.{i}.linear.": (f"graph_layers{i + 1}_training", "fc.0.") for i in range(2)},
    **{f"graph.{i}.norm.": (f"graph_layers{i + 1}_training", "fc.1.") for i in range(2)},
    **{f"up.{i}.0.": (f"upsampler{i + 1}_training", "op.0.") for i in range(4)},
    "up_full.0.": ("upsampler5_training", "op.0."),
    **{f"full_head.{i}.0.": (f"conv_decoder{i + 1}_training", "op.0.") for i in range(3)},
    **{f"half_head.{i}.0.": (f"conv_decoder{i + 4}_training", "op.0.") for i in range(3)},
}
PUBLISHED_PARTS = tuple(dict.fromkeys(part for part, _ in _PUBLISHED_PREFIXES.values()))


def is_published_layout(checkpoint: object) -> bool:
    """Whether this looks like a published checkpoint, whole or not: a dict with any of its 15 parts."""
    return isinstance(checkpoint, Mapping) and any(part in checkpoint for part in PUBLISHED_PARTS)


def load_published(checkpoint: Mapping[str, Mapping[str, torch.Tensor]]) -> MSCGUNet:
    """The network of a checkpoint in the published 15-part layout, in eval mode, on the CPU.

    checkpoint: what `torch.load(path, weights_only=True)` gave. Raises ModelError when a part is missing or differs.
    """
    network = MSCGUNet(published=True)
    state = {}
    expected: dict[str, set[str]] = {part: set() for part in PUBLISHED_PARTS}
    for ours, own in network.state_dict().items():
        prefix = next(prefix for prefix in _PUBLISHED_PREFIXES if ours.startswith(prefix))
        part, their_prefix = _PUBLISHED_PREFIXES[prefix]
        theirs = their_prefix + ours.removeprefix(prefix)
        state[ours] = _published_tensor(checkpoint, part, theirs, own)
        expected[part].add(theirs)
    for part, names in expected.items():
        for name in checkpoint[part]:
            if name not in names:
                raise ModelError(
                    f'Registration model: "{name}" in part "{part}" is unknown to MSCGUNet; '
                    "give a checkpoint of the published network."
                )
    network.load_state_dict(state)
    return network.eval()


def _published_tensor(checkpoint: object, part: str, name: str, like: torch.Tensor) -> torch.Tensor:
    remedy = "give a whole checkpoint of the published network."
    if not isinstance(checkpoint, Mapping) or not isinstance(checkpoint.get(part), Mapping):
        raise ModelError(f'Registration model: the checkpoint has no part "{part}"; {remedy}')
    tensor = checkpoint[part].get(name)
    if not isinstance(tensor, torch.Tensor):
        raise ModelError(f'Registration model: part "{part}" of the checkpoint has no tensor "{name}"; {remedy}')
    if tensor.shape != like.shape:
        raise ModelError(
            f'Registration model: "{name}" in part "{part}" has the shape {tuple(tensor.shape)} '
            f"where MSCGUNet has {tuple(like.shape)}; {remedy}"
        )
    if not torch.isfinite(tensor).all():
        raise ModelError(f'Registration model: "{name}" in part "{part}" holds values that are not finite; {remedy}')
    return tensor
