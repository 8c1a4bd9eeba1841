"""The end of refine: the filter's own report, written once per state of everything that it shows."""

from pathlib import Path

from distill.audit import AUDIT, audit, partial_words
from distill.audit_masks import AuditPlan
from flows.console import Follow
from flows.once import perform_once
from flows.recipe import Recipe
from flows.results import FILTER, StageResult, counted
from flows.rules import CalibrationFile, calibration_file, is_calibrated, refine_plan
from storage import Archive, fingerprint
from students.filter_page import write_filter_page


def filter_page(recipe: Recipe) -> Path:
    """Where the page is written; the JSON lies beside it."""
    return recipe.report_folder / "filter.html"


def write_filter_report(archive: Archive, recipe: Recipe) -> StageResult:
    """Write page and JSON, unless they show what there is already.

    A report that fails costs nobody their labels: it is a unit without a result, tried again by the next run.
    """
    stage, unit = FILTER, recipe.student.name
    plan = audit_plan(archive, recipe)
    if not archive.cases(with_labels=recipe.round.refined_set, limit=1):
        return StageResult(stage=stage)
    try:
        return perform_once(
            archive.ledger,
            stage=stage,
            unit=unit,
            fingerprint=filter_fingerprint(archive, plan),
            output=filter_page(recipe),
            work=lambda: _write(archive, recipe, plan),
        )
    except Exception as error:  # noqa: BLE001 - the ledger has it with its traceback
        return StageResult(stage=stage, failed=1, note=f"the filter report could not be written ({type(error).__name__}: {error})")


def audit_plan(archive: Archive, recipe: Recipe) -> AuditPlan:
    """By whose rules the masks were judged."""
    calibrated = is_calibrated(archive, recipe)
    plan, file = refine_plan(recipe, calibrated=calibrated), calibration_file(recipe)
    found = CalibrationFile.model_validate_json(file.read_text(encoding="utf-8")).classes if calibrated and file.is_file() else {}
    return AuditPlan(classes=plan.classes, rules=plan.rules, calibrations=found, source=plan.source, target=plan.target)


def filter_fingerprint(archive: Archive, plan: AuditPlan) -> str:
    """Everything the report depends on: labels, gold, scores, rules, verdicts of people, and whose the cases are."""
    catalog = archive.catalog
    return fingerprint(
        audit=AUDIT,
        plan=plan,
        labels={name: catalog.fingerprints(name) for name in (plan.source, plan.target, plan.gold)},
        scores=[catalog.scores(name) for name in (plan.source, plan.target)],
        reviews=catalog.reviews(plan.source),
        cases=[
            [record.id, record.part, record.patient, record.modality, record.attributes]
            for record in archive.cases(with_labels=plan.target)
        ],
    )


def _write(archive: Archive, recipe: Recipe, plan: AuditPlan) -> str:
    follow, total = Follow("filter report"), archive.catalog.count_label_sets().get(plan.target, 0)
    report = audit(archive, plan, progress=lambda done: follow(done, total))
    write_filter_page(report, archive, filter_page(recipe), gold=plan.gold, rules=plan.rules)
    removed = [f"it removes {counted(len(report.flags), 'group', 'groups')} more or less often than the rest"] if report.flags else []
    return "; ".join(f"WARNING: {words.rstrip('.')}" for words in (*removed, *partial_words(report)))
