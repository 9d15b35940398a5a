-- A renewal answers with the epochs too: the answer to a claim may be lost, and the claim is then heard of here.
-- Without them a shard that ran out and was claimed anew by its own replica kept its old epoch in that one's memory: runs
-- created in it carried the new one, and nobody began them.
--
-- It takes how the replica does along, in the same commit: what only it can measure, for whoever asks what is wrong.
ALTER TABLE schedulers ADD COLUMN vitals jsonb NOT NULL DEFAULT '{}';
COMMENT ON COLUMN schedulers.vitals IS 'How it did in the minute before seen_at: commits, waits for connections, lag.';

CREATE FUNCTION renew_shards_v3(p_scheduler_id text, p_address text, p_version text, p_ttl_s double precision,
                                p_draining boolean, p_vitals jsonb)
RETURNS TABLE (shard int, epoch bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = backburner, pg_temp AS $$
#variable_conflict use_column
BEGIN
    INSERT INTO schedulers AS s (scheduler_id, address, version, started_at, seen_at, lease_until, draining, vitals)
        VALUES (p_scheduler_id, p_address, p_version, clock_timestamp(), clock_timestamp(),
                clock_timestamp() + make_interval(secs => p_ttl_s), p_draining, p_vitals)
        ON CONFLICT (scheduler_id) DO UPDATE SET seen_at = excluded.seen_at, address = excluded.address,
            version = excluded.version, lease_until = excluded.lease_until, draining = excluded.draining,
            vitals = excluded.vitals;
    RETURN QUERY
    WITH mine AS MATERIALIZED (
        SELECT s.shard FROM shards s WHERE s.owner = p_scheduler_id AND s.expires_at > clock_timestamp()
        ORDER BY s.shard FOR UPDATE
    )
    UPDATE shards s SET expires_at = clock_timestamp() + make_interval(secs => p_ttl_s)
        FROM mine WHERE s.shard = mine.shard RETURNING s.shard, s.epoch;
END
$$;

-- The releases before this one call it.
CREATE OR REPLACE FUNCTION renew_shards_v2(p_scheduler_id text, p_address text, p_version text,
                                           p_ttl_s double precision, p_draining boolean)
RETURNS SETOF int
LANGUAGE sql SECURITY DEFINER SET search_path = backburner, pg_temp AS $$
    SELECT shard FROM renew_shards_v3(p_scheduler_id, p_address, p_version, p_ttl_s, p_draining, '{}')
$$;

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA backburner FROM PUBLIC;
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'backburner_scheduler') THEN
        RAISE NOTICE 'role backburner_scheduler does not exist: no grants (see deploy/roles.sql)';
        RETURN;
    END IF;
    GRANT EXECUTE ON FUNCTION renew_shards_v3(text, text, text, double precision, boolean, jsonb)
        TO backburner_scheduler;
END
$$;
