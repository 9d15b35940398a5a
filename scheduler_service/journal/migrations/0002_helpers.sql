-- Helpers of the functions. None of them writes.

-- Contract of the functions with the services, and the range that this schema serves.
CREATE FUNCTION contract_v1() RETURNS TABLE (lowest int, highest int) LANGUAGE sql STABLE AS $$ SELECT 1, 1 $$;

-- Shard of a run. The services compute the same: the last four bytes of the id, modulo 16.
CREATE FUNCTION shard_of(run_id uuid) RETURNS int LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT get_byte(uuid_send(run_id), 15) % 16
$$;

-- {name: value}, or {} for no value: proto3 JSON leaves out what is not set.
CREATE FUNCTION field(name text, value jsonb) RETURNS jsonb LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN value IS NULL OR value IN ('null', '""') THEN '{}'::jsonb ELSE jsonb_build_object(name, value) END
$$;

-- A proto3 JSON duration.
CREATE FUNCTION duration(seconds double precision) RETURNS jsonb LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN seconds IS NOT NULL THEN to_jsonb(round(seconds::numeric, 6)::text || 's') END
$$;

-- A proto3 JSON timestamp.
CREATE FUNCTION moment(at timestamptz) RETURNS jsonb LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN at IS NOT NULL THEN to_jsonb(to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')) END
$$;

-- Seconds that somebody else measured or proposed, from 0 to a most; whatever is no number of them is the most.
CREATE FUNCTION seconds_within(seconds double precision, most double precision) RETURNS double precision
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN seconds IS NOT NULL THEN least(greatest(seconds, 0), most) END
$$;

-- True for states in which an executor has, or may have, an attempt of the effect.
CREATE FUNCTION is_live(state text) RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT state IN ('DISPATCHED', 'RUNNING', 'CANCELLING')
$$;

-- Most output that is stored of an attempt, give or take one call: executors stop earlier by themselves.
CREATE FUNCTION output_bytes_max() RETURNS bigint LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$ SELECT 33554432::bigint $$;

-- Types of rows that the owner of a run may send; `journal/writers.py` says the same.
CREATE FUNCTION owner_types() RETURNS text[] LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT '{RUN_CLOSING,RUN_COMPLETED,RUN_FAILED,RUN_CANCELLED,RUN_CONTINUED,RUN_HALTED,RUN_REPORTED,'
           'PROCESS_RUNTIME_ERROR,PROCESS_LOG,PATCH_MARKED,TIMER_SET,TIMER_FIRED,EFFECT_REQUESTED,'
           'EFFECT_CANCEL_REQUESTED,EFFECT_RESOLVED}'::text[]
$$;

-- True for the states in which a run does not go on until somebody resumes it.
CREATE FUNCTION is_parked(state text) RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT state IN ('HALTED', 'PROCESS_ERROR')
$$;

-- True for rows with which an owner ends a run without its process: all that it may append to a parked one.
CREATE FUNCTION ends_without_process(rws jsonb) RETURNS boolean LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT coalesce(bool_and(r->>'type' IN ('EFFECT_CANCEL_REQUESTED', 'RUN_CLOSING', 'RUN_CANCELLED')
                             AND coalesce((r->>'cause')::bigint, 0) = 0), false)
    FROM jsonb_array_elements(rws) r
$$;

-- Most rows of a run that its owner may write; then only its end.
CREATE FUNCTION history_max() RETURNS bigint LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$ SELECT 200000::bigint $$;

-- Attempts of a group that may be open at a time: what the effect asked for, or less while the group has less. This one
-- and the next are read when they are made, not when they are called: they need no search path, and can be inlined.
CREATE FUNCTION group_limit(p_run uuid, p_group text, p_most int) RETURNS int LANGUAGE sql STABLE
    RETURN least(p_most, (SELECT g.limit_ FROM run_groups g WHERE g.run_id = p_run AND g.group_id = p_group));

-- Attempts of a group that are open. Under the head's lock it is the truth, else a hint.
CREATE FUNCTION group_open(p_run uuid, p_group text) RETURNS bigint LANGUAGE sql STABLE
    RETURN (SELECT count(*) FROM effects l WHERE l.run_id = p_run AND l.group_id = p_group
            AND l.state IN ('DISPATCHED', 'RUNNING', 'CANCELLING'));

-- Rows at which a run is warned of that.
CREATE FUNCTION history_warning() RETURNS bigint LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$ SELECT 10000::bigint $$;

-- The reference to a value that is given as JSON text, as a Payload.
CREATE FUNCTION blob_ref(content text) RETURNS jsonb LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT jsonb_build_object('blob', jsonb_build_object(
        'digest', encode(sha256(convert_to(content, 'UTF8')), 'hex'),
        'size_bytes', octet_length(convert_to(content, 'UTF8')), 'media_type', 'application/json'))
$$;
