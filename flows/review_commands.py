"""``samdistill review``: the commands for people who look at masks. Each is a few lines that call ``flows.review``."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer

review_app = typer.Typer(
    no_args_is_help=True, help="Masks for a person to judge: what to look at first, and verdicts that the next run uses."
)

Place = Annotated[str, typer.Argument(metavar="RECIPE|ARCHIVE", help="A recipe, or an archive: a folder ending in .zarr, or a URL.")]
CaseId = Annotated[str, typer.Argument(metavar="CASE", help="A case of the archive, as 'review list' names it.")]
ClassOption = Annotated[int | None, typer.Option("--class", help="One class id; by default every class that the teacher drew.")]
Note = Annotated[str, typer.Option(help="For other reviewers. It is kept as it is: nothing in it may name a patient.")]
By = Annotated[str | None, typer.Option(help="Your name among the reviewers; by default who is logged in.")]
Force = Annotated[bool, typer.Option("--force", help="Overrule what somebody else decided, or what changed since you saw it.")]
Catalog = Annotated[str | None, typer.Option(help="SQLAlchemy URL of an archive's catalog; by default SQLite beside the archive.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for another program instead of a table.")]


@review_app.command("list")
def list_waiting(
    place: Place,
    number: Annotated[int, typer.Option("--n", min=1, help="At most so many masks.")] = 50,
    as_json: AsJson = False,
    by: By = None,
    catalog: Catalog = None,
) -> None:
    """Say which masks are worth looking at first: contradicted, uncertain, and one in five at random.

    Example: samdistill review list recipe.yaml --n 20
    """
    from flows.desk import open_desk
    from flows.review_list import waiting
    from flows.review_words import show_waiting

    desk = open_desk(place, catalog=catalog, by=by, ranking=True)
    show_waiting(waiting(desk, number), place, as_json=as_json)


@review_app.command()
def show(
    place: Place,
    case: CaseId,
    class_id: ClassOption = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="PNG file to write; by default CASE.png.")] = None,
    by: By = None,
    catalog: Catalog = None,
) -> None:
    """Write a picture of a case: whole slices with axes, the mask to be judged, what the teacher drew, and what is ignored.

    Example: samdistill review show recipe.yaml P01 -o P01.png
    """
    from flows.desk import open_desk
    from flows.review_picture import write_sheet

    write_sheet(open_desk(place, catalog=catalog, by=by, ranking=True), case, class_id, out or Path(f"{case}.png"))


Verdict = Literal["accept", "reject", "ignore"]
_VERDICTS: dict[Verdict, str] = {
    "accept": "The mask is right: the next 'refine' keeps it, whatever its scores say.",
    "reject": "The mask is wrong: the next 'refine' leaves the case out of training.",
    "ignore": "Nobody can tell whether the mask is right: the next 'refine' leaves the case out of training, without calling it wrong.",
}


def _judging(verdict: Verdict) -> Callable[..., None]:
    """Return the command that stores one verdict."""

    def judge(
        place: Place,
        case: CaseId,
        class_id: ClassOption = None,
        note: Note = "",
        by: By = None,
        force: Force = False,
        catalog: Catalog = None,
    ) -> None:
        from flows.desk import open_desk
        from flows.review import decide
        from flows.review_words import show_decided

        show_decided(decide(open_desk(place, catalog=catalog, by=by), case, verdict, class_id=class_id, note=note, force=force))

    return judge


for _verdict, _help in _VERDICTS.items():
    review_app.command(_verdict, help=_help)(_judging(_verdict))


@review_app.command()
def rebox(
    place: Place,
    case: CaseId,
    class_id: Annotated[int, typer.Option("--class", help="The class that the box is around.")],
    z: Annotated[int, typer.Option("--slice", help="The slice, counted from 0 as 'review show' does.")],
    box: Annotated[str, typer.Option(help="x0,y0,x1,y1 in pixels; the upper bounds are exclusive.")],
    by: By = None,
    force: Force = False,
    catalog: Catalog = None,
) -> None:
    """Give the teacher a better box on one slice; the next 'label' draws the case anew with it.

    Example: samdistill review rebox recipe.yaml P01 --class 1 --slice 12 --box 16,19,36,38
    """
    from flows.desk import open_desk
    from flows.review import rebox as draw_anew
    from flows.review_words import numbers, show_reboxed

    desk = open_desk(place, catalog=catalog, by=by)
    draw_anew(desk, case, class_id=class_id, z=z, box_xyxy=numbers(box), force=force)
    show_reboxed(case, class_id, z)


@review_app.command()
def undo(place: Place, case: CaseId, class_id: ClassOption = None, by: By = None, force: Force = False, catalog: Catalog = None) -> None:
    """Take back verdicts and boxes on a case, so that it waits for a person again. The history keeps them."""
    from flows.desk import open_desk
    from flows.review import take_back
    from flows.review_words import show_undone

    show_undone(case, take_back(open_desk(place, catalog=catalog, by=by), case, class_id=class_id, force=force))


@review_app.command()
def estimate(place: Place, as_json: AsJson = False, by: By = None, catalog: Catalog = None) -> None:
    """Say what share of all masks people would accept, from verdicts on the random part of the queue alone."""
    from flows.desk import open_desk
    from flows.review_list import accepted_share
    from flows.review_words import show_estimate

    show_estimate(accepted_share(open_desk(place, catalog=catalog, by=by)), as_json=as_json)
