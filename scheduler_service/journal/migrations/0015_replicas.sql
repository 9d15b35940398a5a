-- Replicas: who is alive, which shards each gives back, and runs that one replica creates for another.

ALTER TABLE schedulers ADD COLUMN lease_until timestamptz NOT NULL DEFAULT clock_timestamp();
ALTER TABLE schedulers ADD COLUMN draining boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN schedulers.lease_until IS 'Until when it counts as alive; a replica without shards has a lease too.';
COMMENT ON COLUMN schedulers.draining IS 'It goes away: it takes no shards, and the others share among themselves.';

-- Runs that were created through a replica that does not own their shard; their owner stamps its epoch.
CREATE INDEX run_heads_unowned ON run_heads (shard, run_id) WHERE open AND epoch = 0;

-- Registers the replica and renews its leases, all to the same moment; answers with the shards that are still its own.
CREATE FUNCTION renew_shards_v2(p_scheduler_id text, p_address text, p_version text, p_ttl_s double precision,
                                p_draining boolean)
RETURNS SETOF int
LANGUAGE plpgsql SECURITY DEFINER SET search_path = backburner, pg_temp AS $$
BEGIN
    INSERT INTO schedulers AS s (scheduler_id, address, version, started_at, seen_at, lease_until, draining)
        VALUES (p_scheduler_id, p_address, p_version, clock_timestamp(), clock_timestamp(),
                clock_timestamp() + make_interval(secs => p_ttl_s), p_draining)
        ON CONFLICT (scheduler_id) DO UPDATE SET seen_at = excluded.seen_at, address = excluded.address,
            version = excluded.version, lease_until = excluded.lease_until, draining = excluded.draining;
    RETURN QUERY
    WITH mine AS MATERIALIZED (
        SELECT s.shard FROM shards s WHERE s.owner = p_scheduler_id AND s.expires_at > clock_timestamp()
        ORDER BY s.shard FOR UPDATE
    )
    UPDATE shards s SET expires_at = clock_timestamp() + make_interval(secs => p_ttl_s)
        FROM mine WHERE s.shard = mine.shard RETURNING s.shard;
END
$$;

-- Gives back these shards; with NULL all of them, and then the replica is gone.
CREATE FUNCTION release_shards_v2(p_scheduler_id text, p_shards int[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = backburner, pg_temp AS $$
BEGIN
    IF p_shards IS NULL THEN
        UPDATE schedulers SET lease_until = clock_timestamp(), seen_at = clock_timestamp()
            WHERE scheduler_id = p_scheduler_id;
    END IF;
    WITH mine AS MATERIALIZED (
        SELECT shard FROM shards WHERE owner = p_scheduler_id AND (p_shards IS NULL OR shard = ANY (p_shards))
        ORDER BY shard FOR UPDATE
    )
    UPDATE shards s SET owner = NULL, expires_at = '-infinity' FROM mine WHERE s.shard = mine.shard;
END
$$;

-- Adopts single runs, those of them that are open and lie in shards of the caller. May be repeated: a run that it has
-- adopted before is answered again.
CREATE FUNCTION adopt_created_v1(p_scheduler_id text, p_run_ids uuid[])
RETURNS TABLE (run_id uuid, seq bigint, epoch bigint, iteration bigint, strikes int, state text, process text,
               namespace text, cancel_requested boolean, client_driven boolean)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = backburner, pg_temp AS $$
#variable_conflict use_column
BEGIN
    PERFORM FROM run_heads h WHERE h.run_id = ANY (p_run_ids) AND h.open ORDER BY h.run_id FOR UPDATE;
    RETURN QUERY
    WITH stamped AS (
        UPDATE run_heads h SET epoch = s.epoch FROM shards s
        WHERE h.run_id = ANY (p_run_ids) AND h.open AND s.shard = h.shard AND s.owner = p_scheduler_id
          AND s.expires_at > clock_timestamp() AND h.epoch <= s.epoch
        RETURNING h.*
    )
    SELECT h.run_id, h.seq, h.epoch, h.iteration, h.strikes, h.state, r.process, r.namespace, h.cancel_requested,
           r.client_driven
        FROM stamped h JOIN runs r ON r.run_id = h.run_id ORDER BY h.run_id;
END
$$;

CREATE VIEW v_schedulers AS
    SELECT s.scheduler_id, s.address, s.version, s.started_at, s.seen_at, s.lease_until, s.draining,
           s.lease_until > clock_timestamp() AS live, count(h.shard) AS shards
    FROM schedulers s LEFT JOIN shards h ON h.owner = s.scheduler_id AND h.expires_at > clock_timestamp()
    GROUP BY s.scheduler_id;

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA backburner FROM PUBLIC;
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'backburner_scheduler') THEN
        RAISE NOTICE 'role backburner_scheduler does not exist: no grants (see deploy/roles.sql)';
        RETURN;
    END IF;
    GRANT SELECT ON v_schedulers TO backburner_scheduler;
    GRANT EXECUTE ON FUNCTION renew_shards_v2(text, text, text, double precision, boolean),
        release_shards_v2(text, int[]), adopt_created_v1(text, uuid[]) TO backburner_scheduler;
END
$$;
