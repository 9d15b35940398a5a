-- The two roles of Backburner, and their rights. Run by an administrator, before or after `backburner migrate`, as often
-- as you like: `psql "$DATABASE_URL" --file deploy/roles.sql`. `backburner migrate --roles` does the same.
--
-- The roles are groups without login. Each service logs in as a member of its group:
--
--   CREATE ROLE backburner_scheduler_1 LOGIN PASSWORD '...' IN ROLE backburner_scheduler;
--   CREATE ROLE backburner_executor_1 LOGIN PASSWORD '...' IN ROLE backburner_executor;
--
-- Schedulers read every table and write through their functions. Executors see no table: they call the functions that
-- record what became of their own attempts, each of which asks for the attempt's secret token.

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'backburner_scheduler') THEN
        CREATE ROLE backburner_scheduler NOLOGIN;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'backburner_executor') THEN
        CREATE ROLE backburner_executor NOLOGIN;
    END IF;
EXCEPTION WHEN duplicate_object THEN
    NULL; -- somebody else made them just now
END
$$;

DO $$
BEGIN
    IF to_regclass('backburner.journal') IS NULL THEN
        RAISE NOTICE 'the schema is not there yet: `backburner migrate` grants the rights when it makes it';
        RETURN;
    END IF;
    SET LOCAL search_path = backburner, pg_catalog;
    REVOKE ALL ON ALL FUNCTIONS IN SCHEMA backburner FROM PUBLIC;
    -- From here to the end as in the migration that grants.
    GRANT USAGE ON SCHEMA backburner TO backburner_scheduler, backburner_executor;
    GRANT SELECT ON ALL TABLES IN SCHEMA backburner TO backburner_scheduler;
    GRANT EXECUTE ON FUNCTION contract_v1() TO backburner_scheduler, backburner_executor;
    GRANT EXECUTE ON FUNCTION server_life_v1() TO backburner_scheduler, backburner_executor;
    GRANT EXECUTE ON FUNCTION shard_of(uuid), create_runs_v1(jsonb), append_v1(jsonb), request_cancels_v1(jsonb),
        resolve_external_v1(jsonb), claim_v1(jsonb), executor_hello_v1(jsonb), executors_seen_v1(jsonb),
        executor_gone_v1(text, int), readopt_v1(jsonb), attempts_lost_v1(jsonb),
        claim_shards_v1(text, text, text, double precision, int), renew_shards_v1(text, double precision),
        release_shards_v1(text), adopt_runs_v1(text, int, bigint, uuid, int), strike_v1(uuid, bigint)
        TO backburner_scheduler;
    GRANT EXECUTE ON FUNCTION halt_runs_v1(jsonb), resume_runs_v1(jsonb), signal_runs_v1(jsonb)
        TO backburner_scheduler;
    GRANT EXECUTE ON FUNCTION open_clients_v1(jsonb), client_requests_v1(jsonb), finish_runs_v1(jsonb),
        clients_seen_v1(uuid[]), halt_idle_v1(jsonb) TO backburner_scheduler;
    GRANT EXECUTE ON FUNCTION prune_runs_v1(jsonb), reset_breakers_v1(jsonb), executor_found_v1(jsonb) TO backburner_scheduler;
    GRANT EXECUTE ON FUNCTION audit_v1(jsonb), set_holds_v1(jsonb), drain_executors_v1(jsonb), expire_executors_v1(jsonb),
        order_settlements_v1(jsonb), settle_by_hand_v1(jsonb) TO backburner_scheduler;
    GRANT EXECUTE ON FUNCTION add_usage(jsonb, jsonb), spent_effects_v1(int[]), budget_awaited_v1(uuid),
        set_budgets_v1(jsonb) TO backburner_scheduler;
    GRANT EXECUTE ON FUNCTION renew_shards_v2(text, text, text, double precision, boolean),
        renew_shards_v3(text, text, text, double precision, boolean, jsonb),
        release_shards_v2(text, int[]), adopt_created_v1(text, uuid[]), report_missing_v1(jsonb),
        take_missing_v1(int[]) TO backburner_scheduler;
    GRANT EXECUTE ON FUNCTION attempts_started_v1(jsonb), attempts_progress_v1(jsonb), attempts_settle_v1(jsonb),
        output_append_v1(uuid[], uuid[], int[], bytea[], smallint[], bigint[], bytea[])
        TO backburner_executor;
END
$$;
