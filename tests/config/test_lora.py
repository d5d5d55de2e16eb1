"""What is trained, as the configuration says it: an adapter of any kind, or all weights."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoModelForCausalLM

import llm_forgetting as lf
from llm_forgetting.config.files import ConfigTemplate, parse_config, written
from llm_forgetting.config.paths import LATER_FIELDS, leaves, to_dict
from llm_forgetting.config.sections import ExperimentConfig, LoraConfig
from llm_forgetting.errors import UserError
from llm_forgetting.experiment.cost.lengths import ItemLengths
from llm_forgetting.experiment.cost.tables import estimate, seconds_of
from llm_forgetting.experiment.cost.work import task_sizes, work_of
from llm_forgetting.models.language.backbones import synthetic_backbone
from llm_forgetting.models.language.batches import EncodedItem, EncodedTask
from llm_forgetting.tasks.completion import Completion
from llm_forgetting.tasks.task import Item


def written_to(path: Path, **sections: Any) -> str:
    path.write_text(yaml.safe_dump(sections))
    return str(path)


def test_null_trains_all_weights_however_it_is_written(tmp_path: Path) -> None:
    file = written_to(tmp_path / "full.yaml", lora=None, training={"num_epochs": 2})
    whole = [
        parse_config("quickstart", ["--lora=null", "--training.num_epochs=2"]),
        parse_config("quickstart", ["--lora", "null", "--training.num_epochs", "2"]),
        parse_config(file, []),
        lf.Experiment("quickstart", lora=None, training={"num_epochs": 2}).config,
        ConfigTemplate(file).config({}, None),
    ]
    assert all(config.lora is None and not config.low_rank for config in whole)
    assert len({config.fingerprint for config in whole}) == 1
    assert whole[0].fingerprint != parse_config("quickstart", ["--training.num_epochs=2"]).fingerprint
    again = written_to(tmp_path / "again.yaml", **to_dict(whole[0]))
    assert parse_config(again, []) == whole[0]
    assert lf.Experiment(whole[0], training={"num_epochs": 3}).config.lora is None


def test_a_field_of_lora_brings_the_adapter_back(tmp_path: Path) -> None:
    file = written_to(tmp_path / "full.yaml", lora=None)
    assert parse_config(file, ["--lora.rank=3"]).lora == LoraConfig(rank=3)
    assert ConfigTemplate(file).config({"lora.rank": 3}, None).lora == LoraConfig(rank=3)
    with pytest.raises(UserError, match="--lora null and fields of lora exclude each other"):
        parse_config("quickstart", ["--lora=null", "--lora.rank=3"])
    with pytest.raises(UserError, match="--lora is not an option"):
        parse_config("quickstart", ["--lora=3"])


def test_every_field_is_read_from_file_and_flag_and_python(tmp_path: Path) -> None:
    fields = {
        "rank": 3, "use_dora": True, "bias": "lora_only", "modules_to_save": ["lm_head"], "rank_pattern": {"q.0": 2},
        "alpha_pattern": {"v_proj": 3.5}, "layers_to_transform": [0, 2], "init": "gaussian",
    }  # fmt: skip
    file = parse_config(written_to(tmp_path / "one.yaml", lora=fields), [])
    flags = parse_config("quickstart", [f"--lora.{name}={written(value)}" for name, value in fields.items()])
    assert file.lora == flags.lora == lf.Experiment("quickstart", lora=fields).config.lora
    assert file.lora == LoraConfig(
        rank=3, use_dora=True, bias="lora_only", modules_to_save=("lm_head",), rank_pattern={"q.0": 2},
        alpha_pattern={"v_proj": 3.5}, layers_to_transform=(0, 2), init="gaussian",
    )  # fmt: skip
    base, known = ExperimentConfig().fingerprint, dict(leaves(to_dict(file)))
    assert {path for path in LATER_FIELDS if path.startswith("lora.")} == {f"lora.{name}" for name in fields} - {
        "lora.rank"
    }
    for name in fields:
        changed = ExperimentConfig(lora=LoraConfig(**{name: getattr(file.lora, name)}))
        assert (f"lora.{name}" in known, changed.fingerprint != base) == (True, True)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--lora.init=eva"], "lora.init must be true, gaussian, pissa, pissa_niter_N or olora, was 'eva'"),
        (["--lora.init=false"], "lora.init must be true, .*, was False"),
        (["--lora.init=pissa", "--lora.dropout=0.1"], "lora.init=pissa needs lora.dropout=0"),
        (["--lora.init=olora", "--training.weight_decay=0.1"], "lora.init=olora needs training.weight_decay=0"),
        (["--lora.init=pissa", "--interventions.rescale=2"], "needs interventions.rescale=1"),
        (["--lora.init=pissa", "--lora.use_dora=true"], "needs lora.use_dora=false"),
        (["--lora.rank_pattern={q_proj: 0}"], "must hold ranks from 1 and alphas above 0, was 0"),
        (["--lora.layers_to_transform=[-1]"], "lora.layers_to_transform must be numbers of layers from 0"),
        (["--lora.use_dora=true", "--interventions.anchor=1"], "interventions.anchor needs a plain LoRA adapter"),
        (["--lora.bias=all", "--curvature.spectrum=true"], "curvature.spectrum needs a plain LoRA adapter"),
        (["--lora=null", "--landscape.trajectory=true"], "landscape.trajectory needs a plain LoRA adapter"),
        (["--lora=null", "--landscape.space=raw"], "landscape.space=raw needs a plain LoRA adapter"),
        (["--lora=null", "--interventions.rescale=2"], "interventions.rescale needs a plain LoRA adapter"),
        (["--lora.use_dora=true", "--model.quantization=8bit"], "model.quantization needs a plain LoRA adapter"),
        (["--lora=null", "--model.dtype=bfloat16"], "model.dtype must be float32 where all weights are trained"),
    ],
)
def test_what_needs_factors_is_refused_before_anything_is_loaded(arguments: list[str], reason: str) -> None:
    with pytest.raises(UserError, match=reason) as error:
        parse_config("quickstart", arguments)
    assert "\n" not in str(error.value)


def test_a_dry_run_says_that_it_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    config = parse_config("smoke", ["--lora=null"])
    tables = estimate(config, lambda line: None)
    assert "trained update is more than plain LoRA, so neither time nor memory can be estimated" in tables[-1].note
    backbone = AutoModelForCausalLM.from_pretrained(synthetic_backbone(lambda line: None))
    weights = sum(weight.numel() for weight in backbone.parameters())
    assert f"All {weights:,} weights are trained" in tables[-1].note
    assert seconds_of(config, lambda line: None) is None


def test_a_dry_run_counts_no_rotated_options_of_completions() -> None:
    completion = EncodedItem(Completion("s/test/0", "s", "?", "!"), (1, 2, 3), (), places=(1, 2), targets=(3, 4))
    question = EncodedItem(Item("q/test/0", "q", "?", ("p", "q"), 0), (1, 2, 3), (5, 6))
    counted = {}
    for item in (completion, question):
        tasks = [EncodedTask(name, (item,) * 4, (item,)) for name in ("one", "two")]
        work = work_of(parse_config("smoke", []), task_sizes(ItemLengths(tuple(tasks))))
        counted[item.item.subject] = [each.passes for each in work if each.label == "rotated options"]
    assert counted == {"s": [], "q": [24]}
