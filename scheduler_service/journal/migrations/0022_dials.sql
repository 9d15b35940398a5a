-- Hellos of an executor may overtake each other on their way: the row knows which one was said last.
ALTER TABLE executors
    ADD COLUMN dial bigint NOT NULL DEFAULT 0,
    ADD COLUMN succeeded text[] NOT NULL DEFAULT '{}';
COMMENT ON COLUMN executors.dial IS 'How many sessions the incarnation had tried to open when it said its last hello.';
COMMENT ON COLUMN executors.succeeded IS 'Incarnations that are dead by the word of a successor, the newest first.';
