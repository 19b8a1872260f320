"""What a dub tells: progress while it runs, and figures at its end."""

from dataclasses import dataclass, field

from rich.progress import ProgressColumn, Task
from rich.text import Text

from common.progress import Bars


@dataclass
class DubReport:
    """What was done."""

    frames: int = 0
    """Pictures of the output."""
    without_face: int = 0
    """Of these, pictures that passed through untouched."""
    seconds: float = 0.0
    """Length of the output."""
    silent: int = 0
    """Pictures in whose time nobody speaks, so that the mouth was closed."""
    stages: dict[str, float] = field(default_factory=dict)
    """Seconds of each stage; together the time that it took. `wait` is for what runs beside and the end of the file."""
    beside: dict[str, float] = field(default_factory=dict)
    """Seconds of work in other threads at the same time: read, encode."""

    @property
    def elapsed(self) -> float:
        """Seconds that it took."""
        return sum(self.stages.values())

    def text(self) -> str:
        """Two or three lines for the terminal."""
        stages, beside = (
            ", ".join(f"{name} {spent:.1f} s" for name, spent in part.items()) for part in (self.stages, self.beside)
        )
        lines = [
            f"{self.frames} frames, {self.seconds:.2f} s, {self.without_face} without a face; "
            f"made in {self.elapsed:.1f} s, {self.frames / max(self.elapsed, 1e-9):.1f} frames/s",
            f"{stages}; beside it {beside}",
        ]
        if self.silent == self.frames > 0:
            lines.append("warning: no speech was found in the sound, so that the mouth stays closed")
        return "\n".join(lines)


class Rate(ProgressColumn):
    """Frames per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.finished_speed or task.speed or 0:.1f} frames/s")


def progress_bars(shown: bool) -> Bars:
    """The bars of a dub."""
    return Bars(Rate(), shown=shown)
