"""Other forms of the ONNX model: each is what its name says, and answers as the bundle does."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from app.domain.rows import BadRow
from app.inference.bundle import open_bundle
from app.inference.processor import has_bf16
from app.training.data import Example
from app.training.serving import open_served
from app.training.variants import VariantFigures, measure_variants, render_variants
from tests.training.reviews import reviews

_EXAMPLES = reviews("test")[2::7]
_NAMES = ["float16 weights", "float32", "float32, fused", "8-bit weights", "static 8-bit"]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("variants")


@pytest.fixture(scope="module")
def figures(bundle: Path, scratch: Path) -> list[VariantFigures]:
    return measure_variants(bundle, _EXAMPLES, scratch)


def _matrices(graph: onnx.GraphProto) -> Counter[int]:
    """Return how many large matrices `graph` has of each type."""
    return Counter(each.data_type for each in graph.initializer if len(each.dims) == 2 and np.prod(each.dims) >= 1024)


@pytest.mark.usefixtures("figures")
def test_each_variant_is_what_its_name_says(scratch: Path) -> None:
    assert sorted(place.name for place in scratch.iterdir()) == sorted(_NAMES)
    graphs = {name: onnx.load(open_bundle(scratch / name).model_file).graph for name in _NAMES}
    nodes = {name: Counter(node.op_type for node in graph.node) for name, graph in graphs.items()}
    matrices = {name: _matrices(graph) for name, graph in graphs.items()}
    assert matrices["float16 weights"].keys() == {TensorProto.FLOAT16}
    assert matrices["float32"].keys() == matrices["float32, fused"].keys() == {TensorProto.FLOAT}
    assert matrices["8-bit weights"] == {TensorProto.INT8: matrices["float32"][TensorProto.FLOAT]}
    assert nodes["float32"]["Softmax"] == nodes["float32, fused"]["Attention"] == 2
    assert nodes["float32, fused"]["Softmax"] == 0
    assert nodes["static 8-bit"]["QuantizeLinear"] > 0
    assert not [path for path in (scratch / "static 8-bit").iterdir() if path.name.endswith(".fp32.onnx")]


@pytest.mark.usefixtures("figures")
@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("float16 weights", 0),
        ("float32", 1e-5),
        ("float32, fused", 1e-3),
        ("8-bit weights", 0.2),
        ("static 8-bit", 0.3),
    ],
)
def test_variants_answer_as_the_bundle_does(bundle: Path, scratch: Path, name: str, tolerance: float) -> None:
    texts = [example.text for example in _EXAMPLES]
    expected, found = (
        open_served(place, provider="cpu", precision="fp32").answer(texts, title="")
        for place in (bundle, scratch / name)
    )
    assert np.quantile(np.abs(expected - found), 0.95) <= tolerance


def test_every_variant_is_measured_on_every_provider_of_this_machine(figures: list[VariantFigures]) -> None:
    places = {(row.provider, row.precision) for row in figures}
    assert ("cpu", "fp32") in places
    assert len(figures) == len(_NAMES) * len(places)
    for row in figures:
        if row.error is None:
            assert row.accuracy > 0.9
            assert row.flips <= 3
            assert row.alone_flips <= 1
            assert row.megabytes > 0
            assert row.texts_per_s > 0
    assert {row.variant for row in figures if row.provider == "cpu" and row.error is None} == set(_NAMES)
    assert [row.flips for row in figures if row.variant.startswith("float") and row.provider == "cpu"] == [0, 0, 0]


@pytest.mark.skipif(has_bf16(), reason="this processor has bf16")
def test_a_variant_that_does_not_run_here_says_why(figures: list[VariantFigures]) -> None:
    refused = [row for row in figures if row.precision == "bf16"]
    assert refused
    assert all("bf16" in str(row.error) for row in refused)


def test_a_graph_without_attention_is_not_passed_off_as_fused(tiny_bundle: Path, tmp_path: Path) -> None:
    figures = measure_variants(tiny_bundle, [Example("好", "positive", "made")], tmp_path)
    assert [row.provider for row in figures if "expected at least" in (row.error or "")] == ["any"]
    assert {row.variant for row in figures if row.error is None} > {"float16 weights", "float32"}


def test_without_texts_there_is_nothing_to_measure(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BadRow, match="no text with a label"):
        measure_variants(bundle, [], tmp_path)


def test_the_table_has_a_row_for_each_variant_and_place() -> None:
    runs = VariantFigures(
        variant="float32", provider="cpu", precision="fp32", megabytes=1.5, accuracy=0.9, flips=2, alone_flips=1,
        texts_per_s=123.4,
    )  # fmt: skip
    fails = runs.model_copy(update={"error": "no such provider"})
    assert render_variants([runs, fails]).splitlines()[2:] == [
        "| float32 | cpu fp32 | 1.5 | 90.00% | 2 | 1 | 123 |",
        "| float32 | cpu fp32 | 1.5 | does not run: no such provider | | | |",
    ]
