-- Attempts that an executor does not have although they were dispatched to it. The holder of its session sees that; only
-- the owner of the run may declare an attempt lost. So the holder leaves the owner a note, here.

CREATE TABLE missing_attempts (
    effect_id uuid NOT NULL,
    attempt int NOT NULL,
    run_id uuid NOT NULL,
    item jsonb NOT NULL,
    reported_at timestamptz NOT NULL,
    PRIMARY KEY (effect_id, attempt)
);
COMMENT ON TABLE missing_attempts IS 'Notes from the holders of sessions to the owners of runs: attempts to be declared lost.';

-- An item is one of attempts_lost_v1, without epoch. The holder repeats it for as long as the attempt is open.
CREATE FUNCTION report_missing_v1(items jsonb) RETURNS TABLE (ord int, outcome text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = backburner, pg_temp AS $$
BEGIN
    INSERT INTO missing_attempts AS m (effect_id, attempt, run_id, item, reported_at)
        SELECT DISTINCT ON (1, 2) (t.item->>'effect_id')::uuid, (t.item->>'attempt')::int, (t.item->>'run_id')::uuid,
               t.item, clock_timestamp()
        FROM jsonb_array_elements(items) WITH ORDINALITY t(item, n) ORDER BY 1, 2, t.n DESC
        ON CONFLICT ON CONSTRAINT missing_attempts_pkey
            DO UPDATE SET item = excluded.item, reported_at = excluded.reported_at;
    RETURN QUERY SELECT (t.n - 1)::int, 'ok' FROM jsonb_array_elements(items) WITH ORDINALITY t(item, n);
END
$$;

-- Takes the notes about runs of these shards away. One that is lost on the way is written again by the holder.
CREATE FUNCTION take_missing_v1(p_shards int[]) RETURNS SETOF jsonb
LANGUAGE sql SECURITY DEFINER SET search_path = backburner, pg_temp AS $$
    WITH mine AS MATERIALIZED (
        SELECT effect_id, attempt FROM missing_attempts WHERE shard_of(run_id) = ANY (p_shards)
        ORDER BY effect_id, attempt LIMIT 500 FOR UPDATE
    )
    DELETE FROM missing_attempts m USING mine WHERE m.effect_id = mine.effect_id AND m.attempt = mine.attempt
        RETURNING m.item
$$;

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA backburner FROM PUBLIC;
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'backburner_scheduler') THEN
        RAISE NOTICE 'role backburner_scheduler does not exist: no grants (see deploy/roles.sql)';
        RETURN;
    END IF;
    GRANT SELECT ON missing_attempts TO backburner_scheduler;
    GRANT EXECUTE ON FUNCTION report_missing_v1(jsonb), take_missing_v1(int[]) TO backburner_scheduler;
END
$$;
