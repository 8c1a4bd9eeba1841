"""Bring scans, labels, parts and weak prompts into an archive. Bad input is recorded with its reason; the rest goes in."""

from storage.ingest.discover import check_any
from storage.ingest.gold import GoldSummary, import_labels
from storage.ingest.parts import PartsSummary, import_parts
from storage.ingest.run import IngestSummary, dicom_key_path, ingest
from storage.ingest.source import SourceCase, case_id_from_name
from storage.ingest.weak import PromptSummary, import_prompts

__all__ = [
    "GoldSummary",
    "IngestSummary",
    "PartsSummary",
    "PromptSummary",
    "SourceCase",
    "case_id_from_name",
    "check_any",
    "dicom_key_path",
    "import_labels",
    "import_parts",
    "import_prompts",
    "ingest",
]
