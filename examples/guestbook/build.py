#!/usr/bin/env python3
"""Build the artifact that is deployed: application, libraries and version in one tarball.

    build.py --version 2 --output guestbook-2.tar.gz

The libraries are the wheels that requirements.txt pins by hash, for CPython 3.13 on x86-64 Linux,
whatever runs this script. The same sources and version give the same bytes. The SHA-256 is written
beside the tarball.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
# 2020-01-01: any fixed moment will do; a file dated 1970 makes some tools think it is broken.
MTIME = 1577836800
TARGET = ("--python-version", "3.13", "--implementation", "cp", "--abi", "cp313")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux2014_x86_64", "manylinux_2_17_x86_64")
SOURCES = ("guestbook", "static", "gunicorn.conf.py", "requirements.txt")


def cache_folder() -> Path:
    """Where downloaded wheels are kept, by the hash of requirements.txt."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    root = Path(os.environ.get("FLOTILLA_CACHE") or base / "flotilla")
    return (
        root / "wheels" / hashlib.sha256((HERE / "requirements.txt").read_bytes()).hexdigest()[:16]
    )


def wheels() -> list[Path]:
    """The pinned wheels, downloaded once. Raises CalledProcessError when pip cannot get one."""
    folder = cache_folder()
    if not (folder / "complete").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        platforms = [word for name in PLATFORMS for word in ("--platform", name)]
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--disable-pip-version-check",
        ]
        command += ["--only-binary", ":all:", "--require-hashes", *TARGET, *platforms]
        command += ["--dest", str(folder), "--requirement", str(HERE / "requirements.txt")]
        subprocess.run(command, check=True)
        (folder / "complete").touch()
    return sorted(folder.glob("*.whl"))


def contents(version: str) -> dict[str, bytes]:
    """Every file of the artifact by its path."""
    files = {"VERSION": f"{version}\n".encode()}
    for source in SOURCES:
        paths = [HERE / source] if (HERE / source).is_file() else sorted((HERE / source).rglob("*"))
        for path in paths:
            if path.is_file() and "__pycache__" not in path.parts:
                files[str(path.relative_to(HERE))] = path.read_bytes()
    for wheel in wheels():
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                # Scripts and headers of a wheel are of no use here: everything is run as `python3
                # -m`.
                if not name.endswith("/") and ".data/" not in name:
                    files[f"vendor/{name}"] = archive.read(name)
    return files


def pack(files: dict[str, bytes]) -> bytes:
    """A gzipped tarball of `files`, the same bytes every time."""
    raw = io.BytesIO()
    with (
        gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=6, mtime=MTIME) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as tar,
    ):
        for name in sorted(files):
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.mode = len(files[name]), MTIME, 0o644
            tar.addfile(info, io.BytesIO(files[name]))
    return raw.getvalue()


def main() -> int:
    """Exit 0 with the path on stdout, 1 when the wheels cannot be had."""
    parser = argparse.ArgumentParser(description="Build the guestbook's artifact.")
    parser.add_argument("--version", required=True)
    parser.add_argument("--output", required=True, type=Path)
    options = parser.parse_args()
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", options.version):
        parser.error(f"version {options.version!r} must be 1 to 64 letters, digits or any of . _ -")
    try:
        content = pack(contents(options.version))
    except subprocess.CalledProcessError as error:
        sys.stderr.write(
            f"build: pip could not download the wheels (exit {error.returncode}); nothing written\n"
        )
        return 1
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    options.output.with_name(options.output.name + ".sha256").write_text(
        f"{digest}  {options.output.name}\n"
    )
    sys.stdout.write(f"{options.output}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
