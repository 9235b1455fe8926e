"""The lab's parts put together: hosts, instances, images, the API and the services around it."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

from lab import moto_env  # isort: skip  moto reads its settings when it is imported

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

from lab import amis, aptproxy, autoscaling, faults, metadata, rights
from lab.amis import AmiStore
from lab.errors import LabError
from lab.hosts import HostSet
from lab.images import Parts
from lab.instances import Instances
from lab.layout import ACCOUNT, API_PORT, REGION, ZONES, Layout
from lab.patches import install
from lab.podman import Podman
from lab.ports import Context, Service
from lab.record import Journal
from lab.wsgi import Api, Calls

Answer = tuple[int, Mapping[str, Any]]


def _name_itself(name: str = "") -> str:
    return name or "localhost"


# Every HTTP server of the standard library looks its own address up by name when it binds:
# link-local addresses of the lab would be asked for at the machine's resolver, and its silence
# delays the start.
socket.getfqdn = _name_itself


class _Quiet(WSGIRequestHandler):
    # Clients keep a connection for their next call; the default answers one call a connection.
    protocol_version = "HTTP/1.1"

    def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002  the name is werkzeug's
        """Calls are recorded by the API itself."""


class Lab:
    """Everything that lives as long as the lab process."""

    def __init__(
        self, where: Layout, podman: Podman, journal: Journal, stop: threading.Event
    ) -> None:
        self._where, self._journal, self._stop = where, journal, stop
        self._began = time.time()
        self._calls = Calls()
        self._services: list[Service] = []
        self._verbs: Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
            "GET status": lambda _: self.status(),
            "POST shutdown": lambda _: self._shutdown(),
            "POST fault": self._fault,
            "POST heal": lambda asked: faults.heal(self.context, asked.get("target")),
        }
        self._servers: list[Any] = []
        self.ec2: Callable[[], Any] = moto_env.ec2
        self.hosts = HostSet(podman, where.instances, self._host_exited)
        self._store = AmiStore(where.amis, podman, journal.log)
        self._instances = Instances(
            self.ec2, self.hosts, self._calls.lock("ec2"), amis.reference, journal.log
        )
        self._instances.listeners.append(self._sweep_after)
        install(Parts(self._instances, self._store))
        self.context = Context(
            hosts=self.hosts,
            ec2=self.ec2,
            backend=moto_env.backend,
            account=ACCOUNT,
            region=REGION,
            zones=ZONES,
            cache=str(where.cache),
            log=journal.log,
            on_instance_state=self._instances.listeners.append,
            lock=self._calls.lock("ec2"),
        )

    def images(self, base_id: str, base_name: str) -> None:
        """Load the machine images of labs before, and have the base image among them."""
        ec2 = self.ec2()
        self._store.load(ec2, keep=base_id)
        if base_id not in ec2.amis:
            self._store.add_base(ec2, base_id, base_name, datetime.now(UTC))

    def listen(self, addresses: Sequence[tuple[str, int]]) -> None:
        """Serve the API there, and start the services beside it."""
        # First: whoever gets an answer from the API has keys for it.
        self._where.write_credentials()
        moto = DomainDispatcherApplication(create_backend_app)
        api = Api(
            *(moto, self._control, self._calls, self._changed, self._journal.call),
            denied=partial(rights.denied, account=ACCOUNT, backend=moto_env.backend),
        )
        for host, port in addresses:
            server = make_server(host, port, api, threaded=True, request_handler=_Quiet)
            self._servers.append(server)
            threading.Thread(
                target=server.serve_forever, args=(0.2,), name=f"api-{host}", daemon=True
            ).start()
        self._services += [
            metadata.serve(self.context),
            aptproxy.serve(self.context),
            autoscaling.start(self.context),
        ]

    def close(self) -> None:
        """Stop serving. Hosts are ended by the clean-up that follows."""
        for server in self._servers:
            server.shutdown()
            server.server_close()
        for service in self._services:
            service.close()
        self.hosts.close()

    def status(self) -> dict[str, Any]:
        """What `fab lab.status` shows."""
        with self._calls.lock("ec2"):
            ec2 = self.ec2()
            rows = [self._row(instance) for instance in ec2.all_instances()]
            images = [
                {"id": ami.id, "name": ami.name, "state": ami.state} for ami in ec2.amis.values()
            ]
        return {
            "pid": os.getpid(),
            "repo": str(self._where.repo),
            "endpoint": f"http://127.0.0.1:{API_PORT}",
            "region": REGION,
            "up_seconds": round(time.time() - self._began),
            "instances": rows,
            "images": images,
            "faults": faults.active(),
        }

    def _row(self, instance: Any) -> dict[str, Any]:
        tags = {tag["key"]: tag["value"] for tag in instance.get_tags()}
        return {
            "id": instance.id,
            "name": tags.get("Name"),
            "state": instance.state,
            "zone": instance.placement.zone,
            "private_ip": instance.private_ip,
            "public_ip": instance.public_ip,
            "image": instance.image_id,
            "pid": self.hosts.pid(instance.id),
            "console": str(self.hosts.console(instance.id)),
        }

    def _host_exited(self, instance_id: str, exit_code: int) -> None:
        self._instances.exited(instance_id, exit_code)

    def _changed(self) -> None:
        try:
            self._instances.reconcile()
        except LabError as error:  # of one host; the call that asked for something else was done
            self._journal.log("failed", {"what": "reconcile", "error": str(error)})
        with self._calls.lock("ec2"):
            dropped = self._store.save(self.ec2())
        if dropped:
            self._instances.in_thread("sweep images", self._store.sweep)

    def _sweep_after(self, _: str, state: str) -> None:
        """The last host of a deregistered image may have gone."""
        if state == "terminated":
            self._store.sweep()

    def _control(self, method: str, verb: str, body: bytes) -> Answer:
        act = self._verbs.get(f"{method} {verb}")
        if act is None:
            return 404, {"error": f"no {method} /_lab/{verb}"}
        try:
            return 200, act(json.loads(body or b"{}"))
        except KeyError as error:
            return 400, {"error": f"{verb} needs {error}"}
        except ValueError as error:
            return 400, {"error": str(error)}
        except LabError as error:
            return 500, {"error": str(error)}

    def _shutdown(self) -> dict[str, Any]:
        self._stop.set()
        return {"pid": os.getpid()}

    def _fault(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        args = asked.get("args", {})
        return faults.inject(self.context, asked["kind"], asked["target"], args)
