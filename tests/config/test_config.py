"""From presets, files and flags to one configuration, and what is refused on the way."""

import dataclasses
import json
import os
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml
from bad_inputs import BOMB

from llm_forgetting.cli.run import SHORT_FLAGS, parse_run
from llm_forgetting.config.files import PRESETS, ConfigTemplate, config_help, dotted_paths, parse_config, written
from llm_forgetting.config.measurements import LandscapeConfig
from llm_forgetting.config.paths import to_dict
from llm_forgetting.config.rules import bounds_of
from llm_forgetting.config.sections import DataConfig, ExperimentConfig, LoraConfig, TrainingConfig
from llm_forgetting.errors import UserError

BOUNDS = bounds_of(ExperimentConfig())


def resolved(*arguments: str) -> ExperimentConfig:
    return parse_run(arguments)[1]


def complaint(*arguments: str) -> str:
    with pytest.raises(UserError) as caught:
        resolved(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


def at(config: ExperimentConfig, path: str) -> Any:
    value: Any = config
    for name in path.split("."):
        value = getattr(value, name)
    return value


def own_file(folder: Path, text: str) -> str:
    (folder / "own.yaml").write_text(text)
    return str(folder / "own.yaml")


def preset_text(name: str) -> str:
    return resources.files("llm_forgetting").joinpath(f"presets/{name}.yaml").read_text(encoding="utf-8")


# --- presets ----------------------------------------------------------------------------------------------------------


def test_the_default_is_quickstart_and_quickstart_is_the_program_s_own_defaults() -> None:
    config = resolved()
    assert config == resolved("--config", "quickstart") == ExperimentConfig()
    assert config.fingerprint == ExperimentConfig().fingerprint


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_loads_and_says_how_it_is_run(name: str) -> None:
    config = resolved("--config", name)
    for path, value in _leaves(yaml.safe_load(preset_text(name))):
        found = at(config, path)
        assert (list(found) if isinstance(found, tuple) else found) == value, path
    first, second, *_ = preset_text(name).splitlines()
    assert first.startswith("# llm-forgetting run")
    assert name == "quickstart" or f"--config {name}" in first
    assert second.startswith("#")


def _leaves(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    return [
        leaf
        for key, value in tree.items()
        for leaf in (_leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [(f"{prefix}{key}", value)])
    ]


def test_all_presets_are_in_the_package() -> None:
    found = {entry.name for entry in resources.files("llm_forgetting").joinpath("presets").iterdir()}
    assert found == {f"{name}.yaml" for name in PRESETS}


def test_llama2_is_the_set_up_of_the_documents() -> None:
    config = resolved("--config", "llama2-7b")
    assert config.model.name == "meta-llama/Llama-2-7b-hf"
    assert config.model.dtype == "bfloat16"
    assert (config.training.batch_size, config.training.num_epochs) == (16, 3)
    assert config.data.tasks == ("computer_science", "philosophy")
    assert config.data.train_items is None


def test_the_documents_command_resolves_to_what_it_says() -> None:
    documents = "--task1 computer_science --task2 philosophy --batch_size 16 --num_epochs 3"
    assert resolved(*documents.split()) == ExperimentConfig(
        data=DataConfig(tasks=("computer_science", "philosophy")), training=TrainingConfig(batch_size=16, num_epochs=3)
    )


# --- flags ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", SHORT_FLAGS)
def test_a_short_flag_sets_its_paths_and_nothing_else(flag: str) -> None:
    text = {"--model_name": "some/model", "--output_dir": "elsewhere", "--learning_rate": "0.5"}.get(flag, "3")
    config = resolved(flag, text)
    changed = {path for path in dotted_paths() if at(config, path) != at(ExperimentConfig(), path)}
    assert changed == set(SHORT_FLAGS[flag])
    assert {str(at(config, path)).removesuffix(".0") for path in changed} == {text}


def test_one_seed_sets_all_three_and_a_dotted_one_only_its_own() -> None:
    config = resolved("--seed", "7")
    assert (config.training.seed, config.data.seed, config.landscape.seed) == (7, 7, 7)
    config = resolved("--data.seed", "7")
    assert (config.training.seed, config.data.seed, config.landscape.seed) == (0, 7, 0)


def test_a_seed_by_itself_wins_over_the_seed_of_all() -> None:
    for arguments in (["--seed", "7", "--data.seed", "3"], ["--data.seed", "3", "--seed", "7"]):
        config = resolved(*arguments)
        assert (config.training.seed, config.data.seed, config.landscape.seed) == (7, 3, 7)


@pytest.mark.parametrize("name", ["foo:", "{a, b}", "12:30", "0x10", "1e-3", "007", "2020-01-01"])
def test_a_text_is_the_text_that_was_written(name: str, tmp_path: Path) -> None:
    assert resolved("--output_dir", name).output.folder == name
    assert resolved("--config", own_file(tmp_path, f"output:\n  folder: '{name}'\n")).output.folder == name


def test_a_file_must_be_small_and_regular(tmp_path: Path) -> None:
    assert "own.yaml has 2,000,001" in complaint("--config", own_file(tmp_path, "#" * 2_000_001))
    os.mkfifo(tmp_path / "pipe")
    assert "is neither" in complaint("--config", str(tmp_path / "pipe"))
    config = ExperimentConfig(data=DataConfig(definitions=str(tmp_path / "pipe")))
    with pytest.raises(UserError, match=r"data\.definitions must be a YAML file; .*pipe is a folder, pipe or device"):
        _ = config.fingerprint


def test_task_flags_replace_by_position_and_tasks_replaces_all() -> None:
    assert resolved("--task1", "virology").data.tasks == ("virology", "anatomy")
    assert resolved("--task2", "virology").data.tasks == ("abstract_algebra", "virology")
    assert resolved("--tasks", "virology, anatomy,marketing").data.tasks == ("virology", "anatomy", "marketing")
    assert resolved("--data.tasks", "[virology, anatomy]").data.tasks == ("virology", "anatomy")
    assert "--tasks" in complaint("--tasks", "virology,anatomy", "--task1", "marketing")


@pytest.mark.parametrize("spelling", [("--training.batch_size", "3"), ("--training.batch_size=3",)])
def test_a_dotted_path_overrides_any_file(spelling: tuple[str, ...]) -> None:
    assert resolved("--config", "smoke", *spelling).training.batch_size == 3
    assert resolved(*spelling, "--config", "smoke").training.batch_size == 3


def test_null_a_list_and_a_mapping_can_be_given_on_the_command_line() -> None:
    assert resolved("--data.train_items", "null").data.train_items is None
    assert resolved("--lora.target_modules", "[q_proj, v_proj]").lora.target_modules == ("q_proj", "v_proj")
    columns = "{question: q, choices: 'a,b'}"
    assert resolved("--data.source", "hub", "--data.columns", columns).data.columns == {
        "question": "q",
        "choices": "a,b",
    }


def test_help_names_every_dotted_path_with_its_meaning() -> None:
    text = config_help()
    for path in dotted_paths():
        assert f"--{path}" in text
    assert "Peak learning rate" in text


# --- files of one's own -----------------------------------------------------------------------------------------------


def test_a_file_of_one_s_own_needs_only_what_it_changes(tmp_path: Path) -> None:
    config = resolved("--config", own_file(tmp_path, "training:\n  num_epochs: 9   # more\n"))
    assert config == ExperimentConfig(training=TrainingConfig(num_epochs=9))


def test_a_file_with_nothing_but_comments_is_the_default(tmp_path: Path) -> None:
    assert resolved("--config", own_file(tmp_path, "# training:\n#   num_epochs: 9\n")) == ExperimentConfig()


def test_a_file_in_the_folder_wins_over_a_preset_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smoke").write_text("training:\n  num_epochs: 9\n")
    assert resolved("--config", "smoke").training.num_epochs == 9


@pytest.mark.parametrize("name", PRESETS)
def test_what_print_config_prints_is_a_file_that_resolves_to_the_same(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from llm_forgetting.cli.main import main

    asked = ["--config", name, "--lora.target_modules", "[q_proj]", "--training.learning_rate", "1e-5", "--seed", "3"]
    assert main(["run", *asked, "--print_config"]) == 0
    printed = capsys.readouterr().out
    again = resolved("--config", own_file(tmp_path, printed))
    assert again == resolved(*asked)
    assert again.fingerprint == resolved(*asked).fingerprint


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("modle:\n  name: x\n", ["modle.name", "did you mean model.name?"]),
        ("batch_size: 3\n", ["batch_size", "did you mean training.batch_size?"]),
        ("training:\n  batchsize: 3\n", ["training.batchsize", "did you mean training.batch_size?"]),
        ("data:\n  zzz: 3\n", ["data.zzz", "--help lists all"]),
        ("training: [\n", ["own.yaml", "YAML", "line 2"]),
        ("- training\n- data\n", ["own.yaml", "sections"]),
        ("quickstart\n", ["own.yaml", "sections"]),
        ("training: 3\n", ["training must hold fields", "training.batch_size", "3"]),
        ("training:\n", ["training must hold fields", "leave it out"]),
        ("training:\n  batch_size: many\n", ["training.batch_size must be a whole number", "'many'"]),
        ("training:\n  batch_size: 2.5\n", ["training.batch_size must be a whole number", "2.5"]),
        ("training:\n  batch_size: true\n", ["training.batch_size must be a whole number"]),
        ("training:\n  learning_rate: fast\n", ["training.learning_rate must be a number", "'fast'"]),
        ("training:\n  learning_rate: .nan\n", ["own.yaml", "a number must be finite, was .nan (line 2)"]),
        ("training:\n  learning_rate: 1e309\n", ["own.yaml", "a number must be finite, was 1e309 (line 2)"]),
        ("training:\n  num_epochs: 12:30\n", ["training.num_epochs must be a whole number", "'12:30'"]),
        ("training:\n  num_epochs: null\n", ["training.num_epochs must have a value, was null"]),
        ("data:\n  columns: null\n", ["data.columns must have a value, was null"]),
        ("training:\n  seed: 1\n  seed: 2\n", ["own.yaml", "seed is there twice (line 3)"]),
        ("data:\n  seed: 1\ndata:\n  seed: 1\n", ["own.yaml", "data is there twice (line 3)"]),
        ("config: /etc/passwd\n", ["config is not an option"]),
        (BOMB, ["own.yaml", "must hold at most 100,000 values, aliases expanded"]),
        ("data: &a\n  tasks: [*a]\n", ["own.yaml", "an alias must not stand inside what it names (line 2)"]),
        ("data: " + "[" * 10_000, ["own.yaml", "must be nested at most 50 deep (line 1)"]),
        ("training:\n  seed: " + "9" * 5_000, ["own.yaml", "must be a number, was 99999999999999999999 (line 2)"]),
        ("data:\n  tasks: anatomy\n", ["data.tasks must be a list", "'anatomy'"]),
        ("data:\n  train_items: few\n", ["data.train_items must be a whole number or null", "'few'"]),
        ("model:\n  dtype: int8\n", ["model.dtype must be one of", "bfloat16", "'int8'"]),
        ("landscape:\n  space: weights\n", ["landscape.space must be one of", "weight", "'weights'"]),
        ("landscape:\n  method: exact\n", ["landscape.method must be one of", "spectral", "grid", "'exact'"]),
    ],
)
def test_a_file_with_a_mistake_dies_in_one_line_that_names_it(tmp_path: Path, text: str, words: list[str]) -> None:
    message = complaint("--config", own_file(tmp_path, text))
    for word in words:
        assert word in message


def test_a_file_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_bytes(b'model:\n  name: "\xe9"\n')
    assert "own.yaml must be YAML in UTF-8" in complaint("--config", str(tmp_path / "own.yaml"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config", "smok"], ["quickstart, full, skills, smoke, llama2-7b", "'smok'", "did you mean smoke?"]),
        (["--config", "."], ["'.'", "YAML file"]),
        (["--training.batch_sise", "3"], ["--training.batch_sise", "did you mean --training.batch_size?"]),
        (["--trainin.batch_size=3"], ["--trainin.batch_size", "did you mean --training.batch_size?"]),
        (["--batchsize", "3"], ["--batchsize", "did you mean --training.batch_size?"]),
        (["--batch", "3"], ["--batch "]),
        (["--training.lr", "1e-3"], ["--training.lr is not an option; did you mean --training.learning_rate?"]),
        (["--lora.r", "4"], ["--lora.r is not an option; did you mean --lora.rank?"]),
        (["--training.m", "0.5"], ["--training.m is not an option"]),
        (["--training.num_epochs", "12:30"], ["training.num_epochs must be a whole number", "'12:30'"]),
        (["--training.num_epochs", "null"], ["training.num_epochs must be a whole number, was null"]),
        (["--landscape.distance", "1e309"], ["landscape.distance must be a number or null, was '1e309'"]),
        (["--lora_r", "4", "--lora.rank", "8"], ["--lora_r and --lora.rank are one field; give one of them"]),
        (["--lora.rank=8", "--lora_r", "4"], ["--lora_r and --lora.rank are one field"]),
        (["--task1", "anatomy", "--data.tasks", "[a, b]"], ["--task1 and --data.tasks are one field"]),
        (["anatomy"], ["anatomy"]),
        (["--batch_size", "many"], ["training.batch_size must be a whole number", "'many'"]),
        (["--batch_size"], ["--batch_size", "expected one argument"]),
        (["--training.batch_size"], ["--training.batch_size", "expected one argument"]),
    ],
)
def test_a_flag_with_a_mistake_dies_in_one_line_that_names_it(arguments: list[str], words: list[str]) -> None:
    message = complaint(*arguments)
    for word in words:
        assert word in message


# --- resume -----------------------------------------------------------------------------------------------------------


def test_resume_reads_the_run_s_own_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(to_dict(resolved("--config", "smoke", "--seed", "5"))))
    for arguments in (["--resume", str(tmp_path)], [f"--resume={tmp_path}"]):
        options, config = parse_run(arguments)
        assert config == resolved("--config", "smoke", "--seed", "5")
        assert options.resume == str(tmp_path)


@pytest.mark.parametrize("other", [["--seed", "1"], ["--dry_run"], ["--config", "smoke"], ["--training.batch_size=3"]])
def test_resume_takes_no_other_option(tmp_path: Path, other: list[str]) -> None:
    (tmp_path / "config.yaml").write_text("")
    assert "--resume takes no other option" in complaint("--resume", str(tmp_path), *other)
    assert "--resume takes no other option" in complaint(*other, "--resume", str(tmp_path))


def test_resume_needs_a_run_folder(tmp_path: Path) -> None:
    assert f"{tmp_path} is not one" in complaint("--resume", str(tmp_path))


# --- what is impossible -----------------------------------------------------------------------------------------------

IMPOSSIBLE = [
    ("lora.dropout", ["--lora.dropout", "1"], "must be below 1, was 1.0"),
    ("lora.target_modules", ["--lora.target_modules", "[]"], "must name at least one module"),
    ("training.warmup_ratio", ["--training.warmup_ratio", "1.5"], "must be at most 1, was 1.5"),
    (
        "interventions.sam_adaptive",
        ["--interventions.sam_adaptive", "true"],
        "needs interventions.sam_rho greater than 0",
    ),
    (
        "interventions.sam_rho",
        ["--interventions.sam_rho", "0.1", "--training.optimizer", "galore_adamw_layerwise"],
        "training.optimizer=galore_adamw_layerwise steps within it",
    ),
    ("interventions.replay_items", ["--interventions.replay_items", "41"], "at most data.train_items=40, was 41"),
    ("data.tasks", ["--tasks", "anatomy"], "must name at least two tasks"),
    ("data.train_fraction", ["--data.train_fraction", "0"], "must lie between 0 and 1, was 0.0"),
    ("data.train_fraction", ["--data.train_fraction", "1"], "must lie between 0 and 1, was 1.0"),
    ("data.path", ["--data.source", "local"], "when data.source is local"),
    ("data.path", ["--data.path", "x"], "set data.source to local or hub"),
    ("data.columns", ["--data.columns", "{question: q}"], "are for data.source=hub, which is embedded"),
    ("data.hub_config", ["--data.hub_config", "x"], "are for data.source=hub, which is embedded"),
    ("data.columns", ["--data.source", "hub", "--data.columns", "{text: q}"], "named text"),
    ("data.items_per_task", ["--data.items_per_task", "49"], "were 40 + 10"),
    ("landscape.resolution", ["--landscape.resolution", "6"], "must be odd"),
    (
        "landscape.trajectory",
        ["--landscape.trajectory", "true", "--landscape.checkpoint_plane", "false"],
        "needs landscape.checkpoint_plane=true",
    ),
    ("landscape.num_items", ["--landscape.num_items", "41"], "at most data.train_items=40, was 41"),
    ("landscape.num_items", ["--landscape.items", "test", "--landscape.num_items", "11"], "data.test_items=10, was 11"),
    ("model.name", ["--model.name", "synthetic"], "knows only the words of data.source=synthetic"),
]


@pytest.mark.parametrize(("path", "arguments", "words"), IMPOSSIBLE)
def test_an_impossible_combination_dies_at_load_time_with_its_path(path: str, arguments: list[str], words: str) -> None:
    message = complaint(*arguments)
    assert path in message
    assert words in message


@pytest.mark.parametrize("path", BOUNDS)
def test_a_number_below_its_bound_dies_at_load_time_with_its_path(path: str) -> None:
    bound, inclusive = BOUNDS[path].value, BOUNDS[path].inclusive
    wrong = bound - 1 if inclusive else bound
    message = complaint(f"--{path}={wrong:g}")
    assert message.startswith(f"{path} must be {'at least' if inclusive else 'greater than'} {bound:g}")
    assert message.endswith(("was " + repr(int(wrong)), "was " + repr(float(wrong))))


@pytest.mark.parametrize("path", BOUNDS)
def test_a_number_above_its_bound_dies_at_load_time_with_its_path(path: str) -> None:
    wrong = int(2 * BOUNDS[path].most)
    assert complaint(f"--{path}={wrong}").startswith(f"{path} must be at most {BOUNDS[path].most:.16g}, was ")


def test_the_self_test_takes_as_many_items_as_there_are() -> None:
    assert resolved("--landscape.num_items", "4").landscape.self_test_items == 8


@pytest.mark.parametrize("path", [path for path, bound in BOUNDS.items() if bound.inclusive])
def test_the_bound_itself_is_not_below_it(path: str) -> None:
    bound = BOUNDS[path].value
    others = {
        "data.train_items": ["--landscape.num_items", "1", "--landscape.self_test_items", "1"],
        "data.items_per_task": ["--data.train_items", "1", "--data.test_items", "1", "--landscape.num_items", "1",
                                "--landscape.self_test_items", "1"],
        "landscape.num_items": ["--landscape.self_test_items", "1"],
        "curvature.lanczos_steps": ["--curvature.eigenvalues", "2"],
    }  # fmt: skip
    assert at(resolved(f"--{path}={bound:g}", *others.get(path, [])), path) == bound


def test_nothing_that_counts_lacks_a_lower_bound() -> None:
    counts = {path for path, value in _leaves(to_dict(ExperimentConfig())) if type(value) in (int, float)}
    assert counts - {"data.train_fraction"} <= set(BOUNDS)


def test_a_configuration_built_in_python_is_checked_too() -> None:
    with pytest.raises(UserError, match=r"landscape\.resolution must be odd"):
        ExperimentConfig(landscape=LandscapeConfig(resolution=4))
    with pytest.raises(UserError, match=r"landscape\.distance must be a finite number, was inf"):
        ExperimentConfig(landscape=LandscapeConfig(distance=float("inf")))
    with pytest.raises(UserError, match=r"training\.seed must have a value, was null"):
        ExperimentConfig(training=TrainingConfig(seed=None))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "distance", "resolution"),
    [
        ([], 1.0, 41),
        (["--landscape.space", "raw"], 1.0, 41),
        (["--landscape.space", "weight"], 0.05, 41),
        (["--landscape.method", "grid"], 1.0, 11),
        (["--landscape.space", "weight", "--landscape.method", "grid"], 0.05, 11),
        (["--landscape.distance", "0.3", "--landscape.resolution", "7"], 0.3, 7),
        (["--landscape.space=weight", "--landscape.distance=0.3", "--landscape.resolution=7"], 0.3, 7),
        (["--config", "smoke", "--landscape.distance", "null", "--landscape.resolution", "null"], 1.0, 41),
    ],
)
def test_what_null_stands_for_depends_on_space_and_method(
    arguments: list[str], distance: float, resolution: int
) -> None:
    settings = resolved(*arguments).landscape
    assert (settings.resolved_distance, settings.resolved_resolution) == (distance, resolution)


# --- the object -------------------------------------------------------------------------------------------------------


def test_the_configuration_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ExperimentConfig().training.seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    "change",
    ["--model.dtype=float32", "--model.quantization=4bit", "--lora.alpha=17", "--training.learning_rate=1e-5", "--data.seed=1",
     "--data.test_items=9",
     "--interventions.sam_rho=0.1", "--interventions.sam_on=first", "--interventions.replay_items=1",
     "--interventions.anchor=1", "--interventions.rescale=2", "--evaluation.batch_size=9", "--landscape.distance=0.5",
     "--landscape.method=grid", "--landscape.tolerance=0.02",
     "--landscape.trajectory=true", "--landscape.points_per_forward=2", "--tasks=anatomy,abstract_algebra"],
)  # fmt: skip
def test_the_fingerprint_changes_with_whatever_can_change_a_number(change: str) -> None:
    assert resolved(change).fingerprint != ExperimentConfig().fingerprint


def test_the_fingerprint_does_not_tell_16_from_16_0() -> None:
    one, other = (ExperimentConfig(lora=LoraConfig(alpha=alpha)) for alpha in (16, 16.0))
    assert one.fingerprint == other.fingerprint != ExperimentConfig(lora=LoraConfig(alpha=17)).fingerprint


def test_the_fingerprint_does_not_change_with_the_output() -> None:
    elsewhere = resolved("--output_dir", "elsewhere", "--output.dpi", "60")
    assert elsewhere != ExperimentConfig()
    assert elsewhere.fingerprint == ExperimentConfig().fingerprint


def test_the_fingerprint_is_the_same_after_every_field_has_been_written_out() -> None:
    config = resolved("--config", "smoke")
    values = [(path, value) for path, value in _leaves(to_dict(config)) if path != "data.columns"]
    written = [f"--{path}={value if isinstance(value, str) else json.dumps(value)}" for path, value in values]
    again = parse_config("quickstart", written)
    assert again.fingerprint == config.fingerprint


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"training.learning_rate": 1, "lora.rank": 4, "landscape.num_items": 2},
        {"lora.target_modules": ["q_proj", "v_proj"], "curvature.forecast": False},
        {"data.test_items": None, "landscape.seed": 3, "model.name": "synthetic"},
    ],
)
def test_a_template_gives_what_parsing_gives(fields: dict[str, Any]) -> None:
    dotted = [f"--{path}={written(value)}" for path, value in fields.items()]
    for tasks in (None, ["b", "a"]):
        assert ConfigTemplate("smoke").config(fields, tasks) == parse_config("smoke", dotted, tasks=tasks)


def test_a_template_refuses_what_parsing_refuses() -> None:
    for path, value in (("lora.rank", 0), ("lora.rank", "many"), ("landscape.num_items", 10**6)):
        with pytest.raises(UserError) as by_parsing:
            parse_config("smoke", [f"--{path}={written(value)}"])
        with pytest.raises(UserError) as by_template:
            ConfigTemplate("smoke").config({path: value}, None)
        assert str(by_template.value) == str(by_parsing.value)
