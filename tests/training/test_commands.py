"""The commands that make a model, one after the other, as their user runs them."""

import json
from pathlib import Path

from tests.live.served import run_command
from tests.training.reviews import reviews, write_reviews


def test_a_model_is_trained_exported_evaluated_and_compared_with_other_forms(base: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        """
        name = "tiny"
        version = "0.0.1"
        emotions = ["angry", "sad", "calm", "happy"]
        golden = ["好吃", "难吃", "请问几点营业", "喜欢喜欢喜欢推荐"]
        [data]
        train = [{ file = "train.jsonl", dev_share = 0.1, repeat = 5 }]
        [tokens]
        max_tokens = 16
        head_tokens = 8
        [fine_tuning]
        epochs = 1
        learning_rate = 3e-3
        batch_size = 32
        """,
        encoding="utf-8",
    )
    data, run, models = (tmp_path / name for name in ("data", "run", "models"))
    data.mkdir()
    write_reviews(data / "train.jsonl", reviews("train"))
    test = str(write_reviews(data / "test.jsonl", reviews("test")[::7]))

    trained = run_command("train", str(recipe), "--data", str(data), "--output", str(run), "--base", str(base))
    assert trained.returncode == 0, trained.stderr
    exported = run_command("export", str(recipe), str(run), "--output", str(models))
    assert exported.returncode == 0, exported.stderr
    bundle = exported.stdout.strip()
    assert bundle == str(models / "tiny" / "0.0.1")

    figures = run_command("evaluate", bundle, test, "--output", bundle, "--baselines", str(recipe), "--data", str(data))
    assert figures.returncode == 0, figures.stderr
    written = {ending: (Path(bundle) / f"evaluation.{ending}").read_text(encoding="utf-8") for ending in ("json", "md")}
    assert figures.stdout == written["md"]
    file = json.loads(written["json"])["files"]["test"]
    assert file["polarity"]["accuracy"] > 0.9
    assert file["baselines"]
    assert (Path(bundle) / "evaluation.html").read_text(encoding="utf-8").startswith("<!doctype html>")

    table = run_command("variants", bundle, test, "--output", str(tmp_path / "variants.md"))
    assert table.returncode == 0, table.stderr
    assert table.stdout == (tmp_path / "variants.md").read_text(encoding="utf-8")
    assert "| static 8-bit | cpu fp32 |" in table.stdout
