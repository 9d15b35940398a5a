"""An MCP server over stdio, as an effect of an agent may name one: `python mcp_server.py FOLDER`.

It has one tool, `weigh`, which tells what a thing weighs. To that of "the world" it never comes, nor does the helper
that it starts for it. FOLDER gets the process ids of both, as `server` and `helper`.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

TOOL = {
    "name": "weigh",
    "description": "Tells what a thing weighs.",
    "inputSchema": {"type": "object", "properties": {"thing": {"type": "string"}}, "required": ["thing"]},
}


def main(folder: Path) -> None:
    """Answers one request a line, until there are no more."""
    (folder / "server").write_text(str(os.getpid()))
    for line in sys.stdin:
        asked = json.loads(line)
        if "id" in asked:
            answer = {"jsonrpc": "2.0", "id": asked["id"], **answered(asked, folder)}
            print(json.dumps(answer), flush=True)


def answered(asked: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The result of a request, or why there is none."""
    given = asked.get("params") or {}
    match asked["method"]:
        case "initialize":
            version = given.get("protocolVersion", "2025-06-18")
            server = {"name": "scales", "version": "1"}
            return {"result": {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": server}}
        case "tools/list":
            return {"result": {"tools": [TOOL]}}
        case "tools/call":
            return {"result": {"content": [{"type": "text", "text": weighed(given["arguments"]["thing"], folder)}]}}
        case "ping":
            return {"result": {}}
    return {"error": {"code": -32601, "message": f"there is no {asked['method']}"}}


def weighed(thing: str, folder: Path) -> str:
    """The weight in words."""
    if thing == "the world":
        helper = subprocess.Popen(["sleep", "1000"], start_new_session=True)
        (folder / "helper").write_text(str(helper.pid))
        time.sleep(1000)
    return f"{thing} weighs {len(thing)} kg"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
