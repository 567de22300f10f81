"""The command line: `pyext diffii invert`, `generate` and `augment`."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pyext.errors import UserError
from pyext_plugins.options import Output, Seed

if TYPE_CHECKING:
    from pyext_plugins.diffii.commands import Options
    from pyext_plugins.diffii.manifest import Settings

app = typer.Typer(no_args_is_help=True)

Data = Annotated[Path, typer.Argument(help="Folder with a folder of pictures for each class.")]
ModelFolder = Annotated[
    Path, typer.Option("--model", help="Folder of a diffusers pipeline: Stable Diffusion, or DDPM.")
]
Prompt = Annotated[
    str | None,
    typer.Option(help="With {} for the class's concept.", show_default="a photo of a {}"),
]
Concepts = Annotated[
    Path | None,
    typer.Option(help="JSON object from class to its text, or its label in a model of pixels."),
]
NullLabel = Annotated[
    int | None, typer.Option(help="A pixel model's label for no class; guidance needs it.")
]
Embeddings = Annotated[
    list[Path] | None, typer.Option("--embedding", help="File of learned tokens; repeatable.")
]
Lora = Annotated[Path | None, typer.Option(help="Safetensors file of LoRA weights.")]
InversionSteps = Annotated[int, typer.Option(help="DDIM steps of inversion.")]
Steps = Annotated[int, typer.Option(help="DDIM steps of generation.")]
Spacing = Annotated[
    str, typer.Option(help="Of timesteps: trailing, or leading as in the authors' code.")
]
Guidance = Annotated[float, typer.Option(help="Weight of classifier-free guidance; 1 is none.")]
Suffixes = Annotated[
    Path | None, typer.Option(help="Text file; a line of it follows the prompt in the first stage.")
]
SuffixFraction = Annotated[
    float, typer.Option(help="Share of the timesteps, noisiest first, that is the first stage.")
]
Norm = Annotated[
    str, typer.Option(help="Starting points: paper, unit or gauss circles; lerp, slerp.")
]
Single = Annotated[str, typer.Option(help="For a class of one picture: raise, or noise.")]
Degenerate = Annotated[str, typer.Option(help="For a pair on no circle: raise, or noise.")]
Expansion = Annotated[int, typer.Option(help="Images for each original.")]
Batch = Annotated[int, typer.Option(help="Images in a batch of the U-Net.")]
Dtype = Annotated[str, typer.Option(help="float32, float16 or bfloat16.")]
Threads = Annotated[int | None, typer.Option(help="Of the CPU; bytes are the same for the same.")]


@app.command()
def invert(
    data: Data,
    model: ModelFolder,
    output: Output,
    prompt: Prompt = None,
    concepts: Concepts = None,
    null_label: NullLabel = None,
    embeddings: Embeddings = None,
    lora: Lora = None,
    inversion_steps: InversionSteps = 200,
    spacing: Spacing = "trailing",
    batch: Batch = 8,
    dtype: Dtype = "float32",
    threads: Threads = None,
) -> None:
    """Invert the pictures of a folder to noise; write inversions.safetensors.

    Run the same command again to go on after Ctrl-C or a crash: the result is the same. Under
    `accelerate launch -m pyext.cli` several processes share the work.
    """
    from pyext_plugins.diffii.commands import invert

    options = _options(
        model, prompt, concepts, null_label, embeddings, lora, spacing, dtype, threads
    )
    invert(data, output, options, inversion_steps, batch)


@app.command()
def generate(
    context: typer.Context,
    inversions: Annotated[Path, typer.Option(help="What `invert` wrote.")],
    model: ModelFolder,
    output: Output,
    prompt: Prompt = None,
    concepts: Concepts = None,
    null_label: NullLabel = None,
    embeddings: Embeddings = None,
    lora: Lora = None,
    steps: Steps = 25,
    guidance: Guidance = 7.5,
    suffixes: Suffixes = None,
    suffix_fraction: SuffixFraction = 0.0,
    norm: Norm = "paper",
    single: Single = "raise",
    degenerate: Degenerate = "raise",
    expansion: Expansion = 5,
    batch: Batch = 8,
    seed: Seed = 0,
    spacing: Spacing = "trailing",
    dtype: Dtype = "float32",
    threads: Threads = None,
    only: Annotated[
        str | None,
        typer.Option(
            help="Make this image of the manifest again, by the manifest's settings; "
            "options that would change these are refused."
        ),
    ] = None,
) -> None:
    """Generate images from places on circles; write a folder of them and manifest.jsonl.

    Run the same command again to go on after Ctrl-C or a crash. An image's bytes depend on the
    manifest, the model, the versions it names, the kind of machine and the number of threads.
    """
    from pyext_plugins.diffii.commands import generate, regenerate

    options = _options(
        model, prompt, concepts, null_label, embeddings, lora, spacing, dtype, threads
    )
    if only is not None:
        _refuse_settings(context)
        regenerate(inversions, output, options, only)
        return
    drawn = (norm, single, degenerate, batch, seed)
    settings = _settings(expansion, steps, guidance, suffixes, suffix_fraction, *drawn)
    generate(inversions, output, options, settings)


@app.command()
def augment(
    data: Data,
    model: ModelFolder,
    output: Output,
    prompt: Prompt = None,
    concepts: Concepts = None,
    null_label: NullLabel = None,
    embeddings: Embeddings = None,
    lora: Lora = None,
    inversion_steps: InversionSteps = 200,
    steps: Steps = 25,
    guidance: Guidance = 7.5,
    suffixes: Suffixes = None,
    suffix_fraction: SuffixFraction = 0.0,
    norm: Norm = "paper",
    single: Single = "raise",
    degenerate: Degenerate = "raise",
    expansion: Expansion = 5,
    batch: Batch = 8,
    seed: Seed = 0,
    spacing: Spacing = "trailing",
    dtype: Dtype = "float32",
    threads: Threads = None,
) -> None:
    """Invert the pictures of a folder and generate more of each class: both commands in one."""
    from pyext_plugins.diffii.commands import augment

    options = _options(
        model, prompt, concepts, null_label, embeddings, lora, spacing, dtype, threads
    )
    drawn = (norm, single, degenerate, batch, seed)
    settings = _settings(expansion, steps, guidance, suffixes, suffix_fraction, *drawn)
    augment(data, output, options, inversion_steps, settings)


def _options(
    model: Path,
    prompt: str | None,
    concepts: Path | None,
    null_label: int | None,
    embeddings: list[Path] | None,
    lora: Path | None,
    spacing: str,
    dtype: str,
    threads: int | None,
) -> Options:
    from pyext_plugins.diffii.commands import Options

    files = tuple(embeddings or ())
    return Options(model, prompt, concepts, null_label, files, lora, spacing, dtype, threads)


def _settings(
    expansion: int,
    steps: int,
    guidance: float,
    suffixes: Path | None,
    suffix_fraction: float,
    norm: str,
    single: str,
    degenerate: str,
    batch: int,
    seed: int,
) -> Settings:
    from pyext_plugins.diffii.loading import read_suffixes
    from pyext_plugins.diffii.manifest import Settings

    drawn = (norm, single, degenerate, batch, seed)
    texts = read_suffixes(suffixes)
    return Settings(expansion, steps, guidance, texts, suffix_fraction, *drawn)


def _refuse_settings(context: typer.Context) -> None:
    """Refuse options that say how images are drawn, given where the manifest says it.

    Raises:
        UserError: there are some.
    """
    from pyext_plugins.diffii.manifest import Settings

    names = [field.name for field in fields(Settings)]
    given = [name for name in names if _is_given(context, name)]
    if given:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise UserError(
            f"--only: the manifest has the settings, expected none beside it, got {options}"
        )


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name not in ("DEFAULT", "DEFAULT_MAP")
