"""A hub of one data set on this machine: the few requests that its clients make, answered."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote_plus

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def small_hub(hub_id: str, folder: Path, busy: int = 0) -> Iterator[tuple[str, list[str]]]:
    """Serve `folder` as a data set.

    Args:
        hub_id: the data set's id.
        folder: its files.
        busy: so many requests for Parquet files are answered with status 429 first.

    Yields:
        The address, and the requests as they come in.
    """
    requests: list[str] = []
    refusals = iter(range(busy))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_arguments: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self._answer()

        def _answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length).decode()
            requests.append(f"{self.command} {self.path} {body}")
            path = self.path.split("?")[0]
            api = f"/api/datasets/{hub_id}"
            if match := re.fullmatch(rf"/datasets/{hub_id}/resolve/[^/]+/(.*)", path):
                self._file(match.group(1))
            elif path in (api, f"{api}/revision/{COMMIT}", f"{api}/revision/main"):
                files = [{"rfilename": name} for name in _names(folder)]
                self._json({"id": hub_id, "sha": COMMIT, "siblings": files, "tags": [],
                            "private": False, "downloads": 0, "likes": 0})  # fmt: skip
            elif match := re.fullmatch(rf"{api}/tree/[^/]+/?(.*)", path):
                self._json(_tree(folder, match.group(1), "recursive=true" in self.path.lower()))
            elif path.startswith(f"{api}/paths-info/"):
                wanted = re.findall(r"paths=([^&]*)", body) or json.loads(body)["paths"]
                found = [folder / unquote_plus(name) for name in wanted]
                self._json([_entry(folder, one) for one in found if one.exists()])
            else:
                self._json({"error": "Not found"}, 404)

        def _file(self, name: str) -> None:
            file = folder / name
            if not file.is_file():
                self._json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
                return
            if file.suffix == ".parquet" and next(refusals, None) is not None:
                self._json({"error": "Too many requests"}, 429, {"Retry-After": "0"})
                return
            content = file.read_bytes()
            headers = {
                "X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
                "Content-Type": "application/octet-stream",
            }  # fmt: skip
            self._send(content, 200, headers)

        def _json(self, value: Any, status: int = 200, headers: Any = None) -> None:
            kind = {"Content-Type": "application/json", "X-Repo-Commit": COMMIT}
            self._send(json.dumps(value).encode(), status, kind | (headers or {}))

        def _send(self, content: bytes, status: int, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        server.server_close()


def _names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def _tree(folder: Path, below: str, recursive: bool) -> list[dict[str, Any]]:
    root = folder / below
    found = sorted(root.rglob("*") if recursive else root.glob("*"))
    return [_entry(folder, path) for path in found]


def _entry(folder: Path, path: Path) -> dict[str, Any]:
    name = path.relative_to(folder).as_posix()
    oid = hashlib.sha1(name.encode()).hexdigest()  # noqa: S324
    if path.is_dir():
        return {"type": "directory", "oid": oid, "size": 0, "path": name}
    return {"type": "file", "oid": oid, "size": path.stat().st_size, "path": name}
