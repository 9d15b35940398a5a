"""How each CLI is pointed at the scripted model server: what a user with a gateway would put into an effect."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from tests.support.model_server import ModelServer

Pointed = Callable[[ModelServer, str], dict[str, Any]]


def agent(
    name: str, server: ModelServer, prompt: str = "Run echo hello.", key: str = "key", **more: Any
) -> dict[str, Any]:
    """The work of an agent effect that talks to the server, with this key."""
    work: dict[str, Any] = {"harness": name, "prompt": prompt, **POINTED[name](server, key)}
    for field, value in more.items():
        both = isinstance(value, Mapping) and isinstance(work.get(field), Mapping)
        work[field] = {**work[field], **value} if both else value
    return {"agent": work}


def _claude_code(server: ModelServer, key: str) -> dict[str, Any]:
    env = {"ANTHROPIC_BASE_URL": f"http://127.0.0.1:{server.port}", "ANTHROPIC_API_KEY": key}
    return {"env": env, "options": {"retries": 0}}


def _codex(server: ModelServer, key: str) -> dict[str, Any]:
    provider = {
        "name": "scripted", "base_url": f"http://127.0.0.1:{server.port}/v1", "wire_api": "responses",
        "env_key": "SCRIPTED_KEY", "request_max_retries": 0, "stream_max_retries": 0,
    }  # fmt: skip
    config = {"model_provider": "scripted", "model_providers.scripted": provider}
    return {"env": {"SCRIPTED_KEY": key}, "model": "scripted-model", "options": {"config": config}}


def _gemini_cli(server: ModelServer, key: str) -> dict[str, Any]:
    env = {"GOOGLE_GEMINI_BASE_URL": server.url, "GEMINI_API_KEY": key}
    return {"env": env, "model": "gemini-2.5-flash", "options": {"retries": 0}}


def _qwen_code(server: ModelServer, key: str) -> dict[str, Any]:
    env = {"OPENAI_BASE_URL": f"{server.url}/v1", "OPENAI_API_KEY": key}
    return {"env": env, "model": "scripted-model", "options": {"retries": 0}}


def _opencode(server: ModelServer, key: str) -> dict[str, Any]:
    models = {"scripted-model": {"name": "scripted", "limit": {"context": 128000, "output": 4096}}}
    options = {"baseURL": f"http://127.0.0.1:{server.port}/v1", "apiKey": key}
    provider = {"npm": "@ai-sdk/openai-compatible", "name": "scripted", "options": options, "models": models}
    config = {"enabled_providers": ["scripted"], "provider": {"scripted": provider}}
    return {"model": "scripted/scripted-model", "options": {"config": config}}


def _pi(server: ModelServer, key: str) -> dict[str, Any]:
    cost = {"input": 0, "output": 0, "cacheRead": 0, "cacheWrite": 0}
    model = {
        "id": "scripted-model", "name": "scripted", "reasoning": False, "input": ["text"], "cost": cost,
        "contextWindow": 128000, "maxTokens": 4096,
    }  # fmt: skip
    provider = {
        "baseUrl": f"http://127.0.0.1:{server.port}/v1", "api": "openai-completions", "apiKey": key, "models": [model],
    }  # fmt: skip
    options = {"provider": "scripted", "providers": {"scripted": provider}, "retries": 0}
    return {"model": "scripted-model", "options": options}


def _copilot(server: ModelServer, key: str) -> dict[str, Any]:
    provider = {"base_url": f"http://127.0.0.1:{server.port}/v1", "api_key": key}
    return {"model": "scripted-model", "options": {"provider": provider, "offline": True}}


POINTED: Final[Mapping[str, Pointed]] = {
    "claude-code": _claude_code,
    "codex": _codex,
    "gemini-cli": _gemini_cli,
    "qwen-code": _qwen_code,
    "opencode": _opencode,
    "pi": _pi,
    "copilot": _copilot,
}
