from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from threading import Event
from typing import Literal, cast

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from app.domain.errors import StartupError
from app.inference.bundle import MODEL
from app.inference.processor import has_bf16
from app.inference.session import OnnxModel, Placement, Provider, open_model
from tests.providers import comes_up, is_built_in
from tests.tiny_bundle import HEADS, tiny_onnx

_HAS_OPENVINO = find_spec("onnxruntime_ep_openvino") is not None


def test_the_cpu_provider_runs_everywhere(tiny_bundle: Path) -> None:
    model = open_model(tiny_bundle / MODEL, provider="cpu", threads=1)
    assert model.placement == Placement("cpu", "fp32", 1, 1)
    assert model.run(np.array([[0, 4, 2]]), np.array([[1, 1, 1]])).shape == (1, len(HEADS.columns))


def test_auto_takes_the_best_provider_installed(tiny_bundle: Path) -> None:
    placement = open_model(tiny_bundle / MODEL, threads=1).placement
    assert placement.provider == ("cuda" if comes_up("cuda") else "openvino" if _HAS_OPENVINO else "cpu")
    assert placement.precision == ("bf16" if placement.provider == "openvino" and has_bf16() else "fp32")


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_is_not_installed_names_the_extra_to_install(tiny_bundle: Path, provider: Provider) -> None:
    # No environment has both: each comes with the extra that excludes the other's.
    if is_built_in(provider):
        with pytest.raises(StartupError, match=r"install the extra \[cpu\]"):
            open_model(tiny_bundle / MODEL, provider="openvino", threads=1)
    else:
        with pytest.raises(
            StartupError, match=rf"no provider {provider}: install the extra \[gpu\] instead of \[cpu\]"
        ):
            open_model(tiny_bundle / MODEL, provider=provider, threads=1)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_cpu_provider_refuses_less_than_full_precision(
    tiny_bundle: Path, precision: Literal["bf16", "fp16"]
) -> None:
    with pytest.raises(StartupError, match=f"precision {precision} asked for, but .* CPU provider has fp32 only"):
        open_model(tiny_bundle / MODEL, provider="cpu", precision=precision, threads=1)


@pytest.mark.skipif(not _HAS_OPENVINO, reason="the OpenVINO provider is not installed")
def test_openvino_refuses_fp16(tiny_bundle: Path) -> None:
    with pytest.raises(StartupError, match="fp16 is for GPUs; on OpenVINO use bf16 or fp32"):
        open_model(tiny_bundle / MODEL, provider="openvino", precision="fp16", threads=1)


def test_a_precision_that_no_provider_has_is_refused_with_the_reason_of_each(tiny_bundle: Path) -> None:
    with pytest.raises(StartupError, match=r"no provider comes up: cuda: .*; openvino: .*; cpu: .*fp32 only"):
        open_model(tiny_bundle / MODEL, precision="fp16", threads=1)


@pytest.mark.parametrize("provider", ["auto", "cpu"])
@pytest.mark.parametrize("content", [b"", b"no model", tiny_onnx()[:-100]], ids=["empty", "text", "cut off"])
def test_a_file_that_is_no_model_stops_the_start(tmp_path: Path, content: bytes, provider: str) -> None:
    file = tmp_path / MODEL
    file.write_bytes(content)
    with pytest.raises(StartupError, match=r"model\.onnx does not load"):
        open_model(file, provider=provider, threads=1)  # type: ignore[arg-type]  # a parameter is a plain string


@pytest.mark.parametrize("provider", ["auto", "cpu"])
def test_a_model_with_other_inputs_stops_the_start(tmp_path: Path, provider: str) -> None:
    file = tmp_path / MODEL
    file.write_bytes(tiny_onnx(ids="token_ids"))
    with pytest.raises(StartupError, match="takes attention_mask and token_ids and gives logits"):
        open_model(file, provider=provider, threads=1)  # type: ignore[arg-type]  # a parameter is a plain string


def test_both_wheels_at_once_are_refused(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for wheel in ("onnxruntime", "onnxruntime-gpu"):
        record = tmp_path / f"{wheel.replace('-', '_')}-1.0.dist-info"
        record.mkdir()
        (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {wheel}\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(StartupError, match="pip uninstall onnxruntime onnxruntime-gpu"):
        open_model(tiny_bundle / MODEL, provider="cpu", threads=1)


@pytest.mark.skipif(not _HAS_OPENVINO, reason="the OpenVINO provider is not installed")
def test_a_run_alone_and_runs_side_by_side_answer_alike(tiny_bundle: Path) -> None:
    model = open_model(tiny_bundle / MODEL, provider="openvino", precision="fp32", threads=2)
    assert model.placement.streams == 2
    ids = np.array([[0, 5, 6, 2]] * 8)
    alone = model.run(ids, np.ones_like(ids))
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda _: model.run(ids, np.ones_like(ids)), range(40)))
    for logits in together:
        np.testing.assert_allclose(logits, alone, atol=1e-5)


def test_a_run_that_has_the_model_to_itself_has_a_session_of_its_own() -> None:
    class Session:
        def __init__(self) -> None:
            self.runs = 0
            self.go_on = Event()

        def run(self, *_: object) -> list[NDArray[np.float32]]:
            self.runs += 1
            self.go_on.wait(10)
            return [np.zeros((1, 3), np.float32)]

    shared, alone = Session(), Session()
    placement = Placement("openvino", "fp32", threads=2, streams=2)
    model = OnnxModel(
        cast(onnxruntime.InferenceSession, shared), placement, alone=cast(onnxruntime.InferenceSession, alone)
    )
    ids = np.array([[0, 2]])
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(model.run, ids, ids)
        while not alone.runs:
            pass
        shared.go_on.set()
        threads.submit(model.run, ids, ids).result()
        alone.go_on.set()
        first.result()
    model.run(ids, ids)
    assert (alone.runs, shared.runs) == (2, 1)
