"""A whole experiment from Python: two tasks one after the other, and its results as values, frames and a loss surface.

This uses the toy preset, a random two-layer model on synthetic tasks that interfere. For a real model use the preset
"quickstart", without these tasks and settings.

    python examples/experiment.py outputs/experiment
"""

import sys
from pathlib import Path

import llm_forgetting as lf

settings = {
    "data": {"train_items": 40, "test_items": 8},
    "landscape": {"num_items": 8, "max_evaluations": 40, "tolerance": 0.05, "checkpoint_plane": False, "paths": False},
    "evaluation": {"recovery_items": 0},
}
run = lf.Experiment("smoke", tasks=["synthetic_1", "synthetic_2"], **settings).run(sys.argv[1], quiet=True)

print(run.answer)
print("loss gained on task 1, nats:", run.forgotten("synthetic_1", measure="loss"))
trained = run.scores.query("split == 'train'").pivot(index="checkpoint", columns="task", values="accuracy")
print(trained.round(2).to_string())
surface = run.surface(checkpoint=1, task="synthetic_1")
print(
    f"surface of {surface.losses.size} cells from {surface.evaluations} evaluations, measured error {surface.error:.3f} nats"
)

run.scores.to_csv(Path(sys.argv[1]) / "scores.csv", index=False)
surface.save_json(Path(sys.argv[1]) / "surface.json")
print("to be opened in a browser:", run.report)
