from pathlib import Path

import pytest

from app.domain.errors import StartupError
from app.inference.bundle import MODEL
from app.inference.session import Gpu, Provider, open_model
from app.inference.session.nvidia import (
    cuda_options,
    engine_directory,
    explain,
    missing_libraries,
    tensorrt_options,
)
from app.inference.session.placement import Precision, Request
from tests.providers import comes_up, is_built_in

_PROVIDERS: tuple[Provider, ...] = ("cuda", "tensorrt")


def test_cuda_computes_in_full_precision_and_grows_its_arena_by_what_is_needed() -> None:
    assert cuda_options(Gpu()) == {"arena_extend_strategy": "kSameAsRequested", "use_tf32": "0"}


def test_limits_and_graphs_are_asked_for_by_name_alone() -> None:
    more = cuda_options(Gpu(memory_bytes=2**30, graphs=True)).items() - cuda_options(Gpu()).items()
    assert dict(more) == {"gpu_mem_limit": "1073741824", "enable_cuda_graph": "1"}


def test_one_tensorrt_profile_reaches_from_a_token_to_the_largest_batch() -> None:
    options = tensorrt_options("fp32", Gpu(rows=48, columns=256), Path("engines/of-this-model"))
    assert {name: value for name, value in options.items() if "profile" in name} == {
        "trt_profile_min_shapes": "input_ids:1x1,attention_mask:1x1",
        "trt_profile_opt_shapes": "input_ids:24x32,attention_mask:24x32",
        "trt_profile_max_shapes": "input_ids:48x256,attention_mask:48x256",
    }


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 256), (3, 5), (64, 512)])
def test_the_shape_that_tensorrt_tunes_for_lies_within_its_profile(rows: int, columns: int) -> None:
    options = tensorrt_options("fp32", Gpu(rows=rows, columns=columns), Path("engines"))
    tuned = options["trt_profile_opt_shapes"].split(",")[0].removeprefix("input_ids:").split("x")
    assert 1 <= int(tuned[0]) <= rows
    assert 1 <= int(tuned[1]) <= columns


@pytest.mark.parametrize(
    ("precision", "asked"), [("fp32", {}), ("fp16", {"trt_fp16_enable"}), ("bf16", {"trt_bf16_enable"})]
)
def test_tensorrt_is_asked_for_the_precision(precision: Precision, asked: set[str]) -> None:
    options = tensorrt_options(precision, Gpu(), Path("engines"))
    assert {name for name in options if name in ("trt_fp16_enable", "trt_bf16_enable")} == set(asked)


def test_tensorrt_keeps_engines_by_model_and_timings_for_all_models() -> None:
    options = tensorrt_options("fp16", Gpu(engines=Path("cache"), memory_bytes=5), Path("cache/of-this-model"))
    assert options["trt_engine_cache_path"] == "cache/of-this-model"
    assert options["trt_timing_cache_path"] == "cache"
    assert options["trt_max_workspace_size"] == "5"
    # Its Python interface takes these two words for a truth value and no others.
    flags = {value for name, value in options.items() if name.endswith("_enable")}
    assert flags == {"True"}


def test_a_model_trained_anew_does_not_find_the_engine_of_the_old_one(tmp_path: Path) -> None:
    places = []
    for weights in (b"old", b"new", b"old"):
        (tmp_path / MODEL).write_bytes(weights)
        places.append(engine_directory(Request(tmp_path / MODEL, "fp16", 1, None, Gpu(engines=tmp_path))))
    assert places[0] == places[2] != places[1]
    assert {place.parent for place in places} == {tmp_path}


def test_engines_for_other_shapes_stand_apart(tmp_path: Path) -> None:
    (tmp_path / MODEL).write_bytes(b"weights")
    shapes = [(64, 256), (256, 256), (64, 512)]
    requests = [Request(tmp_path / MODEL, "fp16", 1, None, Gpu(rows=rows, columns=columns)) for rows, columns in shapes]
    assert len({engine_directory(request) for request in requests}) == 3


@pytest.mark.parametrize(
    ("provider", "precision", "gpu", "reason"),
    [
        ("cuda", "bf16", Gpu(), "on CUDA use fp16 or fp32"),
        ("cuda", "fp16", Gpu(), "python -m app bundle half DIRECTORY adds one"),
        ("tensorrt", "auto", Gpu(graphs=True), "CUDA graphs are for CUDA"),
    ],
)
def test_what_a_provider_cannot_do_stops_the_start(
    tiny_bundle: Path, provider: Provider, precision: Precision, gpu: Gpu, reason: str
) -> None:
    with pytest.raises(StartupError, match=reason):
        open_model(tiny_bundle / MODEL, provider=provider, precision=precision, threads=1, gpu=gpu)


@pytest.mark.parametrize("provider", _PROVIDERS)
def test_a_gpu_that_does_not_come_up_is_told_with_what_is_missing(
    tiny_bundle: Path, tmp_path: Path, provider: Provider, capsys: pytest.CaptureFixture[str]
) -> None:
    if not is_built_in(provider) or comes_up(provider):
        pytest.skip("for the extra [gpu] on a machine without its libraries or its device")
    gpu = Gpu(engines=tmp_path, memory_bytes=2**30, graphs=provider == "cuda")
    with pytest.raises(StartupError, match=f"^{provider} does not come up: ") as refusal:
        open_model(tiny_bundle / MODEL, provider=provider, threads=1, gpu=gpu)
    missing = missing_libraries(provider)
    assert all(each in str(refusal.value) for each in missing)
    # With all libraries there, what is missing is the device: the options were read, and none of them refused.
    assert missing or "CUDA failure" in str(refusal.value)
    assert "Failed to load" not in capsys.readouterr().out  # the log stands there, or a command's result


def test_a_library_that_is_not_there_is_named_with_what_brings_it() -> None:
    for provider in _PROVIDERS:
        for line in missing_libraries(provider):
            assert line in {
                "libcuda.so.1 is missing (the NVIDIA driver; a container needs --gpus all)",
                "libnvinfer.so.10 is missing (TensorRT 10 for CUDA 13)",
            }
        assert not (comes_up(provider) and missing_libraries(provider))


def test_a_reason_is_what_is_missing_then_what_cuda_says_then_everything() -> None:
    # As ONNX Runtime 1.31.1 says it where there is a driver and no device.
    said = (
        "model.onnx does not load: /onnxruntime_src/onnxruntime/core/providers/cuda/cuda_call.cc:154 std::conditional_t"
        "<THRW, void, common::Status> onnxruntime::CudaCall(ERRTYPE, const char*) [with ERRTYPE = cudaError] CUDA "
        "failure 100: no CUDA-capable device is detected ; GPU=-1 ; hostname=host ; file=/onnxruntime_src/x.cc ; "
        "line=355 ; expr=cudaSetDevice(info_.device_id); \n\n"
    )
    assert explain(said, []) == "CUDA failure 100: no CUDA-capable device is detected"
    assert explain(said, ["a is missing", "b is missing"]) == "a is missing; b is missing"
    assert explain("something else", []) == "something else"
