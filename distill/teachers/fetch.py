"""Official checkpoints by name: where they are, what they must be, and bringing them here safely.

A file gets its name only when its size and its SHA-256 are right; until then it is ``NAME.part``, from which an interrupted download
goes on. Nothing here imports torch, and nothing is fetched unless somebody asks for it.

pooch and torch.hub begin again after an interruption, and huggingface_hub resumes only from its own hub; hence this module.
"""

import contextlib
import difflib
import hashlib
import http.client
import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from distill.errors import CheckpointError, FetchError

BLOCK_BYTES = 1 << 20
TIMEOUT_S = 60.0
"""A server that says nothing for so long is taken to be gone."""

Progress = Callable[[int, int], None]
"""Called with bytes here, bytes in all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OfficialFile:
    """One published checkpoint."""

    name: str
    """What recipes call it."""
    url: str
    file_name: str
    size_bytes: int
    sha256: str
    profile: str
    """How it wants its pictures (``distill.teachers.profiles``)."""
    about: str


_META = "https://dl.fbaipublicfiles.com/segment_anything/"
_EDGE_SAM = "https://huggingface.co/chongzhou/EdgeSAM/resolve/e0564124628944e1622973d4e0f68158b46f035a/"

# Sizes and hashes were compared between at least three independent public listings each; Meta's names carry the first digits of the
# file's MD5. MobileSAM's and EdgeSAM's weights lie in their authors' repositories and are pinned to a commit.
OFFICIAL: dict[str, OfficialFile] = {
    file.name: file
    for file in (
        OfficialFile(
            name="vit_b",
            url=_META + "sam_vit_b_01ec64.pth",
            file_name="sam_vit_b_01ec64.pth",
            size_bytes=375_042_383,
            sha256="ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
            profile="sam",
            about="Segment Anything ViT-B (Meta, Apache-2.0)",
        ),
        OfficialFile(
            name="vit_l",
            url=_META + "sam_vit_l_0b3195.pth",
            file_name="sam_vit_l_0b3195.pth",
            size_bytes=1_249_524_607,
            sha256="3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
            profile="sam",
            about="Segment Anything ViT-L (Meta, Apache-2.0)",
        ),
        OfficialFile(
            name="vit_h",
            url=_META + "sam_vit_h_4b8939.pth",
            file_name="sam_vit_h_4b8939.pth",
            size_bytes=2_564_550_879,
            sha256="a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
            profile="sam",
            about="Segment Anything ViT-H (Meta, Apache-2.0)",
        ),
        OfficialFile(
            name="mobile_sam",
            url="https://github.com/ChaoningZhang/MobileSAM/raw/f706ad9c4eb7f219c00d9050e46328518ffb65d2/weights/mobile_sam.pt",
            file_name="mobile_sam.pt",
            size_bytes=40_728_226,
            sha256="6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
            profile="mobile-sam",
            about="MobileSAM, TinyViT encoder (Zhang et al., Apache-2.0)",
        ),
        OfficialFile(
            name="edge_sam",
            url=_EDGE_SAM + "edge_sam.pth",
            file_name="edge_sam.pth",
            size_bytes=38_807_540,
            sha256="439b086a20ab6fba90c12cba32e0001ba3aa726da5791ff8738acdd440330991",
            profile="edge-sam",
            about="EdgeSAM, RepViT encoder (Zhou et al., S-Lab 1.0: not for commercial use)",
        ),
        OfficialFile(
            name="edge_sam_3x",
            url=_EDGE_SAM + "edge_sam_3x.pth",
            file_name="edge_sam_3x.pth",
            size_bytes=38_807_540,
            sha256="5a3e3261da9e2f4c8154410885689ae57d09cbf4cf5d0c848b9d80b6df336ece",
            profile="edge-sam",
            about="EdgeSAM trained on three times as many pictures (S-Lab 1.0: not for commercial use)",
        ),
        OfficialFile(
            name="medsam",
            url="https://zenodo.org/records/10689643/files/medsam_vit_b.pth",
            file_name="medsam_vit_b.pth",
            size_bytes=375_049_145,
            sha256="34b34b78c1d18cb8c6bf84cf9c00e135d6d6c965699f3c0e31ef1bc9dcb5be74",
            profile="medsam",
            about="MedSAM ViT-B, boxes only (Ma et al., Apache-2.0)",
        ),
    )
}


def checkpoint_folder() -> Path:
    """Return where checkpoints are kept: ``$SAMDISTILL_CACHE/checkpoints``, or in the user's cache; nothing is made."""
    own = os.environ.get("SAMDISTILL_CACHE")
    if own:
        return Path(own).expanduser().absolute() / "checkpoints"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "samdistill" / "checkpoints"


def official_file(name: str) -> OfficialFile:
    """Return what is known of an official file.

    Raises:
        CheckpointError: if no such name is known.
    """
    if name in OFFICIAL:
        return OFFICIAL[name]
    near = nearest_official(name)
    guess = f" Did you mean {near!r}?" if near else ""
    message = f"no official checkpoint {name!r}.{guess} Known: {', '.join(OFFICIAL)}."
    raise CheckpointError(message)


def nearest_official(name: str) -> str | None:
    """Return the official name that was probably meant by another: ``vit_b`` for ``vit-b``, ``ViT_B`` or ``sam_vit_b``."""
    plain = name.lower().replace("-", "_").replace(" ", "_").removesuffix(".pth").removesuffix(".pt")
    short = plain if plain in OFFICIAL else plain.removeprefix("sam_")
    return next(iter(difflib.get_close_matches(short, OFFICIAL, n=1, cutoff=0.7)), None)


def resolve_checkpoint(name_or_path: Path | str) -> Path:
    """Return the file that a recipe's ``checkpoint`` means: an official name, or a path, which is returned as it is.

    A file that somebody put into the folder by hand is held against its size and hash the first time.

    Raises:
        CheckpointError: if the name is misspelt, or its file is not here or not what it should be; nothing is fetched.
    """
    text = str(name_or_path)
    if text not in OFFICIAL:
        path = Path(name_or_path)
        if not path.exists() and re.fullmatch(r"[\w-]+", text) and nearest_official(text):
            official_file(text)
        return path
    file, target = OFFICIAL[text], checkpoint_folder() / OFFICIAL[text].file_name
    if not target.is_file():
        message = f"the checkpoint {text!r} is not on this machine. 'samdistill fetch {text}' brings it; without a network, {_by_hand(file, target)}"
        raise CheckpointError(message)
    if not _known_good(target):
        _verify(target, file)
        _remember_good(target)
    return target


def profile_of_hash(sha256: str) -> str | None:
    """Return the profile that belongs to a file, by its SHA-256 or the first digits of it (16 or more), if it is an official one."""
    return next((file.profile for file in OFFICIAL.values() if len(sha256) >= 16 and file.sha256.startswith(sha256)), None)


def fetch(name: str, *, folder: Path | None = None, progress: Progress | None = None) -> Path:
    """Bring an official file here, or find that it is here already. Several processes may ask at once: one fetches, the others wait.

    Args:
        name: a key of ``OFFICIAL``.
        folder: where to; default ``checkpoint_folder()``.
        progress: called after each block.

    Raises:
        CheckpointError: if the name is unknown, or what the server sent is not the official file.
        FetchError: if the server cannot be reached or stops sending; what has arrived is kept.
    """
    file = official_file(name)
    target = (folder or checkpoint_folder()) / file.file_name
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if target.is_file() and _known_good(target):
            return target
        if target.is_file():
            _verify(target, file)
        else:
            _download(file, target, progress or _silent)
        _remember_good(target)
    return target


def _download(file: OfficialFile, target: Path, progress: Progress) -> None:
    """Go on with ``target.part`` until it is whole, verify it, and give it its name."""
    part = Path(f"{target}.part")
    if _size(part) > file.size_bytes:
        _discard(part)
    furthest = _size(part)
    while _size(part) != file.size_bytes:
        reason = _attempt(file, part, progress)
        # A line that was cut is taken up again as long as each attempt gets further than any before it.
        if _size(part) <= furthest:
            raise FetchError(_why(file, target, reason))
        furthest = _size(part)
    try:
        _verify(part, file)
    except CheckpointError:
        _discard(part)
        raise
    part.replace(target)
    _discard(part)


def _attempt(file: OfficialFile, part: Path, progress: Progress) -> object:
    """Ask the server once, or twice if it has less than ``part``; return why it ended."""
    try:
        try:
            _go_on(file, part, progress)
        except urllib.error.HTTPError as error:
            if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise
            _discard(part)
            _go_on(file, part, progress)
    except (OSError, http.client.HTTPException) as error:
        return error
    return "the server stopped sending"


def _go_on(file: OfficialFile, part: Path, progress: Progress) -> None:
    """Append what one answer of the server brings; begin again where it does not resume or has another file than before."""
    here, request = _size(part), urllib.request.Request(file.url, headers={"User-Agent": "samdistill", "Accept-Encoding": "identity"})  # noqa: S310 - the URLs above
    if here:
        request.add_header("Range", f"bytes={here}-")
        if mark := _mark(part):
            request.add_header("If-Range", mark)
    with _open(request) as answer:
        resumed = answer.status == http.client.PARTIAL_CONTENT
        _check_announced(file, answer, here if resumed else 0)
        if not resumed:
            here = 0
            _write_mark(part, str(answer.headers.get("ETag") or ""))
        with part.open("ab" if resumed else "wb") as stream:
            while block := answer.read(BLOCK_BYTES):
                here += len(block)
                if here > file.size_bytes:  # possible only where the server announced no length
                    message = f"{file.url} sends more than the {file.size_bytes} bytes of {file.file_name}. It is another file, or a proxy answers in its place."
                    raise CheckpointError(message)
                stream.write(block)
                progress(here, file.size_bytes)


def _open(request: urllib.request.Request) -> http.client.HTTPResponse:
    answer: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=TIMEOUT_S)  # noqa: S310 - the URLs above
    return answer


def _check_announced(file: OfficialFile, answer: http.client.HTTPResponse, start: int) -> None:
    """Refuse an answer that announces another file before a gigabyte of it has been read.

    Raises:
        CheckpointError: naming both sizes.
    """
    span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range") or "")
    length = answer.headers.get("Content-Length")
    begins, total = (int(span.group(1)), span.group(2)) if span else (start, "*")
    announced = int(total) if total != "*" else start + int(length) if length else file.size_bytes
    if announced != file.size_bytes or begins != start:
        message = (
            f"{file.url} announces {announced} bytes from {begins} on, but {file.file_name} has {file.size_bytes} and was asked for from {start}. "
            "It is another file, or a proxy answers in its place."
        )
        raise CheckpointError(message)


def _verify(path: Path, file: OfficialFile) -> None:
    """Hold a file against size and hash.

    Raises:
        CheckpointError: if one differs.
    """
    if path.stat().st_size != file.size_bytes:
        message = f"{path} has {path.stat().st_size} bytes, but {file.name} has {file.size_bytes}. Remove it and run 'samdistill fetch {file.name}'."
        raise CheckpointError(message)
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != file.sha256:
        message = (
            f"{path} has the SHA-256 {found}, but {file.name} has {file.sha256}: it was damaged on its way or is another file. "
            f"Remove it if it is there, and run 'samdistill fetch {file.name}' again."
        )
        raise CheckpointError(message)


def _why(file: OfficialFile, target: Path, error: object) -> str:
    """Say in one line what went wrong and both ways on."""
    reason = error if isinstance(error, urllib.error.HTTPError) else getattr(error, "reason", None) or error
    arrived = _size(Path(f"{target}.part"))
    kept = f" {arrived} of {file.size_bytes} bytes are here; the same command goes on from them." if arrived else ""
    return f"{file.name} cannot be fetched from {file.url}: {str(reason).strip() or type(reason).__name__}.{kept} Without a network, {_by_hand(file, target)}"


def _by_hand(file: OfficialFile, target: Path) -> str:
    return f"download {file.url} elsewhere and put it as {target.name} into {target.parent}; then 'checkpoint: {file.name}' finds it."


def _known_good(path: Path) -> bool:
    """Tell whether this very file, by size and time of change, was verified before."""
    with contextlib.suppress(OSError, ValueError):
        seen = path.stat()
        return bool(json.loads(Path(f"{path}.verified").read_text(encoding="utf-8")) == [seen.st_size, seen.st_mtime_ns])
    return False


def _remember_good(path: Path) -> None:
    with contextlib.suppress(OSError):  # a folder that cannot be written: it is verified again next time
        seen = path.stat()
        Path(f"{path}.verified").write_text(json.dumps([seen.st_size, seen.st_mtime_ns]), encoding="utf-8")


def _mark(part: Path) -> str:
    """Return the server's mark (ETag) of the version that ``part`` belongs to; weak ones cannot be resumed by (RFC 9110, 13.1.5)."""
    with contextlib.suppress(OSError):
        text = Path(f"{part}.etag").read_text(encoding="utf-8")
        return "" if text.startswith("W/") else text
    return ""


def _write_mark(part: Path, mark: str) -> None:
    Path(f"{part}.etag").write_text(mark, encoding="utf-8")


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    Path(f"{part}.etag").unlink(missing_ok=True)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _silent(here: int, total: int) -> None:
    """Show nothing."""
