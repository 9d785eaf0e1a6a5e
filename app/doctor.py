"""What may keep the service from running here, each with what to do about it: the command `doctor`."""

import asyncio
import errno
import os
import platform
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final, Literal

from app.domain.errors import JobsUnavailable, StartupError
from app.inference.bundle import Bundle, open_bundle
from app.inference.processor import has_bf16, processor_flags, usable_threads
from app.jobs.job import JobLimits
from app.security.keys import read_keys
from app.server import may_listen
from app.settings import Cache, Jobs, Server, Settings, describe_settings, load_settings

_PACKAGES: Final = ("tokenizers", "numpy", "fastapi", "uvicorn", "uvloop", "httptools", "prometheus-client")
_FEATURES: Final = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")
_PATIENCE_S: Final = 3.0
_DRIVER: Final = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; with a `fix` it keeps the service from running as the settings ask."""

    subject: str
    detail: str
    fix: str | None = None
    absent: bool = False  # it is not there, and need not be

    def render(self) -> str:
        """Return the finding as a line, and its fix as another."""
        verdict = "FAILED" if self.fix else "absent" if self.absent else "ok"
        line = f"{verdict:8}{self.subject:11}{self.detail}"
        return f"{line}\n{'':8}fix: {self.fix}" if self.fix else line


def diagnose() -> Iterator[Finding]:
    """Look at one thing after the other; the last ones run the model."""
    yield Finding("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    runtime = _runtime()
    yield runtime
    yield Finding("packages", ", ".join(f"{name} {found}" for name in _PACKAGES if (found := _version(name))))
    try:
        settings = load_settings()
    except StartupError as error:
        yield Finding("settings", str(error), "correct that variable; `python -m app settings` lists them all")
        return
    given = [variable for variable in describe_settings() if variable in map(str.upper, os.environ)]
    yield Finding("settings", f"from {', '.join(given)}" if given else "all as by default")
    yield _processor()
    yield _threads(settings)
    yield _port(settings.server)
    yield _keys(settings)
    yield _redis(settings.cache)
    yield _jobs(settings.jobs)
    try:
        bundle = open_bundle(settings.model.path)
    except StartupError as error:
        yield Finding("bundle", str(error), "copy the bundle anew, or name another in SENTIMENT_MODEL__PATH")
        return
    manifest = bundle.manifest
    yield Finding("bundle", f"{manifest.name} {manifest.version}: {len(manifest.files)} files as recorded")
    if runtime.fix is None:
        yield from _providers(settings, bundle)


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _runtime() -> Finding:
    """Look for ONNX Runtime: one wheel of it, not two."""
    wheels = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-ep-openvino")
    found = {wheel: number for wheel in wheels if (number := _version(wheel))}
    detail = ", ".join(f"{wheel} {number}" for wheel, number in found.items()) or "not installed"
    fix = {
        0: "pip install '.[cpu]', or '.[gpu]' for an NVIDIA GPU",
        2: "pip uninstall onnxruntime onnxruntime-gpu, then install one of the extras [cpu] and [gpu]",
    }
    return Finding("runtime", detail, fix.get(len(found.keys() & {"onnxruntime", "onnxruntime-gpu"})))


def _processor() -> Finding:
    flags = processor_flags()
    features = [feature for feature in _FEATURES if feature in flags]
    arithmetic = "bf16" if has_bf16() else "fp32 alone"
    return Finding("processor", f"{arithmetic}; {', '.join(features) or 'no features known'}")


def _threads(settings: Settings) -> Finding:
    usable, asked, processes = usable_threads(), settings.model.threads, settings.server.processes
    share = max(1, usable // processes)
    threads = f"{asked or share}" + (f" in each of {processes} processes" if processes > 1 else "")
    detail = f"{threads}; affinity and the container's quota allow {usable} of {os.cpu_count()}"
    return Finding("threads", detail, f"set SENTIMENT_MODEL__THREADS to 0, or to {share}" if asked > share else None)


def _keys(settings: Settings) -> Finding:
    host, security = settings.server.host, settings.security
    if security.keys_file:
        try:
            found = read_keys(Path(security.keys_file))
        except StartupError as error:
            return Finding("keys", str(error), "correct the file, or name another in SENTIMENT_SECURITY__KEYS_FILE")
        return Finding("keys", f"{len(found)} in {security.keys_file}")
    if may_listen(host, security):
        return Finding("keys", "none, and none are asked for", absent=True)
    return Finding(
        "keys",
        f"none, though {host} can be reached from other machines",
        "python -m app keys new NAME --file keys.toml, and SENTIMENT_SECURITY__KEYS_FILE=keys.toml; or "
        "SENTIMENT_SECURITY__ALLOW_ANONYMOUS=true, if whoever reaches the port may use it",
    )


def _port(server: Server) -> Finding:
    place = f"{server.host}:{server.port}"
    if server.port == 0:
        return Finding("port", "a free one will be taken")
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            server.host, server.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
            probe.bind(address)
    except OSError as error:
        fixes = {
            errno.EADDRINUSE: "stop what listens there, or set SENTIMENT_SERVER__PORT",
            errno.EACCES: "set SENTIMENT_SERVER__PORT to 1024 or above",
        }
        fix = fixes.get(error.errno or 0, "set SENTIMENT_SERVER__HOST to an address of this machine")
        return Finding("port", f"{place} cannot be had: {error.strerror}", fix)
    return Finding("port", f"{place} is free")


def _redis(cache: Cache) -> Finding:
    from app.cache.redis_client import open_client, reason_of  # noqa: PLC0415 (few need its library)

    url = cache.redis_url.get_secret_value()
    if not url:
        return Finding("redis", "none is set, answers are remembered in memory alone", absent=True)

    async def ask() -> float:
        client = open_client(url, connections=1, timeout_s=_PATIENCE_S)
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await client.connect()
                started = time.perf_counter()
                await client.read([f"{cache.redis_namespace}:doctor".encode()])
                return time.perf_counter() - started
        finally:
            await client.aclose()

    try:
        return Finding("redis", f"answers in {asyncio.run(ask()) * 1e3:.1f} ms")
    except StartupError as error:
        return Finding("redis", str(error), "correct SENTIMENT_CACHE__REDIS_URL")
    except Exception as error:  # noqa: BLE001 (the library, the system and the clock each have errors of their own)
        return Finding(
            "redis", reason_of(error), "start it, or correct SENTIMENT_CACHE__REDIS_URL; serving goes on without"
        )


def _jobs(jobs: Jobs) -> Finding:
    url = jobs.url.get_secret_value()
    if not url:
        return Finding("jobs", "no database is set, no batch jobs are kept", absent=True)
    try:
        from app.jobs.sources import Sources  # noqa: PLC0415 (an extra)
        from app.jobs.store import open_store  # noqa: PLC0415 (an extra)
    except ModuleNotFoundError as error:
        return Finding("jobs", f"{error.name} is not installed", "pip install '.[jobs]', or '.[postgres]'")

    async def ask() -> tuple[int, int]:
        limits = JobLimits(**jobs.model_dump(exclude={"url", "sources"}))
        async with asyncio.timeout(_PATIENCE_S), open_store(url, limits) as store:
            counts, stored = await store.census()
        return sum(counts.values()), stored

    fix = "start the database, or correct SENTIMENT_JOBS__URL"
    try:
        Sources.below(jobs.sources)
    except StartupError as error:
        return Finding("jobs", str(error), "correct SENTIMENT_JOBS__SOURCES")
    try:
        count, stored = asyncio.run(ask())
    except (StartupError, JobsUnavailable) as error:
        return Finding("jobs", str(error), fix)
    except TimeoutError:
        return Finding("jobs", f"the database does not answer within {_PATIENCE_S:g} s", fix)
    return Finding("jobs", f"{count} in the database, {stored / 2**20:.0f} of {jobs.max_stored_bytes / 2**20:.0f} MiB")


def _providers(settings: Settings, bundle: Bundle) -> Iterator[Finding]:
    """Run the golden texts on each provider; fail if the one that the settings ask for does not come up."""
    from app.bundles import prove_bundle  # noqa: PLC0415 (loads ONNX Runtime, which may not be there)
    from app.wiring import gpu_of  # noqa: PLC0415 (likewise)

    asked = settings.model.provider
    providers: list[Literal["cuda", "tensorrt", "openvino", "cpu"]] = ["cuda", "openvino", "cpu"]
    if asked == "tensorrt":  # compiles for minutes
        providers.insert(1, asked)
    gpu = gpu_of(settings, bundle)
    chosen = None
    for provider in providers:
        precision = settings.model.precision if provider == asked else "auto"
        threads = settings.model.threads or usable_threads()
        try:
            proof = prove_bundle(bundle, provider=provider, precision=precision, threads=threads, gpu=gpu)
            placement = asyncio.run(proof)
        except StartupError as error:
            reason = f"{_driver()}; {error}" if provider in ("cuda", "tensorrt") else str(error)
            fix = "do as it says, or set SENTIMENT_MODEL__PROVIDER to auto" if provider == asked else None
            yield Finding(provider, reason, fix, absent=True)
        else:
            yield Finding(provider, f"{placement.precision}, {len(bundle.golden)} golden texts answered as recorded")
            chosen = chosen or (provider if asked in ("auto", provider) else None)
    if chosen is not None:
        yield Finding("would run", f"on {chosen}")
    elif asked == "auto":
        yield Finding("would run", "on no provider", "do as one of the lines above says")


def _driver() -> str:
    try:
        return _DRIVER.read_text(encoding="utf-8").splitlines()[0].removeprefix("NVRM version: ")
    except OSError:
        return "no NVIDIA driver is loaded"
