"""Recipe < values < key=value words; what does not fit is named with its place."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from lorgnette import config
from lorgnette.config import Settings, TrainSettings
from lorgnette.errors import UsageError

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
COUNT, SIDE = st.integers(1, 10**9), st.integers(1, 2**14)
SHARE = st.floats(0, 1e9, allow_subnormal=False)
PATHS = st.none() | TEXT.map(Path)
TREES = st.fixed_dictionaries(
    {},
    optional={
        "model": TEXT,
        "run": PATHS,
        "data": st.fixed_dictionaries({}, optional={"path": PATHS, "prompt": TEXT, "max_rows": st.none() | COUNT}),
        "image_size": st.none() | st.tuples(SIDE, SIDE),
        "image_tokens": st.tuples(SIDE, SIDE).map(sorted),
        "eos_token": st.sampled_from(["template", "<|endoftext|>"]),
        "project": TEXT,
        "lora": st.fixed_dictionaries(
            {},
            optional={
                "dropout": st.floats(0, 1, exclude_max=True),
                "use_rslora": st.booleans(),
                "target_modules": st.lists(st.sampled_from(config.TARGET_MODULES), min_size=1),
            },
        ),
        "train": st.fixed_dictionaries(
            {},
            optional={
                "learning_rate": st.floats(1e-30, 1e9),
                "max_grad_norm": st.just(float("inf")),
                "weight_decay": SHARE,
            },
        ),
    },
)


def written(value: Any) -> str:
    return "null" if value is None else ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def setting(settings: Settings, name: str) -> Any:
    for part in name.split("."):
        settings = getattr(settings, part)
    return settings


@given(tree=TREES)
@example(tree={"data": {"prompt": "a\x85b 新"}})  # YAML takes it for a line break
def test_a_dump_reads_back_to_the_same_settings(tree: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    settings = config.load_settings(tree)
    path = tmp_path_factory.getbasetemp() / "dumped.yaml"
    path.write_text(config.dump_settings(settings), encoding="utf-8")
    assert config.load_settings(config.read_recipe(path)) == settings


@pytest.mark.parametrize("name", config.list_settings())
def test_every_setting_takes_its_default_as_a_word(name: str) -> None:
    default = setting(Settings(), name)
    assert setting(config.load_settings({}, [f"{name}={written(default)}"]), name) == default


@given(prompt=TEXT.filter(lambda text: text != "null"))
def test_all_behind_the_first_equals_sign_is_the_value(prompt: str) -> None:
    assert config.load_settings({}, [f"data.prompt={prompt}"]).data.prompt == prompt


def test_epochs_auto_has_a_schedule_of_its_own() -> None:
    """A setting that the rule does not use is refused, wherever it comes from."""
    assert Settings().train.epochs == "auto"
    for words in (["train.lr_scheduler_type=cosine"], ["train.warmup_steps=0.1"]):
        with pytest.raises(UsageError, match=r"epochs, such as train\.epochs=2"):
            config.load_settings(None, ["train.epochs=auto", *words])
        assert config.load_settings(None, ["train.epochs=3", *words]).train.epochs == 3
        with pytest.raises(UsageError, match=r"epochs, such as train\.epochs=2"):
            config.load_settings({"train": dict([words[0].removeprefix("train.").split("=")])}, ["train.epochs=auto"])
    settings = config.load_settings(None, ["train.warmup_steps=7"])
    assert config.load_settings(settings.model_dump(mode="json")) == settings, "a resumed run is not refused"


@pytest.mark.parametrize(
    ("word", "message"),
    [("train.epochs=0", "1 or more, or auto"), ("train.epochs=often", "1 or more, or auto"),
     ("train.epochs=1.5", "1 or more, or auto"), ("data.holdout=-1", "0 or more, or auto")],
)  # fmt: skip
def test_a_number_or_auto_has_one_message(word: str, message: str) -> None:
    with pytest.raises(UsageError, match=f"{word.partition('=')[0]} = .*: write a whole number of {message}"):
        config.load_settings(None, [word])


def test_later_wins_and_the_rest_stays() -> None:
    recipe = {"seed": 1, "data": {"prompt": "what?", "holdout": 9}, "train": {"learning_rate": 1, "epochs": 7}}
    settings = config.load_settings(
        recipe,
        ["train.learning_rate=3", "train.learning_rate=4"],
        values={"data": Path("b.csv"), "train": {"learning_rate": 2}},
    )
    assert (settings.seed, settings.train.learning_rate, settings.train.epochs) == (1, 4.0, 7)
    assert (settings.data.path, settings.data.prompt, settings.data.holdout) == (Path("b.csv"), "what?", 9)


@pytest.mark.parametrize(
    "recipe", [{"data": "a.csv"}, {"data": {"path": "a.csv"}}, {"data.path": "a.csv"}, {"data": Path("a.csv")}]
)
def test_data_is_short_for_its_path(recipe: dict[str, Any]) -> None:
    assert (
        config.load_settings(recipe)
        == config.load_settings(None, ["data=a.csv"])
        == config.load_settings({}, ["data.path=a.csv"])
    )


@pytest.mark.parametrize(
    ("given", "size"),
    [("280x140", (280, 140)), ("280", (280, 280)), ("[280, 140]", (280, 140)), (56, (56, 56)), ("null", None)],
)
def test_a_size_is_written_as_people_write_it(given: str | int, size: tuple[int, int] | None) -> None:
    assert config.load_settings({}, [f"image_size={given}"]).image_size == size
    if given != "null":
        assert config.load_settings({"image_size": given}).image_size == size


def test_a_list_is_written_with_commas() -> None:
    settings = config.load_settings(
        {"report_to": ["none"]}, ["lora.target_modules=q_proj, v_proj", "lora.parts=vision"]
    )
    assert settings.lora.target_modules == ("q_proj", "v_proj")
    assert settings.lora.parts == ("vision",)
    assert settings.report_to == ("none",)


def test_a_section_with_nothing_below_it_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("seed: 3\ntrain:\n  # learning_rate: 1e-4\n")
    assert config.load_settings(config.read_recipe(path)) == Settings(seed=3)
    path.write_text("# nothing yet\n")
    assert config.load_settings(config.read_recipe(path)) == Settings()


def test_a_number_that_yaml_takes_for_text_is_a_number(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("train: {learning_rate: 1e-4}")
    assert config.load_settings(config.read_recipe(tmp_path / "r.yaml")).train.learning_rate == 1e-4


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("train.lrr=1", "train."),
        ("train.epoch=1", "train.epochs"),
        ("learning_rat=1", "train.learning_rate"),
        ("per_device_batch_size=1", "train.batch_size"),
        ("sed=1", "seed"),
        ("zzzz=1", "`lorgnette settings` lists"),
        ("train.zzzz=1", "`lorgnette settings train`"),
        ("=1", "`lorgnette settings` lists"),
        ("data=null", "`lorgnette settings data`"),
        ("train=1", "`lorgnette settings train`"),
    ],
)
def test_an_unknown_setting_is_refused_with_its_neighbour(word: str, near: str) -> None:
    with pytest.raises(UsageError) as caught:
        config.load_settings({}, [word])
    assert caught.value.message == f"unknown setting {word.partition('=')[0]}"
    assert caught.value.where == "command line"
    assert near in str(caught.value.hint)


def test_an_unknown_setting_of_a_recipe_is_placed_there() -> None:
    for tree in ({"train": {"lrr": 1}}, {"train.lrr": 1}, {"train": 3}, {1: 2}):
        with pytest.raises(UsageError, match=r"unknown setting .* · mine\.yaml · "):
            config.load_settings(tree, where="mine.yaml")  # type: ignore[arg-type]


def test_a_word_without_equals_is_refused() -> None:
    with pytest.raises(UsageError, match=r"'train\.learning_rate' is not a setting .*key=value"):
        config.load_settings({}, ["train.learning_rate"])


def test_the_word_of_another_setting_is_explained() -> None:
    """predict.image_size and --image-size know it."""
    with pytest.raises(UsageError, match="write null for images that keep their shape"):
        config.load_settings({}, ["image_size=native"])
    assert config.load_settings({}, ["image_size=null"]).image_size is None


@pytest.mark.parametrize(
    "word",
    [
        "train.learning_rate=abc", "train.learning_rate=0", "train.learning_rate=nan", "train.epochs=0",
        "train.epochs=1.5", "train.save_steps=-1",
        "image_size=0", "image_size=1x2x3", "image_tokens=9,4", "image_tokens=9", "lora.dropout=1",
        "lora.target_modules=", "lora.target_modules=lm_head", "lora.parts=tongue", "device=tpu", "dtype=int4",
        "data.holdout=-1", "data.max_rows=0", "report_to=", "data.prompt=null", "seed=-1", "lora.use_rslora=perhaps",
        "train.lr_scheduler_type=polynomial", "engine=slow", "data.group_by_image=perhaps",
        "train.weight_decay=inf", "train.max_grad_norm=nan", "lora.dropout=nan", "lora.rank=1000000000",
        "image_size=1000000000", "image_tokens=4,1000000000", "train.epochs=1000000000",
        "predict.max_new_tokens=10000000", "data.prompt=caf\udce9", "data.prompt=a\0b", "project=\udce9",
        "predict.metrics=a,\udce9", "run=a\0b", "model=a\0b",
    ],
)  # fmt: skip
def test_a_value_that_does_not_fit_is_named_with_its_place(word: str) -> None:
    name, _, value = word.partition("=")
    with pytest.raises(UsageError) as caught:
        config.load_settings({"seed": 0}, [word], where="mine.yaml")
    assert caught.value.message.startswith(f"{name} = ")
    assert "validation" not in caught.value.message.split(":")[0]
    assert caught.value.where == "command line"
    section, _, inner = name.rpartition(".")
    tree: Any = None if value == "null" else value
    with pytest.raises(UsageError) as caught:
        config.load_settings(
            {section: {inner: tree}} if section else {name: tree}, ["train.logging_steps=3"], where="mine.yaml"
        )
    assert caught.value.where == "mine.yaml"
    assert caught.value.message.startswith(f"{name} = ")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"- a\n- b\n", "the recipe is not a mapping"),
        (b"just words", "the recipe is not a mapping"),
        (b"a: [1", "cannot read the recipe"),
        (b"a: \xff", "cannot read the recipe"),
        (b"!!python/object/apply:os.system ['true']", "cannot read the recipe"),
        (b"seed: 1\nseed: 2\n", "cannot read the recipe: the key 'seed' is there twice"),
        (b"train: {epochs: 1, epochs: 2}\n", "cannot read the recipe: the key 'epochs' is there twice"),
        (b"a: " + b"[" * 9000, "cannot read the recipe"),
        (b"a: 2001-99-99", "cannot read the recipe"),
        (b"a: 1\n" * 100_000, "cannot read the recipe"),
    ],
)
def test_a_recipe_that_is_none_is_refused(tmp_path: Path, content: bytes, what: str) -> None:
    (tmp_path / "r.yaml").write_bytes(content)
    with pytest.raises(UsageError) as caught:
        config.read_recipe(tmp_path / "r.yaml")
    assert caught.value.message.startswith(what)
    assert caught.value.where == str(tmp_path / "r.yaml")
    assert caught.value.hint


def test_a_missing_recipe_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such recipe"):
        config.read_recipe(tmp_path / "none.yaml")
    with pytest.raises(UsageError, match="cannot read the recipe"):
        config.read_recipe(tmp_path)


def test_settings_cannot_be_changed_nor_invented() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        TrainSettings().learning_rate = 1.0
    with pytest.raises(ValidationError, match="Extra"):
        TrainSettings(where="x")  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("learning_rate=0,0001", "write 0.0001, with a point"),
        ("learning_rate=abc", "it is not a valid number"),
        ("train.batch_size=2.5", "it is not a whole number"),
    ],
)
def test_a_wrong_number_is_said_in_plain_words(word: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        config.load_settings(None, [word])
