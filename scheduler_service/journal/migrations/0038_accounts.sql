-- Accounts of executors: a breaker stops only those that have its account, where they say which one they have.
--
-- `executor_found_v1` takes what an executor finds of its harnesses later in its session.

ALTER TABLE provider_breakers ADD COLUMN selective boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN provider_breakers.selective IS
    'Executors say who has this account: only they are stopped, and those of which it is not known.';

-- The account that a harness has on an executor, as that one says; empty: not known.
CREATE FUNCTION account_on(p_executor text, p_harness text) RETURNS text LANGUAGE sql STABLE
SET search_path = backburner, pg_temp AS $$
    SELECT coalesce((SELECT c->>'account' FROM executors e CROSS JOIN LATERAL jsonb_array_elements(e.harness_checks) c
                     WHERE e.executor_id = p_executor AND c->>'name' = p_harness LIMIT 1), '')
$$;

-- Whether an executor of a namespace says that it has this account.
CREATE FUNCTION is_account_told(p_namespace text, p_harness text, p_account text) RETURNS boolean LANGUAGE sql STABLE
SET search_path = backburner, pg_temp AS $$
    SELECT p_account <> '' AND EXISTS (
        SELECT FROM executors e WHERE e.namespace = p_namespace AND e.state <> 'LOST'
           AND e.harness_checks @> jsonb_build_array(jsonb_build_object('name', p_harness, 'account', p_account)))
$$;

-- Whether a breaker concerns an executor: not one of another account, when executors say who has it, nor one that has got
-- an account since its login was refused because it had none. `journal/breakers.py` says the same.
CREATE FUNCTION breaker_stops(b provider_breakers, p_executor text) RETURNS boolean LANGUAGE sql STABLE
SET search_path = backburner, pg_temp AS $$
    SELECT b.executor_id IN ('', p_executor)
       AND (NOT (b.selective OR (b.account = '' AND b.executor_id <> ''))
            OR account_on(p_executor, b.harness) IN ('', b.account))
$$;

CREATE OR REPLACE FUNCTION is_broken(p_namespace text, p_harness text, p_executor text) RETURNS boolean
LANGUAGE sql STABLE
    RETURN EXISTS (SELECT FROM provider_breakers b
                   WHERE b.namespace = p_namespace AND b.harness = p_harness AND b.executor_id IN ('', p_executor)
                     AND (NOT b.reset_known OR b.until > clock_timestamp()) AND breaker_stops(b, p_executor));

CREATE OR REPLACE FUNCTION take_probes(p_namespace text, p_executor text, p_capabilities text[], at timestamptz) RETURNS text[]
LANGUAGE plpgsql SET search_path = backburner, pg_temp AS $$
DECLARE
    b provider_breakers; taken text[] := '{}';
BEGIN
    IF NOT EXISTS (SELECT FROM provider_breakers x WHERE NOT x.reset_known AND x.until <= at) THEN
        RETURN taken;
    END IF;
    LOCK TABLE provider_breakers IN ROW EXCLUSIVE MODE;  -- before its rows, as who opens and closes them
    FOR b IN SELECT x.* FROM provider_breakers x
             WHERE x.namespace = p_namespace AND breaker_stops(x, p_executor) AND NOT x.reset_known
               AND x.until <= at AND coalesce(x.probe_until <= at, true) AND 'agent/' || x.harness = ANY (p_capabilities)
               AND EXISTS (SELECT FROM dispatch_queue q WHERE q.namespace = p_namespace AND q.not_before <= at
                           AND 'agent/' || x.harness = ANY (q.capabilities))
               AND NOT EXISTS (SELECT FROM provider_breakers o WHERE o.namespace = p_namespace AND o.harness = x.harness
                               AND breaker_stops(o, p_executor)
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

CREATE OR REPLACE FUNCTION note_provider_news(news jsonb) RETURNS void
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
                                            until, reset_known, failures, selective)
            VALUES (n.namespace, n.harness, n.account, CASE n.breaker WHEN 'EXECUTOR' THEN n.executor_id ELSE '' END,
                    n.reason, coalesce(n.message, ''), at, at,
                    at + make_interval(secs => coalesce(n.reset_s, breaker_guess(1))), n.reset_s IS NOT NULL, 1,
                    is_account_told(n.namespace, n.harness, n.account))
            ON CONFLICT (namespace, harness, account, executor_id) DO UPDATE SET
                reason = excluded.reason, message = excluded.message, failed_at = at, probe_until = NULL,
                selective = b.selective OR excluded.selective,
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

-- What an executor has of harnesses, later in its session. False: a newer session has said more, or will.
CREATE FUNCTION executor_found_v1(p jsonb) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = backburner, pg_temp AS $$
BEGIN
    UPDATE executors e SET capabilities = ARRAY(SELECT jsonb_array_elements_text(p->'capabilities')),
                           harness_checks = p->'harness_checks'
        WHERE e.executor_id = p->>'executor_id' AND e.session_no = (p->>'session_no')::int;
    RETURN FOUND;
END
$$;

-- Somebody has logged in anew: what was said of the login before holds no more. The row of the executor is locked, and
-- nobody who has locked breakers waits for one of these.
CREATE FUNCTION close_refused_logins() RETURNS trigger
LANGUAGE plpgsql SET search_path = backburner, pg_temp AS $$
DECLARE
    names text[] := ARRAY(
        SELECT n->>'name' FROM jsonb_array_elements(NEW.harness_checks) n
        JOIN jsonb_array_elements(OLD.harness_checks) o ON o->>'name' = n->>'name'
        WHERE NOT coalesce((n->>'looking')::boolean, (o->>'looking')::boolean, false)
          AND (n->>'login', n->>'account', n->>'login_id') IS DISTINCT FROM (o->>'login', o->>'account', o->>'login_id'));
BEGIN
    IF EXISTS (SELECT FROM provider_breakers b WHERE b.executor_id = NEW.executor_id AND b.harness = ANY (names)) THEN
        LOCK TABLE provider_breakers IN SHARE ROW EXCLUSIVE MODE;
        DELETE FROM provider_breakers b
            WHERE b.executor_id = NEW.executor_id AND b.harness = ANY (names) AND b.reason = 'AUTHENTICATION';
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER executors_logins AFTER UPDATE OF harness_checks ON executors FOR EACH ROW
    WHEN (OLD.harness_checks IS DISTINCT FROM NEW.harness_checks) EXECUTE FUNCTION close_refused_logins();

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA backburner FROM PUBLIC;
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'backburner_scheduler') THEN
        RAISE NOTICE 'role backburner_scheduler does not exist: no grants (see deploy/roles.sql)';
        RETURN;
    END IF;
    GRANT EXECUTE ON FUNCTION executor_found_v1(jsonb) TO backburner_scheduler;
END
$$;
