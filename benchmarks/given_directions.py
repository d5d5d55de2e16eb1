"""Do loss-landscape-3d and nngeom draw, along given directions, the surface that our definition gives?

Runs in the peers' environment.

    python given_directions.py            check against the held problem, print every peer's largest difference as JSON
    python given_directions.py --write    draw the problem anew, and write it with all surfaces to tests/data/

The problem is a two-layer tanh network with a low-rank update on each layer, small enough to be held number by number:

    logits = (W2 + B2 A2) tanh((W1 + B1 A1) x),    loss = mean cross-entropy over all items,    float64

The directions are of (B, A), W is frozen, and surface[i][j] is the loss at base + alphas[i] d + betas[j] e. nngeom's grid is
transposed: its [i][j] is at alphas[j], betas[i]. Status 1 if a peer is off by more than 1e-5.
"""

import argparse
import json
import random
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nngeom
import numpy as np
import torch
import torch.nn.functional as F
from loss_landscape_3d import LossLandscapeCalculator

HELD = Path(__file__).resolve().parents[1] / "tests/data/given_directions.json"
TOLERANCE = 1e-5
SPAN, STEPS = 1.0, 5
INPUTS, HIDDEN, CLASSES, RANK, ITEMS = 3, 4, 3, 2, 8
LAYERS = {"first": (HIDDEN, INPUTS), "second": (CLASSES, HIDDEN)}
Problem = dict[str, Any]
Factors = dict[str, dict[str, Any]]


class Net(torch.nn.Module):
    """The network; its only trainable parameters are `first.B`, `first.A`, `second.B` and `second.A`."""

    def __init__(self, frozen: dict[str, Any], base: Factors) -> None:
        super().__init__()
        for name in LAYERS:
            weights = {factor: torch.nn.Parameter(matrix(base[name][factor])) for factor in "BA"}
            self.add_module(name, torch.nn.ParameterDict(weights))
            self.register_buffer(f"W_{name}", matrix(frozen[name]))

    def _weight(self, name: str) -> torch.Tensor:
        factors = getattr(self, name)
        return torch.as_tensor(getattr(self, f"W_{name}") + factors["B"] @ factors["A"])

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """(n, classes) logits."""
        return torch.tanh(inputs @ self._weight("first").T) @ self._weight("second").T


def matrix(rows: Any) -> torch.Tensor:
    """A float64 tensor."""
    return torch.tensor(rows, dtype=torch.float64)


def draw() -> Problem:
    """A problem from a fixed seed, with numbers of three decimals."""
    rng = random.Random(0)

    def normal(rows: int, columns: int, scale: float) -> list[list[float]]:
        return [[round(rng.gauss(0, scale), 3) for _ in range(columns)] for _ in range(rows)]

    def factors(scale: float) -> Factors:
        return {
            name: {"B": normal(rows, RANK, scale), "A": normal(RANK, columns, scale)}
            for name, (rows, columns) in LAYERS.items()
        }

    steps = np.linspace(-SPAN, SPAN, STEPS).tolist()
    return {
        "about": "logits = (W2 + B2 A2) tanh((W1 + B1 A1) x); loss = mean cross-entropy; float64; "
        "at (a, b) every B and A is base + a d + b e",
        "W": {name: normal(rows, columns, 1.0) for name, (rows, columns) in LAYERS.items()},
        "base": factors(0.7),
        "d": factors(0.6),
        "e": factors(0.5),
        "inputs": normal(ITEMS, INPUTS, 1.0),
        "targets": [rng.randrange(CLASSES) for _ in range(ITEMS)],
        "alphas": steps,
        "betas": steps,
    }


def flat(factors: Factors) -> dict[str, torch.Tensor]:
    """Factors by the names that the network's parameters have."""
    return {f"{name}.{factor}": matrix(value) for name, pair in factors.items() for factor, value in pair.items()}


def plain_loop(problem: Problem) -> list[list[float]]:
    """The definition, cell by cell."""
    surface = []
    for a in problem["alphas"]:
        row = []
        for b in problem["betas"]:
            base, d, e = (flat(problem[part]) for part in ("base", "d", "e"))
            net = Net(problem["W"], problem["base"])
            net.load_state_dict({name: base[name] + a * d[name] + b * e[name] for name in base}, strict=False)
            with torch.no_grad():
                row.append(float(F.cross_entropy(net(matrix(problem["inputs"])), torch.tensor(problem["targets"]))))
        surface.append(row)
    return surface


def by_loss_landscape_3d(problem: Problem) -> list[list[float]]:
    """`LossLandscapeCalculator.calculate`: [i][j] at alphas[i], betas[j]. The items come in batches of 5 and 3."""
    net = Net(problem["W"], problem["base"])
    inputs, targets = matrix(problem["inputs"]), torch.tensor(problem["targets"])
    batches = list(zip(inputs.split(5), targets.split(5), strict=True))
    centre = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    calculator = LossLandscapeCalculator(net, batches, F.cross_entropy)
    directions = flat(problem["d"]), flat(problem["e"])
    surface: list[list[float]] = calculator.calculate(problem["alphas"], problem["betas"], *directions, centre).tolist()
    return surface


def by_nngeom(problem: Problem) -> list[list[float]]:
    """`plane_slice_2d`: [i][j] at alphas[j], betas[i]."""
    net = Net(problem["W"], problem["base"])
    model = nngeom.Model(net, loss_fn=lambda module, batch: F.cross_entropy(module(batch[0]), batch[1]))
    names = model.layer_names()
    directions = [np.concatenate([flat(problem[part])[name].numpy().ravel() for name in names]) for part in "de"]
    batch = matrix(problem["inputs"]), torch.tensor(problem["targets"])
    found = nngeom.plane_slice_2d(model, batch, span=SPAN, steps=STEPS, directions=directions)
    assert found.alphas.tolist() == problem["alphas"], "nngeom has other cells"
    surface: list[list[float]] = found.losses.tolist()
    return surface


def surfaces(problem: Problem) -> dict[str, list[list[float]]]:
    """Every surface as its tool returns it."""
    return {
        "plain_loop": plain_loop(problem),
        "loss_landscape_3d": by_loss_landscape_3d(problem),
        "nngeom_transposed": by_nngeom(problem),
    }


def largest_differences(found: dict[str, list[list[float]]]) -> dict[str, float]:
    """Each peer's largest difference from the plain loop, nngeom's grid turned round first."""
    expected = np.array(found["plain_loop"])
    return {
        "loss-landscape-3d": float(np.abs(np.array(found["loss_landscape_3d"]) - expected).max()),
        "nngeom": float(np.abs(np.array(found["nngeom_transposed"]).T - expected).max()),
    }


def write(problem: Problem, found: dict[str, list[list[float]]]) -> None:
    """The problem and its surfaces, one entry a line."""
    content = {
        **problem,
        "versions": {name: version(name) for name in ("torch", "loss-landscape-3d", "nngeom")},
        "surfaces_are": "[i][j] at (alphas[i], betas[j]); nngeom's own grid is transposed: [i][j] at (alphas[j], betas[i])",
        "surfaces": found,
    }
    lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in content.items())
    HELD.parent.mkdir(parents=True, exist_ok=True)
    HELD.write_text(f"{{\n{lines}\n}}\n")


def main() -> int:
    """Check or write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="draw the problem anew and write it")
    problem = draw() if (writing := parser.parse_args().write) else json.loads(HELD.read_text())
    found = surfaces(problem)
    if writing:
        write(problem, found)
    differences = largest_differences(found)
    print(json.dumps(differences))
    return 0 if max(differences.values()) <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
