"""A small agent CLI that does what a script says, and keeps accounts: `python agent_program.py`, the prompt on stdin.

It works for so many requests to a model that there is none of, and writes what each costs into a ledger before it says
so, and again afterwards: what it is killed between may count or not, everything else counts once. Its session is a
file, written after each request, so that an attempt that goes on with it has less to do. Standard library only.
"""

import argparse
import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

Json = dict[str, Any]

#: As the executor's own prompts begin: those of an attempt that goes on, and of a turn that mends an answer.
RESUMES, MENDS = "Your work on this task was interrupted", "Your last answer cannot be used"


class Ledger:
    """What one attempt did, a line an entry. Others read it while it is written."""

    def __init__(self, folder: Path) -> None:
        name = f"{os.environ['BACKBURNER_EFFECT_ID']}~{os.environ['BACKBURNER_ATTEMPT_NUMBER']}"
        self._fd = os.open(folder / "ledger" / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, **entry: Any) -> None:
        """Adds an entry."""
        os.write(self._fd, json.dumps({"at": time.time(), **entry}).encode() + b"\n")


class Session:
    """A conversation, as it lies on disk."""

    def __init__(self, home: Path, session_id: str) -> None:
        self._folder = home / "sessions"
        self._folder.mkdir(parents=True, exist_ok=True)
        self.session_id = session_id or str(uuid.uuid4())
        self._path = self._folder / self.session_id
        self.lost = bool(session_id) and not self._path.exists()
        self.said: Json = {"answers": []} if not self._path.exists() else json.loads(self._path.read_text())

    def save(self) -> None:
        """Writes it, whole or not at all."""
        unnamed = self._folder / f"{self.session_id}.{os.getpid()}"
        unnamed.write_text(json.dumps(self.said))
        unnamed.replace(self._path)


def say(**line: Any) -> None:
    """A line for the executor."""
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def main() -> int:
    """Exit code 0: the work is done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="", help="the harness that it is run as")
    parser.add_argument("--session", default="")
    parser.add_argument("--totals", action="store_true", help="tell what is consumed in all, not each time")
    given = parser.parse_args()
    prompt, folder = sys.stdin.read(), Path(os.environ["CHAOS_FOLDER"])
    session, ledger = Session(Path(os.environ["CHAOS_HOME"]), given.session), Ledger(folder)
    if session.lost:
        say(type="done", ok=False, error=f"no session {given.session}")
        return 1
    mends = prompt.startswith(MENDS)
    if not mends and not prompt.startswith(RESUMES):
        session.said |= {"script": json.JSONDecoder().raw_decode(prompt[prompt.index("{") :])[0], "done": 0}
    (folder / "marks" / f"{os.environ['BACKBURNER_RUN_ID']}~agents").touch()  # by which our processes are known
    ledger.write(start=session.session_id, mends=mends, resumed=bool(given.session))
    alone = in_use(folder, ledger)
    try:
        return work(session, ledger, given, mends=mends)
    finally:
        os.close(alone)


def in_use(folder: Path, ledger: Ledger) -> int:
    """Nobody else works in this directory as long as the descriptor is open; else it is written down."""
    place = Path().stat()
    fd = os.open(folder / "in_use" / f"{place.st_dev}-{place.st_ino}", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        ledger.write(shared=str(Path.cwd()), with_=os.read(fd, 200).decode())
    else:
        os.ftruncate(fd, 0)
        os.write(fd, f"{os.environ['BACKBURNER_EFFECT_ID']} {os.environ['BACKBURNER_ATTEMPT_NUMBER']}".encode())
    return fd


def work(session: Session, ledger: Ledger, given: argparse.Namespace, *, mends: bool) -> int:
    """Plays the script from where the session is."""
    script: Json = session.said["script"]
    if script.get("stubborn"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    failure = fails(script, given.name)
    if failure and not failure.get("late"):
        say(type="done", ok=False, error=failure["message"])
        return 1
    say(type="session", session=session.session_id)
    session.save()
    consume(session, ledger, totals=given.totals, requests=1 if mends else script["requests"] - session.said["done"])
    if failure:
        say(type="done", ok=False, error=failure["message"])
        return 1
    answer(session, ledger, misfit=bool(script.get("misfit")) and not mends)
    return int(script.get("exit", 0))


def fails(script: Json, name: str) -> Json | None:
    """How this attempt is to fail, if it is: the first ones of the effect, or all of one harness."""
    failure: Json | None = script.get("fail")
    if failure is None or failure.get("as", name) != name:
        return None
    number = int(os.environ["BACKBURNER_ATTEMPT_NUMBER"])
    return failure if "as" in failure or number <= failure.get("attempts", 1) else None


def consume(session: Session, ledger: Ledger, *, totals: bool, requests: int) -> None:
    """Asks so often, uses a tool each time, and says what it cost."""
    script, so_far = session.said["script"], [0, 0]
    for number in range(requests):
        time.sleep(script.get("pause", 0))
        say(type="turn", turn=number + 1)
        say(type="tool", tool={"name": "write", "input": "notes.txt"})
        if script.get("writes"):
            with Path("notes.txt").open("a") as notes:
                notes.write(f"attempt {os.environ['BACKBURNER_ATTEMPT_NUMBER']}, request {number}\n")
        if script.get("leaves") and number == 0:
            subprocess.Popen(
                ["sleep", "600"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
            )
        tokens = [random.randint(500, 1500), random.randint(1, 100)]
        so_far = [a + b for a, b in zip(so_far, tokens, strict=True)]
        ledger.write(begun=tokens)
        told = so_far if totals else tokens
        say(type="usage", usage={"in": told[0], "out": told[1]})
        ledger.write(done=tokens)
        session.said["done"] += 1
        session.save()


def answer(session: Session, ledger: Ledger, *, misfit: bool) -> None:
    """The last words."""
    word = str(uuid.uuid4())
    turn = len(session.said["answers"]) + 1
    value = {"word": word, "turn": turn}
    text = (
        f"I would rather not: {word}" if misfit else json.dumps(value) if "misfit" in session.said["script"] else word
    )
    session.said["answers"].append(word)
    session.save()
    say(type="text", text=text)
    ledger.write(answer=value if "misfit" in session.said["script"] else text, misfit=misfit)
    say(type="done", ok=True)


if __name__ == "__main__":
    sys.exit(main())
