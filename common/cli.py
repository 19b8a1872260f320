"""What every command line shares: options, and one line with exit code 2 for what the user can mend."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer
from typer.core import TyperGroup

from common.errors import UserError

ConfigFile = Annotated[
    Path, typer.Argument(help="YAML file below experiments/, or the config.yaml of a run.", show_default=False)
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="key=value words, dotted keys, e.g. trainer.steps=10 data.root=corpus", show_default=False),
]
Checkpoint = Annotated[Path, typer.Option("--checkpoint", "-c", help="A run folder's last.ckpt.", show_default=False)]
Out = Annotated[Path, typer.Option("--out", "-o", help="What to write; never half-written.", show_default=False)]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of everything random.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps ...")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the run folder's last checkpoint, if it has one.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run of the same name.")]
Workers = Annotated[int | None, typer.Option("--workers", help="Processes; all cores unless given.")]
EngineName = Annotated[Literal["local", "ray"], typer.Option("--engine", help="local, or ray: a Ray cluster.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Start anew where earlier options differ.")]
OWN_SYNCNET = "own (trained on the corpus at need: some minutes, kept in own_syncnet of the weights folder)"
"""What `--weights own` means, for the helps of the commands that take it."""
SyncJudge = Annotated[str, typer.Option("--weights", help=f"SyncNet: official, {OWN_SYNCNET}, a file, or auto")]
Faces = Annotated[str, typer.Option("--backend", help="dlib or face_alignment.")]


class Commands(TyperGroup):
    """Ends with 0; with 2 and `error: ...` on standard error for a `UserError` and for what Typer refuses; with 130
    after Ctrl-C. Any other exception is a defect and keeps its traceback.
    """

    def main(self, args: Sequence[str] | None = None, *rest: Any, **kwargs: Any) -> NoReturn:
        """Run the command that the words name, or show the help where there is none; then exit."""
        words = list(sys.argv[1:] if args is None else args) or ["--help"]
        try:
            code = super().main(words, *rest, **kwargs | {"standalone_mode": False})
        except UserError as error:
            _exit(f"error: {error}", 2)
        except typer.Exit as error:
            code = error.exit_code
        except (KeyboardInterrupt, typer.Abort):
            code = 130
        except Exception as error:
            if not hasattr(error, "format_message"):  # the parser's have it; their module moved
                raise
            _exit(f"error: {error.format_message()}", 2)
        if code == 130:
            _exit("interrupted", 130)
        sys.exit(code if isinstance(code, int) else 0)


def make_app(help: str) -> typer.Typer:  # typer's own name for it
    """A Typer application of named commands with the endings of `Commands`, in plain text."""
    app = typer.Typer(
        cls=Commands, help=help, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
    )
    app.callback()(_no_options)  # keeps a single command's name a word of the command line
    return app


def run_cli(app: typer.Typer, args: list[str] | None = None) -> None:
    """Run an application made by `make_app` on `args` (the process's own unless given) and exit."""
    app(args=args)


def pick_device(name: str) -> str:
    """Resolve `auto` to the best device of this machine; raise UserError for one that it lacks."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name!r} is not there: {str(error).splitlines()[0]}") from error
    return name


def _no_options() -> None:
    """Options before the command: none."""


def _exit(line: str, code: int) -> NoReturn:
    print(line, file=sys.stderr)
    sys.exit(code)
