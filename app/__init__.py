"""Real-time Chinese sentiment: a BERT behind a REST API, and the pipeline that makes the model."""

import os

# ONNX Runtime's wheels report to their maker (models' names, speeds, a device id) unless this is set before they load.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
