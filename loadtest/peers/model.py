"""The model as every peer has it: texts in, labels out. Needs numpy, ONNX Runtime and tokenizers alone.

`PEER_MODEL` names the bundle. `PEER_SESSION` is `documented`, which is ONNX Runtime as it comes, or `ours`, which is
the OpenVINO provider set up as in app/inference/session/openvino.py, so that what differs is the server around it.
"""

import json
import os
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from tokenizers import Tokenizer


class Model:
    """A bundle, ready to answer. `predict` may be called from several threads at once."""

    def __init__(self) -> None:
        directory = Path(os.environ["PEER_MODEL"])
        manifest = json.loads((directory / "bundle.json").read_text(encoding="utf-8"))
        self._labels: list[str] = manifest["labels"]
        self._pad_id: int = manifest["pad_id"]
        self._max: int = manifest["max_tokens"]
        self._head: int = manifest["head_tokens"]
        self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        file = str(directory / "model.onnx")
        self._session = _Ours(file) if os.environ["PEER_SESSION"] == "ours" else _Documented(file)

    def predict(self, texts: list[str]) -> list[dict[str, Any]]:
        """Return the label and the probabilities of each text, in order, from one run over all of them."""
        tokens = [self._cut(encoding.ids) for encoding in self._tokenizer.encode_batch_fast(texts)]
        shape = (len(tokens), max(map(len, tokens)))
        input_ids = np.full(shape, self._pad_id, np.int64)
        attention_mask = np.zeros(shape, np.int64)
        for row, ids in enumerate(tokens):
            input_ids[row, : len(ids)] = ids
            attention_mask[row, : len(ids)] = 1
        logits = self._session.run(input_ids, attention_mask)[:, : len(self._labels)].astype(np.float64)
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        rows = (exponentials / exponentials.sum(axis=1, keepdims=True)).tolist()
        return [
            {"label": self._labels[int(np.argmax(row))], "probabilities": dict(zip(self._labels, row, strict=True))}
            for row in rows
        ]

    def _cut(self, ids: list[int]) -> list[int]:
        if len(ids) <= self._max:
            return ids
        return [*ids[: self._head], *ids[self._head - self._max :]]


def _run(
    session: onnxruntime.InferenceSession, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]
) -> NDArray[np.float32]:
    logits: NDArray[np.float32]
    (logits,) = session.run(["logits"], {"input_ids": input_ids, "attention_mask": attention_mask})
    return logits


class _Documented:
    """https://onnxruntime.ai/docs/get-started/with-python.html: a session with no options at all."""

    def __init__(self, file: str) -> None:
        self._session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def run(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> NDArray[np.float32]:
        return _run(self._session, input_ids, attention_mask)


class _Ours:
    """Two streams that share the threads, and for a run that has the model to itself a session with all of them."""

    def __init__(self, file: str) -> None:
        import onnxruntime_ep_openvino  # noqa: PLC0415 (only when asked for)

        onnxruntime.register_execution_provider_library("openvino", onnxruntime_ep_openvino.get_library_path())
        threads = len(os.sched_getaffinity(0))
        streams = min(2, threads)
        self._session = _openvino(file, threads, streams)
        self._alone = _openvino(file, threads, 1) if streams > 1 else self._session
        self._running = 0
        self._counting = Lock()

    def run(self, input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> NDArray[np.float32]:
        with self._counting:
            session = self._session if self._running else self._alone
            self._running += 1
        try:
            return _run(session, input_ids, attention_mask)
        finally:
            with self._counting:
                self._running -= 1


def _openvino(file: str, threads: int, streams: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    config = {
        "INFERENCE_PRECISION_HINT": "bf16" if _has_bf16() else "f32",
        "INFERENCE_NUM_THREADS": str(threads),
        "NUM_STREAMS": str(streams),
    }
    devices = [
        device
        for device in onnxruntime.get_ep_devices()
        if device.ep_name == "OpenVINOExecutionProvider" and device.device.type == onnxruntime.OrtHardwareDeviceType.CPU
    ]
    options.add_provider_for_devices(devices, {"load_config": json.dumps({"CPU": config})})
    return onnxruntime.InferenceSession(file, options, enable_fallback=0)


def _has_bf16() -> bool:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = next((line for line in lines if line.startswith("flags")), "").split()
    return "amx_bf16" in flags or "avx512_bf16" in flags
