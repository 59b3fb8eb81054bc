"""As much of an API server as the chart asks one for: objects that helm's `lookup` finds, and 404 for the others."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_GROUPS = {"/api/v1": ("ConfigMap", "Namespace", "Secret"), "/apis/apps/v1": ("Deployment",)}
_OF_CLUSTER = ("Namespace",)
_KINDS = {kind.lower() + "s": kind for kinds in _GROUPS.values() for kind in kinds}
_OBJECT = re.compile(r"/(?:api/v1|apis/apps/v1)(?:/namespaces/([^/]+))?/([a-z]+)/([^/?]+)$")
NAMESPACE = "watertower"

LIVE = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "kube-root-ca.crt", "namespace": NAMESPACE}}
"""What Kubernetes itself keeps in every namespace."""

DEFAULT = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}}
"""A namespace that every cluster has."""


@contextmanager
def serving(folder: Path, *objects: dict[str, Any], namespace: bool = True) -> Iterator[Path]:
    """A kubeconfig, in `folder`, for an API server that has `objects`, DEFAULT and, if the release's `namespace` is there, LIVE."""
    own = (DEFAULT, LIVE) if namespace else (DEFAULT,)
    there = {(_namespace(one), one["kind"], one["metadata"]["name"]): one for one in (*own, *objects)}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/version":
                self._answer(200, {"major": "1", "minor": "34", "gitVersion": "v1.34.2"})
            elif path in _GROUPS:
                kinds = [
                    {"name": kind.lower() + "s", "kind": kind, "namespaced": kind not in _OF_CLUSTER, "verbs": ["get"]}
                    for kind in _GROUPS[path]
                ]
                version = path.split("/", 2)[2]
                self._answer(200, {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": kinds})
            elif (match := _OBJECT.match(path)) and (found := there.get((match[1], _KINDS.get(match[2], ""), match[3]))):
                self._answer(200, found)
            else:
                self._answer(404, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404})

        def log_message(self, format: str, *args: object) -> None:
            """Nothing: a test says what it has to say."""

        def _answer(self, code: int, body: dict[str, Any]) -> None:
            data = json.dumps(body).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        config = folder / "kubeconfig"
        config.write_text(json.dumps(_kubeconfig(server.server_address[1])), "utf-8")
        yield config
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _namespace(one: dict[str, Any]) -> str | None:
    return None if one["kind"] in _OF_CLUSTER else one["metadata"].get("namespace", NAMESPACE)


def _kubeconfig(port: int) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "nobody"}}],
        "users": [{"name": "nobody", "user": {}}],
        "current-context": "test",
    }
