"""Draw the README's figure: the DTC block, and its sampling positions, which the operator computes.

python scripts/draw_block.py [docs/dtc_block.png]
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Rectangle

from nnunet_dtc import deformable_upsample

INK, BASE, BRANCH, COORDS = "#222222", "#4C72B0", "#DD8452", "#55A868"
FILL = {BASE: "#E4EAF4", BRANCH: "#FBEADF", COORDS: "#E2F1E6", INK: "#F4F4F4"}


def draw_block(ax) -> None:
    """Draw the block of the paper's figure 3."""

    def box(x, y, text, colour, width=2.5, height=0.82):
        style = "round,pad=0.02,rounding_size=0.12"
        ax.add_patch(
            FancyBboxPatch((x - width / 2, y - height / 2), width, height, boxstyle=style, fc=FILL[colour], ec=colour)
        )
        ax.text(x, y, text, ha="center", va="center", color=INK, fontsize=9)

    def arrow(start, end, colour=INK, label=None, where=(0, 0)):
        ax.add_patch(
            FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, lw=1.3, color=colour, shrinkA=0, shrinkB=0)
        )
        if label:
            ax.text(*where, label, ha="center", va="center", color=colour, fontsize=8)

    box(1.1, 3.0, "x\n$C_{in} \\times S$", INK, 1.4, 1.0)
    box(4.45, 5.0, "base: the existing upsampling\n(transposed convolution, linear, ...)", BASE, 3.9)
    box(4.1, 3.0, "value: convolution $1 \\times 1$", BRANCH, 3.2)
    box(4.1, 1.0, "coords: transposed\nconvolution, kernel = stride", COORDS, 3.2)
    box(8.4, 1.0, "shift = $\\frac{RF}{4}$ · tanh(offset)\n· sigmoid(weight)", COORDS, 2.8)
    box(8.4, 3.0, "linear interpolation\nat grid + shift", BRANCH, 2.6)
    ax.add_patch(Circle((8.4, 5.0), 0.3, fc=FILL[INK], ec=INK))
    ax.text(8.4, 4.99, "+", ha="center", va="center", fontsize=15, color=INK)
    box(10.9, 5.0, "out\n$C_{out} \\times (S \\cdot$ stride)", INK, 2.1, 1.0)

    ax.plot([1.8, 2.15], [3, 3], color=INK, lw=1.3)
    ax.plot([2.15, 2.15], [1, 5], color=INK, lw=1.3)
    arrow((2.15, 5.0), (2.48, 5.0), BASE)
    arrow((2.15, 3.0), (2.48, 3.0), BRANCH)
    arrow((2.15, 1.0), (2.48, 1.0), COORDS)
    arrow((6.42, 5.0), (8.09, 5.0), BASE)
    arrow((5.72, 3.0), (7.03, 3.0), BRANCH)
    arrow((5.72, 1.0), (6.93, 1.0), COORDS, label="2g channels", where=(6.32, 1.24))
    arrow((8.4, 1.43), (8.4, 2.57), COORDS)
    arrow((8.4, 3.43), (8.4, 4.69), BRANCH)
    arrow((8.71, 5.0), (9.83, 5.0), INK)
    ax.set(xlim=(0.3, 12.1), ylim=(0.4, 5.6))
    ax.set_aspect("equal")
    ax.axis("off")


def sampled_positions(size, stride, receptive_field, coords):
    """The sampling positions in input voxels: the operator applied to a map of its own coordinates."""
    ramps = torch.stack(torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in size), indexing="ij"))[None]
    return deformable_upsample(ramps, coords, stride, receptive_field)[0]


def draw_sampling(ax, receptive_field=2.0, size=(4, 3), stride=(1, 2)) -> None:
    """Draw regular positions, shifts and their bound on a plane with the stride (1, 2) of thick slices."""
    generator = torch.Generator().manual_seed(3)
    coords = torch.randn(1, 4, size[0] * stride[0], size[1] * stride[1], generator=generator, dtype=torch.float64) * 1.6
    start = sampled_positions(size, stride, 0, coords)
    end = sampled_positions(size, stride, receptive_field, coords)

    for row in range(size[0]):
        for column in range(size[1]):
            corner = (column - 0.5, row - 0.5)
            ax.add_patch(Rectangle(corner, 1, 1, fc="white" if (row + column) % 2 else "#F7F7F7", ec="#CCCCCC", lw=1))
            ax.plot(column, row, "s", color=BRANCH, ms=6, mfc=FILL[BRANCH], zorder=1)
    for (y0, x0), (y1, x1) in zip(start.flatten(1).T.tolist(), end.flatten(1).T.tolist(), strict=True):
        ax.plot(x0, y0, "o", color="#999999", ms=4, zorder=2)
        ax.add_patch(FancyArrowPatch((x0, y0), (x1, y1), arrowstyle="-|>", mutation_scale=7, color=COORDS, lw=1.2))
        ax.plot(x1, y1, "o", color=COORDS, ms=4.5, zorder=3)
    bound = receptive_field / 4
    y0, x0 = start[:, 1, 2].tolist()
    ax.add_patch(Rectangle((x0 - bound, y0 - bound), 2 * bound, 2 * bound, fill=False, ec=COORDS, ls="--", lw=1.3))
    handles = [
        ax.plot([], [], "s", color=BRANCH, mfc=FILL[BRANCH], label="input voxel")[0],
        ax.plot([], [], "o", color="#999999", ms=4, label="regular position")[0],
        ax.plot([], [], "o", color=COORDS, ms=4.5, label="sampled position")[0],
        ax.plot([], [], "--", color=COORDS, label=f"bound: RF/4 = {bound:g} voxel")[0],
    ]
    ax.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.02), ncols=2, frameon=False, fontsize=8)
    ax.set(xlim=(-0.56, size[1] - 0.44), ylim=(size[0] - 0.44, -0.56))
    ax.set_title(f"stride {stride}, RF {receptive_field:g}", fontsize=9.5, color=INK)
    ax.set_aspect("equal")
    ax.axis("off")


def main(target: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(11.5, 4.0), width_ratios=(2.6, 1), layout="constrained")
    draw_block(left)
    draw_sampling(right)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=160, facecolor="white")
    print(f"wrote {target}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "docs" / "dtc_block.png")
