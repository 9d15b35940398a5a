-- Rights. Nobody has any by default; the schedulers' role reads everything and calls its functions; the executors' role
-- calls its few functions and sees no table.

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA backburner FROM PUBLIC;
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'backburner_scheduler')
       OR NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'backburner_executor') THEN
        RAISE NOTICE 'roles backburner_scheduler and backburner_executor do not exist: no grants (see deploy/roles.sql)';
        RETURN;
    END IF;
    GRANT USAGE ON SCHEMA backburner TO backburner_scheduler, backburner_executor;
    GRANT SELECT ON ALL TABLES IN SCHEMA backburner TO backburner_scheduler;
    GRANT EXECUTE ON FUNCTION contract_v1() TO backburner_scheduler, backburner_executor;
    GRANT EXECUTE ON FUNCTION shard_of(uuid), create_runs_v1(jsonb), append_v1(jsonb), request_cancels_v1(jsonb),
        resolve_external_v1(jsonb), claim_v1(jsonb), executor_hello_v1(jsonb), executors_seen_v1(jsonb),
        executor_gone_v1(text, int), readopt_v1(jsonb), attempts_lost_v1(jsonb),
        claim_shards_v1(text, text, text, double precision, int), renew_shards_v1(text, double precision),
        release_shards_v1(text), adopt_runs_v1(text, int, bigint, uuid, int), strike_v1(uuid, bigint)
        TO backburner_scheduler;
    GRANT EXECUTE ON FUNCTION attempts_started_v1(jsonb), attempts_progress_v1(jsonb), attempts_settle_v1(jsonb),
        output_append_v1(uuid[], uuid[], int[], bytea[], smallint[], bigint[], bytea[])
        TO backburner_executor;
END
$$;
