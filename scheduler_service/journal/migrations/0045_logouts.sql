-- A login that is gone closes no breaker: a CLI takes it away itself when it is refused, and the next attempt fails as well.

-- See 0038 and 0044.
CREATE OR REPLACE FUNCTION close_refused_logins() RETURNS trigger
LANGUAGE plpgsql SET search_path = backburner, pg_temp AS $$
DECLARE
    names text[] := ARRAY(
        SELECT n->>'name' FROM jsonb_array_elements(NEW.harness_checks) n
        JOIN jsonb_array_elements(OLD.harness_checks) o ON o->>'name' = n->>'name'
        WHERE login_of(n) <> coalesce(login_of(o), o->'before')
          AND n->>'login' IS DISTINCT FROM 'HARNESS_LOGIN_MISSING');
BEGIN
    IF EXISTS (SELECT FROM provider_breakers b WHERE b.executor_id = NEW.executor_id AND b.harness = ANY (names)) THEN
        LOCK TABLE provider_breakers IN SHARE ROW EXCLUSIVE MODE;
        DELETE FROM provider_breakers b
            WHERE b.executor_id = NEW.executor_id AND b.harness = ANY (names) AND b.reason = 'AUTHENTICATION';
    END IF;
    RETURN NULL;
END
$$;

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA backburner FROM PUBLIC;
