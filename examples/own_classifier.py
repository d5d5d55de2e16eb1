"""A small classifier with its own training loop: is the minimum flat, and what does a second task do to it?

Task "left" is two moons, task "right" the same moons shifted and rotated, learnt one after the other. Printed: flatness after
each task, and forgetting. Written: both tasks' loss on the plane through the three checkpoints, as JSON and PNG.

    python examples/own_classifier.py outputs/own_classifier
"""

import copy
import sys
from pathlib import Path

import matplotlib as mpl
import torch
import torch.nn.functional as F

import llm_forgetting as lf

mpl.use("agg")
import matplotlib.pyplot as plt

Batch = tuple[torch.Tensor, torch.Tensor]


def moons(count: int, turn: float, shift: float, seed: int) -> list[Batch]:
    """Two half circles in the plane, in batches of 64 (the last one is smaller)."""
    random = torch.Generator().manual_seed(seed)
    angle = torch.pi * torch.rand(count, generator=random)
    label = torch.arange(count) % 2
    points = torch.stack([angle.cos() + label, angle.sin() * (1 - 2 * label) + label / 2], dim=1)
    points += 0.15 * torch.randn(points.shape, generator=random)
    rotation = torch.tensor([[1.0, -1.0], [1.0, 1.0]]) / 2**0.5 if turn else torch.eye(2)
    points = points @ rotation + shift
    return list(zip(points.split(64), label.split(64), strict=True))


def loss(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Mean cross-entropy of a batch."""
    inputs, targets = batch
    return F.cross_entropy(model(inputs), targets)


def train(model: torch.nn.Module, batches: list[Batch], epochs: int) -> dict[str, torch.Tensor]:
    """Plain Adam; returns the final checkpoint."""
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(epochs):
        for batch in batches:
            optimizer.zero_grad()
            loss(model, batch).backward()
            optimizer.step()
    return copy.deepcopy(model.state_dict())


def draw(bowls: dict[str, lf.CheckpointSurface], path: Path) -> None:
    """Both tasks' losses on one plane and one colour scale."""
    figure, panels = plt.subplots(len(bowls), 1, figsize=(7, 5), sharex=True, sharey=True, layout="constrained")
    levels = torch.linspace(
        0, float(max(surface.losses[surface.inside].max() for surface in bowls.values())), 22
    ).tolist()
    for panel, (task, surface) in zip(panels, bowls.items(), strict=True):
        filled = panel.contourf(surface.alphas, surface.betas, surface.losses.T, levels=levels)
        for marker, (name, (a, b)) in zip("osD", surface.checkpoints.items(), strict=True):
            panel.plot(a, b, marker, color="white", markeredgecolor="black", label=name)
        panel.set(title=f"task {task}", ylabel="distance along v", aspect="equal")
    panels[-1].set_xlabel("distance along u, from the first checkpoint to the second")
    figure.colorbar(filled, ax=panels, label="loss (nats)")
    panels[0].legend(loc="upper left", fontsize="small")
    figure.savefig(path, dpi=120)


def main(folder: Path) -> None:
    """Train twice, measure, draw."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(2, 32), torch.nn.BatchNorm1d(32), torch.nn.Tanh(), torch.nn.Linear(32, 16), torch.nn.Tanh(),
        torch.nn.Linear(16, 2),
    )  # fmt: skip
    tasks = {"left": moons(200, 0.0, -1.0, seed=1), "right": moons(200, 0.7, 1.0, seed=2)}
    checkpoints = {"initial": copy.deepcopy(model.state_dict())}
    for task, batches in tasks.items():
        checkpoints[f"after {task}"] = train(model, batches, epochs=30)
        for name, flat in lf.flatness(model, loss, tasks, directions=6, distance=0.5).items():
            print(
                f"after {task}: loss of {name} {flat.centre:.3f}, mean rise {flat.mean_rise:.3f} ± {flat.mean_rise_stderr:.3f}"
            )
    bowls = lf.checkpoint_plane(model, loss, tasks, checkpoints=checkpoints, max_evaluations=120)
    for task, surface in bowls.items():
        surface.save_json(folder / f"plane_{task}.json")
        print(
            f"plane, task {task}: {surface.evaluations} evaluations, measured error {surface.error:.4f} nats, "
            f"{'converged' if surface.converged else 'not converged'}"
        )
    forgotten = bowls["left"].at_checkpoints["after right"] - bowls["left"].at_checkpoints["after left"]
    print(f"forgotten of task left: {forgotten:+.3f} nats")
    draw(bowls, folder / "plane.png")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/own_classifier"))
