"""Processes of the tests that take executors away."""

import backburner as bb


@bb.process("holds")
async def holds(ctx: bb.Context, folder: str, attempts: int = 1) -> str:
    """Runs a command that says its process id in `began` and ends when a test makes `release`."""
    work = f"echo $$ >> {folder}/began; while [ ! -e {folder}/release ]; do sleep 0.02; done; echo released"
    retry = bb.Retry(max_attempts=attempts, initial=0.05, backoff=1.0)
    try:
        out = await ctx.run(bb.shell(work, label="work"), key="work", retry=retry, kill_grace=0.2)
    except bb.EffectError as error:
        return error.reason
    return str(out.stdout_tail)
