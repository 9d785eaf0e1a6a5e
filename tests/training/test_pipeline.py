"""From files to a served bundle: two heads, a teacher, adaptation, and every kind of source."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet
from safetensors.torch import load_file, save_file
from transformers import BertForSequenceClassification

from app.inference.bundle import open_bundle
from app.main import create_app
from app.training.data import MissingFile
from app.training.evaluate import evaluate_bundle
from app.training.export import export_bundle
from app.training.finetune import CALIBRATION
from app.training.pipeline import UnfitRecipe, read_data, train_recipe
from app.training.recipe import Recipe, read_recipe
from app.training.serving import open_served
from tests.http.served import client_of, small_settings
from tests.training.reviews import EMOTIONS, WORDS, reviews, write_reviews, write_rows

_COMMON = """
    version = "0.0.1"
    golden = ["好吃", "难吃", "请问几点营业", "喜欢喜欢喜欢推荐"]
    [tokens]
    max_tokens = 16
    head_tokens = 8
"""
_TEACHER = f"""
    name = "teacher"
    {_COMMON}
    [data]
    train = [{{ file = "reviews.jsonl", dev_share = 0.1, repeat = 6 }}]
    [fine_tuning]
    epochs = 1
    learning_rate = 3e-3
    batch_size = 32
"""
# What the student has of labels is wrong but for one file, which its teacher has no say in.
_STUDENT = f"""
    name = "student"
    emotions = {list(EMOTIONS)}
    {_COMMON}
    [data]
    augment = 0.1
    train = [
        {{ file = "stars.csv", text = "text", label_column = "stars", mapping = {{ 1 = "negative", 5 = "positive" }} }},
        {{ file = "asked.parquet", text = "title", label = "neutral" }},
        {{ file = "felt.jsonl", repeat = 10 }},
        {{ file = "written.jsonl", repeat = 200, taught = false }},
    ]
    dev = [{{ file = "dev.jsonl" }}]
    test = [{{ file = "test.jsonl" }}]
    unlabelled = [{{ file = "unlabelled.jsonl" }}]
    [adaptation]
    epochs = 2
    batch_size = 32
    max_tokens = 16
    [fine_tuning]
    epochs = 1
    learning_rate = 3e-3
    batch_size = 32
    [fine_tuning.distillation]
    teachers = ["teacher.toml"]
    weight = 1.0
"""


@dataclass(frozen=True)
class Run:
    """What `train_recipe` was given and has made."""

    recipe_file: Path
    data: Path
    output: Path
    bundle: Path


@pytest.fixture(scope="module")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    place, data, output = (tmp_path_factory.mktemp(name) for name in ("recipe", "data", "run"))
    (place / "teacher.toml").write_text(_TEACHER, encoding="utf-8")
    (place / "recipe.toml").write_text(_STUDENT, encoding="utf-8")
    write_reviews(data / "reviews.jsonl", reviews("train"))
    wrong = [f"{text},5" for text in ("太差了后悔", "难吃坏了")] + [f"{text},1" for text in ("好吃推荐", "满意喜欢")]
    (data / "stars.csv").write_text("\n".join(["text,stars", *wrong]), encoding="utf-8")
    parquet.write_table(pa.table({"title": ["几点营业", "多少"]}), data / "asked.parquet")
    write_rows(data / "felt.jsonl", *({"text": each.text, "emotion": each.emotion} for each in reviews("felt")))
    write_rows(place / "written.jsonl", {"text": "好", "label": "negative"})
    write_rows(data / "unlabelled.jsonl", *({"text": each.text} for each in reviews("unlabelled")))
    write_reviews(data / "dev.jsonl", reviews("dev")[1::7])
    write_reviews(data / "test.jsonl", reviews("test")[2::7])
    train_recipe(place / "recipe.toml", data, output, base=base, resume=False)
    bundle = export_bundle(output, read_recipe(place / "recipe.toml"), tmp_path_factory.mktemp("models"))
    return Run(place / "recipe.toml", data, output, bundle)


def test_a_student_has_its_polarity_from_the_teacher_and_its_emotion_from_the_labels(run: Run) -> None:
    figures = evaluate_bundle(run.bundle, [run.data / "test.jsonl"]).files["test"]
    assert figures.polarity.accuracy > 0.9
    assert figures.emotion is not None
    assert figures.emotion.accuracy > 0.9


def test_a_teacher_with_other_labels_is_refused_before_it_is_trained(run: Run, base: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(_STUDENT, encoding="utf-8")
    (tmp_path / "teacher.toml").write_text(f'labels = ["negative", "positive"]\n{_TEACHER}', encoding="utf-8")
    (tmp_path / "written.jsonl").write_bytes((run.recipe_file.parent / "written.jsonl").read_bytes())
    with pytest.raises(UnfitRecipe, match=r"teacher\.toml"):
        train_recipe(tmp_path / "recipe.toml", run.data, tmp_path / "run", base=base, resume=False)
    assert not (tmp_path / "run").exists()


def test_a_teacher_has_no_say_in_what_is_not_taught(run: Run) -> None:
    teacher, student = (open_served(place) for place in (run.output / "teachers" / "teacher" / "0.0.1", run.bundle))
    assert teacher.answer(["好"], title="")[0].argmax() != 0
    assert student.answer(["好"], title="")[0, :3].argmax() == 0


@pytest.mark.anyio
async def test_what_was_trained_is_served_with_emotion_and_certainty(run: Run) -> None:
    manifest = open_bundle(run.bundle).manifest
    assert manifest.emotions == EMOTIONS
    assert manifest.calibration is not None
    assert manifest.calibration.temperatures.keys() == {"polarity", "emotion"}
    async with client_of(create_app(small_settings(run.bundle))) as client:
        answer = (await client.post("/v1/sentiment", json={"text": "喜欢满意！"})).json()
    assert (answer["label"], answer["emotion"]["label"]) == ("positive", "happy")
    assert answer["certain"] is (answer["confidence"] >= manifest.calibration.threshold)


def test_a_finished_run_is_not_trained_again(run: Run, base: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    shutil.copytree(run.output, output)
    before = _training_files(output)
    train_recipe(run.recipe_file, run.data, output, base=base, resume=True)
    assert _training_files(output) == before


def test_an_interrupted_run_goes_on_where_it_was(run: Run, base: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    shutil.copytree(run.output, output)
    shutil.rmtree(output / "checkpoints")
    (output / CALIBRATION).unlink()
    before = [file for file in _training_files(output) if "teacher" in str(file[0]) or "adapted" in str(file[0])]
    train_recipe(run.recipe_file, run.data, output, base=base, resume=True)
    after = _training_files(output)
    assert set(before) <= set(after)
    assert _weights(output) == _weights(run.output)


_NEXT = f"""
    name = "next"
    emotions = {list(EMOTIONS)}
    start = "recipe.toml"
    {_COMMON}
    [data]
    train = [{{ file = "reviews.jsonl", dev_share = 0.1 }}]
    [fine_tuning]
    epochs = 1
    learning_rate = 1e-9
"""


def test_a_recipe_goes_on_from_the_model_of_another(run: Run, base: Path, tmp_path: Path) -> None:
    shutil.copytree(run.recipe_file.parent, tmp_path, dirs_exist_ok=True)
    (tmp_path / "next.toml").write_text(_NEXT, encoding="utf-8")
    shutil.copytree(run.output, tmp_path / "run" / "start")
    train_recipe(tmp_path / "next.toml", run.data, tmp_path / "run", base=base, resume=True)
    before, after = _weights(run.output), _weights(tmp_path / "run")
    for name in (name for name in before if name.startswith("bert.")):
        assert after[name] == pytest.approx(before[name], abs=1e-3)


def test_a_soup_has_the_mean_of_the_weights_of_its_models(run: Run, base: Path, tmp_path: Path) -> None:
    shutil.copytree(run.recipe_file.parent, tmp_path, dirs_exist_ok=True)
    (tmp_path / "next.toml").write_text(f'{_NEXT}    soup = ["other.toml"]', encoding="utf-8")
    (tmp_path / "other.toml").write_text(_NEXT.replace('"next"', '"other"'), encoding="utf-8")
    other = tmp_path / "run" / "soup" / "other"
    for place in (other, tmp_path / "run" / "start"):
        shutil.copytree(run.output, place)
    thrice = {name: 3 * weights for name, weights in load_file(other / "model.safetensors").items()}
    save_file(thrice, other / "model.safetensors", metadata={"format": "pt"})
    train_recipe(tmp_path / "next.toml", run.data, tmp_path / "run", base=base, resume=True)
    before, after = _weights(run.output), _weights(tmp_path / "run")
    for name in (name for name in before if name.startswith("bert.")):
        assert after[name] == pytest.approx([2 * weight for weight in before[name]], rel=1e-2, abs=1e-3)


def test_a_part_of_a_soup_with_another_start_is_refused(run: Run, base: Path, tmp_path: Path) -> None:
    shutil.copytree(run.recipe_file.parent, tmp_path, dirs_exist_ok=True)
    shutil.copytree(run.output, tmp_path / "run" / "start")
    (tmp_path / "next.toml").write_text(f'{_NEXT}    soup = ["recipe.toml"]', encoding="utf-8")
    with pytest.raises(UnfitRecipe, match="another start"):
        train_recipe(tmp_path / "next.toml", run.data, tmp_path / "run", base=base, resume=True)


def test_a_start_with_other_labels_is_refused_before_it_is_trained(run: Run, base: Path, tmp_path: Path) -> None:
    shutil.copytree(run.recipe_file.parent, tmp_path, dirs_exist_ok=True)
    (tmp_path / "next.toml").write_text(_NEXT.replace("emotions =", "# emotions ="), encoding="utf-8")
    with pytest.raises(UnfitRecipe, match=r"recipe\.toml"):
        train_recipe(tmp_path / "next.toml", run.data, tmp_path / "run", base=base, resume=False)
    assert not (tmp_path / "run").exists()


def _training_files(output: Path) -> list[tuple[Path, float]]:
    """Return the weights of each finished step and its checkpoints, and when they were written."""
    return sorted((file.relative_to(output), file.stat().st_mtime) for file in output.rglob("*.safetensors"))


def _weights(directory: Path) -> dict[str, list[float]]:
    weights = BertForSequenceClassification.from_pretrained(directory).state_dict()
    return {name: values.flatten().tolist() for name, values in weights.items()}


# What is read


def _read(tmp_path: Path, **data: object) -> tuple[list[str], list[str], list[str]]:
    recipe = Recipe.model_validate({"name": "tiny", "version": "0.0.1", "golden": ["好"] * 4, "data": data})
    train, dev, unlabelled = read_data(recipe, [tmp_path])
    return [each.text for each in train], [each.text for each in dev], unlabelled


def _rows(texts: Sequence[str]) -> list[dict[str, str]]:
    return [{"text": text, "label": "positive"} for text in texts]


def test_what_is_set_aside_as_dev_does_not_leak_into_training(tmp_path: Path) -> None:
    texts = [f"{word}第{number}次" for number in range(10) for word in WORDS["positive"]]
    write_rows(tmp_path / "a.jsonl", *_rows(texts), *_rows([f"{text}!" for text in texts]))
    train, dev, _ = _read(tmp_path, train=[{"file": "a.jsonl", "dev_share": 0.3}])
    assert len(dev) == 30
    known = {text.rstrip("!") for text in dev}
    assert not known.intersection(text.rstrip("!") for text in train)
    assert len(train) == 50 - len(known)


def test_test_files_are_kept_out_of_training_and_unlabelled_texts(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", *_rows(["好", "很好", "太好了", "真好"]))
    write_rows(tmp_path / "dev.jsonl", *_rows(["很好"]))
    write_rows(tmp_path / "test.jsonl", *_rows(["太好了"]))
    write_rows(tmp_path / "more.jsonl", *({"text": text} for text in ("好", "真好", "太好了!", "还行", "还行!")))
    train, dev, unlabelled = _read(
        tmp_path,
        train=[{"file": "a.jsonl"}],
        dev=[{"file": "dev.jsonl"}],
        test=[{"file": "test.jsonl"}],
        unlabelled=[{"file": "more.jsonl"}],
    )
    assert (train, dev, unlabelled) == (["好", "真好"], ["很好"], ["还行"])


def test_data_as_published_keep_repeats_and_leaks(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", *_rows(["好", "好", "很好"]))
    write_rows(tmp_path / "dev.jsonl", *_rows(["很好"]))
    train, _, _ = _read(tmp_path, train=[{"file": "a.jsonl"}], dev=[{"file": "dev.jsonl"}], as_published=True)
    assert train == ["好", "好", "很好"]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match=r"absent\.jsonl"):
        _read(tmp_path, train=[{"file": "absent.jsonl", "dev_share": 0.1}])
