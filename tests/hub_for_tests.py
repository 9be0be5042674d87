"""A hub on this machine: a small HTTP server that speaks what huggingface_hub's client asks for.

Special here: it keeps files in memory, a list of commits per repository, and notes every request. What it
does not know it refuses, so that a client which asks for more is found out.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_testing"


@dataclass
class Hub:
    """What it holds: for each repository its commits, the files of each by name."""

    url: str = ""
    repos: dict[str, list[dict[str, bytes]]] = field(default_factory=dict)
    private: set[str] = field(default_factory=set)
    requests: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    def sha(self, repo: str, number: int) -> str:
        return hashlib.sha1(f"{repo} {number}".encode()).hexdigest()

    def commit(self, repo: str, revision: str) -> int | None:
        """The number of a commit; None where there is none."""
        count = len(self.repos.get(repo, []))
        names = {self.sha(repo, number): number for number in range(count)} | {"main": count - 1, "first": 0}
        return names.get(revision) if count else None


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_: Any) -> None:
        """The tests read `Hub.requests`."""

    def _send(self, code: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(code)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, content: Any, code: int = 200) -> None:
        self._send(code, json.dumps(content).encode(), Content_Type="application/json")

    def _missing(self, what: str) -> None:
        code = {"repo": "RepoNotFound", "revision": "RevisionNotFound", "entry": "EntryNotFound"}[what]
        self._send(404, X_Error_Code=code, X_Error_Message=f"no such {what}")

    def do_GET(self) -> None:
        path = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        self.hub.requests.append(f"{self.command} {'/'.join(path)}")
        if path[:2] == ["api", "models"] and len(path) >= 4:
            return self._describe("/".join(path[2:4]), path[4:])
        if len(path) >= 5 and path[2] == "resolve":
            return self._file("/".join(path[:2]), path[3], "/".join(path[4:]))
        return self._missing("repo")

    do_HEAD = do_GET

    def _found(self, repo: str, revision: str) -> int | None:
        allowed = repo not in self.hub.private or self.headers["Authorization"] == f"Bearer {TOKEN}"
        number = self.hub.commit(repo, revision)
        if not allowed or number is None:
            self._missing("revision" if allowed and self.hub.repos.get(repo) else "repo")
            return None
        return number

    def _describe(self, repo: str, rest: list[str]) -> None:
        number = self._found(repo, rest[1] if rest else "main")
        if number is None:
            return
        files = self.hub.repos[repo][number]
        if rest[:1] == ["tree"]:
            entries = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in files.items()
            ]
            return self._json(entries)
        sha = self.hub.sha(repo, number)
        self._json({"id": repo, "sha": sha, "siblings": [{"rfilename": name} for name in files]})

    def _file(self, repo: str, revision: str, name: str) -> None:
        number = self._found(repo, revision)
        if number is None:
            return
        content = self.hub.repos[repo][number].get(name)
        if content is None:
            return self._missing("entry")
        headers = {
            "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
            "X_Repo_Commit": self.hub.sha(repo, number),
        }
        self._send(200, content, **headers)

    def do_POST(self) -> None:
        path = urlsplit(self.path).path.strip("/")
        self.hub.requests.append(f"POST {path}")
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            return self._json({"error": "Invalid username or password."}, 401)
        if path == "api/repos/create":
            given = json.loads(body)
            repo = f"{given.get('organization') or 'me'}/{given['name']}"
            self.hub.repos.setdefault(repo, [{}])
            if given.get("private") or given.get("visibility") == "private":
                self.hub.private.add(repo)
            return self._json({"url": f"{self.hub.url}/{repo}", "name": repo})
        if path == "api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        repo = "/".join(path.split("/")[2:4])
        if "/preupload/" in path:
            names = [file["path"] for file in json.loads(body)["files"]]
            files = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
            return self._json({"files": files})
        if "/commit/" in path:
            return self._commit(repo, body)
        return self._missing("repo")

    def _commit(self, repo: str, body: bytes) -> None:
        files = dict(self.hub.repos[repo][-1])
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "header":
                self.hub.messages.append(entry["value"]["summary"])
            elif entry["key"] == "file":
                files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        self.hub.repos[repo].append(files)
        sha = self.hub.sha(repo, len(self.hub.repos[repo]) - 1)
        self._json({"success": True, "commitOid": sha, "commitUrl": f"{self.hub.url}/{repo}/commit/{sha}"})


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub that answers while the block runs."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
