import asyncio, time, sys, cProfile, pstats
sys.path.insert(0,"/tmp")
import lag
from tests.integration.engine.test_truth import *
async def test_zz(at: World) -> None:
    t=asyncio.create_task(lag.lag())
    p=cProfile.Profile(); p.enable()
    try:
        await test_two_hundred_runs_at_once_all_end(at)
    finally:
        p.disable(); pstats.Stats(p).sort_stats("tottime").print_stats(12)
        t.cancel()
