"""A server on this machine that answers what W&B's library asks about one project's runs, views and reports."""

import contextlib
import http.server
import json
import re
import threading
from collections.abc import Iterator


class Loopback:
    """Keeps saved views and reports by their id; `runs` are the ids of the runs that the project has."""

    def __init__(self, entity: str, project: str, runs: list[str]) -> None:
        self.entity, self.project, self.runs = entity, project, runs
        self.views: dict[str, dict] = {}
        self.asked: list[str] = []
        self.status = 200  # of every answer
        self.url = ""

    def answer(self, query: str, given: dict) -> dict:
        name = found[1] if (found := re.search(r"(?:query|mutation)\s+(\w+)", query)) else ""
        self.asked.append(name)
        if "upsertView" in query:
            return self._upsert(given)
        if "viewer" in query and "project" not in query:
            teams = {"edges": [{"node": {"name": self.entity}}]}
            return {"viewer": {"id": "u", "username": "me", "entity": self.entity, "flags": "{}", "teams": teams}}
        if "allViews" in query:
            kept = [view for view in self.views.values() if view["type"] == given.get("viewType", "runs")]
            kept = [view for view in kept if given.get("viewName") in (None, "", view["name"])]
            edges = [{"node": view, "cursor": view["id"]} for view in kept]
            return self._project({"allViews": {"edges": edges, "pageInfo": {"endCursor": None, "hasNextPage": False}}})
        if "runs(" in query or "runCount" in query:
            wanted = json.loads(given.get("filters") or "{}")
            ids = [run for run in self.runs if f'"{run}"' in json.dumps(wanted) or "name" not in json.dumps(wanted)]
            edges = [{"node": self._run(run), "cursor": run} for run in ids]
            page = {"edges": edges, "pageInfo": {"endCursor": None, "hasNextPage": False}}
            if given.get("project", given.get("name")) != self.project:
                return {"project": None}
            return self._project({"runCount": len(ids), "runs": page, "internalId": "1", "readOnly": False})
        if "models(" in query or "projects" in name.lower():
            node = {"id": "p", "name": self.project, "entityName": self.entity, "createdAt": "2026-01-01T00:00:00Z"}
            node |= {"isBenchmark": False, "access": "PRIVATE", "user": None}
            page = {"edges": [{"node": node, "cursor": "p"}], "pageInfo": {"endCursor": None, "hasNextPage": False}}
            return {"models": page, "entity": {"projects": page}}
        return self._project({"internalId": "1"})

    def _project(self, content: dict) -> dict:
        return {"project": {"id": "p", "name": self.project, "entityName": self.entity, **content}}

    def _run(self, run: str) -> dict:
        return {"id": run, "name": run, "displayName": run, "state": "finished", "config": "{}", "summaryMetrics": "{}",
                "systemMetrics": "{}", "group": None, "jobType": None, "tags": [], "commit": None, "createdAt":
                "2026-01-01T00:00:00Z", "heartbeatAt": None, "description": "", "notes": "", "readOnly": False,
                "sweepName": None, "projectId": "1", "historyLineCount": 1, "historyKeys": None,
                "user": {"name": "me", "username": "me"}}  # fmt: skip

    def _upsert(self, given: dict) -> dict:
        number = given.get("id") or f"v{len(self.views)}"
        before = self.views.get(number)
        project = {"id": "p", "name": self.project, "entityName": self.entity}
        user = {"id": "u", "username": "me", "name": "me", "photoUrl": None, "__typename": "User"}
        view = {
            "id": number,
            "coverUrl": None,
            "createdAt": "2026-01-01T00:00:00Z",
            "updatedAt": "2026-01-01T00:00:00Z",
        }
        view |= {key: given.get(key) for key in ("name", "displayName", "description", "spec", "type")}
        view |= {"user": user, "project": project, "viewCount": 0, "previewUrl": None, "locked": False}
        self.views[number] = view
        return {"upsertView": {"view": view, "inserted": before is None}}


@contextlib.contextmanager
def serving(loopback: Loopback) -> Iterator[Loopback]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            asked = json.loads(body) if body.startswith(b"{") else {"query": ""}  # such as W&B's own telemetry
            content = json.dumps({"data": loopback.answer(asked["query"], asked.get("variables") or {})}).encode()
            self.send_response(loopback.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        loopback.url = f"http://127.0.0.1:{server.server_port}"
        yield loopback
        server.shutdown()
