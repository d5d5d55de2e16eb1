"""Our side of `make bench-landscape`: the shipped scan of one plane, from live adapter to surface with a measured error."""

from collections.abc import Sequence

from landscape_case import Scan

from llm_forgetting.config.measurements import LandscapeConfig
from llm_forgetting.experiment.analysis.landscape import objective_of, rule_of, space_of
from llm_forgetting.landscape.nodes import CachedEvaluator
from llm_forgetting.landscape.scan import scan_plane
from llm_forgetting.models.language.batches import EncodedItem
from llm_forgetting.models.language.language_model import LanguageModel


def ours(model: LanguageModel, items: Sequence[EncodedItem], distance: float, seed: int) -> Scan:
    """Canonical factors, two directions at norm |P|, all evaluations with their check points, the fit; default settings."""
    config = LandscapeConfig(distance=distance, seed=seed)
    space, objective = space_of(model, config), objective_of(model, [("case", items)], config)
    d, e = space.directions(seed, 2, space.norm)
    with objective.evaluating() as values_at:
        nodes = CachedEvaluator(values_at)
        plane = scan_plane(
            nodes,
            lambda row: space.point([(row[0], d), (row[1], e)]),
            objective.losses,
            distance=distance,
            cells=config.resolved_resolution,
            method="spectral",
            rule=rule_of(config),
        )
    surface = plane.surface
    if surface is None:
        raise RuntimeError(plane.note)
    return Scan(
        losses=lambda points: objective.losses(surface.fit(points))[:, 0],
        points=plane.points,
        evaluations=nodes.evaluations,
    )
