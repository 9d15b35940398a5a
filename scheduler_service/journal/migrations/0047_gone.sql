-- A sign of life that is noted after the end of its session does not bring that back: the executor stood as connected until
-- its next hello, and effects as waiting for a slot there. What it has said counts for its grace all the same.
CREATE OR REPLACE FUNCTION executors_seen_v1(items jsonb) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = backburner, pg_temp AS $$
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);  -- a SET clause would be undone before the commit
    PERFORM 1 FROM executors e WHERE e.executor_id IN (SELECT i->>'executor_id' FROM jsonb_array_elements(items) i)
        ORDER BY e.executor_id FOR UPDATE;
    UPDATE executors e SET seen_at = clock_timestamp(),
            state = CASE WHEN e.state = 'DISCONNECTED' THEN e.state ELSE i.state END
        FROM jsonb_to_recordset(items) AS i(executor_id text, session_no int, state text)
        WHERE e.executor_id = i.executor_id AND e.session_no = i.session_no;
END
$$;

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA backburner FROM PUBLIC;
