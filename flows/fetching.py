"""Bringing official checkpoints here, as a person sees it."""

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from distill.teachers.fetch import OFFICIAL, checkpoint_folder, fetch, official_file
from flows.console import ERR, OUT, show_table


def list_checkpoints() -> None:
    """Print which official files there are, and which are here."""
    folder = checkpoint_folder()
    rows = [
        (file.name, f"{file.size_bytes / 1e6:,.0f} MB", file.profile, "here" if (folder / file.file_name).is_file() else "", file.about)
        for file in OFFICIAL.values()
    ]
    show_table(f"Official checkpoints, kept in {folder}", ("name", "size", "profile", "", "what it is"), rows)


def fetch_checkpoint(name: str) -> None:
    """Fetch one with a bar, and say how a recipe names it."""
    size_bytes = official_file(name).size_bytes  # a name that is none is refused before a bar shows it
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=ERR, disable=not ERR.is_terminal) as bar:
        task = bar.add_task(name, total=size_bytes)
        path = fetch(name, progress=lambda here, total: bar.update(task, completed=here, total=total))
    OUT.print(f"{path}\nIn a recipe: teacher: {{checkpoint: {name}}}", soft_wrap=True, markup=False, highlight=False)
