-- What a failure of an agent's provider leads to, and circuit breakers: while an account's quota is spent, or a login is
-- refused, nothing is dispatched into it.
--
-- Who writes breakers locks the table, after heads, effects and queue rows and before label budgets (0030). A claim that
-- may try a half-open one takes its row before all of these, but never waits for it, nor for a head.

-- What follows a failure by its reason; reasons that are not here are retried as the retry policy says, and no more.
-- `replay/policies.py` says the same.
--   retried     again with the same harness, while the retry policy has attempts left
--   parks       waits without a slot for a reset that is known, and not near
--   fails_over  when it is not retried, the next harness of the chain takes the effect
--   breaker     whom it stops: EXECUTOR (the harness on that executor) or ACCOUNT (the harness everywhere in the namespace)
CREATE FUNCTION failure_policies()
RETURNS TABLE (failure text, retried boolean, parks boolean, fails_over boolean, breaker text)
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    VALUES ('AUTHENTICATION', false, false, true, 'EXECUTOR'),
           ('QUOTA_EXHAUSTED', false, true, true, 'ACCOUNT'),
           ('RATE_LIMITED', true, true, true, 'ACCOUNT'),
           ('OVERLOADED', true, false, true, ''),
           ('SPAWN_FAILED', true, false, true, ''),
           ('REFUSED', false, false, false, ''),
           ('BAD_REQUEST', false, false, false, ''),
           ('MAX_TURNS', false, false, false, ''),
           ('BUDGET', false, false, false, '')
$$;

-- Seconds until an outcome's provider takes requests again; NULL: nobody knows.
CREATE FUNCTION reset_of(item jsonb) RETURNS double precision LANGUAGE sql IMMUTABLE
    RETURN seconds_within((item->>'retry_after_s')::double precision, 2592000);

-- Whether an outcome is one of a quota whose reset is known and not near: 60 s, or what the executor says.
CREATE FUNCTION is_far_reset(item jsonb) RETURNS boolean LANGUAGE sql IMMUTABLE
    RETURN coalesce(item->>'reason' IN ('EFFECT_REASON_QUOTA_EXHAUSTED', 'EFFECT_REASON_RATE_LIMITED')
                    AND reset_of(item) >= coalesce(seconds_within((item->>'park_after_s')::double precision, 86400), 60),
                    false);

-- Whether an outcome opens a breaker: a rate limit does when it lasts, what is over soon is a matter of retries.
CREATE FUNCTION opens_breaker(item jsonb) RETURNS boolean LANGUAGE sql IMMUTABLE
    RETURN coalesce(item->>'outcome' = 'failed' AND (is_far_reset(item) OR item->>'reason' IN (
        'EFFECT_REASON_AUTHENTICATION', 'EFFECT_REASON_QUOTA_EXHAUSTED')), false);

-- What is added to the message of an effect that is not parked although the reset is known.
CREATE FUNCTION reset_note(p_leads_to text, p_until timestamptz, p_why text) RETURNS text LANGUAGE sql IMMUTABLE
    RETURN concat('; it is reset at ', to_char(p_until AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS'), ' UTC',
                  CASE WHEN p_why = '' THEN '' ELSE ', and ' || p_why END,
                  CASE WHEN p_leads_to = 'fail over' THEN ': the next harness takes it' ELSE '' END);

CREATE TABLE provider_breakers (
    namespace text NOT NULL,
    harness text NOT NULL,
    account text NOT NULL,
    executor_id text NOT NULL,
    reason text NOT NULL,
    message text NOT NULL,
    opened_at timestamptz NOT NULL,
    failed_at timestamptz NOT NULL,
    until timestamptz NOT NULL,
    reset_known boolean NOT NULL,
    failures int NOT NULL,
    probe_until timestamptz,
    PRIMARY KEY (namespace, harness, account, executor_id)
);
COMMENT ON TABLE provider_breakers IS 'Circuit breakers: harnesses that nothing is dispatched to, since their provider refuses.';
COMMENT ON COLUMN provider_breakers.account IS 'As the harness names it; empty: the one that it has in this namespace.';
COMMENT ON COLUMN provider_breakers.executor_id IS 'The only executor that it stops; empty: all of the namespace.';
COMMENT ON COLUMN provider_breakers.until IS
    'Open until then. Afterwards a known reset stops nothing; a guess lets one attempt at a time try: half-open.';
COMMENT ON COLUMN provider_breakers.failures IS 'How often it was tried in vain: each time doubles the guess.';
COMMENT ON COLUMN provider_breakers.probe_until IS 'Half-open: an attempt tries; until then no other one does.';

-- Most breakers; those that were opened first go first.
CREATE FUNCTION breakers_max() RETURNS int LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$ SELECT 1000 $$;

-- Whether a breaker forbids this dispatch. Callers ask first whether there is any breaker at all.
CREATE FUNCTION is_broken(p_namespace text, p_harness text, p_executor text) RETURNS boolean
LANGUAGE sql STABLE
    RETURN EXISTS (SELECT FROM provider_breakers b
                   WHERE b.namespace = p_namespace AND b.harness = p_harness AND b.executor_id IN ('', p_executor)
                     AND (NOT b.reset_known OR b.until > clock_timestamp()));

-- Capabilities of an executor that one attempt may try now, for something in the queue may want them: nobody else does,
-- for a minute after `at`, the claim's stamp. What nobody takes in the end goes back by spare_probes.
CREATE FUNCTION take_probes(p_namespace text, p_executor text, p_capabilities text[], at timestamptz) RETURNS text[]
LANGUAGE plpgsql SET search_path = backburner, pg_temp AS $$
DECLARE
    b provider_breakers; taken text[] := '{}';
BEGIN
    IF NOT EXISTS (SELECT FROM provider_breakers x WHERE NOT x.reset_known AND x.until <= at) THEN
        RETURN taken;
    END IF;
    LOCK TABLE provider_breakers IN ROW EXCLUSIVE MODE;  -- before its rows, as who opens and closes them
    FOR b IN SELECT x.* FROM provider_breakers x
             WHERE x.namespace = p_namespace AND x.executor_id IN ('', p_executor) AND NOT x.reset_known
               AND x.until <= at AND coalesce(x.probe_until <= at, true) AND 'agent/' || x.harness = ANY (p_capabilities)
               AND EXISTS (SELECT FROM dispatch_queue q WHERE q.namespace = p_namespace AND q.not_before <= at
                           AND 'agent/' || x.harness = ANY (q.capabilities))
               AND NOT EXISTS (SELECT FROM provider_breakers o WHERE o.namespace = p_namespace AND o.harness = x.harness
                               AND o.executor_id IN ('', p_executor)
                               AND (o.until > at OR (NOT o.reset_known AND o.probe_until > at)))
             ORDER BY x.harness, x.account, x.executor_id FOR UPDATE OF x SKIP LOCKED
    LOOP
        UPDATE provider_breakers u SET probe_until = at + interval '60 s'
            WHERE u.namespace = b.namespace AND u.harness = b.harness AND u.account = b.account
              AND u.executor_id = b.executor_id;
        taken := taken || ('agent/' || b.harness);
    END LOOP;
    RETURN taken;
END
$$;

-- Gives back what the claim of this stamp has taken, and nobody tried.
CREATE FUNCTION spare_probes(p_namespace text, p_executor text, p_capabilities text[], at timestamptz) RETURNS void
LANGUAGE sql SET search_path = backburner, pg_temp AS $$
    UPDATE provider_breakers b SET probe_until = NULL
        WHERE b.namespace = p_namespace AND 'agent/' || b.harness = ANY (p_capabilities)
          AND b.executor_id IN ('', p_executor) AND b.probe_until = at + interval '60 s'
$$;

-- What the outcomes of a run, after a seq, say of the providers of its agents.
CREATE FUNCTION provider_news(p_run uuid, p_after bigint, p_items attempt_item[]) RETURNS jsonb
LANGUAGE sql STABLE SET search_path = backburner, pg_temp AS $$
    SELECT coalesce(jsonb_agg(jsonb_build_object(
               'namespace', e.namespace, 'harness', d.data->>'harness', 'executor_id', e.executor_id,
               'account', left(coalesce(i.item->>'account', ''), 200), 'dispatched_at', e.dispatched_at,
               'reason', replace(i.item->>'reason', 'EFFECT_REASON_', ''), 'message', left(i.item->>'message', 500),
               'reset_s', reset_of(i.item)) ORDER BY j.seq), '[]')
    FROM journal j
         JOIN effects e ON e.effect_id = j.effect_id AND e.kind = 'AGENT'
         JOIN unnest(p_items) i ON i.effect_id = j.effect_id AND i.attempt = j.attempt
         JOIN journal d ON d.effect_id = j.effect_id AND d.attempt = j.attempt AND d.type = 'EFFECT_DISPATCHED'
    WHERE j.run_id = p_run AND j.seq > p_after
      AND j.type IN ('EFFECT_RESOLVED', 'EFFECT_ATTEMPT_FAILED', 'EFFECT_PARKED')
      AND (opens_breaker(i.item) OR i.item->>'outcome' = 'succeeded')
$$;

-- Opens and closes breakers. A failure while one is open changes its reset at most; a success closes it when the attempt
-- was dispatched after the last failure: one of an executor whatever account it has now, for a login may have changed.
CREATE FUNCTION note_provider_news(news jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = backburner, pg_temp AS $$
DECLARE
    n record; at timestamptz;
BEGIN
    LOCK TABLE provider_breakers IN SHARE ROW EXCLUSIVE MODE;
    at := clock_timestamp();
    FOR n IN SELECT t.item->>'account' AS account, i.*, p.breaker
             FROM jsonb_array_elements(news) WITH ORDINALITY t(item, o),
                  jsonb_to_record(t.item) AS i(namespace text, harness text, executor_id text, reason text, message text,
                                               dispatched_at timestamptz, reset_s double precision)
                  LEFT JOIN failure_policies() p ON p.failure = i.reason
             ORDER BY t.o
    LOOP
        IF n.reason IS NULL THEN
            DELETE FROM provider_breakers b
                WHERE b.namespace = n.namespace AND b.harness = n.harness AND b.executor_id IN ('', n.executor_id)
                  AND (n.account = '' OR b.account IN ('', n.account) OR b.executor_id = n.executor_id) AND b.failed_at <= n.dispatched_at;
            CONTINUE;
        END IF;
        INSERT INTO provider_breakers AS b (namespace, harness, account, executor_id, reason, message, opened_at, failed_at,
                                            until, reset_known, failures)
            VALUES (n.namespace, n.harness, n.account, CASE n.breaker WHEN 'EXECUTOR' THEN n.executor_id ELSE '' END,
                    n.reason, coalesce(n.message, ''), at, at,
                    at + make_interval(secs => coalesce(n.reset_s, breaker_guess(1))), n.reset_s IS NOT NULL, 1)
            ON CONFLICT (namespace, harness, account, executor_id) DO UPDATE SET
                reason = excluded.reason, message = excluded.message, failed_at = at, probe_until = NULL,
                failures = b.failures + (b.until <= at)::int,
                reset_known = excluded.reset_known OR (b.reset_known AND b.until > at),
                until = CASE WHEN excluded.reset_known AND b.reset_known THEN greatest(b.until, excluded.until)
                             WHEN excluded.reset_known THEN excluded.until
                             WHEN b.until > at THEN b.until
                             ELSE at + make_interval(secs => breaker_guess(b.failures + 1)) END;
    END LOOP;
    DELETE FROM provider_breakers b WHERE b.until < at - interval '7 days' OR b.ctid IN (
        SELECT o.ctid FROM provider_breakers o ORDER BY o.opened_at DESC OFFSET breakers_max());
END
$$;

-- Seconds until the next try when nobody knows the reset: 1 min, doubled by each try in vain, up to 1 h.
CREATE FUNCTION breaker_guess(p_failures int) RETURNS double precision LANGUAGE sql IMMUTABLE
    RETURN least(3600, 60 * power(2, least(p_failures, 10) - 1));

-- An operator closes breakers. What is empty matches any. Answers with each that was closed.
CREATE FUNCTION reset_breakers_v1(items jsonb) RETURNS TABLE (ord int, outcome text, breakers jsonb)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = backburner, pg_temp AS $$
DECLARE
    it record;
BEGIN
    LOCK TABLE provider_breakers IN SHARE ROW EXCLUSIVE MODE;
    FOR it IN
        SELECT (t.n - 1)::int AS o, i.* FROM jsonb_array_elements(items) WITH ORDINALITY t(item, n),
             jsonb_to_record(t.item) AS i(namespace text, harness text, account text, executor_id text, reason text,
                                          actor text)
        ORDER BY t.n
    LOOP
        WITH gone AS (
            DELETE FROM provider_breakers b
                WHERE it.namespace IN ('', b.namespace) AND it.harness IN ('', b.harness)
                  AND (it.account = '' OR it.account = b.account) AND it.executor_id IN ('', b.executor_id) RETURNING b.*
        )
        SELECT coalesce(jsonb_agg(to_jsonb(g) ORDER BY g.namespace, g.harness, g.account, g.executor_id), '[]')
            INTO breakers FROM gone g;
        INSERT INTO operator_audit (recorded_at, action, subject, actor, reason, detail)
            SELECT clock_timestamp(), 'RESET_BREAKER', b->>'harness', it.actor, it.reason, b
            FROM jsonb_array_elements(breakers) b;
        RETURN QUERY SELECT it.o, 'ok', breakers;
    END LOOP;
END
$$;

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA backburner FROM PUBLIC;
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'backburner_scheduler') THEN
        RAISE NOTICE 'role backburner_scheduler does not exist: no grants (see deploy/roles.sql)';
        RETURN;
    END IF;
    GRANT SELECT ON provider_breakers TO backburner_scheduler;
    GRANT EXECUTE ON FUNCTION reset_breakers_v1(jsonb) TO backburner_scheduler;
END
$$;
