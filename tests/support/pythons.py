"""Other Python interpreters of this machine, and what replay needs to run on them.

`python -m tests.support.pythons` installs that for each one found: the one compiled package that replay imports. The
rest of replay is ours and pure, so an interpreter needs no environment of its own.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SUPPORTED = ("3.11", "3.12", "3.13")
OURS = f"{sys.version_info[0]}.{sys.version_info[1]}"
OTHERS = tuple(version for version in SUPPORTED if version != OURS)
NEEDED = ("orjson",)


def interpreter(version: str) -> Path | None:
    """An interpreter of this version that runs: on PATH, or of pyenv."""
    on_path = shutil.which(f"python{version}")
    of_pyenv = sorted(Path("~/.pyenv/versions").expanduser().glob(f"{version}.*/bin/python"), reverse=True)
    for candidate in [*([Path(on_path)] if on_path else []), *of_pyenv]:
        if _says(candidate) == version:
            return candidate
    return None


def _says(candidate: Path) -> str:
    say = "import sys; print('%d.%d' % sys.version_info[:2])"
    done = subprocess.run([candidate, "-c", say], capture_output=True, text=True, check=False)  # a shim may refuse
    return done.stdout.strip()


def packages(version: str) -> Path:
    """Where what replay needs is installed for an interpreter of this version."""
    return ROOT / ".venv" / "pythons" / version


def environment(version: str, seed: int | str = 0) -> dict[str, str]:
    """The environment in which such an interpreter runs our code, and nothing else."""
    paths = [ROOT, ROOT / "proto" / "gen", *([] if version == OURS else [packages(version)])]
    return {"PYTHONPATH": os.pathsep.join(map(str, paths)), "PYTHONHASHSEED": str(seed), "PATH": ""}


def why_not(version: str) -> str:
    """Why there is nothing to run on this version; empty when there is."""
    if interpreter(version) is None:
        return f"there is no Python {version} here"
    missing = [name for name in NEEDED if not (packages(version) / name).is_dir()]
    return f"{', '.join(missing)} is not installed for Python {version}: make pythons" if missing else ""


def install(version: str) -> bool:
    """Install what replay needs for an interpreter of this version."""
    command = [
        sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--upgrade", "--no-deps",
        "--only-binary=:all:", "--python-version", version, "--target", str(packages(version)), *NEEDED,
    ]  # fmt: skip
    return subprocess.run(command, check=False).returncode == 0


def main() -> None:
    for version in OTHERS:
        found = interpreter(version)
        if found is None:
            print(f"Python {version}: not found, its tests are skipped")
        elif not why_not(version) or install(version):
            print(f"Python {version}: {found}")
        else:
            print(f"Python {version}: {found}, but its packages could not be installed; its tests are skipped")


if __name__ == "__main__":
    main()
