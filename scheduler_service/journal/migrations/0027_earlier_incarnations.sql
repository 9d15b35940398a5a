-- What an executor said last under an earlier incarnation. Without it the grace of that one's attempts began anew with each
-- hello of a newer one, and was never over where an executor was started over and over.
ALTER TABLE executors ADD COLUMN earlier jsonb NOT NULL DEFAULT '{}';
COMMENT ON COLUMN executors.earlier IS 'When each earlier incarnation that still has open attempts was last heard of.';
