"""Volumes from bytes, told apart by how they begin: NIfTI, DICOM, NRRD, MetaImage, .npy, .npz, JSON, zips of files."""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy.typing as npt

from app.errors import InvalidRequest, UnusableInput
from app.readers import metaimage, nrrd
from app.readers.bounded import (
    BLOCK,
    GZIP_MAGIC,
    ZIP_MAGIC,
    Buffer,
    gunzip,
    gunzip_prefix,
    unzip_member,
    unzip_members,
    zip_directory,
)
from app.readers.dicom import is_dicom, read_dicom
from app.readers.nifti import NIFTI2_HEADER, claimed_size, is_nifti, is_pair_header, read_nifti
from app.readers.npy import MAGIC as NPY_MAGIC
from app.readers.npy import MAX_HEADER as NPY_HEADER
from app.readers.npy import read_npy
from app.readers.numeric_json import read_document
from app.readers.volume import Volume, at_time, three_dimensional

HEAD = NIFTI2_HEADER
"""Bytes that tell any format."""

_NPZ_NAMES = ("volume", "image")

Kind = Literal["npy", "archive", "gzip", "pair header", "nifti", "dicom", "nrrd", "metaimage", "unknown"]


@dataclass(frozen=True, eq=False)
class NamedFile:
    """One file of several: its bytes, and its name, which is looked at only to find the halves of a pair."""

    data: Buffer
    name: str = ""


def kind_of(data: Buffer) -> Kind:
    """What a file is by its first bytes."""
    head = bytes(data[:HEAD])
    if head.startswith(NPY_MAGIC):
        return "npy"
    if head.startswith(ZIP_MAGIC):
        return "archive"
    if head.startswith(GZIP_MAGIC):
        return "gzip"
    if is_nifti(head):
        return "pair header" if is_pair_header(head) else "nifti"
    if is_dicom(head):
        return "dicom"
    if head.startswith(nrrd.MAGIC):
        return "nrrd"
    return "metaimage" if head.startswith(metaimage.MAGIC) else "unknown"


def grouped(files: Sequence[NamedFile]) -> list[list[NamedFile]]:
    """Which of several files make one volume each: DICOM slices, the halves of a NIfTI pair, any other file alone.

    The voxels of a pair are in the .img of the header's own name, in the same folder.

    Raises:
        UnusableInput: several pairs of one name.
    """
    groups: list[list[NamedFile]] = []
    slices: list[NamedFile] = []
    kinds = [kind_of(file.data) for file in files]
    headers = Counter(_stem(file.name) for file, kind in zip(files, kinds, strict=True) if kind == "pair header")
    images: dict[str, NamedFile] = {}
    for file, kind in zip(files, kinds, strict=True):
        stem = _stem(file.name)
        if kind != "unknown" or stem not in headers or not file.name.lower().endswith(".img"):
            continue
        if stem in images or headers[stem] > 1:  # named by no one: a file's name may be a patient's
            raise UnusableInput(
                "several .hdr or several .img of a NIfTI pair have one name; give every pair a name or a folder of its "
                "own",
                field="file",
            )
        images[stem] = file
    for file, kind in zip(files, kinds, strict=True):
        if kind == "dicom":
            if not slices:
                groups.append(slices)
            slices.append(file)
        elif kind == "pair header" and _stem(file.name) in images:
            groups.append([file, images[_stem(file.name)]])
        elif images.get(_stem(file.name)) is not file:
            groups.append([file])
    return groups


def read_group(files: Sequence[NamedFile], limit: int, time: int | None = None) -> Volume:
    """The volume that a group of `grouped` makes; raises as `read_volume` does."""
    first = files[0]
    if len(files) == 1:
        return read_volume(first.data, limit, time)
    if kind_of(first.data) == "pair header":
        return read_nifti(first.data, limit, time, files[1].data)
    return _no_time(read_dicom([file.data for file in files], limit), time)


def read_volume(data: Buffer, limit: int, time: int | None = None) -> Volume:
    """Read one file.

    Args:
        limit: most bytes of the decoded array, checked against what the header claims before anything is expanded.
        time: which volume of a series in time (four axes), from 0.

    Raises:
        InvalidRequest: none of the formats, truncated or broken. PayloadTooLarge: past `limit`.
        UnusableInput: not three-dimensional, empty, or with values that are not finite numbers.
    """
    kind = kind_of(data)
    if kind == "archive":
        entries = zip_directory(data)
        if any(entry.filename.endswith(".npy") for entry in entries):
            return Volume(three_dimensional(at_time(_read_npz(data, entries, limit), time)), "npz")
        return _read_zip(data, limit, time)
    if kind == "gzip":
        head = gunzip_prefix(data, HEAD)
        if is_nifti(head):
            return read_nifti(gunzip(data, claimed_size(head, limit) + BLOCK), limit, time)  # some writers pad the end
        _refuse_nested(head)
        if kind_of(head) == "unknown":
            raise InvalidRequest("the gzip stream holds no volume")
        return _read_plain(gunzip(data, limit), limit, time)
    return _read_plain(data, limit, time)


def read_json_volume(data: Buffer, limit: int, time: int | None = None) -> Volume:
    """Read {"volume": [[[..], ..], ..]}, of four axes at `time`; raises as `read_volume` does."""
    members, array = read_document(data, "volume", limit)
    if members:
        raise InvalidRequest(f"unknown member {next(iter(members))[:40]!r}", field=next(iter(members))[:40])
    return Volume(three_dimensional(at_time(array, time)), "json")


def _read_plain(data: Buffer, limit: int, time: int | None) -> Volume:
    """A file that is no archive."""
    kind = kind_of(data)
    if kind == "npy":
        return Volume(three_dimensional(at_time(read_npy(data, limit), time)), "npy")
    if kind in ("nifti", "pair header"):
        return read_nifti(data, limit, time)
    if kind == "dicom":
        return _no_time(read_dicom([data], limit), time)
    if kind == "nrrd":
        return nrrd.read_nrrd(data, limit, time)
    if kind == "metaimage":
        return metaimage.read_metaimage(data, limit, time)
    raise InvalidRequest(
        "not a volume: the first bytes are none of those of NIfTI, DICOM, NRRD, MetaImage, .npy, .npz or a zip of files"
    )


def _read_zip(data: Buffer, limit: int, time: int | None) -> Volume:
    """The one volume of a zip: DICOM slices, the halves of a pair, or a file by itself."""
    files = [NamedFile(content, name) for name, content in unzip_members(data, limit) if not _is_litter(name)]
    for file in files:
        _refuse_nested(bytes(file.data[:HEAD]))
    groups = grouped(files)
    if not groups:
        raise InvalidRequest("the zip archive holds no file")
    if len(groups) > 1:
        unknown = any(kind_of(file.data) == "unknown" for file in files)
        held = "files that are no volume" if unknown else f"{len(groups)} volumes"
        raise UnusableInput(f"the zip archive holds {held}; it must hold one volume and nothing else")
    return read_group(groups[0], limit, time)


def _is_litter(name: str) -> bool:
    """What archivers and DICOM media add beside the files themselves."""
    last = name.rpartition("/")[2]
    return name.startswith("__MACOSX/") or last.startswith(".") or last.upper() in ("DICOMDIR", "THUMBS.DB")


def _refuse_nested(head: bytes) -> None:
    if head.startswith((ZIP_MAGIC, GZIP_MAGIC)):
        raise InvalidRequest("an archive inside an archive is not read")


def _no_time(volume: Volume, time: int | None) -> Volume:
    if time not in (None, 0):
        raise UnusableInput("t chooses along a fourth axis, which a DICOM series does not have", field="t")
    return volume


def _stem(name: str) -> str:
    """The name in lower case with its folder and without its last suffix."""
    folder, mark, base = name.lower().rpartition("/")
    return folder + mark + (base.rpartition(".")[0] or base)


def _read_npz(data: Buffer, entries: Sequence[zipfile.ZipInfo], limit: int) -> npt.NDArray[Any]:
    arrays = {entry.filename.removesuffix(".npy"): entry for entry in entries}
    named = [arrays[name] for name in _NPZ_NAMES if name in arrays]
    candidates: list[zipfile.ZipInfo] = named or list(arrays.values())
    if len(candidates) != 1:
        raise UnusableInput(f"the .npz must hold one array, or name one of them {' or '.join(_NPZ_NAMES)}")
    # The header is not part of the array that `limit` is about.
    return read_npy(unzip_member(data, candidates[0], limit + NPY_HEADER), limit)
