"""The real agent CLIs that tests run: exact releases by npm, in `.venv/harnesses`.

`python -m tests.support.harnesses` installs the quick ones, of `make test`; `--all` installs all seven. Where there is
no npm, or nothing to fetch them from, it says so, and the tests that need them are skipped.

AGENT_RELEASES=oldest or newest stands for other releases: the ends of the range that each adapter is known to work
with. What of them is shown: `make test-releases`.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
RELEASES: Final = ROOT / "tests" / "harnesses" / "releases"
INSTALLED: Final = ROOT / ".venv" / "harnesses"
QUICK: Final = "quick"
OTHERS: Final = "others"
#: The ends of the ranges: folders with the same names.
ENDS: Final = ("oldest", "newest")
CHOSEN: Final = os.environ.get("AGENT_RELEASES", "")
MOST_SECONDS: Final = 600
"""For one group. A single fetch has a minute, and two tries more."""
BOUNDS: Final = (
    "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline", "--loglevel=error", "--fetch-timeout=60000",
    "--fetch-retries=2",
)  # fmt: skip


@dataclass(frozen=True)
class Cli:
    """One CLI. `program` is a pattern below node_modules: npm fetches the one native package of this platform."""

    name: str
    package: str
    program: str
    group: str = OTHERS

    @property
    def by_node(self) -> bool:
        """Whether it is JavaScript that node runs."""
        return self.program.startswith(".bin/")

    @property
    def modules(self) -> Path:
        """Where it is installed."""
        return INSTALLED / self.group / "node_modules"

    @property
    def version(self) -> str:
        """The release that is to be installed; empty when the chosen releases have none of it."""
        manifest = json.loads((RELEASES / self.group / "package.json").read_text())
        return str(manifest["dependencies"].get(self.package, ""))

    @property
    def executable(self) -> Path | None:
        """What runs it, not by a wrapper where there is a native binary; None when it is not installed.

        Of several that fit, the one with the shortest name: the others are for old processors.
        """
        found = sorted(self.modules.glob(self.program), key=lambda path: (len(str(path)), path))
        return found[0] if found else None

    def why_not(self) -> str:
        """Why it cannot be run here; empty when it can."""
        if not self.version:
            return f"the {self.group} release of {self.name} that is known is the one of `make test-harnesses`"
        command = {QUICK: "python -m tests.support.harnesses", OTHERS: "make harnesses"}.get(
            self.group, "make test-releases"
        )
        if self.executable is None:
            return f"{self.name} {self.version} is not installed: {command}"
        if self.by_node and shutil.which("node") is None:
            return f"{self.name} needs node, which is not on PATH"
        found = json.loads((self.modules / self.package / "package.json").read_text())["version"]
        if found != self.version:
            return f"{self.name} {found} is installed, the tests are for {self.version}: {command}"
        return ""


CLIS: Final = {
    cli.name: replace(cli, group=CHOSEN or cli.group)
    for cli in (
        Cli("claude-code", "@anthropic-ai/claude-code", "@anthropic-ai/claude-code-*/claude", QUICK),
        Cli("codex", "@openai/codex", "@openai/codex-*/vendor/*/bin/codex", QUICK),
        Cli("gemini-cli", "@google/gemini-cli", ".bin/gemini"),
        Cli("opencode", "opencode-ai", "opencode-*/bin/opencode"),
        Cli("pi", "@mariozechner/pi-coding-agent", ".bin/pi"),
        Cli("qwen-code", "@qwen-code/qwen-code", ".bin/qwen"),
        Cli("copilot", "@github/copilot", "@github/copilot-*/copilot"),
    )
}


def install(group: str) -> str:
    """Install a group, unless it is there. The reason when that cannot be done."""
    stamp = INSTALLED / group / ".installed"
    if stamp.exists() and stamp.read_text() == _fingerprint(group):
        return ""
    if shutil.which("npm") is None or shutil.which("node") is None:
        return "npm and node are not on PATH"
    clis = [cli for cli in CLIS.values() if cli.group == group and cli.version]
    print(f"agent CLIs: fetching {', '.join(f'{cli.name} {cli.version}' for cli in clis)} (once)", flush=True)
    began = time.monotonic()
    reason = _fetch(group) or _missing(clis)
    if not reason:
        stamp.write_text(_fingerprint(group))
        print(f"agent CLIs: installed in {time.monotonic() - began:.0f} s", flush=True)
    return reason


def _fetch(group: str) -> str:
    """By the lock file where there is one. One of all seven cannot be: not each platform has all that they name."""
    folder = INSTALLED / group
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(RELEASES / group, folder)
    command = ["npm", "ci" if (folder / "package-lock.json").exists() else "install", *BOUNDS]
    try:
        done = subprocess.run(
            command, cwd=folder, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=MOST_SECONDS,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"{' '.join(command)} did not end within {MOST_SECONDS} s"
    return f"{' '.join(command)} failed with {done.returncode}: {done.stderr[:2000]}" if done.returncode else ""


def _missing(clis: list[Cli]) -> str:
    missing = [cli.name for cli in clis if cli.executable is None]
    return f"{', '.join(missing)}: no release for this platform" if missing else ""


def _fingerprint(group: str) -> str:
    files = sorted((RELEASES / group).iterdir())
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def main() -> int:
    """1: all seven were asked for, and are not there. The quick ones are for tests that can be skipped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true", help="all seven, about 1.6 GB; else the two of make test")
    if CHOSEN not in ("", *ENDS):
        parser.error(f"AGENT_RELEASES={CHOSEN}: there are {' and '.join(ENDS)}")
    every = parser.parse_args().all
    groups = [CHOSEN] if CHOSEN else [QUICK, OTHERS] if every else [QUICK]
    reasons = [reason for group in groups if (reason := install(group))]
    for reason in reasons:
        print(f"agent CLIs: {reason}; their tests are skipped", file=sys.stderr)
    return 1 if reasons and every else 0


if __name__ == "__main__":
    sys.exit(main())
