-- Retention: whole runs that ended long ago are removed, each in one commit, and leave a tombstone.
--
-- The one way to delete rows of the journal, for anybody: the triggers let a DELETE through only when its transaction has
-- made the tombstone of every run that it touches, and nothing of these runs is left behind.

CREATE TABLE pruned_runs (
    run_id uuid PRIMARY KEY,
    namespace text NOT NULL,
    key text,
    process text NOT NULL,
    state text NOT NULL,
    ended_at timestamptz NOT NULL,
    pruned_at timestamptz NOT NULL
);
COMMENT ON TABLE pruned_runs IS 'Tombstones: their keys are not used again, so that a client run again does not start over.';
COMMENT ON COLUMN pruned_runs.pruned_at IS 'When the transaction began that removed the run.';
CREATE UNIQUE INDEX pruned_runs_key ON pruned_runs (namespace, key) WHERE key IS NOT NULL AND state <> 'CONTINUED';
CREATE INDEX pruned_runs_age ON pruned_runs (pruned_at);
CREATE INDEX runs_ended ON runs (ended_at, run_id) WHERE ended_at IS NOT NULL;
CREATE INDEX runs_reusing ON runs (reuse_from) WHERE reuse_from IS NOT NULL;

CREATE FUNCTION journal_deletes_whole_runs() RETURNS trigger LANGUAGE plpgsql
SET search_path = backburner, pg_temp AS $$
BEGIN
    IF EXISTS (SELECT FROM gone g WHERE NOT EXISTS (
                   SELECT FROM pruned_runs p WHERE p.run_id = g.run_id AND p.xmin = pg_current_xact_id()::xid))
       OR EXISTS (SELECT FROM journal j WHERE j.run_id IN (SELECT g.run_id FROM gone g)) THEN
        RAISE EXCEPTION 'the journal is append-only: only whole runs are removed, by retention' USING ERRCODE = 'BB001';
    END IF;
    RETURN NULL;
END
$$;
CREATE FUNCTION journal_is_pruned_only() RETURNS trigger LANGUAGE plpgsql
SET search_path = backburner, pg_temp AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM pruned_runs p WHERE p.pruned_at = transaction_timestamp()
                   AND p.xmin = pg_current_xact_id()::xid) THEN
        RAISE EXCEPTION 'the journal is append-only: DELETE is refused'
            USING ERRCODE = 'BB001', HINT = 'whole runs are removed by retention';
    END IF;
    RETURN NULL;
END
$$;
DROP TRIGGER journal_is_append_only ON journal;
CREATE TRIGGER journal_is_append_only BEFORE UPDATE OR TRUNCATE ON journal
    FOR EACH STATEMENT EXECUTE FUNCTION journal_is_append_only();
CREATE TRIGGER journal_is_pruned_only BEFORE DELETE ON journal
    FOR EACH STATEMENT EXECUTE FUNCTION journal_is_pruned_only();
CREATE TRIGGER journal_deletes_whole_runs AFTER DELETE ON journal REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION journal_deletes_whole_runs();

-- Whether nothing needs an ended run any more: no effect of it is open, its parent has ended, and no open run reuses it.
-- Asked again under the lock of the run's head.
CREATE FUNCTION is_over(h run_heads) RETURNS boolean LANGUAGE sql STABLE SET search_path = backburner, pg_temp AS $$
    SELECT NOT h.open AND h.open_effects = 0
       AND NOT EXISTS (SELECT FROM runs r JOIN run_heads p ON p.run_id = r.parent_run_id
                       WHERE r.run_id = h.run_id AND p.open)
       AND NOT EXISTS (SELECT FROM runs n JOIN run_heads o ON o.run_id = n.run_id
                       WHERE n.reuse_from = h.run_id AND o.open)
$$;

-- One step: removes the runs that ended first, at most so many and so many rows. `busy`: another one prunes just now.
CREATE FUNCTION prune_runs_v1(p jsonb) RETURNS TABLE (outcome text, runs int, journal_rows bigint, more boolean)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = backburner, pg_temp AS $$
#variable_conflict use_column
DECLARE
    before timestamptz := clock_timestamp() - make_interval(secs => (p->>'older_than_s')::double precision);
    states text[] := ARRAY(SELECT jsonb_array_elements_text(p->'states'));
    dry boolean := (p->>'dry_run')::boolean;
    candidate record; h run_heads; ids uuid[] := '{}'; effect_ids uuid[]; total bigint := 0;
BEGIN
    IF NOT dry AND NOT pg_try_advisory_xact_lock(hashtext('backburner.prune')) THEN
        RETURN QUERY SELECT 'busy', 0, 0::bigint, true;
        RETURN;
    END IF;
    IF dry THEN
        RETURN QUERY SELECT 'ok', count(*)::int, coalesce(sum(u.seq), 0)::bigint, false
            FROM runs r JOIN run_heads u ON u.run_id = r.run_id
            WHERE r.ended_at < before AND is_over(u) AND (p->>'namespace' IS NULL OR r.namespace = p->>'namespace')
              AND (cardinality(states) = 0 OR r.state = ANY (states));
        RETURN;
    END IF;
    more := false;
    FOR candidate IN
        SELECT r.run_id FROM runs r JOIN run_heads u ON u.run_id = r.run_id
        WHERE r.ended_at < before AND is_over(u) AND (p->>'namespace' IS NULL OR r.namespace = p->>'namespace')
          AND (cardinality(states) = 0 OR r.state = ANY (states))
        ORDER BY r.ended_at, r.run_id
    LOOP
        IF cardinality(ids) >= (p->>'runs_max')::int OR total >= (p->>'rows_max')::bigint THEN
            more := true;
            EXIT;
        END IF;
        SELECT * INTO h FROM run_heads u WHERE u.run_id = candidate.run_id FOR UPDATE SKIP LOCKED;
        IF FOUND AND is_over(h) THEN
            ids := ids || h.run_id;
            total := total + h.seq;
        END IF;
    END LOOP;
    IF cardinality(ids) = 0 THEN
        RETURN QUERY SELECT 'ok', 0, 0::bigint, false;
        RETURN;
    END IF;
    INSERT INTO pruned_runs (run_id, namespace, key, process, state, ended_at, pruned_at)
        SELECT r.run_id, r.namespace, r.key, r.process, r.state, r.ended_at, transaction_timestamp()
        FROM runs r WHERE r.run_id = ANY (ids);
    effect_ids := ARRAY(SELECT e.effect_id FROM effects e WHERE e.run_id = ANY (ids) ORDER BY e.effect_id);
    DELETE FROM effects e WHERE e.run_id = ANY (ids);
    DELETE FROM dispatch_queue q WHERE q.effect_id = ANY (effect_ids);
    DELETE FROM settle_orders o WHERE o.effect_id = ANY (effect_ids);
    DELETE FROM effect_output o WHERE o.effect_id = ANY (effect_ids);
    DELETE FROM run_groups g WHERE g.run_id = ANY (ids);
    DELETE FROM timers t WHERE t.run_id = ANY (ids);
    PERFORM roll_up_usage(ids);
    DELETE FROM blobs b WHERE b.run_id = ANY (ids);
    DELETE FROM client_runs c WHERE c.run_id = ANY (ids);
    DELETE FROM journal j WHERE j.run_id = ANY (ids);
    GET DIAGNOSTICS total = ROW_COUNT;
    DELETE FROM runs r WHERE r.run_id = ANY (ids);
    DELETE FROM run_heads u WHERE u.run_id = ANY (ids);
    INSERT INTO operator_audit (recorded_at, action, subject, actor, reason, detail)
        VALUES (clock_timestamp(), 'PRUNE_RUNS', coalesce(p->>'namespace', ''), p->>'actor', p->>'reason',
                jsonb_build_object('runs', cardinality(ids), 'journal_rows', total, 'ended_before', before));
    RETURN QUERY SELECT 'ok', cardinality(ids), total, more;
END
$$;

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA backburner FROM PUBLIC;
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'backburner_scheduler') THEN
        RAISE NOTICE 'role backburner_scheduler does not exist: no grants (see deploy/roles.sql)';
        RETURN;
    END IF;
    GRANT SELECT ON pruned_runs TO backburner_scheduler;
    GRANT EXECUTE ON FUNCTION prune_runs_v1(jsonb) TO backburner_scheduler;
END
$$;
