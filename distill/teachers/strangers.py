"""What a file that cannot be read as a checkpoint is instead, as far as its first bytes tell: people name the wrong file more often than a broken one."""

import zipfile
from pathlib import Path

from distill.teachers.fetch import OFFICIAL
from distill.teachers.pickles import LEGACY_MAGIC, ZIP_START

HEAD_BYTES = 1024
DICOM_MARK = 128
"""Where ``DICM`` stands in a DICOM file: behind a preamble (DICOM PS3.10, section 7.1)."""
MAGIC = LEGACY_MAGIC.to_bytes(10, "little")
MAGIC_WITHIN = 32
"""Bytes in which the magic number of torch's old format stands, whatever the pickle's protocol."""
SIGNS: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"II*\x00", "a TIFF picture"),
    (b"MM\x00*", "a TIFF picture"),
    (b"%PDF", "a PDF document"),
    (b"\x93NUMPY", "a NumPy array (.npy)"),
    (b"\x89HDF\r\n", "an HDF5 file, as Keras writes"),
    (b"\x1f\x8b", "a file packed with gzip, such as .nii.gz or .tar.gz"),
    (b"BZh", "a file packed with bzip2"),
    (b"7z\xbc\xaf", "a 7-Zip archive"),
    (b"Rar!", "a RAR archive"),
    (b"\x7fELF", "a program or library"),
    (b"version https://git-lfs", "a Git LFS pointer, which stands for the file: 'git lfs pull' in its repository brings the file itself"),
)
"""First bytes, and whose they are."""


def looks_like(path: Path) -> str | None:
    """Return what a file is, with its article, or None where it may well be (what is left of) a checkpoint."""
    with path.open("rb") as stream:
        head = stream.read(HEAD_BYTES)
    if not head:
        return "an empty file (0 bytes): what was to bring it here failed or has not ended"
    known = next((what for sign, what in SIGNS if head.startswith(sign)), None)
    if known or head[DICOM_MARK : DICOM_MARK + 4] == b"DICM":
        return known or "a DICOM image"
    if head.startswith(ZIP_START):
        return _foreign_zip(path, head)
    if head.startswith(b"\x80") and MAGIC not in head[:MAGIC_WITHIN] and len(head) >= MAGIC_WITHIN:
        return "a pickle that torch.save did not write; save the model's state_dict with torch.save"
    return _text(head)


def _foreign_zip(path: Path, head: bytes) -> str | None:
    """Tell other zip archives from torch's; of one that is cut off, only the first name is left."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError):
        first = head[30 : 30 + int.from_bytes(head[26:28], "little")]
        return "a NumPy archive (.npz) that is cut off" if first.endswith(b".npy") else None
    if any(name.endswith("data.pkl") for name in names):
        return None
    if names and all(name.endswith(".npy") for name in names):
        return "a NumPy archive (.npz)"
    more = ", ..." if len(names) > 3 else ""
    return f"a zip archive of other things ({', '.join(names[:3]) or 'nothing'}{more})"


def _text(head: bytes) -> str | None:
    """Tell text by having no control characters; a web page by its beginning."""
    try:
        words = head.decode("utf-8", errors="strict" if len(head) < HEAD_BYTES else "ignore")
    except UnicodeDecodeError:
        return None
    if any(ord(letter) < 32 and letter not in "\t\n\r\f" for letter in words) or "\x7f" in words:
        return None
    if words.lstrip("\ufeff \t\r\n").lower().startswith(("<!doctype html", "<html", "<head")):
        return "a web page (HTML): the address leads to a page about the file, or to a login; download the file itself"
    first = words.strip("\ufeff \t\r\n").splitlines()[:1]
    return f"text, beginning {first[0][:40]!r}" if first else "text that is blank"


def size_of(path: Path) -> str:
    """Return a file's size in words, and what it should be where its name is an official one's."""
    size = path.stat().st_size
    official = next((file for file in OFFICIAL.values() if file.file_name == path.name), None)
    wanted = f" of {official.size_bytes:,}" if official is not None and official.size_bytes != size else ""
    return f"{size:,}{wanted} bytes"
