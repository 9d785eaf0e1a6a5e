"""Look into a bundle, and prove it: what `bundle inspect` and `bundle verify` tell."""

import asyncio
from typing import Literal

from app.inference.bundle import Bundle
from app.inference.engine import Engine
from app.inference.health import ModelHealth
from app.inference.session import Gpu, Placement, Precision, Provider, open_model
from app.inference.tokenizer import Tokenizer


def render_bundle(bundle: Bundle) -> str:
    """Return what a bundle says of itself, a line for each thing."""
    manifest = bundle.manifest
    lines = {
        "bundle": f"{manifest.name} {manifest.version}",
        "labels": ", ".join(manifest.labels),
        "emotions": ", ".join(manifest.emotions) or "none",
        "window": f"{manifest.max_tokens} tokens; of a longer text the first {manifest.head_tokens} and the last "
        f"{manifest.max_tokens - manifest.head_tokens}",
        "cleaning": f"version {manifest.cleaning_version}",
    }
    if (calibration := manifest.calibration) is not None:
        lines["certain"] = (
            f"from a confidence of {calibration.threshold:.3f}: on the dev texts {calibration.certain_share:.1%} of "
            f"all answers, of which {calibration.certain_accuracy:.1%} were right"
        )
    lines["golden"] = f"{len(bundle.golden)} texts"
    lines |= {f"file {name}": f"{record.bytes:,} bytes" for name, record in manifest.files.items()}
    lines |= {f"from {name}": text for name, text in manifest.provenance.items()}
    lines["made with"] = ", ".join(f"{name} {version}" for name, version in manifest.tools.items())
    lines["fingerprint"] = bundle.fingerprint
    width = max(map(len, lines))
    return "\n".join(f"{name:{width}}  {text}" for name, text in lines.items())


async def prove_bundle(
    bundle: Bundle,
    *,
    provider: Provider | Literal["auto"],
    precision: Precision | Literal["auto"],
    threads: int,
    gpu: Gpu | None = None,
) -> Placement:
    """Answer the golden texts, alone and together, as serving does; return where the model ran.

    Raises:
        StartupError: the provider does not come up, or an answer is not as recorded.
    """
    manifest = bundle.manifest
    model = await asyncio.to_thread(
        open_model,
        bundle.model_file,
        provider=provider,
        precision=precision,
        threads=threads,
        gpu=gpu or Gpu(half=bundle.half_file, columns=manifest.max_tokens),
    )
    tokenizer = Tokenizer(bundle.tokenizer_file, max_tokens=manifest.max_tokens, head_tokens=manifest.head_tokens)
    async with Engine(model, pad_id=manifest.pad_id, heads=manifest.heads.sizes, longest=manifest.max_tokens) as engine:
        await ModelHealth(bundle.golden, tokenizer, manifest.heads.columns).prove(engine)
    return model.placement
