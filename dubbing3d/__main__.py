"""python -m dubbing3d train"""

import typer

from common.cli import ConfigFile, Overrides, Overwrite, Resume, make_app, run_cli
from common.config import load
from dubbing3d.config import DubbingConfig

app: typer.Typer = make_app("A face video and speech go in, the video dubbed through a 3D face model comes out.")


@app.command()
def train(
    experiment: ConfigFile,
    overrides: Overrides = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Train expressions from speech (stage 1) and the renderer (stage 2)."""
    from dubbing3d.train import train as train_run  # brings Lightning along, which the other commands do not need

    train_run(load(DubbingConfig, experiment, overrides or []), resume=resume, overwrite=overwrite)


if __name__ == "__main__":
    run_cli(app)
