"""Agents: effects that a coding-agent CLI does."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, TypedDict, TypeVar, Unpack, overload

from scheduler_service.authoring import results
from scheduler_service.authoring.effects import Effect, decoder_of, set_fields
from scheduler_service.authoring.errors import OptionError
from scheduler_service.authoring.results import AgentResult
from scheduler_service.authoring.schema import schema_of
from scheduler_service.authoring.schema_shape import schema_problems
from scheduler_service.authoring.templates import template_problems
from scheduler_service.authoring.values import encode
from scheduler_service.authoring.work import Workspace, refuse

T = TypeVar("T")

_PERMISSIONS: Final = {"full": "", "edit": "AGENT_PERMISSIONS_EDIT", "read_only": "AGENT_PERMISSIONS_READ_ONLY"}


class AgentOptions(TypedDict, total=False):
    """What may be asked of an agent beside its prompt."""

    #: Directory on the executor to work in.
    cwd: str | os.PathLike[str]
    #: Instead of it: `bb.worktree(repo)`, `bb.copy_of(directory)`, `bb.exclusive(directory)`.
    workspace: Workspace | None
    #: Model as the harness knows it; by default the harness's own choice.
    model: str
    #: Said on top of the harness's own system prompt.
    system_prompt: str
    #: Most turns; MAX_TURNS fails the effect.
    max_turns: int
    #: What it may do unasked: everything (`full`, the default), read and edit files (`edit`), or `read_only`.
    permissions: Literal["full", "edit", "read_only"]
    #: MCP servers by name, each with `command`, `args`, `env`, or with `url` and `headers`.
    mcp_servers: Mapping[str, Any]
    #: Variables for the CLI.
    env: Mapping[str, str] | None
    #: JSON schema of the answer; by default that of `output`.
    output_schema: Mapping[str, Any] | None
    #: Options that the harness's adapter documents.
    options: Mapping[str, Any] | None
    #: Makes templates of prompt and system prompt: the values of `{{name}}` and `{{name.field}}`; `{{{{` is `{{`.
    inputs: Mapping[str, Any] | None
    #: Files on the executor that belong to the prompt, by name if given: small texts stand in it, others are named.
    attach: Sequence[str | os.PathLike[str]] | Mapping[str, str | os.PathLike[str]]
    #: Variables for the CLI with the values of the executor's secrets: `{"ANTHROPIC_API_KEY": "anthropic"}`.
    secrets: Mapping[str, str] | None
    #: Name shown to people; by default the harness.
    label: str


@overload
def agent(harness: str, *, prompt: str, output: type[T], **options: Unpack[AgentOptions]) -> Effect[T]: ...
@overload
def agent(harness: str, *, prompt: str, **options: Unpack[AgentOptions]) -> Effect[AgentResult]: ...
def agent(harness: str, *, prompt: str, output: Any = None, **options: Any) -> Effect[Any]:
    """A coding-agent CLI, headless. With `output` the answer is read as that type, else it is an AgentResult.

    Options: see AgentOptions. `output_schema` is the JSON schema asked of the harness, by default that of `output`; an
    answer that does not fit it fails the attempt with INVALID_RESULT. A schema that is none raises OptionError here, as
    does an option that there is not. The session to go on with is on the AgentResult, on the handle, and on the error
    of an effect that did not succeed: give it, or the handle, as `continue_from=`.

    It works in `cwd`, a directory on the executor, or in a `workspace`; by default in a directory of the effect.
    """
    if unknown := set(options) - set(AgentOptions.__annotations__):
        raise OptionError(
            f"agent: unknown options {sorted(unknown)}; there are: {', '.join(AgentOptions.__annotations__)}"
        )
    if not harness or not prompt:
        raise OptionError("agent: harness and prompt are required")
    schema = options.get("output_schema") or (schema_of(output) if output is not None else None)
    stored = encode({"harness": harness, "prompt": prompt} | _work(options, schema), "agent")
    if problems := schema_problems(stored.get("output_schema", {}), "output_schema"):
        raise OptionError("agent: " + "; ".join(f"{path} {problem}" for path, problem in problems))
    decoder = results.agent_result if output is None else decoder_of(output)
    made = Effect("agent", options.get("label") or harness, stored, decoder)
    if "inputs" in stored:
        for field in ("prompt", "system_prompt"):
            for problem in template_problems(stored.get(field, ""), stored["inputs"]):
                raise OptionError(f"agent: {field}: {problem}")
    return made


def _work(options: Mapping[str, Any], schema: Mapping[str, Any] | None) -> dict[str, Any]:
    workspace, cwd = options.get("workspace"), os.fspath(options.get("cwd", ""))
    if workspace is not None and not isinstance(workspace, Workspace):
        refuse("agent: workspace", "bb.worktree(...), bb.copy_of(...) or bb.exclusive(...)", workspace)
    if workspace is not None and cwd:
        raise OptionError("agent: give either cwd or workspace")
    permissions = options.get("permissions", "full")
    if permissions not in _PERMISSIONS:
        refuse("agent: permissions", " or ".join(_PERMISSIONS), permissions)
    taken = ("model", "system_prompt", "max_turns", "mcp_servers", "env", "options", "secrets")
    plain = {name: options.get(name) for name in taken}
    more = {"cwd": cwd, "workspace": workspace and workspace.work(), "permissions": _PERMISSIONS[permissions]}
    inputs = {} if options.get("inputs") is None else {"inputs": options["inputs"]}
    return (
        set_fields(**plain, **more, output_schema=schema, attachments=_attachments(options.get("attach", ()))) | inputs
    )


def _attachments(attach: Any) -> list[dict[str, str]]:
    if isinstance(attach, Mapping):
        return [{"name": name, "path": os.fspath(path)} for name, path in attach.items()]
    if isinstance(attach, str):  # else it would be one file a letter
        refuse("agent: attach", "a list of paths, or a dict of paths by name", attach)
    return [{"path": os.fspath(path)} for path in attach]
