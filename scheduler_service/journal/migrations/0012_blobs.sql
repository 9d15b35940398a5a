-- Values too large to lie in the journal. They go in with the row that refers to them, so that neither is without the
-- other; the reference is made here, so that it cannot be wrong. What comes twice is kept once.

-- Keeps values of a run.
CREATE FUNCTION keep_blobs(p_run uuid, contents text[]) RETURNS void
LANGUAGE sql SET search_path = backburner, pg_temp AS $$
    INSERT INTO blobs (run_id, digest, media_type, content)
        SELECT p_run, encode(sha256(convert_to(c, 'UTF8')), 'hex'), 'application/json', convert_to(c, 'UTF8')
        FROM (SELECT DISTINCT unnest(contents) AS c) given WHERE c IS NOT NULL ORDER BY 2
        ON CONFLICT DO NOTHING
$$;

-- Copies the blob that a Payload refers to, if it does, to another run: blobs belong to one.
CREATE FUNCTION copy_blob(p_from uuid, p_to uuid, payload jsonb) RETURNS void
LANGUAGE sql SET search_path = backburner, pg_temp AS $$
    INSERT INTO blobs (run_id, digest, media_type, content)
        SELECT p_to, b.digest, b.media_type, b.content FROM blobs b
        WHERE b.run_id = p_from AND b.digest = payload->'blob'->>'digest'
        ON CONFLICT DO NOTHING
$$;

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA backburner FROM PUBLIC;
