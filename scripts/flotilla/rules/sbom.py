"""An image's bill of materials: a CycloneDX document of what was found on a host of the image.

A document depends on nothing but the image and the finds: the same ones make the same bytes.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

Document = Mapping[str, Any]

# apt's configuration, a file each: with it apt judges the packages as a host of the image would.
_APT = "flotilla:apt:"
# What apt takes as data. Its apt.conf names commands, which it would run on the operator's machine.
_APT_PATH = re.compile(
    r"/etc/apt/(sources\.list|preferences"
    r"|(sources\.list\.d|mirrors|keyrings|preferences\.d)/(?!\.\.?$)[^/\0]+)"
)
_SUITE = "flotilla:suite"
_ARCHITECTURE = "flotilla:architecture"


@dataclass(frozen=True, slots=True)
class Difference:
    """What became of one package; ``old`` or ``new`` is empty where it came or went."""

    package: str
    old: str
    new: str

    def __str__(self) -> str:
        if not self.old:
            return f"{self.package} {self.new} is new"
        return f"{self.package} {self.old} -> {self.new or 'gone'}"


def document(
    inventory: Mapping[str, Any],
    *,
    name: str,
    version: str,
    made_at: datetime,
    properties: Mapping[str, str],
) -> str:
    """The document as JSON text.

    ``inventory`` is what ``flotilla.images.facts`` found; ``name``, ``version`` (the content hash),
    ``made_at`` and ``properties`` say of which image.
    """
    # Late: they take longer to import than most commands to run.
    from cyclonedx.model import Property  # noqa: PLC0415
    from cyclonedx.model.bom import Bom  # noqa: PLC0415
    from cyclonedx.model.component import Component, ComponentType  # noqa: PLC0415
    from cyclonedx.output.json import JsonV1Dot6  # noqa: PLC0415

    own = dict(properties) | {
        _SUITE: inventory["suite"],
        _ARCHITECTURE: inventory["architecture"],
        **{_APT + path: text for path, text in inventory["apt"].items()},
    }
    bom = Bom(
        serial_number=uuid.uuid5(uuid.NAMESPACE_URL, f"urn:flotilla:{name}"),
        components=[*_debian(inventory), *_python(inventory)],
    )
    bom.metadata.timestamp = made_at
    bom.metadata.component = Component(
        name=name,
        version=version,
        type=ComponentType.OPERATING_SYSTEM,
        bom_ref=name,
        properties=[Property(name=key, value=value) for key, value in own.items()],
    )
    bom.register_dependency(bom.metadata.component, bom.components)
    return JsonV1Dot6(bom).output_as_string(indent=1)


def _debian(inventory: Mapping[str, Any]) -> list[Any]:
    from cyclonedx.model.component import Component  # noqa: PLC0415
    from packageurl import PackageURL  # noqa: PLC0415

    distribution = inventory["distribution"]
    distro = f"{distribution}-{inventory['release']}".rstrip("-")
    found = []
    for name, version, architecture, source, source_version in inventory["packages"]:
        qualifiers = {
            "arch": architecture,
            "distro": distro,
            "upstream": f"{source}@{source_version}",
        }
        url = PackageURL("deb", distribution, name, version, qualifiers)
        found.append(Component(name=name, version=version, purl=url, bom_ref=url.to_string()))
    return found


def _python(inventory: Mapping[str, Any]) -> list[Any]:
    from cyclonedx.model import Property  # noqa: PLC0415
    from cyclonedx.model.component import Component  # noqa: PLC0415
    from packageurl import PackageURL  # noqa: PLC0415

    found = []
    for name, version, folder in inventory["python"]:
        url = PackageURL("pypi", None, name, version)
        place = Property(name="flotilla:folder", value=folder)
        reference = f"{url.to_string()}#{folder}"
        found.append(
            Component(name=name, version=version, purl=url, bom_ref=reference, properties=[place])
        )
    return found


def objection(document: Any) -> str:
    """Why this is none of our documents, as it was cut off or changed; "" when it is one."""
    try:
        packages(document)
        dpkg_status(document)
        suite(document)
        architecture(document)
        foreign = [path for path in apt(document) if not _APT_PATH.fullmatch(path)]
    except (LookupError, ValueError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return f"it has files that are none of apt's: {', '.join(foreign)}" if foreign else ""


def packages(document: Document) -> dict[str, str]:
    """Version by package: ``openssl:amd64``, and ``python:requests in /opt/x`` for Python's."""
    found = {}
    for component in document.get("components", ()):
        url = _url(component)
        if url.type == "deb":
            key = f"{url.name}:{url.qualifiers['arch']}"
        else:
            key = f"python:{component['name']} in {_properties(component)['flotilla:folder']}"
        # A Python distribution may say none.
        found[key] = str(component.get("version", ""))
    return found


def differences(old: Document, new: Document) -> list[Difference]:
    """What differs between two images, by name."""
    before, after = packages(old), packages(new)
    return [
        Difference(name, before.get(name, ""), after.get(name, ""))
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]


def suite(document: Document) -> str:
    """The code name of the image's release, such as ``trixie``."""
    return _properties(document["metadata"]["component"])[_SUITE]


def architecture(document: Document) -> str:
    """Debian's name of the image's architecture, such as ``amd64``."""
    return _properties(document["metadata"]["component"])[_ARCHITECTURE]


def apt(document: Document) -> dict[str, str]:
    """apt's configuration in the image: text by path."""
    found = _properties(document["metadata"]["component"])
    return {name.removeprefix(_APT): text for name, text in found.items() if name.startswith(_APT)}


def debian_names(document: Document) -> list[str]:
    """The names of its Debian packages, each once."""
    urls = map(_url, document.get("components", ()))
    return sorted({url.name for url in urls if url.type == "deb"})


def dpkg_status(document: Document) -> str:
    """The packages in the form of dpkg's own list, for the tools that read that."""
    return "".join(_stanzas(document.get("components", ())))


def _stanzas(components: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    for component in components:
        url = _url(component)
        if url.type != "deb":
            continue
        source, _, version = url.qualifiers["upstream"].rpartition("@")
        yield (
            f"Package: {url.name}\n"
            "Status: install ok installed\n"
            f"Architecture: {url.qualifiers['arch']}\n"
            f"Source: {source} ({version})\n"
            f"Version: {url.version}\n"
            "\n"
        )


def _url(component: Mapping[str, Any]) -> Any:
    from packageurl import PackageURL  # noqa: PLC0415

    return PackageURL.from_string(component["purl"])


def _properties(component: Mapping[str, Any]) -> dict[str, str]:
    return {one["name"]: one.get("value", "") for one in component.get("properties", ())}
