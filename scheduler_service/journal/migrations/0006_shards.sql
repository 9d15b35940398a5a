-- Ownership: shards are leased by the database clock; a run's owner stamps its epoch before it reads.

-- Takes at most so many shards that nobody owns. A caller whose answer was lost sees it by its next renewal, which names
-- shards that it knows no epoch of: it releases them and begins anew.
CREATE FUNCTION claim_shards_v1(p_scheduler_id text, p_address text, p_version text, p_ttl_s double precision,
                                p_max int)
RETURNS TABLE (shard int, epoch bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = backburner, pg_temp AS $$
#variable_conflict use_column
BEGIN
    INSERT INTO schedulers AS s (scheduler_id, address, version, started_at, seen_at)
        VALUES (p_scheduler_id, p_address, p_version, clock_timestamp(), clock_timestamp())
        ON CONFLICT (scheduler_id) DO UPDATE SET seen_at = clock_timestamp(), address = excluded.address;
    DELETE FROM schedulers s WHERE s.seen_at < clock_timestamp() - interval '1 day';
    DELETE FROM requests q WHERE q.ctid IN (SELECT o.ctid FROM requests o
        WHERE o.created_at < clock_timestamp() - interval '24 h' LIMIT 1000);
    -- One claimer at a time, so that none skips what another one only looks at.
    PERFORM pg_advisory_xact_lock(hashtext('backburner.claim_shards'));
    RETURN QUERY
    WITH free AS MATERIALIZED (
        SELECT f.shard FROM shards f WHERE f.expires_at <= clock_timestamp()
        ORDER BY f.shard LIMIT p_max FOR UPDATE SKIP LOCKED
    )
    UPDATE shards s SET owner = p_scheduler_id, epoch = s.epoch + 1,
            expires_at = clock_timestamp() + make_interval(secs => p_ttl_s)
        FROM free WHERE s.shard = free.shard
        RETURNING s.shard, s.epoch;
END
$$;

CREATE FUNCTION renew_shards_v1(p_scheduler_id text, p_ttl_s double precision) RETURNS SETOF int
LANGUAGE sql SECURITY DEFINER SET search_path = backburner, pg_temp AS $$
    WITH mine AS MATERIALIZED (
        SELECT shard FROM shards WHERE owner = p_scheduler_id AND expires_at > clock_timestamp()
        ORDER BY shard FOR UPDATE
    )
    UPDATE shards s SET expires_at = clock_timestamp() + make_interval(secs => p_ttl_s)
        FROM mine WHERE s.shard = mine.shard RETURNING s.shard
$$;

CREATE FUNCTION release_shards_v1(p_scheduler_id text) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = backburner, pg_temp AS $$
    WITH mine AS MATERIALIZED (SELECT shard FROM shards WHERE owner = p_scheduler_id ORDER BY shard FOR UPDATE)
    UPDATE shards s SET owner = NULL, expires_at = '-infinity' FROM mine WHERE s.shard = mine.shard
$$;

CREATE FUNCTION adopt_runs_v1(p_scheduler_id text, p_shard int, p_epoch bigint, p_after uuid, p_limit int)
RETURNS TABLE (run_id uuid, seq bigint, epoch bigint, iteration bigint, strikes int, state text, process text,
               namespace text, cancel_requested boolean, client_driven boolean)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = backburner, pg_temp AS $$
#variable_conflict use_column
BEGIN
    IF NOT EXISTS (SELECT FROM shards s WHERE s.shard = p_shard AND s.owner = p_scheduler_id AND s.epoch = p_epoch
                   AND s.expires_at > clock_timestamp()) THEN
        RETURN;
    END IF;
    IF p_after IS NULL THEN
        -- Runs that are over and have detached effects: nobody reads them, but their lost attempts are declared by us.
        WITH over AS MATERIALIZED (
            SELECT h.run_id FROM run_heads h WHERE h.shard = p_shard AND NOT h.open AND h.open_effects > 0
            ORDER BY h.run_id FOR UPDATE
        )
        UPDATE run_heads h SET epoch = p_epoch FROM over WHERE h.run_id = over.run_id AND h.epoch < p_epoch;
    END IF;
    RETURN QUERY
    WITH page AS (
        SELECT h.run_id FROM run_heads h
        WHERE h.shard = p_shard AND h.open AND (p_after IS NULL OR h.run_id > p_after)
        ORDER BY h.run_id LIMIT p_limit FOR UPDATE
    ), stamped AS (
        UPDATE run_heads h SET epoch = p_epoch FROM page WHERE h.run_id = page.run_id AND h.epoch <= p_epoch
        RETURNING h.*
    )
    SELECT h.run_id, h.seq, h.epoch, h.iteration, h.strikes, h.state, r.process, r.namespace, h.cancel_requested,
           r.client_driven
        FROM stamped h JOIN runs r ON r.run_id = h.run_id ORDER BY h.run_id;
END
$$;

-- Raised before a replay, cleared by the first iteration that completes; NULL when the run is not the caller's.
CREATE FUNCTION strike_v1(p_run_id uuid, p_epoch bigint) RETURNS int
LANGUAGE sql SECURITY DEFINER SET search_path = backburner, pg_temp AS $$
    UPDATE run_heads SET strikes = strikes + 1 WHERE run_id = p_run_id AND epoch = p_epoch AND open RETURNING strikes
$$;
