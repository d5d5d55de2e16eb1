"""Whole runs that train more than plain LoRA, and pairs of anyone's checkpoints, against plain PEFT and transformers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from tiny_models import make_items, save, tiny_gpt2, tiny_llama
from transformers import AutoModelForCausalLM, AutoTokenizer

import llm_forgetting as lf
from llm_forgetting.cli.main import main
from llm_forgetting.config.sections import ExperimentConfig
from llm_forgetting.errors import UserError
from llm_forgetting.experiment.artifacts.run_folder import RunFolder
from llm_forgetting.experiment.experiment import run_experiment
from llm_forgetting.experiment.phases import reference_norm
from llm_forgetting.experiment.repair import path_of, repair
from llm_forgetting.experiment.session import Session
from llm_forgetting.progress import Silent
from llm_forgetting.results import Results, ScanResults
from llm_forgetting.training.callbacks import Watch

pytestmark = [pytest.mark.process, pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore")]

SETTINGS = {
    "model.device": "cpu", "data.source": "local", "data.train_items": 6, "data.test_items": 4, "data.max_tokens": 96,
    "training.num_epochs": 2, "training.batch_size": 6, "training.learning_rate": 3e-3, "evaluation.recovery_items": 0,
    "evaluation.rotations": False, "landscape.max_evaluations": 23, "landscape.resolution": 5, "landscape.directions": 2,
    "landscape.num_items": 3, "landscape.self_test_items": 2, "landscape.tasks": "first", "output.figures": False,
}  # fmt: skip
KINDS: dict[str, tuple[Any, Any]] = {
    "DoRA and a head": (tiny_llama, {"rank": 2, "target_modules": ["q_proj", "v_proj"], "use_dora": True,
                                     "modules_to_save": ["lm_head"]}),
    "biases": (tiny_gpt2, {"rank": 2, "target_modules": ["c_attn"], "bias": "all", "rank_pattern": {"h.0.attn.c_attn": 3},
                           "alpha_pattern": {"h.1.attn.c_attn": 5.0}}),
    "PiSSA": (tiny_llama, {"rank": 2, "target_modules": ["q_proj"], "init": "pissa", "layers_to_transform": [1]}),
    "all weights": (tiny_llama, None),
    "all weights, tied": (lambda: tiny_llama(tie_word_embeddings=True), None),
}  # fmt: skip


def questions(folder: Path) -> str:
    """Two tasks as JSONL."""
    lines = [
        json.dumps({"subject": subject, "question": item.question, "choices": item.choices, "answer": item.answer})
        for seed, subject in enumerate(("oaks", "elms"))
        for item in make_items(12, seed=seed, subject=subject)
    ]
    (folder / "questions.jsonl").write_text("\n".join(lines))
    return str(folder / "questions.jsonl")


def configured(folder: Path, net: Any, lora: Mapping[str, Any] | None, **further: Any) -> ExperimentConfig:
    settings = {**SETTINGS, "model.name": str(save(folder / "base", net)), "data.path": questions(folder), **further}
    chosen: dict[str, Any] = {"lora": None} if lora is None else {f"lora.{name}": value for name, value in lora.items()}
    return lf.Experiment("smoke", tasks=["oaks", "elms"], **settings, **chosen).config


def opened(base: Path, folder: Path) -> Any:
    """A checkpoint, without this package; its weights merged."""
    if not (folder / "adapter_config.json").is_file():
        return AutoModelForCausalLM.from_pretrained(folder).eval()
    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder).eval()
    return model.merge_and_unload()


def loss_of(model: Any, items: Any) -> float:
    with torch.no_grad():
        losses = [
            torch.nn.functional.cross_entropy(
                model(input_ids=torch.tensor([item.input_ids])).logits[0, -1].float(),
                torch.tensor(item.letter_ids[item.item.answer]),
            )
            for item in items
        ]
    return float(torch.stack(losses).double().mean())


def between(first: Any, second: Any, t: float) -> Any:
    """The straight line between the parameters of two models, in the second one's place."""
    with torch.no_grad():
        line = {n: torch.lerp(p, q, t) for (n, p), q in zip(first.named_parameters(), second.parameters(), strict=True)}

    def model(input_ids: torch.Tensor) -> Any:
        return torch.func.functional_call(second, line, kwargs={"input_ids": input_ids})

    return lambda items: loss_of(model, items)


@pytest.fixture(scope="module", params=KINDS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Results, Path, Session]:
    """A finished run of every kind."""
    net, lora = KINDS[request.param]
    place = tmp_path_factory.mktemp("run")
    config = configured(place, net(), lora, **{"output.folder": str(place / "out")})
    folder = RunFolder.create(place / "out")
    results = run_experiment(config, folder)
    return request.param, results, folder.path, Session(config, folder.path, Silent())


def test_a_run_is_what_plain_peft_and_transformers_make_of_its_checkpoints(run: Any) -> None:
    """Losses at the checkpoints, on the path between them, and in the plane through them and the base."""
    kind, results, folder, session = run
    base = folder.parent.parent / "base"
    first, second = (opened(base, session.checkpoint_folder(k)) for k in (1, 2))
    items = dict(session.named_landscape_items())["oaks"]
    losses = [loss_of(model, items) for model in (opened(base, base), first, second)]
    assert abs(losses[1] - losses[0]) > 1e-3
    plane = results.checkpoint_plane.surfaces["oaks"].at_checkpoints
    assert list(plane.values()) == pytest.approx(losses, abs=1e-5)
    (path,) = results.paths
    for n in (0, len(path.nodes) // 2, -1):
        expected = between(first, second, float(path.nodes[n]))(items)
        assert float(path.tasks["oaks"].at_nodes.loss[n]) == pytest.approx(expected, abs=1e-5)
    assert reference_norm(session) == pytest.approx(results.landscapes["after_task2"].reference_norm, rel=1e-5)
    for landscape, loss in zip(results.landscapes.values(), losses[1:], strict=True):
        assert landscape.space == ("adapter" if kind == "PiSSA" else "weight")
        assert landscape.distance == (0.5 if kind == "PiSSA" else 0.05)  # the preset's, and weight space's own
        assert (landscape.gauge_self_test is None) == (kind != "PiSSA")
        surface = landscape.surfaces["oaks"]
        centre = len(landscape.alphas) // 2
        assert surface.loss[centre, centre] == pytest.approx(loss, abs=5e-3)
    forecast = results.forecasts[0].tasks["oaks"]["train"]
    assert forecast.loss + forecast.observed == pytest.approx(losses[2], abs=1e-5)
    assert forecast.first_order == pytest.approx(forecast.path.slope, rel=0.1, abs=1e-3)
    assert results.model.adapter_parameters > 0
    assert "all weights" not in kind or results.model.adapter_parameters == results.model.parameters


def test_its_repair_is_loaded_without_this_package(run: Any) -> None:
    kind, results, folder, session = run
    record = repair(session, path_of(results), rank=None, t=0.25)
    base = folder.parent.parent / "base"
    first, second = (opened(base, session.checkpoint_folder(k)) for k in (1, 2))
    items = session.encoded[0].train
    expected = between(first, second, 0.25)(items)
    assert loss_of(opened(base, folder / record.adapter), items) == pytest.approx(expected, abs=1e-5)
    assert (record.rank > 0) == (kind == "PiSSA")
    if kind != "PiSSA":
        with pytest.raises(UserError, match="--rank needs a plain LoRA adapter"):
            repair(session, path_of(results), rank=2, t=0.25)


@pytest.mark.parametrize("kind", ["DoRA and a head", "all weights"])
def test_a_run_that_is_killed_in_training_ends_with_the_same_weights(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, lora = KINDS[kind]
    short = {
        "interventions.sam_rho": 0.01,
        "interventions.replay_items": 2,
        "landscape.paths": False,
        "landscape.checkpoint_plane": False,
        "curvature.forecast": False,
    }
    config = configured(tmp_path, net(), lora, **short, **{"training.batch_size": 3})
    whole = run_experiment(config, RunFolder.create(tmp_path / "one"))
    step = Watch.on_step_end

    def struck(watch: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step(watch, args, state, control, **kwargs)
        if state.global_step == 3:
            raise KeyboardInterrupt

    folder = RunFolder.create(tmp_path / "two")
    with monkeypatch.context() as patch:
        patch.setattr(Watch, "on_step_end", struck)
        with pytest.raises(KeyboardInterrupt):
            run_experiment(config, folder)
    assert list((folder.path / "phases" / "trainer_task1").glob("checkpoint-*"))
    again = run_experiment(config, RunFolder(folder.path))
    assert [t.adapter_sha256 for t in again.training] == [t.adapter_sha256 for t in whole.training]
    assert run_experiment(config, RunFolder(folder.path)).training == again.training


def pair_of(tmp_path: Path, kind: str) -> tuple[Path, list[Path]]:
    """A base and two checkpoints that anybody might have published."""
    base = save(tmp_path / "base", tiny_llama())
    folders = [tmp_path / "first", tmp_path / "second"]
    for seed, folder in enumerate(folders):
        model: Any = tiny_llama()
        if kind == "DoRA":
            settings = peft.LoraConfig(r=2 + seed, target_modules=["q_proj", "v_proj"], use_dora=True)
            model = peft.get_peft_model(model, settings)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return base, folders


@pytest.mark.parametrize(("kind", "named"), [("DoRA", True), ("whole models", True), ("whole models", False)])
def test_a_foreign_pair_is_measured_without_training(
    kind: str, named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, (first, second) = pair_of(tmp_path, kind)
    keys = ("data.source", "data.train_items", "data.test_items", "data.max_tokens")
    chosen = {key: SETTINGS[key] for key in keys} | {k: v for k, v in SETTINGS.items() if k.startswith("landscape.")}
    options = [f"--{key}={value}" for key, value in chosen.items()]
    monkeypatch.setattr("llm_forgetting.report.figures.run.save", lambda figure, stem, dpi: None)
    arguments = ["landscape", str(first), "--to", str(second), "--task", "oaks", f"--data.path={questions(tmp_path)}"]
    arguments += [*options, "--output_dir", str(tmp_path / "out"), *(["--model_name", str(base)] if named else [])]
    assert main(arguments) == 0
    (folder,) = (tmp_path / "out").iterdir()
    results = read_scan(folder)
    from llm_forgetting.experiment.tasks import source_of, tasks_of
    from llm_forgetting.models.language.encoding import encode

    (task,) = tasks_of(results.config.data, source_of(results.config.data, lambda line: None))
    tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
    ids = results.paths[0].tasks["oaks"].items
    encoded = {item.item.id: item for item in encode(tokenizer, task.train, task.shots, 96)}
    items = [encoded[name] for name in ids]
    one, other = (opened(base, place) for place in (first, second))
    (path,) = results.paths
    for n in (0, len(path.nodes) // 2, -1):
        assert float(path.tasks["oaks"].at_nodes.loss[n]) == pytest.approx(
            between(one, other, float(path.nodes[n]))(items), abs=1e-5
        )
    assert set(results.landscapes) == {"adapter", "other"}
    assert {landscape.space for landscape in results.landscapes.values()} == {"weight"}
    forecast_and_evaluate(tmp_path, [str(first), str(second)], arguments[4:], items, (one, other))
    if named:
        corners = list(results.checkpoint_plane.surfaces["oaks"].at_checkpoints.values())
        assert corners == pytest.approx([loss_of(model, items) for model in (opened(base, base), one, other)], abs=1e-5)
    else:
        assert results.checkpoint_plane is None
        assert "give it as --model_name" in " ".join(results.warnings)


def forecast_and_evaluate(tmp_path: Path, pair: list[str], options: list[str], items: Any, models: Any) -> None:
    """`forecast A B` and `evaluate A B` of the same pair, against losses of the plain models."""
    options = [word for word in options if word != str(tmp_path / "out")]
    options.insert(options.index("--output_dir") + 1, str(tmp_path / "further"))
    assert main(["forecast", *pair, *options]) == 0
    (folder,) = (tmp_path / "further").iterdir()
    first, second = (loss_of(model, items) for model in models)
    forecast = json.loads((folder / "forecast.json").read_text())["tasks"]["oaks"]["forecast"]
    assert forecast["loss"] == pytest.approx(first, abs=1e-5)
    assert forecast["observed"] == pytest.approx(second - first, abs=2e-5)
    options = [word for word in options if not word.startswith(("--landscape.", "--data.train", "--data.test"))]
    options[options.index("--output_dir") + 1] = str(tmp_path / "scored")
    assert main(["evaluate", *pair, *options]) == 0
    (folder,) = (tmp_path / "scored").iterdir()
    lines = [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]
    chosen = [item.item.id for item in items]
    for name, expected in (("A", first), ("B", second)):
        scored = [line["loss"] for line in lines if line["checkpoint"] == name and line["id"] in chosen]
        assert sum(scored) / len(chosen) == pytest.approx(expected, abs=1e-5)


def read_scan(folder: Path) -> ScanResults:
    from llm_forgetting.files import decode

    return decode(ScanResults, (folder / "landscape.json").read_bytes(), file="landscape.json")
